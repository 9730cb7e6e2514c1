"""What happened to one contender, as events, and the runs of bodies that the events tell of. Pure."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from math import inf

__all__ = ["Event", "History", "Pause", "Run", "What"]


class What(StrEnum):
    """What an event reports, and who reports it."""

    #: The worker: it takes messages.
    READY = "ready"
    #: The producer: the message of this task id is with the broker, or the id is that of a message that is.
    PUBLISHED = "published"
    #: The producer: the contender refused to publish a duplicate, its publisher has no result to wait for.
    DROPPED = "dropped"
    #: A worker's main process: it took a delivery of the message from the broker.
    RECEIVED = "received"
    #: The body: it runs.
    STARTED = "started"
    #: The body: its side effect. A row or an item is read when all is over; the time is when the body wrote it.
    EFFECT = "effect"
    #: The provider: the side effect that a body has asked for, whatever has become of the body meanwhile.
    CHARGED = "charged"
    #: The body: it returns its value; or it has ended without one.
    ENDED = "ended"
    #: The library under test: a delivery has the key, and nobody else has.
    CLAIMED = "claimed"
    #: The library under test: the outcome is stored.
    COMMITTED = "committed"
    #: Celery in the pool's process: the result is stored; only the acknowledgement is left.
    OVER = "over"
    #: The library under test: a delivery was put off, or got a stored result; or a claim was lost.
    DEFERRED = "deferred"
    REPLAYED = "replayed"
    LOST_CLAIM = "lost claim"
    #: The library under test: ``recover`` was asked about an earlier run; the state is ``done`` or ``not done``.
    RECOVERED = "recovered"
    #: The library under test: a delivery was parked; the state is the reason.
    PARKED = "parked"
    #: The operator: a parked key was resolved; the state is ``done`` or ``run``.
    RESOLVED = "resolved"
    #: The nemesis, just before the signal is sent; with a pid, or with a worker for its whole group.
    KILLED = "killed"
    PAUSED = "paused"
    #: The nemesis, just after the signal of a kill was sent: on a busy machine the process began another run meanwhile.
    STRUCK = "struck"
    #: The nemesis, just after the signal was sent.
    RESUMED = "resumed"
    #: The supervisor: a worker ended that nobody killed.
    EXITED = "exited"
    #: The producer: when all was over the broker held nothing of this contender any more.
    EMPTY = "empty"
    #: The producer: the result backend holds this state and value for the task id.
    RESULT = "result"


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """One line of the journal."""

    what: What
    #: Seconds on a clock that all processes of the machine share.
    at: float
    #: The number of the line, from 1.
    line: int = 0
    key: str = ""
    task_id: str = ""
    #: Names one run of a body.
    run: str = ""
    #: Of an effect: which of several that a body has; empty for the only one.
    step: str = ""
    pid: int = 0
    worker: str = ""
    #: What a body returns, other for each run; or what the result backend holds.
    value: str = ""
    #: The state in the result backend; or what else there is to say in a word.
    state: str = ""


@dataclass(frozen=True, slots=True)
class Pause:
    """A time in which a process stood still, in seconds; the end is infinite where it never went on."""

    begin: Event
    end: float


#: The states in which Celery lets go of a delivery without an outcome.
NO_OUTCOME = ("IGNORED", "REJECTED", "RETRY")


@dataclass(slots=True, eq=False)
class Run:
    """One run of a key's body."""

    started: Event
    #: Its effects by step.
    effects: dict[str, Event] = field(default_factory=dict)
    ended: Event | None = None
    #: When its outcome was safe: stored by the library under test, else by Celery.
    settled: Event | None = None
    #: What ended its process before that.
    killed: Event | None = None
    pauses: list[Pause] = field(default_factory=list)
    #: The time of its last sign of life.
    last_at: float = 0.0

    @property
    def key(self) -> str:
        """Its key."""
        return self.started.key

    @property
    def discarded(self) -> bool:
        """Whether no publisher, and no later delivery, can have its outcome: none came, or another's counts."""
        return self.settled is None or self.settled.state in NO_OUTCOME

    @property
    def until(self) -> float:
        """Until when its body was alive; infinite where nothing says that it is not."""
        if self.ended is not None:
            return self.ended.at
        return inf if self.killed is None else max(self.killed.at, self.last_at)

    @property
    def unsafe_until(self) -> float:
        """Until when a blow could keep its outcome from being stored; infinite where nothing came of it."""
        end = self.killed if self.settled is None else self.settled
        return inf if end is None else max(end.at, self.last_at)

    def alive_at(self, at: float) -> bool:
        """Return whether the body ran at a time."""
        return self.started.at <= at < self.until

    def hit_by(self, blow: Event) -> bool:
        """Return whether a blow falls on the process of this run."""
        return blow.pid == self.started.pid if blow.pid else blow.worker == self.started.worker


