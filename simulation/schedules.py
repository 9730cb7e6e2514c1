"""Every schedule of two deliveries of one key, with a fault at every place where one can be.

A schedule is a list of choices: which request or answer arrives next, which body ends, whether time passes, and what
goes wrong.  The search plays schedules from their beginning, depth first, and leaves a schedule where it comes to a
state from which another went on before.
"""

import heapq
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from math import inf
from typing import Any, Final

from botocore.exceptions import ClientError, ReadTimeoutError

from idempotent_tasks.core.lease import RunContext
from idempotent_tasks.core.policy import Idempotency
from idempotent_tasks.core.processes import running_as, this_process
from idempotent_tasks.core.retry import time_left
from simulation.checker import Violation, check
from simulation.faults import Faults
from simulation.history import History
from simulation.linear import unexplained
from simulation.network import ENDPOINT, READ_SECONDS, DirectClient, Service
from simulation.process import SimulatedProcess, check_alive
from simulation.provider import SETTLE_SECONDS
from simulation.scheduler import START, Scheduler, Strand
from simulation.small import HARD_LIMIT_SECONDS, LEASE_SECONDS, Message, SmallTask, SmallWorld, never_called
from simulation.step_bodies import Steps
from simulation.tills import TILLS, Writes

__all__ = ["FAULTS", "QUICK", "SCENARIOS", "Found", "Scenario", "replay", "search"]

#: What can go wrong, and the kind that the checker knows it by.
FAULTS: Final = {
    "lose request": "request-lost",
    "delay request": "request-late",
    "double request": "doubled",
    "lose answer": "answer-lost",
    "delay answer": "answer-late",
    "crash": "child-killed",
    "stop": "child-stopped",
    "interrupt": "soft-limit",
}
#: The kinds of entries whose order the checker reads.
JUDGED: Final = frozenset(
    {"began", "over", "stopped", "written", "asked", "answered", "returns-writes", "applied", "reported"}
    | {"step-ran", "step-done", "step-returned", "step-ended", "step-written", "step-read"}
)
#: Seconds for which an answer is late at most while its client waits for it.
LATEST_ANSWER_SECONDS: Final = 60.0
#: A schedule that has not ended after so many seconds has lost something, or runs in circles.
GIVE_UP: Final = 600.0


@dataclass(frozen=True, slots=True)
class Scenario:
    """Two deliveries, and what their bodies do."""

    name: str
    task: SmallTask
    #: The task ids of the two; equal where one message is delivered twice.
    ids: tuple[str, str] = ("task-0", "task-1")
    machines: tuple[str, str] = ("machine-0", "machine-1")
    watched: bool = False
    #: How many runs raise, or have their writes refused, before one returns.
    failures: int = 0
    #: Seconds for which a body may last.
    body_seconds: float = 0.0
    #: How many bytes the result of each step of a body has, in order.
    steps: tuple[int, ...] = ()
    #: Whether its search takes more than ten minutes.
    long: bool = False


_LIMITED: Final = SmallTask("limited", Idempotency(key="order", grace=2), HARD_LIMIT_SECONDS)
_LEASED: Final = SmallTask("leased", Idempotency(key="order", lease=6))
_OWN: Final = SmallTask("own", Idempotency(lease=6), by_id=True)
_LOCKED: Final = SmallTask("exclusive", Idempotency.exclusive(lease=6, on_busy="defer"), by_id=True, locked=True)
_PARKS: Final = SmallTask("parks", Idempotency(key="order", grace=2, on_rerun="park"), HARD_LIMIT_SECONDS)
_RECOVERS: Final = SmallTask(
    "recovers", Idempotency(key="order", grace=2, recover=never_called, settle=SETTLE_SECONDS), HARD_LIMIT_SECONDS
)
_WRITES: Final = replace(_LIMITED, name="writes-limited", writes=True)
_WRITES_LEASED: Final = replace(_LEASED, name="writes", writes=True)
SCENARIOS: Final = (
    Scenario("a claim for the time limit", _LIMITED),
    Scenario("a claim that is renewed", _LEASED, body_seconds=3.0),
    Scenario("a run that fails", _LIMITED, failures=1),
    Scenario("a reaper", _LIMITED, machines=("machine-0", "machine-0"), watched=True),
    Scenario("no reaper, one machine", _LIMITED, machines=("machine-0", "machine-0")),
    Scenario("one message twice", _OWN, ids=("task-0", "task-0")),
    Scenario("a rerun is parked", _PARKS, machines=("machine-0", "machine-0"), watched=True, failures=1),
    Scenario("a rerun is asked about", _RECOVERS, machines=("machine-0", "machine-0"), watched=True, failures=1),
    Scenario("writes with the outcome", _WRITES),
    Scenario("writes that are refused", _WRITES, failures=1),
    Scenario("writes under a claim that is renewed", _WRITES_LEASED),
    Scenario("a step beside the record", replace(_LIMITED, name="steps-limited"), failures=1, steps=(3_000,)),
    Scenario("a lock", _LOCKED, long=True),
)
#: The scenarios and faults of a bound that takes some seconds.
QUICK: Final = (
    tuple(each for each in SCENARIOS if each.task is _LIMITED and not each.watched),
    frozenset(FAULTS) - {"interrupt"},
)


