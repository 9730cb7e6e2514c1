"""What people see who run monitors: real workers report to Celery's events and to Prometheus."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.request import urlopen
from uuid import uuid4

import pytest
from celery import Celery, _state
from celery.events.state import State
from prometheus_client.parser import text_string_to_metric_families

from idempotent_tasks.core.delivery import DEFERRALS_HEADER
from idempotent_tasks.core.processes import this_process
from idempotent_tasks.events import Replayed
from idempotent_tasks.observers import celery_events
from tests.integration.conftest import MakeRig
from tests.support.app import build_app
from tests.testbed.brokers import CHILD_LOSS_SECONDS, Broker
from tests.testbed.processes import free_port
from tests.testbed.tcp import Tcp
from tests.testbed.waiting import wait_for
from tests.testbed.wire import Wire

on_redis = pytest.mark.parametrize("broker", ["redis"], indirect=True)
on_ministack = pytest.mark.parametrize("dynamodb_endpoint", ["ministack"], indirect=True)
BY_ORDER = {"charge": {"time_limit": 60, "idempotency": {"key": "order"}}}
JOURNAL = "tests.support.app:observe"
WITHIN_SECONDS = 20.0
#: Far below the minutes for which a client of a broker waits by itself.
HELD_SECONDS = 10.0


def wait_until_told(seen: list[dict[str, Any]], kind: str, task_id: str) -> None:
    """Return when a monitor saw an event of a task."""
    wait_for(
        lambda: any(each["type"] == kind and each.get("uuid") == task_id for each in list(seen)),
        WITHIN_SECONDS,
        lambda: f"the monitor saw only {[each['type'] for each in seen]}, no {kind}",
    )


@contextmanager
def monitor(app: Celery) -> Iterator[list[dict[str, Any]]]:
    """Receive what `celery events` and Flower receive."""
    seen: list[dict[str, Any]] = []
    ended, listening = threading.Event(), threading.Event()

    def receive() -> None:
        with app.connection_for_read() as base:
            receiver = app.events.Receiver(base, handlers={"*": seen.append})
            with receiver.consumer_context(wakeup=False) as (connection, _channel, _consumers):
                listening.set()
                while not ended.is_set():
                    with suppress(TimeoutError):
                        connection.drain_events(timeout=0.2)

    thread = threading.Thread(target=receive, daemon=True)
    thread.start()
    assert listening.wait(WITHIN_SECONDS)
    try:
        yield seen
    finally:
        ended.set()
        thread.join(WITHIN_SECONDS)


@pytest.mark.parametrize("broker", ["redis", "rabbitmq"], indirect=True)
def test_celery_events_show_a_replay_as_a_replay(make_guarded: MakeRig, broker: Broker) -> None:
    """A monitor's own model of the duplicate was REPLAYED before it became SUCCESS; a first run costs no message.

    RabbitMQ is not asked for an answer, so there the event of the worker's parent may overtake that of its child.
    """
    rig = make_guarded(tasks=BY_ORDER, settings={"idempotency_observers": ["celery", JOURNAL]})
    worker = rig.start_worker(1, "--task-events")
    with monitor(rig.app) as seen:
        first = rig.send("charge", "ord-1", 17)
        assert rig.result(first) == 17
        second = rig.send("charge", "ord-1", 18)
        assert rig.result(second) == 17
        for kind in ("task-replayed", "task-succeeded"):
            wait_until_told(seen, kind, second.id)
    # The exchange is everybody's.
    told = [each for each in seen if each.get("uuid") in (first.id, second.id)]
    # The model that both monitors have of what they receive.
    state, states = State(), []
    for event in told:
        state.event(dict(event))
        if event["uuid"] == second.id:
            states.append(state.tasks[second.id].state)
    assert broker.name == "rabbitmq" or "REPLAYED" in states
    assert states[-1] == "SUCCESS"
    (replayed,) = [each for each in told if each["type"] == "task-replayed"]
    assert (replayed["uuid"], replayed["name"], replayed["holder_task_id"]) == (second.id, "charge", first.id)
    assert not {"claimed", "committed"} & {each["type"].partition("-")[2] for each in told}
    assert {each["hostname"] for each in told} == {worker.name}


@on_redis
def test_a_deferral_is_a_state_for_monitors(make_guarded: MakeRig) -> None:
    """Celery reports nothing of a delivery that is deferred; the monitor shows it as DEFERRED."""
    rig = make_guarded(tasks=BY_ORDER, settings={"idempotency_observers": ["celery", JOURNAL]})
    rig.journal.shut("before-effect")
    rig.start_worker(2, "--task-events")
    with monitor(rig.app) as seen:
        first = rig.send("charge", "ord-1", 17)
        rig.journal.wait_for("at-gate")
        second = rig.send("charge", "ord-1", 18)
        rig.journal.wait_for("Deferred", id=second.id)
        rig.journal.open("before-effect")
        assert rig.result(first) == rig.result(second) == 17
        wait_until_told(seen, "task-deferred", second.id)


def replayed_event(task_id: str) -> Replayed:
    """Return an event that nobody but a monitor sees."""
    return Replayed(
        task="charge", task_id=task_id, key="charge#ord-1", worker="w1@shop", holder_task_id=None, age_seconds=None
    )


@pytest.mark.parametrize(
    ("broker", "fault"), [("redis", "swallow"), ("redis", "refuse"), ("rabbitmq", "refuse")], indirect=["broker"]
)
def test_a_broker_that_is_away_holds_a_body_for_seconds_once(
    make_rig: MakeRig, tcp: Tcp, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first event fails within seconds, the next ones cost nothing; when the broker is back they come again."""
    rig = make_rig()
    before, lost, unsent, after = (uuid4().hex for _ in range(4))
    with monitor(rig.app) as seen:
        app = build_app(replace(rig.config, broker_url=tcp.url(rig.config.broker_url)))
        monkeypatch.setattr(_state._tls, "current_app", app)
        this_process().provide(celery_events._Sender, celery_events._Sender())
        celery_events.observe(replayed_event(before))
        wait_until_told(seen, "task-replayed", before)
        getattr(tcp, fault)()
        if fault == "refuse":
            tcp.cut()
        begun = time.monotonic()
        with pytest.raises(Exception, match=r".") as error:
            celery_events.observe(replayed_event(lost))
        assert time.monotonic() - begun < HELD_SECONDS, error
        tried = tcp.taken, tcp.refused
        celery_events.observe(replayed_event(unsent))
        assert (tcp.taken, tcp.refused) == tried
        tcp.heal()
        monkeypatch.setattr(this_process().own(celery_events._Sender), "_paused_until", 0.0)
        celery_events.observe(replayed_event(after))
        wait_until_told(seen, "task-replayed", after)
        told = [each for each in seen if each.get("uuid") in (before, lost, unsent, after)]
        assert [each["uuid"] for each in told] == [before, after]
        # A name of another kind would be a worker of its own for a monitor.
        assert {each["hostname"] for each in told} == {"w1@shop"}
        app.close()


