"""Steps: parts of a body that run once for each fresh start of a key, whatever ends the runs between them."""

import asyncio
import base64
import random
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import partial
from itertools import repeat
from types import CodeType, FrameType
from typing import Any
from uuid import UUID

import pytest
from celery import Celery

from idempotent_tasks import (
    ConfigurationError,
    Done,
    Idempotency,
    KeyEncodingError,
    NotDone,
    Record,
    ResultEncodingError,
    ResultUnavailableError,
    StepMismatchError,
    StoreUnavailableError,
    Unknown,
    UnresolvedError,
    register_type,
)
from idempotent_tasks.core.atomic import Atomic
from idempotent_tasks.core.encoding import MAX_RESULT_BYTES
from idempotent_tasks.core.guard import Failed, Replayed, Returned, Unresolved, Unwritten
from idempotent_tasks.core.lease import RunContext
from idempotent_tasks.core.records import MOST_STEPS, Busy, Granted
from idempotent_tasks.core.stepped import SteppedRun
from idempotent_tasks.events import Superseded
from idempotent_tasks.messaging.handler import MOST_FAILED_RECOVERIES
from idempotent_tasks.messaging.unguarded import UnguardedRun
from idempotent_tasks.testing import FakeClock, MemoryStore
from tests.support.guarding import KEY, Bench, Interrupt, done, request_by
from tests.support.receipts import MemoryReceipts, Sent, lost
from tests.support.shop import SECRET, Shop, make
from tests.support.stores import FaultyStore, MemoryBucket, Step, down, lost_answer

LEASE = 30.0
SETTLE = 10.0
#: Too large for a place in the record.
LARGE = base64.b64encode(random.Random(17).randbytes(6000)).decode()


class Provider:
    """What a step calls: it counts, and answers or raises as planned."""

    def __init__(self, *planned: Any) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self._planned = list(planned)

    def charge(self, *args: Any) -> Any:
        """Return the next planned answer, or raise it, or call it; without one, the number of the call."""
        self.calls.append(args)
        answer = self._planned.pop(0) if self._planned else len(self.calls)
        if isinstance(answer, BaseException):
            raise answer
        return answer() if callable(answer) else answer


@pytest.fixture
def provider() -> Provider:
    """A provider that answers with the number of the call."""
    return Provider()


def die(bench: Bench, clock: FakeClock, body: Callable[[RunContext], Any], **policy: Any) -> None:
    """Run a body whose process dies at its end, and let its claim expire."""

    def dying(run: RunContext) -> None:
        body(run)
        raise SystemExit

    with pytest.raises(SystemExit):
        bench.deliver("one", dying, guard=bench.guard(watched=True, **policy))
    clock.advance(LEASE + float(policy.get("settle", 0)) + 1)


def take(bench: Bench, owner: str = "another", **given: Any) -> Any:
    """Let another delivery have the key, as after the end of its claim."""
    store = bench.store.inner if isinstance(bench.store, FaultyStore) else bench.store
    answer = store.claim(request_by(owner, **given))
    assert isinstance(answer, Granted)
    return answer.claim


class TestKept:
    """A step that has returned does not run again for the key."""

    @pytest.mark.parametrize("answer", ["ch_17", None, 0, LARGE], ids=["text", "none", "falsy", "item of its own"])
    def test_through_a_failure(self, bench: Bench, answer: Any) -> None:
        """The next run gets what the first has got."""
        provider, seen = Provider(answer), []

        def body(run: RunContext) -> str:
            seen.append(run.step("charge", provider.charge, 17))
            if len(seen) == 1:
                raise TimeoutError
            return "sent"

        with pytest.raises(TimeoutError):
            bench.deliver(value=body)
        assert bench.deliver("two", body) == Returned("sent")
        assert (provider.calls, seen) == ([(17,)], [answer, answer])

    @pytest.mark.parametrize("answer", ["ch_17", LARGE], ids=["in the record", "item of its own"])
    def test_through_a_crash(self, bench: Bench, clock: FakeClock, answer: str) -> None:
        """Its claim has brought what the dead run left."""
        provider = Provider(answer)

        def body(run: RunContext) -> Any:
            return run.step("charge", provider.charge, 17)

        die(bench, clock, body)
        assert bench.deliver("two", body) == Returned(answer)
        assert provider.calls == [(17,)]

    def test_through_a_takeover(self, bench: Bench, provider: Provider, clock: FakeClock) -> None:
        """A run that stands still is passed by one that takes its steps, and itself does no other."""

        def successor(run: RunContext) -> Any:
            return run.step("charge", provider.charge), run.step("mail", provider.charge)

        def body(run: RunContext) -> Any:
            run.step("charge", provider.charge)
            clock.advance(LEASE + 1)
            assert bench.deliver("two", successor) == Returned((1, 2))
            run.step("mail", provider.charge)
            raise AssertionError("it went on")

        assert bench.deliver("one", body) == Replayed([1, 2])
        assert len(provider.calls) == 2

    def test_through_retry(self, shop: Shop, provider: Provider) -> None:
        """With ``self.retry()``, as often as it takes."""

        def body(task: Any) -> Any:
            charge = task.idempotency.step("charge", provider.charge, shop.id)
            if shop.runs < 3:
                raise task.retry(countdown=0)
            return charge, task.idempotency.step("mail", provider.charge)

        shop.sells(body)
        shop.deliver()
        shop.worker.drain()
        assert (shop.runs, shop.result) == (3, [1, 2])
        assert provider.calls == [(shop.id,), ()]

    def test_through_autoretry(self, shop: Shop, provider: Provider) -> None:
        """With ``autoretry_for``."""

        def body(task: Any) -> Any:
            charge = task.idempotency.step("charge", provider.charge)
            if shop.runs == 1:
                raise ConnectionError
            return charge

        shop.sells(body, autoretry_for=(ConnectionError,), retry_kwargs={"countdown": 0})
        shop.deliver()
        shop.worker.drain()
        assert (shop.runs, shop.result, len(provider.calls)) == (2, 1, 1)

    def test_not_a_step_that_raised(self, bench: Bench) -> None:
        """What it raises is the body's to handle; the next run calls it again."""
        provider = Provider(KeyError("declined"), "ch_17")

        def body(run: RunContext) -> Any:
            return run.step("charge", provider.charge)

        with pytest.raises(KeyError, match="declined"):
            bench.deliver(value=body)
        assert bench.deliver("two", body) == Returned("ch_17")

    def test_not_for_another_start_of_the_key(self, bench: Bench, provider: Provider, clock: FakeClock) -> None:
        """An outcome ends its steps, and when that has expired each runs again."""

        def body(run: RunContext) -> Any:
            return run.step("charge", provider.charge)

        guard = bench.guard(expires=60)
        given: dict[str, Any] = {"retention_seconds": 60}
        assert bench.deliver("one", body, guard=guard, **given) == Returned(1)
        assert not bench.store.get(KEY).steps
        clock.advance(62)
        assert bench.deliver("two", body, guard=guard, **given) == Returned(2)

    def test_a_deployment_inserts_removes_and_reorders(self, bench: Bench, provider: Provider) -> None:
        """Each keeps its result under its name, wherever it stands."""

        def old(run: RunContext) -> None:
            for name in ("reserve", "charge", "mail"):
                run.step(name, provider.charge, name)
            raise TimeoutError

        def new(run: RunContext) -> list[Any]:
            return [run.step(name, provider.charge, name) for name in ("mail", "audit", "charge")]

        with pytest.raises(TimeoutError):
            bench.deliver(value=old)
        assert bench.deliver("two", new) == Returned([3, 4, 2])
        assert [name for (name,) in provider.calls] == ["reserve", "charge", "mail", "audit"]

    def test_a_step_in_a_step(self, bench: Bench) -> None:
        """The inner one is kept by itself, so that the outer one finds it when it runs again."""
        inner, ends = Provider("inner"), [TimeoutError(), None]

        def outer(run: RunContext) -> list[Any]:
            found = run.step("inner", inner.charge)
            end = ends.pop(0)
            if end is not None:
                raise end
            return [found]

        def body(run: RunContext) -> Any:
            return run.step("outer", lambda: outer(run))

        with pytest.raises(TimeoutError):
            bench.deliver(value=body)
        assert bench.deliver("two", body) == Returned(["inner"])
        assert len(inner.calls) == 1

    def test_no_request_finds_what_lies_in_the_record(self, store: MemoryStore, provider: Provider) -> None:
        """The claim's answer brings it; a step costs one write when it runs, none when it is found."""
        bench = Bench(FaultyStore(store))

        def body(run: RunContext) -> Any:
            run.step("charge", provider.charge)
            raise TimeoutError

        for owner in ("one", "two"):
            with pytest.raises(TimeoutError):
                bench.deliver(owner, body)
        assert bench.store.calls == ["claim", "keep_step", "release", "claim", "release"]  # type: ignore[attr-defined]

    def test_in_another_thread(self, shop: Shop, provider: Provider) -> None:
        """As ``asyncio.to_thread()`` runs it, in the body's context."""

        def body(task: Any) -> Any:
            async def steps() -> list[Any]:
                first = await asyncio.to_thread(lambda: task.idempotency.step("charge", provider.charge))
                return [first, await asyncio.to_thread(lambda: task.idempotency.step("mail", provider.charge))]

            values = asyncio.run(steps())
            if shop.runs == 1:
                raise task.retry(countdown=0)
            return values

        shop.sells(body)
        shop.deliver()
        shop.worker.drain()
        assert (shop.runs, shop.result, len(provider.calls)) == (2, [1, 2], 2)

    def test_in_threads_at_once(self, bench: Bench) -> None:
        """What one keeps is not lost to the other, and a name has one of them."""

        def body(run: RunContext) -> Any:
            async def both(names: tuple[str, str]) -> list[Any]:
                calls = (asyncio.to_thread(run.step, name, lambda: "kept") for name in names)
                return await asyncio.gather(*calls, return_exceptions=True)

            found = asyncio.run(both(("charge", "mail"))), asyncio.run(both(("audit", "audit")))
            assert found[0] == ["kept", "kept"]
            assert sorted(type(each).__name__ for each in found[1]) == ["ConfigurationError", "str"]
            raise TimeoutError

        with pytest.raises(TimeoutError):
            bench.deliver(value=body)
        assert sorted(bench.store.get(KEY).steps.here) == ["audit", "charge", "mail"]