class _Left(BaseException):
    """The schedule comes to a state from which another went on before."""


@dataclass(eq=False, slots=True)
class _Flight:
    """Something under way: a request, its answer, or a body."""

    kind: str
    #: What it is, the same in every schedule that leads to the same state.
    name: tuple[str, int, int]
    process: SimulatedProcess
    arrive: Callable[[], None]
    #: Called when it is lost or late: its sender stops waiting after a while.
    miss: Callable[[], None] = lambda: None
    #: Of a request: arrives once more, unanswered.
    repeat: Callable[[], None] = lambda: None
    late: bool = False
    #: Of a body: by when it is over; of an answer that is late: by when it arrives.
    until: float = 0.0


Choice = Callable[[], None]


class _ChoosingScheduler(Scheduler):
    """Runs what is due at once in a fixed order; whatever else can happen next is a choice.

    Args:
        choose: takes how many options there are, and returns the index of one.
        budget: how many faults may happen.
        kinds: of these.
    """

    def __init__(self, choose: Callable[[int], int], budget: int, kinds: frozenset[str]) -> None:
        super().__init__(random.Random(0))
        self.choose = choose
        self.budget = budget
        self._kinds = kinds
        self.flights: list[_Flight] = []
        self.world: _ChosenWorld
        #: By process: a digest of all that it has seen, and when.
        self.seen: dict[Any, int] = {}
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self._stirred = False

    def at(self, when: float, call: Callable[[], None]) -> None:
        """Call at a time, in the hub."""
        heapq.heappush(self._due, (max(when, self.now), next(self._order), call))

    def tell(self, process: Any, *what: Any) -> None:
        """Add to what a process has seen."""
        self.seen[process] = hash((self.seen.get(process), self.now, what))

    def switch(self, strand: Strand) -> None:
        """Let a strand run."""
        self._stirred = True
        self.tell(strand.owner, strand.waits)
        super().switch(strand)

    def run(self, until: float, done: Callable[[], bool]) -> bool:
        """Run to the end of everything, or until a time; return whether the condition holds then."""
        while not self.failures and self.now <= until:
            if self._due and self._due[0][0] <= self.now:
                heapq.heappop(self._due)[-1]()
                continue
            options = list(self._options(is_over=done()))
            if not options:
                break
            place = self.choose(len(options)) if len(options) > 1 else 0
            self._stirred = True
            options[place]()
        return done()

    def _options(self, *, is_over: bool) -> Iterator[Choice]:
        """Yield what can happen next, what usually does first."""
        prompt = [each for each in self.flights if not each.late and self._can_arrive(each)]
        for flight in prompt:
            yield partial(self._arrive, flight)
        awaited = [*prompt, *(each for each in self.flights if each.late and each.kind == "answer")]
        if not is_over and self._due and all(each.until >= self._due[0][0] for each in awaited):
            yield self._pass_time
        for flight in self.flights:
            if flight.late and self._can_arrive(flight):
                yield partial(self._arrive, flight)
        busy = list(self.world.busy)
        for process in busy:
            if process.stands_still:
                yield partial(self._go_on, process)
        if self.budget and not is_over:
            for flight in prompt:
                yield from self._mishaps(flight)
            for process in busy:
                yield from self._disasters(process)

    def _can_arrive(self, flight: _Flight) -> bool:
        return flight.kind != "body" or (flight.process.alive and not flight.process.stands_still)

    def _arrive(self, flight: _Flight) -> None:
        self.flights.remove(flight)
        flight.arrive()

    def _pass_time(self) -> None:
        """Let time pass until something happens."""
        self._stirred = False
        while self._due and not self._stirred:
            self.now, _, call = heapq.heappop(self._due)
            call()

    def _go_on(self, process: SimulatedProcess) -> None:
        self.tell(process, "go on")
        process.go_on()

    def _fault(self, name: str, process: SimulatedProcess, act: Callable[[], None]) -> Iterator[Choice]:
        def happen() -> None:
            self.budget -= 1
            self.tell(process, name)
            counts = self.world.history.counts
            counts[FAULTS[name]] = counts.get(FAULTS[name], 0) + 1
            act()

        if name in self._kinds:
            yield happen

    def _mishaps(self, flight: _Flight) -> Iterator[Choice]:
        if flight.kind == "body":
            return

        def lose() -> None:
            self.flights.remove(flight)
            flight.miss()

        def delay() -> None:
            flight.late = True
            flight.until = self.now + LATEST_ANSWER_SECONDS
            # Who waits for an answer that is late waits on, or that answer is lost.
            if flight.kind == "request":
                flight.miss()

        def double() -> None:
            self._arrive(flight)
            again = _Flight("request", (*flight.name[:2], 1), flight.process, flight.repeat, late=True)
            self.flights.append(again)

        process = flight.process
        yield from self._fault(f"lose {flight.kind}", process, lose)
        yield from self._fault(f"delay {flight.kind}", process, delay)
        if flight.kind == "request":
            yield from self._fault("double request", process, double)

    def _disasters(self, process: SimulatedProcess) -> Iterator[Choice]:
        if not process.alive or process.stands_still:
            return
        yield from self._fault("crash", process, process.kill)
        yield from self._fault("stop", process, process.stop)
        yield from self._fault("interrupt", process, lambda: self.world.interrupt(process))

    def state(self) -> int:
        """Return a digest of all that decides what can happen from now on and how it is judged.

        Code is deterministic: what a process is about to do follows from what it has seen.  What the checker reads
        besides, the writes and the runs in their order, is in the digest too, so that a schedule that is left here has
        the same verdict as the one that went on.
        """
        flights = sorted((each.kind, each.late, each.name) for each in self.flights)
        processes = sorted((str(each.name()), digest) for each, digest in self.seen.items() if each is not None)
        due = sorted((when, getattr(call, "__qualname__", "")) for when, _, call in self._due)
        return hash((self.now, self.budget, *flights, *processes, *due, self.world.digest()))


