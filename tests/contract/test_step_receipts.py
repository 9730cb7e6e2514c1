"""Steps with receipts in real databases: a part of a body commits with the row of its key and name, once."""

import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from celery import Celery
from click.testing import CliRunner

from idempotent_tasks import (
    ConfigurationError,
    DynamoDBStore,
    Idempotency,
    IdempotentTask,
    MemoryStore,
    StepMismatchError,
    StoreUnavailableError,
)
from idempotent_tasks.checks import CheckContext, Finding
from idempotent_tasks.checks.receipts import check_receipts
from idempotent_tasks.cli import idempotency
from idempotent_tasks.core.guard import Guard, Replayed, Returned, Unwritten
from idempotent_tasks.core.lease import RunContext
from idempotent_tasks.core.receipts import Receipt
from idempotent_tasks.core.records import Busy, Claim, KeptSteps, Lost, Step
from idempotent_tasks.errors import ResultEncodingError
from idempotent_tasks.testing import FakeClock
from tests.contract.conftest import MakeBank
from tests.support.guarding import KEY, Bench, done, grant
from tests.support.receipts import (
    BOUND_SECONDS,
    KINDS,
    POSTGRESQL,
    SERVERS,
    Bank,
    DjangoBank,
    Sent,
    address_of,
    committed,
    elsewhere,
    idle,
    read_by,
    repeatable_read,
    until,
)
from tests.support.stores import SlowBucket
from tests.testbed.tcp import tcp_to

Pool = Callable[..., "Future[Any]"]
#: Longer than a claim lives.
LATER_SECONDS = 60.0


class Killed(BaseException):
    """Unwinds the stack of a process that is dead."""


class Records(MemoryStore):
    """Records in memory, and the processes that are dead: nothing that they ask for arrives."""

    def __init__(self) -> None:
        super().__init__(clock=FakeClock())
        #: The owners of runs that are killed when they have a step kept.
        self.killed_at_step: set[str] = set()
        #: Whether it answers nobody who has a step kept.
        self.is_away = False

    def keep_step(self, claim: Claim, name: str, step: Step, kept: KeptSteps) -> KeptSteps | Lost:
        """Keep it, unless the process dies now."""
        self._refuse_dead(claim)
        if self.is_away:
            raise StoreUnavailableError("made to fail")
        return super().keep_step(claim, name, step, kept)

    def release(self, claim: Claim, reason: str, **how: Any) -> Any:
        """Release, unless the process is dead."""
        self._refuse_dead(claim)
        return super().release(claim, reason, **how)

    def _refuse_dead(self, claim: Claim) -> None:
        if claim.owner in self.killed_at_step:
            raise Killed


class Till:
    """A guard of one key, whose body pays into a bank in a step."""

    def __init__(self, bank: Bank, **policy: Any) -> None:
        self.bank = bank
        self.sent = Sent()
        self.records = Records()
        self.bench = Bench(self.records)
        self.policy = policy
        #: How often the step's function, and the body behind the step, have run.
        self.payments = self.bodies = 0

    @property
    def guard(self) -> Guard:
        """A guard of a task without receipts of its own."""
        return self.bench.guard(following=self.sent, **self.policy)

    def pay(self, run: RunContext, then: Callable[[], Any] | None = None, name: str = "pay") -> Any:
        """Deposit the number of the payment in a step, and go on as given."""

        def deposit() -> Any:
            self.payments += 1
            number = self.bank.deposit(run, self.payments)
            return number if then is None else then()

        return run.step.options(receipts=self.bank.receipts)(name, deposit)

    def pay_in(self, run: RunContext, amount: int) -> Any:
        """Deposit an amount, the step's argument."""
        return run.step.options(receipts=self.bank.receipts)(
            "pay", lambda amount: self.bank.deposit(run, amount), amount
        )

    def deliver(self, body: Callable[[RunContext], Any] | None = None, owner: str = "one", **given: Any) -> Any:
        """Deliver once; without a body it pays."""

        def counted(run: RunContext) -> Any:
            value = (body or self.pay)(run)
            self.bodies += 1
            return value

        return self.bench.deliver(owner, counted, guard=self.guard, **given)

    def expire(self) -> None:
        """Let the claim that there is end."""
        self.records.clock.sleep(LATER_SECONDS)

    def steps(self) -> list[tuple[Any, ...]]:
        """Return key and step of each receipt, in order."""
        quote = "`" if self.bank.dialect == "mariadb" else '"'
        names = ", ".join(f"{quote}{name}{quote}" for name in ("key", "step"))
        rows = read_by(self.bank, f"SELECT {names} FROM idempotency_receipts ORDER BY 1, 2")
        return [tuple(row) for row in rows]


