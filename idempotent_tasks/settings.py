"""Parse and validate the ``idempotency_*`` settings of an app: ``app.conf`` -> `Settings`.

Each setting is a row of `SETTINGS`, from which the reference's tables are made, and a field of `Settings`.
"""

import gc
import logging
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from typing import Any, Final
from weakref import WeakKeyDictionary

from billiard.exceptions import SoftTimeLimitExceeded
from celery.app import utils
from kombu.serialization import prepare_accept_content, registry
from kombu.utils.imports import symbol_by_name

from idempotent_tasks.core.encoding import JSON, PICKLE
from idempotent_tasks.core.policy import Idempotency, check_codes, imported_tools, seconds
from idempotent_tasks.core.receipts import Receipts
from idempotent_tasks.core.store import ResultStore, Store
from idempotent_tasks.errors import ConfigurationError
from idempotent_tasks.events import Observer, Observers
from idempotent_tasks.observers import SHORT_NAMES
from idempotent_tasks.stores.cache import CachedStore, OutcomeCache
from idempotent_tasks.stores.dynamodb import DynamoDBStore
from idempotent_tasks.stores.memory import MemoryStore
from idempotent_tasks.stores.s3 import S3Results

__all__ = [
    "DISABLED_VARIABLE",
    "PORT_VARIABLE",
    "SETTINGS",
    "Setting",
    "Settings",
    "changed_settings",
    "codec_of",
    "settings_of",
    "temporary_settings",
]

logger = logging.getLogger("idempotent_tasks")

_PREFIX: Final = "idempotency_"
#: The environment variable of the setting ``idempotency_disabled``.
DISABLED_VARIABLE: Final = "IDEMPOTENCY_DISABLED"
#: The environment variable of the setting ``idempotency_prometheus_port``.
PORT_VARIABLE: Final = "IDEMPOTENCY_PROMETHEUS_PORT"
_ON: Final = ("1", "true", "yes", "on")
_OFF: Final = ("0", "false", "no", "off")
_LAST_PORT: Final = 65_535
_CHECK_MODES: Final = ("ignore", "warn", "error")
#: What brings each module that an observer of ours needs.
_DISTRIBUTIONS: Final = {"opentelemetry": "opentelemetry-api", "prometheus_client": "prometheus-client"}


def _observers(key: str, raw: Any) -> list[Observer]:
    listed = raw if isinstance(raw, Sequence) and not isinstance(raw, str) else [raw]
    try:
        observers = [symbol_by_name(SHORT_NAMES.get(each, each) if isinstance(each, str) else each) for each in listed]
    except Exception as error:
        hint = "short names are " + ", ".join(SHORT_NAMES)
        missing = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
        if missing in _DISTRIBUTIONS:
            hint = f"pip install {_DISTRIBUTIONS[missing]}"
        raise ConfigurationError(f"{key} cannot be imported: {type(error).__name__}: {error}; {hint}") from error
    for observer in observers:
        if not callable(observer):
            raise ConfigurationError(f"{key} holds {observer!r}, which is not callable")
    return observers


def _step_receipts(key: str, raw: Any) -> tuple[Receipts, ...]:
    listed = raw if isinstance(raw, Sequence) and not isinstance(raw, str) else [raw]
    try:
        found = [imported_tools(None, each)[1] for each in listed]
    except ConfigurationError as error:
        remedy = "list SQLAlchemyReceipts(...), DjangoReceipts(...), or a 'module:name' of one"
        raise ConfigurationError(f"{key}: {error.message}; {remedy}") from error
    if None in found:
        raise ConfigurationError(f"{key} lists a None; drop it, or give SQLAlchemyReceipts(...) or DjangoReceipts(...)")
    return tuple(each for each in found if each is not None)


def _check_mode(key: str, raw: Any) -> str:
    if raw not in _CHECK_MODES:
        raise ConfigurationError(f"{key}={raw!r} is not one of {_CHECK_MODES}")
    return str(raw)


def _switch(key: str, raw: Any) -> bool:
    text = str(raw).strip().lower()
    if text not in _ON + _OFF:
        raise ConfigurationError(f"{key}, or {DISABLED_VARIABLE}, is {raw!r}, not one of {', '.join(_ON + _OFF)}")
    return text in _ON


def _address(key: str, raw: Any) -> tuple[str, int]:
    address, _, port = str(raw).rpartition(":")
    if not port.isascii() or not port.isdecimal() or int(port) > _LAST_PORT:
        raise ConfigurationError(f"{key}, or {PORT_VARIABLE}, is {raw!r}, neither PORT nor ADDRESS:PORT")
    return address.strip("[]") or "127.0.0.1", int(port)