class History:
    """The events of one contender, in the order of time, and the runs that they tell of."""

    def __init__(self, events: Iterable[Event] = ()) -> None:
        self.events: list[Event] = []
        #: The runs of each key, oldest first.
        self.runs: dict[str, list[Run]] = {}
        self._by_name: dict[str, Run] = {}
        #: The runs that a blow could still hit, and those whose outcome is not stored, by process and message.
        self._unsafe: dict[str, Run] = {}
        self._latest: dict[tuple[int, str], Run] = {}
        self._stopped: dict[str | int, Event] = {}
        for event in sorted(events, key=lambda event: (event.at, event.line)):
            self.take(event)
        for begin in self._stopped.values():
            self._pause(begin, inf)

    def of(self, what: What) -> Iterator[Event]:
        """Yield the events of a kind."""
        return (event for event in self.events if event.what is what)

    def all_runs(self) -> list[Run]:
        """Return the runs of all keys, oldest first."""
        return list(self._by_name.values())

    def running(self) -> list[Run]:
        """Return the runs whose body is alive after the last event, oldest first."""
        return [run for run in self._unsafe.values() if run.ended is None]

    def take(self, event: Event) -> None:
        """Add the next event."""
        self.events.append(event)
        match event.what:
            case What.STARTED:
                run = self._by_name[event.run] = self._unsafe[event.run] = Run(event, last_at=event.at)
                self._latest[event.pid, event.task_id] = run
                self.runs.setdefault(event.key, []).append(run)
            case What.EFFECT | What.CHARGED | What.ENDED:
                self._progress(event)
            case What.COMMITTED | What.OVER:
                self._settle(event)
            case What.KILLED | What.STRUCK | What.EXITED:
                for run in [run for run in self._unsafe.values() if run.hit_by(event)]:
                    run.killed = event
                    del self._unsafe[run.started.run]
            case What.PAUSED:
                self._stopped[event.pid or event.worker] = event
            case What.RESUMED:
                begin = self._stopped.pop(event.pid or event.worker, None)
                if begin is not None:
                    self._pause(begin, event.at)

    def _progress(self, event: Event) -> None:
        run = self._by_name[event.run]
        # A charge is no sign of life: it is made although the process that has asked for it is gone.
        if event.what is not What.CHARGED:
            run.last_at = event.at
        if event.what is What.ENDED:
            run.ended = event
        else:
            run.effects[event.step] = event

    def _settle(self, event: Event) -> None:
        run = self._latest.get((event.pid, event.task_id))
        if run is not None and run.ended is not None and self._unsafe.pop(run.started.run, None) is not None:
            run.settled = event

    def _pause(self, begin: Event, end: float) -> None:
        for run in self._by_name.values():
            here = run.started.pid == begin.pid if begin.pid else run.started.worker == begin.worker
            if here and run.started.at <= end and run.unsafe_until > begin.at:
                run.pauses.append(Pause(begin, end))