def _followed(run: RunContext, value: Any) -> Any:
    """Have a mail sent after the step; return its value."""
    run.after_commit({"task": "shop.mail"})
    return value


def crossing(bank: Bank) -> None:
    """Create two accounts, for transactions that lock them in both orders."""
    committed(bank, "CREATE TABLE accounts (id INTEGER PRIMARY KEY)", "INSERT INTO accounts VALUES (1), (2)")


class TestOneStep:
    """Effect and receipt."""

    def test_its_row_commits_with_its_receipt(self, bank: Bank) -> None:
        """Under the key and the step's name; a later delivery has the body's result."""
        till = Till(bank)
        assert till.deliver() == Returned(1)
        assert (bank.deposits(), bank.rows(), till.steps()) == ([1], [(KEY, "COMPLETED", "1")], [(KEY, "pay")])
        assert till.deliver(owner="two") == Replayed(1)
        assert till.payments == 1

    def test_what_raises_is_rolled_back(self, bank: Bank) -> None:
        """With its receipt; the body may go on without the step, and the next run does it."""
        till = Till(bank)

        def refuse() -> None:
            raise ValueError("no")

        with pytest.raises(ValueError, match="no"):
            till.deliver(lambda run: till.pay(run, refuse))
        assert (bank.deposits(), bank.rows(), till.records.get(KEY).free) == ([], [], True)

        def go_on(run: RunContext) -> str:
            with suppress(ValueError):
                till.pay(run, refuse)
            return "without"

        assert till.deliver(go_on, "two") == Returned("without")
        assert (bank.deposits(), bank.rows(), till.payments) == ([], [], 2)

    def test_a_result_that_cannot_be_stored(self, bank: Bank) -> None:
        """Nothing is committed."""
        till = Till(bank)
        with pytest.raises(ResultEncodingError, match="step 'pay' succeeded, but its result of type object"):
            till.deliver(lambda run: till.pay(run, object))
        assert (bank.deposits(), bank.rows()) == ([], [])
        assert till.deliver(owner="two") == Returned(2)

    @pytest.mark.parametrize("failing", ["body", "second step"])
    def test_a_body_that_fails_after_it(self, bank: Bank, failing: str) -> None:
        """Keeps what the step has committed: the next run takes its result from the record."""
        till = Till(bank)

        def fail() -> None:
            raise ConnectionError

        def body(run: RunContext) -> int:
            paid = till.pay(run)
            if run.run == 1:
                fail() if failing == "body" else till.pay(run, fail, "more")
            return int(paid) * 10

        with pytest.raises(ConnectionError):
            till.deliver(body)
        assert (bank.deposits(), till.steps()) == ([1], [(KEY, "pay")])
        assert till.deliver(body, "two") == Returned(10)
        assert bank.deposits() == [1]

    def test_two_steps_have_two_rows(self, bank: Bank) -> None:
        """And each has what follows it, once, under ids of its own."""
        till = Till(bank)

        def followed(run: RunContext) -> list[int]:
            paid: list[int] = []
            for name in ("pay", "refund"):
                paid.append(till.pay(run, lambda: _followed(run, till.payments), name))
                assert len(till.sent.texts) == len(paid)
            with pytest.raises(ConfigurationError, match="call apply_async"):
                run.after_commit({"task": "shop.mail"})
            return paid

        assert till.deliver(followed) == Returned([1, 2])
        assert till.steps() == [(KEY, "pay"), (KEY, "refund")]
        assert [name in text for name, text in zip(("pay", "refund"), till.sent.texts, strict=True)] == [True, True]

    def test_a_broker_that_is_away_behind_it(self, bank: Bank) -> None:
        """The run ends, and the next one finds the receipt and sends what follows."""
        till = Till(bank)
        till.sent.failures = 100
        follow = lambda run: till.pay(run, lambda: _followed(run, "paid"))  # noqa: E731
        verdict = till.deliver(follow)
        assert isinstance(verdict, Unwritten)
        assert "what follows its transaction cannot be published (ConnectionError)" in verdict.error.message
        assert (till.bodies, bank.deposits(), till.sent.texts) == (0, [1], [])
        till.sent.failures = 0
        assert till.deliver(follow, "two") == Returned("paid")
        assert (till.payments, len(till.sent.texts)) == (1, 1)

    def test_a_name_of_the_longest_kind(self, bank: Bank) -> None:
        """Has a row like any other, and no row of another name."""
        till, long = Till(bank), "ü" * 255
        names = [long, long[:-1], long[:-1] + "u", long[:128], long[:129]]
        body = lambda run: [till.pay(run, name=name) for name in names]  # noqa: E731
        assert till.deliver(body) == Returned([1, 2, 3, 4, 5])
        assert len(bank.rows()) == 5
        generation = till.records.get(KEY).generation
        assert generation is not None
        for number, name in enumerate(names, 1):
            mine = Receipt(key=KEY, step=name, generation=generation, fence=9, task_id="id", expires_at=2_000_000_000)
            transaction = bank.receipts.begin(mine, 1)
            assert transaction.found.outcome == done(str(number))
            transaction.rollback()

    def test_a_step_that_hands_the_key_over(self, bank: Bank) -> None:
        """Is rolled back, as a whole body is: a message that does it again is on its way."""
        till = Till(bank)
        with pytest.raises(ConfigurationError, match=r"step 'pay' has handed the key over"):
            till.deliver(lambda run: till.pay(run, lambda: run.hand_over("Retry")))
        assert (bank.deposits(), bank.rows(), till.bodies) == ([], [], 0)
        assert till.deliver(owner="two") == Returned(2)

    def test_a_record_that_cannot_be_written_after_it(self, bank: Bank) -> None:
        """The error says that the effect is not made again."""
        till = Till(bank)
        till.records.is_away = True
        verdict = till.deliver()
        assert isinstance(verdict, Unwritten)
        assert "step 'pay' is done, and could not be kept, so the next run takes its receipt" in verdict.error.message
        till.records.is_away = False
        till.expire()
        assert till.deliver(owner="two") == Returned(1)
        assert (till.payments, bank.deposits()) == (1, [1])

    def test_no_table(self, make_bank: MakeBank) -> None:
        """The delivery waits until it is created; the step has not begun."""
        bank = make_bank("sqlalchemy-sqlite")
        till = Till(bank)
        verdict = till.deliver()
        assert isinstance(verdict, Unwritten)
        assert "has no table 'idempotency_receipts' of this version" in verdict.error.message
        assert till.payments == 0
        bank.create_table()
        assert till.deliver(owner="two") == Returned(1)