def _results_bucket(key: str, raw: Any) -> ResultStore:
    if isinstance(raw, str):
        return S3Results.from_url(raw)
    if isinstance(raw, ResultStore):
        return raw
    raise ConfigurationError(f"{key} is a {type(raw).__name__}; write s3://BUCKET/PREFIX, or give an S3Results")


def _whole_number(key: str, raw: Any) -> int:
    if not isinstance(raw, int) or isinstance(raw, bool) or raw < 1:
        raise ConfigurationError(f"{key}={raw!r} is not a whole number of at least 1")
    return raw


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting: its name, default, parser and meaning."""

    #: The key of ``app.conf`` without ``idempotency_``.
    name: str
    #: The raw default; None for no value.
    default: Any = None
    #: Takes `key` and a raw value; returns the parsed value or raises `ConfigurationError`. None for a setting that is
    #: parsed elsewhere, with other values.
    parse: Callable[[str, Any], Any] | None = None
    #: Markdown for the reference; empty for an option of a task, which `Idempotency` documents.
    meaning: str = ""
    #: The environment variable that overrides ``app.conf``; empty for none.
    variable: str = ""

    @property
    def key(self) -> str:
        """The key of ``app.conf``."""
        return _PREFIX + self.name

    def value(self, raw: Any) -> Any:
        """Return the parsed value: from the environment, else from ``app.conf`` (raw), else the default."""
        given = os.environ.get(self.variable) or raw
        given = self.default if given is None else given
        return given if given is None or self.parse is None else self.parse(self.key, given)


#: The options of a task that no setting gives a default: its silenced checks come on top of the app's, and one
#: ``downstream`` for all tasks would have a charge and its refund share a key.
_OWN: Final = ("silenced_checks", "downstream")
#: The options of a task whose defaults are settings.
_OPTIONS: Final = tuple(option.name for option in fields(Idempotency) if option.name not in _OWN)
#: Every setting. Those of `_OPTIONS` are validated by `Idempotency`.
SETTINGS: Final = (
    Setting("store", meaning='always needed: a [URL or a store](store.md), `"dynamodb://REGION/TABLE"`, `"memory://"`'),
    Setting(
        "observers",
        ["log"],
        _observers,
        'who is notified of each [event](events.md): `"log"`, `"celery"`, `"prometheus"`, `"opentelemetry"`, '
        'callables, or `"module:name"` of one',
    ),
    Setting(
        "checks",
        "warn",
        _check_mode,
        'what a worker that starts does with [findings](checks.md): `"warn"`, `"error"`, `"ignore"`',
    ),
    Setting("silenced_checks", [], check_codes),
    Setting(
        "disabled",
        False,
        _switch,
        "`True` turns the guard off: every delivery runs its body, as plain Celery does. "
        "[What you do without](../how-to/observability.md#the-kill-switch)",
        DISABLED_VARIABLE,
    ),
    Setting(
        "prometheus_port",
        None,
        _address,
        'the port, or `"ADDRESS:PORT"`, for [Prometheus metrics](../how-to/observability.md#prometheus) of a worker',
        PORT_VARIABLE,
    ),
    Setting(
        "results_bucket",
        None,
        _results_bucket,
        'where [large results](results.md#large-results) are stored: `"s3://BUCKET/PREFIX"`, or an '
        "[`S3Results`](store.md#large-results)",
    ),
    Setting(
        "cache_outcomes", 10_000, _whole_number, "how many outcomes a process [remembers](../how-to/cache.md) at most"
    ),
    Setting("cache_bytes", 20_000_000, _whole_number, "how many bytes of memory they take at most"),
    Setting(
        "step_receipts",
        [],
        _step_receipts,
        "the receipts that only [steps](../how-to/steps.md#each-step-has-its-own-tool) have, for the "
        "[checks](checks.md#receipts-table) and [`purge --receipts`](commands.md): `SQLAlchemyReceipts(...)`, "
        '`DjangoReceipts(...)`, or `"module:name"` of one',
    ),
    *(Setting(option.name, option.default) for option in fields(Idempotency) if option.name in _OPTIONS),
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Settings:
    """The parsed settings of an app. A field whose name is a setting's has that setting's value."""

    store: Store
    #: The outcomes that tasks with ``Idempotency(cache=...)`` keep in memory.
    outcomes: OutcomeCache
    observe: Observers
    #: ``idempotency_<option>`` by the field of `Idempotency`; only those that the app sets.
    defaults: Mapping[str, Any]
    checks: str = "warn"
    silenced_checks: frozenset[str] = frozenset()
    disabled: bool = False
    #: The receipts that only steps have, as far as the app names them.
    step_receipts: tuple[Receipts, ...] = ()
    #: The address and port on which a worker serves its Prometheus metrics.
    prometheus: tuple[str, int] | None = None
    #: For results that are too large for the store, or None.
    results: ResultStore | None = None
    #: The names of the serializers that the app reads from its broker or its result backend.
    accepted: frozenset[str] = frozenset()
    #: The raw value of every setting by its name, as it was read.
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False)
    #: The app's previous store in this process, or None.
    former_store: Store | None = None

    @property
    def accepts_pickle(self) -> bool:
        """Whether the app reads pickle."""
        return PICKLE in self.accepted

    def store_under(self, policy: Idempotency) -> Store:
        """Return the store; for a task with ``cache``, behind this process's cache."""
        if policy.cache is None:
            return self.store
        return CachedStore(inner=self.store, cache=self.outcomes, max_age=seconds(policy.cache))


