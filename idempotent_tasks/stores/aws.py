"""boto3 clients: one for each process and service, made on first use, replaced when better credentials are found.

Every request ends within the time that its caller has left (`idempotent_tasks.core.retry.time_left`).
"""

import logging
import math
import os
import threading
from dataclasses import dataclass
from typing import Any, Final, Self
from urllib.parse import urlsplit

import boto3
import botocore.session
from botocore import UNSIGNED
from botocore.config import Config
from botocore.credentials import Credentials as BotoCredentials
from botocore.credentials import RefreshableCredentials
from botocore.exceptions import NoCredentialsError
from botocore.httpsession import URLLib3Session
from urllib3.util import Timeout

from idempotent_tasks.core.clock import Clock, SystemClock
from idempotent_tasks.core.retry import time_left, uncounted
from idempotent_tasks.errors import ConfigurationError, StoreMisconfiguredError, StoreUnavailableError
from idempotent_tasks.stores.aws_errors import INTERRUPTS, NotedRefresh, NoTimeLeftError

__all__ = ["LOCAL_REGION", "OUR_CONFIG", "Credentials", "ProcessClient"]

logger = logging.getLogger("idempotent_tasks")

#: botocore retries nothing: tenacity does, and has to see each lost answer.  Its own time-outs of 60 s would block a
#: worker's slot longer than most claims live.
OUR_CONFIG: Final = Config(
    retries={"total_max_attempts": 1, "mode": "standard"},
    connect_timeout=2,
    read_timeout=2,
    tcp_keepalive=True,
    max_pool_connections=50,
)
_ONE_ATTEMPT: Final = Config(retries={"total_max_attempts": 1, "mode": "standard"})
#: The services that issue credentials (STS, IAM Identity Center): a request to DynamoDB or S3 waits for theirs.
_CREDENTIALS_SERVICES: Final = ("signin", "sso", "sso-oidc", "sts")
_CREDENTIALS_CONFIG: Final = OUR_CONFIG.merge(Config(read_timeout=5))
#: Seconds until credentials and region are looked for again, for a client that has substitutes for them or whose
#: credentials were refused: the first time, at most, and as a multiple of the duration of the last lookup.
FIRST_LOOKUP_SECONDS: Final = 0.1
LONGEST_LOOKUP_SECONDS: Final = 300.0
LOOKUP_COST: Final = 10.0
#: Substitutes for a stand-in on this machine, where no credentials or no region are configured.
_LOCAL_CREDENTIALS: Final = ("local", "local")
LOCAL_REGION: Final = "us-east-1"


@dataclass(frozen=True, slots=True, repr=False)
class Credentials:
    """Static credentials, for stand-ins; on AWS leave them to boto3's chain of providers."""

    access_key_id: str
    secret_access_key: str


@dataclass(kw_only=True, slots=True, repr=False)
class _Origin:
    """The credentials that a client was made with, and when to look for missing or refused ones again."""

    #: botocore's, or None for those that were given.
    credentials: Any
    #: How many of credentials and region were not found, and have substitutes.
    lacking: int
    #: When to look again, in the clock's monotonic seconds; None for never.
    look_at: float | None
    #: Seconds between the last two lookups.
    pause: float = FIRST_LOOKUP_SECONDS


