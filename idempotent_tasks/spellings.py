"""What the settings' values spell: each checked, and made into what the library works with.

Every function raises `ConfigurationError` for a value that means nothing.
"""

import re
from collections.abc import Collection, Sequence
from typing import Any, Final

from kombu.serialization import prepare_accept_content, registry
from kombu.utils.imports import symbol_by_name

from idempotent_tasks.codec import JSON, PICKLE
from idempotent_tasks.errors import ConfigurationError
from idempotent_tasks.events import Observer, log_event
from idempotent_tasks.observers import SHORT_NAMES
from idempotent_tasks.stores import ResultStore, Store
from idempotent_tasks.stores.dynamodb import DynamoDBStore
from idempotent_tasks.stores.memory import MemoryStore
from idempotent_tasks.stores.s3 import S3Results

__all__ = [
    "DISABLED_VARIABLE",
    "PORT_VARIABLE",
    "accepted",
    "accepts_pickle",
    "check_mode",
    "codec_of",
    "codes",
    "endpoint",
    "observers_of",
    "results_of",
    "store_of",
    "switch",
]

#: kombu's content type of pickle.
PICKLE_CONTENT: Final = "application/x-python-serialize"
#: The environment variable beside the setting ``idempotency_disabled``; what it says counts.
DISABLED_VARIABLE: Final = "IDEMPOTENCY_DISABLED"
#: The same for ``idempotency_prometheus_port``.
PORT_VARIABLE: Final = "IDEMPOTENCY_PROMETHEUS_PORT"
_ON: Final = ("1", "true", "yes", "on")
_OFF: Final = ("0", "false", "no", "off")
_LAST_PORT: Final = 65_535
#: What ``idempotency_checks`` may be.
CHECK_MODES: Final = ("ignore", "warn", "error")


def results_of(spelled: Any) -> ResultStore | None:
    """Return where large results go."""
    if isinstance(spelled, str):
        return S3Results.from_url(spelled)
    if spelled is None or isinstance(spelled, ResultStore):
        return spelled
    kind = type(spelled).__name__
    raise ConfigurationError(f"idempotency_results_bucket is a {kind}; write s3://BUCKET/PREFIX, or give an S3Results")


def accepts_pickle(conf: Any) -> bool:
    """Return whether an app reads pickle from its broker or its result backend."""
    accepted = [*(conf.accept_content or ()), *(conf.result_accept_content or ())]
    return PICKLE_CONTENT in prepare_accept_content(accepted)


def accepted(conf: Any) -> frozenset[str]:
    """Return the names of the serializers that an app reads from its broker or its result backend."""
    types = prepare_accept_content([*(conf.accept_content or ()), *(conf.result_accept_content or ())])
    return frozenset(name for name, content_type in registry.name_to_type.items() if content_type in types)


def codec_of(conf: Any, serializer: str | None) -> str:
    """Return how a task's results are stored so that a replay is what the first delivery gave.

    That was written by the result backend's serializer for who waits for it, and by the messages' for the tasks that
    follow.  pickle keeps what either does.

    Args:
        conf: the app's.
        serializer: the task's own, which is the app's where it has none.
    """
    written = (conf.result_serializer, serializer or conf.task_serializer)
    used = [name for name in written if name != JSON and name in accepted(conf)]
    return PICKLE if PICKLE in used else next(iter(used), JSON)


def switch(spelled: Any) -> bool:
    """Return whether the kill switch is on."""
    text = "0" if spelled is None else str(spelled).strip().lower()
    if text not in _ON + _OFF:
        msg = f"idempotency_disabled, or {DISABLED_VARIABLE}, is {spelled!r}, not one of {', '.join(_ON + _OFF)}"
        raise ConfigurationError(msg)
    return text in _ON


def endpoint(spelled: Any) -> tuple[str, int] | None:
    """Return the address and port of the metrics; None for nowhere."""
    if spelled is None:
        return None
    address, _, port = str(spelled).rpartition(":")
    if not port.isascii() or not port.isdecimal() or int(port) > _LAST_PORT:
        msg = f"idempotency_prometheus_port, or {PORT_VARIABLE}, is {spelled!r}, neither PORT nor ADDRESS:PORT"
        raise ConfigurationError(msg)
    return address.strip("[]") or "127.0.0.1", int(port)


def check_mode(spelled: Any) -> str:
    """Return what is done with findings."""
    mode = "warn" if spelled is None else spelled
    if mode not in CHECK_MODES:
        raise ConfigurationError(f"idempotency_checks={mode!r} is not one of {CHECK_MODES}")
    return str(mode)


def codes(spelled: Any) -> frozenset[str]:
    """Return the codes of the findings that are accepted; which codes there are, the checks know."""
    listed = () if spelled is None else spelled
    is_list = isinstance(listed, Collection) and not isinstance(listed, str)
    if not is_list or not all(isinstance(code, str) for code in listed):
        raise ConfigurationError(f"idempotency_silenced_checks={spelled!r} is not a list of codes of findings")
    return frozenset(listed)


def store_of(spelled: Any, app_name: str) -> Store:
    """Return the store."""
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
    # Of a text only what cannot be a password: a secret is quoted by nobody.
    begins = re.match(r"[a-z][a-z0-9+]*(?=:|$)", spelled) if isinstance(spelled, str) else None
    scheme = begins[0] if begins else type(spelled).__name__
    raise ConfigurationError(f"app {app_name!r} has an unusable idempotency store ({scheme!r}); {remedy}")


def observers_of(spelled: Any, *, served: bool) -> list[Observer]:
    """Return the observers."""
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
