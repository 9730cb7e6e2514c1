"""An app's configuration, validated in one place: the store, the observers, the default of each policy field."""

import gc
import logging
import os
import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from typing import Any, Final
from weakref import WeakKeyDictionary

from billiard.exceptions import SoftTimeLimitExceeded
from kombu.serialization import prepare_accept_content
from kombu.utils.imports import symbol_by_name

from idempotent_tasks.errors import ConfigurationError
from idempotent_tasks.events import Observer, Observers, log_event
from idempotent_tasks.findings import WHY
from idempotent_tasks.observers import SHORT_NAMES
from idempotent_tasks.policy import Idempotency
from idempotent_tasks.stores import ResultStore, Store
from idempotent_tasks.stores.cached import OutcomeCache
from idempotent_tasks.stores.dynamodb import DynamoDBStore
from idempotent_tasks.stores.memory import MemoryStore
from idempotent_tasks.stores.s3_results import S3Results

__all__ = ["Settings", "changed_settings", "settings_of"]

logger = logging.getLogger("idempotent_tasks")

_PREFIX: Final = "idempotency_"
_FIELDS: Final = tuple(field.name for field in fields(Idempotency))
#: kombu's content type of pickle.
PICKLE_CONTENT: Final = "application/x-python-serialize"
#: How many outcomes one process remembers, and how much memory they take in bytes, where the settings
#: ``idempotency_cache_<limit>`` do not say so.
_CACHE_LIMITS: Final = {"outcomes": 10_000, "bytes": 20_000_000}
_KNOWN: Final = (
    *("store", "observers", "checks", "silenced_checks", "disabled", "prometheus_port", "results_bucket"),
    *(f"cache_{limit}" for limit in _CACHE_LIMITS),
    *_FIELDS,
)
#: The environment variable beside the setting ``idempotency_disabled``; what it says counts.
DISABLED_VARIABLE: Final = "IDEMPOTENCY_DISABLED"
#: The same for ``idempotency_prometheus_port``.
PORT_VARIABLE: Final = "IDEMPOTENCY_PROMETHEUS_PORT"
_ON: Final = ("1", "true", "yes", "on")
_OFF: Final = ("0", "false", "no", "off")
_LAST_PORT: Final = 65_535
#: What ``idempotency_checks`` may be.
CHECK_MODES: Final = ("ignore", "warn", "error")


@dataclass(frozen=True, kw_only=True, eq=False)
class Settings:
    """What an app's ``idempotency_*`` settings say."""

    store: Store
    #: What tasks with ``Idempotency(cache=...)`` remember.
    outcomes: OutcomeCache
    #: Tells every observer of an event.
    observe: Observers
    #: ``idempotency_<field>``, by the field of `Idempotency`.
    defaults: Mapping[str, Any]
    #: What a worker does with what its checks find: ``ignore`` asks nothing, ``warn`` logs, ``error`` does not start.
    checks: str = "warn"
    #: The codes of findings that are known and accepted.
    silenced_checks: frozenset[str] = frozenset()
    #: Where results lie that are larger than the store takes; None for nowhere.
    results: ResultStore | None = None
    #: Whether the app reads pickle from its broker or its result backend.
    accepts_pickle: bool = False
    #: The kill switch: bodies run as plain Celery runs them, and the store is not asked anything.
    disabled: bool = False
    #: The address and port on which a worker serves its Prometheus metrics.
    prometheus: tuple[str, int] | None = None
    #: Every setting as it was spelled when it was read.
    spelled: Mapping[str, Any] = field(default_factory=dict, repr=False)
    #: The store that the app used in this process before it was given another; None where there is none.
    former_store: Store | None = None


_loaded: WeakKeyDictionary[Any, tuple[Any, Settings]] = WeakKeyDictionary()
_loading = threading.Lock()


def settings_of(app: Any) -> Settings:
    """Return the settings of a Celery app; they are read once, and again when the app is given another store.

    Raises:
        ConfigurationError: a setting is missing, unknown or wrong, or contradicts another app's.
    """
    spelled = app.conf.get("idempotency_store")
    # Without the lock where it can be: a child that is forked while another thread holds it never gets it.
    settings = _known(app, spelled)
    if settings is None:
        with _loading:
            settings = _known(app, spelled) or _load(app, spelled)
            _loaded[app] = (spelled, settings)
    return settings


