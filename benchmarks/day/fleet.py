"""A fleet of workers and the messages of its hot keys, delivery by delivery, in virtual time."""

import heapq
import math
from array import array
from bisect import bisect
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import count, product
from random import Random
from typing import Final

from benchmarks.day.partition import Partition
from benchmarks.day.retries import Tries, VirtualClock
from idempotent_tasks.core.busy import FRESH_SECONDS
from idempotent_tasks.core.delivery import MOST_UNSEEN
from idempotent_tasks.core.processes import Process, running_as
from idempotent_tasks.core.store import MOST_NOTED
from idempotent_tasks.messaging.deferral import countdown_seconds
from idempotent_tasks.worker.waiting import LET_GO_PER_SLOT

__all__ = ["SIZES", "Fleet", "Load", "Rules", "Tally"]

#: Bytes of a record beside its result, as docs/explanation/cost.md has them: of a finished one; how many more it has
#: while it has no outcome; and of each noted copy.
RECORD_BYTES: Final = 460
RUNNING_BYTES: Final = 80
COPY_BYTES: Final = 40
KILOBYTE: Final = 1024
#: The numbers of duplicates at which another tally begins.
SIZES: Final = (100, 1000)

#: What a delivery does: it yields for how many seconds it waits.
Steps = Generator[float, None, None]
#: The same, and whether DynamoDB answered.
Write = Generator[float, None, bool]


@dataclass(frozen=True, kw_only=True)
class Rules:
    """How deliveries of a busy key are treated."""

    #: Whether a process remembers for `FRESH_SECONDS` that a key is busy, and defers first deliveries of it unasked.
    known: bool = True
    #: Whether the worker that runs the body keeps the copies that it receives, and lets them go when the body ends.
    #: Here it keeps all, where the library has a few of them go on by their countdown.
    wakeups: bool = True


