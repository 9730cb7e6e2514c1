"""A small world: guard, lease, retries, reaper and store as shipped, without Celery, messages and a broker.

What hands deliveries to the guard is a model of the handler and of a broker: a message is delivered to a process of
some machine, and again when the verdict says so or its process ends, until its task has a result.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, Final

from billiard.exceptions import SoftTimeLimitExceeded

from idempotent_tasks import Atomic
from idempotent_tasks.core.guard import (
    Failed,
    Guard,
    Interrupted,
    Replay,
    Replayed,
    Returned,
    Unclaimed,
    Unreadable,
    Unresolved,
    Unwritten,
    Verdict,
)
from idempotent_tasks.core.lease import Lease, RunContext, lease_terms
from idempotent_tasks.core.policy import Idempotency
from idempotent_tasks.core.records import (
    Busy,
    ClaimRequest,
    Finished,
    Lost,
    MessageKept,
    Parked,
    Record,
    Released,
    Superseded,
    Unanswered,
)
from idempotent_tasks.core.recovery import Done, NotDone, Recovery
from idempotent_tasks.core.results import Results
from idempotent_tasks.core.retry import Deadline, RetryingStore
from idempotent_tasks.core.store import Store
from idempotent_tasks.messaging.handler import MOST_FAILED_RECOVERIES
from idempotent_tasks.stores.dynamodb import DynamoDBStore
from idempotent_tasks.worker.reaper import ClaimReaper
from simulation.calls import RecordedStore
from simulation.history import History, Recorder
from simulation.network import Service
from simulation.process import SimulatedClock, SimulatedProcess
from simulation.scheduler import START, Ended, Scheduler, Strand
from simulation.tills import RECORDS, TILLS, Writes, writes_of
from simulation.wire import Table

__all__ = ["LEASE_SECONDS", "TASKS", "FinalError", "HandedOver", "Message", "SmallTask", "SmallWorld", "never_called"]

LEASE_SECONDS: Final = 10.0
HARD_LIMIT_SECONDS: Final = 8.0
#: Seconds for which a record without an outcome is kept.
UNRESOLVED_SECONDS: Final = 200_000.0
#: Seconds before the hard limit by which a delivery must have ended, as the handler has it.
LAST_SECONDS: Final = 2.0
#: Seconds: the first and the longest time until a message is delivered again.
FIRST_COUNTDOWN: Final = 1.0
LONGEST_COUNTDOWN: Final = 30.0
#: Seconds by which a message comes later than the end of the claim that it waits for.
MARGIN: Final = 0.5
#: The reason with which a claim is released whose answer was not seen.
UNSEEN: Final = "Unseen"


class HandedOver(Exception):  # noqa: N818 - as Celery's Retry
    """The body has handed its key over to a message that it has published."""


class FinalError(Exception):
    """The body has failed for good."""


def never_called(*_: object) -> NotDone:
    """Stand for ``recover``: a small world asks by itself."""
    raise AssertionError("a small world asks by itself")


@dataclass(frozen=True, slots=True)
class SmallTask:
    """How a task's claims live and what its key is."""

    name: str
    policy: Idempotency
    hard_limit_seconds: float | None = None
    #: Whether the key is the task id, beside which the order may be a lock.
    by_id: bool = False
    locked: bool = False
    #: Whether its bodies return writes.
    writes: bool = False

    @property
    def closes(self) -> bool:
        """Whether a rerun is parked, or asked about: no body of it says wrongly that it has done nothing."""
        return self.policy.parks


_LEASED: Final = Idempotency(key="order", lease=LEASE_SECONDS, store_failures=(FinalError,))
TASKS: Final = {
    task.name: task
    for task in (
        SmallTask("limited", Idempotency(key="order", grace=2), HARD_LIMIT_SECONDS),
        SmallTask("leased", _LEASED),
        SmallTask("waits", _LEASED.over({"on_busy": "wait", "wait_timeout": 5})),
        SmallTask("own", Idempotency(lease=LEASE_SECONDS), by_id=True),
        SmallTask("exclusive", Idempotency.exclusive(lease=LEASE_SECONDS, on_busy="defer"), by_id=True, locked=True),
    )
}


@dataclass(frozen=True, slots=True)
class Message:
    """A message of a task."""

    id: str
    order: str
    #: What the body does, for the world to read.
    plan: Any = None
    #: How often the body has handed over to a retry, and how often the message was delivered again.
    retries: int = 0
    deferrals: int = 0
    #: Owner tokens of claims whose answers earlier deliveries did not see.
    unseen: tuple[str, ...] = ()
    #: How often ``recover`` has failed.
    failed_recoveries: int = 0


@dataclass(frozen=True, slots=True)
class _Delivery:
    """One delivery of a message, to a process."""

    message: Message
    request: ClaimRequest
    child: SimulatedProcess


