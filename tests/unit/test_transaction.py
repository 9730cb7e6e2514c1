"""A run in one transaction with its receipt: what commits together, what is run again, and what another run finds."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from idempotent_tasks import ConfigurationError, MemoryStore, ResultEncodingError, Status, StoreUnavailableError
from idempotent_tasks.core.atomic import Atomic
from idempotent_tasks.core.guard import (
    Failed,
    Guard,
    Received,
    Replayed,
    Returned,
    Unresolved,
    Unwritten,
    Verdict,
)
from idempotent_tasks.core.lease import RunContext
from idempotent_tasks.core.receipts import Receipt
from idempotent_tasks.core.records import Busy, Record
from idempotent_tasks.core.recovery import Done, NotDone, Recovery
from idempotent_tasks.core.retry import MOST_TRANSACTIONS
from idempotent_tasks.events import Committed
from idempotent_tasks.testing import FakeClock
from tests.support.guarding import KEY, Bench, Interrupt, done, request_by
from tests.support.receipts import MemoryReceipts, Sent, lost

WELCOME = {"task": "shop.welcome", "args": [17]}


class Bank:
    """Deliveries of one key whose body deposits in a database with receipts."""

    def __init__(self, bench: Bench, store: MemoryStore, clock: FakeClock) -> None:
        self.bench = bench
        self.store = store
        self.clock = clock
        self.receipts = MemoryReceipts()
        self.sent = Sent()
        self.runs = 0
        #: What the next bodies do after their deposits.
        self.then: list[Callable[[RunContext], Any]] = []

    def guard(self, **policy: Any) -> Guard:
        """Return a guard with the receipts."""
        return self.bench.guard(following=self.sent, receipts=self.receipts, **policy)

    def deposit(self, run: RunContext) -> Any:
        """Write the number of the run, which is the result unless the test has another end."""
        self.runs += 1
        run.session.append(self.runs)
        number = self.runs
        return self.then.pop(0)(run) if self.then else number

    def deliver(self, owner: str = "one", guard: Guard | None = None) -> Any:
        """Deliver once."""
        return self.bench.deliver(owner, self.deposit, guard=guard or self.guard())

    @property
    def record(self) -> Record:
        """The key's record."""
        return self.store.get(KEY)


@pytest.fixture
def bank(bench: Bench, store: MemoryStore, clock: FakeClock) -> Bank:
    """A bank whose store is in memory too."""
    return Bank(bench, store, clock)


def raising(error: BaseException) -> Callable[[RunContext], Any]:
    """Return what raises."""

    def end(_: RunContext) -> None:
        raise error

    return end


def test_effect_and_receipt_commit_together(bank: Bank) -> None:
    """Then the record has the same outcome, and a duplicate replays without a transaction."""
    assert bank.deliver() == Returned(1)
    (row,) = bank.receipts.rows.values()
    assert (row.key, row.step, row.generation, row.fence) == (KEY, "", bank.record.generation, bank.record.fence)
    assert row.outcome is not None
    assert (row.outcome.data, row.outcome.status) == (bank.record.data, Status.COMPLETED)
    assert (bank.deliver("two"), len(bank.receipts.waits)) == (Replayed(1), 1)
    assert (bank.receipts.effects, bank.receipts.open) == ([1], 0)


def test_a_receipt_without_a_record_is_replayed(bank: Bank) -> None:
    """A worker died between the two commits: its effect is not made again, and its result is the key's."""
    die(bank)
    assert bank.deliver("two") == Replayed(1)
    assert (bank.receipts.effects, bank.runs, bank.record.status) == ([1], 1, Status.COMPLETED)
    assert bank.deliver("three") == Replayed(1)


def die(bank: Bank, owner: str = "one") -> None:
    """Run a body whose process dies when its transaction is committed, and let its claim expire."""
    bank.receipts.after_commit.append(SystemExit())
    with pytest.raises(SystemExit):
        bank.bench.deliver(owner, bank.deposit, guard=bank.guard(watched=True))
    bank.clock.advance(31)


