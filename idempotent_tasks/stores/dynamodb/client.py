"""Requests to DynamoDB: one client for each process, expected refusals as values, botocore's errors translated."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import boto3
from botocore.exceptions import ClientError
from botocore.utils import ensure_boolean

from idempotent_tasks.core.clock import Clock, ServerClock, SystemClock
from idempotent_tasks.core.retry import limited
from idempotent_tasks.errors import RecordCorruptError, StoreError, StoreUnavailableError
from idempotent_tasks.stores.aws import Credentials, ProcessClient
from idempotent_tasks.stores.aws_errors import Request, Service, blames_credentials, error_code, translated
from idempotent_tasks.stores.dynamodb.fast.client import FastClient, log_path
from idempotent_tasks.stores.dynamodb.fast.http import is_from_dynamodb
from idempotent_tasks.stores.dynamodb.fast.sigv4 import SigningTime

__all__ = ["Connection", "Refused", "Succeeded"]

#: How many requests are sent at once to confirm a jump of DynamoDB's clock: an answer that contradicts both the jump
#: and what was known before has to be confirmed too.
_CONFIRMATIONS: Final = 2
#: Whether the request under way is such a confirmation, which must not cause others.
_confirming: ContextVar[bool] = ContextVar("idempotency_confirming", default=False)
#: The permanent error codes of DynamoDB, each with its remedy; any other code, also an unknown one, is transient.
#: https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/Programming.Errors.html ("OK to retry?")
#: https://docs.aws.amazon.com/amazondynamodb/latest/APIReference/CommonErrors.html
_ALLOW: Final = "allow the action on the table to the worker's role"
_COMPARE: Final = "compare the table's key schema and this store's attribute names"
DYNAMODB: Final = Service(
    prefix="dynamodb",
    permanent={
        # A policy.  A changed one takes effect within seconds; a commit is tried again that long all the same.
        "AccessDenied": _ALLOW,
        "AccessDeniedException": _ALLOW,
        # No table of this name.
        "ResourceNotFoundException": "create it: celery -A <app> idempotency create-table; or fix its name or Region",
        # The request does not fit the table, or DynamoDB at all.
        "SerializationException": _COMPARE,
        "UnknownOperationException": "fix the endpoint: what answers there does not know this operation",
        "ValidationException": _COMPARE,
    },
    settings="the store's region, endpoint or credentials",
    speaks_json=True,
)
#: In DynamoDB's message where an update does not fit the types of the item's attributes.
_WRONG_TYPE: Final = "incorrect data type"
_REQUEST_ID: Final = "x-amzn-requestid"
#: By operation, the member that each successful answer of DynamoDB's has.
_MEMBERS: Final = {"describe_table": "Table", "describe_time_to_live": "TimeToLiveDescription"}


@dataclass(frozen=True, slots=True)
class Succeeded:
    """The answer to a request that was carried out."""

    answer: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Refused:
    """The refusal that the caller of a request expects, such as that its condition is false."""

    #: The item that made the condition false; None where there is none, or the server does not return it.
    item: dict[str, Any] | None
    #: For each write of a transaction its code; empty for any other request.
    codes: tuple[str, ...] = ()


class Connection(ProcessClient):
    """Sends requests to one DynamoDB endpoint, with a client for each process; arguments as for `ProcessClient`.

    Args:
        clock: the local source of time.
        fast: whether a `FastClient` may send requests; it never does for a ready-made client.
    """

    def __init__(self, *, clock: Clock | None = None, fast: bool = True, **given: Any) -> None:
        super().__init__("dynamodb", clock=clock, **given)
        self._fast = fast
        #: Of this process's client.
        self._fast_client: FastClient | None = None
        #: Why there is no fast client.
        self._closed = "the client was ready-made (client=)"
        self.clock = ServerClock(clock or SystemClock())
        #: Whether the endpoint has answered with a request id: DynamoDB always does, some stand-ins never.
        self._shows_ids = False
        self._signing_time = SigningTime(self.clock)
        #: Whether the server was asked for its time, by this process or before its fork; a server whose answers are not
        #: DynamoDB's own never shows it.
        self.clock_asked = False
        #: The longest that a request may take, credentials included, whatever the client's time-outs; None for no limit
        #: but that of its caller.
        self.answer_within_seconds: float | None = None
        #: Returns the parameters of a ``get_item`` that may be sent at any time, to see the server's time.
        self._probe: Callable[[], dict[str, Any]] | None = None

    def request(
        self, operation: str, *, refusal: str = "ConditionalCheckFailedException", **parameters: Any
    ) -> Succeeded | Refused:
        """Send one request, once.

        Args:
            operation: the client's method, for example ``update_item``.
            refusal: the error code that is returned as `Refused`.
            parameters: its keyword arguments.

        Raises:
            StoreUnavailableError: a transient error: the network, a time-out, throttling, the credentials; or no time
                is left (`idempotent_tasks.core.retry.time_left`), and nothing was sent.
            StoreMisconfiguredError: an error that is certain to stay until somebody acts; the message holds the remedy.
            RecordCorruptError: the item under the key is no record.
        """
        request = Request(
            DYNAMODB,
            _action(operation),
            lambda: f"table {_table_of(parameters)!r} at {self!r}",
            lambda: self.provider,
        )
        limit = self.answer_within_seconds
        try:
            with nullcontext() if limit is None else limited(self.clock, limit), translated(request):
                return self._answer(request, operation, parameters, refusal)
        except StoreError as error:
            if blames_credentials(error):
                self.refused()
            if error_code(error) == "ValidationException" and _WRONG_TYPE in str(error.__cause__):
                msg = f"{request}: the item under the key has attributes of other types; delete it"
                raise RecordCorruptError(msg) from error
            raise

    def _answer(
        self, request: Request, operation: str, parameters: dict[str, Any], refusal: str
    ) -> Succeeded | Refused:
        client = self.client_of_this_process()
        sent_at = self.clock.local_now()
        try:
            # Each transaction has another shape, which the fast client would have to learn anew.
            if self._fast_client is None or "TransactItems" in parameters:
                answer = getattr(client, operation)(**parameters)
            else:
                answer = self._fast_client.send(operation, parameters)
        except ClientError as error:
            if error.operation_name != request.action:
                # Another service's answer, such as that of STS.
                raise
            self._observe(error.response, sent_at)
            if error_code(error) != refusal:
                raise
            reasons = error.response.get("CancellationReasons") or ()
            return Refused(error.response.get("Item"), tuple(str(each.get("Code")) for each in reasons))
        self._observe(answer, sent_at)
        member = "Attributes" if "ReturnValues" in parameters else _MEMBERS.get(operation)
        if not self._is_own(answer) or (member is not None and member not in answer):
            # botocore takes any page with status 200 for an answer without members; it must not count as a commit.
            msg = f"{request} was answered by what is not DynamoDB; fix the endpoint, or the gateway in between"
            raise StoreUnavailableError(msg)
        return Succeeded(answer)

    def _is_own(self, answer: Any) -> bool:
        """Return whether a success is DynamoDB's own: JSON, with a request id if the endpoint has ever sent one."""
        headers = _headers(answer)
        has_id = _REQUEST_ID in headers
        if "json" not in headers.get("content-type", "") or (self._shows_ids and not has_id):
            return False
        self._shows_ids = has_id
        return True

    def now(self, probe: Callable[[], dict[str, Any]]) -> float:
        """Return DynamoDB's time in epoch seconds, after a ``get_item`` if no answer has shown it yet.

        Args:
            probe: returns the parameters of that ``get_item``, which raises as `request`.

        Raises:
            StoreUnavailableError: the only answer so far contradicts this machine's clock by more than they drift.
        """
        self._probe = probe
        if not self.clock_asked:
            self.request("get_item", **probe())
            self.clock_asked = True
        elif self.clock.doubtful:
            self._confirm()
        if self.clock.unknown:
            msg = f"DynamoDB's time at {self!r} is far from this machine's, and no second answer has confirmed it yet"
            raise StoreUnavailableError(msg)
        return self.clock.now()

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without the fast client, which is this process's, and the probe, a function of the store."""
        return {**super().__getstate__(), "_fast_client": None, "_probe": None}

    def _made(self, client: Any, session: boto3.Session, credentials: Credentials | None) -> None:
        super()._made(client, session, credentials)
        discovers = self._config.endpoint_discovery_enabled
        if discovers is None:
            # boto3 has no other way to its session's configuration.
            discovers = session._session.get_config_variable("endpoint_discovery_enabled")  # noqa: SLF001
        if not self._fast:
            self._closed = "it is turned off (fast=False)"
        elif ensure_boolean(discovers):
            # The fast client would not notice that the client has changed to another endpoint.
            self._closed = "endpoints are discovered"
        else:
            self._fast_client = FastClient(client, self._signing_time, repr(self))

    def _adopt(self, pid: int) -> None:
        super()._adopt(pid)
        if self._fast_client is None:
            log_path(repr(self), self._closed)

    def _observe(self, answer: Any, sent_at: float) -> None:
        headers = _headers(answer)
        if "date" in headers and is_from_dynamodb(headers):
            self.clock.observe(headers["date"], sent_at)
            self.clock_asked = True
            if self.clock.doubtful:
                self._confirm()

    def _confirm(self) -> None:
        """Send the probe until a jump of DynamoDB's clock is confirmed or refuted, twice at most; ignore errors."""
        if self._probe is None or _confirming.get():
            return
        token = _confirming.set(True)
        try:
            for _ in range(_CONFIRMATIONS):
                if self.clock.doubtful:
                    with suppress(StoreError):
                        self.request("get_item", **self._probe())
        finally:
            _confirming.reset(token)


@cache
def _action(operation: str) -> str:
    """Return DynamoDB's name of the operation of a client's method, such as ``GetItem`` for ``get_item``."""
    return "".join(part.title() for part in operation.split("_"))


def _table_of(parameters: Mapping[str, Any]) -> str:
    """Return the table that a request is about; of a transaction that of its first write."""
    for write in parameters.get("TransactItems", ()):
        return str(next(iter(write.values())).get("TableName", ""))
    return str(parameters.get("TableName", ""))


def _headers(answer: Any) -> dict[str, str]:
    headers: dict[str, str] = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    return headers