@dataclass(frozen=True)
class Receipt:
    """A type of the user's own."""

    number: int


class TestValues:
    """The first run sees what a later one will: the result as it is read back."""

    @pytest.mark.parametrize(
        ("answer", "seen"),
        [
            ((1, 2), [1, 2]),
            ({1: "one"}, {"1": "one"}),
            (Decimal("1.50"), Decimal("1.50")),
            (UUID(int=17), UUID(int=17)),
            (Receipt(5), Receipt(5)),
            (LARGE, LARGE),
        ],
        ids=["tuple", "keys of a dict", "decimal", "uuid", "registered", "large"],
    )
    def test_json(self, bench: Bench, answer: Any, seen: Any) -> None:
        """A tuple is a list from the beginning, not only after a crash."""
        register_type(Receipt, "unit.steps.receipt", encode=lambda each: each.number, decode=Receipt)
        found = self.of_two_runs(bench, Provider(answer))
        assert found == [seen, seen]
        assert [type(each) for each in found] == [type(seen)] * 2

    @pytest.mark.parametrize(("codec", "seen"), [("pickle", (1, {2})), ("none", None)])
    def test_other_codecs(self, bench: Bench, codec: str, seen: Any) -> None:
        """As the results of the task; where it stores none, a step has none in its first run either."""
        guard = bench.guard(codec=codec)
        guard = replace(guard, results=replace(guard.results, accepted=("pickle",)))
        assert self.of_two_runs(bench, Provider((1, {2})), guard) == [seen, seen]

    def test_a_copy(self, bench: Bench) -> None:
        """What the body changes in it is not in what is kept."""
        found = self.of_two_runs(bench, Provider(["ch_17"]), change=lambda value: value.append("changed"))
        assert found == [["ch_17", "changed"], ["ch_17", "changed"]]

    @staticmethod
    def of_two_runs(
        bench: Bench, provider: Provider, guard: Any = None, change: Callable[[Any], Any] = lambda _: None
    ) -> list[Any]:
        """Return what two runs see of a step that runs once."""
        found: list[Any] = []

        def body(run: RunContext) -> None:
            found.append(run.step("charge", provider.charge))
            change(found[-1])
            raise TimeoutError

        for owner in ("one", "two"):
            with pytest.raises(TimeoutError):
                bench.deliver(owner, body, guard=guard)
        assert len(provider.calls) == 1
        return found

    def test_what_cannot_be_encoded(self, bench: Bench) -> None:
        """It is done, so no run calls it again; the error says so from the first one on, without the value."""
        provider = Provider(lambda: Unwritable(SECRET))

        def body(run: RunContext) -> Any:
            return run.step("charge", provider.charge)

        with pytest.raises(
            ResultEncodingError, match="step 'charge' succeeded, but its result of type Unwritable"
        ) as one:
            bench.deliver(value=body)
        with pytest.raises(ResultUnavailableError, match=r"step 'charge' was done .* cannot be written as JSON") as two:
            bench.deliver("two", body)
        assert len(provider.calls) == 1
        for raised in (one, two):
            assert SECRET not in str(raised.value)
            assert (raised.value.task, raised.value.key) == ("shop.charge", KEY)

    def test_what_is_too_large_for_any_store(self, bench: Bench) -> None:
        """As what cannot be encoded."""
        provider = Provider("x" * (MAX_RESULT_BYTES + 1))

        def body(run: RunContext) -> Any:
            return run.step("charge", provider.charge)

        with pytest.raises(ResultEncodingError, match=f"at most {MAX_RESULT_BYTES} are stored"):
            bench.deliver(value=body)
        with pytest.raises(ResultUnavailableError, match="step 'charge' was done"):
            bench.deliver("two", body)

    def test_what_is_too_large_for_the_store(self, clock: FakeClock) -> None:
        """Every run is told so, that which has it too, and a later one does not call it again."""
        bench, provider = Bench(MemoryStore(clock=clock, max_data_bytes=1000)), Provider(LARGE)

        def body(run: RunContext) -> Any:
            return run.step("charge", provider.charge)

        with pytest.raises(ResultEncodingError, match="the store takes 1000"):
            bench.deliver(value=body)
        with pytest.raises(ResultUnavailableError, match=r"step 'charge' was done .* the store takes 1000"):
            bench.deliver("two", body)
        assert len(provider.calls) == 1

    def test_in_a_bucket(self, clock: FakeClock) -> None:
        """What is too large for the store is fetched from there."""
        bench, provider, bucket = Bench(MemoryStore(clock=clock, max_data_bytes=1000)), Provider(LARGE), MemoryBucket()

        def body(run: RunContext) -> Any:
            value = run.step("charge", provider.charge)
            if len(bench.ran) == 1:
                raise TimeoutError
            return len(value)

        guard = bench.guard(bucket=bucket)
        with pytest.raises(TimeoutError):
            bench.deliver(value=body, guard=guard)
        assert bucket.calls == ["put"]
        assert bench.deliver("two", body, guard=guard) == Returned(len(LARGE))
        assert (bucket.calls, len(provider.calls)) == (["put", "get"], 1)

    def test_in_a_bucket_that_does_not_answer(self, clock: FakeClock) -> None:
        """The run cannot go on without it: the delivery waits, and a later one finds it."""
        store = MemoryStore(clock=clock, max_data_bytes=1000)
        bench, provider = Bench(store), Provider(LARGE)
        away: list[Exception | None] = [StoreUnavailableError("the bucket is away")] * 50
        bucket = MemoryBucket(failures=[None, *away])

        def body(run: RunContext) -> Any:
            value = run.step("charge", provider.charge)
            if len(bench.ran) == 1:
                raise TimeoutError
            return len(value)

        with pytest.raises(TimeoutError):
            bench.deliver(value=body, guard=bench.guard(bucket=bucket))
        verdict = bench.deliver("two", body, guard=bench.guard(bucket=bucket))
        assert isinstance(verdict, Unwritten)
        assert (verdict.error.message, verdict.error.key) == ("the bucket is away", KEY)
        working = MemoryBucket()
        working.objects = bucket.objects
        assert bench.deliver("three", body, guard=bench.guard(bucket=working)) == Returned(len(LARGE))

    def test_an_item_that_is_gone(self, bench: Bench, store: MemoryStore) -> None:
        """Somebody has deleted it, or it has expired: the run says so instead of doing the step again."""
        provider = Provider(LARGE)

        def body(run: RunContext) -> Any:
            run.step("charge", provider.charge)
            raise TimeoutError

        with pytest.raises(TimeoutError):
            bench.deliver(value=body)
        store._steps.clear()
        with pytest.raises(ResultUnavailableError, match=r"step 'charge' was done .* its item was deleted"):
            bench.deliver("two", body)
        assert len(provider.calls) == 1


class Unwritable:
    """What no codec writes."""

    def __init__(self, secret: str) -> None:
        self.secret = secret


async def charge_later() -> None:
    """Do nothing until somebody awaits it."""