def test_a_transaction_that_was_lost_runs_again(bank: Bank) -> None:
    """In the same run of the key: a deadlock at the end of the body is no crash and no rerun."""
    bank.receipts.before_commit.append(lost())
    bank.then = [lambda run: run.run, lambda run: run.run]
    assert bank.deliver() == Returned(1)
    assert (bank.receipts.effects, bank.runs) == ([2], 2)


def test_a_body_that_the_database_has_ended_runs_again(bank: Bank) -> None:
    """A deadlock or a serialisation failure is raised in the body, mostly."""
    bank.then = [raising(TimeoutError("a deadlock"))]
    assert bank.deliver() == Returned(2)
    assert bank.receipts.effects == [2]


def test_not_for_ever(bank: Bank) -> None:
    """Then the body's own error is raised, and the key is free."""
    bank.then = [raising(TimeoutError("a deadlock"))] * MOST_TRANSACTIONS
    with pytest.raises(TimeoutError, match="a deadlock"):
        bank.deliver()
    assert (bank.receipts.effects, bank.runs, bank.record.free) == ([], MOST_TRANSACTIONS, True)
    assert bank.deliver("two") == Returned(MOST_TRANSACTIONS + 1)


def test_a_lost_error_is_no_final_failure(bank: Bank) -> None:
    """Whatever ``store_failures`` says: it is about the transaction, not about the work."""
    bank.then = [raising(TimeoutError("a deadlock"))]
    assert bank.deliver(guard=bank.guard(store_failures=OSError)) == Returned(2)


@pytest.mark.parametrize("committed", [True, False])
def test_a_commit_without_an_answer_is_looked_up(bank: Bank, committed: bool) -> None:
    """On another connection, under the row's lock: what was committed is not done again, what was not is."""
    answers = bank.receipts.after_commit if committed else bank.receipts.before_commit
    answers.append(lost(ConnectionError("the server is gone"), is_certain=False))
    runs = 1 if committed else 2
    assert bank.deliver() == Returned(runs)
    assert (bank.receipts.effects, bank.runs) == ([runs], runs)
    assert [type(event) for event in bank.bench.seen].count(Committed) == 1


def test_a_commit_that_nobody_can_look_up(bank: Bank) -> None:
    """The delivery waits, and a later one finds what was committed."""
    bank.receipts.after_commit.append(lost(ConnectionError("the server is gone"), is_certain=False))
    bank.receipts.at_begin = [None, StoreUnavailableError("the database does not answer")]
    verdict = bank.deliver()
    assert isinstance(verdict, Unwritten)
    assert (verdict.error.key, bank.record.free, bank.record.runs) == (KEY, True, 1)
    assert bank.deliver("two") == Replayed(1)
    assert bank.receipts.effects == [1]


def test_a_database_that_is_away(bank: Bank) -> None:
    """No body, and no run: the delivery waits."""
    bank.receipts.at_begin.append(StoreUnavailableError("the database does not answer"))
    verdict = bank.deliver()
    assert isinstance(verdict, Unwritten)
    assert (verdict.error.task, verdict.error.key) == ("shop.charge", KEY)
    assert (bank.runs, bank.record.free, bank.record.runs, bank.record.attempt) == (0, True, 0, 0)


def test_a_call_inside_a_transaction(bank: Bank) -> None:
    """It fails, before the effect, and the key is free."""
    bank.receipts.at_begin.append(ConfigurationError("a transaction is open"))
    with pytest.raises(ConfigurationError, match="a transaction is open"):
        bank.deliver()
    assert (bank.runs, bank.record.free, bank.record.runs) == (0, True, 0)


def test_it_waits_for_a_quarter_of_what_is_left(bank: Bank) -> None:
    """Of the claim, here of 30 s; the rest is for the body."""
    bank.deliver()
    assert bank.receipts.waits == [pytest.approx(7.5)]


def test_a_claim_that_ended_while_it_waited(bank: Bank, clock: FakeClock) -> None:
    """Another delivery may have the key: no body begins."""
    bank.receipts.at_begin.append(lambda: clock.advance(31))
    assert isinstance(bank.deliver(), Unwritten)
    assert (bank.runs, bank.receipts.effects, bank.receipts.open) == (0, [], 0)


