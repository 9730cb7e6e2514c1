"""Histories of the small world by chance: a seed decides what is published, what bodies do, and what goes wrong."""

import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Final

from idempotent_tasks.core.lease import RunContext
from idempotent_tasks.core.processes import this_process
from simulation.faults import LATEST_IN_LEASES, NETWORK_FAULTS, Faults
from simulation.history import TRIED_ON_SECONDS, History
from simulation.network import Service, SimulatedClient
from simulation.process import SimulatedClock, SimulatedProcess
from simulation.scheduler import START, Scheduler
from simulation.small import LEASE_SECONDS, TASKS, FinalError, HandedOver, Message, SmallTask, SmallWorld

__all__ = ["RATES", "RandomWorld", "play", "play_in", "play_tasks"]

#: After so many seconds nothing goes wrong any more, so that every delivery can end.
FAULTS_END: Final = 60.0
#: A history that has not ended by then has lost something, or runs in circles.
GIVE_UP: Final = 7200.0
MACHINES: Final = ("machine-0", "machine-1")
#: Rates of faults; in each history most kinds are absent, so that those that are there can be long at work.
RATES: Final = dict.fromkeys(NETWORK_FAULTS, 0.05) | {
    "message-doubled": 0.3,
    "child-killed": 0.5,
    "child-stopped": 0.5,
    "worker-killed": 0.3,
    "store-away": 0.3,
    "clock-set": 0.3,
    "soft-limit": 0.5,
}
#: What leaves a run behind that has lost its claim and does not know it: the rarest windows need one of these.
ZOMBIE_KINDS: Final = ("answer-late", "child-stopped", "request-late", "store-away")
#: The most kinds of one history but for those, and how often each of those strikes that strike by themselves.
MOST_KINDS: Final = 4
STRIKES: Final = 4


