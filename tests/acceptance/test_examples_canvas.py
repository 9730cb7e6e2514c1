"""The canvas example: a chain with a chord in it, on RabbitMQ, killed in the middle and published twice."""

import pytest

from tests.support.examples import Example, OnRabbitMQ
from tests.testbed.waiting import wait_for

EFFECT_SECONDS = 60.0
#: What is done when the worker is killed.
DONE = {"reserved ord-18", "packed book of ord-18", "packed lamp of ord-18"}


@pytest.fixture
def canvas(on_rabbitmq: OnRabbitMQ) -> Example:
    """The example."""
    return on_rabbitmq("canvas", 4)


def effects(canvas: Example) -> list[str]:
    """Return what was done in the warehouse, in order."""
    return canvas.lines("warehouse.txt")


def test_canvas_published_twice(canvas: Example) -> None:
    """The second publication gets the same result from what is stored, and no step has its effect again."""
    with canvas.running_worker():
        for number in range(2):
            assert canvas.run("python fulfil.py ord-17", number) == canvas.shown("python fulfil.py ord-17")
            # The parcels of a chord are packed in any order.
            assert sorted(effects(canvas)) == sorted(canvas.shown("cat").splitlines())


def test_canvas_whose_worker_is_killed_in_the_middle(canvas: Example) -> None:
    """The next worker packs what was not packed, ships all parcels, and repeats nothing that was done."""
    # The sofa is packed until the worker is killed, or its time limit ends a test that waits in vain.
    held = canvas.running_worker(PACK_SECONDS="86400")
    with held as worker, canvas.running("python fulfil.py ord-18", "") as publisher:
        wait_for(
            lambda: worker.log.read_text().count(" succeeded in ") == len(DONE),
            EFFECT_SECONDS,
            lambda: f"the warehouse has only {effects(canvas)}\n{worker.tail()}",
        )
        worker.kill()
        assert set(effects(canvas)) == DONE
        with canvas.running_worker(PACK_SECONDS="0"):
            assert publisher.wait_for_exit(EFFECT_SECONDS) == 0, publisher.tail()
    assert "ord-18: parcel of book, parcel of lamp, parcel of sofa" in publisher.tail().splitlines()
    assert len(effects(canvas)) == len(set(effects(canvas))) == len(DONE) + 3
    assert effects(canvas)[-3].startswith("packed sofa")