class _ChosenClient(DirectClient):
    """A process's client whose requests and answers arrive when it is chosen."""

    def __init__(self, service: Service, scheduler: _ChoosingScheduler) -> None:
        super().__init__(service)
        self._scheduler = scheduler
        self._requests = count()

    def _send(self, operation: str, parameters: dict[str, Any]) -> Any:
        service, scheduler, process = self._service, self._scheduler, this_process()
        assert isinstance(process, SimulatedProcess)
        check_alive()
        if scheduler.running is None:
            return super()._send(operation, parameters)
        name = (process.name() or "", next(self._requests))
        received: list[Callable[[], Any]] = []
        waits = True

        def until(wake: Callable[[], None]) -> None:
            patience = min(READ_SECONDS, max(time_left(), 0.0))

            def miss() -> None:
                scheduler.after(patience, wake)

            def arrive() -> None:
                answer = service.carry_out(operation, parameters, process)
                if waits and process.alive:
                    seen = _shown(answer)
                    scheduler.flights.append(
                        _Flight("answer", (*name, seen), process, lambda: reply(answer, seen), miss)
                    )

            def repeat() -> None:
                service.carry_out(operation, parameters, process)

            def reply(answer: Callable[[], Any], seen: int) -> None:
                received.append(answer)
                scheduler.tell(process, *name, seen)
                wake()

            # What is asked follows from what its sender has seen.
            scheduler.flights.append(_Flight("request", (*name, 0), process, arrive, miss, repeat))

        scheduler.wait(until)
        waits = False
        if not received:
            raise ReadTimeoutError(endpoint_url=ENDPOINT, error="timed out")
        return received[0]()