@on_redis
def test_prometheus_scrapes_the_sum_of_a_pool(
    make_guarded: MakeRig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The parent serves what its children counted, one that was killed included, and what it did for that one."""
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path / "metrics"))
    port = free_port()
    settings = {"idempotency_observers": [JOURNAL], "idempotency_prometheus_port": port}
    rig = make_guarded(visibility_seconds=CHILD_LOSS_SECONDS, tasks=BY_ORDER, settings=settings)
    worker = rig.start_worker(2)
    rig.journal.shut("before-effect")
    killed = rig.send("charge", "ord-1", 17)
    child = rig.journal.wait_for("at-gate")["pid"]
    assert scraped(port)["idempotent_tasks_claims_in_flight"] == 1
    worker.kill_child(child)
    rig.journal.wait_for("at-gate", times=2)
    assert scraped(port)["idempotent_tasks_claims_in_flight"] == 1, "the killed child still counts"
    rig.journal.open("before-effect")
    assert rig.result(killed) == 17
    assert rig.result(rig.send("charge", "ord-1", 18)) == 17
    values = scraped(port)
    assert values["idempotent_tasks_claims_in_flight"] == 0
    assert (values["claimed"], values["idempotent_tasks_attempts_sum"]) == (2, 3)
    assert values["committed"] == values["replayed"] == values["released"] == 1
    assert values["lost"] == 0


def scraped(port: int) -> dict[str, float]:
    """Return, as Prometheus parses them, the counts by kind of event, and every other sample by its name."""
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=WITHIN_SECONDS) as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    return {each.labels.get("event", each.name): each.value for family in families for each in family.samples}


@on_redis
@on_ministack
def test_a_disabled_worker_asks_the_store_nothing(
    make_guarded: MakeRig, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With ``IDEMPOTENCY_DISABLED=1`` duplicates both run, as without the library, and a killed child frees nothing."""
    monkeypatch.setenv("IDEMPOTENCY_DISABLED", "1")
    rig = make_guarded(wire.endpoint, visibility_seconds=CHILD_LOSS_SECONDS, tasks=BY_ORDER)
    wire.clear()
    worker = rig.start_worker(1)
    rig.journal.shut("before-effect")
    first = rig.send("charge", "ord-1", 17)
    worker.kill_child(rig.journal.wait_for("at-gate")["pid"])
    rig.journal.open("before-effect")
    assert rig.result(first) == 17
    assert rig.result(rig.send("charge", "ord-1", 18)) == 18
    # A copy that was deferred before the switch was thrown.
    assert rig.result(rig.send("charge", "ord-1", 19, headers={DEFERRALS_HEADER: 3})) == 19
    assert rig.journal.count("effect") == 3
    rig.journal.wait_for("acknowledged", times=3)
    worker.process.terminate()
    assert wire.operations() == []
    assert "idempotency is DISABLED" in worker.log()
