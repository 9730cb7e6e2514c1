"""Directed histories: the whole world where one thing goes wrong, at the moment at which a rule is for it.

A schedule says what is published and what befalls it when; a seed decides only the milliseconds between.  Histories by
chance come to most of these moments too rarely to show that a rule is needed.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from math import inf
from typing import Any, Final

from celery.exceptions import SoftTimeLimitExceeded
from celery.worker import state

from idempotent_tasks.core.processes import this_process
from simulation.bodies import Plan
from simulation.faults import Faults, RequestFault, conflict
from simulation.history import Entry, History
from simulation.network import TRANSACTION, SimulatedClient
from simulation.person import Person
from simulation.process import SimulatedProcess
from simulation.producers import Call, Producer
from simulation.tasks import LEASE_SECONDS, follow
from simulation.tills import CLOSED, RECORDS, TILLS
from simulation.worker import Worker
from simulation.world import World, play_in

__all__ = ["SCHEDULES", "Schedule", "play"]

#: By kind of request: an operand that no other kind has.
_OPERANDS: Final = {
    "claim": ":first_fence",
    "commit": ":completed_at",
    "renewal": ":known",
    "dispatch": ":dispatched",
    "park": ":parked_at",
    "message": ":room",
    "removal": ":message",
}
#: The same for what is known by its operation.
_OPERATIONS: Final = {"transaction": TRANSACTION, "read": "get_item", "restore": "put_item"}
#: How many bodies a worker runs at once.
CHILDREN: Final = 2
#: Seconds of a body that is only to be over.
SHORT: Final = 0.01


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """What happens in a directed history, and what it must lead to."""

    name: str
    #: Of the histories' tasks.
    task: str
    arrange: "Callable[[DirectedWorld], None]"
    #: As in `History.expected`.
    expected: Mapping[str, int]
    #: As in `History.due`.
    due: float = inf
    machines: tuple[str, ...] = ("machine-0",)
    features: frozenset[str] = frozenset()


class _DirectedFaults(Faults):
    """Faults that happen when a schedule says so."""

    def __init__(self, draw: Any) -> None:
        super().__init__(draw, {}, LEASE_SECONDS)
        #: The kinds that happen now whenever they can.
        self.present: set[str] = set()
        #: What is different about the next request.
        self.course: dict[str, Any] = {}

    def happens(self, kind: str, *, shows: bool = False) -> bool:
        """Return whether a fault of this kind happens now; count it if so."""
        if kind not in self.present:
            return False
        self.counts[kind] += 1
        if not shows:
            self.on_fault(kind)
        return True

    def of_request(self, *, throttled: bool = False) -> RequestFault:
        """Return the course of the next request."""
        course, self.course = self.course, {}
        return replace(super().of_request(throttled=throttled), **course)


@dataclass
class _Misfortune:
    """What befalls the next requests of a kind."""

    request: str
    fault: str
    times: int
    course: dict[str, Any]
    also: Callable[[SimulatedProcess], None]
    machine: str | None

    def is_for(self, operation: str, operands: Mapping[str, Any], machine: str) -> bool:
        """Return whether a request with these operands is one of them."""
        is_kind = self.request == "any" or _OPERATIONS.get(self.request) == operation
        is_kind = is_kind or _OPERANDS.get(self.request) in operands
        # Both name a message; only the one that is to be kept needs room.
        is_kind = is_kind and not (self.request == "removal" and _OPERANDS["message"] in operands)
        return bool(self.times) and is_kind and self.machine in (None, machine)


@dataclass(frozen=True)
class _Cue:
    """What is done when an entry of the history is made, once."""

    kind: str
    details: dict[str, Any]
    act: Callable[[Entry], None]

    def is_for(self, entry: Entry) -> bool:
        """Return whether an entry is the one that is waited for."""
        return entry.kind == self.kind and self.details.items() <= entry.details.items()


class _DirectedClient(SimulatedClient):
    """A client whose requests have the course that a schedule gives them."""

    def __init__(self, world: "DirectedWorld") -> None:
        super().__init__(world.service, world.scheduler, world.faults)
        self._world = world

    def _send(self, operation: str, parameters: dict[str, Any]) -> Any:
        self._world.direct(operation, parameters.get("ExpressionAttributeValues") or {})
        return super()._send(operation, parameters)


class DirectedWorld(World):
    """The world of one directed history.

    Args:
        seed: its remainder says which schedule.
    """

    faults: _DirectedFaults

    def __init__(self, seed: int) -> None:
        self.schedule = SCHEDULES[seed % len(SCHEDULES)]
        self._cues: list[_Cue] = []
        self._misfortunes: list[_Misfortune] = []
        #: The same for requests to the user's database.
        self._mishaps: list[_Misfortune] = []
        #: How many calls are still to be published.
        self._to_come = 0
        #: Called when the history has ended.
        self.at_end: list[Callable[[], None]] = []
        self._person: Person | None = None
        super().__init__(seed)
        self.broker.visibility_seconds = None
        self.history.expected, self.history.due = dict(self.schedule.expected), self.schedule.due
        self._recorder.on_entry = self._cue
        self.database.on_request = self._direct_database

    def _subject(self) -> tuple[str, frozenset[str], Faults]:
        return self.schedule.task, self.schedule.features, _DirectedFaults(self.draw)

    def _new_clock(self) -> tuple[float, float]:
        return 0.0, 0.0

    def _new_client(self) -> SimulatedClient:
        return _DirectedClient(self)

    def set_up(self) -> None:
        """Start the workers, and do what the schedule says."""
        for machine in self.schedule.machines:
            self.workers.append(Worker(self, machine, CHILDREN))
        self._producer = Producer(self)
        self._producing = self.new_process("producer")
        self.schedule.arrange(self)

    def is_over(self) -> bool:
        """Return whether nothing is left to do."""
        return (
            not self._to_come
            and not self.undecided
            and not (self._person is not None and self._person.busy)
            and not self.broker.unsettled()
            and not any(worker.busy for worker in self.workers)
        )

    def call(
        self, at: float, task_id: str, *plan: Any, order: str = "order", linked: bool = False, **more: Any
    ) -> None:
        """Publish a call of the task after so many seconds; with a link, if it is ``linked``."""
        steps: Plan = list(plan)
        options = {**more, "link": follow.s(task_id)} if linked else more
        call = Call(task_id=task_id, order=order, plan=steps, options=options, followers=(task_id,) if linked else ())
        self._to_come += 1

        def publish() -> None:
            self._producer.publish(call, None)
            self._to_come -= 1

        def begin() -> None:
            self._call = self._producing.spawn(publish, "producer")

        self.scheduler.after(at, begin)

    def interrupt_call(self, at: float) -> None:
        """Raise a soft time limit after so many seconds in what publishes the last call, as in a body that does."""
        self.scheduler.after(at, lambda: self._call.interrupt(SoftTimeLimitExceeded()))

    def upon(self, kind: str, act: Callable[[Entry], None], **details: Any) -> None:
        """Do something right after the next entry of a kind with these details."""
        self._cues.append(_Cue(kind, details, act))

    def befall(
        self,
        request: str,
        fault: str,
        times: int = 1,
        also: Callable[[SimulatedProcess], None] = lambda _: None,
        machine: str | None = None,
        **course: Any,
    ) -> None:
        """Give the next requests of a kind a course, and do something when each is sent.

        Args:
            request: one of `_OPERANDS` or `_OPERATIONS`, or ``any``.
            fault: the name by which the checker knows what happens to it.
            times: how many requests.
            also: called with the process that sends it.
            machine: only of its processes; None for all.
            course: as in `RequestFault`.
        """
        self._misfortunes.append(_Misfortune(request, fault, times, course, also, machine))

    def befall_database(
        self, request: str, fault: str, times: int = 1, also: Callable[[SimulatedProcess], None] = lambda _: None
    ) -> None:
        """Give the next requests of a kind to the user's database a fault, and do something when each is sent.

        Args:
            request: ``begin``, ``write`` or ``commit``.
            fault: one of `DATABASE_FAULTS`; ``usual`` for none.
            times: how many requests.
            also: called with the process that sends it.
        """
        self._mishaps.append(_Misfortune(request, fault, times, {}, also, None))

    def decide(self, *judgements: int | None, after: float = 1.0, pause: float = 0.0) -> None:
        """Have a person decide the key when it is parked first, second, ...

        Args:
            judgements: as `Person.judge` returns them.
            after: seconds after a delivery's end.
            pause: seconds before each step of a command.
        """
        left = list(judgements)
        person = self._person = Person(self)
        self.history.person = person.name
        person.judge = lambda _: left.pop(0)
        person.pause = lambda: pause

        def resolve(_: Any) -> None:
            self.scheduler.after(after, person.act)

            if len(left) > 1:
                self.upon("resolved", lambda _: self.upon("Parked", resolve))

        self.upon("Parked", resolve)

    def resolve(self, at: float) -> None:
        """Have that person resolve after so many seconds, whatever has happened until then."""
        assert self._person is not None
        self.scheduler.after(at, self._person.act)

    def lose_machine(self, machine: str) -> None:
        """End all processes of a machine, of which nobody tells."""
        self.faults.counts["worker-killed"] += 1
        for worker in [each for each in self.workers if each.machine == machine]:
            worker.kill(orphans=False)
            self.workers.remove(worker)

    def revoke(self, task_id: str) -> None:
        """Let workers drop the messages of a task, as ``control.revoke`` does; for this history only."""
        state.revoked.add(task_id)
        self.drop(task_id)

    def drop(self, task_id: str) -> None:
        """Note that workers drop a task's messages; Celery remembers that beyond the history."""
        self.note("revoked", id=task_id)
        self.at_end.append(lambda: state.revoked.discard(task_id))

    def forget(self, entry: Entry) -> None:
        """Have an operator delete the record that an entry is about."""
        key = entry.details["key"]
        self.note("forgotten", key=key, force=True)
        self.faults.counts["forgotten"] += 1
        parameters = {"TableName": RECORDS, "Key": {"id": {"S": key}}}
        self.service.carry_out("delete_item", parameters, self.process_named(self.history.operator))

    def lose_results(self) -> None:
        """Have the bucket's objects deleted after the next commit."""
        kept = self.bucket.objects
        self.upon("Committed", lambda _: setattr(self.bucket, "objects", {}))
        # What the record stands for is still what it was.
        self.at_end.append(lambda: self.history.objects.update(kept))

    def close(self, seconds: float) -> None:
        """Make the check of ``unless-closed`` false for so many seconds."""
        tills = self.service.tables[TILLS].items
        tills[CLOSED] = {"id": {"S": CLOSED}}

        def open_again() -> None:
            del tills[CLOSED]

        self.scheduler.after(seconds, open_again)

    def get_well(self) -> None:
        """Let nothing go wrong with requests any more."""
        self._misfortunes.clear()

    def direct(self, operation: str, operands: Mapping[str, Any]) -> None:
        """Prepare the course of a request of an operation that has these operands."""
        sender: Any = this_process()
        for each in self._misfortunes:
            if each.is_for(operation, operands, sender.machine):
                each.times -= 1
                self.faults.counts[each.fault] += 1
                self.faults.course = dict(each.course)
                each.also(sender)
                return

    def _direct_database(self, request: str, sender: Any) -> str | None:
        for each in self._mishaps:
            if each.times and each.request == request:
                each.times -= 1
                self.faults.counts[each.fault] += 1
                each.also(sender)
                return None if each.fault == "usual" else each.fault
        return None

    def process_of(self, entry: Entry) -> SimulatedProcess:
        """Return the process that an entry is about."""
        return self.process_named(entry.details["process"])

    def process_named(self, name: str) -> SimulatedProcess:
        """Return the living process of a name."""
        return self._living[name]

    def killing(self, seconds: float) -> Callable[[SimulatedProcess], None]:
        """Return what kills a process after so many seconds."""

        def kill(process: SimulatedProcess) -> None:
            self.faults.counts["child-killed"] += 1
            self.scheduler.after(seconds, process.kill)

        return kill

    def stopping(self, seconds: float) -> Callable[[SimulatedProcess], None]:
        """Return what lets a process stand still for so many seconds."""

        def stop(process: SimulatedProcess) -> None:
            self.faults.counts["child-stopped"] += 1
            self.scheduler.after(0.0, process.stop)
            self.scheduler.after(seconds, process.go_on)

        return stop

    def shutting_down(self, *, cancels: bool = True) -> Callable[[Entry], None]:
        """Return what shuts the worker of an entry's machine down, cold."""

        def shut_down(entry: Entry) -> None:
            machine = self.process_of(entry).machine
            worker = next(each for each in self.workers if each.machine == machine)
            self.faults.counts["shut-down-cold"] += 1
            worker.shut_down(warm=False, cancels=cancels)

        return shut_down

    def during(self, seconds: float, *kinds: str) -> Callable[[Any], None]:
        """Return what lets faults of some kinds happen for so many seconds."""

        def begin(_: Any) -> None:
            self.faults.present.update(kinds)
            self.scheduler.after(seconds, lambda: self.faults.present.difference_update(kinds))

        return begin

    def _cue(self, entry: Entry) -> None:
        for cue in [each for each in self._cues if each.is_for(entry)]:
            self._cues.remove(cue)
            self.scheduler.after(0.0, partial(cue.act, entry))