def test_a_later_start_of_the_key_supersedes(bank: Bank, clock: FakeClock) -> None:
    """A run that stood still until its key had expired, and another had begun anew, has no effect."""
    guard = bank.guard(expires=10, unresolved_for=10)

    def stand_still(run: RunContext) -> int:
        run.transaction.rollback()  # type: ignore[union-attr]  # as the database does with an idle transaction
        clock.advance(100)
        assert bank.deliver("two", guard) == Returned(2)
        raise TimeoutError("the transaction is gone")

    bank.then = [stand_still]
    verdict = bank.bench.deliver("one", bank.deposit, guard=guard, retention_seconds=10, lease_seconds=5)
    assert isinstance(verdict, Unwritten)
    assert "a later start of the key" in verdict.error.message
    assert bank.receipts.effects == [2]


def test_an_outcome_of_an_earlier_start_is_not_recorded_in_a_later_one(bank: Bank, clock: FakeClock) -> None:
    """That one would have an outcome without a receipt, beside which another run could still commit its rows."""
    guard = bank.guard(expires=10, unresolved_for=10)

    def outlive(run: RunContext) -> int:
        clock.advance(100)
        with pytest.raises(ValueError, match="no"):
            bank.deliver("two", guard)
        return run.run

    bank.then = [outlive, raising(ValueError("no"))]
    verdict = bank.bench.deliver("one", bank.deposit, guard=guard, retention_seconds=10, lease_seconds=5)
    assert isinstance(verdict, Busy)
    assert (bank.record.free, bank.receipts.effects) == (True, [1])
    assert bank.deliver("three", guard) == Returned(3)
    (row,) = bank.receipts.rows.values()
    assert (row.generation, bank.receipts.effects) == (bank.record.generation, [1, 3])


def test_an_expired_receipt_is_written_over(bank: Bank, clock: FakeClock) -> None:
    """After ``expires`` the key starts afresh, as a record does."""
    bank.deliver()
    clock.advance(3700)
    assert bank.deliver("two") == Returned(2)
    assert bank.receipts.effects == [1, 2]
    (row,) = bank.receipts.rows.values()
    assert row.generation == bank.record.generation


def test_what_a_failed_body_has_written_is_rolled_back(bank: Bank) -> None:
    """And the key is free for the next run."""
    bank.then = [raising(ValueError("no"))]
    with pytest.raises(ValueError, match="no"):
        bank.deliver()
    assert (bank.receipts.effects, bank.receipts.rows, bank.record.free) == ([], {}, True)
    assert bank.deliver("two") == Returned(2)


def test_a_final_failure_has_a_receipt_without_the_effect(bank: Bank) -> None:
    """Or a zombie could still commit its rows under a key that has failed."""
    guard = bank.guard(store_failures=ValueError)
    bank.then = [raising(ValueError("no"))]
    verdict = bank.deliver(guard=guard)
    assert isinstance(verdict, Failed)
    (row,) = bank.receipts.rows.values()
    assert row.outcome is not None
    assert (row.outcome.status, bank.receipts.effects, bank.record.status) == (Status.FAILED, [], Status.FAILED)


def test_a_failure_that_finds_anothers_success(bank: Bank) -> None:
    """That one stands: it has committed between the two transactions of this one."""

    def fail(run: RunContext) -> None:
        row = Receipt.of(run.claim, bank.store.clock.now())
        bank.receipts.rows[KEY, ""] = replace(row, fence=run.fence - 1, outcome=done('"other"'))
        raise ValueError("no")

    bank.then = [fail]
    assert bank.deliver(guard=bank.guard(store_failures=ValueError)) == Replayed("other")
    assert (bank.record.status, bank.record.data) == (Status.COMPLETED, '"other"')


def test_a_constraint_that_is_checked_at_the_end(bank: Bank) -> None:
    """What the database says of the body's rows at ``COMMIT`` is the body's failure, and may be a final one."""
    bank.receipts.before_commit = [ValueError("no such customer"), ValueError("no such customer")]
    with pytest.raises(ValueError, match="no such customer"):
        bank.deliver()
    assert (bank.receipts.effects, bank.record.free) == ([], True)
    assert isinstance(bank.deliver("two", bank.guard(store_failures=ValueError)), Failed)
    assert (bank.receipts.effects, bank.record.status) == ([], Status.FAILED)


