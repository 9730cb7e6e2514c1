"""A store's URL, ``dynamodb://REGION/TABLE?…``, as arguments of its constructor."""

from typing import Any, Final
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from idempotent_tasks.errors import ConfigurationError
from idempotent_tasks.stores.dynamodb_client import Credentials
from idempotent_tasks.stores.dynamodb_layout import BOOKKEEPING

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


def arguments_from_url(url: str) -> dict[str, Any]:
    """Return the constructor arguments that a store URL spells.

    Raises:
        ConfigurationError: the URL has no table, another scheme or an unknown parameter.
    """
    parts = urlsplit(url)
    table = unquote(parts.path.strip("/"))
    if parts.scheme != "dynamodb" or not parts.netloc or not table:
        raise ConfigurationError(f"{_shown(parts)} is not a store URL; write dynamodb://REGION/TABLE")
    arguments: dict[str, Any] = {"table": table, **_place(parts)}
    renamed: dict[str, str] = {}
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name in _TEXT_ARGUMENTS:
            arguments[name] = value
        elif name.removesuffix("_attr") in BOOKKEEPING and name.endswith("_attr"):
            renamed[name.removesuffix("_attr")] = value
        else:
            known = [*_TEXT_ARGUMENTS, *(f"{role}_attr" for role in BOOKKEEPING)]
            raise ConfigurationError(f"{_shown(parts)}: unknown parameter {name!r}; known are {', '.join(known)}")
    return {**arguments, "attributes": renamed}


def _place(parts: SplitResult) -> dict[str, Any]:
    host = parts.hostname or ""
    try:
        port = parts.port
    except ValueError as error:
        raise ConfigurationError(f"{_shown(parts)}: {error}") from error
    place: dict[str, Any] = {}
    if port is None and host != "localhost":
        place["region"] = host
    else:
        place["endpoint_url"] = f"http://{f'[{host}]' if ':' in host else host}:{port or 8000}"
    if parts.username:
        place["credentials"] = Credentials(unquote(parts.username), unquote(parts.password or ""))
    return place


def _shown(parts: SplitResult) -> str:
    return repr(parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl())