def _known(app: Any, spelled: Any) -> Settings | None:
    known = _loaded.get(app)
    return known[1] if known is not None and known[0] is spelled else None


def _load(app: Any, spelled_store: Any) -> Settings:
    _refuse_unknown(app)
    given = {name: app.conf.get(_PREFIX + name) for name in _FIELDS}
    defaults = {name: value for name, value in given.items() if value is not None}
    Idempotency.of(defaults)
    prometheus = _endpoint(os.environ.get(PORT_VARIABLE) or app.conf.get("idempotency_prometheus_port"))
    observers = _observers(app.conf.get("idempotency_observers"), served=prometheus is not None)
    store = _store(spelled_store, app.main or "")
    _refuse_other_layout(app, store)
    limits = {limit: _cache_limit(app, limit) for limit in _CACHE_LIMITS}
    return Settings(
        store=store,
        outcomes=OutcomeCache(store.clock, most=limits["outcomes"], most_bytes=limits["bytes"]),
        observe=Observers(observers, (SoftTimeLimitExceeded,)),
        defaults=defaults,
        results=_results(app.conf.get("idempotency_results_bucket")),
        accepts_pickle=_accepts_pickle(app.conf),
        checks=_check_mode(app.conf.get("idempotency_checks")),
        silenced_checks=_codes(app.conf.get("idempotency_silenced_checks")),
        disabled=_switch(os.environ.get(DISABLED_VARIABLE) or app.conf.get("idempotency_disabled")),
        prometheus=prometheus,
        spelled=_spelled(app),
        former_store=_former_store(app, store),
    )


def _results(spelled: Any) -> ResultStore | None:
    if isinstance(spelled, str):
        return S3Results.from_url(spelled)
    if spelled is None or isinstance(spelled, ResultStore):
        return spelled
    kind = type(spelled).__name__
    raise ConfigurationError(f"idempotency_results_bucket is a {kind}; write s3://BUCKET/PREFIX, or give an S3Results")


def _accepts_pickle(conf: Any) -> bool:
    accepted = [*(conf.accept_content or ()), *(conf.result_accept_content or ())]
    return PICKLE_CONTENT in prepare_accept_content(accepted)


def changed_settings(app: Any) -> list[str]:
    """Return the settings of an app that were changed since they were read, which is without effect."""
    spelled, now = settings_of(app).spelled, _spelled(app)
    return [_PREFIX + name for name in _KNOWN if spelled[name] is not now[name] and spelled[name] != now[name]]


def _spelled(app: Any) -> dict[str, Any]:
    return {name: app.conf.get(_PREFIX + name) for name in _KNOWN}


def _former_store(app: Any, store: Store) -> Store | None:
    known = _loaded.get(app)
    if known is None:
        return None
    former = known[1].store
    logger.warning(
        "the store of app %r is %r from now on; what %r holds does not count any more", app.main, store, former
    )
    return former


def _refuse_other_layout(app: Any, store: Store) -> None:
    """Refuse a table that another app of this process uses with other attribute names: neither would see the other."""
    if _contradicted(app, store) is None:
        return
    # It may be an app that nobody has any more.
    gc.collect()
    contradicted = _contradicted(app, store)
    if contradicted is not None:
        other, differences = contradicted
        msg = (
            f"apps {app.main!r} and {other.main!r} use one table, {store!r}, with different attribute names "
            f"({', '.join(differences)}), so that neither sees the other's records; "
            "give both the same names, or each a table of its own"
        )
        raise ConfigurationError(msg)


def _contradicted(app: Any, store: Store) -> tuple[Any, list[str]] | None:
    """Return another app that has the store's table under other names, and which."""
    if not isinstance(store, DynamoDBStore) or store.connection.place is None:
        return None
    for other, (_, settings) in list(_loaded.items()):
        theirs = settings.store
        if other is app or not isinstance(theirs, DynamoDBStore):
            continue
        if (store.table, store.connection.place) == (theirs.table, theirs.connection.place):
            differences = store.layout.differences(theirs.layout)
            if differences:
                return other, differences
    return None


def _cache_limit(app: Any, limit: str) -> int:
    given = app.conf.get(f"idempotency_cache_{limit}")
    number = _CACHE_LIMITS[limit] if given is None else given
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise ConfigurationError(f"idempotency_cache_{limit}={given!r} is not a whole number of at least 1")
    return number