def play(seed: int) -> History:
    """Play a directed history, and return what happened."""
    world = DirectedWorld(seed)
    try:
        return play_in(world)
    finally:
        for undo in world.at_end:
            undo()


#: A new one comes last, so that the others keep the seeds of their first histories.
SCHEDULES: Final[list[Schedule]] = []


def _schedule(name: str, task: str, **terms: Any) -> Callable[[Callable[[DirectedWorld], None]], None]:
    """Add a schedule; the function arranges what happens."""

    def add(arrange: Callable[[DirectedWorld], None]) -> None:
        SCHEDULES.append(Schedule(name=name, task=task, arrange=arrange, **terms))

    return add


@_schedule("a child dies in its body", "leased", expected={"began": 2, "Deferred": 0}, due=6)
def _dying_child(world: DirectedWorld) -> None:
    world.call(0, "task-0", ("sleep", 1))
    world.upon("began", lambda entry: world.killing(0.5)(world.process_of(entry)))


@_schedule("a body reaches its hard limit", "limited", expected={"began": 2, "Deferred": 0}, due=12)
def _hard_limit(world: DirectedWorld) -> None:
    world.call(0, "task-0", ("sleep", 20))
    world.upon("began", lambda _: world.call(9.3, "task-1", ("sleep", SHORT)))


@_schedule("a cold shutdown", "leased", machines=("machine-0", "machine-1"), expected={"began": 2}, due=7)
def _cold_shutdown(world: DirectedWorld) -> None:
    world.call(0, "task-0", ("sleep", 3))
    world.upon("began", world.shutting_down())


@_schedule(
    "a cold shutdown after the pool", "leased", machines=("machine-0", "machine-1"), expected={"began": 2}, due=7
)
def _deaf_shutdown(world: DirectedWorld) -> None:
    """The worker ends without hearing of the ends of its children."""
    world.call(0, "task-0", ("sleep", 3))
    world.upon("began", world.shutting_down(cancels=False))


@_schedule("a claim arrives after its process has died", "leased", expected={"began": 1}, due=10)
def _late_claim_of_the_dead(world: DirectedWorld) -> None:
    world.call(0, "task-0", ("sleep", SHORT))
    world.befall("claim", "request-late", also=world.killing(0.1), request_seconds=2.2)
    world.befall("claim", "request-lost", lost=True)


@_schedule("a retry that does not end its run", "leased", expected={"began": 2, "Deferred": 0}, due=20)
def _quiet_retry(world: DirectedWorld) -> None:
    world.call(0, "task-0", ("retry_quietly", 1), ("sleep", 6))


