"""Messages under keys, many to a key, each with a value of its own; and what must be true when all is over."""

from collections import Counter
from collections.abc import Callable
from typing import Any

from celery.result import AsyncResult

from tests.support.rig import Rig

__all__ = ["Load"]

RESULT_SECONDS = 60.0


class Load:
    """Publishes ``charge`` on a rig and accounts for every message.

    Args:
        rig: with at least one worker.
        context: returns what a failure's message shall say besides.
    """

    def __init__(self, rig: Rig, context: Callable[[], object] = str) -> None:
        #: What was published, by key.
        self.published: dict[str, list[AsyncResult]] = {}
        self._rig = rig
        self._context = context
        self._sent = 0

    def send(self, key: str, times: int = 1, **options: Any) -> AsyncResult:
        """Publish a key's message this often, and return the last."""
        for _ in range(times):
            self._sent += 1
            published = self._rig.send("charge", key, self._sent, **options)
            self.published.setdefault(key, []).append(published)
        return published

    def account(self) -> None:
        """Wait for every result, and find one effect a key and the same result for all of its messages."""
        results = {key: self._results(published) for key, published in self.published.items()}
        effects = Counter(entry["key"] for entry in self._rig.journal.entries("effect", task="charge"))
        context = self._context()
        wrong = {key: count for key, count in effects.items() if count != 1}
        assert not wrong, f"effects of a key: {wrong}; {context}"
        assert effects.keys() == results.keys(), f"{effects.keys() ^ results.keys()}; {context}"
        unequal = {key: values for key, values in results.items() if len(set(values)) != 1}
        assert not unequal, f"results of a key: {unequal}; {context}"

    def _results(self, published: list[AsyncResult]) -> list[Any]:
        try:
            return [self._rig.result(each, RESULT_SECONDS) for each in published]
        except Exception as error:
            error.add_note(f"waiting for {[(each.id, each.state) for each in published]}; {self._context()}")
            raise
