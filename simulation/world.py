"""One history: machines, workers, a broker, a store, producers and faults, from a seed; and what happened."""

import json
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

from celery import current_task

from idempotent_tasks.core.delivery import COPY_HEADER
from idempotent_tasks.core.processes import Process, running_as, this_process
from idempotent_tasks.core.records import Record
from idempotent_tasks.core.recovery import Recovery
from idempotent_tasks.events import Merged
from idempotent_tasks.stores.dynamodb import DynamoDBStore
from idempotent_tasks.stores.dynamodb.store import MAX_DATA_BYTES
from simulation.app import app, enter, playing
from simulation.bodies import BODY_FEATURES, Plan, Run, new_plan
from simulation.broker import Broker
from simulation.bucket import Bucket
from simulation.calls import RecordedStore
from simulation.database import Database
from simulation.faults import BUCKET_FAULTS, OPERATOR_KINDS, Faults
from simulation.history import TRIED_ON_SECONDS, History, Recorder
from simulation.items import is_undecided
from simulation.network import Service, SimulatedClient
from simulation.operators import Operator
from simulation.process import SimulatedClock, SimulatedProcess
from simulation.producers import CALL_FEATURES, Producer
from simulation.provider import SETTLE_SECONDS, Provider
from simulation.recoveries import recover
from simulation.scheduler import START, Scheduler
from simulation.tasks import ASKING, LEASE_SECONDS, SETTLING_STEPS, TASKS, UNRESOLVED_SECONDS
from simulation.tills import RECORDS, TILLS
from simulation.wire import Table
from simulation.worker import Worker

__all__ = ["World", "play", "play_in"]

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
    "machine-frozen": 0.3,
    "shut-down-warm": 0.4,
    "shut-down-cold": 0.4,
    "throttled-for-a-while": 0.4,
    "message-reordered": 0.1,
    **dict.fromkeys(BUCKET_FAULTS, 0.3),
    **dict.fromkeys(OPERATOR_KINDS, 0.5),
}
#: What only some histories have, beside faults: of bodies, of calls, and of the world.
FEATURES: Final = (
    *BODY_FEATURES,
    *CALL_FEATURES,
    *("large-result", "unwritable-result", "small-records", "catches-interrupt", "recycled"),
)
#: By task: the feature that shows its policy best.
FITTING: Final = {
    "crashing": "crash-loop",
    "validated": "other-amount",
    "soft": "catches-interrupt",
    "soft-only": "catches-interrupt",
}
#: The most kinds of one history, but for `ZOMBIE_KINDS` and `BUCKET_FAULTS`.
MOST_KINDS: Final = 4
#: What leaves a run behind that has lost its claim and does not know it: the rarest windows need one of these.
ZOMBIE_KINDS: Final = ("answer-late", "child-stopped", "request-late", "store-away")


def _some_features(draw: random.Random, task: str) -> frozenset[str]:
    """Return the features of one history: few, for the same reason as `_some_kinds`."""
    fitting = [FITTING[task]] if task in FITTING and draw.random() < 0.5 else []
    return frozenset({*draw.sample(FEATURES, draw.choice([0, 0, 1, 1, 2, 3])), *fitting})


def _some_kinds(draw: random.Random, features: frozenset[str]) -> list[str]:
    """Return the kinds of faults of one history: few, so that what two do together is not ended by a third."""
    common = draw.sample(sorted(RATES.keys() - set(BUCKET_FAULTS)), draw.randint(0, MOST_KINDS))
    of_bucket = draw.sample(BUCKET_FAULTS, draw.randint(0, len(BUCKET_FAULTS))) if "large-result" in features else []
    return sorted({*common, *of_bucket, *draw.sample(ZOMBIE_KINDS, draw.choice([0, 0, 1, 2]))})


