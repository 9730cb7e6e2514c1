"""The road to DynamoDB: one client a process, answers and refusals as values, foreign errors translated."""

from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import boto3
from botocore.exceptions import ClientError
from botocore.utils import ensure_boolean

from idempotent_tasks.clock import Clock, ServerClock, SystemClock
from idempotent_tasks.errors import RecordCorruptError, StoreError, StoreUnavailableError
from idempotent_tasks.retries import time_left
from idempotent_tasks.stores.aws import Credentials, ProcessClient
from idempotent_tasks.stores.aws_errors import Request, Service, blames_credentials, error_code, translated
from idempotent_tasks.stores.dynamodb.fast.client import FastClient, announce
from idempotent_tasks.stores.dynamodb.fast.http import is_from_dynamodb
from idempotent_tasks.stores.dynamodb.fast.sigv4 import SigningTime

__all__ = ["Connection", "Refused", "Succeeded"]

#: Requests that are sent at once to confirm a jump of DynamoDB's clock: of two answers that contradict each other and
#: what was known, the second has to be confirmed too.
_CONFIRMATIONS: Final = 2
#: Whether the request under way is such a confirmation.
_confirming: ContextVar[bool] = ContextVar("idempotency_confirming", default=False)
#: What DynamoDB's refusals mean that no further try changes; any other code, one that nobody knows included, may pass.
#: https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/Programming.Errors.html ("OK to retry?")
#: https://docs.aws.amazon.com/amazondynamodb/latest/APIReference/CommonErrors.html
_ALLOW: Final = "allow the action on the table to the worker's role"
_COMPARE: Final = "compare the table's key schema and this store's attribute names"
DYNAMODB: Final = Service(
    prefix="dynamodb",
    permanent={
        # A policy; one that was changed is in force within seconds, for which a commit is tried again all the same.
        "AccessDenied": _ALLOW,
        "AccessDeniedException": _ALLOW,
        # No table of this name.
        "ResourceNotFoundException": "create it with DynamoDBStore(...).create_table(), or fix its name or the region",
        # The request does not fit the table, or DynamoDB at all.
        "SerializationException": _COMPARE,
        "UnknownOperationException": "fix the endpoint: what answers there does not know this operation",
        "ValidationException": _COMPARE,
    },
    settings="the store's region, endpoint or credentials",
    speaks_json=True,
)
#: DynamoDB's words where an update does not fit the item that it meets.
_WRONG_TYPE: Final = "incorrect data type"
_REQUEST_ID: Final = "x-amzn-requestid"
#: The member without which a successful answer is none of DynamoDB's.
_MEMBERS: Final = {"describe_table": "Table", "describe_time_to_live": "TimeToLiveDescription"}


@dataclass(frozen=True, slots=True)
class Succeeded:
    """A request was carried out."""

    answer: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Refused:
    """A request was refused in the one way that the caller expects, such as a condition that is false."""

    #: The item that made a condition false, or None where the server does not tell it.
    item: dict[str, Any] | None


