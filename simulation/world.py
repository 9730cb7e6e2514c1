"""One history: machines, workers, a broker, a store, producers and faults, from a seed; and what happened."""

import random
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from celery import current_task

from idempotent_tasks.core.delivery import COPY_HEADER
from idempotent_tasks.core.processes import Process, running_as, this_process
from idempotent_tasks.core.store import Store
from idempotent_tasks.stores.dynamodb import DynamoDBStore
from simulation.app import LEASE_SECONDS, TASKS, enter, follow, playing
from simulation.broker import Broker
from simulation.calls import RecordedStore
from simulation.faults import Faults
from simulation.history import History, Recorder
from simulation.network import Service, SimulatedClient
from simulation.process import SimulatedClock, SimulatedProcess
from simulation.scheduler import START, Scheduler
from simulation.worker import Worker

__all__ = ["World", "play"]

#: After so many seconds nothing goes wrong any more, so that every delivery can end.
FAULTS_END: Final = 60.0
#: A history that has not ended by then has lost something, or runs in circles.
GIVE_UP: Final = 7200.0
MACHINES: Final = 2
#: Rates of faults; in each history most kinds are absent, so that those that are there can be long at work.
RATES: Final = {
    "request-lost": 0.05,
    "request-late": 0.05,
    "answer-lost": 0.08,
    "answer-late": 0.05,
    "doubled": 0.05,
    "throttled": 0.05,
    "failed": 0.05,
    "foreign-answer": 0.03,
    "publish-refused": 0.05,
    "publish-unconfirmed": 0.05,
    "message-doubled": 0.05,
    "child-killed": 0.5,
    "child-stopped": 0.5,
    "worker-killed": 0.3,
    "store-away": 0.3,
    "connection-lost": 0.3,
    "clock-set": 0.3,
}
#: The most kinds of one history, but for `ZOMBIE_KINDS`.
MOST_KINDS: Final = 4
#: What leaves a run behind that has lost its claim and does not know it: the rarest windows need one of these.
ZOMBIE_KINDS: Final = ("answer-late", "child-stopped", "request-late", "store-away")


def _some_kinds(draw: random.Random) -> list[str]:
    """Return the kinds of faults of one history: few, so that what two do together is not ended by a third."""
    common = draw.sample(sorted(RATES), draw.randint(0, MOST_KINDS))
    return sorted({*common, *draw.sample(ZOMBIE_KINDS, draw.choice([0, 0, 1, 2]))})