class TestRefused:
    """What cannot be kept is refused before the effect."""

    @pytest.mark.parametrize(
        "name",
        ["", " ", "x" * 256, "two\nlines", "\ud800", 17, None, b"charge"],
        ids=["empty", "blank", "long", "lines", "surrogate", "number", "none", "bytes"],
    )
    @pytest.mark.parametrize("guarded", [True, False])
    def test_a_name(self, bench: Bench, provider: Provider, name: Any, *, guarded: bool) -> None:
        """In a direct call too, so that a test of the body alone finds it."""

        def body(run: Any) -> Any:
            return run.step(name, provider.charge)

        with pytest.raises(ConfigurationError, match="a step's name is a printable text of 1 to 255 characters"):
            bench.deliver(value=body) if guarded else body(UnguardedRun())
        assert provider.calls == []

    @pytest.mark.parametrize("name", ["x", "x" * 255, "charge ord-17: 5 €", "step"])
    def test_any_other_name(self, bench: Bench, provider: Provider, name: str) -> None:
        """Whatever the order's name is."""
        assert bench.deliver(value=lambda run: run.step(name, provider.charge)) == Returned(1)

    def test_no_callable(self, bench: Bench, provider: Provider) -> None:
        """The common slip: the function is called where it should be given."""
        with pytest.raises(ConfigurationError, match=r"step 'charge' takes a function .* got a int: do not call it"):
            bench.deliver(value=lambda run: run.step("charge", provider.charge()))

    @pytest.mark.parametrize(
        "function",
        [charge_later, partial(charge_later), lambda: (each for each in "abc"), lambda: Atomic(1, [])],
        ids=["async", "coroutine", "generator", "writes"],
    )
    @pytest.mark.parametrize("guarded", [True, False])
    def test_what_nobody_would_carry_out(self, bench: Bench, function: Any, *, guarded: bool) -> None:
        """Nothing of it has begun, so it is no result, and the step is not kept."""

        def body(run: Any) -> Any:
            return run.step("charge", function)

        with pytest.raises(ConfigurationError, match="step 'charge' returned a"):
            bench.deliver(value=body) if guarded else body(UnguardedRun())
        if guarded:
            assert bench.deliver("two", lambda run: run.step("charge", lambda: "ch_17")) == Returned("ch_17")

    def test_a_name_twice_in_a_run(self, bench: Bench, provider: Provider) -> None:
        """The second item of a loop would be taken for the first, so the name has to say which; also of a kept one."""

        def body(run: RunContext) -> None:
            for item in ("a", "b"):
                run.step("charge", provider.charge, item)

        for owner in ("one", "two"):
            with pytest.raises(ConfigurationError, match=r"was called before in this run; .* f'charge {item}'"):
                bench.deliver(owner, body)
        assert provider.calls == [("a",)]

    def test_a_name_again_after_its_function_has_raised(self, bench: Bench) -> None:
        """A body that tries again names the try, or tries inside of the function."""
        provider = Provider(KeyError("declined"))

        def body(run: RunContext) -> None:
            with pytest.raises(KeyError):
                run.step("charge", provider.charge)
            run.step("charge", provider.charge)

        with pytest.raises(ConfigurationError, match="was called before in this run"):
            bench.deliver(value=body)

    def test_other_arguments(self, bench: Bench, provider: Provider) -> None:
        """What was done is about something else, which must not be taken for this."""

        def body(run: RunContext) -> None:
            run.step("charge", provider.charge, SECRET, len(bench.ran))
            raise TimeoutError

        with pytest.raises(TimeoutError):
            bench.deliver(value=body)
        with pytest.raises(StepMismatchError, match="step 'charge' was done with other arguments") as raised:
            bench.deliver("two", body)
        assert (raised.value.step, raised.value.task, raised.value.key) == ("charge", "shop.charge", KEY)
        assert SECRET not in str(raised.value)
        assert len(provider.calls) == 1

    @pytest.mark.parametrize("same", [([1, 2],), ((1, 2),)], ids=["list", "tuple"])
    def test_the_same_arguments(self, bench: Bench, provider: Provider, same: Any) -> None:
        """As keys have them: a list is a tuple, and a dict has no order."""

        def body(run: RunContext) -> Any:
            first = len(bench.ran) == 1
            args = ((1, 2), {"a": 1, "b": 2}) if first else (*same, {"b": 2, "a": 1})
            value = run.step("charge", provider.charge, *args)
            if first:
                raise TimeoutError
            return value

        with pytest.raises(TimeoutError):
            bench.deliver(value=body)
        assert bench.deliver("two", body) == Returned(1)

    def test_arguments_by_name(self, bench: Bench) -> None:
        """They are the function's, even if they are called as the step's own parameters are."""
        value = bench.deliver(value=lambda run: run.step("charge", dict, name="n", function="f", self="s"))
        assert value == Returned({"name": "n", "function": "f", "self": "s"})

    def test_arguments_without_a_canonical_form(self, bench: Bench, provider: Provider) -> None:
        """Nobody could tell them apart later."""
        with pytest.raises(KeyEncodingError, match=r"an argument of step 'charge' is .*lambda: f") as raised:
            bench.deliver(value=lambda run: run.step("charge", provider.charge, Unwritable(SECRET)))
        assert (provider.calls, raised.value.key) == ([], KEY)
        assert SECRET not in str(raised.value)

    def test_one_more_than_a_key_may_have(self, bench: Bench, provider: Provider) -> None:
        """All of its runs together; those that are kept are found all the same."""

        def body(run: RunContext) -> None:
            for item in range(MOST_STEPS + (len(bench.ran) > 1)):
                run.step(f"charge {item}", provider.charge)
            raise TimeoutError

        with pytest.raises(TimeoutError):
            bench.deliver(value=body)
        assert len(bench.store.get(KEY).steps) == MOST_STEPS
        with pytest.raises(ConfigurationError, match="step 'charge 500' is one more than the 500 that a key may have"):
            bench.deliver("two", body)
        assert len(provider.calls) == MOST_STEPS

    def test_in_the_transaction_of_the_body(self, bench: Bench, provider: Provider) -> None:
        """Its rollback would leave a step that was never done."""
        guard = bench.guard(receipts=MemoryReceipts(), following=Sent())
        with pytest.raises(ConfigurationError, match="step 'charge' is inside a transaction of receipts="):
            bench.deliver(value=lambda run: run.step("charge", provider.charge), guard=guard)
        assert provider.calls == []

    def test_in_the_transaction_of_a_step(self, bench: Bench, provider: Provider) -> None:
        """Likewise; after it there is none."""
        receipts = MemoryReceipts()

        def nested(run: RunContext) -> None:
            with pytest.raises(ConfigurationError, match="step 'inner' is inside a transaction of receipts="):
                run.step("inner", provider.charge)

        def body(run: RunContext) -> Any:
            run.step.options(receipts=receipts)("outer", lambda: nested(run))
            return run.step("inner", provider.charge)

        assert bench.deliver(value=body, guard=bench.guard(following=Sent())) == Returned(1)

    def test_in_the_transaction_of_a_body_without_a_claim(self, app: Celery, provider: Provider) -> None:
        """As with one."""

        def charge(self: Any) -> Any:
            return self.idempotency.step("charge", provider.charge)

        app.conf.idempotency_disabled = True
        task = make(app, charge, bind=True, idempotency={"receipts": MemoryReceipts()})
        with pytest.raises(ConfigurationError, match="step 'charge' is inside a transaction of receipts="):
            task.apply(throw=True)
        assert provider.calls == []

    def test_after_a_retry_that_was_not_raised(self, shop: Shop, provider: Provider) -> None:
        """The retry's run may be doing the step."""

        def body(task: Any) -> Any:
            if shop.runs == 1:
                task.retry(countdown=0, throw=False)
            return task.idempotency.step("charge", provider.charge)

        shop.sells(body)
        shop.deliver()
        assert isinstance(shop.result, ConfigurationError)
        assert "comes after the run has handed its key over" in str(shop.result)
        assert provider.calls == []
        shop.worker.drain()
        assert (shop.runs, shop.worker.result(shop.id)) == (2, 1)

    def test_a_retry_in_a_step(self, shop: Shop) -> None:
        """It ends the run as in the body, and the step is not kept."""
        provider = Provider()

        def charge() -> int:
            if not provider.calls:
                provider.charge()
                raise shop.task.retry(countdown=0)
            return int(provider.charge())

        shop.sells(lambda task: task.idempotency.step("charge", charge))
        shop.deliver()
        shop.worker.drain()
        assert (shop.runs, shop.result, shop.deferrals()) == (2, 2, [])

    @pytest.mark.parametrize("transacted", [False, True])
    def test_a_retry_in_a_step_that_is_not_raised(self, shop: Shop, *, transacted: bool) -> None:
        """Another run has the key: the step is not kept, and what it wrote is rolled back."""
        receipts = MemoryReceipts()

        def charge() -> int:
            if transacted:
                shop.task.idempotency.session.append(shop.runs)
            if shop.runs == 1:
                shop.task.retry(countdown=0, throw=False)
            return shop.runs

        def body(task: Any) -> Any:
            step = task.idempotency.step
            return (step.options(receipts=receipts) if transacted else step)("charge", charge)

        shop.sells(body)
        shop.deliver()
        assert isinstance(shop.result, ConfigurationError)
        assert "step 'charge' has handed the key over" in str(shop.result)
        assert receipts.effects == []
        assert shop.worker.drain() == 1
        assert (shop.runs, shop.worker.result(shop.id), shop.deferrals()) == (2, 2, [])
        assert receipts.effects == ([2] if transacted else [])

    def test_a_store_that_keeps_none(self, bench: Bench, store: MemoryStore, provider: Provider) -> None:
        """A user's own, of before there were steps."""
        bench.store = WithoutSteps(store)  # type: ignore[assignment]
        with pytest.raises(
            ConfigurationError, match=r"a WithoutSteps cannot keep steps: it has no keep_step\(\)"
        ) as raised:
            bench.deliver(value=lambda run: run.step("charge", provider.charge))
        assert (provider.calls, raised.value.key) == ([], KEY)

    def test_a_store_without_generations(self, bench: Bench, provider: Provider) -> None:
        """Its next start of the key would find the steps of the last."""

        def body(run: RunContext) -> Any:
            run.claim = replace(run.claim, generation=0)
            return run.step("charge", provider.charge)

        with pytest.raises(ConfigurationError, match="needs a store whose claims have a generation"):
            bench.deliver(value=body)
        assert provider.calls == []


class WithoutSteps:
    """A user's store, of before there were steps."""

    def __init__(self, inner: MemoryStore) -> None:
        for name in ("claim", "commit", "restore", "release", "renew", "note_deferral", "note_dispatch", "get"):
            setattr(self, name, getattr(inner, name))
        self.clock = inner.clock
        self.max_data_bytes = inner.max_data_bytes


