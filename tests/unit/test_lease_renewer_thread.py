"""The renewer's own thread: it renews by itself, wakes for newcomers, and every process has its own."""

import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

from idempotent_tasks.core.clock import SystemClock
from idempotent_tasks.core.lease import LeaseRenewer, LeaseTerms
from idempotent_tasks.core.records import Granted
from idempotent_tasks.events import Event
from idempotent_tasks.testing import FakeClock, MemoryStore
from tests.support.guarding import TERMS, ManualRenewer, request_by, start, unseen
from tests.support.stores import FaultyStore

#: Longer than any of these tests takes, in seconds.
LONG_SECONDS = 20.0

FORKED = """
import os, sys, threading
from idempotent_tasks.core.lease import LeaseRenewer, LeaseTerms, RunContext
from idempotent_tasks.core.processes import this_process
from idempotent_tasks.core.records import ClaimRequest
from idempotent_tasks.core.retry import RetryingStore
from idempotent_tasks.testing import MemoryStore

def kept(seconds, renewed):
    request = ClaimRequest(key="k", owner="o", lease_seconds=seconds, retention_seconds=60)
    run = RunContext(store.claim(request).claim, RetryingStore(store=store, observe=print))
    term = LeaseTerms(lease_seconds=seconds, renewed=True, longest_seconds=None)
    return this_process().own(LeaseRenewer).renewing(run, store, term, lambda _: renewed.set())

store, renewed = MemoryStore(), threading.Event()
with kept(60, renewed):
    child = os.fork()
    if child == 0:
        store = MemoryStore()
        with kept(0.3, renewed):
            os._exit(0 if renewed.wait(20) else 1)
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_the_block_ends_after_the_renewal_that_is_under_way(store: MemoryStore, clock: FakeClock) -> None:
    """A renewal that landed after the release would hold the key again."""
    renewing, proceed, order = threading.Event(), threading.Event(), list[str]()

    def slow(call: Callable[[], Any]) -> Any:
        renewing.set()
        assert proceed.wait(LONG_SECONDS), "the test did not let the renewal go on"
        order.append("renewed")
        return call()

    renewer, faulty = ManualRenewer(), FaultyStore(store, renew=[slow])
    run = start(faulty)
    thread = threading.Thread(target=renewer.renew_due)
    with renewer.renewing(run, faulty, TERMS, unseen):
        clock.advance(21)
        thread.start()
        assert renewing.wait(LONG_SECONDS), "the renewer did not renew"
        threading.Timer(0.05, proceed.set).start()
    order.append("ended")
    thread.join(LONG_SECONDS)
    assert not thread.is_alive()
    assert order == ["renewed", "ended"]


def test_the_renewers_own_thread_renews() -> None:
    """Without anybody asking, a running body's claim is renewed before it expires, by a thread that ends with us."""
    store, renewed = MemoryStore(clock=SystemClock()), threading.Event()
    run = start(store, lease=0.3)

    def observe(event: Event) -> None:
        renewed.set()

    term = LeaseTerms(lease_seconds=0.3, renewed=True, longest_seconds=None)
    with LeaseRenewer().renewing(run, store, term, observe):
        assert renewed.wait(LONG_SECONDS), "the claim was not renewed"
    assert isinstance(store.claim(request_by("one", lease_seconds=0.3)), Granted)
    assert [thread.daemon for thread in threading.enumerate() if thread.name == "idempotency-lease-renewer"]


def test_a_short_claim_does_not_wait_for_a_long_one() -> None:
    """A claim that joins while the thread waits for another's due time is renewed in its own time."""
    store, renewed, renewer = MemoryStore(clock=SystemClock()), threading.Event(), LeaseRenewer()
    long, short = start(store, key="a"), start(store, key="b", lease=0.3)
    term = LeaseTerms(lease_seconds=0.3, renewed=True, longest_seconds=None)
    with renewer.renewing(long, store, TERMS, unseen), renewer.renewing(short, store, term, lambda _: renewed.set()):
        assert renewed.wait(LONG_SECONDS), "the short claim was not renewed"


def test_a_forked_child_keeps_its_own_claims() -> None:
    """The parent's thread does not exist in a prefork child: the child starts its own."""
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKED], capture_output=True, text=True, check=False, timeout=60
    )
    assert ended.returncode == 0, ended.stderr