class SmallWorld(ABC):
    """Machines with processes, a table, and messages that are delivered until they end.

    Args:
        scheduler: runs everything.
        history: what happens is noted there.
        task: of all messages.
        connect: makes a process's client of the service.
        watched: whether each machine has a parent process that releases the claims of children that end.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        history: History,
        task: SmallTask,
        connect: Callable[[Service], Any],
        *,
        watched: bool = True,
    ) -> None:
        self.scheduler = scheduler
        self.history = history
        self.task = task
        self.watched = history.watched = watched
        history.unresolved_seconds = UNRESOLVED_SECONDS
        history.settle_seconds = task.policy.settle_seconds
        self.service = Service(lambda: scheduler.now)
        self.service.tables[TILLS] = Table()
        recorder = Recorder(history, scheduler, self.service)
        self.note, self.observe = recorder.note, recorder.observe
        self._connect = connect
        self._stores: dict[SimulatedProcess, Store] = {}
        self._living: dict[str, SimulatedProcess] = {}
        self._pids = 100
        self.parents: dict[str, SimulatedProcess] = {}
        self._free: dict[str, list[SimulatedProcess]] = {}
        #: By process: what it handles, and the strand that does.
        self.busy: dict[SimulatedProcess, tuple[_Delivery, Strand]] = {}
        #: How many messages have not ended.
        self.unsettled = 0

    def clock_of(self, machine: str) -> SimulatedClock:
        """Return the clock of a process that starts on a machine now."""
        return SimulatedClock(self.scheduler)

    def body(self, run: RunContext, message: Message, number: int) -> Any:
        """Do what a message's body does; a world says what."""
        return number

    @abstractmethod
    def again(self, message: Message, seconds: float) -> None:
        """Deliver a message once more, after so many seconds; a world says where."""

    def new_process(self, machine: str) -> SimulatedProcess:
        """Start a process on a machine."""
        self._pids += 1
        process = SimulatedProcess(self.scheduler, machine, self._pids, self.clock_of(machine), self._living)
        process.on_end.append(lambda: self._lost(process))
        return process

    def start(self, machine: str) -> None:
        """Start a machine's parent process, again if it has ended."""
        self.parents[machine] = self.new_process(machine)
        self._free[machine] = []

    def store_of(self, process: SimulatedProcess) -> Store:
        """Return a process's own store."""
        store = self._stores.get(process)
        if store is None:
            own = DynamoDBStore(RECORDS, client=self._connect(self.service), clock=process.clock)
            store = RecordedStore(own, self.history.calls, lambda: self.scheduler.now)
            self._stores[process] = store
        return store

    def publish(self, message: Message, machine: str) -> None:
        """Take a new message, and deliver it."""
        self.unsettled += 1
        self.deliver(message, machine)

    def deliver(self, message: Message, machine: str) -> None:
        """Deliver a message to a free process of a machine; to a new one where none is free."""
        free = self._free[machine] = [each for each in self._free[machine] if each.alive]
        child = free.pop() if free else self.new_process(machine)
        delivery = _Delivery(message, self._request(message, child), child)
        self.note("delivered", process=child.name(), id=message.id)
        self.busy[child] = delivery, child.spawn(lambda: self._handle(delivery), "body")
        if limit := self.task.hard_limit_seconds:
            self.scheduler.after(limit, lambda: self._reach_hard_limit(delivery))

    def _request(self, message: Message, child: SimulatedProcess) -> ClaimRequest:
        parent, task = self.parents[child.machine], self.task
        terms = lease_terms(task.policy, task.hard_limit_seconds)
        request = ClaimRequest(
            key=f"lock-{message.order}" if task.locked else message.id if task.by_id else message.order,
            owner=parent.token(),
            lease_seconds=terms.lease_seconds,
            # Longer than any history.
            retention_seconds=100_000.0,
            unresolved_seconds=UNRESOLVED_SECONDS,
            task=task.name,
            task_id=message.id,
            process=child.name(parent.pid if self.watched else None),
            settle_seconds=task.policy.settle_seconds,
        )
        return request.locking(message.id) if task.locked else request

    def _handle(self, delivery: _Delivery) -> None:
        """Handle a delivery to its end; let its process take another one then."""
        child = delivery.child
        store = RetryingStore(
            store=self.store_of(child),
            observe=self._observe_while_alive(child),
            deadline=self._deadline(child),
            interrupts=(SoftTimeLimitExceeded,),
        )
        try:
            self._deliver(delivery, store)
        except Ended:
            raise
        except HandedOver:
            self._settle(delivery)
        except SystemExit:
            child.kill()
            child.check_alive()
        except BaseException as error:  # noqa: BLE001 - the task's own
            self._end(delivery, "FAILURE", type(error).__name__)

    def _observe_while_alive(self, process: SimulatedProcess) -> Callable[[Any], None]:
        def observe(event: Any) -> None:
            process.check_alive()
            self.observe(event)

        return observe

    def _deadline(self, child: SimulatedProcess) -> Deadline:
        limit = self.task.hard_limit_seconds
        return Deadline() if limit is None else Deadline(child.clock, child.clock.monotonic() + limit - LAST_SECONDS)

    def _deliver(self, delivery: _Delivery, store: RetryingStore) -> None:
        """Do what the handler does with a verdict, as far as it decides whether the message comes again."""
        message, request = delivery.message, delivery.request
        message, interrupted = self._release_unseen(message, request, store)
        if interrupted is not None:
            return self._again(delivery, message, None)
        verdict = self._verdict(delivery, self._guard(store))
        if isinstance(verdict, Unresolved | Parked):
            return self._park(delivery, message, verdict, store)
        match verdict:
            case Returned(value) | Replayed(value):
                self._end(delivery, "SUCCESS", value)
            case Failed(error):
                self._end(delivery, "FAILURE", type(error).__name__)
            case Busy(until):
                self._again(delivery, message, until - store.clock.now())
            case Unclaimed():
                message = replace(message, unseen=(request.owner, *message.unseen))
                with suppress(SoftTimeLimitExceeded):
                    if isinstance(store.withdraw_parts(request, UNSEEN), Released):
                        message = replace(message, unseen=message.unseen[1:])
                self._again(delivery, message, None)
            case Interrupted():
                self._again(delivery, replace(message, unseen=(request.owner, *message.unseen)), None)
            case Unreadable() | Unwritten():
                self._again(delivery, message, None)
        return None

    def _verdict(self, delivery: _Delivery, guard: Guard) -> Verdict | Replay:
        ask = None if self.task.policy.recover is None else lambda run, record: self._ask(run, record, delivery)
        verdict = guard.deliver(delivery.request, lambda run: self._run(run, delivery), ask)
        return guard.replay(delivery.request, verdict.record) if isinstance(verdict, Finished | Superseded) else verdict

    def _park(self, delivery: _Delivery, message: Message, verdict: Unresolved | Parked, store: RetryingStore) -> None:
        """Do what the handler does with a key that waits for a person, who never comes."""
        if isinstance(verdict, Unresolved):
            claim = verdict.run.claim
            failures = message.failed_recoveries + (verdict.error is not None)
            if verdict.error is not None and failures < MOST_FAILED_RECOVERIES:
                store.release(claim, type(verdict.error).__name__, began=verdict.began)
                return self._again(delivery, replace(message, failed_recoveries=failures), None)
            match store.despite_interrupts(lambda: store.park(claim, verdict.reason)):
                case Lost():
                    return self._again(delivery, message, None)
                case Unanswered():
                    if not verdict.began:
                        message = replace(message, unseen=(claim.owner, *message.unseen))
                    return self._again(delivery, message, None)
        key = delivery.request.key
        kept = store.despite_interrupts(lambda: store.keep_message(key, message.id, b"kept"))
        if isinstance(kept, MessageKept):
            return self._end(delivery, "FAILURE", {"exc_type": "UnresolvedError"})
        return self._again(delivery, message, None)

    def _ask(self, run: RunContext, record: Record, delivery: _Delivery) -> Recovery:
        """Be a ``recover`` whose answer is true: a body has its effect when it begins."""
        about = {"key": run.key, "grant": run.claim.fence, "id": delivery.message.id, "process": delivery.child.name()}
        self.note("asked", **about, number=run.run, rerun=run.rerun, owner=record.owner)
        done = [each.details["run"] for each in self.history.of("charged") if each.details["key"] == run.key]
        answer = Done(done[0]) if done else NotDone()
        self.note("answered", **about, answer=type(answer).__name__)
        return answer

    def _release_unseen(
        self, message: Message, request: ClaimRequest, store: RetryingStore
    ) -> tuple[Message, SoftTimeLimitExceeded | None]:
        left = list(message.unseen)
        try:
            for token in message.unseen:
                answer = store.withdraw_parts(request.by(token), UNSEEN)
                if isinstance(answer, Unanswered):
                    break
                if isinstance(answer, Released):
                    left.remove(token)
        except SoftTimeLimitExceeded as interrupt:
            return replace(message, unseen=tuple(left)), interrupt
        return replace(message, unseen=tuple(left)), None

    def _guard(self, store: RetryingStore) -> Guard:
        task, own = self.task, store.store
        terms = lease_terms(task.policy, task.hard_limit_seconds)
        return Guard(
            store=store,
            policy=task.policy,
            lease=Lease(terms=terms, store=own, observe=store.observe),
            results=Results(store=store, policy=task.policy),
            watched=self.watched,
        )

    def _run(self, run: RunContext, delivery: _Delivery) -> Any:
        child, message = delivery.child, delivery.message
        number = sum(entry.kind == "began" for entry in self.history.entries) + 1
        about = {"run": number, "key": run.key, "fence": run.fence, "id": message.id, "process": child.name()}
        about |= {"task": self.task.name, "order": message.order, "owner": run.claim.owner}
        about["lock"] = None if run.lock is None else run.lock.key
        self.note("began", **about, grant=run.claim.fence, number=run.run, rerun=run.rerun)
        if self.task.policy.recover is not None:
            self.note("requested", key=run.key, run=number)
            self.note("charged", key=run.key, run=number)
        try:
            value = self.body(run, message, number)
            return self._with_writes(run, value, number) if self.task.writes else value
        finally:
            self.note("over" if child.alive else "stopped", **about)

    def _with_writes(self, run: RunContext, value: Any, number: int) -> Atomic:
        writes = self.writes(run, number)
        changes = sum("ConditionCheck" not in each for each in writes)
        self.note("returns-writes", run=number, key=run.key, writes=changes)
        return Atomic(value, writes)

    def writes(self, run: RunContext, number: int) -> Writes:
        """Return the writes of a run; a world says whether some of them are refused."""
        return writes_of("adds", run.key, number, run.claim.generation)

    def _end(self, delivery: _Delivery, status: str, result: Any) -> None:
        """Set a task's result, unless it has succeeded already, and settle its message."""
        delivery.child.check_alive()
        name = f"celery-task-meta-{delivery.message.id}"
        if json.loads(self.history.results.get(name, "{}")).get("status") != "SUCCESS":
            self.history.results[name] = json.dumps({"status": status, "result": result})
        if self.task.writes:
            error, about = result if status == "FAILURE" else None, {"process": delivery.child.name()}
            self.note("reported", id=delivery.message.id, status=status, value=result, error=error, **about)
        self._settle(delivery)

    def _settle(self, delivery: _Delivery) -> None:
        self.unsettled -= 1
        self._leave(delivery)

    def _again(self, delivery: _Delivery, message: Message, claim_left: float | None) -> None:
        delivery.child.check_alive()
        countdown = min(FIRST_COUNTDOWN * 2**message.deferrals, LONGEST_COUNTDOWN)
        if claim_left is not None:
            countdown = min(countdown, max(claim_left, 0.0) + MARGIN)
        self.note("again", id=message.id, seconds=countdown, process=delivery.child.name())
        self.again(replace(message, deferrals=message.deferrals + 1), countdown)
        self._leave(delivery)

    def _leave(self, delivery: _Delivery) -> None:
        child = delivery.child
        if self.busy.pop(child, None) is not None:
            self.note("ended", process=child.name())
            self._free[child.machine].append(child)

    def interrupt(self, child: SimulatedProcess) -> None:
        """Raise a soft time limit in a process's delivery, once it runs."""
        _, strand = self.busy.get(child, (None, None))
        if strand is not None and child.may_run(lambda: self.interrupt(child)):
            strand.interrupt(SoftTimeLimitExceeded())

    def _reach_hard_limit(self, delivery: _Delivery) -> None:
        busy, _ = self.busy.get(delivery.child, (None, None))
        if busy is delivery and delivery.child.alive:
            self.history.counts["hard-limit"] = self.history.counts.get("hard-limit", 0) + 1
            delivery.child.kill()

    def _lost(self, child: SimulatedProcess) -> None:
        """Release what a process that has ended leaves behind, as the reaper does, and deliver its message again."""
        delivery, _ = self.busy.pop(child, (None, None))
        parent = self.parents.get(child.machine)
        if delivery is None:
            return
        if self.watched and parent is not None and parent.alive:
            reason, request = "WorkerLostError", delivery.request
            parent.spawn(lambda: self._reap(parent, request, child.pid, reason), "pool")
        self.again(delivery.message, FIRST_COUNTDOWN)

    def _reap(self, parent: SimulatedProcess, request: ClaimRequest, pid: int, reason: str) -> None:
        settings: Any = SimpleNamespace(store=self.store_of(parent), observe=self._observe_while_alive(parent))
        parent.own(ClaimReaper).release(settings, request, pid, reason, crashed=True)

    def close(self) -> None:
        """End every process, and keep what the history is judged by."""
        self.history.living, self.history.until = frozenset(self._living), self.scheduler.now - START
        self.history.failures = self.scheduler.failures
        self.history.items = self.service.table.items
        for process in list(self._living.values()):
            process.on_end.clear()
            process.end()