def swallowing(run: RunContext, provider: Provider) -> str:
    """Go on whatever a step raises."""
    with suppress(BaseException):
        run.step("charge", provider.charge)
    return "went on"


def swallowing_exceptions(run: RunContext, provider: Provider) -> str:
    """Go on whatever error a step raises."""
    with suppress(Exception):
        run.step("charge", provider.charge)
    return "went on"


def failing(run: RunContext, provider: Provider) -> None:
    """Take whatever a step raises for a final failure."""
    try:
        run.step("charge", provider.charge)
    except BaseException as error:
        raise KeyError("declined") from error


def trying_again(run: RunContext, provider: Provider) -> Any:
    """Try another step where the first one raises."""
    try:
        return run.step("charge", provider.charge)
    except BaseException:  # noqa: BLE001 - as careless bodies do
        return run.step("charge again", provider.charge)


each_body = pytest.mark.parametrize("body", [swallowing, swallowing_exceptions, failing, trying_again])


class TestLost:
    """A run whose claim is lost does not go on: its delivery replays what superseded it, or waits."""

    @each_body
    @pytest.mark.parametrize("finished", [True, False])
    def test_before_a_step(self, bench: Bench, provider: Provider, body: Any, *, finished: bool) -> None:
        """Whatever the body makes of what ends it; the function does not run."""

        def losing(run: RunContext) -> Any:
            bench.store.release(run.claim, "Lost")
            claim = take(bench)
            run.lose()
            if finished:
                bench.store.commit(claim, done('"theirs"'), 3600)
            return body(run, provider)

        verdict = bench.deliver(value=losing, guard=bench.guard(store_failures=KeyError))
        assert verdict == Replayed("theirs") if finished else isinstance(verdict, Busy)
        assert provider.calls == []
        assert bench.the(Superseded).fence < bench.store.get(KEY).fence

    @each_body
    def test_at_its_end(self, bench: Bench, clock: FakeClock, body: Any) -> None:
        """The effect is made, and nobody finds its result: another run has the key."""

        def charge() -> str:
            clock.advance(LEASE + 1)
            take(bench)
            return "ch_17"

        provider = Provider(charge, "again")
        verdict = bench.deliver(value=lambda run: body(run, provider), guard=bench.guard(store_failures=KeyError))
        assert isinstance(verdict, Busy)
        assert verdict.holder.task_id == "id-another"
        assert len(provider.calls) == 1
        assert len(bench.store.get(KEY).steps) == 0

    def test_the_end_of_a_claim_that_nobody_took(self, bench: Bench, clock: FakeClock, provider: Provider) -> None:
        """Past it, no step begins; what has begun before is kept."""

        def body(run: RunContext) -> None:
            run.step("charge", lambda: clock.advance(LEASE + 1))
            run.step("mail", provider.charge)

        verdict = bench.deliver(value=body)
        assert isinstance(verdict, Unwritten)
        assert "the claim ended before step 'mail' began" in str(verdict.error)
        assert (provider.calls, verdict.error.key) == ([], KEY)
        assert (bench.store.get(KEY).free, list(bench.store.get(KEY).steps.here)) == (True, ["charge"])

    def test_what_a_step_requests_has_to_settle_in_its_claim(
        self, bench: Bench, clock: FakeClock, provider: Provider
    ) -> None:
        """As for a body."""

        def body(run: RunContext) -> None:
            clock.advance(run.claim.expires_at - clock.now() - SETTLE + 1)
            run.step("charge", provider.charge)

        guard = bench.guard(settle=SETTLE)
        assert isinstance(bench.deliver(value=body, guard=guard, settle_seconds=SETTLE), Unwritten)
        assert provider.calls == []

    @pytest.mark.parametrize("ended", [True, False], ids=["over", "lost"])
    def test_the_lock_counts_too(self, bench: Bench, clock: FakeClock, provider: Provider, *, ended: bool) -> None:
        """Another task id's run may hold it."""

        def body(run: RunContext) -> None:
            assert run.lock is not None
            if ended:
                run.lock.claim = replace(run.lock.claim, in_progress_expiration=int(clock.now() * 1000))
            else:
                run.lock.lose()
            run.step("charge", provider.charge)

        lock = request_by("one", key="shop.charge#exclusive#17")
        verdict = bench.deliver(value=body, key="shop.charge#id-one", lock=lock)
        assert isinstance(verdict, Unwritten)
        assert provider.calls == []

    def test_a_record_that_was_deleted(self, bench: Bench, store: MemoryStore) -> None:
        """Nobody has the key: a later delivery does what is left."""

        def forget() -> str:
            store._records.clear()
            return "ch_17"

        verdict = bench.deliver(value=lambda run: run.step("charge", forget))
        assert isinstance(verdict, Unwritten)
        assert "step 'charge' is done, and could not be kept, so the next run does it again: its claim was lost" in str(
            verdict.error
        )

    def test_a_record_that_was_released(self, bench: Bench) -> None:
        """As by an operator, and nobody has taken it yet."""

        def body(run: RunContext) -> Any:
            return run.step("charge", lambda: bench.store.release(run.claim, "Operator") and "ch_17")

        assert isinstance(bench.deliver(value=body), Unwritten)

    def test_a_process_that_is_told_to_end_meanwhile(self, bench: Bench) -> None:
        """It ends."""

        def body(run: RunContext) -> None:
            run.lose()
            try:
                run.step("charge", len, "")
            finally:
                raise SystemExit

        with pytest.raises(SystemExit):
            bench.deliver(value=body, guard=bench.guard(watched=True))

    @pytest.mark.parametrize("finished", [True, False])
    def test_the_message(self, shop: Shop, store: MemoryStore, clock: FakeClock, *, finished: bool) -> None:
        """A delivery that was superseded ends as one that came late: with the other's result, or waiting for it."""

        def charge() -> str:
            clock.advance(3600)
            claim = shop.claim_elsewhere()
            if finished:
                store.commit(claim, done('"theirs"'), 3600)
            return "ours"

        shop.sells(lambda task: task.idempotency.step("charge", charge))
        shop.deliver()
        if finished:
            assert (shop.state, shop.result) == ("SUCCESS", "theirs")
        else:
            assert (shop.state, shop.deferrals()) == ("PENDING", ["busy"])


class TestStoreAway:
    """A store that does not answer while a step is kept, or read."""

    def test_an_answer_that_was_lost(self, store: MemoryStore, provider: Provider) -> None:
        """The next try finds what the first one kept."""
        bench = Bench(FaultyStore(store, keep_step=[lost_answer(), down()]))
        assert bench.deliver(value=lambda run: run.step("charge", provider.charge)) == Returned(1)
        assert len(provider.calls) == 1

    @each_body
    def test_for_longer_than_the_claim(self, store: MemoryStore, provider: Provider, body: Any) -> None:
        """The step is done and not kept: the run does not go on, and the error says what that means."""
        bench = Bench(FaultyStore(store, keep_step=repeat(down(), 500)))
        verdict = bench.deliver(value=lambda run: body(run, provider), guard=bench.guard(store_failures=KeyError))
        assert isinstance(verdict, Unwritten)
        assert isinstance(verdict.error, StoreUnavailableError)
        assert "step 'charge' is done, and could not be kept, so the next run does it again" in str(verdict.error)
        assert (verdict.error.task, verdict.error.key) == ("shop.charge", KEY)
        assert (len(provider.calls), store.get(KEY).free, store.get(KEY).runs) == (1, True, 1)

    @pytest.mark.parametrize(
        ("options", "then"),
        [
            ({}, "the next run does it again"),
            ({"recover": lambda record: NotDone()}, "the next run asks recover"),
            ({"receipts": MemoryReceipts()}, "the next run takes its receipt"),
        ],
        ids=["plain", "recover", "receipts"],
    )
    def test_what_the_next_run_does(self, store: MemoryStore, options: dict[str, Any], then: str) -> None:
        """The error says that too."""
        bench = Bench(FaultyStore(store, keep_step=repeat(down(), 500)))
        guard = bench.guard(settle=0, following=Sent())
        verdict = bench.deliver(value=lambda run: run.step.options(**options)("charge", int), guard=guard)
        assert isinstance(verdict, Unwritten)
        assert f"step 'charge' is done, and could not be kept, so {then}" in str(verdict.error)

    @pytest.mark.parametrize("on_store_error", ["defer", "raise"])
    def test_the_message(self, shop: Shop, store: MemoryStore, provider: Provider, on_store_error: Any) -> None:
        """It waits, or fails where the policy says so."""
        shop.app.conf.idempotency_store = FaultyStore(store, keep_step=repeat(down(), 500))
        policy = Idempotency(on_store_error=on_store_error)
        shop.sells(lambda task: task.idempotency.step("charge", provider.charge), idempotency=policy)
        shop.deliver()
        if on_store_error == "defer":
            assert shop.deferrals() == ["StoreUnavailableError"]
            shop.app.conf.idempotency_store = store
            shop.worker.drain()
            assert (shop.result, shop.runs) == (2, 2)
        else:
            assert isinstance(shop.result, StoreUnavailableError)
            assert "step 'charge' is done, and could not be kept" in str(shop.result)

    def test_when_a_kept_one_is_read(self, store: MemoryStore) -> None:
        """The run ends, and a later one reads it."""
        provider = Provider(LARGE)

        def body(run: RunContext) -> Any:
            value = run.step("charge", provider.charge)
            if len(bench.ran) == 1:
                raise TimeoutError
            return len(value)

        bench = Bench(FaultyStore(store, kept_step=repeat(down(), 50)))
        with pytest.raises(TimeoutError):
            bench.deliver(value=body)
        verdict = bench.deliver("two", body)
        assert isinstance(verdict, Unwritten)
        assert (verdict.error.key, len(provider.calls)) == (KEY, 1)
        bench.store = store
        assert bench.deliver("three", body) == Returned(len(LARGE))

    def test_when_the_superseded_run_looks_who_has_the_key(self, store: MemoryStore, provider: Provider) -> None:
        """The delivery waits."""
        bench = Bench(FaultyStore(store, get=repeat(down(), 50)))

        def body(run: RunContext) -> None:
            run.lose()
            run.step("charge", provider.charge)

        assert isinstance(bench.deliver(value=body), Unwritten)

    @pytest.mark.parametrize("get", [[down(Interrupt())], [lost_answer(Interrupt())]], ids=["before", "after"])
    def test_an_interrupt_while_it_looks(self, store: MemoryStore, provider: Provider, get: list[Step]) -> None:
        """It comes too late to matter: the body is over."""
        bench = Bench(FaultyStore(store, get=get))

        def body(run: RunContext) -> None:
            run.lose()
            run.step("charge", provider.charge)

        assert isinstance(bench.deliver(value=body), Unwritten)
        assert store.get(KEY).free