class TestDeaths:
    """Of a process, on each side of the commit; and of a connection."""

    def test_between_the_commit_and_the_record(self, bank: Bank) -> None:
        """The next run finds the receipt: the row stands once, and the value is the same; from then on it is kept."""
        till = Till(bank)
        till.records.killed_at_step = {"one"}
        with pytest.raises(Killed):
            till.deliver(lambda run: till.pay(run, lambda: "of one"))
        assert (bank.deposits(), len(bank.rows()), till.records.get(KEY).steps) == ([1], 1, KeptSteps())
        till.expire()
        kept = []

        def body(run: RunContext) -> Any:
            value = till.pay(run, lambda: "of two")
            kept.append(till.records.get(KEY).steps.here["pay"].data)
            raise ConnectionError(value)

        with pytest.raises(ConnectionError, match="of one"):
            till.deliver(body, "two")
        assert kept == ['"of one"']
        committed(bank, "DROP TABLE idempotency_receipts")
        assert till.deliver(lambda run: till.pay(run, lambda: "of three"), "three") == Returned("of one")
        assert (till.payments, bank.deposits()) == (1, [1])

    def test_other_arguments_after_it(self, bank: Bank) -> None:
        """The receipt says what the step was done with, before the record does and after."""
        till = Till(bank)
        till.records.killed_at_step = {"one"}
        with pytest.raises(Killed):
            till.deliver(lambda run: till.pay_in(run, 5))
        till.expire()
        for owner in ("two", "three"):
            with pytest.raises(StepMismatchError, match="step 'pay' was done with other arguments"):
                till.deliver(lambda run: till.pay_in(run, 6), owner)
        assert till.deliver(lambda run: till.pay_in(run, 5), "four") == Returned(5)
        assert bank.deposits() == [5]

    def test_in_the_transaction(self, bank: Bank) -> None:
        """Its row is gone with its receipt, and the next run writes both."""
        till = Till(bank)
        till.records.killed_at_step = {"one"}

        def die() -> None:
            raise Killed

        with pytest.raises(Killed):
            till.deliver(lambda run: till.pay(run, die))
        assert (bank.deposits(), bank.rows()) == ([], [])
        till.expire()
        assert till.deliver(owner="two") == Returned(2)
        assert bank.deposits() == [2]

    @pytest.mark.parametrize("carried_out", [True, False])
    @pytest.mark.parametrize("kind", SERVERS)
    def test_a_commit_without_an_answer(
        self, make_bank: MakeBank, kind: str, carried_out: bool, request: pytest.FixtureRequest
    ) -> None:
        """The row says what became of it; the body does not notice."""
        with tcp_to(address_of(request.getfixturevalue(kind.partition("-")[2]))) as tcp:
            bank = make_bank(kind, tcp.port)
            bank.create_table()
            till = Till(bank)

            def cut() -> str:
                if till.payments == 1:
                    tcp.cut_at(b"COMMIT", carried_out=carried_out)
                return f"payment {till.payments}"

            payments = 1 if carried_out else 2
            assert till.deliver(lambda run: till.pay(run, cut)) == Returned(f"payment {payments}")
            assert (till.payments, till.bodies, bank.deposits()) == (payments, 1, [payments])
            bank.close()

    @pytest.mark.parametrize("kind", SERVERS)
    def test_a_deadlock(self, make_bank: MakeBank, kind: str) -> None:
        """The database ends one of two transactions: its step runs again at once, and what came before it does not."""
        bank = make_bank(kind)
        bank.create_table()
        crossing(bank)
        tills, begun, meeting = [Till(bank), Till(bank)], [0, 0], threading.Barrier(2)

        def deliver(number: int) -> Any:
            till, (first, second) = tills[number], (number + 1, 2 - number)

            def body(run: RunContext) -> Any:
                begun[number] += 1

                def cross() -> int:
                    bank.execute(run, f"SELECT id FROM accounts WHERE id = {first} FOR UPDATE")
                    if till.payments == 1:
                        meeting.wait(BOUND_SECONDS)
                    bank.execute(run, f"SELECT id FROM accounts WHERE id = {second} FOR UPDATE")
                    return first

                return till.pay(run, cross)

            try:
                return till.deliver(body, key=f"{KEY}-{number}")
            finally:
                if isinstance(bank, DjangoBank):
                    bank.close()

        with ThreadPoolExecutor(2) as executor:
            assert list(executor.map(deliver, (0, 1))) == [Returned(1), Returned(2)]
        # The one that begins again may be early enough for another deadlock.
        assert sum(till.payments for till in tills) > 2
        assert (begun, len(bank.deposits())) == ([1, 1], 2)

    @pytest.mark.parametrize("kind", POSTGRESQL)
    def test_a_serialisation_failure(self, make_bank: MakeBank, kind: str) -> None:
        """The step runs again under a new snapshot."""
        bank, other = make_bank(kind, None, **repeatable_read(kind)), make_bank(kind)
        bank.create_table()
        crossing(other)
        till = Till(bank)

        def body(run: RunContext) -> Any:
            def overtaken() -> int:
                if till.payments == 1:
                    bank.execute(run, "SELECT count(*) FROM accounts")
                    elsewhere(other, "UPDATE accounts SET id = id + 10")
                bank.execute(run, "UPDATE accounts SET id = id + 100")
                return till.payments

            return till.pay(run, overtaken)

        assert till.deliver(body) == Returned(2)
        assert bank.deposits() == [2]