def _switch(spelled: Any) -> bool:
    text = "0" if spelled is None else str(spelled).strip().lower()
    if text not in _ON + _OFF:
        msg = f"idempotency_disabled, or {DISABLED_VARIABLE}, is {spelled!r}, not one of {', '.join(_ON + _OFF)}"
        raise ConfigurationError(msg)
    return text in _ON


def _endpoint(spelled: Any) -> tuple[str, int] | None:
    if spelled is None:
        return None
    address, _, port = str(spelled).rpartition(":")
    if not port.isascii() or not port.isdecimal() or int(port) > _LAST_PORT:
        msg = f"idempotency_prometheus_port, or {PORT_VARIABLE}, is {spelled!r}, neither PORT nor ADDRESS:PORT"
        raise ConfigurationError(msg)
    return address.strip("[]") or "127.0.0.1", int(port)


def _check_mode(spelled: Any) -> str:
    mode = "warn" if spelled is None else spelled
    if mode not in CHECK_MODES:
        raise ConfigurationError(f"idempotency_checks={mode!r} is not one of {CHECK_MODES}")
    return str(mode)


def _codes(spelled: Any) -> frozenset[str]:
    listed = () if spelled is None else spelled
    if isinstance(listed, str) or not isinstance(listed, Collection) or not set(listed) <= set(WHY):
        raise ConfigurationError(f"idempotency_silenced_checks={spelled!r} is not a list of {sorted(WHY)}")
    return frozenset(listed)


def _refuse_unknown(app: Any) -> None:
    namespace = (getattr(app.conf, "prefix", "") or "").lower()
    for key in app.conf:
        name = str(key).lower().removeprefix(namespace)
        if name.startswith(_PREFIX) and name.removeprefix(_PREFIX) not in _KNOWN:
            close = get_close_matches(name.removeprefix(_PREFIX), _KNOWN, n=1)
            known = [_PREFIX + each for each in close or _KNOWN]
            hint = f"did you mean {known[0]!r}?" if close else f"known are {known}"
            raise ConfigurationError(f"there is no setting {key!r}; {hint}")


def _store(spelled: Any, app_name: str) -> Store:
    if isinstance(spelled, DynamoDBStore):
        return spelled.for_app(app_name)
    if isinstance(spelled, Store):
        return spelled
    if isinstance(spelled, str):
        if spelled.startswith("dynamodb://"):
            return DynamoDBStore.from_url(spelled).for_app(app_name)
        if spelled == "memory://":
            return MemoryStore()
    remedy = 'set app.conf.idempotency_store to "dynamodb://REGION/TABLE", "memory://" or a Store'
    if spelled is None:
        raise ConfigurationError(f"app {app_name!r} has no idempotency store; {remedy}")
    scheme = spelled.partition("://")[0] if isinstance(spelled, str) else type(spelled).__name__
    raise ConfigurationError(f"app {app_name!r} has an unusable idempotency store ({scheme!r}); {remedy}")


def _observers(spelled: Any, *, served: bool) -> list[Observer]:
    if spelled is None:
        spelled = [log_event]
    listed = spelled if isinstance(spelled, Sequence) and not isinstance(spelled, str) else [spelled]
    observers = _imported(listed)
    if served:
        # What is served must be counted, and once.
        observers += [each for each in _imported(["prometheus"]) if each not in observers]
    return observers


def _imported(listed: Sequence[Any]) -> list[Observer]:
    try:
        observers = [symbol_by_name(SHORT_NAMES.get(each, each) if isinstance(each, str) else each) for each in listed]
    except (ImportError, AttributeError, ValueError) as error:
        hint = "short names are " + ", ".join(SHORT_NAMES)
        if isinstance(error, ModuleNotFoundError) and (error.name or "").startswith(("opentelemetry", "prometheus")):
            hint = f"pip install 'idempotent-tasks[{(error.name or '').partition('.')[0].partition('_')[0]}]'"
        raise ConfigurationError(f"idempotency_observers cannot be imported: {error}; {hint}") from error
    for observer in observers:
        if not callable(observer):
            raise ConfigurationError(f"idempotency_observers holds {observer!r}, which is not callable")
    return observers