class InterruptedAt:
    """Raises `Interrupt` at the so many-eth line of `core.stepped` that runs after a function has returned."""

    def __init__(self, line: int, after: CodeType) -> None:
        self.raised = False
        self._left = line
        self._after = after
        self._returned = False
        self._file = SteppedRun.perform.__code__.co_filename

    def __enter__(self) -> None:
        self._previous = sys.gettrace()
        sys.settrace(self._trace)

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._previous)

    def _trace(self, frame: FrameType, event: str, _: object) -> Any:
        is_here = frame.f_code.co_filename == self._file
        if event == "return" and frame.f_code is self._after:
            self._returned = True
        elif event == "line" and is_here and self._returned and not self.raised:
            self._left -= 1
            if self._left == 0:
                self.raised = True
                raise Interrupt
        return self._trace if is_here or frame.f_code is self._after else None


class TestInterrupts:
    """A soft time limit, or another exception that is raised into the thread from outside."""

    def body(self, provider: Provider) -> Callable[[RunContext], Any]:
        """Return a body of one step."""
        return lambda run: run.step("charge", provider.charge)

    def test_in_the_function(self, bench: Bench) -> None:
        """Nobody knows how far it came: it is not kept."""
        provider = Provider(Interrupt(), "ch_17")
        with pytest.raises(Interrupt):
            bench.deliver(value=self.body(provider))
        assert bench.deliver("two", self.body(provider)) == Returned("ch_17")

    @pytest.mark.parametrize("step", [down(Interrupt()), lost_answer(Interrupt())], ids=["before", "after"])
    def test_while_it_is_kept(self, store: MemoryStore, provider: Provider, step: Step) -> None:
        """The effect is made: it is kept first, then the body gets the interrupt."""
        bench = Bench(FaultyStore(store, keep_step=[step]))
        with pytest.raises(Interrupt):
            bench.deliver(value=self.body(provider))
        assert (len(provider.calls), list(store.get(KEY).steps.here)) == (1, ["charge"])
        assert bench.deliver("two", self.body(provider)) == Returned(1)

    def test_between_the_function_and_the_store(self, bench: Bench) -> None:
        """While the result is encoded, and before that."""
        raised: list[str] = []

        def encode(value: Any) -> Any:
            if not raised:
                raised.append("once")
                raise Interrupt
            return value.value

        register_type(Coin, "unit.steps.coin", encode=encode, decode=Coin)
        provider = Provider(lambda: Coin("1"))
        with pytest.raises(Interrupt):
            bench.deliver(value=self.body(provider))
        assert bench.deliver("two", lambda run: run.step("charge", provider.charge).value) == Returned("1")
        assert len(provider.calls) == 1

    def test_at_each_line_after_the_function(self, clock: FakeClock) -> None:
        """Wherever it comes once the effect is made, the step is kept."""
        lines, kept = 0, []
        for count in range(1, 200):
            bench, provider = Bench(MemoryStore(clock=clock)), Provider()
            interrupted = InterruptedAt(count, after=provider.charge.__code__)
            with interrupted, suppress(Interrupt):
                bench.deliver(value=self.body(provider))
            if not interrupted.raised:
                break
            lines += 1
            bench.deliver("two", self.body(provider))
            kept.append(len(provider.calls) == 1)
        assert lines > 10
        assert all(kept), f"not kept after line {kept.index(False) + 1} of {lines}"

    @pytest.mark.parametrize("point", ["before the commit", "after the commit"])
    def test_in_a_transaction(self, bench: Bench, provider: Provider, point: str) -> None:
        """A step of receipts is kept with its row, or not at all; the body gets the interrupt."""
        receipts = MemoryReceipts()
        planned = receipts.before_commit if point == "before the commit" else receipts.after_commit
        planned.append(Interrupt())

        def body(run: RunContext) -> Any:
            return run.step.options(receipts=receipts)(
                "charge", lambda: run.session.append("ch_17") or provider.charge()
            )

        guard = bench.guard(following=Sent())
        with pytest.raises(Interrupt):
            bench.deliver(value=body, guard=guard)
        committed = point == "after the commit"
        assert (receipts.effects, list(bench.store.get(KEY).steps.here)) == (
            (["ch_17"], ["charge"]) if committed else ([], [])
        )
        assert bench.deliver("two", body, guard=guard) == Returned(1 if committed else 2)
        assert receipts.effects == ["ch_17"]

    @pytest.mark.parametrize("step", [down(Interrupt()), lost_answer(Interrupt())], ids=["before", "after"])
    def test_while_a_committed_step_is_kept(self, store: MemoryStore, step: Step) -> None:
        """It is kept first, as any other, then the body gets the interrupt."""
        bench, receipts, provider = Bench(FaultyStore(store, keep_step=[step])), MemoryReceipts(), Provider()

        def body(run: RunContext) -> Any:
            return run.step.options(receipts=receipts)("charge", provider.charge)

        guard = bench.guard(following=Sent())
        with pytest.raises(Interrupt):
            bench.deliver(value=body, guard=guard)
        assert list(store.get(KEY).steps.here) == ["charge"]
        assert bench.deliver("two", body, guard=guard) == Returned(1)
        assert len(provider.calls) == 1

    def test_a_handled_one(self, bench: Bench) -> None:
        """What the body makes of it is its own business, and the step is kept."""
        bench.store = FaultyStore(bench.store, keep_step=[down(Interrupt())])
        provider = Provider()

        def body(run: RunContext) -> str:
            with pytest.raises(Interrupt):
                run.step("charge", provider.charge)
            return "in time"

        assert bench.deliver(value=body) == Returned("in time")


@dataclass(frozen=True)
class Coin:
    """Another type of the user's own."""

    value: str