@_schedule("a call during the wait for a retry", "joined", expected={"began": 2, "Joined": 1, "Reserved": 2})
def _reserved_retry(world: DirectedWorld) -> None:
    world.call(0, "task-0", ("retry", 1), ("sleep", SHORT))
    world.upon("Released", lambda _: world.call(0.1, "task-1", ("sleep", SHORT)), reason="Retry")


@_schedule("a call that the broker refuses", "joined", expected={"not-published": 1, "Joined": 0, "began": 1}, due=3)
def _refused_call(world: DirectedWorld) -> None:
    world.during(0.5, "publish-refused")(None)
    world.call(0, "task-0", ("sleep", SHORT))
    world.call(1, "task-1", ("sleep", SHORT))


@_schedule(
    "a deferral that the broker refuses",
    "leased",
    machines=("machine-0", "machine-1"),
    expected={"began": 1, "Replayed": 1},
    due=20,
)
def _refused_deferral(world: DirectedWorld) -> None:
    world.call(0, "task-0", ("sleep", 3))
    world.call(1, "task-1", ("sleep", SHORT))
    world.upon("delivered", world.during(0.5, "publish-refused"), id="task-1")


@_schedule("a retry that the broker refuses", "leased", expected={"began": 3})
def _refused_retry(world: DirectedWorld) -> None:
    """The message itself goes back to its queue, and its next run retries."""
    world.call(0, "task-0", ("sleep", 0.5), ("retry", 1))
    world.upon("began", world.during(0.7, "publish-refused"))


@_schedule("an interrupt while a claim is asked for", "soft-only", expected={"began": 1, "Deferred": 1}, due=8)
def _interrupted_claim(world: DirectedWorld) -> None:
    """The claim is granted, its answer is lost, and the soft time limit comes; another call has the key at once."""
    world.call(0, "task-0", ("sleep", SHORT))
    world.befall("claim", "answer-lost", times=9, answers=False)
    world.upon("Deferred", lambda _: world.get_well())
    world.upon("Deferred", lambda _: world.call(0.1, "task-1", ("sleep", SHORT)))


@_schedule("a silent store and an interrupt", "soft-only", expected={"began": 1, "began again": 0}, due=12)
def _interrupted_unseen_claim(world: DirectedWorld) -> None:
    """Neither the claim's answer nor its release arrives; the next delivery releases it."""
    world.call(0, "task-0", ("sleep", SHORT))
    silent = partial(world.befall, "any", "request-lost", times=99, lost=True)
    world.befall("claim", "answer-lost", also=lambda _: silent(), answers=False)
    world.upon("Deferred", lambda _: world.get_well())


@_schedule("a silent store", "leased", expected={"began": 1, "Deferred": 1}, due=9)
def _unclaimed(world: DirectedWorld) -> None:
    """The claim is granted, and no answer arrives; its release does."""
    world.call(0, "task-0", ("sleep", SHORT))
    world.befall("claim", "answer-lost", times=9, answers=False)
    world.upon("Deferred", lambda _: world.get_well())
    world.upon("Deferred", lambda _: world.call(0.1, "task-1", ("sleep", SHORT)))


@_schedule("a store that is silent for longer", "leased", expected={"began": 1, "began again": 0}, due=9.8)
def _unclaimed_unreleased(world: DirectedWorld) -> None:
    """Neither the claim's answer nor its release arrives; the next delivery releases it."""
    world.call(0, "task-0", ("sleep", SHORT))
    silent = partial(world.befall, "any", "request-lost", times=99, lost=True)
    world.befall("claim", "answer-lost", also=lambda _: silent(), answers=False)
    world.upon("Deferred", lambda _: world.get_well())


@_schedule("a process that stands still while it claims", "leased", machines=("machine-0", "machine-1"), expected={})
def _late_grant(world: DirectedWorld) -> None:
    world.call(0, "task-0", ("sleep", SHORT))
    world.befall("claim", "answer-late", also=world.stopping(2 * LEASE_SECONDS))


@_schedule("a process that stands still while it locks", "brief-lock", expected={})
def _late_lock(world: DirectedWorld) -> None:
    """Its key's claim ends before the lock is granted, and is not renewed."""
    world.call(0, "task-0", ("sleep", SHORT))
    world.befall("claim", "usual")
    world.befall("claim", "answer-late", also=world.stopping(4.4))
    world.befall("renewal", "request-lost", lost=True)


@_schedule("a lock that another run holds", "exclusive", expected={"began": 2}, due=8)
def _busy_lock(world: DirectedWorld) -> None:
    world.call(0, "task-0", ("sleep", 3))
    world.call(1, "task-1", ("sleep", SHORT))


@_schedule("an interrupt while a lock is asked for", "exclusive", expected={"began": 2, "Deferred": 1}, due=9)
def _interrupted_lock(world: DirectedWorld) -> None:
    """The lock is granted, its answer is lost; another call needs it."""
    world.call(0, "task-0", ("sleep", SHORT))
    world.befall("claim", "usual")
    world.befall("claim", "answer-lost", times=9, answers=False)
    world.upon("Deferred", lambda _: world.get_well())
    world.upon("Deferred", lambda _: world.call(0.1, "task-1", ("sleep", SHORT)))


@_schedule("one key for two orders", "leased", expected={"began": 1})
def _explicit_key(world: DirectedWorld) -> None:
    world.call(0, "task-0", ("sleep", SHORT), idempotency_key="call")
    world.call(2, "task-1", ("sleep", SHORT), order="another", idempotency_key="call")


@_schedule("a retry of a call with its own key", "leased", expected={"began": 2})
def _explicit_key_retried(world: DirectedWorld) -> None:
    world.call(0, "task-0", ("retry", 1), ("sleep", SHORT), idempotency_key="call")
    world.call(9, "task-1", ("sleep", SHORT), order="another", idempotency_key="call")


@_schedule("a body that stops its link, and dies", "leased", expected={"began": 1, "followed": 0})
def _stopped_link(world: DirectedWorld) -> None:
    world.call(0, "task-0", ("stop_callbacks", 1), ("sleep", SHORT), linked=True)
    world.befall("commit", "answer-lost", also=world.killing(0.1), answers=False)


@_schedule("a message that comes again after its link was sent", "leased", expected={"began": 1, "delivered follow": 1})
def _link_sent(world: DirectedWorld) -> None:
    again = partial(world.call, task_id="task-0", linked=True)
    again(0)
    world.upon("Dispatched", lambda _: again(0.1))


@_schedule("a message that comes again while its link is sent", "leased", expected={"began": 1, "delivered follow": 1})
def _link_being_sent(world: DirectedWorld) -> None:
    again = partial(world.call, 0, "task-0", ("sleep", 1), linked=True)
    again()
    world.befall("dispatch", "request-late", also=lambda _: again(), request_seconds=0.8)


@_schedule("a link that the broker refuses", "leased", expected={"began": 1, "followed": 1})
def _refused_link(world: DirectedWorld) -> None:
    world.call(0, "task-0", ("sleep", 1), linked=True)
    world.upon("over", world.during(0.3, "publish-refused"))


@_schedule("a doubled copy", "leased", expected={"began": 1, "Merged": 1})
def _doubled_copy(world: DirectedWorld) -> None:
    """The first copy of a deferred message is there twice: one of the two is enough."""
    world.call(0, "task-0", ("sleep", 6))
    world.call(1, "task-1", ("sleep", SHORT))
    world.upon("delivered", world.during(0.3, "message-doubled"), id="task-1")


@_schedule("a large result", "leased", expected={"began": 1, "Replayed": 1}, features=frozenset({"large-result"}))
def _large_result(world: DirectedWorld) -> None:
    world.call(0, "task-0", ("return", "large-result"))
    world.call(3, "task-1", ("return", "large-result"))


@_schedule("a large result that is gone", "leased", expected={"began": 1}, features=frozenset({"large-result"}))
def _missing_result(world: DirectedWorld) -> None:
    world.call(0, "task-0", ("return", "large-result"))
    world.call(3, "task-1", ("return", "large-result"))
    world.lose_results()


