"""A store's URL, ``dynamodb://REGION/TABLE?…``, as arguments of its constructor."""

import re
from typing import Any, Final
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from idempotent_tasks.errors import ConfigurationError
from idempotent_tasks.stores.aws import Credentials
from idempotent_tasks.stores.dynamodb.item import BOOKKEEPING

__all__ = ["arguments_from_url"]

_TEXT_ARGUMENTS: Final = (
    "key_attr",
    "sort_key_attr",
    "static_pk_value",
    "status_attr",
    "expiry_attr",
    "in_progress_expiry_attr",
    "data_attr",
    "validation_key_attr",
    "region",
    "endpoint_url",
)
_SWITCHES: Final = ("fast",)
_POSITIONS: Final = {"true": True, "false": False}


def arguments_from_url(url: str) -> dict[str, Any]:
    """Return the constructor arguments that a store URL spells.

    Raises:
        ConfigurationError: the URL has no table, another scheme or an unknown parameter.
    """
    try:
        arguments = _table_and_place(urlsplit(url))
    except ValueError:
        # Its own text may quote a secret that holds an unquoted "/".
        msg = f"{_shown(url)} is not a store URL; write dynamodb://REGION/TABLE, with %2F for a / in a secret"
        raise ConfigurationError(msg) from None
    renamed: dict[str, str] = {}
    for name, value in parse_qsl(urlsplit(url).query, keep_blank_values=True):
        if not value:
            raise ConfigurationError(f"{_shown(url)}: parameter {name!r} is empty; give it a value or drop it")
        if name in _TEXT_ARGUMENTS:
            arguments[name] = value
        elif name in _SWITCHES:
            arguments[name] = _position(url, name, value)
        elif name.removesuffix("_attr") in BOOKKEEPING and name.endswith("_attr"):
            renamed[name.removesuffix("_attr")] = value
        else:
            known = [*_TEXT_ARGUMENTS, *_SWITCHES, *(f"{role}_attr" for role in BOOKKEEPING)]
            raise ConfigurationError(f"{_shown(url)}: unknown parameter {name!r}; known are {', '.join(known)}")
    return {**arguments, "attributes": renamed}


def _position(url: str, name: str, value: str) -> bool:
    if value.lower() not in _POSITIONS:
        raise ConfigurationError(f"{_shown(url)}: {name}={value!r} is neither true nor false")
    return _POSITIONS[value.lower()]


def _table_and_place(parts: SplitResult) -> dict[str, Any]:
    table = unquote(parts.path.strip("/"))
    if parts.scheme != "dynamodb" or not parts.netloc or not table:
        raise ValueError(parts.scheme)
    host = parts.hostname or ""
    port = parts.port
    place: dict[str, Any] = {"table": table}
    if port is None and host != "localhost":
        place["region"] = host
    else:
        place["endpoint_url"] = f"http://{f'[{host}]' if ':' in host else host}:{port or 8000}"
    if parts.username:
        place["credentials"] = Credentials(unquote(parts.username), unquote(parts.password or ""))
    return place


def _shown(url: str) -> str:
    """Return a URL for a message: without user, password and parameters, and where in doubt without its place."""
    scheme, found, rest = url.partition("://")
    if not found:
        return "a text without ://"
    place = re.split("[?#]", rest.rpartition("@")[2], maxsplit=1)[0]
    port = place.partition("/")[0].rpartition("]")[2].partition(":")[2]
    hidden = "…@" if "@" in rest else ""
    # A password before which the @ and the server are missing stands where a port would.
    return repr(f"{scheme}://{hidden}{place if not port or port.isdecimal() else '…'}")