@dataclass(frozen=True, kw_only=True)
class Load:
    """What does not change during a run; times are in seconds."""

    body_seconds: float = 0.1
    #: How long a request to DynamoDB takes, and a publish.
    request_seconds: float = 0.005
    publish_seconds: float = 0.002
    #: How long a claim lives: the hard time limit and `grace`.
    claim_seconds: float = 35.0
    result_bytes: int = KILOBYTE
    #: Bodies that the fleet can run at once; those that other keys occupy on average; and how many a worker has.
    slots: int
    occupied: int = 0
    concurrency: int = 10
    #: Whether the slots of a worker are threads of one process.
    threads: bool = False

    @property
    def workers(self) -> int:
        """How many workers there are."""
        return max(self.slots // self.concurrency, 1)

    @property
    def processes(self) -> int:
        """How many processes run bodies."""
        return self.workers if self.threads else self.slots

    @property
    def finished_units(self) -> int:
        """The write units of a write to a finished record."""
        return math.ceil((RECORD_BYTES + self.result_bytes) / KILOBYTE)


@dataclass(kw_only=True)
class Tally:
    """What a run has counted of hot keys; waits are in seconds."""

    keys: int = 0
    messages: int = 0
    results: int = 0
    #: Bodies that began; more than there are keys if a claim expired before its commit.
    bodies: int = 0
    deliveries: int = 0
    #: Tries of requests, and those that were throttled.
    requests: int = 0
    throttled: int = 0
    #: Write units of those that were not throttled, which are billed.
    units: int = 0
    #: Deferrals: without a request, because the key was known to be busy; and because DynamoDB did not answer.
    known: int = 0
    unanswered: int = 0
    woken: int = 0
    #: From the end of its key's body to the result of each duplicate, and from there to each commit.
    waits: "array[float]" = field(default_factory=lambda: array("d"))
    commits: "array[float]" = field(default_factory=lambda: array("d"))

    @classmethod
    def sum(cls, tallies: Iterable["Tally"]) -> "Tally":
        """Return what all of them have counted."""
        whole = cls()
        for each, name in product(tallies, vars(whole)):
            setattr(whole, name, getattr(whole, name) + getattr(each, name))
        return whole


@dataclass(eq=False, slots=True)
class Key:
    """A key and its record."""

    tally: Tally
    #: Until when a claim holds it; -inf for none.
    held_until: float = -math.inf
    finished: bool = False
    #: When its body returned.
    ended: float = math.inf
    #: When the copies are due that its record notes, as a heap.
    noted: list[float] = field(default_factory=list)
    #: Until when a process does not ask again, by process.
    known: dict[int, float] = field(default_factory=dict)
    #: Copies that the worker holds which runs the body.
    held: deque["Message"] = field(default_factory=deque)


@dataclass(eq=False, slots=True)
class Message:
    """A message, which is in one place at a time."""

    key: Key
    deferrals: int = 0
    #: Whether its copy has a token, which its next deferral notes.
    is_copy: bool = False
    #: Claims whose answers it has not seen.
    unseen: int = 0
    #: What waited for the same run and was not let go yet, if this one was.
    others: deque["Message"] | None = None


class Fleet:
    """Plays deliveries.

    Args:
        load: what does not change.
        rules: how a busy key is treated.
        partition: where the keys are.
        seed: decides all that is random here.
    """

    def __init__(self, load: Load, rules: Rules, partition: Partition, seed: int) -> None:
        #: By the number of duplicates: below each of `SIZES`, and the rest.
        self._tallies = [Tally() for _ in range(len(SIZES) + 1)]
        self._load, self._rules, self._partition = load, rules, partition
        self._chance = Random(f"fleet {seed}")
        self._clock = VirtualClock()
        self._process = Process()
        self._process.clock, self._process.random = self._clock, Random(f"process {seed}")
        self._tries = Tries(load.request_seconds, load.claim_seconds, Random(f"tries {seed}"))
        self._free = load.slots - load.occupied
        if self._free < 1:
            raise ValueError(f"other keys occupy {load.occupied} of {load.slots} workers")
        self._queue: deque[Message] = deque()
        self._order = count()
        self._due: list[tuple[float, int, Steps | Callable[[], None]]] = []

    def run(self, publishes: Iterator[tuple[float, list[float]]]) -> list[Tally]:
        """Play keys until nothing is left to do; return what was counted, by the number of duplicates (`SIZES`).

        Args:
            publishes: in the order of time, when the first message of a key is published, and how many seconds later
                each of its duplicates is.
        """
        with running_as(self._process):
            self._publish_next(publishes)
            while self._due:
                self._clock.at, _, action = heapq.heappop(self._due)
                if callable(action):
                    action()
                else:
                    self._advance(action)
        return self._tallies

    def _after(self, seconds: float, action: Steps | Callable[[], None]) -> None:
        heapq.heappush(self._due, (self._clock.at + max(seconds, 0.0), next(self._order), action))

    def _advance(self, steps: Steps) -> None:
        for seconds in steps:
            self._after(seconds, steps)
            return

    def _publish_next(self, publishes: Iterator[tuple[float, list[float]]]) -> None:
        following = next(publishes, None)
        if following is None:
            return
        at, later = following

        def publish() -> None:
            key = Key(self._tallies[bisect(SIZES, len(later))])
            key.tally.keys += 1
            key.tally.messages += 1 + len(later)
            for seconds in (0.0, *later):
                self._send(Message(key), seconds)
            self._publish_next(publishes)

        self._after(at - self._clock.at, publish)

    def _send(self, message: Message, seconds: float) -> None:
        """Have a message come to the queue in so many seconds."""

        def arrive() -> None:
            self._queue.append(message)
            self._start()

        self._after(seconds, arrive)

    def _start(self) -> None:
        while self._free and self._queue:
            self._free -= 1
            self._advance(self._occupy(self._queue.popleft()))

    def _occupy(self, message: Message) -> Steps:
        """Deliver a message to a slot, and free the slot."""
        message.key.tally.deliveries += 1
        others, message.others = message.others, None
        yield from self._deliver(message, self._chance.randrange(self._load.processes))
        self._let_go(others, 1)
        self._free += 1
        self._start()

    def _deliver(self, message: Message, process: int) -> Steps:
        key = message.key
        if self._rules.known and not message.is_copy and self._clock.at < key.known.get(process, -math.inf):
            key.tally.known += 1
            yield from self._defer(message, key.held_until - self._clock.at)
            return
        yield from self._withdraw(message)
        if not (yield from self._write(key, self._tries.claim)):
            key.tally.unanswered += 1
            yield from self._give_up(message)
        elif key.finished:
            self._finish(message)
        elif key.held_until >= self._clock.at:
            key.known[process] = self._clock.at + FRESH_SECONDS
            yield from self._defer(message, key.held_until - self._clock.at, noting=True)
        else:
            yield from self._run(message)

    def _run(self, message: Message) -> Steps:
        key = message.key
        key.tally.bodies += 1
        key.held_until = self._clock.at + self._load.claim_seconds
        yield self._load.body_seconds
        returned, left = self._clock.at, key.held_until - self._clock.at
        key.ended = min(key.ended, returned)
        answered = yield from self._write(key, lambda: self._tries.commit(left), self._load.finished_units)
        key.tally.commits.append(self._clock.at - returned)
        # An outcome that was not recorded is the result of this message only.
        key.finished = key.finished or answered
        if returned > key.ended:
            self._finish(message)
        else:
            key.tally.results += 1
        held, key.held = key.held, deque()
        self._let_go(held, LET_GO_PER_SLOT * self._load.concurrency)

    def _let_go(self, held: deque[Message] | None, number: int) -> None:
        """Let some of the messages go that a run's end has freed; each is followed by another one."""
        while held and number:
            copy, number = held.popleft(), number - 1
            copy.others = held
            copy.key.tally.woken += 1
            self._send(copy, 0.0)

    def _finish(self, message: Message) -> None:
        tally = message.key.tally
        tally.results += 1
        tally.waits.append(self._clock.at - message.key.ended)

    def _withdraw(self, message: Message) -> Steps:
        """Release what earlier deliveries may have claimed; stop at the first that is not answered."""
        for _ in range(message.unseen):
            if not (yield from self._write(message.key, self._tries.withdrawal)):
                return

    def _give_up(self, message: Message) -> Steps:
        """Release what a claim without an answer may have claimed, and defer."""
        message.unseen = min(message.unseen + 1, MOST_UNSEEN)
        yield from self._write(message.key, self._tries.withdrawal)
        yield from self._defer(message, None)

    def _defer(self, message: Message, claim_left: float | None, *, noting: bool = False) -> Steps:
        """Publish the message again with a countdown; note that in the record if it is a copy itself."""
        key, was_copy = message.key, message.is_copy
        countdown = countdown_seconds(message.deferrals, claim_left, None)
        yield self._load.publish_seconds
        message.deferrals, message.is_copy = message.deferrals + 1, True
        is_running = key.held_until >= self._clock.at and not key.finished
        if self._rules.wakeups and is_running and not self._chance.randrange(self._load.workers):
            # The worker that gets the copy is the one that runs the body.
            key.held.append(message)
        else:
            self._send(message, countdown)
        due = self._clock.at + countdown
        if noting and was_copy and (yield from self._write(key, self._tries.note)):
            self._note(key, due)

    def _note(self, key: Key, due: float) -> None:
        while key.noted and key.noted[0] <= self._clock.at:
            heapq.heappop(key.noted)
        if not key.finished and len(key.noted) < MOST_NOTED:
            heapq.heappush(key.noted, due)

    def _units(self, key: Key) -> int:
        """Return the write units of a write that leaves a key's record as large as it is."""
        if key.finished:
            return self._load.finished_units
        running = RUNNING_BYTES + COPY_BYTES * len(key.noted)
        return math.ceil((RECORD_BYTES + running) / KILOBYTE)

    def _write(self, key: Key, tries: Callable[[], list[float]], least_units: int = 1) -> Write:
        """Send a request, and again while it is throttled, at the library's own moments."""
        sent = self._clock.at
        yield self._load.request_seconds
        if self._is_taken(key, least_units):
            return True
        for moment in tries()[1:]:
            yield sent + moment + self._load.request_seconds - self._clock.at
            if self._is_taken(key, least_units):
                return True
        return False

    def _is_taken(self, key: Key, least_units: int) -> bool:
        units = max(self._units(key), least_units)
        key.tally.requests += 1
        if self._partition.take(self._clock.at, units):
            key.tally.units += units
            return True
        key.tally.throttled += 1
        return False
