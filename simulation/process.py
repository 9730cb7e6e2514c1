"""A simulated process: its clock, strands, randomness and end, in the place of the operating system's."""

import random
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

from idempotent_tasks.core.processes import ForkGate, Process, running_as, this_process
from idempotent_tasks.worker.reaper import ChildExitWatcher
from simulation.scheduler import Ended, Event, Lock, Scheduler, Strand

__all__ = ["SimulatedClock", "SimulatedProcess", "check_alive"]


class SimulatedClock:
    """A process's clock: that of its machine when the process began, and what has passed since, as `SystemClock` is."""

    def __init__(self, scheduler: Scheduler, offset: float = 0.0, drift: float = 0.0) -> None:
        self._scheduler = scheduler
        self._offset = offset
        self._drift = drift
        self._began = scheduler.now

    def now(self) -> float:
        """Return epoch seconds as the machine has them."""
        return self._began + self.monotonic() + self._offset

    def monotonic(self) -> float:
        """Return the seconds since the process began."""
        return (self._scheduler.now - self._began) * (1 + self._drift)

    def sleep(self, seconds: float) -> None:
        """Have the running strand wait."""
        self._scheduler.sleep(seconds / (1 + self._drift))


class _Executor:
    """Runs each work in a strand of its own; as much of ``concurrent.futures.Executor`` as the reaper uses."""

    def __init__(self, process: "SimulatedProcess") -> None:
        self._process = process

    def submit(self, work: Callable[..., Any], *args: Any) -> Future[Any]:
        """Start the work, and return the future of its result."""
        future: Future[Any] = Future()

        def run() -> None:
            try:
                result = work(*args)
            except Ended:
                raise
            except BaseException as error:  # noqa: BLE001 - it belongs to the future
                future.set_exception(error)
            else:
                future.set_result(result)
            self._process.unfinished -= 1

        self._process.unfinished += 1
        self._process.spawn(run, "executor")
        return future


class _EventLoop:
    """The event loop of a worker's parent process."""

    def __init__(self, process: "SimulatedProcess") -> None:
        self._process = process

    def call_soon(self, call: Callable[..., Any], *args: Any) -> None:
        """Call in the process, soon."""
        self._process.spawn(lambda: call(*args), "event loop")


class _Gate(ForkGate):
    """No gate: nothing forks."""

    def __init__(self) -> None:
        pass

    @contextmanager
    def closed(self) -> Iterator[None]:
        """Close nothing."""
        yield


class _NoWatcher(ChildExitWatcher):
    """Watches nothing: the simulated pool notices the ends of its children itself."""

    def watch(self, *_: Any) -> None:
        """Do nothing."""


def check_alive() -> None:
    """Raise `Ended` in a strand of a dead process, before it does what others would see."""
    process = this_process()
    if isinstance(process, SimulatedProcess):
        process.check_alive()


class SimulatedProcess(Process):
    """A process of a simulated machine.

    Args:
        scheduler: of the history.
        machine: its name.
        pid: unique in the history.
        clock: its own.
        living: the living processes of the history by name, this one included.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        machine: str,
        pid: int,
        clock: SimulatedClock,
        living: "dict[str, SimulatedProcess]",
    ) -> None:
        super().__init__()
        self.clock = clock
        self.random = random.Random(scheduler.draw.getrandbits(64))
        self.machine = machine
        self.alive = True
        #: The works of executors for whose end a clean exit waits.
        self.unfinished = 0
        #: What was to run while it stood still; None while it does not.
        self._stopped: list[Callable[[], None]] | None = None
        self._scheduler = scheduler
        self._pid = pid
        self._strands: set[Strand] = set()
        #: Called when it has ended.
        self.on_end: list[Callable[[], None]] = []
        self._living = living
        living[self.name() or ""] = self
        stand_ins: dict[Any, Any] = {ForkGate: _Gate(), ChildExitWatcher: _NoWatcher()}
        for kind, stand_in in stand_ins.items():
            self.provide(kind, stand_in)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._pid

    def token(self) -> str:
        """Return 32 random hexadecimal digits."""
        return f"{self.random.getrandbits(128):032x}"

    def spawn(self, work: Callable[[], None], name: str) -> Any:
        """Start a strand of this process."""

        def run() -> None:
            self.check_alive()
            with running_as(self):
                work()

        strand = self._scheduler.spawn(run, self)
        self._strands = {each for each in self._strands if each.is_alive()} | {strand}
        return strand

    def executor(self, threads: int, name: str) -> Any:
        """Return an executor with as many strands as needed."""
        return _Executor(self)

    def event(self) -> Any:
        """Return an event between strands."""
        return Event(self._scheduler)

    def lock(self) -> Any:
        """Return a lock between strands."""
        return Lock(self._scheduler)

    def event_loop(self) -> Any:
        """Return the event loop."""
        return _EventLoop(self)

    def name(self, watcher: int | None = None) -> str | None:
        """Return the name: machine and ids."""
        return f"{self.machine}/{self._pid}" + ("" if watcher is None else f"^{watcher}")

    def has_ended(self, name: str | None, *, and_watcher: bool = True) -> bool:
        """Return whether a process of the same machine, and its watcher, have ended."""
        machine, _, ids = (name or "").partition("/")
        if machine != self.machine or not ids:
            return False
        pids = ids.split("^")[: None if and_watcher else 1]
        return all(f"{machine}/{pid}" not in self._living for pid in pids)

    def wait_for_end(self, pid: int, seconds: float) -> bool:
        """Wait for a process of the same machine to end."""
        other = self._living.get(f"{self.machine}/{pid}")
        if other is None:
            return True
        ended = Event(self._scheduler)
        other.on_end.append(ended.set)
        return ended.wait(seconds)

    def kill(self) -> None:
        """End at once: nothing that its stacks do while they are unwound is seen by others."""
        if not self.alive:
            return
        self.alive = False
        self._living.pop(self.name() or "", None)
        # A stack is unwound from the hub, to which its greenlet returns.
        self._scheduler.after(0.0, self._unwind)

    def end(self) -> None:
        """End with the history, from the hub: a stack that nobody unwinds is never freed, nor is its world."""
        self.kill()
        self._unwind()

    def _unwind(self) -> None:
        strands, self._strands = self._strands, set()
        for strand in strands:
            strand.end()
        for call in self.on_end:
            call()

    def stop(self) -> None:
        """Stand still, as on SIGSTOP or in a paused machine."""
        if self._stopped is None:
            self._stopped = []

    @property
    def stands_still(self) -> bool:
        """Whether it was stopped."""
        return self._stopped is not None

    def go_on(self) -> None:
        """Go on."""
        waiting, self._stopped = self._stopped or [], None
        for call in waiting:
            self._scheduler.after(0.0, call)

    def may_run(self, later: Callable[[], None]) -> bool:
        """Return whether a strand may run; if the process stands still, ``later`` is called when it goes on."""
        if not self.alive:
            return False
        if self._stopped is not None:
            self._stopped.append(later)
            return False
        return True

    def check_alive(self) -> None:
        """Raise `Ended` in a strand of a dead process."""
        if not self.alive:
            raise Ended
