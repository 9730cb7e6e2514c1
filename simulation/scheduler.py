"""Virtual time, and strands: greenlets that wait for it, of which one runs at a time."""

import heapq
import random
from collections.abc import Callable
from itertools import count
from typing import Any, Final

from greenlet import getcurrent, greenlet

__all__ = ["CLOCK_SECONDS", "START", "Ended", "Event", "Lock", "Scheduler", "Strand"]

#: Where virtual time begins, in epoch seconds.
START: Final = 1_700_000_000.0
#: Seconds by which a process's idea of DynamoDB's time may be off: a ``Date`` has whole seconds, an answer takes time.
CLOCK_SECONDS: Final = 2.5


class Ended(BaseException):
    """Raised in a strand whose process has been killed, at whatever it waits for, to unwind its stack."""


class Strand:
    """One line of execution of a process, like a thread."""

    def __init__(self, scheduler: "Scheduler", work: Callable[[], None], owner: Any) -> None:
        self.owner = owner
        self._scheduler = scheduler
        self._work = work
        self._greenlet = greenlet(self._run, parent=scheduler.hub)
        #: Counts the waits, so that a wake-up that comes late wakes no later wait.
        self.waits = 0

    def _run(self) -> None:
        try:
            self._work()
        except Ended:
            pass
        except BaseException as error:  # noqa: BLE001 - reported by the history that it ends
            self._scheduler.failures.append(error)

    def is_alive(self) -> bool:
        """Return whether it has not ended."""
        return not self._greenlet.dead

    def resume(self) -> None:
        """Run until it waits or ends; to be called from the hub."""
        self._greenlet.switch()

    def interrupt(self, error: BaseException) -> None:
        """Raise an error at whatever it waits for, as a signal handler does; to be called from the hub."""
        if self.is_alive() and self._greenlet and self is not self._scheduler.running:
            self.waits += 1
            self._scheduler.throw(self, error)

    def throw(self, error: BaseException) -> None:
        """Run, and raise an error where it waits."""
        self._greenlet.throw(error)

    def end(self) -> None:
        """Unwind its stack, which may only do what a dead process can: nothing that others see."""
        if self.is_alive():
            if self._greenlet:
                self._greenlet.throw(Ended)
            else:
                # It has not begun.
                self._greenlet.throw()


class Scheduler:
    """Runs strands and calls in the order of virtual time; equal times in an order drawn from the seed."""

    def __init__(self, draw: random.Random) -> None:
        self.draw = draw
        self.now = START
        self.hub = getcurrent()
        #: Errors that ended a strand: bugs of the simulation, or of what it runs.
        self.failures: list[BaseException] = []
        self._heap: list[tuple[float, float, int, Callable[[], None]]] = []
        self._numbers = count()
        self._running: Strand | None = None

    def at(self, when: float, call: Callable[[], None]) -> None:
        """Call at a time, in the hub."""
        entry = (max(when, self.now), self.draw.random(), next(self._numbers), call)
        heapq.heappush(self._heap, entry)

    def after(self, seconds: float, call: Callable[[], None]) -> None:
        """Call after so many seconds, in the hub."""
        self.at(self.now + seconds, call)

    def spawn(self, work: Callable[[], None], owner: Any) -> Strand:
        """Start a strand, which runs at once when the hub is free."""
        strand = Strand(self, work, owner)
        self.after(0.0, lambda: self.switch(strand))
        return strand

    def switch(self, strand: Strand) -> None:
        """Let a strand run, unless its process stands still or has ended."""
        if not strand.is_alive():
            return
        owner = strand.owner
        if owner is not None and not owner.may_run(lambda: self.switch(strand)):
            return
        self._running = strand
        try:
            strand.resume()
        finally:
            self._running = None

    def throw(self, strand: Strand, error: BaseException) -> None:
        """Let a strand run with an error."""
        self._running = strand
        try:
            strand.throw(error)
        finally:
            self._running = None

    @property
    def running(self) -> Strand | None:
        """The strand that runs now, if any."""
        return self._running

    @property
    def strand(self) -> Strand:
        """The strand that runs now."""
        assert self._running is not None, "only a strand can wait"
        return self._running

    def wait(self, until: Callable[[Callable[[], None]], None]) -> None:
        """Have the running strand wait until somebody calls the function that ``until`` is given."""
        strand = self.strand
        strand.waits += 1
        mine = strand.waits

        def wake() -> None:
            if strand.waits == mine:
                strand.waits += 1
                self.after(0.0, lambda: self.switch(strand))

        until(wake)
        self._running = None
        self.hub.switch()
        if strand.owner is not None:
            strand.owner.check_alive()

    def sleep(self, seconds: float) -> None:
        """Have the running strand wait for so many seconds."""
        self.wait(lambda wake: self.after(max(seconds, 0.0), wake))

    def run(self, until: float, done: Callable[[], bool]) -> bool:
        """Run what is due until a time or a condition; return whether the condition holds."""
        while self._heap and not self.failures:
            if done():
                return True
            when, _, _, call = heapq.heappop(self._heap)
            if when > until:
                return False
            self.now = when
            call()
        return done()


class Event:
    """An event between strands of one process; see ``threading.Event``."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._is_set = False
        self._waiting: list[Callable[[], None]] = []

    def is_set(self) -> bool:
        """Return whether it is set."""
        return self._is_set

    def set(self) -> None:
        """Set it, and wake who waits."""
        self._is_set = True
        waiting, self._waiting = self._waiting, []
        for wake in waiting:
            wake()

    def clear(self) -> None:
        """Reset it."""
        self._is_set = False

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is set, or for so many seconds."""

        def until(wake: Callable[[], None]) -> None:
            self._waiting.append(wake)
            if timeout is not None:
                self._scheduler.after(timeout, wake)

        if not self._is_set:
            self._scheduler.wait(until)
        return self._is_set


class Lock:
    """A lock between strands of one process; see ``threading.Lock``."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._locked = False
        self._waiting: list[Callable[[], None]] = []

    def acquire(self, *_: Any, **__: Any) -> bool:
        """Wait until it is free, and take it."""
        while self._locked:
            self._scheduler.wait(self._waiting.append)
        self._locked = True
        return True

    def release(self) -> None:
        """Free it, and wake who waits."""
        self._locked = False
        waiting, self._waiting = self._waiting, []
        for wake in waiting:
            wake()

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()