class World:
    """The world of one history."""

    def __init__(self, seed: int) -> None:
        self.draw = draw = random.Random(seed)
        self.scheduler = Scheduler(draw)
        rates = {kind: RATES[kind] for kind in _some_kinds(draw)}
        self.faults = Faults(draw, rates, LEASE_SECONDS)
        self.broker = Broker(self.scheduler, self.faults, draw.choice([None, 20.0, 60.0, 120.0]))
        self.service = Service(lambda: self.scheduler.now)
        self.history = History(seed, draw.choice(sorted(TASKS)))
        self.note = Recorder(self.history, self.scheduler, self.service).note
        self.results: dict[str, Any] = {}
        self._stores: dict[int, Store] = {}
        self._living: dict[str, SimulatedProcess] = {}
        self._pids = 100
        self.workers: list[Worker] = []
        #: By machine: seconds that its clock is ahead, and those that it gains in each second.
        self._clocks = {f"machine-{number}": self._new_clock() for number in range(MACHINES)}
        self._clocks["producer"] = (0.0, 0.0)
        self.producer = self.new_process("producer")
        enter(self)

    def _new_clock(self) -> tuple[float, float]:
        offset = self.draw.choice([0.0, 0.0, self.draw.uniform(-600, 600)])
        return offset, self.draw.uniform(-0.0001, 0.0001)

    def new_process(self, machine: str) -> SimulatedProcess:
        """Start a process on a machine."""
        self._pids += 1
        clock = SimulatedClock(self.scheduler, *self._clocks[machine])
        return SimulatedProcess(self.scheduler, machine, self._pids, clock, self._living)

    def store_of(self, process: Process) -> Store:
        """Return a process's own store."""
        store = self._stores.get(process.pid)
        if store is None:
            client = SimulatedClient(self.service, self.scheduler, self.faults)
            own = DynamoDBStore("records", client=client, clock=process.clock)
            store = RecordedStore(own, self.history.calls, lambda: self.scheduler.now)
            self._stores[process.pid] = store
        return store

    def on_event(self, event: Any) -> None:
        """Note an event of the library."""
        details = {name: getattr(event, name) for name in event.__dataclass_fields__}
        if type(event).__name__ == "Merged":
            details["others"] = self.broker.others_of(event.task_id, current_task.request.get(COPY_HEADER))
        self.note(type(event).__name__, **details)

    def run_body(self, task: Any, order: str, plan: list[Any]) -> Any:
        """Follow a plan: wait, have an effect, fail, retry, die; return a value that no other run returns."""
        process: Any = this_process()
        run = task.idempotency
        number = sum(entry.kind == "began" for entry in self.history.entries) + 1
        about = {"run": number, "key": run.key, "fence": run.fence, "id": task.request.id, "process": process.name()}
        about |= {"task": task.name, "order": order}
        about["owner"] = run.claim.owner if hasattr(run, "claim") else None
        lock = getattr(run, "lock", None)
        about["lock"] = None if lock is None else lock.key
        self.note("began", **about)
        try:
            for step, argument in plan:
                self._take(step, argument, task, process, number)
        finally:
            self.note("stopped" if not process.alive else "over", **about)
        return number

    def _take(self, step: str, argument: Any, task: Any, process: Any, number: int) -> None:
        if step == "sleep":
            self.scheduler.sleep(argument)
        elif step == "effect":
            self.note("effect", run=number, key=task.idempotency.key)
        elif step == "fail" and self.faults.active and self.draw.random() < argument:
            raise ValueError("simulated: the body fails")
        elif step == "retry" and task.request.retries < argument:
            raise task.retry(countdown=self.draw.uniform(0, 5), max_retries=None)
        elif step == "die" and self.faults.active and self.draw.random() < argument:
            self.faults.counts["body-died"] += 1
            process.kill()
            process.check_alive()

    def on_follow(self, of: str, task_id: str, value: Any) -> None:
        """Note that what follows a task runs."""
        self.note("followed", of=of, id=task_id, value=value)

    def set_up(self) -> None:
        """Start workers, publish messages, and plan what befalls the processes."""
        draw, scheduler = self.draw, self.scheduler
        for number in range(draw.randint(1, 3)):
            self.workers.append(Worker(self, f"machine-{number % MACHINES}", draw.randint(1, 2)))
        keys = [f"order-{number}" for number in range(draw.choice([1, 1, 1, 2]))]
        for number in range(draw.randint(2, 4)):
            scheduler.after(draw.uniform(0, 15), partial(self._publish, number, draw.choice(keys)))
        for kind, act in self._disasters().items():
            for _ in range(4):
                moment = draw.uniform(0, FAULTS_END / 2)
                scheduler.after(moment, partial(self._strike, kind, act))
        scheduler.after(FAULTS_END, self._end_faults)

    def _strike(self, kind: str, act: Callable[[], None]) -> None:
        if self.faults.happens(kind):
            act()

    def _disasters(self) -> dict[str, Any]:
        return {
            "child-killed": self._kill_child,
            "child-stopped": self._stop_child,
            "worker-killed": self._kill_worker,
            "store-away": self._take_store_away,
            "connection-lost": self._lose_connection,
            "clock-set": self._set_clock,
        }

    def _end_faults(self) -> None:
        self.faults.active = False
        self.service.away_until = 0.0

    def _plan(self) -> list[Any]:
        draw = self.draw
        return [
            ("sleep", round(draw.choice([0.01, draw.uniform(0, 3), draw.uniform(0, 15)]), 3)),
            ("retry", draw.choice([0, 0, 0, 1, 2])),
            ("effect", None),
            ("fail", draw.choice([0, 0, 0.5])),
            ("die", draw.choice([0, 0, 0, 0.3])),
            ("sleep", round(draw.choice([0.0, draw.uniform(0, 3)]), 3)),
        ]

    def _publish(self, number: int, order: str) -> None:
        plan, task_id = self._plan(), f"task-{number}"
        task = TASKS[self.history.task]
        link = follow.s(task_id).set(task_id=f"link-{number}") if self.draw.random() < 0.3 else None

        def publish() -> None:
            options = {} if link is None else {"link": link}
            try:
                result = task.apply_async((order, plan), task_id=task_id, **options)
            except Exception as error:  # noqa: BLE001 - the producer's business
                self.note("not-published", id=task_id, why=type(error).__name__)
                return
            self.note("published", id=result.id, order=order, plan=plan, link=link is not None)

        def publish_twice() -> None:
            publish()
            if self.draw.random() < 0.3:
                self.scheduler.sleep(self.draw.uniform(0, 10))
                publish()

        self.producer.spawn(publish_twice, "producer")

    def _kill_child(self) -> None:
        busy = [child for worker in self.workers for child in worker.busy if child.alive]
        if busy:
            child = self.draw.choice(busy)
            self.note("child-killed", process=child.name())
            child.kill()

    def _stop_child(self) -> None:
        busy = [child for worker in self.workers for child in worker.busy if child.alive]
        if busy:
            child, seconds = self.draw.choice(busy), self.draw.uniform(0.1, 3 * LEASE_SECONDS)
            self.note("child-stopped", process=child.name(), seconds=seconds)
            child.stop()
            self.scheduler.after(seconds, child.go_on)

    def _kill_worker(self) -> None:
        if not self.workers:
            return
        worker = self.draw.choice(self.workers)
        self.note("worker-killed", process=worker.parent.name())
        worker.kill(orphans=self.draw.random() < 0.5)
        self.workers.remove(worker)
        later = self.draw.uniform(0, 20)
        children = self.draw.randint(1, 2)
        self.scheduler.after(later, lambda: self.workers.append(Worker(self, worker.machine, children)))

    def _take_store_away(self) -> None:
        self.service.away_until = self.scheduler.now + self.draw.uniform(0, 3 * LEASE_SECONDS)
        self.note("store-away", until=self.service.away_until - START)

    def _lose_connection(self) -> None:
        if self.workers:
            worker = self.draw.choice(self.workers)
            self.note("connection-lost", process=worker.parent.name())
            self.broker.lose(worker.consumer)
            self.broker.subscribe(worker.consumer)

    def _set_clock(self) -> None:
        machine = f"machine-{self.draw.randrange(MACHINES)}"
        offset, drift = self._clocks[machine]
        self._clocks[machine] = (offset + self.draw.uniform(-300, 300), drift)
        self.note("clock-set", machine=machine)


def play(seed: int) -> History:
    """Play the history of a seed, and return what happened."""
    world = World(seed)
    history, scheduler = world.history, world.scheduler
    world.set_up()

    def is_over() -> bool:
        return scheduler.now >= START + FAULTS_END and not world.broker.unsettled()

    with playing(), running_as(world.producer):
        history.ended = scheduler.run(START + GIVE_UP, is_over)
    history.failures = scheduler.failures
    history.counts = dict(world.faults.counts)
    history.items, history.results = world.service.table.items, world.results
    for process in list(world._living.values()):  # noqa: SLF001
        process.kill()
    return history
