"""The road to DynamoDB: one client a process, answers and refusals as values, foreign errors translated."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

import boto3
from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError
from botocore.exceptions import ConnectionError as BotoConnectionError
from botocore.parsers import ResponseParserError
from botocore.utils import ensure_boolean

from idempotent_tasks.clock import Clock, ServerClock, SystemClock
from idempotent_tasks.errors import (
    RecordCorruptError,
    StoreError,
    StoreMisconfiguredError,
    StoreUnavailableError,
)
from idempotent_tasks.stores.aws_client import Credentials, ProcessClient, raise_interrupt
from idempotent_tasks.stores.dynamodb_reply import is_dynamodbs
from idempotent_tasks.stores.dynamodb_road import ShortRoad, announce
from idempotent_tasks.stores.dynamodb_signature import SigningTime

__all__ = ["Connection", "Refused", "Written"]

#: Requests that are sent at once to confirm a jump of DynamoDB's clock: of two answers that contradict each other and
#: what was known, the second has to be confirmed too.
_CONFIRMATIONS: Final = 2
#: Whether the request under way is such a confirmation.
_confirming: ContextVar[bool] = ContextVar("idempotency_confirming", default=False)

#: https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/Programming.Errors.html
_TRANSIENT = frozenset(
    {
        "InternalServerError",
        "ItemCollectionSizeLimitExceededException",
        "LimitExceededException",
        "ProvisionedThroughputExceededException",
        "RequestLimitExceeded",
        "ReplicatedWriteConflictException",
        "RequestTimeout",
        "ServiceUnavailable",
        "SlowDown",
        "ThrottlingException",
        "TransactionConflictException",
        "TransactionInProgressException",
    }
)
_REMEDIES = {
    "ResourceNotFoundException": "create it with DynamoDBStore(...).create_table(), or mend its name or the region",
    "AccessDeniedException": "allow the action on the table to the worker's role",
    "UnrecognizedClientException": "the credentials are not known there; mend them",
    "ExpiredTokenException": "renew the credentials",
    "MissingAuthenticationTokenException": "give the worker credentials",
    "InvalidSignatureException": "mend the secret key, or this machine's clock if the message speaks of expiry",
    "RequestExpired": "this machine's clock is far off; set it",
}


@dataclass(frozen=True, slots=True)
class Written:
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
        fast: whether requests of a known kind take the `ShortRoad`; those of a ready-made client never do.
    """

    def __init__(self, *, clock: Clock | None = None, fast: bool = True, **given: Any) -> None:
        super().__init__("dynamodb", **given)
        self._fast = fast
        #: Beside the client of this process.
        self._road: ShortRoad | None = None
        #: Why there is none.
        self._closed = "the client was ready-made (client=)"
        self.clock = ServerClock(clock or SystemClock())
        self._signing_time = SigningTime(self.clock)
        #: Whether the server was asked for its time, by this process or before it was forked: one whose answers are not
        #: DynamoDB's own never tells it.
        self.clock_asked = False
        #: Returns the parameters of a ``get_item`` that the store may send at any time.
        self._question: Callable[[], dict[str, Any]] | None = None

    def request(
        self, operation: str, *, refusal: str = "ConditionalCheckFailedException", **parameters: Any
    ) -> Written | Refused:
        """Send one request, once.

        Args:
            operation: the client's method, for example ``update_item``.
            refusal: the one error code that is an answer.
            parameters: its keyword arguments.

        Raises:
            StoreUnavailableError: the network, a time-out, throttling, a 5xx.
            StoreMisconfiguredError: anything that repeating cannot mend; the message holds the remedy.
        """
        with _translated(operation, parameters.get("TableName", ""), self):
            client = self.client_of_this_process()
            sent_at = self.clock.local_now()
            try:
                if self._road is None:
                    answer = getattr(client, operation)(**parameters)
                else:
                    answer = self._road.send(operation, parameters)
            except ClientError as error:
                self._observe(error.response, sent_at)
                if error.response["Error"]["Code"] != refusal:
                    raise
                return Refused(error.response.get("Item"))
            self._observe(answer, sent_at)
        if "json" not in _headers(answer).get("content-type", ""):
            # botocore takes a page with status 200 for an answer without members: no commit may be read into it.
            msg = f"what answers at {self!r} is not DynamoDB; mend the endpoint, or the gateway in between"
            raise StoreUnavailableError(msg)
        return Written(answer)

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
        return {**super().__getstate__(), "_road": None, "_question": None}

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
            self._road = ShortRoad(client, self._signing_time, repr(self))

    def _adopt(self, pid: int) -> None:
        super()._adopt(pid)
        if self._road is None:
            announce(repr(self), self._closed)

    def _observe(self, answer: Any, sent_at: float) -> None:
        headers = _headers(answer)
        if "date" in headers and is_dynamodbs(headers):
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


def _headers(answer: Any) -> dict[str, str]:
    headers: dict[str, str] = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    return headers


@contextmanager
def _translated(operation: str, table: str, where: Connection) -> Iterator[None]:
    try:
        yield
    except ClientError as error:
        raise _from_answer(error, _said(operation, table, where)) from error
    except (BotoConnectionError, HTTPClientError, ResponseParserError) as error:
        raise_interrupt(error)
        msg = f"{_said(operation, table, where)} got no answer ({type(error).__name__})"
        raise StoreUnavailableError(msg) from error
    except (BotoCoreError, ValueError) as error:
        remedy = "mend the store's region, endpoint or credentials"
        msg = f"{_said(operation, table, where)} cannot be sent: {error}; {remedy}"
        raise StoreMisconfiguredError(msg) from error


def _said(operation: str, table: str, where: Connection) -> str:
    action = "".join(part.title() for part in operation.split("_"))
    return f"dynamodb:{action} on table {table!r} at {where!r}"


def _from_answer(error: ClientError, request: str) -> StoreError:
    code = error.response["Error"]["Code"].rpartition("#")[2]
    text = error.response["Error"].get("Message", "")
    status = error.response["ResponseMetadata"].get("HTTPStatusCode", 0)
    if code in _TRANSIENT or status >= HTTPStatus.INTERNAL_SERVER_ERROR or status == HTTPStatus.TOO_MANY_REQUESTS:
        return StoreUnavailableError(f"{request} failed for now: {code}")
    if code == "ValidationException" and "incorrect data type" in text:
        msg = f"{request}: the item under the key has attributes of other types; delete it"
        return RecordCorruptError(msg)
    remedy = _REMEDIES.get(code, "compare the table's key schema and this store's attribute names")
    return StoreMisconfiguredError(f"{request} was refused: {code}: {text} Remedy: {remedy}")