def _shown(answer: Callable[[], Any]) -> int:
    """Return a digest of what an answer says."""
    try:
        return hash(repr(answer()))
    except ClientError as error:
        return hash(repr(error.response))


class _ChosenWorld(SmallWorld):
    """A small world of two deliveries."""

    def __init__(self, scenario: Scenario, scheduler: _ChoosingScheduler) -> None:
        self.scenario = scenario
        self.choosing = scheduler
        scheduler.world = self
        history = History(0, scenario.task.name)
        super().__init__(
            scheduler,
            history,
            scenario.task,
            lambda service: _ChosenClient(service, scheduler),
            watched=scenario.watched,
        )
        self.draw = scheduler.draw
        #: None of its own: what goes wrong is chosen.
        self.faults = Faults(self.draw, {}, LEASE_SECONDS)
        self._places = dict(zip(scenario.ids, scenario.machines, strict=True))
        self._judged = 0
        #: How many entries are in that digest.
        self._digested = 0

    def new_process(self, machine: str) -> SimulatedProcess:
        """Start a process whose store knows DynamoDB's time already, as it does after any request."""
        process = super().new_process(machine)
        with running_as(process):
            self.store_of(process).note_dispatch("a key that nobody has", "")
        return process

    def again(self, message: Message, seconds: float) -> None:
        """Deliver a message once more, to its machine."""
        self.note("sent again", message=message, seconds=seconds)
        self.scheduler.after(seconds, lambda: self.deliver(message, self._places[message.id]))

    def body(self, run: RunContext, message: Message, number: int) -> int:
        """Call each step and last as long as chosen; raise as often as the scenario says."""
        steps = Steps(self, run, number, asks=False, swallows=False)
        for place, size in enumerate(self.scenario.steps):
            steps.call({"name": f"step {place}", "seconds": 0.0, "bytes": size, "wrong": "", "inputs": 0})
        scheduler, process = self.choosing, this_process()
        assert isinstance(process, SimulatedProcess)

        def until(wake: Callable[[], None]) -> None:
            most = scheduler.now + self.scenario.body_seconds
            scheduler.flights.append(_Flight("body", (process.name() or "", number, 0), process, wake, until=most))

        scheduler.wait(until)
        if number <= self.scenario.failures and not self.task.writes:
            raise ValueError("simulated: the body fails")
        return number

    def writes(self, run: RunContext, number: int) -> Writes:
        """Have the writes of the first runs refused, as often as the scenario says."""
        writes = super().writes(run, number)
        if number <= self.scenario.failures:
            nothing = {"TableName": TILLS, "Key": {"id": {"S": "nothing"}}}
            writes.append({"ConditionCheck": {**nothing, "ConditionExpression": "attribute_exists(id)"}})
        return writes

    def deliver(self, message: Message, machine: str) -> None:
        """Deliver a message, and tell its process of it."""
        super().deliver(message, machine)
        delivery, _ = next(reversed(self.busy.values()))
        self.choosing.tell(delivery.child, message, delivery.request.owner)

    def digest(self) -> int:
        """Return a digest of what belongs to no process, and of what the checker reads of what has happened."""
        entries = self.history.entries
        for entry in entries[self._digested :]:
            # What a process notes besides follows from what it has seen.
            if entry.kind in JUDGED:
                self._judged = hash((self._judged, round(entry.at, 3), entry.kind, repr(entry.details)))
        self._digested = len(entries)
        free = [process.name() for each in self._free.values() for process in each]
        busy = [process.name() for process in self.busy]
        return hash((self._judged, *free, *busy, *self.history.results.items(), *self.history.counts))

    def set_up(self) -> None:
        """Start the machines, and deliver both messages."""
        for machine in dict.fromkeys(self.scenario.machines):
            self.start(machine)
        for task_id, machine in zip(self.scenario.ids, self.scenario.machines, strict=True):
            self.note("published", id=task_id, order="order", link=False)
            self.publish(Message(task_id, "order"), machine)