class TestTwoRuns:
    """A zombie and its successor meet at the step's row, in both orders."""

    @pytest.mark.parametrize("ended", ["released", "expired"])
    def test_a_zombie_that_comes_first(self, bank: Bank, pool: Pool, ended: str) -> None:
        """It stands still in its transaction: its successor waits, and has its value; what it has behind is not run.

        Past its claim's end it rolls back instead, because its successor need not come to this step.
        """
        till, begun, go_on = Till(bank), threading.Event(), threading.Event()

        def stand_still() -> str:
            begun.set()
            assert go_on.wait(BOUND_SECONDS)
            return "first"

        zombie = pool(lambda: till.deliver(lambda run: till.pay(run, stand_still), "zombie"))
        assert begun.wait(BOUND_SECONDS)
        if ended == "released":
            till.records.release(Claim.shown_by(till.records.get(KEY)), "by an operator")
        else:
            till.expire()
        successor = pool(lambda: till.deliver(lambda run: till.pay(run, lambda: "second"), "successor"))
        until(lambda: till.bench.events().count("Claimed") == 2)
        go_on.set()
        committed = ended == "released"
        assert successor.result(BOUND_SECONDS) == Returned("first" if committed else "second")
        assert isinstance(zombie.result(BOUND_SECONDS), Busy | Replayed)
        assert (till.payments, till.bodies, bank.deposits()) == ((1, 1, [1]) if committed else (2, 1, [2]))
        assert till.bench.events().count("Superseded") == 1

    def test_a_claim_that_ends_while_the_result_is_stored(self, bank: Bank) -> None:
        """In a bucket, which takes its time: the transaction is rolled back, for a successor may be past the step."""
        till = Till(bank)
        till.policy["bucket"] = SlowBucket(till.expire)
        assert isinstance(till.deliver(), Unwritten)
        assert (till.payments, till.bodies, bank.deposits(), bank.rows()) == (1, 0, [], [])

    @pytest.mark.parametrize("finished", [True, False])
    def test_a_zombie_that_comes_last(self, bank: Bank, finished: bool) -> None:
        """It has stood still before its transaction: it finds its successor's row, and its body does not go on."""
        till = Till(bank)
        begin, successors = bank.receipts.begin, []

        def succeed(run: RunContext) -> Any:
            paid = till.pay(run, lambda: "second")
            if not finished:
                raise ConnectionError
            return paid

        def begin_late(receipt: Receipt, wait_seconds: float) -> Any:
            bank.receipts.begin = begin
            till.expire()
            with suppress(ConnectionError):
                successors.append(till.deliver(succeed, "successor"))
            return begin(receipt, wait_seconds)

        bank.receipts.begin = begin_late
        verdict = till.deliver(lambda run: till.pay(run, lambda: "first"), "zombie")
        assert (till.payments, till.bodies, bank.deposits()) == (1, int(finished), [1])
        if finished:
            assert (successors, verdict) == ([Returned("second")], Replayed("second"))
        else:
            # Its successor has failed after the step: the key is free, and the delivery comes again.
            assert isinstance(verdict, Unwritten)
            assert till.deliver(owner="again") == Returned("second")
            assert bank.deposits() == [1]

    def test_a_zombie_of_an_earlier_start(self, bank: Bank) -> None:
        """It commits first: the later start of the key has an effect of its own, over the old row."""
        till = Till(bank)
        old = grant(till.records, "old")
        receipt = replace(Receipt.of(old, till.records.clock.now(), "pay"), outcome=done('"old"'))
        bank.receipts.begin(replace(receipt, outcome=None), 1).commit(receipt)
        till.records.forget(KEY)
        till.expire()
        assert till.deliver(lambda run: till.pay(run, lambda: "new")) == Returned("new")
        assert bank.rows() == [(KEY, "COMPLETED", '"new"')]

    def test_a_zombie_after_a_later_start(self, bank: Bank) -> None:
        """Has no effect: the row is of a later start."""
        till = Till(bank)
        later = replace(
            Receipt(key=KEY, step="pay", generation=2**62, fence=1, task_id="id", expires_at=2_000_000_000),
            outcome=done('"later"'),
        )
        bank.receipts.begin(replace(later, outcome=None), 1).commit(later)
        verdict = till.deliver()
        assert isinstance(verdict, Unwritten)
        assert "has the receipt of a later start of the key" in verdict.error.message
        assert (till.payments, bank.deposits()) == (0, [])

    def test_a_wait_that_is_too_long(self, bank: Bank, pool: Pool) -> None:
        """The run ends at the step, which has not begun, and the delivery comes again."""
        till = Till(bank)
        held = Receipt(key=KEY, step="pay", generation=2**62, fence=1, task_id="id", expires_at=2_000_000_000)
        first = bank.receipts.begin(held, 1)
        verdict = pool(lambda: till.deliver(lease_seconds=1)).result(BOUND_SECONDS)
        first.rollback()
        assert isinstance(verdict, Unwritten)
        assert isinstance(verdict.error, StoreUnavailableError)
        assert "has held the key's receipt" in verdict.error.message
        assert (till.payments, till.bodies, till.records.get(KEY).free) == (0, 0, True)
        assert till.deliver(owner="two") == Returned(1)

    def test_its_lock_is_held_only_while_it_runs(self, bank: Bank, make_bank: MakeBank) -> None:
        """Not while the body does something else, as asking a provider."""
        till = Till(bank)
        other: Bank = make_bank("-".join([type(bank).__name__.removesuffix("Bank").lower(), bank.dialect]))
        receipt = Receipt(key=KEY, step="pay", generation=1, fence=1, task_id="id", expires_at=2_000_000_000)

        def look() -> Receipt | None:
            try:
                transaction = other.receipts.begin(receipt, 0)
                found: Receipt | None = transaction.found
                transaction.rollback()
                return found
            finally:
                other.close()

        def look_elsewhere() -> Receipt | None:
            with ThreadPoolExecutor(1) as executor:
                return executor.submit(look).result(BOUND_SECONDS)

        def hold() -> str:
            with pytest.raises(StoreUnavailableError, match="has held the key's receipt"):
                look_elsewhere()
            return "paid"

        def body(run: RunContext) -> str:
            till.pay(run, hold)
            found = look_elsewhere()
            assert found is not None
            assert found.step == "pay"
            return "done"

        assert till.deliver(body) == Returned("done")


