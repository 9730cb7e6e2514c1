"""A worker: a parent process with Celery's own requests, and a pool of children that run Celery's own trace."""

from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

from billiard.einfo import ExceptionInfo
from billiard.exceptions import SoftTimeLimitExceeded, Terminated, TimeLimitExceeded, WorkerLostError
from billiard.pool import EX_OK, EX_RECYCLE
from celery.exceptions import TaskRevokedError
from celery.signals import worker_process_shutdown, worker_shutdown
from celery.utils.imports import instantiate
from celery.worker import state
from kombu.asynchronous.timer import Entry, scheduled
from kombu.exceptions import OperationalError

from idempotent_tasks.core.processes import running_as
from idempotent_tasks.core.unrecorded import UnrecordedOutcomes
from idempotent_tasks.messaging.queues import name_queues
from idempotent_tasks.worker.request import remember_worker
from idempotent_tasks.worker.waiting import WaitingCopies
from simulation.app import QUEUE, app
from simulation.broker import Consumer, Delivered
from simulation.process import SimulatedProcess
from simulation.scheduler import Ended

if TYPE_CHECKING:
    from simulation.world import World

__all__ = ["Worker"]

#: How likely a body notices SIGTERM before its process is killed.
HEEDED: Final = 0.5

#: How many copies for one run a worker holds for their countdown only: histories have few.
MOVING: Final = 2

#: Seconds within which a child is dead that is past its hard limit.
KILL_SECONDS: Final = 1.0

#: How many messages a worker takes for each child, as ``worker_prefetch_multiplier``.
PREFETCH: Final = (1, 2, 4)

#: Seconds between two looks of a parent that ends at what it waits for.
LOOK_SECONDS: Final = 0.5

#: Seconds within which a parent notices that a child has ended.
NOTICE_SECONDS: Final = 1.0


class _Pool:
    """The prefork pool, as far as ``celery.worker.request.Request`` uses it; also the worker's ``pool_cls``."""

    def __init__(self, worker: "Worker") -> None:
        self._worker = worker

    @property
    def num_processes(self) -> int:
        """How many children there are."""
        return len(self._worker.busy) + self._worker.free

    def maintain_pool(self) -> None:
        """Do nothing: ends are noticed."""

    def apply_async(self, target: Callable[..., Any], args: Any, **callbacks: Any) -> Any:
        """Run a trace in a free child."""
        return self._worker.run_in_child(target, args, callbacks)

    def terminate_job(self, pid: int, _: Any = None) -> None:
        """Send SIGTERM to the child that runs a request."""
        self._worker.terminate_child(pid)


_Pool.__module__ = "celery.concurrency.prefork"


class _Timer:
    """The timer of the worker's event loop, as far as `WaitingCopies` uses it."""

    def __init__(self, worker: "Worker") -> None:
        self._worker = worker
        self._entries: list[Entry] = []

    @property
    def queue(self) -> list[Any]:
        """What is not due yet."""
        return [scheduled(0.0, 0, each) for each in self._entries]

    def call_after(self, seconds: float, call: Callable[..., None], *args: Any) -> None:
        """Call in the worker's parent process, unless the call is cancelled before."""
        entry, worker = Entry(call, args), self._worker
        self._entries.append(entry)
        worker.world.scheduler.after(seconds, lambda: worker.parent.spawn(lambda: self._fire(entry), "timer"))

    def _fire(self, entry: Entry) -> None:
        self._entries.remove(entry)
        if not entry.canceled:
            entry()

    def apply_entry(self, entry: Entry) -> None:
        """Make a call that is not due yet."""
        self._worker.world.faults.counts["let-go"] += 1
        entry()