@dataclass
class Found:
    """What the search of a scenario showed."""

    schedules: int = 0
    #: How many of them were left at a state from which another went on.
    left: int = 0
    states: int = 0
    #: Of each violation: the choices that lead to it.
    violations: list[tuple[Violation, tuple[int, ...]]] = field(default_factory=list)
    failures: list[BaseException] = field(default_factory=list)
    #: Whether every schedule was played.
    complete: bool = False

    @property
    def is_broken(self) -> bool:
        """Whether anything was violated, or failed."""
        return bool(self.violations or self.failures)

    def add(self, other: "Found") -> None:
        """Add what the search of another scenario showed."""
        self.schedules += other.schedules
        self.left += other.left
        self.states += other.states
        self.violations += other.violations
        self.failures += other.failures
        self.complete = self.complete and other.complete

    def describe(self) -> str:
        """Return the counts as a text."""
        part = "" if self.complete else ", not all"
        return (
            f"{self.schedules} schedules{part}, {self.left} of them left early, {self.states} states, "
            f"{len(self.violations) + len(self.failures)} violations"
        )


def _play(
    scenario: Scenario, choose: Callable[[_ChoosingScheduler, int], int], faults: int, kinds: frozenset[str]
) -> History:
    """Play one schedule of a scenario; what ``choose`` raises ends it."""
    scheduler = _ChoosingScheduler(lambda options: choose(scheduler, options), faults, kinds)
    world = _ChosenWorld(scenario, scheduler)
    try:
        world.set_up()
        world.history.ended = scheduler.run(START + GIVE_UP, lambda: not world.unsettled)
    finally:
        world.close()
    return world.history


class _Search:
    """A depth-first search over the choices of one scenario."""

    def __init__(self) -> None:
        self.states: set[int] = set()
        #: Beginnings of schedules that were not played yet.
        self.open: list[tuple[int, ...]] = [()]
        self.chosen: list[int] = []
        self._prefix: tuple[int, ...] = ()

    def begin(self) -> None:
        """Begin the next schedule."""
        self._prefix, self.chosen = self.open.pop(), []

    def choose(self, scheduler: _ChoosingScheduler, options: int) -> int:
        """Choose as the beginning says, then the first; raise `_Left` in a state that was seen before."""
        place = len(self.chosen)
        if place < len(self._prefix):
            self.chosen.append(self._prefix[place])
            return self.chosen[-1]
        state = scheduler.state()
        if state in self.states:
            raise _Left
        self.states.add(state)
        self.open.extend((*self.chosen, other) for other in range(options - 1, 0, -1))
        self.chosen.append(0)
        return 0


def replay(scenario: Scenario, choices: Sequence[int], *, faults: int = 1) -> History:
    """Play the schedule with these choices, as `Found.violations` has them."""
    left = iter(choices)
    return _play(scenario, lambda *_: next(left), faults, frozenset(FAULTS))


def _judged(history: History) -> list[Violation]:
    """Return what either checker finds in a history."""
    keys = unexplained(history.calls, doubled="doubled" in history.counts)
    return check(history) + [Violation("linearizable", inf, f"no order explains the calls of {key}") for key in keys]


def search(
    scenario: Scenario,
    *,
    faults: int = 1,
    kinds: frozenset[str] = frozenset(FAULTS),
    most: float = inf,
    first_only: bool = False,
) -> Found:
    """Play every schedule of a scenario, and check it.

    Args:
        scenario: what is delivered.
        faults: how many may happen in a schedule.
        kinds: of these.
        most: how many schedules to play at most.
        first_only: whether to stop at the first violation.
    """
    found, tree = Found(), _Search()
    while tree.open and found.schedules < most and not (first_only and found.is_broken):
        tree.begin()
        found.schedules += 1
        try:
            history = _play(scenario, tree.choose, faults, kinds)
        except _Left:
            found.left += 1
            continue
        found.failures += history.failures
        found.violations += [(each, tuple(tree.chosen)) for each in _judged(history)]
    found.states, found.complete = len(tree.states), not tree.open
    return found
