"""An app's configuration, validated in one place: the store, the observers, the default of each policy field."""

import os
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from typing import Any, Final
from weakref import WeakKeyDictionary

from billiard.exceptions import SoftTimeLimitExceeded
from kombu.utils.imports import symbol_by_name

from idempotent_tasks.errors import ConfigurationError
from idempotent_tasks.events import Observer, Observers, log_event
from idempotent_tasks.findings import WHY
from idempotent_tasks.observers import SHORT_NAMES
from idempotent_tasks.policy import Idempotency
from idempotent_tasks.stores import Store
from idempotent_tasks.stores.dynamodb import DynamoDBStore
from idempotent_tasks.stores.memory import MemoryStore

__all__ = ["Settings", "settings_of", "temporary_settings"]

_PREFIX: Final = "idempotency_"
_FIELDS: Final = tuple(field.name for field in fields(Idempotency))
_KNOWN: Final = ("store", "observers", "checks", "silenced_checks", "disabled", *_FIELDS)
#: The environment variable beside the setting ``idempotency_disabled``; what it says counts.
DISABLED_VARIABLE: Final = "IDEMPOTENCY_DISABLED"
_ON: Final = ("1", "true", "yes", "on")
_OFF: Final = ("0", "false", "no", "off")
#: What ``idempotency_checks`` may be.
CHECK_MODES: Final = ("ignore", "warn", "error")


@dataclass(frozen=True, kw_only=True, eq=False)
class Settings:
    """What an app's ``idempotency_*`` settings say."""

    store: Store
    #: Tells every observer of an event.
    observe: Observers
    #: ``idempotency_<field>``, by the field of `Idempotency`.
    defaults: Mapping[str, Any]
    #: What a worker does with what its checks find: ``ignore`` asks nothing, ``warn`` logs, ``error`` does not start.
    checks: str = "warn"
    #: The codes of findings that are known and accepted.
    silenced_checks: frozenset[str] = frozenset()
    #: The kill switch: bodies run as plain Celery runs them, and the store is not asked anything.
    disabled: bool = False


_loaded: WeakKeyDictionary[Any, tuple[Any, Settings]] = WeakKeyDictionary()
_loading = threading.Lock()


def settings_of(app: Any) -> Settings:
    """Return the settings of a Celery app; they are read once, and again when the app is given another store.

    Raises:
        ConfigurationError: a setting is missing, unknown or wrong.
    """
    spelled = app.conf.get("idempotency_store")
    # Without the lock where it can be: a child that is forked while another thread holds it never gets it.
    settings = _known(app, spelled)
    if settings is None:
        with _loading:
            settings = _known(app, spelled) or _load(app, spelled)
            _loaded[app] = (spelled, settings)
    return settings


@contextmanager
def temporary_settings(app: Any, *, store: Store, observers: Sequence[Observer] = ()) -> Iterator[None]:
    """Let an app have another store and other observers for the length of a block, in this process: for tests.

    The app's configuration is not touched; its other settings hold, and it needs no store of its own.

    Raises:
        ConfigurationError: another setting is wrong.
    """
    spelled = app.conf.get("idempotency_store")
    _refuse_unknown(app)
    settings = replace(_settings(app, store), observe=_as_observers(observers))
    with _loading:
        before = _loaded.get(app)
        _loaded[app] = (spelled, settings)
    try:
        yield
    finally:
        with _loading:
            del _loaded[app]
            if before is not None:
                _loaded[app] = before


def _known(app: Any, spelled: Any) -> Settings | None:
    known = _loaded.get(app)
    return known[1] if known is not None and known[0] is spelled else None


def _load(app: Any, spelled_store: Any) -> Settings:
    _refuse_unknown(app)
    return _settings(app, _store(spelled_store, app.main or ""))


def _settings(app: Any, store: Store) -> Settings:
    given = {name: app.conf.get(_PREFIX + name) for name in _FIELDS}
    defaults = {name: value for name, value in given.items() if value is not None}
    Idempotency.of(defaults)
    observers = app.conf.get("idempotency_observers")
    return Settings(
        store=store,
        observe=_as_observers([log_event] if observers is None else _observers(observers)),
        defaults=defaults,
        checks=_check_mode(app.conf.get("idempotency_checks")),
        silenced_checks=_codes(app.conf.get("idempotency_silenced_checks")),
        disabled=_switch(os.environ.get(DISABLED_VARIABLE) or app.conf.get("idempotency_disabled")),
    )


def _switch(spelled: Any) -> bool:
    text = "0" if spelled is None else str(spelled).strip().lower()
    if text not in _ON + _OFF:
        msg = f"idempotency_disabled, or {DISABLED_VARIABLE}, is {spelled!r}, not one of {', '.join(_ON + _OFF)}"
        raise ConfigurationError(msg)
    return text in _ON


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


def _as_observers(observers: Sequence[Observer]) -> Observers:
    return Observers(list(observers), (SoftTimeLimitExceeded,))


def _observers(spelled: Any) -> list[Observer]:
    listed = spelled if isinstance(spelled, Sequence) and not isinstance(spelled, str) else [spelled]
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