class World:
    """The world of one history."""

    def __init__(self, seed: int) -> None:
        self.draw = draw = random.Random(seed)
        self.scheduler = Scheduler(draw)
        task, self.features, self.faults = self._subject()
        self.faults.on_fault = lambda kind: self.note("fault", fault=kind, process=this_process().name())
        above = 100 if "large-result" in self.features else None
        self.bucket = Bucket(self.scheduler, self.faults, above)
        #: As in `idempotent_tasks.core.store.Store`.
        self.max_data_bytes = 40 if "small-records" in self.features else MAX_DATA_BYTES
        self.faults.counts.update(self.features & {"small-records"})
        visibility = draw.choice([None, 20.0, 60.0, 120.0])
        # Celery's own polling never ends where each timeout of a message that a worker holds for its ETA doubles it, or
        # where a worker holds each for as long as its clock is behind.
        self._polls = bool(self.features & {"chord", "body-replaces"})
        # Nor do messages that fail in each run and wait behind each other for longer than a worker may hold them.
        endless = self._polls or "other-arguments" in self.features
        self.broker = Broker(self.scheduler, self.faults, None if endless else visibility)
        self.service = Service(lambda: self.scheduler.now)
        self.service.tables[TILLS] = Table()
        self.history = History(seed, task, features=self.features, acks_early=not app.tasks[task].acks_late)
        self._recorder = Recorder(self.history, self.scheduler, self.service)
        self.note = self._recorder.note
        self.results: dict[str, Any] = {}
        self._stores: dict[int, RecordedStore] = {}
        self._living: dict[str, SimulatedProcess] = {}
        self._pids, self._runs = 100, 0
        self.workers: list[Worker] = []
        #: By machine: seconds that its clock is ahead, and those that it gains in each second.
        self._clocks = {f"machine-{number}": self._new_clock() for number in range(MACHINES)}
        self.machines = sorted(self._clocks)
        self._clocks["producer"] = (0.0, 0.0)
        #: It does not end before.
        self.until = START + FAULTS_END
        self._operator = Operator(self)
        self.history.operator = self._operator.name
        self.history.unresolved_seconds = UNRESOLVED_SECONDS
        self.history.settle_seconds = SETTLE_SECONDS if task in ASKING | SETTLING_STEPS else 0.0
        self.provider = Provider(self)
        self.database = Database(self)
        enter(self)

    def _subject(self) -> tuple[str, frozenset[str], Faults]:
        """Return the history's task, its features, and its faults."""
        draw = self.draw
        task = draw.choice(sorted(TASKS))
        features = _some_features(draw, task)
        rates = {kind: RATES[kind] for kind in _some_kinds(draw, features)}
        return task, features, Faults(draw, rates, LEASE_SECONDS)

    def new_plan(self) -> Plan:
        """Return the plan of one message."""
        return new_plan(self.draw, self.features)

    def _new_clock(self) -> tuple[float, float]:
        offset = self.draw.choice([0.0, 0.0, self.draw.uniform(-600, 600)])
        return 0.0 if self._polls else offset, self.draw.uniform(-0.0001, 0.0001)

    def new_process(self, machine: str) -> SimulatedProcess:
        """Start a process on a machine."""
        self._pids += 1
        clock = SimulatedClock(self.scheduler, *self._clocks[machine])
        return SimulatedProcess(self.scheduler, machine, self._pids, clock, self._living)

    def machine_time(self, process: Process) -> float:
        """Return epoch seconds as the clock of a process's machine shows them now, however it was set meanwhile."""
        offset, _ = self._clocks[getattr(process, "machine", "producer")]
        return self.scheduler.now + offset

    def store_of(self, process: Process) -> RecordedStore:
        """Return a process's own store."""
        store = self._stores.get(process.pid)
        if store is None:
            own = DynamoDBStore(RECORDS, client=self._new_client(), clock=process.clock)
            store = RecordedStore(own, self.history.calls, lambda: self.scheduler.now)
            self._stores[process.pid] = store
        return store

    def _new_client(self) -> SimulatedClient:
        return SimulatedClient(self.service, self.scheduler, self.faults)

    def on_event(self, event: Any) -> None:
        """Note an event of the library."""
        more = {}
        if isinstance(event, Merged):
            more["others"] = self.broker.others_of(event.task_id, current_task.request.get(COPY_HEADER))
        self._recorder.observe(event, **more)

    def on_result(self, key: str, value: Any) -> None:
        """Keep what the result backend is given, and note what it says of a task, and who says so."""
        self.results[key] = value
        of, said = key.removeprefix("celery-task-meta-"), json.loads(value)
        if not isinstance(said, dict) or "status" not in said:
            return
        status, result = said["status"], said["result"]
        error = result.get("exc_type") if status == "FAILURE" else None
        self.note("reported", id=of, status=status, value=result, error=error, process=this_process().name())
        if status == "FAILURE":
            self.history.failed.add(of)

    def run_body(self, task: Any, order: str, plan: Plan, amount: int) -> Any:
        """Follow a plan; return a value that no other run returns."""
        process: Any = this_process()
        run = task.idempotency
        self._runs += 1
        about = {"run": self._runs, "key": run.key, "fence": run.fence, "id": task.request.id}
        about |= {"process": process.name(), "task": task.name, "order": order, "amount": amount}
        claim, lock = getattr(run, "claim", None), getattr(run, "lock", None)
        about |= {"owner": claim and claim.owner, "lock": lock and lock.key}
        counted = {} if claim is None else {"grant": claim.fence, "number": run.run, "rerun": run.rerun}
        self.note("began", **about, attempt=run.attempt, **counted)
        try:
            return Run(self, task, self._runs).follow(plan)
        finally:
            self.note("stopped" if not process.alive else "over", **about)

    def recover(self, record: Record, plan: Plan) -> Recovery:
        """Be the task's ``recover``."""
        return recover(self, record, plan)

    def on_follow(self, kind: str, of: str, task_id: str, value: Any) -> None:
        """Note that what follows a task runs."""
        self.note(kind, of=of, id=task_id, value=value)

    def set_up(self) -> None:
        """Start workers, publish messages, and plan what befalls the processes."""
        draw, scheduler = self.draw, self.scheduler
        for number in range(draw.randint(1, 3)):
            self._start_worker(f"machine-{number % MACHINES}")
        Producer(self).publish_all()
        for kind, act in self._disasters().items():
            for _ in range(4):
                moment = draw.uniform(0, FAULTS_END / 2)
                scheduler.after(moment, partial(self._strike, kind, act))
        scheduler.after(FAULTS_END, self._end_faults)

    def _strike(self, kind: str, act: Callable[[], None]) -> None:
        if self.faults.happens(kind, shows=True):
            act()

    def _disasters(self) -> dict[str, Any]:
        return {
            "child-killed": self._kill_child,
            "child-stopped": self._stop_child,
            "worker-killed": self._kill_worker,
            "store-away": self._take_store_away,
            "connection-lost": self._lose_connection,
            "clock-set": self._set_clock,
            "machine-frozen": self._freeze_machine,
            "shut-down-warm": partial(self._shut_down, warm=True),
            "shut-down-cold": partial(self._shut_down, warm=False),
            "throttled-for-a-while": self._throttle,
            **{kind: partial(self._operator.act, kind) for kind in OPERATOR_KINDS},
        }

    def _end_faults(self) -> None:
        self.faults.active = False
        self.service.away_until = self.service.throttled_until = self.bucket.away_until = 0.0
        self.database.away_until = 0.0
        for worker in self.workers:
            # The next deployment would, if not sooner.
            if worker.has_failed_callbacks:
                worker.reconnect()
        if self.history.of("Unrecorded"):
            self.until += TRIED_ON_SECONDS
            self.scheduler.at(self.until, lambda: None)

    @property
    def undecided(self) -> int:
        """How many keys wait for a person."""
        return sum(map(is_undecided, self.service.table.items.values()))

    def is_over(self) -> bool:
        """Return whether nothing goes wrong any more, and nothing is left to do."""
        over = self.scheduler.now >= self.until and not self.broker.unsettled()
        # A message that was acknowledged before its body may still run it.
        return over and not any(worker.busy for worker in self.workers)

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
        self.replace_worker(worker)

    def replace_worker(self, worker: Worker) -> None:
        """Start another worker in the place of one that has ended, after a while."""
        if worker in self.workers:
            self.workers.remove(worker)
            self.scheduler.after(self.draw.uniform(0, 20), partial(self._start_worker, worker.machine))

    def _start_worker(self, machine: str) -> None:
        recycled = self.draw.choice([1, 2]) if "recycled" in self.features else None
        self.workers.append(Worker(self, machine, self.draw.randint(1, 2), recycled_after=recycled))

    def _shut_down(self, *, warm: bool) -> None:
        if self.workers:
            worker = self.draw.choice(self.workers)
            self.note("shut-down", process=worker.parent.name(), warm=warm)
            worker.shut_down(warm=warm)

    def _freeze_machine(self) -> None:
        machine, seconds = self.draw.choice(self.machines), self.draw.uniform(0.1, 3 * LEASE_SECONDS)
        self.note("machine-frozen", machine=machine, seconds=seconds)
        for process in [each for each in self._living.values() if each.machine == machine]:
            process.stop()
            self.scheduler.after(seconds, process.go_on)

    def _throttle(self) -> None:
        self.service.throttled_until = self.scheduler.now + self.draw.uniform(0, 2 * LEASE_SECONDS)
        self.note("throttled-for-a-while", until=self.service.throttled_until - START)

    def _take_store_away(self) -> None:
        self.service.away_until = self.scheduler.now + self.draw.uniform(0, 3 * LEASE_SECONDS)
        self.note("store-away", until=self.service.away_until - START)

    def _lose_connection(self) -> None:
        if self.workers:
            worker = self.draw.choice(self.workers)
            self.note("connection-lost", process=worker.parent.name())
            worker.reconnect()

    def _set_clock(self) -> None:
        machine = f"machine-{self.draw.randrange(MACHINES)}"
        offset, drift = self._clocks[machine]
        self._clocks[machine] = (offset + (0.0 if self._polls else self.draw.uniform(-300, 300)), drift)
        self.note("clock-set", machine=machine)


@contextmanager
def seeded_ids(seed: int) -> Iterator[None]:
    """Draw the random bytes of the block from the seed: Celery makes ids of them, which some invariants compare."""
    urandom = os.urandom
    os.urandom = random.Random(seed).randbytes
    try:
        yield
    finally:
        os.urandom = urandom


def play(seed: int) -> History:
    """Play the history of a seed, and return what happened."""
    return play_in(World(seed))


def play_in(world: World) -> History:
    """Play the history of a world, and return what happened."""
    history, scheduler = world.history, world.scheduler
    world.set_up()
    with playing(), seeded_ids(history.seed), running_as(world.new_process("producer")):
        history.ended = scheduler.run(START + GIVE_UP, world.is_over)
    history.failures = scheduler.failures
    history.counts = dict(world.faults.counts)
    history.items, history.results = world.service.table.items, world.results
    history.objects, history.requests = world.bucket.objects, world.service.requests
    history.living, history.until = frozenset(world._living), scheduler.now - START  # noqa: SLF001
    for process in list(world._living.values()):  # noqa: SLF001
        process.end()
    return history