class ProcessClient:
    """Makes and keeps one boto3 client for each process that asks for it.

    Each process makes its own on first use: a client's sockets must not be shared across a fork
    (https://github.com/boto/botocore/issues/1246).

    The session is the one given, else boto3's default session if ``boto3.setup_default_session`` was given anything,
    else a new one.

    Without credentials no client is made, and each call looks for them again.  A client with placeholder credentials
    or region (for a stand-in on this machine), or with refused credentials, is replaced when others are found.

    Args:
        service: by boto3's name, such as ``dynamodb``.
        region, endpoint_url, session: as for ``boto3.Session.client``.
        config: overrides ``defaults``; its retries are ignored.
        client: a ready-made client instead of these; it must not be used before a fork.
        credentials: static credentials.
        defaults: the configuration for what ``config`` does not set.
        clock: measures the time between two lookups of credentials and region.

    Raises:
        ConfigurationError: ``client`` is given beside what it contains.
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
        clock: Clock | None = None,
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
        self._local_clock = clock or SystemClock()
        self._owner_pid: int | None = None
        #: Of the client of this process; None where it is ready-made.
        self._origin: _Origin | None = None
        #: botocore's loader of service descriptions: a forked child need not read and parse their files again.
        self._loader: Any = None
        #: How often no client could be made.
        self._failures = 0
        #: A lock for each process id: a child that is forked while a thread holds the lock would inherit it locked.
        self._making: dict[int, threading.Lock] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without what belongs to this process, so that a spawned one can unpickle an app's store."""
        mine: dict[str, Any] = {"_making": {}, "_owner_pid": None, "_loader": None, "_origin": None}
        return {**vars(self), **mine, **({} if self.ready_made else {"_client": None})}

    @property
    def place(self) -> tuple[Any, ...] | None:
        """Region, endpoint, session and credentials, to compare two clients by; None for a ready-made client."""
        place = (self._region, self._endpoint_url, self._session, self._credentials)
        return None if self.ready_made else place

    @property
    def region(self) -> str:
        """The Region to which this process's client sends; raises as `client_of_this_process`."""
        return str(self.client_of_this_process().meta.region_name)

    @property
    def local_port(self) -> int | None:
        """The port of an endpoint on this machine; None for any other, and for a ready-made client."""
        return urlsplit(self._endpoint_url or "").port if _is_loopback(self._endpoint_url) else None

    @property
    def provider(self) -> str | None:
        """The provider of this process's credentials, by botocore's name; None where it is unknown."""
        return None if self._origin is None else getattr(self._origin.credentials, "method", None)

    def __repr__(self) -> str:
        if self._endpoint_url is None:
            return self._region or "the default region"
        scheme, _, place = self._endpoint_url.partition("://")
        return f"{scheme}://{place.rpartition('@')[2]}"

    def client_of_this_process(self) -> Any:
        """Return this process's client.

        Raises:
            botocore.exceptions.NoCredentialsError: there are no credentials.
            StoreMisconfiguredError: a ready-made client was used before this process was forked.
            StoreUnavailableError: another thread is making the client, and failed, or no time is left to wait for it.
            Exception: whatever boto3 raises while it looks for credentials; the next call looks again.
        """
        pid = os.getpid()
        is_ours = self._owner_pid == pid
        if is_ours and not self._is_due():
            return self._client
        lock, waited_for = self._making.setdefault(pid, threading.Lock()), self._failures
        # A process that has a client uses it while another thread looks for better credentials.
        if lock.acquire(timeout=0 if is_ours else min(max(time_left(), 0), threading.TIMEOUT_MAX)):
            try:
                if self._owner_pid != pid:
                    self._adopt_once(pid, waited_for)
                elif self._is_due():
                    self._look_again()
            finally:
                lock.release()
        elif not is_ours:
            raise StoreUnavailableError("another thread looks for credentials, and no time is left to wait for it")
        return self._client

    def _adopt_once(self, pid: int, waited_for: int) -> None:
        """Make the client; raise if another thread just failed to, so that not each thread asks the service again."""
        if self._failures != waited_for:
            raise StoreUnavailableError("another thread found no credentials just now, or no region")
        try:
            self._adopt(pid)
        except Exception:
            self._failures += 1
            raise

    def refused(self) -> None:
        """Look for other credentials soon, because those of this process's client were refused.

        Does nothing for credentials that botocore refreshes, nor for static ones given by the user.
        """
        origin = self._origin
        if origin is not None and origin.look_at is None and _is_static(origin.credentials):
            origin.look_at = self._local_clock.monotonic() + origin.pause

    def _is_due(self) -> bool:
        at = None if self._origin is None else self._origin.look_at
        return at is not None and self._local_clock.monotonic() >= at

    def _adopt(self, pid: int) -> None:
        if not self.ready_made:
            self._use(*self._found())
        elif self._owner_pid is not None:
            msg = (
                f"the client= given to this store was used by process {self._owner_pid} before the fork; "
                "give the store session=, or region= and endpoint_url=, so that each process makes its own client"
            )
            raise StoreMisconfiguredError(msg)
        else:
            _limit_timeouts(self._client)
        self._owner_pid = pid

    def _look_again(self) -> None:
        """Replace the client if credentials or a region that it lacks are found, or other credentials than its own."""
        old = self._origin
        assert old is not None  # noqa: S101 - for mypy: a lookup is only due where there is one
        began = self._local_clock.monotonic()
        try:
            session, new = self._found()
            if new.lacking < old.lacking or not _are_equal(new.credentials, old.credentials):
                self._use(session, new)
                return
        except INTERRUPTS:
            raise
        except Exception:  # noqa: BLE001 - the client stays, whatever is wrong with its replacement
            logger.debug("no other credentials, or no region, are found for %r", self)
        ended = self._local_clock.monotonic()
        old.pause = min(max(2 * old.pause, LOOKUP_COST * (ended - began)), LONGEST_LOOKUP_SECONDS)
        old.look_at = ended + old.pause if old.lacking else None

    def _found(self) -> tuple[boto3.Session, _Origin]:
        """Look for credentials and region; return the session, the credentials and how many of both are missing."""
        session = self._session or self._default_or_new_session()
        credentials = None if self._credentials else session.get_credentials()
        unsigned = self._config.signature_version is UNSIGNED
        without = credentials is None and self._credentials is None and not unsigned
        if without and not _is_loopback(self._endpoint_url):
            raise NoCredentialsError
        lacking = int(without) + int(self._endpoint_url is not None and self._region_of(session) is None)
        look_at = self._local_clock.monotonic() + FIRST_LOOKUP_SECONDS if lacking else None
        return session, _Origin(credentials=credentials, lacking=lacking, look_at=look_at)

    def _use(self, session: boto3.Session, origin: _Origin) -> None:
        """Make this process's client from a session."""
        credentials = self._credentials
        if credentials is None and origin.credentials is None and self._config.signature_version is not UNSIGNED:
            credentials = Credentials(*_LOCAL_CREDENTIALS)
        with uncounted():
            # Reads and parses botocore's descriptions of the service: seconds on a busy machine.
            client = session.client(
                self._service,
                region_name=self._region_of(session) or (LOCAL_REGION if self._endpoint_url else None),
                endpoint_url=self._endpoint_url,
                config=self._config,
                aws_access_key_id=credentials and credentials.access_key_id,
                aws_secret_access_key=credentials and credentials.secret_access_key,
            )
        _limit_timeouts(client)
        _note_interrupts(origin.credentials)
        self._made(client, session, credentials)
        self._client, self._origin = client, origin

    def _region_of(self, session: boto3.Session) -> str | None:
        region: str | None = self._region or self._config.region_name or session.region_name
        return region

    def _made(self, client: Any, session: boto3.Session, credentials: Credentials | None) -> None:
        """Hook for subclasses, called with each new client, its session and its static credentials or None."""

    def _default_or_new_session(self) -> boto3.Session:
        default, new = boto3.DEFAULT_SESSION, self._new_session()
        return default if default is not None and _was_set_up(default, new) else new

    def _new_session(self) -> boto3.Session:
        session = botocore.session.Session()
        if self._loader is None:
            self._loader = session.get_component("data_loader")
        else:
            session.register_component("data_loader", self._loader)
        session.set_default_client_config(_CREDENTIALS_CONFIG)
        for service in _CREDENTIALS_SERVICES:
            session.get_component("event_emitter").register(f"creating-client-class.{service}", _limit_timeouts_of)
        return boto3.Session(botocore_session=session)


