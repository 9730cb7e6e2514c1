"""Children that are forked while a thread of their parent is at work: they wait for no lock that nobody opens."""

import threading
from typing import Any

import pytest
from celery import Celery
from celery.app.task import Context

from idempotent_tasks import IdempotentTask, settings
from idempotent_tasks.reception import Reception
from idempotent_tasks.settings import settings_of
from tests.support.forking import Child

BOUND_SECONDS = 30.0

# Python 3.12 and later warn of any fork beside a thread, which is what these tests are about.
pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")


def test_a_key_that_a_thread_of_the_parent_works_out(app: Celery) -> None:
    """The parent releases for several dead children at once, while it forks their successors."""
    working, go_on = threading.Event(), threading.Event()

    def key_of(order: str) -> str:
        if order == "slow":
            working.set()
            go_on.wait(BOUND_SECONDS)
        return order

    @app.task(base=IdempotentTask, shared=False, name="shop.charge", idempotency={"key": key_of})
    def charge(order: str) -> None:
        """Be a body."""

    task: Any = charge

    def reception(order: str) -> Reception:
        received: Reception = task.reception(Context({"id": order}), [order], {})
        return received

    thread = threading.Thread(target=lambda: reception("slow").claim_request)
    thread.start()
    try:
        assert working.wait(BOUND_SECONDS)
        assert Child(lambda: reception("quick").claim_request.task_id).result() == "quick"
    finally:
        go_on.set()
        thread.join(BOUND_SECONDS)


def test_settings_that_a_thread_of_the_parent_reads(app: Celery) -> None:
    """Another app's settings may be read at that moment; those that were read before are at hand."""
    known = settings_of(app)
    with settings._loading:
        assert Child(lambda: settings_of(app) is known).result()