class Connection(ProcessClient):
    """Requests to one DynamoDB endpoint, from whichever process asks; arguments as for `ProcessClient`.

    Args:
        clock: the local source of time.
        fast: whether requests of a known kind take the `FastClient`; those of a ready-made client never do.
    """

    def __init__(self, *, clock: Clock | None = None, fast: bool = True, **given: Any) -> None:
        super().__init__("dynamodb", clock=clock, **given)
        self._fast = fast
        #: Beside the client of this process.
        self._fast_client: FastClient | None = None
        #: Why there is none.
        self._closed = "the client was ready-made (client=)"
        self.clock = ServerClock(clock or SystemClock())
        #: Whether the endpoint's answers have ids, as DynamoDB's have and those of some stand-ins have not.
        self._shows_ids = False
        self._signing_time = SigningTime(self.clock)
        #: Whether the server was asked for its time, by this process or before it was forked: one whose answers are not
        #: DynamoDB's own never tells it.
        self.clock_asked = False
        #: Returns the parameters of a ``get_item`` that the store may send at any time.
        self._question: Callable[[], dict[str, Any]] | None = None

    def request(
        self, operation: str, *, refusal: str = "ConditionalCheckFailedException", **parameters: Any
    ) -> Succeeded | Refused:
        """Send one request, once.

        Args:
            operation: the client's method, for example ``update_item``.
            refusal: the one error code that is an answer.
            parameters: its keyword arguments.

        Raises:
            StoreUnavailableError: whatever may pass: the network, a time-out, throttling, the credentials; or no time
                is left (`idempotent_tasks.retries.time_left`), and nothing was sent.
            StoreMisconfiguredError: what is certain to stay until somebody acts; the message holds the remedy.
            RecordCorruptError: the item under the key is no record.
        """
        request = Request(
            DYNAMODB,
            _action(operation),
            lambda: f"table {parameters.get('TableName', '')!r} at {self!r}",
            lambda: self.provider,
        )
        if time_left() <= 0:
            raise StoreUnavailableError(f"{request} was not sent: no time is left for it")
        try:
            with translated(request):
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
            if self._fast_client is None:
                answer = getattr(client, operation)(**parameters)
            else:
                answer = self._fast_client.send(operation, parameters)
        except ClientError as error:
            if error.operation_name != request.action:
                # Somebody else's answer, such as that of STS.
                raise
            self._observe(error.response, sent_at)
            if error_code(error) != refusal:
                raise
            return Refused(error.response.get("Item"))
        self._observe(answer, sent_at)
        member = "Attributes" if "ReturnValues" in parameters else _MEMBERS.get(operation)
        if not self._is_own(answer) or (member is not None and member not in answer):
            # botocore takes a page with status 200 for an answer without members: no commit may be read into it.
            msg = f"{request} was answered by what is not DynamoDB; fix the endpoint, or the gateway in between"
            raise StoreUnavailableError(msg)
        return Succeeded(answer)

    def _is_own(self, answer: Any) -> bool:
        """Return whether a success is DynamoDB's: in JSON, and with a request's id from whoever has shown one."""
        headers = _headers(answer)
        has_id = _REQUEST_ID in headers
        if "json" not in headers.get("content-type", "") or (self._shows_ids and not has_id):
            return False
        self._shows_ids = has_id
        return True

    def now(self, question: Callable[[], dict[str, Any]]) -> float:
        """Return DynamoDB's time in epoch seconds; where no answer has shown it yet, ask first.

        Args:
            question: returns the parameters of a ``get_item`` whose answer shows it; raises as `request`.
        """
        self._question = question
        if not self.clock_asked:
            self.request("get_item", **question())
            self.clock_asked = True
        elif self.clock.doubtful:
            self._confirm()
        return self.clock.now()

    def __getstate__(self) -> dict[str, Any]:
        """Leave the road behind, as the client, and the question, which is the store's."""
        return {**super().__getstate__(), "_fast_client": None, "_question": None}

    def _made(self, client: Any, session: boto3.Session, credentials: Credentials | None) -> None:
        super()._made(client, session, credentials)
        discovers = self._config.endpoint_discovery_enabled
        if discovers is None:
            # boto3 has no other way to its session's configuration.
            discovers = session._session.get_config_variable("endpoint_discovery_enabled")  # noqa: SLF001
        if not self._fast:
            self._closed = "it is turned off (fast=False)"
        elif ensure_boolean(discovers):
            # The road would go on to an endpoint that the client may have left.
            self._closed = "endpoints are discovered"
        else:
            self._fast_client = FastClient(client, self._signing_time, repr(self))

    def _adopt(self, pid: int) -> None:
        super()._adopt(pid)
        if self._fast_client is None:
            announce(repr(self), self._closed)

    def _observe(self, answer: Any, sent_at: float) -> None:
        headers = _headers(answer)
        if "date" in headers and is_from_dynamodb(headers):
            self.clock.observe(headers["date"], sent_at)
            self.clock_asked = True
            if self.clock.doubtful:
                self._confirm()

    def _confirm(self) -> None:
        """Ask for DynamoDB's time until its clock's jump is confirmed or refuted; give it up on an error."""
        if self._question is None or _confirming.get():
            return
        token = _confirming.set(True)
        try:
            for _ in range(_CONFIRMATIONS):
                if self.clock.doubtful:
                    with suppress(StoreError):
                        self.request("get_item", **self._question())
        finally:
            _confirming.reset(token)


@cache
def _action(operation: str) -> str:
    """Return DynamoDB's own name of an operation, by that of the client's method."""
    return "".join(part.title() for part in operation.split("_"))


def _headers(answer: Any) -> dict[str, str]:
    headers: dict[str, str] = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    return headers