@_schedule("an upload that fails", "leased", expected={"began": 1, "Replayed": 1}, features=frozenset({"large-result"}))
def _failed_upload(world: DirectedWorld) -> None:
    """The result goes into the record instead, which has room for it."""
    world.call(0, "task-0", ("return", "large-result"))
    world.call(8, "task-1", ("return", "large-result"))
    world.upon("over", world.during(7, "upload-lost"))


@_schedule("a revoked reservation", "joined", expected={"began": 1, "Joined": 0, "Deferred": 0}, due=5)
def _revoked(world: DirectedWorld) -> None:
    """The worker drops the message when it is due; the next call of its key is published, and runs at once."""
    world.revoke("task-0")
    world.call(0, "task-0", ("sleep", SHORT), countdown=1)
    world.call(3, "task-1", ("sleep", SHORT))


@_schedule("a call before a revoked message is dropped", "joined", expected={"began": 1, "Joined": 0}, due=40)
def _revoked_and_held(world: DirectedWorld) -> None:
    """The reservation is still there; its task will never run, so that nobody may be given its result."""
    world.revoke("task-0")
    world.call(0, "task-0", ("sleep", SHORT), countdown=1)
    world.befall("any", "request-lost", times=9, machine="machine-0", lost=True)
    world.scheduler.after(9, world.get_well)
    world.call(1.5, "task-1", ("sleep", SHORT))


@_schedule("a call that outlives the reservation", "joined", expected={"began": 1, "Joined": 0}, due=40)
def _outlived(world: DirectedWorld) -> None:
    """What has the key expires before it runs, so that nobody may be given its result who wants one for longer."""
    # Celery compares this with the machine's own time, which is years later.
    world.drop("task-0")
    world.call(0, "task-0", ("sleep", SHORT), countdown=4, expires=6)
    world.call(1, "task-1", ("sleep", SHORT))


@_schedule("an interrupt while an outcome is recorded", "soft-only", expected={"began": 1, "Committed": 1}, due=9)
def _interrupted_commit(world: DirectedWorld) -> None:
    world.call(0, "task-0", ("sleep", 4))
    world.befall("commit", "request-lost", lost=True)


@_schedule("a reservation without an answer", "strict", expected={"not-published": 1, "began": 1, "Deferred": 0}, due=4)
def _unanswered_reservation(world: DirectedWorld) -> None:
    """The caller gets an error, and calls again with another task id."""
    world.call(0, "task-0", ("sleep", SHORT))
    world.befall("claim", "answer-lost", times=9, answers=False)
    world.upon("not-published", lambda _: world.get_well())
    world.call(3, "task-1", ("sleep", SHORT))


@_schedule("an interrupted reservation", "strict", expected={"not-published": 1, "began": 1, "Deferred": 0}, due=4)
def _interrupted_reservation(world: DirectedWorld) -> None:
    """The reservation is granted, its answer is lost, and the caller is interrupted."""
    world.call(0, "task-0", ("sleep", SHORT))
    world.befall("claim", "answer-lost", answers=False)
    world.interrupt_call(0.5)
    world.call(3, "task-1", ("sleep", SHORT))


@_schedule("a call whose result is ignored", "joined", expected={"Joined": 0, "began": 1})
def _ignored(world: DirectedWorld) -> None:
    """Nobody may be given the result of a task that keeps none."""
    world.call(0, "task-0", ("sleep", SHORT), countdown=3, ignore_result=True)
    world.call(1, "task-1", ("sleep", SHORT))


@_schedule("a call while a child is killed", "graceful", expected={"began": 2}, due=13)
def _call_beside_the_dying(world: DirectedWorld) -> None:
    """A child that is past its hard limit lives for some more moments."""
    world.call(0, "task-0", ("sleep", 20))
    world.upon("began", lambda _: world.call(8.15, "task-1", ("sleep", SHORT)))


def _kills_first(world: DirectedWorld) -> None:
    world.upon("began", lambda entry: world.killing(0.5)(world.process_of(entry)))


def _parked_again(world: DirectedWorld, **pauses: float) -> None:
    """Have a key parked, decided to run, parked again after that run, and decided."""
    world.call(0, "task-0", ("sleep", 1))
    _kills_first(world)
    world.decide(None, 7, **pauses)
    world.upon("resolved", lambda _: _kills_first(world))


@_schedule("a rerun is parked, and was done", "parks", expected={"began": 1, "Parked": 1, "followed": 1}, due=12)
def _parked_and_done(world: DirectedWorld) -> None:
    world.call(0, "task-0", ("sleep", 1), linked=True)
    _kills_first(world)
    world.decide(7)


@_schedule("a rerun is parked, and runs", "parks", expected={"began": 2, "Parked": 1, "followed": 1}, due=8)
def _parked_and_run(world: DirectedWorld) -> None:
    world.call(0, "task-0", ("sleep", 1), linked=True)
    _kills_first(world)
    world.decide(None)


@_schedule("a first crash is parked", "parks-crashing", expected={"began": 1, "Parked": 1, "CrashLooped": 0}, due=8)
def _parked_crash(world: DirectedWorld) -> None:
    world.call(0, "task-0", ("sleep", 1))
    _kills_first(world)
    world.decide(7)


@_schedule("a message that is too large for the record", "parks", expected={"began": 1, "Parked": 0, "Replayed": 1})
def _large_message(world: DirectedWorld) -> None:
    """It is deferred until a person has decided."""
    world.call(0, "task-0", ("sleep", 1), ("carry", world.draw.randbytes(320_000).hex()))
    _kills_first(world)
    world.decide(7)
    world.resolve(10)


@_schedule("a message whose keeping gets no answer", "parks", expected={"began": 1, "Parked": 1, "Replayed": 1})
def _unanswered_keeping(world: DirectedWorld) -> None:
    """It is deferred, and kept by its next delivery."""
    world.call(0, "task-0", ("sleep", 1))
    _kills_first(world)
    world.befall("message", "request-lost", times=9, lost=True)
    world.upon("Deferred", lambda _: world.get_well())
    world.decide(7)


@_schedule("a decision before a message is kept", "parks", expected={"began": 1, "Parked": 0, "Replayed": 1}, due=20)
def _early_decision(world: DirectedWorld) -> None:
    """The message is on its way to the record, which is decided when it arrives."""
    world.call(0, "task-0", ("sleep", 1))
    _kills_first(world)
    world.befall("message", "request-late", request_seconds=1.5)
    world.decide(7)
    world.upon("stopped", lambda _: world.resolve(1.5))


@_schedule("a park that gets no answer", "parks", expected={"began": 1, "Parked": 1, "Replayed": 1}, due=60)
def _unanswered_park(world: DirectedWorld) -> None:
    """It was parked all the same, which the deferred message finds."""
    world.call(0, "task-0", ("sleep", 1))
    _kills_first(world)
    world.befall("park", "answer-lost", times=9, answers=False)
    world.upon("Deferred", lambda _: world.get_well())
    world.decide(7)


@_schedule("a park that does not arrive", "parks", expected={"began": 1, "Parked": 1, "Replayed": 1}, due=60)
def _lost_park(world: DirectedWorld) -> None:
    """The deferred message frees the claim that its first delivery had, and parks the key itself."""
    world.call(0, "task-0", ("sleep", 1))
    _kills_first(world)
    world.befall("park", "request-lost", times=9, lost=True)
    world.upon("Deferred", lambda _: world.get_well())
    world.decide(7)


@_schedule("a park whose process stands still", "parks", expected={"began": 1, "Parked": 1, "Replayed": 2}, due=30)
def _late_park(world: DirectedWorld) -> None:
    """Another delivery has the claim by then, and parks the key; the first one finds that it is decided."""
    world.call(0, "task-0", ("sleep", 1))
    world.call(3, "task-1", ("sleep", SHORT))
    _kills_first(world)
    world.befall("park", "child-stopped", also=world.stopping(14), request_seconds=13)
    world.decide(7)