class SettingsRegistry:
    """The settings of the apps of one process."""

    def __init__(self) -> None:
        #: By app: the raw store with which the settings were read, and the settings.
        self.read: WeakKeyDictionary[Any, tuple[Any, Settings]] = WeakKeyDictionary()
        self.lock = threading.Lock()

    def known(self, app: Any, raw_store: Any) -> Settings | None:
        """Return the settings of an app that were read with this store."""
        read_with, settings = self.read.get(app, (None, None))
        return settings if read_with is raw_store else None


_apps: Final = SettingsRegistry()


def settings_of(app: Any) -> Settings:
    """Return the settings of a Celery app; they are read once, and again when the app is given another store.

    Raises:
        ConfigurationError: a setting is missing, unknown or wrong, or contradicts another app's.
    """
    raw_store = app.conf.get("idempotency_store")
    # Without the lock if known: a child that is forked while another thread holds it would never get it.
    settings = _apps.known(app, raw_store)
    if settings is None:
        with _apps.lock:
            settings = _apps.known(app, raw_store) or _load(app, raw_store)
            _apps.read[app] = (raw_store, settings)
    return settings


@contextmanager
def temporary_settings(app: Any, *, store: Store, observers: Sequence[Observer] = ()) -> Iterator[None]:
    """Replace an app's store and observers during a block, in this process: for tests.

    The app needs no store of its own, and uses no bucket; its other settings hold, and its configuration stays as it
    is.

    Raises:
        ConfigurationError: another setting is wrong.
    """
    raw_store = app.conf.get("idempotency_store")
    _refuse_unknown(app)
    settings = replace(_parsed(app, store), observe=_as_observers(observers), results=None)
    with _apps.lock:
        before = _apps.read.get(app)
        _apps.read[app] = (raw_store, settings)
    try:
        yield
    finally:
        with _apps.lock:
            del _apps.read[app]
            if before is not None:
                _apps.read[app] = before


def changed_settings(app: Any) -> list[str]:
    """Return the settings of an app that were changed after they were read, which has no effect."""
    read, now = settings_of(app).raw, _raw(app)
    return [_PREFIX + name for name in now if read[name] is not now[name] and read[name] != now[name]]


def codec_of(conf: Any, serializer: str | None) -> str:
    """Return the codec for a task's results with which a replay equals the first delivery's result.

    The first result reached its caller through the result backend's serializer, and the tasks that follow through the
    messages'; pickle keeps what either keeps.

    Args:
        conf: the app's configuration.
        serializer: the task's own, or None for the app's.
    """
    written = (conf.result_serializer, serializer or conf.task_serializer)
    used = [name for name in written if name != JSON and name in _accepted(conf)]
    return PICKLE if PICKLE in used else next(iter(used), JSON)


def _parsed(app: Any, store: Store) -> Settings:
    """Parse an app's settings, except for its store."""
    raw = _raw(app)
    defaults = {name: raw[name] for name in _OPTIONS if raw[name] is not None}
    Idempotency.of(defaults)
    value = {setting.name: setting.value(raw[setting.name]) for setting in SETTINGS if setting.parse}
    observers, prometheus = value.pop("observers"), value.pop("prometheus_port")
    if prometheus is not None:
        # Metrics that are served must be counted, and only once.
        observers += [each for each in _observers("idempotency_observers", "prometheus") if each not in observers]
    most, most_bytes = value.pop("cache_outcomes"), value.pop("cache_bytes")
    return Settings(
        store=store,
        outcomes=OutcomeCache(store.clock, most=most, most_bytes=most_bytes),
        observe=_as_observers(observers),
        defaults=defaults,
        prometheus=prometheus,
        results=value.pop("results_bucket"),
        accepted=_accepted(app.conf),
        raw=raw,
        **value,
    )