class TestRecover:
    """``options(recover=)``: a rerun asks about a step that it does not find."""

    def rerun(self, bench: Bench, clock: FakeClock, recover: Any, provider: Provider, **options: Any) -> Any:
        """Let a run die in its step, and return the verdict of the next."""
        given: dict[str, Any] = {"settle_seconds": SETTLE}
        died = Provider(SystemExit())

        def body(function: Any) -> Callable[[RunContext], Any]:
            return lambda run: run.step.options(recover=recover)("charge", function, 17, **options)

        with pytest.raises(SystemExit):
            bench.deliver("one", body(died.charge), guard=bench.guard(settle=SETTLE, watched=True), **given)
        assert len(died.calls) == 1
        clock.advance(LEASE + SETTLE + 1)
        return bench.deliver("two", body(provider.charge), guard=bench.guard(settle=SETTLE), **given)

    @pytest.mark.parametrize("value", ["ch_17", None, 0, False, []])
    def test_done_is_the_result(self, bench: Bench, clock: FakeClock, provider: Provider, value: Any) -> None:
        """A falsy one too; the function does not run."""
        assert self.rerun(bench, clock, lambda record, order: Done(value), provider) == Returned(value)
        assert provider.calls == []

    def test_done_is_kept(self, bench: Bench, clock: FakeClock) -> None:
        """The run after next does not ask, and sees the same."""
        asked: list[int] = []

        def recover(record: Record, order: int) -> Done:
            asked.append(record.runs)
            return Done((1, 2))

        def body(run: RunContext) -> Any:
            value = run.step.options(recover=recover)("charge", died.charge, 17)
            if len(bench.ran) < 3:
                raise SystemExit
            return value

        died = Provider(SystemExit())
        given: dict[str, Any] = {"settle_seconds": SETTLE}
        guard = bench.guard(settle=SETTLE, watched=True)
        for owner in ("one", "two"):
            with pytest.raises(SystemExit):
                bench.deliver(owner, body, guard=guard, **given)
            clock.advance(LEASE + SETTLE + 1)
        assert bench.deliver("three", body, guard=guard, **given) == Returned([1, 2])
        assert (asked, len(died.calls)) == ([2], 1)

    def test_not_done_runs_the_function(self, bench: Bench, clock: FakeClock, provider: Provider) -> None:
        """Once."""
        assert self.rerun(bench, clock, lambda record, order: NotDone(), provider) == Returned(1)

    def test_it_gets_the_record_and_the_arguments(self, bench: Bench, clock: FakeClock, provider: Provider) -> None:
        """Of the step, not of the body."""
        seen: list[Any] = []

        def recover(record: Record, order: int, *, amount: int) -> Done:
            seen.append((record.key, record.runs, record.previous_owner, order, amount))
            return Done()

        def charge(order: int, *, amount: int) -> None:
            if not seen:
                raise SystemExit

        def body(run: RunContext) -> Any:
            return run.step.options(recover=recover)("charge", charge, 17, amount=5)

        given: dict[str, Any] = {"settle_seconds": SETTLE}
        guard = bench.guard(settle=SETTLE, watched=True)
        with pytest.raises(SystemExit):
            bench.deliver("one", body, guard=guard, **given)
        clock.advance(LEASE + SETTLE + 1)
        bench.deliver("two", body, guard=guard, **given)
        assert seen == [(KEY, 2, "one", 17, 5)]

    def test_not_in_a_first_run_nor_for_what_is_kept(self, bench: Bench, provider: Provider) -> None:
        """There is nothing to ask about."""

        def recover(record: Record) -> Done:
            raise AssertionError("asked")

        def body(run: RunContext) -> Any:
            value = run.step.options(recover=recover)("charge", provider.charge)
            if len(bench.ran) == 1:
                run.nothing_done()
                raise TimeoutError
            return value

        guard = bench.guard(settle=0)
        with pytest.raises(TimeoutError):
            bench.deliver(value=body, guard=guard)
        assert bench.deliver("two", body, guard=guard) == Returned(1)

    def test_unknown_parks(self, shop: Shop, clock: FakeClock) -> None:
        """With the step's name; what is kept stays for whoever decides."""
        self.sell(shop, lambda record: Unknown("two charges match"))
        self.crash(shop, clock)
        shop.deliver()
        assert isinstance(shop.result, UnresolvedError)
        assert shop.record.error == "two charges match of step 'charge'"
        assert list(shop.record.steps.here) == ["reserve"]

    def test_a_run_counts_whose_parking_is_not_answered(self, shop: Shop, store: MemoryStore, clock: FakeClock) -> None:
        """Its body had begun: no later delivery may take its claim for one under which none did."""
        self.sell(shop, lambda record: Unknown("two charges match"))
        self.crash(shop, clock)
        shop.app.conf.idempotency_store = FaultyStore(store, park=repeat(down(), 30))
        shop.deliver()
        assert (shop.deferrals(), shop.record.runs) == (["StoreUnavailableError"], 2)
        clock.advance(LEASE + SETTLE + 120)
        shop.worker.run_next()
        assert shop.record.runs == 3

    def sell(self, shop: Shop, recover: Any, charge: Callable[[], Any] = lambda: "ch_17") -> None:
        """Sell something by two steps, of which one may be asked about."""

        def body(task: Any) -> Any:
            step = task.idempotency.step
            return step("reserve", len, "a"), step.options(recover=recover)("charge", charge)

        shop.sells(body, idempotency=Idempotency(settle=SETTLE))

    def crash(self, shop: Shop, clock: FakeClock) -> None:
        """Let a run of the shop's key begin elsewhere and die with its machine."""
        shop.claim_elsewhere()
        clock.advance(shop.record.held_until - clock.now() + 1)

    def test_what_it_raises_defers_and_at_last_parks(self, shop: Shop, clock: FakeClock) -> None:
        """Four later deliveries ask again, then a person is asked."""
        asked: list[int] = []

        def recover(record: Record) -> None:
            asked.append(record.runs)
            raise ConnectionError("away")

        self.sell(shop, recover)
        self.crash(shop, clock)
        shop.publish()
        for _ in range(MOST_FAILED_RECOVERIES):
            assert shop.state == "PENDING"
            shop.worker.run_next()
            clock.advance(SETTLE + 1)
        assert len(asked) == MOST_FAILED_RECOVERIES
        assert shop.deferrals() == ["ConnectionError"] * (MOST_FAILED_RECOVERIES - 1)
        assert isinstance(shop.result, UnresolvedError)
        assert shop.record.error == "ConnectionError of step 'charge'"

    def test_anything_else_is_a_failure_of_it(self, shop: Shop, clock: FakeClock) -> None:
        """A forgotten ``return`` runs nothing."""
        self.sell(shop, lambda record: None, lambda: pytest.fail("it ran"))
        self.crash(shop, clock)
        shop.deliver()
        assert shop.deferrals() == [ConfigurationError.__name__]

    def test_an_eager_call_gets_what_it_raises(self, shop: Shop, clock: FakeClock) -> None:
        """It cannot be deferred."""
        self.sell(shop, lambda record: 1 / 0)
        self.crash(shop, clock)
        with pytest.raises(ZeroDivisionError):
            shop.task.apply(task_id=shop.id, throw=True)

    def test_a_retry_that_it_asks_for(self, shop: Shop, clock: FakeClock) -> None:
        """Its run asks again."""
        asked: list[int] = []

        def recover(record: Record) -> Done:
            asked.append(record.runs)
            if len(asked) == 1:
                raise shop.task.retry(countdown=0)
            return Done("ch_17")

        self.sell(shop, recover)
        self.crash(shop, clock)
        shop.deliver()
        clock.advance(SETTLE + 1)
        shop.worker.drain()
        assert (shop.result, len(asked), shop.deferrals()) == ([1, "ch_17"], 2, [])

    def test_a_retry_that_it_asks_for_and_does_not_raise(self, shop: Shop, clock: FakeClock) -> None:
        """The function does not run: the retry's run has the key."""

        def recover(record: Record) -> NotDone:
            if shop.runs == 1:
                shop.task.retry(countdown=0, throw=False)
            return NotDone()

        ran: list[int] = []
        self.sell(shop, recover, lambda: ran.append(shop.runs))
        self.crash(shop, clock)
        shop.deliver()
        assert isinstance(shop.result, ConfigurationError)
        clock.advance(SETTLE + 1)
        shop.worker.drain()
        assert ran == [2]

    def test_without_settle(self, bench: Bench, provider: Provider) -> None:
        """In the first run already, rather than at the first crash."""

        def body(run: RunContext) -> Any:
            return run.step.options(recover=lambda record: NotDone())("charge", provider.charge)

        with pytest.raises(ConfigurationError, match=r"step 'charge' has recover=, which needs Idempotency\(settle=\)"):
            bench.deliver(value=body)
        assert provider.calls == []

    @pytest.mark.parametrize(
        "recover",
        [NotDone, lambda record: NotDone(), lambda record, order, amount: NotDone()],
        ids=["nothing", "the record only", "more"],
    )
    def test_a_function_that_takes_something_else(self, bench: Bench, provider: Provider, recover: Any) -> None:
        """It would fail in the first rerun, in each of five deliveries."""

        def body(run: RunContext) -> Any:
            return run.step.options(recover=recover)("charge", provider.charge, SECRET)

        with pytest.raises(ConfigurationError, match="step 'charge' has recover=, which cannot be called") as raised:
            bench.deliver(value=body, guard=bench.guard(settle=SETTLE))
        assert provider.calls == []
        assert SECRET not in str(raised.value)

    def test_settle_alone_parks_nothing(self, shop: Shop, clock: FakeClock) -> None:
        """A task may have it for its steps: its body runs again."""
        shop.sells(lambda task: "paid", idempotency=Idempotency(settle=SETTLE))
        self.crash(shop, clock)
        shop.deliver()
        assert (shop.runs, shop.result) == (1, "paid")

    def test_a_claim_that_ends_while_it_is_asked(self, bench: Bench, clock: FakeClock, provider: Provider) -> None:
        """The function does not run."""

        def recover(record: Record, order: int) -> NotDone:
            clock.advance(LEASE + SETTLE)
            return NotDone()

        assert isinstance(self.rerun(bench, clock, recover, provider), Unwritten)
        assert provider.calls == []

    def test_done_after_the_claim_counts(self, bench: Bench, clock: FakeClock, provider: Provider) -> None:
        """What was done is kept while nobody else has the key."""

        def recover(record: Record, order: int) -> Done:
            clock.advance(LEASE + SETTLE + 1)
            return Done("ch_17")

        assert self.rerun(bench, clock, recover, provider) == Returned("ch_17")

    def test_a_step_inside_of_it(self, bench: Bench, clock: FakeClock, provider: Provider) -> None:
        """It only looks: it has no steps."""
        runs: list[RunContext] = []

        def recover(record: Record) -> Any:
            with pytest.raises(ConfigurationError, match="step 'mail' is inside recover=, which only looks"):
                runs[-1].step("mail", provider.charge)
            return Done("ch_17")

        def body(run: RunContext) -> Any:
            runs.append(run)
            return run.step.options(recover=recover)("charge", provider.charge), run.step("mail", provider.charge)

        guard = bench.guard(settle=0)
        with pytest.raises(SystemExit):
            bench.deliver(value=SystemExit(), guard=bench.guard(settle=0, watched=True))
        clock.advance(LEASE + 1)
        assert bench.deliver("two", body, guard=guard) == Returned(("ch_17", 1))

    def test_a_step_inside_of_the_tasks(self, shop: Shop, clock: FakeClock) -> None:
        """``recover=`` of a task has none either."""
        said: list[str] = []

        def recover(record: Record) -> Done:
            with pytest.raises(ConfigurationError) as raised:
                shop.task.idempotency.step("charge", len, "")
            said.append(str(raised.value))
            return Done("paid")

        shop.sells(lambda task: "paid", idempotency=Idempotency(recover=recover, settle=SETTLE))
        self.crash(shop, clock)
        shop.deliver()
        assert shop.result == "paid"
        assert "self.idempotency.step() is there for the body" in said[0]

    def test_a_record_that_cannot_be_read(self, bench: Bench, clock: FakeClock, provider: Provider) -> None:
        """The delivery waits."""
        bench.store = FaultyStore(bench.store, get=repeat(down(), 50))
        assert isinstance(self.rerun(bench, clock, lambda record, order: NotDone(), provider), Unwritten)
        assert provider.calls == []

    def test_unresolved_is_not_caught(self, bench: Bench, clock: FakeClock) -> None:
        """The body cannot go on without an answer."""
        with pytest.raises(SystemExit):
            bench.deliver(value=SystemExit(), guard=bench.guard(settle=0, watched=True))
        clock.advance(LEASE + 1)

        def body(run: RunContext) -> str:
            with suppress(BaseException):
                run.step.options(recover=lambda record, text: Unknown())("charge", len, "")
            return "went on"

        verdict = bench.deliver("two", body, guard=bench.guard(settle=0))
        assert isinstance(verdict, Unresolved)
        assert (verdict.reason, verdict.began) == ("Unknown of step 'charge'", True)