def test_a_result_that_cannot_be_encoded(bank: Bank) -> None:
    """Nothing is written, because no later run could return it."""
    bank.then = [lambda _: object()]
    with pytest.raises(ResultEncodingError):
        bank.deliver()
    assert (bank.receipts.effects, bank.receipts.rows, bank.record.free) == ([], {}, True)


def test_a_run_that_was_handed_over(bank: Bank) -> None:
    """``retry(throw=False)`` publishes the next run: what this one has written is rolled back."""
    bank.then = [lambda run: run.hand_over("Retry")]
    assert bank.deliver() == Returned(None)
    assert (bank.receipts.effects, bank.receipts.rows, bank.record.free) == ([], {}, True)
    assert bank.deliver("two") == Returned(2)


def test_two_databases_have_no_transaction(bank: Bank) -> None:
    """`Atomic` is of DynamoDB."""
    bank.then = [lambda _: Atomic(1, [])]
    with pytest.raises(ConfigurationError, match="no transaction spans two databases"):
        bank.deliver()
    assert (bank.receipts.effects, bank.record.free) == ([], True)


def follow(run: RunContext, value: Any = None) -> Any:
    """Have a task follow the transaction; return a value."""
    run.after_commit(WELCOME)
    return value


class TestWhatFollows:
    """``after_commit()``."""

    def test_it_is_sent_after_the_commit(self, bank: Bank) -> None:
        """Once, by the run that has committed."""
        bank.then = [lambda run: follow(run, bank.sent.texts.copy())]
        assert bank.deliver() == Returned([])
        assert [json.loads(text)["args"] for text in bank.sent.texts] == [[17]]
        bank.deliver("two")
        assert len(bank.sent.texts) == 1

    def test_a_run_that_finds_the_receipt_sends_it(self, bank: Bank) -> None:
        """The first one died before it could: the same text, and so the same task id."""
        bank.then = [follow]
        die(bank)
        assert bank.sent.texts == []
        assert bank.deliver("two") == Replayed(None)
        assert [json.loads(text)["args"] for text in bank.sent.texts] == [[17]]

    def test_a_broker_that_is_away(self, bank: Bank) -> None:
        """The key stays without an outcome, so that a later delivery sends it."""
        bank.then = [lambda run: follow(run, "done")]
        bank.sent.failures = 1
        verdict = bank.deliver()
        assert isinstance(verdict, Unwritten)
        assert "what follows its transaction cannot be published (ConnectionError)" in verdict.error.message
        assert (bank.record.free, bank.sent.texts) == (True, [])
        assert bank.deliver("two") == Replayed("done")
        assert (len(bank.sent.texts), bank.receipts.effects) == (1, [1])

    def test_not_if_the_body_fails(self, bank: Bank) -> None:
        """Nor is it sent by the next run, unless that says so too."""

        def fail(run: RunContext) -> None:
            run.after_commit(WELCOME)
            raise TimeoutError("a deadlock")

        bank.then = [fail]
        assert bank.deliver() == Returned(2)
        assert bank.sent.texts == []

    @pytest.mark.parametrize("wrong", [None, "shop.welcome", {"args": [17]}], ids=repr)
    def test_what_is_no_signature(self, bank: Bank, wrong: Any) -> None:
        """It is refused where it is given."""
        bank.then = [lambda run: run.after_commit(wrong)]
        with pytest.raises(ConfigurationError, match="takes a signature"):
            bank.deliver()
        assert bank.receipts.effects == []

    def test_without_receipts(self, bench: Bench) -> None:
        """There is no transaction to wait for, nor a session."""
        with pytest.raises(ConfigurationError, match="there is none here: call apply_async"):
            bench.deliver(value=lambda run: run.after_commit(WELCOME))
        with pytest.raises(ConfigurationError, match="give a body that is called directly a session of your own"):
            bench.deliver(value=lambda run: run.session)