def _load(app: Any, raw_store: Any) -> Settings:
    _refuse_unknown(app)
    store = _store(raw_store, app.main or "")
    _check_shared_table(app, store)
    settings = _parsed(app, store)
    if app not in _apps.read:
        return settings
    former = _apps.read[app][1].store
    logger.warning(
        "the store of app %r is %r from now on; what %r holds does not count any more", app.main, store, former
    )
    return replace(settings, former_store=former)


def _check_shared_table(app: Any, store: Store) -> None:
    """Raise for a table that another app uses with other attribute names: neither would see the other's records."""
    if _conflict(app, store) is None:
        return
    # The other app may be garbage.
    gc.collect()
    if (conflict := _conflict(app, store)) is not None:
        other, differences = conflict
        msg = (
            f"apps {app.main!r} and {other.main!r} use one table, {store!r}, with different attribute names "
            f"({', '.join(differences)}), so that neither sees the other's records; "
            "give both the same names, or each a table of its own"
        )
        raise ConfigurationError(msg)


def _conflict(app: Any, store: Store) -> tuple[Any, list[str]] | None:
    """Return another app that uses the store's table with other attribute names, and their differences."""
    if not isinstance(store, DynamoDBStore) or store.connection.place is None:
        return None
    for other, (_, settings) in list(_apps.read.items()):
        theirs = settings.store
        if other is app or not isinstance(theirs, DynamoDBStore):
            continue
        if (store.table, store.connection.place) == (theirs.table, theirs.connection.place):
            differences = store.schema.differences(theirs.schema)
            if differences:
                return other, differences
    return None


def _raw(app: Any) -> dict[str, Any]:
    return {setting.name: app.conf.get(setting.key) for setting in SETTINGS}


def _store(raw: Any, app_name: str) -> Store:
    if isinstance(raw, DynamoDBStore):
        return raw.for_app(app_name)
    if isinstance(raw, Store):
        return raw
    if isinstance(raw, str):
        if raw.startswith("dynamodb://"):
            return DynamoDBStore.from_url(raw).for_app(app_name)
        if raw == "memory://":
            return MemoryStore()
    remedy = 'set app.conf.idempotency_store to "dynamodb://REGION/TABLE", "memory://" or a Store'
    if raw is None:
        raise ConfigurationError(f"app {app_name!r} has no idempotency store; {remedy}")
    # Of a text, quote only what cannot be a password.
    begins = re.match(r"[a-z][a-z0-9+]*(?=:|$)", raw) if isinstance(raw, str) else None
    scheme = begins[0] if begins else type(raw).__name__
    raise ConfigurationError(f"app {app_name!r} has an unusable idempotency store ({scheme!r}); {remedy}")


def _as_observers(observers: Sequence[Observer]) -> Observers:
    return Observers(list(observers), (SoftTimeLimitExceeded,))


def _accepted(conf: Any) -> frozenset[str]:
    """Return the names of the serializers that an app reads from its broker or its result backend."""
    types = prepare_accept_content([*(conf.accept_content or ()), *(conf.result_accept_content or ())])
    return frozenset(name for name, content_type in registry.name_to_type.items() if content_type in types)


def _refuse_unknown(app: Any) -> None:
    names = [setting.name for setting in SETTINGS]
    namespace = (getattr(app.conf, "prefix", "") or "").lower()
    for key in app.conf:
        name = str(key).lower().removeprefix(namespace)
        if name.startswith(_PREFIX) and name.removeprefix(_PREFIX) not in names:
            close = get_close_matches(name.removeprefix(_PREFIX), names, n=1)
            known = [_PREFIX + each for each in close or names]
            hint = f"did you mean {known[0]!r}?" if close else f"known are {known}"
            if name.removeprefix(_PREFIX) in _OWN:
                hint = f"each task has its own, Idempotency({name.removeprefix(_PREFIX)}=...)"
            raise ConfigurationError(f"there is no setting {key!r}; {hint}")


#: The settings whose URLs may contain a secret, under any namespace.
_SECRETIVE: Final = r"IDEMPOTENCY_(STORE|RESULTS_BUCKET)$"


def _mask_in_reports() -> None:
    """Mask the settings that may contain a secret in ``celery report`` and ``celery inspect conf``.

    By Celery's own pattern, the only way to name more (``celery.app.utils.filter_hidden_settings``): a ``str`` subclass
    with another ``repr`` would not do, because ``inspect conf`` sends the text itself.
    """
    masked = utils.HIDDEN_SETTINGS
    if _SECRETIVE not in masked.pattern:
        utils.HIDDEN_SETTINGS = re.compile(f"{masked.pattern}|{_SECRETIVE}", masked.flags)


_mask_in_reports()
