"""The testbed itself, with plain Celery tasks: it must show the double effects that the library exists to prevent."""

import gc

import pytest

from tests.conftest import available
from tests.integration.conftest import MakeRig
from tests.support.rig import Rig
from tests.testbed.brokers import CHILD_LOSS_SECONDS
from tests.testbed.servers import MissingServiceError

pytestmark = pytest.mark.timeout(90)


def test_killed_worker_redelivers_and_repeats_the_effect(make_rig: MakeRig) -> None:
    """A plain task whose whole worker is killed after its effect is delivered again, and has two effects."""
    rig = make_rig()
    rig.journal.shut("after-effect")
    first = rig.start_worker()
    published = rig.send("charge", "ord-1", 17)
    rig.journal.wait_for("at-gate", gate="after-effect")
    first.kill()
    rig.journal.open("after-effect")
    rig.start_worker()
    assert rig.result(published) == 17
    assert rig.journal.count("effect", key="ord-1") == 2


def test_killed_child_redelivers_and_repeats_the_effect(make_rig: MakeRig) -> None:
    """A plain task whose pool child is killed after its effect has two effects under ``reject_on_worker_lost``."""
    rig = make_rig(visibility_seconds=CHILD_LOSS_SECONDS)
    rig.journal.shut("after-effect")
    worker = rig.start_worker()
    published = rig.send("charge", "ord-1", 17)
    held = rig.journal.wait_for("at-gate", gate="after-effect")
    worker.kill_child(held["pid"])
    rig.journal.open("after-effect")
    assert rig.result(published) == 17
    assert rig.journal.count("effect", key="ord-1") == 2


@pytest.mark.parametrize("broker", ["redis", "sqs"], indirect=True)
def test_visibility_timeout_starts_a_second_run(make_rig: MakeRig) -> None:
    """A plain body that outlives the visibility timeout is started again while it runs; RabbitMQ has none."""
    rig = make_rig()
    rig.journal.shut("before-effect")
    rig.start_worker()
    published = rig.send("charge", "ord-1", 17)
    rig.journal.wait_for("started", times=2, id=published.id)
    rig.journal.open("before-effect")
    rig.journal.wait_for("effect", times=2, id=published.id)


@pytest.mark.parametrize("broker", ["redis"], indirect=True)
def test_terminated_worker_finishes_its_task(make_rig: MakeRig) -> None:
    """SIGTERM lets a worker finish what it runs, and exit by itself."""
    rig = make_rig()
    rig.journal.shut("before-effect")
    worker = rig.start_worker()
    published = rig.send("charge", "ord-1", 17)
    rig.journal.wait_for("at-gate", gate="before-effect")
    rig.journal.wait_for("accepted", id=published.id)
    rig.journal.open("before-effect")
    worker.process.terminate()
    assert rig.result(published) == 17
    assert worker.process.returncode == 0
    assert rig.journal.count("effect") == 1


@pytest.mark.parametrize("broker", ["redis"], indirect=True)
def test_rig_leaves_no_socket_to_the_garbage_collector(make_rig: MakeRig) -> None:
    """A result that nobody waited for connects no more when its rig is gone: the warning would fail any other test."""
    with Rig(make_rig().config) as rig:
        forgotten: list[object] = [rig.send("charge", "ord-1")]
        forgotten.append(forgotten)
    del rig, forgotten
    gc.collect()


@pytest.mark.parametrize(("ci", "outcome"), [("", pytest.skip.Exception), ("true", pytest.fail.Exception)])
def test_missing_service_skips_on_a_laptop_and_fails_in_ci(
    monkeypatch: pytest.MonkeyPatch, ci: str, outcome: type[BaseException]
) -> None:
    """Without ``CI=true`` a missing service is a skip, with it a failure; both name the remedy."""
    monkeypatch.setenv("CI", ci)
    with pytest.raises(outcome, match="install it"), available():
        raise MissingServiceError("a service", "nothing answers", "install it")