class TestReruns:
    """Tasks that ask what came of an earlier run, or leave that to a person."""

    def recovering(self, bank: Bank, answer: Recovery, asked: list[int]) -> Callable[[str], Verdict]:
        """Return what delivers to a task that asks."""
        guard = bank.guard(recover=lambda record: answer, settle=0)

        def deliver(owner: str) -> Verdict:
            def ask(run: RunContext, _: Record) -> Recovery:
                asked.append(run.run)
                return answer

            return guard.deliver(request_by(owner), bank.deposit, ask)

        return deliver

    def test_a_receipt_is_an_answer(self, bank: Bank) -> None:
        """Nobody is asked, and nobody has to decide."""
        die(bank)
        asked: list[int] = []
        verdict = self.recovering(bank, NotDone(), asked)("two")
        assert isinstance(verdict, Received)
        assert (asked, bank.receipts.effects) == ([], [1])

    def test_a_parking_task_takes_it_too(self, bank: Bank) -> None:
        """Its key is not parked."""
        die(bank)
        assert bank.deliver("two", bank.guard(on_rerun="park")) == Replayed(1)

    def test_without_a_receipt_a_person_decides(self, bank: Bank) -> None:
        """A run has begun, and has left neither outcome nor receipt."""
        bank.then = [raising(ValueError("no"))]
        guard = bank.guard(on_rerun="park")
        with pytest.raises(ValueError, match="no"):
            bank.deliver("one", guard)
        assert isinstance(bank.deliver("two", guard), Unresolved)
        assert (bank.runs, bank.receipts.open) == (1, 0)

    def test_what_recover_knows_has_a_receipt(self, bank: Bank) -> None:
        """Or a zombie could still commit its rows beside it."""
        bank.then = [raising(ValueError("no"))]
        with pytest.raises(ValueError, match="no"):
            bank.deliver("one")
        asked: list[int] = []
        assert self.recovering(bank, Done("charged"), asked)("two") == Returned("charged")
        (row,) = bank.receipts.rows.values()
        assert row.outcome is not None
        assert (row.outcome.data, asked, bank.runs, bank.receipts.effects) == ('"charged"', [2], 1, [])

    def test_a_lost_transaction_of_a_body_with_other_effects(self, bank: Bank) -> None:
        """It is not run again at once: its other effects have to be asked about first."""
        bank.receipts.before_commit.append(lost())
        deliver = self.recovering(bank, NotDone(), [])
        with pytest.raises(TimeoutError, match="a deadlock"):
            deliver("one")
        assert (bank.runs, bank.record.free, bank.record.runs) == (1, True, 1)
        assert deliver("two") == Returned(2)

    @pytest.mark.parametrize("committed", [True, False])
    def test_its_commit_without_an_answer(self, bank: Bank, committed: bool) -> None:
        """It is looked up all the same."""
        answers = bank.receipts.after_commit if committed else bank.receipts.before_commit
        answers.append(lost(ConnectionError("the server is gone"), is_certain=False))
        deliver = self.recovering(bank, NotDone(), [])
        if committed:
            assert deliver("one") == Returned(1)
        else:
            with pytest.raises(ConnectionError, match="the server is gone"):
                deliver("one")
        assert (bank.runs, bank.receipts.effects) == (1, [1] if committed else [])


class TestInterrupts:
    """A soft time limit."""

    def test_while_the_row_is_waited_for(self, bank: Bank) -> None:
        """No run has begun."""
        bank.receipts.at_begin.append(Interrupt())
        with pytest.raises(Interrupt):
            bank.deliver()
        assert (bank.runs, bank.record.free, bank.record.runs) == (0, True, 0)

    def test_in_the_body(self, bank: Bank) -> None:
        """It is the body's, and what that wrote is rolled back."""
        bank.then = [raising(Interrupt())]
        with pytest.raises(Interrupt):
            bank.deliver()
        assert (bank.receipts.effects, bank.record.free, bank.record.runs) == ([], True, 1)

    def test_during_the_commit_that_is_carried_out(self, bank: Bank) -> None:
        """It is too late to matter."""
        bank.receipts.after_commit.append(Interrupt())
        assert bank.deliver() == Returned(1)
        assert bank.receipts.effects == [1]

    def test_during_the_commit_that_is_not(self, bank: Bank) -> None:
        """The body does not run again: its time is up."""
        bank.receipts.before_commit.append(Interrupt())
        with pytest.raises(Interrupt):
            bank.deliver()
        assert (bank.receipts.effects, bank.runs, bank.record.free) == ([], 1, True)