def _was_set_up(default: boto3.Session, new: boto3.Session) -> bool:
    """Return whether ``boto3.setup_default_session`` was given a profile, a region, credentials or a botocore session.

    If it was not, ``boto3.client`` has made the default session, and it finds what a new one finds.
    """
    theirs, ours = default._session, new._session  # noqa: SLF001 - no public way
    chains = [getattr(each.get_component("credential_provider"), "providers", None) for each in (theirs, ours)]
    kinds, new_kinds = ([type(provider) for provider in chain or ()] for chain in chains)
    found_by = {None, *(provider.METHOD for provider in chains[1] or ())}
    return (
        theirs.instance_variables() != ours.instance_variables()
        or kinds != new_kinds
        or getattr(theirs._credentials, "method", None) not in found_by  # noqa: SLF001
    )


def _limit_timeouts_of(base_classes: list[type], **_: Any) -> None:
    """Add `_LimitedTimeouts` to a client class; a handler of botocore's event ``creating-client-class``."""
    base_classes.insert(0, _LimitedTimeouts)


class _LimitedTimeouts:
    """A mixin for botocore's client classes: requests end within the time left."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _limit_timeouts(self)


def _note_interrupts(credentials: Any) -> None:
    """Keep interrupts of a credential refresh, whose errors botocore drops while the old credentials are valid."""
    refresh = getattr(credentials, "_refresh_using", None)
    if refresh is not None and not isinstance(refresh, NotedRefresh):
        credentials._refresh_using = NotedRefresh(refresh)  # noqa: SLF001 - botocore tells nobody else


def _is_static(credentials: Any) -> bool:
    """Return whether credentials are never refreshed, as those from the environment or from a file."""
    return isinstance(credentials, BotoCredentials) and not isinstance(credentials, RefreshableCredentials)


def _are_equal(new: Any, old: Any) -> bool:
    if _is_static(new) and _is_static(old):
        return bool(new.get_frozen_credentials() == old.get_frozen_credentials())
    # What refreshes itself is the same as long as it has the same source.
    return bool(getattr(new, "method", None) == getattr(old, "method", None))


def _is_loopback(endpoint_url: str | None) -> bool:
    return urlsplit(endpoint_url or "").hostname in ("localhost", "127.0.0.1", "::1")


class _TimeLeft(Timeout):
    """A client's time-outs, limited for each request to the time that its caller has left.

    urllib3 keeps one such object for all connections to a host, and copies it for each request.
    """

    @classmethod
    def of(cls, timeout: Any) -> Self:
        """Convert urllib3's `Timeout`, or a number of seconds to connect and to read."""
        if isinstance(timeout, Timeout):
            return cls(connect=timeout._connect, read=timeout._read, total=timeout.total)  # noqa: SLF001
        return cls(connect=timeout, read=timeout)

    def clone(self) -> Timeout:
        left = time_left()
        if left == math.inf:
            return super().clone()
        if left <= 0:
            raise NoTimeLeftError
        whole = left if not isinstance(self.total, int | float) else min(left, self.total)
        return Timeout(connect=self._connect, read=self._read, total=whole)


def _limit_timeouts(client: Any) -> None:
    """Make each request of a boto3 client end within the time that its caller has left.

    boto3 has no time-outs for one request, so this sets those of the client's HTTP session.  Any other object, such as
    a test's stand-in, stays as it is.
    """
    session = getattr(getattr(client, "_endpoint", None), "http_session", None)
    manager = getattr(session, "_manager", None)
    if not isinstance(session, URLLib3Session) or manager is None or isinstance(session._timeout, _TimeLeft):  # noqa: SLF001
        return
    session._timeout = _TimeLeft.of(session._timeout)  # noqa: SLF001 - for its proxies, which come later
    manager.connection_pool_kw["timeout"] = session._timeout  # noqa: SLF001