class TestOneInAnother:
    """A durable block cannot commit inside another: each is refused before its effect."""

    @pytest.mark.parametrize("tool", ["receipts", "none"])
    def test_a_step_of_a_task_with_receipts(self, bank: Bank, tool: str) -> None:
        """With receipts of its own or without: a rollback would undo the one and not the other."""
        till = Till(bank, receipts=bank.receipts)

        def body(run: RunContext) -> Any:
            bank.deposit(run, 100)
            return till.pay(run) if tool == "receipts" else run.step("pay", lambda: till.payments + 1)

        with pytest.raises(ConfigurationError, match=r"step 'pay' is inside a transaction of receipts="):
            till.deliver(body)
        assert (till.payments, bank.deposits(), bank.rows(), till.records.get(KEY).free) == (0, [], [], True)

    @pytest.mark.parametrize("tool", ["receipts", "none"])
    def test_a_step_in_a_step_with_receipts(self, bank: Bank, tool: str) -> None:
        """As well."""
        inner: list[int] = []
        till = Till(bank)

        def nested(run: RunContext) -> Any:
            step = run.step.options(receipts=bank.receipts) if tool == "receipts" else run.step
            return till.pay(run, lambda: step("inner", inner.append, 1))

        with pytest.raises(ConfigurationError, match=r"step 'inner' is inside a transaction of receipts="):
            till.deliver(nested)
        assert (inner, bank.deposits(), bank.rows()) == ([], [], [])

    @pytest.mark.parametrize("kind", [each for each in KINDS if each.startswith("django")])
    @pytest.mark.parametrize("durable", [True, False])
    def test_a_step_inside_the_bodys_own_transaction(self, make_bank: MakeBank, kind: str, durable: bool) -> None:
        """Its rollback would undo the step's effect, which the record says is done."""
        from django.db.transaction import atomic

        bank = make_bank(kind)
        bank.create_table()
        till = Till(bank)

        def body(run: RunContext) -> Any:
            with atomic(using=bank.alias, durable=durable):
                bank.deposit(run, 100)
                return till.pay(run)

        with pytest.raises(ConfigurationError, match="step 'pay' was called inside a transaction of the database"):
            till.deliver(body)
        assert (till.payments, bank.deposits(), bank.rows(), till.records.get(KEY).free) == (0, [], [], True)
        assert till.deliver(owner="two") == Returned(1)

    def test_the_session_is_that_of_the_step(self, make_bank: MakeBank) -> None:
        """Before and after it there is none."""
        bank = make_bank("sqlalchemy-sqlite")
        bank.create_table()
        till, seen = Till(bank), []

        def session_of(run: RunContext) -> bool:
            try:
                return run.session is not None
            except ConfigurationError:
                return False

        def body(run: RunContext) -> str:
            seen.append(session_of(run))
            till.pay(run, lambda: seen.append(session_of(run)))
            seen.append(session_of(run))
            return "done"

        assert till.deliver(body) == Returned("done")
        assert seen == [False, True, False]