class TestOptions:
    """What a step can be given of its own."""

    def test_both_tools(self) -> None:
        """One of them would have no effect."""
        with pytest.raises(ConfigurationError, match="recover= has no effect beside receipts="):
            UnguardedRun().step.options(recover=lambda record: NotDone(), receipts=MemoryReceipts())

    @pytest.mark.parametrize(
        ("options", "says"),
        [
            ({"recover": 5}, "recover=5 is neither callable"),
            ({"recover": "os:nothing_of_that_name"}, "recover='os:nothing_of_that_name' cannot be imported"),
            ({"receipts": 5}, "receipts="),
            ({"receipts": "os:getcwd"}, "receipts="),
        ],
    )
    def test_what_is_no_tool(self, options: dict[str, Any], says: str) -> None:
        """Where it is given, before the effect."""
        with pytest.raises(ConfigurationError, match=says):
            UnguardedRun().step.options(**options)

    def test_names(self, bench: Bench, clock: FakeClock) -> None:
        """Texts are imported, as in a policy."""

        def body(run: RunContext) -> Any:
            step = run.step.options(recover=f"{__name__}:known")
            receipt = run.step.options(receipts=f"{__name__}:RECEIPTS")
            return step("charge", lambda: pytest.fail("it ran")), receipt("mail", lambda: run.session.append(17))

        with pytest.raises(SystemExit):
            bench.deliver(value=SystemExit(), guard=bench.guard(settle=0, watched=True))
        clock.advance(LEASE + 1)
        verdict = bench.deliver("two", body, guard=bench.guard(settle=0, following=Sent()))
        assert verdict == Returned(("known", None))
        assert RECEIPTS.effects.pop() == 17

    def test_they_are_of_that_caller_alone(self, bench: Bench, provider: Provider) -> None:
        """The next step has none."""
        receipts = MemoryReceipts()

        def body(run: RunContext) -> None:
            run.step.options(receipts=receipts)
            run.step("charge", provider.charge)

        bench.deliver(value=body, guard=bench.guard(following=Sent()))
        assert (receipts.rows, len(provider.calls)) == ({}, 1)


RECEIPTS = MemoryReceipts()


def known(record: Record) -> Done:
    """Know of everything."""
    return Done("known")


class TestReceipts:
    """``options(receipts=)``: a step in one transaction with its receipt."""

    @pytest.fixture
    def receipts(self) -> MemoryReceipts:
        """A database."""
        return MemoryReceipts()

    def body(self, bench: Bench, receipts: MemoryReceipts, end: Any = None) -> Callable[[RunContext], Any]:
        """Return a body whose step writes the number of the run; the first one may have another end."""

        def write(run: RunContext) -> int:
            run.session.append(len(bench.ran))
            return len(bench.ran)

        def body(run: RunContext) -> Any:
            value = run.step.options(receipts=receipts)("row", lambda: write(run))
            if end is not None and len(bench.ran) == 1:
                raise end
            return value

        return body

    def test_effect_and_receipt_commit_together(self, bench: Bench, receipts: MemoryReceipts) -> None:
        """The row has the step's name, and is kept as any step."""
        body, guard = self.body(bench, receipts, TimeoutError()), bench.guard(following=Sent())
        with pytest.raises(TimeoutError):
            bench.deliver(value=body, guard=guard)
        assert list(receipts.rows) == [(KEY, "row")]
        assert bench.deliver("two", body, guard=guard) == Returned(1)
        assert (receipts.effects, len(receipts.waits), receipts.open) == ([1], 1, 0)

    def test_a_receipt_without_a_kept_step_is_found(
        self, bench: Bench, receipts: MemoryReceipts, clock: FakeClock
    ) -> None:
        """A worker died between the two: the effect is not made again, and the step is kept now."""
        receipts.after_commit.append(SystemExit())
        body = self.body(bench, receipts, TimeoutError())
        with pytest.raises(SystemExit):
            bench.deliver(value=body, guard=bench.guard(following=Sent(), watched=True))
        clock.advance(LEASE + 1)
        assert bench.deliver("two", body, guard=bench.guard(following=Sent())) == Returned(1)
        assert receipts.effects == [1]

    def test_a_claim_that_ends_before_the_commit(
        self, bench: Bench, receipts: MemoryReceipts, clock: FakeClock
    ) -> None:
        """Who has the key now need not come to this step, and meet its receipt: it is rolled back."""

        def fail(_: RunContext) -> None:
            raise KeyError("no such order")

        def write(run: RunContext) -> None:
            run.session.append(17)
            clock.advance(LEASE + 1)
            assert isinstance(bench.deliver("two", fail, guard=final), Failed)

        guard, final = bench.guard(following=Sent()), bench.guard(store_failures=KeyError)
        verdict = bench.deliver(
            value=lambda run: run.step.options(receipts=receipts)("row", lambda: write(run)), guard=guard
        )
        assert isinstance(verdict, Failed)
        assert (receipts.effects, receipts.rows) == ([], {})

    @pytest.mark.parametrize("at", ["the commit", "the body"])
    def test_a_lost_transaction_runs_again(self, bench: Bench, receipts: MemoryReceipts, at: str) -> None:
        """The step alone, in the same run."""
        tries: list[int] = []
        if at == "the commit":
            receipts.before_commit.append(lost())

        def write(run: RunContext) -> int:
            tries.append(1)
            run.session.append(len(tries))
            run.after_commit({"task": "shop.mail", "args": [len(tries)]})
            if at == "the body" and len(tries) == 1:
                raise TimeoutError("a deadlock")
            return len(tries)

        sent = Sent()

        def body(run: RunContext) -> Any:
            return run.step.options(receipts=receipts)("row", lambda: write(run))

        assert bench.deliver(value=body, guard=bench.guard(following=sent)) == Returned(2)
        assert (receipts.effects, bench.ran, len(sent.texts)) == ([2], ["one"], 1)

    def test_what_its_function_raises(self, bench: Bench, receipts: MemoryReceipts) -> None:
        """It is rolled back, and is the body's to handle, whatever ``store_failures`` says."""

        def write(run: RunContext) -> None:
            run.session.append(17)
            raise KeyError("declined")

        def body(run: RunContext) -> Any:
            with pytest.raises(KeyError, match="declined"):
                run.step.options(receipts=receipts)("row", lambda: write(run))
            return run.step("mail", len, "abc")

        guard = bench.guard(following=Sent(), store_failures=KeyError)
        assert bench.deliver(value=body, guard=guard) == Returned(3)
        assert (receipts.effects, receipts.rows, receipts.open) == ([], {}, 0)

    def test_a_later_start_of_the_key(self, bench: Bench, receipts: MemoryReceipts) -> None:
        """A row of a larger generation stands: this run is a zombie's, and does not go on."""
        body, guard = self.body(bench, receipts), bench.guard(following=Sent())

        def zombie(run: RunContext) -> Any:
            from idempotent_tasks.core.receipts import Receipt as Row

            row = Row.of(run.claim, 0, "row")
            receipts.rows[KEY, "row"] = replace(row, generation=row.generation + 1, outcome=done('"theirs"'))
            return body(run)

        verdict = bench.deliver(value=zombie, guard=guard)
        assert isinstance(verdict, Unwritten)
        assert "the receipt of a later start of the key" in str(verdict.error)
        assert receipts.effects == []

    def test_a_database_that_is_away(self, bench: Bench, receipts: MemoryReceipts) -> None:
        """The delivery waits; steps before it are kept."""
        receipts.at_begin.append(StoreUnavailableError("the database is away"))
        body, guard = self.body(bench, receipts), bench.guard(following=Sent())
        verdict = bench.deliver(value=lambda run: (run.step("first", len, "a"), body(run)), guard=guard)
        assert isinstance(verdict, Unwritten)
        assert (verdict.error.message, verdict.error.key) == ("the database is away", KEY)
        assert list(bench.store.get(KEY).steps.here) == ["first"]

    def test_what_follows(self, bench: Bench, receipts: MemoryReceipts, clock: FakeClock) -> None:
        """It is sent after the commit under ids of the step, by each run that finds the receipt without the step."""
        sent = Sent()

        def follow(run: RunContext, name: str) -> None:
            run.after_commit({"task": "shop.mail", "args": [name]})

        def body(run: RunContext) -> None:
            for name in ("a", "b"):
                run.step.options(receipts=receipts)(name, partial(follow, run, name))

        receipts.after_commit.append(SystemExit())
        with pytest.raises(SystemExit):
            bench.deliver(value=body, guard=bench.guard(following=sent, watched=True))
        assert sent.texts == []
        clock.advance(LEASE + 1)
        bench.deliver("two", body, guard=bench.guard(following=sent))
        assert [text.count(f'"{name}"') for text, name in zip(sent.texts, "ab", strict=True)] == [2, 2]

    def test_what_follows_that_cannot_be_sent(self, bench: Bench, receipts: MemoryReceipts) -> None:
        """The delivery waits, and the next one sends it, without the effect."""
        sent = Sent(failures=1)

        def body(run: RunContext) -> Any:
            def write() -> str:
                run.session.append(17)
                run.after_commit({"task": "shop.mail"})
                return "row"

            return run.step.options(receipts=receipts)("row", write)

        assert isinstance(bench.deliver(value=body, guard=bench.guard(following=sent)), Unwritten)
        assert bench.deliver("two", body, guard=bench.guard(following=sent)) == Returned("row")
        assert (receipts.effects, len(sent.texts)) == ([17], 1)

    def test_the_ids_of_what_follows(self, shop: Shop, receipts: MemoryReceipts) -> None:
        """Celery's own, the same in each run, and of each step another."""
        mails: list[str] = []

        @shop.app.task(name="shop.mail", bind=True, shared=False)
        def mail(self: Any) -> None:
            mails.append(self.request.id)

        def body(task: Any) -> None:
            for name in ("a", "b"):
                task.idempotency.step.options(receipts=receipts)(name, lambda: task.idempotency.after_commit(mail.s()))
                if shop.runs == 1:
                    # As a crash does that comes between the receipt and the step.
                    shop.store._records[shop.key] = replace(shop.record, steps=type(shop.record.steps)())
                    raise task.retry(countdown=0)

        shop.sells(body)
        shop.deliver()
        shop.worker.drain()
        assert len(mails) == 3
        assert mails[0] == mails[1] != mails[2]

    def test_the_session_is_the_steps(self, bench: Bench, receipts: MemoryReceipts) -> None:
        """While it is open; after it there is none."""

        def body(run: RunContext) -> None:
            run.step.options(receipts=receipts)("row", lambda: run.session.append(17))
            with pytest.raises(ConfigurationError, match="session"):
                _ = run.session
            with pytest.raises(ConfigurationError, match="after_commit"):
                run.after_commit({"task": "shop.mail"})

        assert bench.deliver(value=body, guard=bench.guard(following=Sent())) == Returned(None)
        assert receipts.effects == [17]

    def test_a_result_that_cannot_be_encoded(self, bench: Bench, receipts: MemoryReceipts) -> None:
        """Nothing is committed, so that a corrected version may do it."""
        body = self.body(bench, receipts)

        def broken(run: RunContext) -> Any:
            def write() -> Unwritable:
                run.session.append(17)
                return Unwritable(SECRET)

            return run.step.options(receipts=receipts)("row", write)

        guard = bench.guard(following=Sent())
        with pytest.raises(ResultEncodingError, match="step 'row'"):
            bench.deliver(value=broken, guard=guard)
        assert receipts.effects == []
        assert bench.deliver("two", body, guard=guard) == Returned(2)

    def test_a_claim_that_is_renewed_or_lost_in_it(self, bench: Bench, receipts: MemoryReceipts) -> None:
        """Its transaction sees that at once."""

        def write(run: RunContext) -> None:
            renewed = replace(run.claim, in_progress_expiration=run.claim.in_progress_expiration + 1000)
            run.renewed(renewed)
            assert run.part is not None
            assert run.part.claim is renewed
            run.lose()
            assert run.part.claim_lost

        def body(run: RunContext) -> None:
            run.step.options(receipts=receipts)("row", lambda: write(run))

        bench.deliver(value=body, guard=bench.guard(following=Sent()))

    def test_nothing_sends_what_follows(self, bench: Bench, receipts: MemoryReceipts) -> None:
        """It is refused before the effect."""
        with pytest.raises(ConfigurationError, match="step 'row' has receipts="):
            bench.deliver(value=self.body(bench, receipts))
        assert receipts.effects == []


