"""Processes: whether one has ended, for certain only where it is a real one of this machine; and several in one."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from idempotent_tasks.core.lease import Lease, LeaseRenewer
from idempotent_tasks.core.processes import Process, current_process, has_ended, running_as, this_process
from idempotent_tasks.messaging.deferral import Publisher
from idempotent_tasks.testing import FakeClock, MemoryStore
from tests.support.guarding import TERMS, start, unseen
from tests.testbed.forking import Child
from tests.testbed.waiting import wait_for

BOUND_SECONDS = 30.0
#: Above the largest that Linux gives.
NO_PID = 999_999_999
#: Says its own name, then lives until it is told to end.
SAY_NAME = "from idempotent_tasks.core.processes import current_process; print(current_process(), flush=True); input()"
#: Says its own name; then its first thread ends, and another waits.
LEADERLESS = """
import ctypes, threading
from idempotent_tasks.core.processes import current_process, this_process
threading.Thread(target=threading.Event().wait).start()
print(current_process(), flush=True)
ctypes.CDLL(None).syscall({"x86_64": 60, "aarch64": 93}[__import__("platform").machine()], 0)
"""


@pytest.fixture
def living() -> Iterator[subprocess.Popen[str]]:
    """A process that has said its name on its output, and lives until the test kills it."""
    with subprocess.Popen(
        [sys.executable, "-c", SAY_NAME], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        process.kill()


def name_said_by(process: subprocess.Popen[str]) -> str:
    """Return the name that a process says."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_this_process_lives() -> None:
    """A process has not ended while it asks, and its name stays."""
    assert current_process() is not None
    assert current_process() == current_process()
    assert not has_ended(current_process())


def test_another_process_lives_until_it_is_killed(living: subprocess.Popen[str]) -> None:
    """A name is good for certainty as soon as the process is a zombie, and when it was collected."""
    name = name_said_by(living)
    assert name != current_process()
    assert not has_ended(name)
    living.kill()
    assert this_process().wait_for_end(living.pid, BOUND_SECONDS)
    assert has_ended(name)
    living.wait(BOUND_SECONDS)
    assert has_ended(name)


def test_a_forked_child_has_a_name_of_its_own() -> None:
    """The name is not inherited."""
    mine = current_process()
    theirs = Child(current_process).result()
    assert theirs not in (mine, None)
    assert has_ended(theirs)


def test_what_a_watched_process_leaves_is_its_watchers_business(living: subprocess.Popen[str]) -> None:
    """A worker's parent process releases for its dead children; only when it has ended too does anybody else."""
    name_said_by(living)
    place, _, watched = str(current_process(living.pid)).rpartition("/")
    gone_child = f"{place}/{NO_PID}@1^{watched.partition('^')[2]}"
    assert not has_ended(gone_child)
    assert has_ended(gone_child, and_watcher=False)
    living.kill()
    living.wait(BOUND_SECONDS)
    assert has_ended(gone_child)
    assert not has_ended(f"{place}/{watched}")
    assert not has_ended(f"{place}/{watched}", and_watcher=False)


def test_a_process_id_that_was_given_again_is_another_process() -> None:
    """The start time tells a process from an earlier one with its id."""
    place, _, own = str(current_process()).rpartition("/")
    pid, _, start = own.partition("@")
    assert has_ended(f"{place}/{pid}@{int(start) - 1}")


@pytest.mark.parametrize("part", range(4), ids=["host", "boot", "process ids", "time"])
def test_nothing_is_certain_of_another_place(part: int) -> None:
    """Another host, boot or namespace has process ids of its own, whatever ours says."""
    parts = str(current_process()).split("/")
    parts[part] = "elsewhere"
    parts[-1] = f"{NO_PID}@1"
    assert not has_ended("/".join(parts))


@pytest.mark.parametrize("process", [None, "", "worker@host", "a/b/c/d/e", "///"])
def test_nothing_is_certain_of_what_is_no_name(process: str | None) -> None:
    """Records of older versions and of other writers name no process."""
    assert not has_ended(process)


def test_nothing_is_certain_of_what_is_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where another user's processes cannot be looked at, they may live (``hidepid``)."""

    def not_permitted(_pid: int, _signal: int) -> None:
        raise PermissionError

    place, _, _ = str(current_process()).rpartition("/")
    assert has_ended(f"{place}/1@elsewhen")
    with monkeypatch.context() as patch:
        patch.setattr("idempotent_tasks.core.processes._PROC", Path(os.devnull))
        patch.setattr("os.kill", not_permitted)
        assert not has_ended(f"{place}/1@elsewhen")


def test_a_process_whose_first_thread_ended_lives() -> None:
    """Another thread may still run a body, although the process looks like a zombie."""
    with subprocess.Popen(
        [sys.executable, "-c", LEADERLESS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as p:
        name = name_said_by(p)
        wait_for(lambda: state_of(p.pid) == "Z", BOUND_SECONDS, "the first thread did not end")
        assert not has_ended(name)
        p.kill()
        assert this_process().wait_for_end(p.pid, BOUND_SECONDS)
        assert has_ended(name)


def state_of(pid: int) -> str:
    """Return the state of a process's first thread."""
    return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]


class Simulated(Process):
    """A process that stands in for the operating system's own, with a name and a clock of its own."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.clock = FakeClock()
        self._name = name

    def name(self, watcher: int | None = None) -> str:
        """Return the name."""
        return self._name


def test_two_processes_in_one_share_nothing() -> None:
    """What is made on first use belongs to the process that the code runs in, and so do its name and its time."""
    first, second = Simulated("first"), Simulated("second")
    with running_as(first):
        renewer = this_process().own(LeaseRenewer)
        assert this_process().own(LeaseRenewer) is renewer
        this_process().clock.sleep(5)
        with running_as(second):
            assert this_process().own(LeaseRenewer) is not renewer
            assert (this_process().name(), this_process().clock.now()) == ("second", FakeClock().now())
        assert (this_process().name(), this_process().clock.now()) == ("first", FakeClock().now() + 5)
    assert this_process().name() == current_process()


def test_what_a_process_is_provided_with_stands_in() -> None:
    """A port is replaced by what speaks its protocol, in that process only."""
    process, publisher = Simulated("first"), Publisher()
    process.provide(Publisher, publisher)
    with running_as(process):
        assert this_process().own(Publisher) is publisher
    assert this_process().own(Publisher) is not publisher


def test_a_process_starts_its_own_renewer(store: MemoryStore) -> None:
    """The claims of a process are renewed by a thread that it starts itself."""
    started: list[str] = []

    class Recording(Simulated):
        def spawn(self, work: Callable[[], None], name: str) -> threading.Thread:
            started.append(name)
            return threading.Thread(target=work)

    lease = Lease(terms=TERMS, store=store, observe=unseen)
    with running_as(Recording("first")), lease.renewing(start(store)):
        pass
    assert started == ["idempotency-lease-renewer"]


def test_a_child_has_objects_of_its_own() -> None:
    """A forked child does not use what its parent's threads use."""
    parents = id(this_process().own(LeaseRenewer))
    assert Child(lambda: id(this_process().own(LeaseRenewer)) != parents).result()