@contextmanager
def _app(
    bank: Bank, *, task: bool, steps: bool, policy: Mapping[str, Any] | None = None, **options: Any
) -> Iterator[Celery]:
    """Yield an app with one task, which has a bank's receipts, or whose steps have them."""
    app = Celery("shop", broker="amqp://localhost", set_as_current=False)
    app.conf.update(idempotency_store="memory://", idempotency_step_receipts=[bank.receipts] if steps else [])

    def charge() -> None:
        """Be a body."""

    own = Idempotency(receipts=bank.receipts if task else None, **(policy or {}))
    app.task(charge, name="shop.charge", base=IdempotentTask, shared=False, idempotency=own, **options)
    yield app
    app.close()


def _findings(bank: Bank, **options: Any) -> list[Finding]:
    """Look at an app whose steps have a bank's receipts, which no task has."""
    with _app(bank, task=False, steps=True, **options) as app:
        return list(check_receipts(CheckContext.of_app(app, "celery.concurrency.prefork")))


class TestChecks:
    """Of the receipts that only steps have, by ``idempotency_step_receipts``."""

    @pytest.mark.parametrize("kind", KINDS)
    def test_no_table(self, make_bank: MakeBank, kind: str) -> None:
        """Before the first message."""
        bank = make_bank(kind)
        (finding,) = _findings(bank)
        assert (finding.code, finding.tasks) == ("receipts-table", ("shop.charge",))
        assert "has no table 'idempotency_receipts' of this version" in finding.what
        assert "every delivery that comes to a step with it waits" in finding.remedy

    @pytest.mark.parametrize("kind", SERVERS)
    def test_no_time_out(self, make_bank: MakeBank, kind: str) -> None:
        """None, or one that is shorter than any body may be silent, whichever has the step."""
        bank = make_bank(kind)
        bank.create_table()
        (finding,) = _findings(bank)
        assert (finding.code, finding.tasks) == ("receipts-idle", ("shop.charge",))
        assert "ends no idle transaction" in finding.what
        for seconds, found in ((20, True), (60, False)):
            findings = _findings(make_bank(kind, None, **idle(kind, seconds)), time_limit=30)
            assert [each.code for each in findings] == ["receipts-idle"] * found

    def test_the_shortest_limit_counts(self, make_bank: MakeBank) -> None:
        """A finding is certain, whichever of the tasks has the step."""
        bank = make_bank("sqlalchemy-postgresql", None, **idle("sqlalchemy-postgresql", 20))
        bank.create_table()
        with _app(bank, task=False, steps=True, time_limit=600) as app:
            for limit, found in ((30, True), (10, False)):

                @app.task(name=f"shop.mail-{limit}", base=IdempotentTask, shared=False, time_limit=limit)
                def mail() -> None:
                    """Be a body."""

                findings = check_receipts(CheckContext.of_app(app, "celery.concurrency.prefork"))
                assert [each.code for each in findings] == ["receipts-idle"] * found

    def test_of_a_task_too(self, make_bank: MakeBank) -> None:
        """One finding, which is about that task's deliveries."""
        with _app(make_bank("sqlalchemy-sqlite"), task=True, steps=True) as app:
            (finding,) = check_receipts(CheckContext.of_app(app, "celery.concurrency.prefork"))
        assert "of these tasks" in finding.remedy

    def test_where_each_task_silences_it(self, make_bank: MakeBank) -> None:
        """As for a task's own."""
        silent = {"silenced_checks": ["receipts-table", "receipts-idle"]}
        with _app(make_bank("sqlalchemy-sqlite"), task=False, steps=True, policy=silent) as app:
            assert list(check_receipts(CheckContext.of_app(app, "celery.concurrency.prefork"))) == []


