"""The base of every part of the conformance suite: what its tests are parametrised with, and what a store may override.

Nothing here imports pytest: the package must be importable without it.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final
from unittest import TestCase

from idempotent_tasks.testing.conformance.requests import FAILED, KEY, done

__all__ = ["RAISES", "Conformance"]

#: Asserts that a block raises an error, as `pytest.raises` does.
RAISES: Final[Callable[..., Any]] = TestCase().assertRaises

#: The values, by their ids, of each argument of a test that is no fixture.
_ARGUMENTS: Final[Mapping[str, Mapping[str, object]]] = {
    "crashed": {"released": False, "crashed": True},
    "data": {
        "null": "null",
        "0": "0",
        "text": '""',
        "list": "[]",
        "dict": "{}",
        "false": "false",
        "unicode": '"£ \U0001f600 \\u0000"',
        "empty": "",
        "no-bytes": b"",
        "bytes": b"\x00\xff" * 8,
        "none": None,
    },
    "ended": {each: each for each in ("taken-over", "released", "reserved")},
    "expressions": {"same": ("cents", "cents"), "none-stored": (None, "cents"), "none-offered": ("cents", None)},
    "finished_with": {"running": None, "completed": done(), "failed": FAILED},
    "key": {"plain": KEY, "signs": "a task#[\"1\", 'ü', \\]\n%_?", "long": "k" * 1000},
    "largest": {"text": "x", "bytes": b"\xff"},
    "lease_seconds": {"short": 0.25, "one": 1, "long": 86_400.5},
    "outcome": {"completed": done(), "failed": FAILED},
    "payloads": {"same": ("a", "a"), "none-offered": ("a", None), "none-stored": (None, "b"), "none": (None, None)},
    "process": {"named": "host/boot/1/2/3@4", "unnamed": None},
    "reserver": {"same": "id-one", "other": "id-two"},
}


class Conformance:
    """Tests over the fixtures ``store`` and ``idempotency_clock``."""

    def forget(self, store: Any, key: str) -> None:
        """Delete a key's record, as an operator or the store's own expiry would; do nothing if there is none.

        Calls ``store.forget(key)``; override it for a store that has no such method.
        """
        store.forget(key)

    def pytest_generate_tests(self, metafunc: Any) -> None:
        """Parametrise the tests: pytest calls this for each of them."""
        for name in metafunc.fixturenames:
            if name in (arguments := self.arguments()):
                values = arguments[name]
                metafunc.parametrize(name, list(values.values()), ids=list(values))

    def arguments(self) -> Mapping[str, Mapping[str, object]]:
        """Return the values of the tests' arguments, by their ids."""
        return _ARGUMENTS
