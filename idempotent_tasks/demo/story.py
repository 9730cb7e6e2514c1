"""Puts what matters of the journal into sentences: kills, second runs, second charges, replays, deferrals."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from idempotent_tasks.demo.journal import Entry, What

__all__ = ["Line", "Narrator"]


@dataclass(frozen=True, slots=True)
class Line:
    """One sentence."""

    #: Seconds since the journal's first entry.
    seconds: float
    text: str
    #: A style of rich's.
    style: str = ""

    def __str__(self) -> str:
        return f"{self.seconds:5.1f} s  {self.text}"


class Narrator:
    """Tells one phase as its entries come in."""

    def __init__(self) -> None:
        self._begun = 0.0
        self._told = 0
        self._seen: Counter[tuple[What, str]] = Counter()

    def news(self, entries: Sequence[Entry]) -> list[Line]:
        """Return the sentences on the entries that were not there at the last call.

        Args:
            entries: all entries of the phase, oldest first.
        """
        if entries and not self._told:
            self._begun = entries[0].at
        new = entries[self._told :]
        self._told = len(entries)
        return [line for entry in new if (line := self._tell(entry))]

    def _tell(self, entry: Entry) -> Line | None:
        self._seen[entry.what, entry.payment] += 1
        text, style = _sentence(entry, self._seen[entry.what, entry.payment])
        return Line(entry.at - self._begun, f"{entry.payment}: {text}", style) if text else None


def _sentence(entry: Entry, time: int) -> tuple[str, str]:
    """Return what to say on an entry, and in which style; the time counts the payment's entries of its kind."""
    always = {
        What.CHILD_KILLED: (f"pool child {entry.pid} killed while it charges", "yellow"),
        What.WORKER_KILLED: (f"worker {entry.pid} killed with its whole pool while it charges", "yellow"),
        What.REPLAYED: ("done before; the stored result is returned", "green"),
    }
    at_first = {What.DEFERRED: ("another delivery is at it; this one is put off until that is done", "magenta")}
    repeated = {
        What.PUBLISHED: ("published a second time", ""),
        What.STARTED: (f"the body runs again, run {time}", "yellow"),
        What.CHARGED: (f"CHARGED AGAIN, {entry.cents / 100:.2f}, charge {time}", "bold red"),
    }
    return always.get(entry.what) or (at_first if time == 1 else repeated).get(entry.what) or ("", "")
