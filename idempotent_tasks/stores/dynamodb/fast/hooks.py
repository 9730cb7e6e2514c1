"""Detects foreign hooks in a boto3 client: handlers of its events, and wrappers around its functions.

Tracers (OpenTelemetry, X-Ray, Datadog, Sentry), recorders and stand-ins (moto) see and change requests in these two
ways, some of them long after the client was made.  Their requests must go through boto3.
"""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from operator import attrgetter, is_
from types import FunctionType, MethodType
from typing import Any, Final

from botocore import auth, history, parsers, serialize
from botocore.client import BaseClient
from botocore.endpoint import Endpoint
from botocore.handlers import BUILTIN_HANDLERS
from botocore.hooks import EventAliaser, HierarchicalEmitter
from botocore.httpsession import URLLib3Session
from botocore.signers import RequestSigner

__all__ = ["Hooks"]

#: The packages whose functions are no foreign hooks: those that send a request, and this library.
_OWN: Final = frozenset({"boto3", "botocore", "http", "idempotent_tasks", "urllib3"})
#: Modules of botocore's with handlers that its users register: to leave a request unsigned, or to answer it.
_FOR_OTHERS: Final = ("botocore.handlers", "botocore.stub")
#: The events of one request, by the first part of their names.
_EVENTS: Final = frozenset(
    {
        "after-call",
        "after-call-error",
        "before-call",
        "before-endpoint-resolution",
        "before-parameter-build",
        "before-parse",
        "before-send",
        "before-sign",
        "choose-signer",
        "needs-retry",
        "provide-client-params",
        "request-created",
        "response-received",
    }
)
#: Events that do not belong to a request.
_OTHER_EVENTS: Final = frozenset(
    {
        "*",
        "building-command-table",
        "choose-service-name",
        "creating-client-class",
        "creating-resource-class",
        "docs",
        "getattr",
        "service-data-loaded",
        "session-initialized",
    }
)
#: The methods that send a request, by the class that has or inherits them.
_CLIENT: Final = (
    *("get_item", "put_item", "update_item", "delete_item", "query", "scan"),
    *("_make_api_call", "_make_request", "_emit_api_params", "_convert_to_request_dict", "_resolve_endpoint_ruleset"),
)
_ENDPOINT: Final = (
    *("make_request", "create_request", "prepare_request", "_encode_headers", "_send_request", "_get_response"),
    *("_do_get_response", "_needs_retry", "_send"),
)
_SESSION: Final = ("send", "_get_connection_manager", "_setup_ssl_cert", "_get_request_target")
_POOL: Final = ("ConnectionCls", "urlopen", "_make_request", "_new_conn")
_CONNECTION: Final = ("connect", "request", "putrequest", "putheader", "send", "getresponse")
#: The parts of a client, and the class that each has to be of.
_PARTS: Final[tuple[tuple[str, type], ...]] = (
    ("_endpoint", Endpoint),
    ("_endpoint.http_session", URLLib3Session),
    ("_endpoint._event_emitter", EventAliaser),
    ("_endpoint._event_emitter._emitter", HierarchicalEmitter),
    ("_request_signer", RequestSigner),
)


