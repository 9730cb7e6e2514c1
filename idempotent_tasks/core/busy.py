"""Keys that this process has just seen claimed, so that it need not ask the store about each of their duplicates."""

from typing import Any, Final
from weakref import WeakKeyDictionary

from idempotent_tasks.core.clock import Clock
from idempotent_tasks.core.records import Busy, ClaimRequest, Record, answer_refusal, is_reservation

__all__ = ["BusyKeys"]

#: For how many seconds the answer to one delivery is that to others of its key: a process asks 4 times a second.
FRESH_SECONDS: Final = 0.25
#: How many keys a process keeps; the latest ones.
MOST_KEYS: Final = 1_000


class BusyKeys:
    """Records of live claims that this process has been refused for, by app and key.

    What they answer may be `FRESH_SECONDS` old: only a delivery that is put off anyway, and asks again, may use it.
    """

    def __init__(self) -> None:
        self._seen: WeakKeyDictionary[Any, dict[str, tuple[float, Record]]] = WeakKeyDictionary()

    def note(self, app: Any, answer: Busy, clock: Clock) -> None:
        """Keep a refusal, unless nobody runs under that claim or nobody can tell whose it is."""
        holder = answer.holder
        if holder.owner is None or holder.free or is_reservation(holder):
            return
        seen = self._seen.setdefault(app, {})
        seen.pop(holder.key, None)
        seen[holder.key] = clock.monotonic(), holder
        if len(seen) > MOST_KEYS:
            # Another thread may have removed it.
            seen.pop(next(iter(seen)), None)

    def forget(self, app: Any, key: str) -> None:
        """Forget a key: another answer about it has come."""
        self._seen.get(app, {}).pop(key, None)

    def refused(self, app: Any, request: ClaimRequest, clock: Clock) -> Busy | None:
        """Return the refusal that a claim request would get, if that is known.

        A redelivery of the run's own message always asks: its worker may be gone.

        Args:
            app: the Celery app.
            request: the claim request, of a key without a lock.
            clock: the store's.
        """
        at, holder = self._seen.get(app, {}).get(request.key, (0.0, None))
        if holder is None or clock.monotonic() - at > FRESH_SECONDS:
            return None
        if holder.task_id == request.task_id or holder.held_until <= clock.now():
            return None
        answer = answer_refusal(holder, request)
        return answer if isinstance(answer, Busy) else None