@_schedule("a key that is parked twice", "parks", expected={"began": 2, "Parked": 2, "Replayed": 1}, due=30)
def _parked_twice(world: DirectedWorld) -> None:
    """The removal of its message after the first decision arrives when it is parked again."""
    _parked_again(world, after=4)
    world.upon("published-again", lambda _: world.befall("removal", "request-late", request_seconds=3.5))


@_schedule("a key that is decided twice", "parks", expected={"began": 2, "Parked": 2, "Replayed": 1}, due=30)
def _decided_twice(world: DirectedWorld) -> None:
    """The removal after the first decision arrives after the second, and before its message is published again."""
    _parked_again(world, after=3, pause=1.5)
    world.upon("published-again", lambda _: world.befall("removal", "request-late", request_seconds=5.4))


@_schedule("a recover that fails each time", "recovers", expected={"began": 1, "asked": 5, "Parked": 1, "Replayed": 1})
def _failing_recover(world: DirectedWorld) -> None:
    world.call(0, "task-0", ("sleep", 1), ("ask", ["raises", 1]))
    _kills_first(world)
    world.decide(7)


@_schedule("a recover that knows nothing", "recovers", expected={"began": 1, "asked": 1, "Parked": 1, "Replayed": 1})
def _ignorant_recover(world: DirectedWorld) -> None:
    world.call(0, "task-0", ("sleep", 1), ("ask", ["knows-nothing", 1]))
    _kills_first(world)
    world.decide(7)


@_schedule("a recover that retries once", "recovers", expected={"began": 2, "asked": 2, "Parked": 0}, due=40)
def _retrying_recover(world: DirectedWorld) -> None:
    """No run is counted for it."""
    world.call(0, "task-0", ("sleep", 1), ("ask", ["retries-once", 1]))
    _kills_first(world)


@_schedule(
    "an effect that was made", "recovers", expected={"began": 1, "asked": 1, "charged": 1, "followed": 1}, due=30
)
def _made_effect(world: DirectedWorld) -> None:
    world.call(0, "task-0", ("charge", None), ("sleep", 3), linked=True)
    world.upon("began", lambda entry: world.killing(1.5)(world.process_of(entry)))


@_schedule("an effect that comes late", "recovers", expected={"began": 1, "asked": 1, "charged": 1}, due=60)
def _late_effect(world: DirectedWorld) -> None:
    """Its run dies with its request on the way, which arrives before the provider is asked."""
    world.during(5, "provider-late")(None)
    world.call(0, "task-0", ("charge", None), ("sleep", 3))
    world.upon("began", lambda entry: world.killing(0.2)(world.process_of(entry)))


@_schedule(
    "a late effect of a lost machine",
    "recovers",
    machines=("machine-0", "machine-1"),
    expected={"began": 1, "asked": 1, "charged": 1},
    due=60,
)
def _late_effect_of_lost_machine(world: DirectedWorld) -> None:
    """Nobody releases the key; the claim ends later than the request arrives."""
    world.during(9, "provider-late")(None)
    world.call(0, "task-0", ("sleep", 4), ("charge", None), ("sleep", 3))

    def lose(began: Entry) -> None:
        world.upon("requested", lambda _: world.lose_machine(world.process_of(began).machine))

    world.upon("began", lose)


@_schedule("a call while a key settles", "recovers-joined", expected={"began": 2, "Joined": 0, "asked": 1}, due=30)
def _call_while_settling(world: DirectedWorld) -> None:
    world.call(0, "task-0", ("sleep", SHORT), ("fail", 1))
    world.call(2, "task-1", ("sleep", SHORT))


@_schedule(
    "another task while a key settles", "recovers-skips", expected={"began": 2, "Skipped": 0, "asked": 1}, due=30
)
def _delivery_while_settling(world: DirectedWorld) -> None:
    world.call(0, "task-0", ("sleep", SHORT), ("fail", 1))
    world.call(2, "task-1", ("sleep", SHORT))


@_schedule("a recover that stands still", "recovers", expected={"began": 2, "asked": 2, "charged": 1}, due=90)
def _late_answer(world: DirectedWorld) -> None:
    """When it has answered, another delivery has the key and has had the effect."""
    world.call(0, "task-0", ("sleep", 1), ("charge", None))
    world.call(3, "task-1", ("charge", None))
    _kills_first(world)
    world.upon("looked-up", lambda entry: world.stopping(40)(world.process_of(entry)))


@_schedule(
    "an effect without a result", "recovers", expected={"began": 1, "asked": 1, "charged": 1, "followed": 1}, due=30
)
def _effect_without_result(world: DirectedWorld) -> None:
    """What was done may be nothing that a body returns."""
    world.call(0, "task-0", ("charge", None), ("sleep", 3), ("ask", ["has-no-result", 1]), linked=True)
    world.upon("began", lambda entry: world.killing(1.5)(world.process_of(entry)))


@_schedule(
    "a process that dies between the park and its message",
    "parks",
    expected={"began": 1, "Parked": 1, "Replayed": 1, "deciding": 1},
    due=30,
)
def _dying_parker(world: DirectedWorld) -> None:
    """The next delivery finds the key parked, and has its message kept."""
    world.call(0, "task-0", ("sleep", 1))
    _kills_first(world)
    world.befall("message", "request-lost", lost=True, also=world.killing(0.01))
    world.decide(7)


@_schedule("a transaction whose answer is lost", "writes", expected={"began": 1, "Committed": 1, "Released": 0}, due=4)
def _lost_answer_of_transaction(world: DirectedWorld) -> None:
    """The next try is cancelled, because the record has its outcome: that of the first one."""
    world.call(0, "task-0", ("write", "adds"))
    world.befall("transaction", "answer-lost", answers=False)


@_schedule("a transaction that never arrives", "writes", expected={"began": 2, "Deferred": 1, "Committed": 1}, due=20)
def _lost_transaction(world: DirectedWorld) -> None:
    """The key is released, and the message deferred; its next delivery writes."""
    world.call(0, "task-0", ("write", "adds"))
    world.befall("transaction", "transaction-unanswered", times=99, lost=True)
    world.upon("Deferred", lambda _: world.get_well())


@_schedule("a transaction that is never answered", "writes", expected={"began": 1, "Deferred": 0, "Replayed": 1})
def _unanswered_transaction(world: DirectedWorld) -> None:
    """It was carried out, which the release of its claim shows."""
    world.call(0, "task-0", ("write", "adds"))
    world.call(30, "task-1", ("write", "adds"))
    world.befall("transaction", "answer-lost", answers=False)
    world.befall("transaction", "transaction-unanswered", times=99, lost=True)


@_schedule("a transaction in a silence", "writes", expected={"began": 1, "Replayed": 1}, due=40)
def _transaction_in_silence(world: DirectedWorld) -> None:
    """It was carried out, and nobody says so before the message comes again."""
    world.call(0, "task-0", ("write", "adds"))
    silent = partial(world.befall, "any", "request-lost", times=99, lost=True)
    world.befall("transaction", "answer-lost", also=lambda _: silent(), answers=False)
    world.upon("Deferred", lambda _: world.get_well())


@_schedule("refused writes", "writes", expected={"began": 2, "Deferred": 0, "Committed": 1, "Released": 1}, due=4)
def _refused_writes(world: DirectedWorld) -> None:
    """The key is free for the next message."""
    world.close(1)
    world.call(0, "task-0", ("write", "unless-closed"))
    world.call(2, "task-1", ("write", "unless-closed"))


@_schedule("refused writes that are not released", "writes", expected={"began": 2, "Committed": 1}, due=40)
def _refused_unreleased(world: DirectedWorld) -> None:
    """Nothing is reported: another try may be on its way still."""
    world.close(5)
    world.call(0, "task-0", ("write", "unless-closed"))
    silent = partial(world.befall, "any", "request-lost", times=99, lost=True)
    world.befall("transaction", "usual", also=lambda _: world.befall("read", "usual", also=lambda _: silent()))
    world.upon("Deferred", lambda _: world.get_well())


