"""The periodic example: two beats and two workers, and never two runs of one task at once."""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from uuid import uuid4

import pytest
import redis

from tests.support.examples import Example, dynamodb_url
from tests.testbed.processes import ChildProcess, running_in_group
from tests.testbed.waiting import wait_for

#: What starts a process of a kind, but for its number, and what its log says then.
COMMANDS = {
    "worker": ("worker --hostname worker", r" ready\."),
    "beat": ("beat --schedule beat", "beat: Starting"),
}
RUN_SECONDS = 60.0
SWEEPS = 3

Start = Callable[..., ChildProcess]


@pytest.fixture
def periodic(redis_url: str, roto: str, table: str, tmp_path: Path) -> Iterator[Example]:
    """The example in a queue of its own, its table made, faster than in its README: a sweep takes two ticks."""
    broker, queue = f"{redis_url}/5", f"periodic-{uuid4().hex[:12]}"
    variables = {
        "BROKER_URL": broker,
        "STORE_URL": dynamodb_url(roto, table),
        "QUEUE": queue,
        "TICK_SECONDS": "1",
        "SWEEP_SECONDS": "2",
        "SLOT_SECONDS": "10",
    }
    example = Example("periodic", tmp_path, variables)
    example.run("celery -A tasks idempotency create-table")
    yield example
    with redis.Redis.from_url(broker) as client:
        client.delete(queue, f"_kombu.binding.{queue}")


@pytest.fixture
def start(periodic: Example) -> Iterator[Start]:
    """Start a worker or a beat of the README, by its number, with more of an environment."""
    with ExitStack() as stack:

        def start(kind: str, number: int, **variables: str) -> ChildProcess:
            command, ready = COMMANDS[kind]
            running = periodic.running(f"celery -A tasks {command}-{number}", ready, **variables)
            return stack.enter_context(running)

        yield start


def runs(periodic: Example) -> list[str]:
    """Return the lines of what ran, in order."""
    return periodic.lines("runs.txt")


def sweeps(periodic: Example) -> list[tuple[str, str]]:
    """Return ``begins`` or ``ends``, and the process, for each line of a sweep, in order."""
    return re.findall(r"^sweep (\w+) \(process (\d+)\)$", "\n".join(runs(periodic)), re.MULTILINE)


def reports(periodic: Example) -> Counter[str]:
    """Return how often the report of each slot was made."""
    return Counter(re.findall(r"^report of (\S+) ", "\n".join(runs(periodic)), re.MULTILINE))


def wait_for_sweeps(periodic: Example, number: int, workers: list[ChildProcess]) -> None:
    """Return when so many sweeps have ended."""
    wait_for(
        lambda: [event for event, _ in sweeps(periodic)].count("ends") >= number,
        RUN_SECONDS,
        lambda: f"too few sweeps: {runs(periodic)}\n" + "\n".join(worker.tail() for worker in workers),
    )


def test_sweeps_never_overlap_and_a_slot_has_one_report(periodic: Example, start: Start) -> None:
    """Of the ticks of two beats, those that meet a running sweep are dropped, and one of a slot makes its report."""
    workers, _ = ([start(kind, number) for number in (1, 2)] for kind in ("worker", "beat"))
    wait_for_sweeps(periodic, SWEEPS, workers)
    events = sweeps(periodic)[: 2 * SWEEPS]
    assert [event for event, _ in events] == ["begins", "ends"] * SWEEPS
    assert [pid for _, pid in events[::2]] == [pid for _, pid in events[1::2]]
    log = "\n".join(worker.log.read_text() for worker in workers)
    assert log.count("Task tasks.sweep[") > 2 * SWEEPS, "no tick met a running sweep"
    # The sweeps may all have fallen into one slot.
    wait_for(lambda: len(reports(periodic)) > 1, RUN_SECONDS, lambda: f"one slot only: {runs(periodic)}")
    assert set(reports(periodic).values()) == {1}


def test_sweep_goes_on_when_its_worker_is_killed(periodic: Example, start: Start) -> None:
    """The sweep that was cut short never ends, and a later tick has the other worker sweep."""
    # This one sweeps until it is killed, however long it takes to see that it does.
    victim = start("worker", 1, SWEEP_SECONDS="86400")
    beats = [start("beat", number) for number in (1, 2)]
    wait_for(lambda: sweeps(periodic), RUN_SECONDS, lambda: victim.tail() + beats[0].tail())
    [(began, pid)] = sweeps(periodic)
    assert began == "begins"
    assert int(pid) in running_in_group(victim.pid)
    other = start("worker", 2)
    victim.kill()
    wait_for_sweeps(periodic, 1, [victim, other])
    assert ("ends", pid) not in sweeps(periodic)
    assert {process for _, process in sweeps(periodic)[1:]} <= {str(each) for each in running_in_group(other.pid)}
