"""Digests and results of Powertools for AWS Lambda (Python), byte for byte, without that package."""

import base64
import dataclasses
import gzip
import hashlib
import json
import math
import zlib
from datetime import date, time
from decimal import Decimal
from enum import Enum
from io import BytesIO
from pathlib import PurePath
from typing import Any, Final
from uuid import UUID

from jmespath.functions import Functions, signature

__all__ = ["DEFAULT_HASH", "HASHES", "PowertoolsFunctions", "digest", "prepared", "result_text"]

#: The default of ``IdempotencyConfig(hash_function=...)``.
DEFAULT_HASH: Final = "md5"
#: The hash functions whose digests have a fixed length.
HASHES: Final = frozenset(name for name in hashlib.algorithms_guaranteed if not name.startswith("shake_"))
#: The most bytes that a compressed argument may inflate to: a small message can hold a huge one.
MAX_INFLATED_BYTES: Final = 32 * 1024 * 1024


class PowertoolsFunctions(Functions):
    """JMESPath's functions and Powertools' ``powertools_*``, which raise `ValueError` for what they cannot read."""

    @signature({"types": ["string"]})
    def _func_powertools_json(self, value: str) -> Any:
        return json.loads(value)

    @signature({"types": ["string"]})
    def _func_powertools_base64(self, value: str) -> str:
        return base64.b64decode(value).decode()

    @signature({"types": ["string"]})
    def _func_powertools_base64_gzip(self, value: str) -> str:
        try:
            with gzip.GzipFile(fileobj=BytesIO(base64.b64decode(value))) as compressed:
                data = compressed.read(MAX_INFLATED_BYTES + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError("not gzip") from error
        if len(data) > MAX_INFLATED_BYTES:
            raise ValueError("too large")
        return data.decode()


class _ResultEncoder(json.JSONEncoder):
    def default(self, o: Any) -> Any:
        if isinstance(o, Decimal):
            return math.nan if o.is_nan() else str(o)
        value = prepared(o)
        return super().default(o) if value is o else value


class _DigestEncoder(_ResultEncoder):
    def default(self, o: Any) -> Any:
        try:
            return super().default(o)
        except TypeError:
            if isinstance(o, Enum):
                return o.value
            if isinstance(o, date | time):
                return o.isoformat()
            if isinstance(o, UUID | PurePath):
                return str(o)
            raise


def prepared(value: Any) -> Any:
    """Return a dataclass instance or a pydantic model as a dictionary, and any other value unchanged."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    dump = getattr(value, "model_dump", None)
    if callable(dump) and not isinstance(value, type):
        return dump(mode="json")
    return value


def digest(value: Any, hash_name: str) -> str:
    """Return the hexadecimal digest of a selected value, by one of `HASHES`.

    Raises:
        TypeError, ValueError, RecursionError: Powertools cannot write the value as JSON.
    """
    text = json.dumps(value, cls=_DigestEncoder, sort_keys=True)
    return hashlib.new(hash_name, text.encode(), usedforsecurity=False).hexdigest()


def result_text(value: Any) -> str:
    """Return the JSON text of a result; raises as `digest`."""
    return json.dumps(value, cls=_ResultEncoder, sort_keys=True)
