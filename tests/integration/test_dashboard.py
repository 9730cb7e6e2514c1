"""The Grafana dashboard: a real Prometheus scrapes a real worker, and every query of every panel has an answer."""

import math
from pathlib import Path
from secrets import token_hex

import pytest

from tests.integration.conftest import MakeRig
from tests.support.dashboard import queries
from tests.support.rig import Rig, Worker
from tests.testbed.brokers import CHILD_LOSS_SECONDS
from tests.testbed.processes import free_port
from tests.testbed.servers import Prometheus, prometheus_scraping
from tests.testbed.waiting import wait_for

TASKS = {
    "charge": {"time_limit": 60, "idempotency": {"key": "order", "validate": "value"}},
    "die": {"time_limit": 60, "idempotency": {"key": "order", "max_crashes": 1}},
    "fail": {"time_limit": 60, "idempotency": {"key": "order", "on_rerun": "park"}},
}
SCRAPED_SECONDS = 30.0
#: Twice what DynamoDB takes, and of it half is left when it is compressed.
TOO_LARGE = token_hex(450_000)
#: What no test makes happen on purpose: it stays 0, and that 0 is what the panel shows.
QUIET = ("unrecorded", "lost", "superseded")


def cause_everything(rig: Rig, worker: Worker) -> None:
    """Cause a killed child, a deferral, replays, a large result, another payload, a crash loop and a parked key."""
    rig.journal.shut("before-effect")
    killed = rig.send("charge", "ord-2", 17)
    worker.kill_child(rig.journal.wait_for("at-gate", gate="before-effect")["pid"])
    rig.journal.wait_for("at-gate", gate="before-effect", times=2)
    duplicate = rig.send("charge", "ord-2", 17)
    rig.journal.wait_for("Deferred", id=duplicate.id)
    rig.journal.open("before-effect")
    assert rig.result(killed) == rig.result(duplicate) == 17
    assert rig.result(rig.send("charge", "ord-5", TOO_LARGE)) == TOO_LARGE
    for published in (rig.send("charge", "ord-2", 18), rig.send("die", "ord-4"), rig.send("fail", "ord-6", 1)):
        with pytest.raises(Exception, match=r"payload|in a row|left no outcome"):
            rig.result(published)


def unanswered(prometheus: Prometheus) -> dict[str, object]:
    """Return the queries whose answer is empty, or no number, or 0 though what they count happened."""
    answers = {name: prometheus.query(query) for name, query in queries().items()}
    counting = {
        name for name, query in queries().items() if "vector(0)" in query and not any(e in query for e in QUIET)
    }
    return {
        name: values
        for name, values in answers.items()
        if not any(math.isfinite(value) and (value > 0 or name not in counting) for value in values)
    }


@pytest.mark.parametrize("broker", ["redis"], indirect=True)
def test_every_query_of_the_dashboard_has_an_answer(
    make_guarded: MakeRig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is PromQL, reads series that the worker has, and yields a number when what it shows has happened."""
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path / "metrics"))
    port = free_port()
    settings = {"idempotency_observers": ["tests.support.app:observe"], "idempotency_prometheus_port": port}
    rig = make_guarded(visibility_seconds=CHILD_LOSS_SECONDS, tasks=TASKS, settings=settings)
    worker = rig.start_worker(2)
    with prometheus_scraping(port, tmp_path) as prometheus:
        assert rig.result(rig.send("charge", "ord-1", 17)) == 17
        for published in (rig.send("die", "ord-3"), rig.send("fail", "ord-7", 1)):
            with pytest.raises(Exception, match=r"in a row|left no outcome"):
                rig.result(published)
        # An increase is one over what was scraped before.
        wait_for(
            lambda: prometheus.label_values("task", "idempotent_tasks_events_total") == ["charge", "die", "fail"],
            SCRAPED_SECONDS,
            "Prometheus did not scrape all tasks",
        )
        cause_everything(rig, worker)
        wait_for(
            lambda: not unanswered(prometheus), SCRAPED_SECONDS, lambda: f"without an answer: {unanswered(prometheus)}"
        )
