"""One client of an AWS service a process, made on first use, and what its errors mean for everybody."""

import os
import threading
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

import boto3
import botocore.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, HTTPClientError

from idempotent_tasks.errors import ConfigurationError, StoreMisconfiguredError

__all__ = ["OUR_CONFIG", "Credentials", "ProcessClient", "raise_interrupt"]

#: botocore retries nothing, because a second authority under tenacity would hide lost answers from it; its own
#: time-outs of 60 s would hold a worker's slot longer than most claims live.
OUR_CONFIG: Final = Config(
    retries={"total_max_attempts": 1, "mode": "standard"},
    connect_timeout=2,
    read_timeout=2,
    tcp_keepalive=True,
    max_pool_connections=50,
)
_ONE_ATTEMPT: Final = Config(retries={"total_max_attempts": 1, "mode": "standard"})
#: Where the exceptions come from that an HTTP request may raise by itself.
_HTTP_MODULES: Final = frozenset(
    {"OpenSSL", "botocore", "builtins", "eventlet", "gevent", "http", "socket", "ssl", "urllib3"}
)


@dataclass(frozen=True, slots=True, repr=False)
class Credentials:
    """Static credentials, for stand-ins; on AWS the session's own chain is better."""

    access_key_id: str
    secret_access_key: str


class ProcessClient:
    """The client of one service in whichever process asks.

    No client is made before it is asked for, and each process makes its own: a client's sockets must not be
    shared across a fork (https://github.com/boto/botocore/issues/1246).

    Args:
        service: by boto3's name, such as ``dynamodb``.
        region, endpoint_url, session: as for ``boto3.Session.client``.
        config: over ``defaults``, but for its retries.
        client: a ready-made client instead of the former; not for a client that is used before a fork.
        credentials: static ones.
        defaults: the configuration where ``config`` says nothing.

    Raises:
        ConfigurationError: ``client`` comes with what it contains already.
    """

    def __init__(
        self,
        service: str,
        *,
        region: str | None = None,
        endpoint_url: str | None = None,
        config: Config | None = None,
        session: boto3.Session | None = None,
        client: Any = None,
        credentials: Credentials | None = None,
        defaults: Config = OUR_CONFIG,
    ) -> None:
        if client is not None and (session or region or endpoint_url or config or credentials):
            msg = "client= is complete in itself: drop region=, endpoint_url=, config=, session= and the credentials"
            raise ConfigurationError(msg)
        self.ready_made = client is not None
        self._service = service
        self._region = region
        self._endpoint_url = endpoint_url
        self._config = defaults.merge(config).merge(_ONE_ATTEMPT) if config else defaults
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

    def client_of_this_process(self) -> Any:
        """Return this process's client.

        Raises:
            StoreMisconfiguredError: a ready-made client was used before this process was forked.
        """
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
        client = session.client(
            self._service,
            region_name=region,
            endpoint_url=self._endpoint_url,
            config=self._config,
            aws_access_key_id=credentials and credentials.access_key_id,
            aws_secret_access_key=credentials and credentials.secret_access_key,
        )
        self._made(client, session, credentials)
        return client

    def _made(self, client: Any, session: boto3.Session, credentials: Credentials | None) -> None:
        """Take a client that was made for this process, from a session and with static credentials where not None."""

    def _new_session(self) -> boto3.Session:
        session = botocore.session.Session()
        if self._loader is None:
            self._loader = session.get_component("data_loader")
        else:
            session.register_component("data_loader", self._loader)
        return boto3.Session(botocore_session=session)


def raise_interrupt(error: BotoCoreError) -> None:
    """Raise what somebody else raised into this thread during a request, such as a soft time limit.

    botocore takes it for an error of its HTTP client's (``botocore.httpsession.URLLib3Session.send``).
    """
    if type(error) is HTTPClientError:
        inner = error.kwargs.get("error")
        if isinstance(inner, Exception) and type(inner).__module__.partition(".")[0] not in _HTTP_MODULES:
            raise inner


def _is_loopback(endpoint_url: str | None) -> bool:
    return urlsplit(endpoint_url or "").hostname in ("localhost", "127.0.0.1", "::1")
