"""A worker: a parent process with Celery's own requests, and a pool of children that run Celery's own trace."""

from collections import deque
from collections.abc import Callable
from datetime import datetime
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

from billiard.einfo import ExceptionInfo
from billiard.exceptions import SoftTimeLimitExceeded, TimeLimitExceeded, WorkerLostError
from celery.utils.imports import instantiate

from idempotent_tasks.core.processes import running_as
from idempotent_tasks.messaging.queues import name_queues
from idempotent_tasks.worker.request import remember_worker
from simulation.app import QUEUE, app
from simulation.broker import Consumer, Delivered
from simulation.process import SimulatedProcess
from simulation.scheduler import Ended

if TYPE_CHECKING:
    from simulation.world import World

__all__ = ["Worker"]

#: Seconds within which a child is dead that is past its hard limit.
KILL_SECONDS: Final = 1.0

#: Seconds within which a parent notices that a child has ended.
NOTICE_SECONDS: Final = 1.0


class _Pool:
    """The prefork pool, as far as ``celery.worker.request.Request`` uses it; also the worker's ``pool_cls``."""

    def __init__(self, worker: "Worker") -> None:
        self._worker = worker

    def maintain_pool(self) -> None:
        """Do nothing: ends are noticed."""

    def apply_async(self, target: Callable[..., Any], args: Any, **callbacks: Any) -> Any:
        """Run a trace in a free child."""
        return self._worker.run_in_child(target, args, callbacks)


_Pool.__module__ = "celery.concurrency.prefork"


class Worker:
    """One worker on one machine.

    Args:
        world: the history's.
        machine: the machine's name.
        children: how many bodies run at once.
    """

    def __init__(self, world: "World", machine: str, children: int) -> None:
        self.world = world
        self.machine = machine
        self.parent = world.new_process(machine)
        self._free: deque[SimulatedProcess] = deque(world.new_process(machine) for _ in range(children))
        self._waiting: deque[Any] = deque()
        #: By child: the callbacks of what it runs.
        self.busy: dict[SimulatedProcess, dict[str, Any]] = {}
        self.pool = _Pool(self)
        self._held_for_eta = 0
        self.consumer = Consumer(self._receive_in_strand, lambda: 2 * children + self._held_for_eta)
        self._consuming = SimpleNamespace(basic_consume=self._basic_consume)
        self._callback: Callable[[Any], None] = lambda _: None
        with running_as(self.parent):
            remember_worker(SimpleNamespace(app=app, pool_cls=_Pool, time_limit=None, pool=self.pool, consumer=None))
            name_queues(self._consuming)
            self._consuming.basic_consume(queue=QUEUE, callback=self._receive)
        self._channel = app.connection_for_read().default_channel
        world.broker.subscribe(self.consumer)

    def _basic_consume(self, *, queue: str, callback: Callable[[Any], None]) -> None:
        self._callback = callback

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
        eta = message.headers.get("eta")
        left = 0.0 if eta is None else datetime.fromisoformat(eta).timestamp() - self.parent.clock.now()
        if left > 0:
            self._held_for_eta += 1
            self.world.scheduler.after(left, lambda: self.parent.spawn(lambda: self._due(request), "timer"))
        else:
            self._take(request)

    def _due(self, request: Any) -> None:
        self._held_for_eta -= 1
        self._take(request)

    def _settle(self, settle: Callable[[], None]) -> None:
        self.parent.check_alive()
        settle()

    def _take(self, request: Any) -> None:
        self._waiting.append(request)
        self._run_next()

    def _run_next(self) -> None:
        while self._free and self._waiting:
            self._waiting.popleft().execute_using_pool(self.pool)

    def run_in_child(self, target: Callable[..., Any], args: Any, callbacks: dict[str, Any]) -> Any:
        """Run a trace in a free child, and tell the parent what becomes of it."""
        child, scheduler = self._free.popleft(), self.world.scheduler
        if not child.alive:
            # The pool has replaced it meanwhile.
            child = self.world.new_process(self.machine)
        self.busy[child] = callbacks

        def run() -> None:
            self._tell(lambda: callbacks["accept_callback"](child.pid, scheduler.now))
            try:
                result = target(*args)
            except Ended:
                raise
            except BaseException:  # noqa: BLE001 - the pool reports whatever it is
                info = ExceptionInfo()
                self._tell(lambda: self._end(child, lambda: callbacks["error_callback"](info)))
                if isinstance(info.exception, SystemExit):
                    child.kill()
                return
            self._tell(lambda: self._end(child, lambda: callbacks["callback"](result)))

        strand = child.spawn(run, "body")
        callbacks["strand"] = strand
        notice = scheduler.draw.uniform(0.0, NOTICE_SECONDS)
        child.on_end.append(lambda: scheduler.after(notice, lambda: self._tell(lambda: self._lost(child))))
        for option, reach in (("timeout", self._hard_limit), ("soft_timeout", self._soft)):
            if seconds := callbacks.get(option):
                scheduler.after(seconds, partial(reach, child, callbacks, seconds))
        return None

    def _tell(self, call: Callable[[], None]) -> None:
        """Call in the parent, if it still lives."""
        if self.parent.alive:
            self.parent.spawn(call, "pool")

    def _end(self, child: SimulatedProcess, tell: Callable[[], None]) -> None:
        if self.busy.pop(child, None) is None:
            return
        self._free.append(child)
        child.on_end.clear()
        tell()
        self._run_next()

    def _lost(self, child: SimulatedProcess) -> None:
        callbacks = self.busy.pop(child, None)
        self._free.append(self.world.new_process(self.machine))
        if callbacks is not None and not callbacks.get("timed_out"):
            try:
                raise WorkerLostError("simulated: the child was killed")  # noqa: TRY301 - billiard's form
            except WorkerLostError:
                callbacks["error_callback"](ExceptionInfo())
        self._run_next()

    def _hard_limit(self, child: SimulatedProcess, callbacks: dict[str, Any], seconds: float) -> None:
        if self.busy.get(child) is callbacks and self.parent.alive and child.alive:
            callbacks["timed_out"] = True
            self.world.faults.counts["hard-limit"] += 1

            def end() -> None:
                # In the order of ``billiard.pool.TimeoutHandler.on_hard_timeout``: the child is killed last.
                try:
                    raise TimeLimitExceeded(seconds)  # noqa: TRY301 - billiard's form
                except TimeLimitExceeded:
                    callbacks["error_callback"](ExceptionInfo())
                callbacks["timeout_callback"](soft=False, timeout=seconds)
                # First by SIGTERM, which a body may take its time with.
                scheduler.after(scheduler.draw.uniform(0.0, KILL_SECONDS), child.kill)

            scheduler = self.world.scheduler
            self._tell(end)

    def _soft(self, child: SimulatedProcess, callbacks: dict[str, Any], seconds: float) -> None:
        if self.busy.get(child) is callbacks and child.alive:
            self.world.faults.counts["soft-limit"] += 1
            callbacks["timeout_callback"](soft=True, timeout=seconds)
            callbacks["strand"].interrupt(SoftTimeLimitExceeded(seconds))

    def kill(self, *, orphans: bool) -> None:
        """Kill the parent; its children too, unless they are left behind as orphans until their bodies end."""
        children = [*self._free, *self.busy]
        self.world.broker.lose(self.consumer)
        self.parent.kill()
        for child in children:
            if not orphans or child not in self.busy:
                child.kill()