@_schedule("refused writes that arrive again", "writes", expected={"began": 2, "applied": 0, "Deferred": 0}, due=9)
def _late_after_refusal(world: DirectedWorld) -> None:
    """The first try arrives when its condition would be true, after the second one was refused and reported.

    The other call lasts until then.
    """
    world.call(0, "task-0", ("write", "unless-closed"))
    world.befall("transaction", "request-late", also=lambda _: world.close(4), request_seconds=5)
    world.call(8, "task-1", ("sleep", SHORT), order="another")


@_schedule(
    "a transaction whose process stands still",
    "writes",
    machines=("machine-0", "machine-1"),
    expected={"began": 2, "applied": 2, "Replayed": 1},
    due=40,
)
def _zombie_transaction(world: DirectedWorld) -> None:
    """Another delivery has taken over by then, and has written."""
    world.call(0, "task-0", ("write", "adds"))
    world.call(1, "task-1", ("write", "adds"))
    world.befall("transaction", "child-stopped", also=world.stopping(25), request_seconds=24)


@_schedule(
    "a body with writes that stands still",
    "writes",
    machines=("machine-0", "machine-1"),
    expected={"began": 2, "applied": 2, "Superseded": 1, "Replayed": 1},
    due=40,
)
def _zombie_body(world: DirectedWorld) -> None:
    """It goes on when another delivery has written, and returns that one's result."""
    world.call(0, "task-0", ("sleep", 1), ("write", "adds"))
    world.call(2, "task-1", ("write", "adds"))
    world.upon("began", lambda entry: world.stopping(25)(world.process_of(entry)))


@_schedule("a transaction of a dead process", "writes", expected={"began": 3, "applied": 2, "Deferred": 0}, due=9)
def _transaction_of_the_dead(world: DirectedWorld) -> None:
    """It arrives when the next delivery has written; the other call lasts until then."""
    world.call(0, "task-0", ("write", "adds"))
    world.befall("transaction", "request-late", also=world.killing(SHORT), request_seconds=5)
    world.call(8, "task-1", ("sleep", SHORT), order="another")


@_schedule("a record that is deleted under its body", "writes", expected={"began": 2, "Deferred": 1, "Committed": 1})
def _forgotten_under_transaction(world: DirectedWorld) -> None:
    """Nothing is written, and the message comes again."""
    world.call(0, "task-0", ("sleep", 1), ("write", "adds"))
    world.upon("began", world.forget)


@_schedule("two transactions at one item", "writes", expected={"began": 1, "Committed": 1, "Deferred": 0}, due=3)
def _conflicting_transaction(world: DirectedWorld) -> None:
    """It is tried again."""
    world.call(0, "task-0", ("write", "adds"))
    world.befall("transaction", "transaction-conflict", refusal=conflict)


@_schedule("an interrupt while writes are under way", "writes-soft", expected={"began": 1, "Committed": 1}, due=9)
def _interrupted_transaction(world: DirectedWorld) -> None:
    world.call(0, "task-0", ("sleep", 4), ("write", "adds"))
    world.befall("transaction", "request-lost", lost=True)


@_schedule("writes with a result that cannot be written", "writes", expected={"began": 2, "Committed": 1}, due=5)
def _unwritable_with_writes(world: DirectedWorld) -> None:
    """Nothing is written, and the key is free."""
    world.call(0, "task-0", ("write", "adds"), ("return", "unwritable-result"))
    world.call(2, "task-1", ("write", "adds"))


@_schedule("writes after a retry was published", "writes", expected={"began": 2, "Committed": 1, "applied": 2}, due=12)
def _writes_after_retry(world: DirectedWorld) -> None:
    """The retry writes, its first run does not."""
    world.call(0, "task-0", ("retry_quietly", 1), ("write", "adds"))


@_schedule("writes without a record", "writes-unguarded", expected={"began": 1, "applied": 2}, due=9)
def _writes_without_record(world: DirectedWorld) -> None:
    """A try whose answer is lost was carried out, and the next one is the same transaction."""
    world.call(0, "task-0", ("write", "adds"))
    world.befall("transaction", "transaction-conflict", refusal=conflict)
    world.befall("transaction", "answer-lost", answers=False)


@_schedule("refused writes without a record", "writes-unguarded", expected={"began": 1, "applied": 0}, due=2)
def _refused_without_record(world: DirectedWorld) -> None:
    world.close(1)
    world.call(0, "task-0", ("write", "unless-closed"))


@_schedule("a record that is deleted", "leased", expected={"began": 1, "Committed": 1, "Replayed": 1}, due=5)
def _forgotten(world: DirectedWorld) -> None:
    """The outcome is written all the same: its effect is done."""
    world.call(0, "task-0", ("sleep", 1))
    world.call(3, "task-1", ("sleep", SHORT))
    world.upon("began", world.forget)


@_schedule(
    "an effect that another run has not finished",
    "leased",
    machines=("machine-0", "machine-1"),
    expected={"began": 2, "Committed": 1, "Replayed": 1},
    due=40,
)
def _unfinished_successor(world: DirectedWorld) -> None:
    """It took the key over, and failed: the outcome of the one that stood still is the key's."""
    world.call(0, "task-0", ("sleep", 1))
    world.call(2, "task-1", ("fail", 1))
    world.call(30, "task-2", ("sleep", SHORT))
    world.upon("began", lambda entry: world.stopping(20)(world.process_of(entry)))


@_schedule(
    "an orphan past its time limit",
    "leased-limited",
    machines=("machine-0", "machine-1"),
    expected={"began": 2, "Committed": 0},
    due=25,
)
def _orphan(world: DirectedWorld) -> None:
    """Nobody kills it, and it renews its claim no longer than it would have lived; its next run is killed in time."""
    world.call(0, "task-0", ("sleep", 25))

    def orphan(entry: Entry) -> None:
        world.faults.counts["worker-killed"] += 1
        machine = world.process_of(entry).machine
        for worker in [each for each in world.workers if each.machine == machine]:
            worker.kill(orphans=True)
            world.workers.remove(worker)

    world.upon("began", orphan)


@_schedule("a renewal that is answered after its end", "leased", expected={"began": 1, "Renewed": 0, "Committed": 1})
def _late_renewal(world: DirectedWorld) -> None:
    """Nobody has taken the key, so that the outcome is recorded."""
    world.call(0, "task-0", ("sleep", 5))
    world.befall("renewal", "child-stopped", also=world.stopping(20), times=9)


@_schedule("no writes without a record", "writes-unguarded", expected={"began": 1, "applied": 0}, due=1)
def _nothing_without_record(world: DirectedWorld) -> None:
    world.call(0, "task-0", ("write", "nothing"))


@_schedule("a deleted record that is written late", "leased", expected={"began": 1, "Committed": 1, "Replayed": 1})
def _forgotten_and_late(world: DirectedWorld) -> None:
    """It is kept for as long as its task says, from when that is known."""
    world.call(0, "task-0", ("sleep", 1))
    world.call(20, "task-1", ("sleep", SHORT))
    world.upon("began", world.forget)
    world.befall("restore", "child-stopped", also=world.stopping(4))


@_schedule("a deleted record whose key is claimed", "leased", expected={"began": 2, "Committed": 1, "Superseded": 1})
def _forgotten_and_claimed(world: DirectedWorld) -> None:
    """The other run begins before the outcome of the first one arrives, which is not recorded then."""
    world.call(0, "task-0", ("sleep", 1))
    world.upon("began", world.forget)
    again = partial(world.call, 0, "task-1", ("sleep", SHORT))
    world.befall("restore", "request-late", also=lambda _: again(), request_seconds=1.5)


@_schedule(
    "an effect that another run does not finish either",
    "leased",
    machines=("machine-0", "machine-1"),
    expected={"began": 3, "Committed": 1, "Superseded": 1, "Replayed": 1},
    due=60,
)
def _busy_successor(world: DirectedWorld) -> None:
    """A third one claims the key before the one that stood still does: it is the one that counts."""
    world.call(0, "task-0", ("sleep", 1))
    world.call(2, "task-1", ("fail", 1))
    third = partial(world.call, 0, "task-2", ("sleep", 5))

    def stand_still(entry: Entry) -> None:
        process = world.process_of(entry)
        world.stopping(20)(process)
        late = partial(world.befall, "claim", "request-late", also=lambda _: third(), request_seconds=1.5)
        world.upon("Released", lambda _: late(machine=process.machine))

    world.upon("began", stand_still)


