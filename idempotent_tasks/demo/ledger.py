"""The figures of a phase from its journal: charges, runs, replays, deferrals and kills, by payment."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from idempotent_tasks.demo.journal import Entry, What
from idempotent_tasks.demo.plan import Payment

__all__ = ["Figures", "History", "Ledger", "Run", "Watcher"]


@dataclass(slots=True)
class Run:
    """One run of a payment's body."""

    pid: int
    worker: int
    #: Epoch seconds, like the other times; None if it has not happened.
    started: float
    charged: float | None = None
    ended: float | None = None
    killed: bool = False

    @property
    def open(self) -> bool:
        """Whether it still goes on: neither finished, acknowledgement included, nor killed."""
        return self.ended is None


@dataclass(slots=True)
class History:
    """The events of one payment, as their times in epoch seconds."""

    published: list[float] = field(default_factory=list)
    replayed: list[float] = field(default_factory=list)
    deferred: list[float] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)

    @property
    def charges(self) -> int:
        """How often it was charged."""
        return sum(run.charged is not None for run in self.runs)

    @property
    def recoveries(self) -> int:
        """How many runs were killed before their charge and replaced by a later run."""
        killed = [index for index, run in enumerate(self.runs) if run.killed and run.charged is None]
        return sum(any(not later.killed for later in self.runs[index + 1 :]) for index in killed)


@dataclass(frozen=True, kw_only=True, slots=True)
class Figures:
    """The figures of one phase; money in cents."""

    wanted: int
    charges: int
    charged_twice: int
    lost: int
    wanted_cents: int
    charged_cents: int
    published: int
    deliveries: int
    runs: int
    replays: int
    deferrals: int
    recoveries: int
    children_killed: int
    workers_killed: int

    @property
    def promise_kept(self) -> bool:
        """Whether each payment was charged exactly once."""
        return self.charges == self.wanted and not self.charged_twice and not self.lost


class Ledger:
    """The state of one phase, computed from the journal alone."""

    def __init__(self, payments: Iterable[Payment]) -> None:
        self.payments = tuple(payments)
        self.histories = {payment.name: History() for payment in self.payments}
        #: Every entry so far, oldest first.
        self.entries: list[Entry] = []

    def add(self, entry: Entry) -> None:
        """Add the next entry of the journal."""
        self.entries.append(entry)
        match entry.what:
            case What.CHILD_KILLED | What.WORKER_KILLED:
                self._end_killed_runs(entry)
            case What.READY:
                pass
            case _:
                self._add_to(entry, self.histories[entry.payment])

    def open_runs(self) -> Iterator[tuple[str, Run]]:
        """Yield the runs that have not ended, each after its payment's name."""
        for name, history in self.histories.items():
            for run in history.runs:
                if run.open:
                    yield name, run

    @property
    def workers_ready(self) -> int:
        """How many workers have become ready."""
        return self._count(What.READY)

    @property
    def charged(self) -> int:
        """How many payments were charged at least once."""
        return sum(history.charges > 0 for history in self.histories.values())

    def figures(self) -> Figures:
        """Return the figures so far."""
        histories = self.histories.values()
        return Figures(
            wanted=len(self.payments),
            charges=sum(history.charges for history in histories),
            charged_twice=sum(history.charges > 1 for history in histories),
            lost=sum(history.charges == 0 for history in histories),
            wanted_cents=sum(payment.cents for payment in self.payments),
            charged_cents=sum(entry.cents for entry in self.entries if entry.what is What.CHARGED),
            published=self._count(What.PUBLISHED),
            deliveries=self._count(What.DELIVERED),
            runs=self._count(What.STARTED),
            replays=self._count(What.REPLAYED),
            deferrals=self._count(What.DEFERRED),
            recoveries=sum(history.recoveries for history in histories),
            children_killed=self._count(What.CHILD_KILLED),
            workers_killed=self._count(What.WORKER_KILLED),
        )

    def _count(self, what: What) -> int:
        return sum(entry.what is what for entry in self.entries)

    def _add_to(self, entry: Entry, history: History) -> None:
        match entry.what:
            case What.PUBLISHED:
                history.published.append(entry.at)
            case What.REPLAYED:
                history.replayed.append(entry.at)
            case What.DEFERRED:
                history.deferred.append(entry.at)
            case What.STARTED:
                history.runs.append(Run(pid=entry.pid, worker=entry.worker, started=entry.at))
            case What.CHARGED:
                for run in _open_runs_of(entry.pid, history):
                    run.charged = entry.at
            case What.FINISHED:
                for run in _open_runs_of(entry.pid, history):
                    run.ended = entry.at

    def _end_killed_runs(self, entry: Entry) -> None:
        for _, run in list(self.open_runs()):
            if entry.pid in (run.pid, run.worker):
                run.ended, run.killed = entry.at, True


def _open_runs_of(pid: int, history: History) -> list[Run]:
    return [run for run in history.runs if run.open and run.pid == pid]


#: Called with the ledger again and again while a phase runs.
Watcher = Callable[[Ledger], None]