class Worker:
    """One worker on one machine.

    Args:
        world: the history's.
        machine: the machine's name.
        children: how many bodies run at once.
        recycled_after: how many bodies a child runs before another one replaces it; None for no limit.
    """

    def __init__(self, world: "World", machine: str, children: int, *, recycled_after: int | None = None) -> None:
        self.world = world
        self.machine = machine
        self.parent = world.new_process(machine)
        self._free: deque[SimulatedProcess] = deque(world.new_process(machine) for _ in range(children))
        self._waiting: deque[Any] = deque()
        #: By child: the callbacks of what it runs.
        self.busy: dict[SimulatedProcess, dict[str, Any]] = {}
        self.pool = _Pool(self)
        self._timer = _Timer(self)
        self._recycled_after = recycled_after
        #: By child: how many bodies it has run.
        self._ran: Counter[SimulatedProcess] = Counter()
        #: Children that take nothing any more and wait for the outcomes that they keep.
        self._finishing: set[SimulatedProcess] = set()
        self._held_for_eta = 0
        #: Counts the connections, and becomes -1 when there is to be no other: requests that none of its children has
        #: yet are the connection's own.
        self._connection = 0
        #: Whether it may hold messages that nobody handles any more, until its connection is lost.
        self.has_failed_callbacks = False
        #: Whether it ends without waiting for its bodies.
        self._terminates = False
        prefetched = children * world.draw.choice(PREFETCH)
        self.consumer = Consumer(self._receive_in_strand, lambda: prefetched + self._held_for_eta)
        self._consuming = SimpleNamespace(basic_consume=self._basic_consume)
        self._callback: Callable[[Any], None] = lambda _: None
        with running_as(self.parent):
            remember_worker(SimpleNamespace(app=app, pool_cls=_Pool, time_limit=None, pool=self.pool, consumer=None))
            name_queues(self._consuming)
            self._consuming.basic_consume(queue=QUEUE, callback=self._receive)
            self.parent.provide(WaitingCopies, WaitingCopies(MOVING))
            self._connected()
        self._channel = app.connection_for_read().default_channel
        world.broker.subscribe(self.consumer)

    def _basic_consume(self, *, queue: str, callback: Callable[[Any], None]) -> None:
        self._callback = callback

    @property
    def free(self) -> int:
        """How many children run nothing."""
        return len(self._free)

    def _connected(self) -> None:
        """Do what the worker's own bootstep does with each connection."""
        loop = self.parent.event_loop()
        consumer = SimpleNamespace(app=app, hub=loop, timer=self._timer, pool=self.pool, call_soon=loop.call_soon)
        self.parent.own(WaitingCopies).connected(consumer)

    def _receive_in_strand(self, held: Delivered) -> None:
        self.parent.spawn(lambda: self._callback(held), "consumer")

    def _receive(self, held: Delivered) -> None:
        broker = self.world.broker
        message = self._channel.message_to_python(held.payload)
        task = app.tasks[message.headers["task"]]
        request = instantiate(
            task.Request,
            message,
            app=app,
            task=task,
            hostname=f"worker@{self.machine}",
            on_ack=lambda *_: self._settle(lambda: broker.ack(held)),
            on_reject=lambda _, __, requeue=False: self._settle(lambda: broker.reject(held, requeue=requeue)),
        )
        left = 0.0 if request.eta is None else request.eta.timestamp() - app.now().timestamp()
        if left > 0:
            self._held_for_eta += 1
            self._timer.call_after(left, self._due, request, self._connection)
        else:
            self._take(request)

    def _due(self, request: Any, connection: int) -> None:
        self._held_for_eta -= 1
        if connection == self._connection:
            state.task_reserved(request)
            self._take(request)

    def _settle(self, settle: Callable[[], None]) -> None:
        self.parent.check_alive()
        settle()

    def _take(self, request: Any) -> None:
        self._waiting.append(request)
        if not self._free:
            self.world.faults.counts["prefetched"] += 1
        self._run_next()

    def _run_next(self) -> None:
        while self._free and self._waiting and self._connection >= 0:
            # As Celery's consumer does with a message that it drops.
            with suppress(TaskRevokedError):
                self._waiting.popleft().execute_using_pool(self.pool)

    def run_in_child(self, target: Callable[..., Any], args: Any, callbacks: dict[str, Any]) -> Any:
        """Run a trace in a free child, and tell the parent what becomes of it."""
        child, scheduler = self._free.popleft(), self.world.scheduler
        if not child.alive or child in self._finishing:
            # The pool has replaced it meanwhile.
            child = self.world.new_process(self.machine)
        self.busy[child] = callbacks
        self.world.note("delivered", process=child.name(), task=args[0], id=args[1])

        def run() -> None:
            self._tell(lambda: self._report(callbacks["accept_callback"], child.pid, scheduler.now))
            try:
                result = target(*args)
            except Ended:
                raise
            except BaseException:  # noqa: BLE001 - the pool reports whatever it is
                info = ExceptionInfo()
                self._tell(lambda: self._end(child, lambda: self._report(callbacks["error_callback"], info)))
                if isinstance(info.exception, SystemExit):
                    child.kill()
                return
            self._tell(lambda: self._end(child, lambda: self._report(callbacks["callback"], result)))

        strand = child.spawn(run, "body")
        callbacks["strand"] = strand
        notice = scheduler.draw.uniform(0.0, NOTICE_SECONDS)
        callbacks["on_end"] = lambda: scheduler.after(notice, lambda: self._tell(lambda: self._lost(child)))
        child.on_end.append(callbacks["on_end"])
        for option, reach in (("timeout", self._hard_limit), ("soft_timeout", self._soft)):
            if seconds := callbacks.get(option):
                scheduler.after(seconds, partial(reach, child, callbacks, seconds))
        return None

    def _tell(self, call: Callable[[], None]) -> None:
        """Call in the parent, if it still lives."""

        def told() -> None:
            # Celery's own flag of the process, which all workers of a history share.
            state.should_terminate = self._terminates
            try:
                call()
            except MemoryError:
                # ``celery.worker.request.Request.on_failure``, which nothing catches: the worker ends.
                self.world.faults.counts["worker-out-of-memory"] += 1
                self.world.scheduler.after(0.0, self._ended)
            finally:
                state.should_terminate = None

        if self.parent.alive:
            self.parent.spawn(told, "pool")

    def _report(self, callback: Callable[..., None], *args: Any, **kwargs: Any) -> None:
        """Call a callback as ``billiard.pool.ApplyResult.safe_apply_callback`` does: log what it raises.

        The broker refuses what the callback publishes, such as an error callback; whether the message was acknowledged
        before that is Celery's order of steps.
        """
        try:
            callback(*args, **kwargs)
        except OperationalError:
            self.world.faults.counts["callback-failed"] += 1
            self.world.note("callback-failed", process=self.parent.name())
            self.has_failed_callbacks = True

    def _end(self, child: SimulatedProcess, tell: Callable[[], None]) -> None:
        callbacks = self.busy.pop(child, None)
        if callbacks is None:
            return
        self.world.note("ended", process=child.name())
        # The reaper may wait for the end too.
        if callbacks["on_end"] in child.on_end:
            child.on_end.remove(callbacks["on_end"])
        self._ran[child] += 1
        if self._ran[child] == self._recycled_after:
            self.world.faults.counts["child-recycled"] += 1
            self._finish(child, EX_RECYCLE)
        self._free.append(child)
        # billiard has forgotten a job that is past its limit, and drops what its child still says.
        if not callbacks.get("timed_out"):
            tell()
        self._run_next()

    def _lost(self, child: SimulatedProcess) -> None:
        callbacks = self.busy.pop(child, None)
        self.world.note("ended", process=child.name(), killed=True)
        self._free.append(self.world.new_process(self.machine))
        if callbacks is not None and not callbacks.get("timed_out"):
            lost = Terminated("SIGTERM") if callbacks.get("terminated") else WorkerLostError("simulated: killed")
            try:
                raise lost
            except (Terminated, WorkerLostError):
                self._report(callbacks["error_callback"], ExceptionInfo())
        self._run_next()

    def _hard_limit(self, child: SimulatedProcess, callbacks: dict[str, Any], seconds: float) -> None:
        if self.busy.get(child) is callbacks and self.parent.alive and child.alive:
            callbacks["timed_out"] = True
            self.world.faults.counts["hard-limit"] += 1
            self.world.note("hard-limit", process=child.name(), id=callbacks["correlation_id"])

            def end() -> None:
                # In the order of ``billiard.pool.TimeoutHandler.on_hard_timeout``: the child is killed last.
                try:
                    raise TimeLimitExceeded(seconds)  # noqa: TRY301 - billiard's form
                except TimeLimitExceeded:
                    self._report(callbacks["error_callback"], ExceptionInfo())
                self._report(callbacks["timeout_callback"], soft=False, timeout=seconds)
                self._signal(child, callbacks)

            self._tell(end)

    def terminate_child(self, pid: int) -> None:
        """Send SIGTERM to a busy child."""
        for child, callbacks in list(self.busy.items()):
            if child.pid == pid:
                callbacks["terminated"] = True
                self._signal(child, callbacks)

    def _signal(self, child: SimulatedProcess, callbacks: dict[str, Any]) -> None:
        """End a child by SIGTERM, which raises ``SystemExit`` in its body, and then by SIGKILL."""
        scheduler, draw = self.world.scheduler, self.world.scheduler.draw
        if draw.random() < HEEDED:
            scheduler.after(0.0, partial(self._raise_in, child, callbacks["strand"], SystemExit(-1)))
        scheduler.after(draw.uniform(0.0, KILL_SECONDS), child.kill)

    def _soft(self, child: SimulatedProcess, callbacks: dict[str, Any], seconds: float) -> None:
        if self.busy.get(child) is callbacks and self.parent.alive:
            self.world.faults.counts["soft-limit"] += 1
            self._tell(lambda: self._report(callbacks["timeout_callback"], soft=True, timeout=seconds))
            self._raise_in(child, callbacks["strand"], SoftTimeLimitExceeded(seconds))

    def interrupt(self, child: SimulatedProcess) -> None:
        """Raise a soft time limit in what a child runs, if it is one of the worker's and runs anything."""
        callbacks = self.busy.get(child)
        if callbacks is not None:
            self._raise_in(child, callbacks["strand"], SoftTimeLimitExceeded())

    def _raise_in(self, child: SimulatedProcess, strand: Any, error: BaseException) -> None:
        """Raise an error in a body, as a signal handler does: in a process that stands still, when it goes on."""
        raised = partial(strand.interrupt, error)
        if child.may_run(raised):
            raised()

    def reconnect(self) -> None:
        """Lose the connection, and the requests that no child has yet, and connect again."""
        self.has_failed_callbacks = False
        self._drop_requests(self._connection + 1)
        self.world.broker.lose(self.consumer)
        self._connected()
        self.world.broker.subscribe(self.consumer)

    def _drop_requests(self, connection: int) -> None:
        """Drop what ``celery.worker.consumer.Consumer.on_close`` drops: what waits for a child, or for its time."""
        self._connection = connection
        self._waiting.clear()

    def shut_down(self, *, warm: bool, cancels: bool = True) -> None:
        """End as on SIGTERM: wait for the bodies; or as on SIGQUIT: cancel them (`celery.apps.worker`).

        Args:
            warm: which of the two.
            cancels: whether a cold shutdown cancels the bodies, or only kills its children.
        """
        if self._connection >= 0:
            self.parent.spawn(lambda: self._shut_down(warm=warm, cancels=cancels), "shutdown")

    def _shut_down(self, *, warm: bool, cancels: bool) -> None:
        self.world.broker.cancel(self.consumer)
        self._drop_requests(-1)
        requests = [callbacks["accept_callback"].__self__ for callbacks in self.busy.values()]
        if not warm and cancels:
            for request in requests:
                if not request.acknowledged or not request.task.acks_late:
                    request.cancel(self.pool, emit_retry=not request.task.acks_late)
            self._terminates = True
        elif not warm:
            self._kill_children()
        while self.busy:
            self.world.scheduler.sleep(LOOK_SECONDS)
        if warm:
            self._finish_free()
        # Celery's set holds those of all workers of the process, which are the history's here.
        active = state.active_requests
        state.active_requests = [each for each in requests if each in active]
        try:
            worker_shutdown.send(sender=self)
        finally:
            state.active_requests = active
        while self.parent.unfinished:
            self.world.scheduler.sleep(LOOK_SECONDS)
        self.world.scheduler.after(0.0, self._ended)

    def _kill_children(self) -> None:
        """Kill the children; the pool tells of their ends no more."""
        for child, callbacks in self.busy.items():
            child.on_end.remove(callbacks["on_end"])
            child.kill()
        self.busy.clear()

    def _finish_free(self) -> None:
        """Let the children end, and wait for them."""
        for child in self._free:
            if child.alive and child not in self._finishing:
                self._finish(child, EX_OK)
        while any(child.alive for child in self._finishing):
            self.world.scheduler.sleep(LOOK_SECONDS)

    def _finish(self, child: SimulatedProcess, exitcode: int) -> None:
        """Let a child end by itself, as ``billiard.pool.Worker._do_exit`` does."""
        with running_as(child):
            waits = len(child.own(UnrecordedOutcomes)) > 0
        if not waits:
            child.kill()
            return
        self.world.faults.counts["outcomes-finished"] += 1
        self._finishing.add(child)

        def end() -> None:
            worker_process_shutdown.send(sender=self, pid=child.pid, exitcode=exitcode)
            child.kill()

        child.spawn(end, "exit")

    def _ended(self) -> None:
        self.kill(orphans=False)
        self.world.replace_worker(self)

    def kill(self, *, orphans: bool) -> None:
        """Kill the parent; its children too, unless they are left behind as orphans until their bodies end."""
        children = [*self._free, *self.busy]
        self.world.broker.lose(self.consumer)
        self.parent.kill()
        for child in children:
            if not orphans or child not in self.busy:
                child.kill()