class Hooks:
    """Detects foreign hooks in one DynamoDB client, cheaply enough for a check before each request.

    It looks at botocore's private attributes, because botocore has no public ones for this.  Where a version of
    botocore differs, that is reported as a hook.
    """

    def __init__(self, client: Any) -> None:
        self._client = client
        self._parts = attrgetter("meta.events", *(path for path, _ in _PARTS))
        #: Why this client cannot be inspected.
        self._foreign_part: str | None = None
        #: botocore's cache of handlers, which it replaces whenever one is registered, and the verdicts under it by
        #: operation.
        self._cache: Any = None
        self._handled: dict[str, str | None] = {}
        #: The methods that were looked at last, and the verdict on them.
        self._seen: list[Any] = [None]
        self._wrapped: str | None = None
        self._places: tuple[tuple[Callable[[Any], tuple[Any, ...]], type], ...] = ()
        try:
            self._known = self._parts(client)
            self._foreign_part = self._find_foreign_part()
            self._emitter = client.meta.events._emitter  # noqa: SLF001 - as the class says
            self._objects = [vars(part) for part in (client, *self._known)]
            self._sizes = list(map(len, self._objects))
            self._classes = [vars(owner) for cls, _ in self._watched() for owner in cls.__mro__]
            self._class_sizes: list[int] = []
        except (AttributeError, LookupError, TypeError) as error:
            self._foreign_part = f"this botocore has another shape ({type(error).__name__}: {error})"

    def found(self, operation: str) -> str | None:
        """Return a foreign hook that sees requests of an operation, such as ``UpdateItem``, or None."""
        if self._foreign_part is not None:
            return self._foreign_part
        try:
            return self._handlers(operation) or self._changes()
        except (AttributeError, LookupError, TypeError) as error:
            return f"this botocore has another shape ({type(error).__name__}: {error})"

    def _handlers(self, operation: str) -> str | None:
        cache = self._emitter._lookup_cache  # noqa: SLF001 - as the class says
        if cache is not self._cache:
            # The verdicts first: another thread must not find an old verdict under the new cache.
            self._handled = {}
            self._cache = cache
        handled = self._handled
        if operation not in handled:
            handled[operation] = next(self._foreign_handlers(operation), None)
        return handled[operation]

    def _foreign_handlers(self, operation: str) -> Iterator[str]:
        trie = self._emitter._handlers  # noqa: SLF001 - as the class says
        for event in sorted(_EVENTS | (trie._root["children"].keys() - _OTHER_EVENTS)):  # noqa: SLF001
            for handler in trie.prefix_search(f"{event}.dynamodb.{operation}"):
                if not _is_own_handler(f"{event}.dynamodb.{operation}", handler):
                    yield f"{_name(handler)} handles the event {event}"

    def _changes(self) -> str | None:
        """Return, as text, what has replaced or wrapped a part or method of the client; None where nothing has."""
        if not all(map(is_, self._parts(self._client), self._known)):
            return "a part of the client was exchanged"
        if list(map(len, self._objects)) != self._sizes:
            return "a part of the client was given something of its own"
        if history.HISTORY_RECORDER._enabled:  # noqa: SLF001 - as the class says
            return "botocore's history is recorded"
        sizes = list(map(len, self._classes))
        if sizes != self._class_sizes:
            # A class may have been given a method that overrides an inherited one.
            self._places = tuple(self._getters())
            self._class_sizes = sizes
        values = [look(owner) for look, owner in self._places]
        if not all(map(is_, chain.from_iterable(values), self._seen)):
            # The verdict first, as above.
            self._wrapped = next(filter(None, map(_foreign_method, self._places, values)), None)
            self._seen = list(chain.from_iterable(values))
        return self._wrapped

    def _getters(self) -> Iterator[tuple[Callable[[Any], tuple[Any, ...]], type]]:
        """Yield, for each watched class and base, a getter of the watched methods that it defines, and the class."""
        for cls, names in self._watched():
            for owner in cls.__mro__:
                own = [name for name in names if name in vars(owner)]
                if own:
                    yield _getter(own), owner

    def _watched(self) -> tuple[tuple[type, tuple[str, ...]], ...]:
        """Return the classes that send a request, each with the methods that it has or inherits."""
        session = self._client._endpoint.http_session  # noqa: SLF001 - as the class says
        scheme = self._client._endpoint.host.partition(":")[0]  # noqa: SLF001
        pool = session._pool_classes_by_scheme[scheme]  # noqa: SLF001
        return (
            (type(self._client), _CLIENT),
            (Endpoint, _ENDPOINT),
            (URLLib3Session, _SESSION),
            (pool, _POOL),
            (pool.ConnectionCls, _CONNECTION),
            (RequestSigner, ("handler", "sign", "get_auth_instance")),
            (auth.SigV4Auth, ("add_auth", "_inject_signature_to_request")),
            (serialize.JSONSerializer, ("serialize_to_request",)),
            (parsers.ResponseParser, ("parse",)),
            (EventAliaser, ("emit",)),
            (HierarchicalEmitter, ("emit", "_emit")),
        )

    def _find_foreign_part(self) -> str | None:
        """Return which class or method of this client is not botocore's own; None where all are."""
        if BaseClient not in type(self._client).__mro__:
            return f"the client is a {type(self._client).__qualname__}"
        for part, (path, cls) in zip(self._known[1:], _PARTS, strict=True):
            if type(part) is not cls:
                return f"the client's {path} is a {type(part).__qualname__}"
        for part in (self._client, *self._known):
            shadowed = vars(part).keys() & {name for name in dir(type(part)) if callable(getattr(type(part), name))}
            if shadowed:
                return f"{type(part).__qualname__}.{min(shadowed)} is another one for this client"
        return None


def _getter(names: list[str]) -> Callable[[Any], tuple[Any, ...]]:
    get = attrgetter(*names)
    # An `attrgetter` of a single name returns no tuple.
    return get if len(names) > 1 else lambda owner: (get(owner),)


def _foreign_method(place: tuple[Any, type], values: tuple[Any, ...]) -> str | None:
    _, owner = place
    for value in values:
        is_own = value.__module__.partition(".")[0] in _OWN if type(value) is type else _is_own_function(value)
        if not is_own:
            return f"a method of {owner.__qualname__} is wrapped by {_name(value)}"
    return None


def _is_own_function(function: Any) -> bool:
    # Not by ``__module__``: proxies of wrapt and `functools.wraps` copy that of the function that they wrap.
    if type(function) is not FunctionType:
        return False
    return str(function.__globals__.get("__name__")).partition(".")[0] in _OWN


def _is_own_handler(event: str, handler: Any) -> bool:
    """Return whether an event handler is ours, boto3's or botocore's, but none of botocore's that users register."""
    if type(handler) is partial:
        return _is_own_handler(event, handler.func)
    if type(handler) is MethodType:
        return _is_own_function(handler.__func__) and handler.__func__.__module__ not in _FOR_OTHERS
    if type(handler) is FunctionType:
        builtin = handler.__module__ not in _FOR_OTHERS or any(
            registered[1] is handler and _covers(registered[0], event) for registered in BUILTIN_HANDLERS
        )
        return builtin and _is_own_function(handler)
    return _is_own_function(vars(type(handler)).get("__call__"))


def _covers(pattern: str, event: str) -> bool:
    return all(part in ("*", other) for part, other in zip(pattern.split("."), event.split("."), strict=False))


def _name(thing: Any) -> str:
    cls = type(thing)
    named = thing if cls in (FunctionType, MethodType) else cls
    return f"{named.__module__}.{named.__qualname__}"