class TestAround:
    """Operators, and bodies without a claim."""

    @pytest.mark.parametrize("dynamodb_endpoint", ["ministack"], indirect=True)
    @pytest.mark.parametrize("named", ["of a task", "of steps", "of both"])
    def test_purge(self, bank: Bank, dynamodb: DynamoDBStore, named: str) -> None:
        """Deletes the rows of steps that nobody looks for, once."""
        till = Till(bank)
        till.deliver()
        with _app(bank, task=named != "of steps", steps=named != "of a task") as app:
            app.conf.update(idempotency_store=dynamodb)
            result = CliRunner().invoke(idempotency, ["purge", "--receipts", "--yes"], obj=SimpleNamespace(app=app))
        assert result.output == f"deleted 1 receipt of {bank.receipts!r}\n"
        assert till.steps() == []

    @pytest.fixture
    def make_task(self) -> Iterator[Callable[..., Any]]:
        """Makes a task under the kill switch."""
        app = Celery("shop", broker="memory://", backend="cache+memory://", set_as_current=False)
        app.conf.update(idempotency_store=MemoryStore(), idempotency_disabled=True, task_default_queue=uuid4().hex)
        app.set_current()
        options = {"name": "shop.charge", "base": IdempotentTask, "bind": True, "shared": False}
        yield lambda body, **policy: app.task(body, idempotency=Idempotency(**policy), **options)
        app.close()

    def test_a_body_without_a_claim(self, bank: Bank, make_task: Callable[..., Any]) -> None:
        """Its step has a transaction all the same, and no row."""

        def charge(self: Any, *, fails: bool = False) -> Any:
            def pay() -> int:
                bank.deposit(self.idempotency, 17)
                if fails:
                    raise ValueError("no")
                return 17

            return self.idempotency.step.options(receipts=bank.receipts)("pay", pay)

        task = make_task(charge)
        with pytest.raises(ValueError, match="no"):
            task.apply(kwargs={"fails": True}).get()
        assert bank.deposits() == []
        assert task.apply().get() == 17
        assert (bank.deposits(), bank.rows()) == ([17], [])

    def test_one_in_another_without_a_claim(self, bank: Bank, make_task: Callable[..., Any]) -> None:
        """Is refused as under one, or nobody would notice before the switch is off again."""
        made: list[int] = []

        def charge(self: Any) -> None:
            self.idempotency.step("pay", made.append, 1)

        task = make_task(charge, receipts=bank.receipts)
        with pytest.raises(ConfigurationError, match=r"step 'pay' is inside a transaction of receipts="):
            task.apply().get()
        assert made == []