class TestUnguarded:
    """A body without a claim: each step runs, and nothing is kept."""

    @pytest.fixture
    def body(self, provider: Provider) -> Callable[..., Any]:
        """A bound body of two steps, of which one commits in a database."""

        def charge(self: Any, order: int = 17) -> Any:
            step = self.idempotency.step
            return (
                step("charge", provider.charge, order),
                step.options(recover=lambda record: NotDone())("ask", provider.charge),
                step.options(receipts=RECEIPTS)("row", lambda: self.idempotency.session.append(order)),
            )

        RECEIPTS.effects.clear()
        return charge

    def test_a_direct_call(self, app: Celery, store: MemoryStore, body: Any) -> None:
        """A plain function."""
        task = make(app, body, bind=True)
        assert [task(17), task(17)] == [(1, 2, None), (3, 4, None)]
        assert (RECEIPTS.effects, store.records()) == ([17, 17], [])

    def test_the_kill_switch(self, app: Celery, store: MemoryStore, body: Any) -> None:
        """As a direct call, with keys."""
        app.conf.idempotency_disabled = True
        task = make(app, body, bind=True)
        assert task.apply((17,), task_id="id-1").get() == (1, 2, None)
        assert task.apply((17,), task_id="id-1").get() == (3, 4, None)
        assert (RECEIPTS.effects, store.records(), RECEIPTS.open) == ([17, 17], [], 0)

    def test_no_key(self, app: Celery, store: MemoryStore, body: Any) -> None:
        """``missing_key="run"``."""
        task = make(app, body, bind=True, idempotency={"key": "order.number", "missing_key": "run"})
        assert task.apply(({},)).get() == (1, 2, None)
        assert (RECEIPTS.effects, store.records()) == ([{}], [])

    def test_no_store(self, app: Celery, store: MemoryStore, body: Any) -> None:
        """``on_store_error="run"``."""
        app.conf.idempotency_store = FaultyStore(store, claim=repeat(down(), 50))
        task = make(app, body, bind=True, idempotency={"on_store_error": "run"})
        assert task.apply((17,)).get() == (1, 2, None)
        assert (RECEIPTS.effects, store.records()) == ([17], [])

    def test_what_follows_a_step(self, app: Celery) -> None:
        """It is sent after the step's transaction, once at most."""
        app.conf.task_always_eager = True
        mails: list[int] = []

        @app.task(name="shop.mail", shared=False)
        def mail(order: int) -> None:
            mails.append(order)

        def charge(self: Any) -> list[int]:
            def write() -> list[int]:
                self.idempotency.after_commit(mail.s(17))
                return list(mails)

            before = self.idempotency.step.options(receipts=RECEIPTS)("row", write)
            return [len(before), len(mails)]

        assert make(app, charge, bind=True)() == [0, 1]

    def test_an_eager_apply_is_guarded(self, app: Celery, provider: Provider) -> None:
        """And a later one finds the steps of the first."""

        def charge(self: Any) -> Any:
            value = self.idempotency.step("charge", provider.charge)
            if self.idempotency.run == 1:
                raise TimeoutError
            return value

        task = make(app, charge, bind=True)
        assert task.apply(task_id="id-1").state == "FAILURE"
        assert task.apply(task_id="id-1").get() == 1


class TestStepKey:
    """``step_key()``: what to pass to a provider for one step."""

    def test_it_is_a_uuid_of_the_key_and_the_name(self, bench: Bench) -> None:
        """The same in each run, for each name another."""
        seen: list[tuple[str, str]] = []

        def body(run: RunContext) -> None:
            seen.append((run.step_key("charge"), run.step_key("mail")))
            raise TimeoutError

        for owner in ("one", "two"):
            with pytest.raises(TimeoutError):
                bench.deliver(owner, body)
        assert seen[0] == seen[1]
        assert seen[0][0] != seen[0][1]
        assert {len(key) for key in seen[0]} == {36}
        assert UUID(seen[0][0]).version == 5
        assert seen[0][0] == UnguardedRun(KEY).step_key("charge")

    def test_it_survives_a_rename(self, app: Celery) -> None:
        """With ``downstream=``, as the key of the body does."""

        def charge(self: Any, order: int) -> str:
            return str(self.idempotency.step_key("charge"))

        policy = {"key": "order", "downstream": "['charge', order]"}
        keys = [
            make(app, charge, name=name, bind=True, idempotency=policy).apply((order,)).get()
            for name, order in [("shop.charge", 17), ("shop.pay", 17), ("shop.pay", 18)]
        ]
        assert keys[0] == keys[1] != keys[2]

    def test_a_direct_call_has_none(self) -> None:
        """As it has no key."""
        assert UnguardedRun().step_key("charge") is None