@_schedule(
    "an ignored result that is gone",
    "leased",
    expected={"began": 1, "Replayed": 1},
    features=frozenset({"large-result"}),
    due=5,
)
def _missing_ignored_result(world: DirectedWorld) -> None:
    """Nobody gets it, so that it is no reason to fail."""
    world.call(0, "task-0", ("return", "large-result"))
    world.call(3, "task-1", ("return", "large-result"), ignore_result=True)
    world.lose_results()


#: A row, and a while for something to happen before its commit.
_SLOW_ROW: Final = (("row", "usual"), ("sleep", 1))


def _kills_between(world: DirectedWorld) -> None:
    """Have a process die when its transaction is committed, and its outcome is not recorded yet."""
    world.upon("receipt-committed", lambda entry: world.killing(0.0)(world.process_of(entry)))


def _stands_still(world: DirectedWorld, seconds: float) -> None:
    """Have the first run stand still in its transaction."""
    world.upon(
        "began", lambda entry: world.scheduler.after(0.5, lambda: world.stopping(seconds)(world.process_of(entry)))
    )


@_schedule("a commit whose answer is lost", "rows", expected={"began": 1, "row-committed": 1, "Committed": 1}, due=6)
def _unanswered_row(world: DirectedWorld) -> None:
    """The row of the receipt says that it was committed."""
    world.call(0, "task-0", ("row", "usual"))
    world.befall_database("commit", "commit-unanswered")


@_schedule("a commit that does not arrive", "rows", expected={"began": 2, "row-committed": 1, "Deferred": 0}, due=6)
def _lost_row(world: DirectedWorld) -> None:
    """The receipt is not there, so the body runs again, under the same claim."""
    world.call(0, "task-0", ("row", "usual"))
    world.befall_database("commit", "commit-lost")


@_schedule("a row that nobody gives up", "rows", expected={"began": 2, "row-committed": 1, "waits": 4}, due=60)
def _held_row(world: DirectedWorld) -> None:
    """The server does not hear of the connection's end, and keeps the row until it has been silent for too long."""
    world.call(0, "task-0", ("row", "usual"))
    world.befall_database("commit", "commit-vanished")


@_schedule("a deadlock at the end", "rows", expected={"began": 2, "row-committed": 1, "Released": 0}, due=4)
def _deadlock_at_commit(world: DirectedWorld) -> None:
    world.call(0, "task-0", ("row", "usual"))
    world.befall_database("commit", "deadlock-at-commit")


@_schedule("a deadlock in a body", "rows", expected={"began": 2, "row-committed": 1, "followed": 1}, due=6)
def _deadlock_in_body(world: DirectedWorld) -> None:
    """What the first try wanted to follow does not."""
    world.call(0, "task-0", ("then", None), ("row", "usual"))
    world.befall_database("write", "deadlock-in-body")


@_schedule(
    "a link that a lost try has stopped", "rows", expected={"began": 2, "row-committed": 1, "followed": 1}, due=6
)
def _link_of_lost_try(world: DirectedWorld) -> None:
    world.call(0, "task-0", ("stop_callbacks_at_first", None), ("row", "usual"), linked=True)
    world.befall_database("commit", "deadlock-at-commit")


@_schedule("a lost try that said that it did nothing", "rows", expected={"began": 3, "row-committed": 1}, due=12)
def _nothing_done_in_lost_try(world: DirectedWorld) -> None:
    """The second one, which retries, has not said so."""
    world.call(0, "task-0", ("do_nothing_at_first", None), ("row", "usual"), ("retry", 1))
    world.befall_database("write", "deadlock-in-body")


@_schedule("a process that dies between two commits", "rows", expected={"began": 1, "row-committed": 1, "followed": 1})
def _death_between_commits(world: DirectedWorld) -> None:
    """Who finds the receipt sends what follows, and takes its result."""
    world.call(0, "task-0", ("row", "usual"), ("then", None))
    _kills_between(world)


@_schedule("a process that dies before its commit", "rows", expected={"began": 2, "row-committed": 1}, due=8)
def _death_before_commit(world: DirectedWorld) -> None:
    world.call(0, "task-0", *_SLOW_ROW)
    _kills_first(world)


@_schedule("a commit of a dead process", "rows", expected={"began": 1, "row-committed": 1, "Committed": 1}, due=8)
def _commit_of_the_dead(world: DirectedWorld) -> None:
    """It was on its way."""
    world.call(0, "task-0", ("row", "usual"))
    world.befall_database("commit", "usual", also=world.killing(0.0005))


@_schedule(
    "a transaction that stands still",
    "rows",
    machines=("machine-0", "machine-1"),
    expected={"began": 2, "row-committed": 1, "receipt-committed": 1, "Replayed": 1},
    due=70,
)
def _zombie_in_transaction(world: DirectedWorld) -> None:
    """The server has ended it, and another run has committed, when it goes on."""
    world.call(0, "task-0", *_SLOW_ROW)
    world.call(2, "task-1", ("row", "usual"))
    _stands_still(world, 60)


@_schedule(
    "a process that stands still while its transaction begins",
    "rows",
    machines=("machine-0", "machine-1"),
    expected={"began": 1, "row-committed": 1, "Replayed": 1},
    due=70,
)
def _zombie_before_body(world: DirectedWorld) -> None:
    """Its claim has ended when it goes on."""
    world.call(0, "task-0", ("row", "usual"))
    world.call(2, "task-1", ("row", "usual"))
    world.befall_database("begin", "usual", also=world.stopping(60))


@_schedule(
    "a final failure beside a success",
    "rows",
    machines=("machine-0", "machine-1"),
    expected={"began": 2, "row-committed": 1, "receipt-committed": 1},
    due=70,
)
def _failure_beside_success(world: DirectedWorld) -> None:
    """What has failed finds the receipt of what has not."""
    world.call(0, "task-0", *_SLOW_ROW, ("fail_finally", 1))
    world.call(2, "task-1", ("row", "usual"))
    _stands_still(world, 60)


@_schedule("a final failure", "rows", expected={"began": 1, "row-committed": 0, "receipt-committed": 1}, due=5)
def _failure_with_row(world: DirectedWorld) -> None:
    """It has a receipt, and no row."""
    world.call(0, "task-0", ("row", "usual"), ("fail_finally", 1))
    world.call(3, "task-1", ("row", "usual"))


@_schedule(
    "a result that is known beside a transaction",
    "rows-recovers",
    machines=("machine-0", "machine-1"),
    expected={"began": 1, "asked": 1, "row-committed": 0, "receipt-committed": 1},
    due=90,
)
def _done_beside_zombie(world: DirectedWorld) -> None:
    """The effect at the provider was made, the row was not, and never will be."""
    world.call(0, "task-0", ("charge", None), ("row", "usual"), ("sleep", 2))
    world.call(3, "task-1", ("charge", None))
    world.upon("charged", lambda _: _stop_running(world, 60))


def _stop_running(world: DirectedWorld, seconds: float) -> None:
    """Have the process stand still, a moment later, whose body began first."""
    process = world.process_of(world.history.of("began")[0])
    world.scheduler.after(1.0, lambda: world.stopping(seconds)(process))


@_schedule(
    "what follows is refused", "rows", expected={"began": 1, "row-committed": 1, "followed": 1, "Replayed": 1}, due=30
)
def _refused_following(world: DirectedWorld) -> None:
    """The key has no outcome before it is sent."""
    world.call(0, "task-0", ("row", "usual"), ("then", None))
    world.upon("receipt-committed", world.during(0.3, "publish-refused"))