class RandomWorld(SmallWorld):
    """A small world whose every choice is drawn from a seed.

    Args:
        seed: of the history.
        tasks: by name: those of which it has one.
    """

    def __init__(self, seed: int, tasks: Mapping[str, SmallTask]) -> None:
        self.draw = draw = random.Random(seed)
        scheduler = Scheduler(draw)
        self.faults = Faults(draw, self.rates(draw), LEASE_SECONDS)
        #: By machine: seconds that its clock is ahead, and those that it gains in each second.
        self._clocks = {machine: self._new_clock() for machine in MACHINES}
        #: It does not end before.
        self.until = START + FAULTS_END
        task = tasks[draw.choice(sorted(tasks))]
        super().__init__(
            scheduler, History(seed, task.name), task, self._connected, watched=draw.choice([True, True, False])
        )
        self.faults.on_fault = lambda kind: self.note("fault", fault=kind, process=this_process().name())

    def rates(self, draw: random.Random) -> dict[str, float]:
        """Return the kinds of faults of the history, and how likely each is."""
        common = draw.sample(sorted(RATES), draw.randint(0, MOST_KINDS))
        kinds = sorted({*common, *draw.sample(ZOMBIE_KINDS, draw.choice([0, 0, 1, 2]))})
        return {kind: RATES[kind] for kind in kinds}

    def _connected(self, service: Service) -> SimulatedClient:
        return SimulatedClient(service, self.scheduler, self.faults)

    def _new_clock(self) -> tuple[float, float]:
        offset = self.draw.choice([0.0, 0.0, self.draw.uniform(-600, 600)])
        return offset, self.draw.uniform(-0.0001, 0.0001)

    def clock_of(self, machine: str) -> SimulatedClock:
        """Return a clock that is as wrong as its machine's."""
        return SimulatedClock(self.scheduler, *self._clocks[machine])

    def again(self, message: Message, seconds: float) -> None:
        """Deliver a message once more, to any machine, a little later than asked for."""
        machine = self.draw.choice(MACHINES)
        self.scheduler.after(seconds * self.draw.uniform(1.0, 1.25), lambda: self.deliver(message, machine))

    def set_up(self) -> None:
        """Publish messages, and plan what befalls the processes."""
        draw, scheduler = self.draw, self.scheduler
        for machine in MACHINES:
            self.start(machine)
        for number in range(draw.choice([1, 2, 2, 3])):
            message = Message(f"task-{number}", f"order-{draw.choice([0, 0, 0, 0, 1])}", self.new_plan())
            scheduler.after(draw.uniform(0, 15), partial(self._take, message))
        strikes: dict[str, Callable[[], None]] = {
            "child-killed": self._kill_child,
            "child-stopped": self._stop_child,
            "worker-killed": self._kill_machine,
            "store-away": self._take_store_away,
            "clock-set": self._set_clock,
            "soft-limit": self._interrupt_child,
        }
        for kind, strike in strikes.items():
            for _ in range(STRIKES):
                scheduler.after(draw.uniform(0, FAULTS_END / 2), partial(self._strike, kind, strike))
        scheduler.after(FAULTS_END, self._end_faults)

    def _strike(self, kind: str, strike: Callable[[], None]) -> None:
        if self.faults.happens(kind, shows=True):
            strike()

    def _end_faults(self) -> None:
        self.faults.active = False
        self.service.away_until = 0.0
        if self.history.of("Unrecorded"):
            self.until += TRIED_ON_SECONDS
            self.scheduler.at(self.until, lambda: None)

    def new_plan(self) -> Any:
        """Return the plan of one message."""
        draw = self.draw
        return [
            ("sleep", round(draw.choice([0.01, draw.uniform(0, 3), draw.uniform(0, 20)]), 3)),
            ("do nothing", 0 if self.task.closes else draw.choice([0, 0, 0, 0.5])),
            ("retry", draw.choice([0, 0, 0, 0, 1])),
            ("fail", draw.choice([0, 0, 0, 0.5])),
            ("fail for good", draw.choice([0, 0, 0, 0.5])),
            ("die", draw.choice([0, 0, 0, 0.3])),
            ("exit", draw.choice([0, 0, 0, 0.3])),
            ("sleep", round(draw.choice([0.0, draw.uniform(0, 3)]), 3)),
        ]

    def _take(self, message: Message) -> None:
        self.note("published", id=message.id, order=message.order, plan=message.plan, link=False)
        self.publish(message, self.draw.choice(MACHINES))
        if self.faults.happens("message-doubled"):
            self.unsettled += 1
            self.again(message, self.draw.uniform(0, 10))

    def body(self, run: RunContext, message: Message, number: int) -> int:
        """Follow a plan; return a value that no other run returns."""
        for step, argument in message.plan:
            self.follow(step, argument, run, message, number)
        return number

    def follow(self, step: str, argument: Any, run: RunContext, message: Message, number: int) -> None:
        """Do one step of a plan."""
        if step == "sleep":
            self.scheduler.sleep(argument)
        elif step == "retry":
            self._retry(run, message, argument, number)
        elif self.faults.active and self.draw.random() < argument:
            if step == "do nothing":
                self.note("nothing-done", run=number)
                run.nothing_done()
            else:
                self._go_wrong(step)

    def _retry(self, run: RunContext, message: Message, times: int, number: int) -> None:
        if message.retries >= times:
            return
        self.note("retries", run=number)
        process: Any = this_process()
        run.hand_over("Retry")
        process.check_alive()
        self.unsettled += 1
        self.again(replace(message, retries=message.retries + 1, deferrals=0, unseen=()), self.draw.uniform(0, 5))
        raise HandedOver

    def _go_wrong(self, step: str) -> None:
        if step == "fail":
            raise ValueError("simulated: the body fails")
        if step == "fail for good":
            raise FinalError("simulated: the body fails for good")
        self.faults.counts["body-died"] += 1
        if step == "exit":
            raise SystemExit
        process: Any = this_process()
        process.kill()
        process.check_alive()

    def _busy_child(self) -> SimulatedProcess | None:
        busy = [child for child in self.busy if child.alive]
        return self.draw.choice(busy) if busy else None

    def _kill_child(self) -> None:
        if child := self._busy_child():
            self.note("child-killed", process=child.name())
            child.kill()

    def _stop_child(self) -> None:
        if child := self._busy_child():
            seconds = self.draw.uniform(0.1, LATEST_IN_LEASES * LEASE_SECONDS)
            self.note("child-stopped", process=child.name(), seconds=seconds)
            child.stop()
            self.scheduler.after(seconds, child.go_on)

    def _interrupt_child(self) -> None:
        if child := self._busy_child():
            self.note("soft-limit", process=child.name())
            self.interrupt(child)

    def _kill_machine(self) -> None:
        """Kill a machine's parent process and its children, or leave those behind as orphans; start it again."""
        machine, orphans = self.draw.choice(MACHINES), self.draw.random() < 0.5
        parent = self.parents[machine]
        self.note("worker-killed", process=parent.name())
        parent.kill()
        for child in list(self.busy):
            if child.machine == machine and not orphans:
                child.kill()
        self.start(machine)

    def _take_store_away(self) -> None:
        self.service.away_until = self.scheduler.now + self.draw.uniform(0, LATEST_IN_LEASES * LEASE_SECONDS)
        self.note("store-away", until=self.service.away_until - START)

    def _set_clock(self) -> None:
        machine = self.draw.choice(MACHINES)
        offset, drift = self._clocks[machine]
        self._clocks[machine] = (offset + self.draw.uniform(-300, 300), drift)
        self.note("clock-set", machine=machine)


def play(seed: int) -> History:
    """Play the small world's history of a seed, and return what happened."""
    return play_tasks(seed, TASKS)


def play_tasks(seed: int, tasks: Mapping[str, SmallTask]) -> History:
    """Play the history of a seed with one of some tasks, and return what happened."""
    return play_in(RandomWorld(seed, tasks))


def play_in(world: RandomWorld) -> History:
    """Play the history of a world, and return what happened."""
    history, scheduler = world.history, world.scheduler
    world.set_up()

    def is_over() -> bool:
        return scheduler.now >= world.until and not world.unsettled

    history.ended = scheduler.run(START + GIVE_UP, is_over)
    for kind, count in world.faults.counts.items():
        history.counts[kind] = history.counts.get(kind, 0) + count
    world.close()
    return history
