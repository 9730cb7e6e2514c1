"""An app's configuration, validated in one place: the store, the observers, the default of each policy field."""

import gc
import logging
import os
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from typing import Any, Final
from weakref import WeakKeyDictionary

from billiard.exceptions import SoftTimeLimitExceeded
from celery.app import utils

from idempotent_tasks.errors import ConfigurationError
from idempotent_tasks.events import Observer, Observers
from idempotent_tasks.policy import Idempotency, seconds
from idempotent_tasks.spellings import (
    DISABLED_VARIABLE,
    PORT_VARIABLE,
    accepted,
    accepts_pickle,
    check_mode,
    codes,
    endpoint,
    observers_of,
    results_of,
    store_of,
    switch,
)
from idempotent_tasks.stores import ResultStore, Store
from idempotent_tasks.stores.cache import CachedStore, OutcomeCache
from idempotent_tasks.stores.dynamodb import DynamoDBStore

__all__ = ["Settings", "changed_settings", "settings_of", "temporary_settings"]

logger = logging.getLogger("idempotent_tasks")

_PREFIX: Final = "idempotency_"
_FIELDS: Final = tuple(field.name for field in fields(Idempotency))
#: How many outcomes one process remembers, and how much memory they take in bytes, where the settings
#: ``idempotency_cache_<limit>`` do not say so.
_CACHE_LIMITS: Final = {"outcomes": 10_000, "bytes": 20_000_000}
_KNOWN: Final = (
    *("store", "observers", "checks", "silenced_checks", "disabled", "prometheus_port", "results_bucket"),
    *(f"cache_{limit}" for limit in _CACHE_LIMITS),
    *_FIELDS,
)


#: The settings whose URLs may have a secret in them, under whatever namespace.
_SECRETIVE: Final = r"IDEMPOTENCY_(STORE|RESULTS_BUCKET)$"


def _mask_in_reports() -> None:
    """Have ``celery report`` and ``celery inspect conf`` mask the settings that may have a secret in them.

    Celery masks what a pattern of its own finds, and has no other way to name more
    (``celery.app.utils.filter_hidden_settings``).  A text that looks otherwise when it is printed would not do:
    ``inspect conf`` sends the text itself.
    """
    masked = utils.HIDDEN_SETTINGS
    if _SECRETIVE not in masked.pattern:
        utils.HIDDEN_SETTINGS = re.compile(f"{masked.pattern}|{_SECRETIVE}", masked.flags)


_mask_in_reports()


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
    #: The names of all serializers that it reads from there.
    accepted: frozenset[str] = frozenset()
    #: The kill switch: bodies run as plain Celery runs them, and the store is not asked anything.
    disabled: bool = False
    #: The address and port on which a worker serves its Prometheus metrics.
    prometheus: tuple[str, int] | None = None
    #: Every setting as it was spelled when it was read.
    spelled: Mapping[str, Any] = field(default_factory=dict, repr=False)
    #: The store that the app used in this process before it was given another; None where there is none.
    former_store: Store | None = None

    def store_under(self, policy: Idempotency) -> Store:
        """Return the store, or for a task with ``cache`` this process's memory in front of it."""
        if policy.cache is None:
            return self.store
        return CachedStore(inner=self.store, cache=self.outcomes, max_age=seconds(policy.cache))


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


@contextmanager
def temporary_settings(app: Any, *, store: Store, observers: Sequence[Observer] = ()) -> Iterator[None]:
    """Let an app have another store and other observers for the length of a block, in this process: for tests.

    The app's configuration is not touched; its other settings hold, but for the bucket of results, and it needs no
    store of its own.

    Raises:
        ConfigurationError: another setting is wrong.
    """
    spelled = app.conf.get("idempotency_store")
    _refuse_unknown(app)
    settings = replace(_settings(app, store), observe=_as_observers(observers), results=None)
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
    store = store_of(spelled_store, app.main or "")
    _refuse_other_layout(app, store)
    return replace(_settings(app, store), former_store=_former_store(app, store))


def _settings(app: Any, store: Store) -> Settings:
    given = {name: app.conf.get(_PREFIX + name) for name in _FIELDS}
    defaults = {name: value for name, value in given.items() if value is not None}
    Idempotency.of(defaults)
    prometheus = endpoint(os.environ.get(PORT_VARIABLE) or app.conf.get("idempotency_prometheus_port"))
    observers = observers_of(app.conf.get("idempotency_observers"), served=prometheus is not None)
    limits = {limit: _cache_limit(app, limit) for limit in _CACHE_LIMITS}
    return Settings(
        store=store,
        outcomes=OutcomeCache(store.clock, most=limits["outcomes"], most_bytes=limits["bytes"]),
        observe=_as_observers(observers),
        defaults=defaults,
        results=results_of(app.conf.get("idempotency_results_bucket")),
        accepts_pickle=accepts_pickle(app.conf),
        accepted=accepted(app.conf),
        checks=check_mode(app.conf.get("idempotency_checks")),
        silenced_checks=codes(app.conf.get("idempotency_silenced_checks")),
        disabled=switch(os.environ.get(DISABLED_VARIABLE) or app.conf.get("idempotency_disabled")),
        prometheus=prometheus,
        spelled=_spelled(app),
    )


def _as_observers(observers: Sequence[Observer]) -> Observers:
    return Observers(list(observers), (SoftTimeLimitExceeded,))


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
            differences = store.schema.differences(theirs.schema)
            if differences:
                return other, differences
    return None


def _cache_limit(app: Any, limit: str) -> int:
    given = app.conf.get(f"idempotency_cache_{limit}")
    number = _CACHE_LIMITS[limit] if given is None else given
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise ConfigurationError(f"idempotency_cache_{limit}={given!r} is not a whole number of at least 1")
    return number


def _refuse_unknown(app: Any) -> None:
    namespace = (getattr(app.conf, "prefix", "") or "").lower()
    for key in app.conf:
        name = str(key).lower().removeprefix(namespace)
        if name.startswith(_PREFIX) and name.removeprefix(_PREFIX) not in _KNOWN:
            close = get_close_matches(name.removeprefix(_PREFIX), _KNOWN, n=1)
            known = [_PREFIX + each for each in close or _KNOWN]
            hint = f"did you mean {known[0]!r}?" if close else f"known are {known}"
            raise ConfigurationError(f"there is no setting {key!r}; {hint}")
