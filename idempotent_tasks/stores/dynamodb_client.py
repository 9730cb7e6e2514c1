"""The road to DynamoDB: one client a process, answers and refusals as values, foreign errors translated."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

import boto3
import botocore.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError
from botocore.exceptions import ConnectionError as BotoConnectionError
from botocore.parsers import ResponseParserError

from idempotent_tasks.clock import Clock, ServerClock, SystemClock
from idempotent_tasks.errors import (
    ConfigurationError,
    RecordCorruptError,
    StoreError,
    StoreMisconfiguredError,
    StoreUnavailableError,
)

__all__ = ["Connection", "Credentials", "Refused", "Written"]

#: botocore retries nothing, because a second authority under tenacity would hide lost answers from it; its own
#: time-outs of 60 s would hold a worker's slot longer than most claims live.
OUR_CONFIG = Config(
    retries={"total_max_attempts": 1, "mode": "standard"},
    connect_timeout=2,
    read_timeout=2,
    tcp_keepalive=True,
    max_pool_connections=50,
)
_ONE_ATTEMPT = Config(retries={"total_max_attempts": 1, "mode": "standard"})

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
#: Where the exceptions come from that an HTTP request may raise by itself.
_HTTP_MODULES = frozenset({"OpenSSL", "botocore", "builtins", "eventlet", "gevent", "http", "socket", "ssl", "urllib3"})
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


@dataclass(frozen=True, slots=True, repr=False)
class Credentials:
    """Static credentials, for stand-ins; on AWS the session's own chain is better."""

    access_key_id: str
    secret_access_key: str


class Connection:
    """Requests to one DynamoDB endpoint, from whichever process asks.

    No client is made before the first request, and each process makes its own: a client's sockets must not be
    shared across a fork (https://github.com/boto/botocore/issues/1246).
    """

    def __init__(
        self,
        *,
        region: str | None = None,
        endpoint_url: str | None = None,
        config: Config | None = None,
        session: boto3.Session | None = None,
        client: Any = None,
        credentials: Credentials | None = None,
        clock: Clock | None = None,
    ) -> None:
        if client is not None and (session or region or endpoint_url or config or credentials):
            msg = "client= is complete in itself: drop region=, endpoint_url=, config=, session= and the credentials"
            raise ConfigurationError(msg)
        self.clock = ServerClock(clock or SystemClock())
        #: Whether an answer was had that may have shown the server's time, by this process or before it was forked.
        self.clock_asked = False
        self.ready_made = client is not None
        self._region = region
        self._endpoint_url = endpoint_url
        self._config = OUR_CONFIG.merge(config).merge(_ONE_ATTEMPT) if config else OUR_CONFIG
        self._session = session
        self._credentials = credentials
        self._client = client
        self._owner_pid: int | None = None
        #: What botocore knows of the service: data from files, which a forked child need not read and parse again.
        self._loader: Any = None
        #: One lock a process: a child that is forked while a thread of its parent holds the lock never gets it.
        self._making: dict[int, threading.Lock] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what belongs to this process, so that an app with a store can be sent to a spawned one."""
        mine: dict[str, Any] = {"_making": {}, "_owner_pid": None, "_loader": None}
        return {**vars(self), **mine, **({} if self.ready_made else {"_client": None})}

    @property
    def place(self) -> tuple[Any, ...] | None:
        """What leads to one account in one region, to be compared; None where only a ready-made client knows it."""
        place = (self._region, self._endpoint_url, self._session, self._credentials)
        return None if self.ready_made else place

    def __repr__(self) -> str:
        if self._endpoint_url is None:
            return self._region or "the default region"
        scheme, _, place = self._endpoint_url.partition("://")
        return f"{scheme}://{place.rpartition('@')[2]}"

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
            send = getattr(self._client_of_this_process(), operation)
            sent_at = self.clock.local_now()
            try:
                answer = send(**parameters)
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

    def _observe(self, answer: Any, sent_at: float) -> None:
        date = _headers(answer).get("date")
        if date is not None:
            self.clock.observe(date, sent_at)
            self.clock_asked = True

    def _client_of_this_process(self) -> Any:
        pid = os.getpid()
        if self._owner_pid == pid:
            return self._client
        with self._making.setdefault(pid, threading.Lock()):
            if self._owner_pid != pid:
                self._adopt(pid)
        return self._client

    def _adopt(self, pid: int) -> None:
        if not self.ready_made:
            self._client = self._make_client()
        elif self._owner_pid is not None:
            msg = (
                f"the client= given to this store was used by process {self._owner_pid} before the fork; "
                "give the store session=, or region= and endpoint_url=, so that each process makes its own client"
            )
            raise StoreMisconfiguredError(msg)
        self._owner_pid = pid

    def _make_client(self) -> Any:
        session = self._session or self._new_session()
        credentials = self._credentials
        if credentials is None and _is_loopback(self._endpoint_url) and session.get_credentials() is None:
            credentials = Credentials("local", "local")
        region = self._region or session.region_name or ("us-east-1" if self._endpoint_url else None)
        return session.client(
            "dynamodb",
            region_name=region,
            endpoint_url=self._endpoint_url,
            config=self._config,
            aws_access_key_id=credentials and credentials.access_key_id,
            aws_secret_access_key=credentials and credentials.secret_access_key,
        )

    def _new_session(self) -> boto3.Session:
        session = botocore.session.Session()
        if self._loader is None:
            self._loader = session.get_component("data_loader")
        else:
            session.register_component("data_loader", self._loader)
        return boto3.Session(botocore_session=session)


def _headers(answer: Any) -> dict[str, str]:
    headers: dict[str, str] = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    return headers


def _is_loopback(endpoint_url: str | None) -> bool:
    return urlsplit(endpoint_url or "").hostname in ("localhost", "127.0.0.1", "::1")


@contextmanager
def _translated(operation: str, table: str, where: Connection) -> Iterator[None]:
    try:
        yield
    except ClientError as error:
        raise _from_answer(error, _said(operation, table, where)) from error
    except (BotoConnectionError, HTTPClientError, ResponseParserError) as error:
        _raise_interrupt(error)
        msg = f"{_said(operation, table, where)} got no answer ({type(error).__name__})"
        raise StoreUnavailableError(msg) from error
    except (BotoCoreError, ValueError) as error:
        remedy = "mend the store's region, endpoint or credentials"
        msg = f"{_said(operation, table, where)} cannot be sent: {error}; {remedy}"
        raise StoreMisconfiguredError(msg) from error


def _raise_interrupt(error: BotoCoreError) -> None:
    """Raise what somebody else raised into this thread during a request, such as a soft time limit.

    botocore takes it for an error of its HTTP client's (``botocore.httpsession.URLLib3Session.send``).
    """
    if type(error) is HTTPClientError:
        inner = error.kwargs.get("error")
        if isinstance(inner, Exception) and type(inner).__module__.partition(".")[0] not in _HTTP_MODULES:
            raise inner


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