@_schedule(
    "an interrupt during a commit", "rows-soft", expected={"began": 1, "row-committed": 1, "Committed": 1}, due=9
)
def _interrupt_in_commit(world: DirectedWorld) -> None:
    """It was carried out, which is too late to matter."""
    world.call(0, "task-0", ("row", "usual"), ("sleep", 3.5))
    world.befall_database("commit", "commit-unanswered")


@_schedule(
    "an interrupt during a commit that is lost",
    "rows-soft",
    expected={"began": 1, "row-committed": 0, "Released": 1},
    due=9,
)
def _interrupt_in_lost_commit(world: DirectedWorld) -> None:
    """The body's time is up."""
    world.call(0, "task-0", ("row", "usual"), ("sleep", 3.5))
    world.befall_database("commit", "commit-lost")


@_schedule(
    "a later start of the key",
    "rows-brief",
    machines=("machine-0", "machine-1"),
    expected={"began": 3, "row-committed": 2, "receipt-committed": 2, "Superseded": 0},
    due=110,
)
def _later_start(world: DirectedWorld) -> None:
    """What stood still from before has no effect, and does not take the result."""
    world.call(0, "task-0", *_SLOW_ROW)
    world.call(2, "task-1", ("row", "usual"))
    world.call(75, "task-2", ("row", "usual"))
    _stands_still(world, 90)


@_schedule("a database that is away", "rows", expected={"began": 1, "Deferred": 1, "row-committed": 1}, due=20)
def _database_away(world: DirectedWorld) -> None:
    """No run has begun."""
    world.call(0, "task-0", ("row", "usual"))
    world.befall_database("begin", "database-away")


@_schedule("a look that fails", "rows-recovers", expected={"began": 2, "asked": 1}, due=60)
def _failed_look(world: DirectedWorld) -> None:
    """It is no run either."""
    world.call(0, "task-0", *_SLOW_ROW)
    _kills_first(world)
    world.befall_database("begin", "usual")
    world.befall_database("begin", "database-away")


@_schedule(
    "a lost transaction of a task that asks",
    "rows-recovers",
    expected={"began": 1, "asked": 1, "row-committed": 0, "receipt-committed": 1},
    due=60,
)
def _lost_and_asked(world: DirectedWorld) -> None:
    """Its body has charged, so it does not run again at once."""
    world.call(0, "task-0", ("charge", None), ("row", "usual"))
    world.call(20, "task-1", ("charge", None), ("row", "usual"))
    world.befall_database("commit", "deadlock-at-commit")


@_schedule(
    "a receipt before a question", "rows-recovers", expected={"began": 1, "asked": 0, "row-committed": 1}, due=30
)
def _receipt_before_question(world: DirectedWorld) -> None:
    world.call(0, "task-0", ("row", "usual"))
    _kills_between(world)


@_schedule("a receipt before a person", "rows-parks", expected={"began": 1, "Parked": 0, "row-committed": 1}, due=12)
def _receipt_before_person(world: DirectedWorld) -> None:
    world.call(0, "task-0", ("row", "usual"))
    _kills_between(world)


@_schedule(
    "a decision beside a transaction",
    "rows-parks",
    machines=("machine-0", "machine-1"),
    expected={"began": 1, "Parked": 1, "row-committed": 0, "receipt-committed": 1},
    due=90,
)
def _decision_beside_zombie(world: DirectedWorld) -> None:
    """It leaves its receipt first, which the transaction meets that stood still."""
    world.call(0, "task-0", *_SLOW_ROW)
    world.call(2, "task-1", ("row", "usual"))
    _stands_still(world, 70)
    world.decide(7)


@_schedule("a row before a retry was published", "rows", expected={"began": 2, "row-committed": 1}, due=12)
def _row_before_retry(world: DirectedWorld) -> None:
    """The retry commits, its first run does not."""
    world.call(0, "task-0", ("row", "usual"), ("retry_quietly", 1))


@_schedule("a row with a result that cannot be written", "rows", expected={"began": 2, "row-committed": 1}, due=5)
def _unwritable_with_row(world: DirectedWorld) -> None:
    """It is rolled back, and the key is free."""
    world.call(0, "task-0", ("row", "usual"), ("return", "unwritable-result"))
    world.call(2, "task-1", ("row", "usual"))


@_schedule("a constraint at the end", "rows", expected={"began": 1, "row-committed": 0, "receipt-committed": 1}, due=5)
def _constraint_at_commit(world: DirectedWorld) -> None:
    """It is the body's final failure."""
    world.call(0, "task-0", ("row", "row-refused-finally"))
    world.call(3, "task-1", ("row", "usual"))


@_schedule(
    "a key that begins anew under a transaction",
    "rows",
    expected={"began": 2, "row-committed": 2, "Claimed": 4},
    due=40,
)
def _anew_under_transaction(world: DirectedWorld) -> None:
    """Its outcome is that of the start that nobody knows any more, and not of the next one."""
    world.call(0, "task-0", ("row", "usual"), ("sleep", 9.2))
    world.upon("began", world.forget)
    world.call(2, "task-1", ("row", "usual"))


@_schedule("a deadlock at a look", "rows-parks", expected={"began": 1, "Parked": 0, "row-committed": 1}, due=12)
def _deadlock_at_look(world: DirectedWorld) -> None:
    """It is looked again."""
    world.call(0, "task-0", ("row", "usual"))
    _kills_between(world)
    world.befall_database("begin", "usual")
    world.befall_database("begin", "deadlock-at-begin")


@_schedule("a receipt that does not fit", "rows", expected={"began": 2, "Deferred": 1, "row-committed": 1}, due=20)
def _unfit_receipt(world: DirectedWorld) -> None:
    """Its row is rolled back, and the message comes again."""
    world.call(0, "task-0", ("row", "usual"))
    world.befall_database("commit", "receipt-unfit")


def _runs_long_with_duplicates(world: DirectedWorld) -> None:
    world.call(0, "task-0", ("sleep", 20))
    for number in range(1, 7):
        world.call(1, f"task-{number}", ("sleep", SHORT))


@_schedule("duplicates of a long run", "leased", expected={"began": 1, "Replayed": 6}, due=21)
def _long_run(world: DirectedWorld) -> None:
    """Their copies are let go when it ends, although their countdowns would last longer."""
    _runs_long_with_duplicates(world)


@_schedule("duplicates of a run that dies", "leased", expected={"began": 2, "Replayed": 6}, due=21)
def _long_run_that_dies(world: DirectedWorld) -> None:
    """One of them runs the body as soon as the claim is released, and the others wait for that run."""
    _runs_long_with_duplicates(world)
    world.upon("began", lambda entry: world.killing(19.0)(world.process_of(entry)), id="task-0")


@_schedule(
    "a step that is answered about too late",
    "steps-asks",
    expected={"began": 3, "step-asked": 2, "step-ran": 1, "Superseded": 1},
    due=80,
)
def _late_answer_about_step(world: DirectedWorld) -> None:
    """Another run has done it by then, and it is not done again."""
    # The provider answers in time.
    world.faults.active = False
    step = {"name": "charge", "seconds": SHORT, "bytes": 0, "wrong": "", "inputs": 0}
    world.call(0, "task-0", ("sleep", 1), ("call", step))
    world.call(30, "task-1", ("call", step))
    _kills_first(world)
    world.upon("step-answered", lambda entry: world.stopping(40)(world.process_of(entry)))


@_schedule(
    "a park of a run that was ended in a step", "steps-asks", expected={"began": 3, "Parked": 1, "Replayed": 1}, due=120
)
def _lost_park_after_step(world: DirectedWorld) -> None:
    """That run counts: its claim ends by itself, and the deferred message parks the key."""
    step = {"name": "charge", "seconds": 1, "bytes": 0, "wrong": "recover knows nothing", "chance": 1.0, "inputs": 0}
    world.call(0, "task-0", ("sleep", 1), ("call", step))
    _kills_first(world)
    world.befall("park", "request-lost", times=9, lost=True)
    world.upon("Deferred", lambda _: world.get_well(), reason="StoreUnavailableError")
    world.decide(7)
