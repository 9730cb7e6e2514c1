"""Receipts through PgBouncer in transaction mode: each transaction may have another connection of the server."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from sqlalchemy import NullPool

from idempotent_tasks.core.guard import Replayed, Returned, Unwritten
from idempotent_tasks.core.lease import RunContext
from idempotent_tasks.core.receipts import Receipt
from tests.contract.conftest import MakeBank
from tests.support.guarding import done, grant
from tests.support.receipts import (
    BOUND_SECONDS,
    POSTGRESQL,
    Bank,
    Teller,
    address_of,
    connection_of,
    elsewhere,
    finished,
    is_connected,
    read_by,
    row,
    until,
)
from tests.testbed.servers import pgbouncer_server
from tests.testbed.tcp import Tcp, tcp_to

#: What leaves nothing behind in a session, as the how-to pages have it.
OPTIONS: dict[str, dict[str, Any]] = {
    "django-postgresql": {"DISABLE_SERVER_SIDE_CURSORS": True},
    "sqlalchemy-postgresql": {"poolclass": NullPool, "connect_args": {"prepare_threshold": None}},
}
MakePooled = Callable[..., Any]


@pytest.fixture(params=POSTGRESQL)
def kind(request: pytest.FixtureRequest) -> str:
    """Each library in turn."""
    return str(request.param)


@pytest.fixture
def make_pooled(postgresql: dict[str, str], make_bank: MakeBank, kind: str) -> Iterator[MakePooled]:
    """Makes banks behind a pooler of their own: with so many connections, and at another port of the server."""
    with ExitStack() as stack:

        def make(connections: int = 4, at: int | None = None, through: Callable[[int], int] = int) -> Any:
            server = postgresql if at is None else {**postgresql, "PGPORT": str(at)}
            port = stack.enter_context(pgbouncer_server(server, connections))
            bank = make_bank(kind, through(port), **OPTIONS[kind])
            if bank.receipts.look().error is not None:
                bank.create_table()
            return bank

        yield make


@pytest.fixture
def bank(make_pooled: MakePooled) -> Bank:
    """A bank behind a pooler."""
    bank: Bank = make_pooled()
    return bank


@contextmanager
def cut_off(place: str, make_pooled: MakePooled, postgresql: dict[str, str]) -> Iterator[tuple[Any, Tcp]]:
    """Yield a bank and a proxy: between client and pooler, or between pooler and server."""
    with ExitStack() as stack:
        if place == "server":
            tcp = stack.enter_context(tcp_to(address_of(postgresql)))
            yield make_pooled(at=tcp.port), tcp
            return
        tcps: list[Tcp] = []

        def through(port: int) -> int:
            tcps.append(stack.enter_context(tcp_to(f"tcp://127.0.0.1:{port}")))
            return tcps[0].port

        yield make_pooled(through=through), tcps[0]


def test_a_run_and_what_comes_after_it(bank: Bank) -> None:
    """A replay, which asks the record; and a rerun, which finds the receipt."""
    teller = Teller(bank)
    assert teller.deliver() == Returned(1)
    assert teller.deliver(owner="two") == Replayed(1)
    claim = grant(teller.bench.store, "dead", key="another")
    receipt = replace(Receipt.of(claim, 0), outcome=done())
    bank.receipts.begin(replace(receipt, outcome=None), 1).commit(receipt)
    teller.expire()
    assert teller.deliver(owner="three", key="another") == Replayed("done")
    assert (teller.runs, bank.deposits(), len(bank.rows())) == (1, [1], 2)


def test_nothing_is_left_in_the_session(make_pooled: MakePooled) -> None:
    """The next client has the same connection of the server, and finds no setting and no statement of this one."""
    bank = make_pooled(1)
    teller, numbers = Teller(bank), []

    def body(run: RunContext) -> str:
        numbers.append(connection_of(bank, run))
        return "done"

    for owner in ("one", "two"):
        assert teller.deliver(body, owner, key=owner) == Returned("done")
        bank.close()
    assert len(set(numbers)) == 1
    state = "SELECT pg_backend_pid(), current_setting('lock_timeout'), (SELECT count(*) FROM pg_prepared_statements)"
    assert [tuple(each) for each in read_by(bank, state)] == [(numbers[0], "0", 0)]


def test_a_transaction_keeps_its_connection(make_pooled: MakePooled) -> None:
    """With one for all, another run waits for the first's end, and both are committed."""
    bank = make_pooled(1)
    tellers, begun, go_on = [Teller(bank), Teller(bank)], threading.Event(), threading.Event()

    def stand_still(_: RunContext) -> str:
        begun.set()
        assert go_on.wait(BOUND_SECONDS)
        return "first"

    def deliver(number: int, body: Callable[[RunContext], Any] | None) -> Any:
        try:
            return tellers[number].deliver(body, key=str(number))
        finally:
            # That of this thread.
            bank.close()

    with ThreadPoolExecutor(2) as executor:
        first = executor.submit(deliver, 0, stand_still)
        assert begun.wait(BOUND_SECONDS)
        second = executor.submit(deliver, 1, None)
        until(lambda: tellers[1].bench.events().count("Claimed") == 1)
        go_on.set()
        assert (first.result(BOUND_SECONDS), second.result(BOUND_SECONDS)) == (Returned("first"), Returned(1))
    assert len(bank.rows()) == 2


def test_a_zombie_that_comes_first(bank: Bank, pool: Callable[..., "Future[Any]"]) -> None:
    """Its successor waits at the row, and has its result."""
    teller = Teller(bank)
    _, successor = teller.zombie_first(pool)
    assert successor == Replayed("first")
    assert (teller.runs, bank.deposits()) == (1, [1])


def test_a_zombie_that_comes_last(bank: Bank) -> None:
    """It finds its successor's row, and that is its result too."""
    teller = Teller(bank)
    assert teller.zombie_last() == (Replayed("second"), Returned("second"))
    assert (teller.runs, bank.deposits()) == (1, [1])


def test_a_wait_that_is_too_long(bank: Bank, pool: Callable[..., "Future[Any]"]) -> None:
    """The delivery comes again; the limit was that of one statement."""
    first, teller = bank.receipts.begin(row(generation=2**62), 1), Teller(bank)
    verdict = pool(lambda: teller.deliver(lease_seconds=1)).result(BOUND_SECONDS)
    first.rollback()
    assert isinstance(verdict, Unwritten)
    assert "has held the key's receipt" in verdict.error.message
    assert teller.deliver(owner="two") == Returned(1)


@pytest.mark.parametrize("carried_out", [True, False])
@pytest.mark.parametrize("place", ["client", "server"])
def test_a_commit_without_an_answer(
    make_pooled: MakePooled, postgresql: dict[str, str], place: str, carried_out: bool
) -> None:
    """Cut off on either side of the pooler: the row says what became of it, and the effect is there once."""
    with cut_off(place, make_pooled, postgresql) as (bank, tcp):
        teller = Teller(bank)

        def cut(_: RunContext) -> str:
            if teller.runs == 1:
                tcp.cut_at(b"COMMIT", carried_out=carried_out)
            return f"run {teller.runs}"

        runs = 1 if carried_out else 2
        assert teller.deliver(cut) == Returned(f"run {runs}")
        assert (teller.runs, bank.deposits()) == (runs, [runs])
        bank.close()


def test_a_connection_of_the_server_that_ends_in_the_body(bank: Bank, make_bank: MakeBank, kind: str) -> None:
    """Nothing was committed: it begins again on another one."""
    other = make_bank(kind)
    teller = Teller(bank)

    def lose(run: RunContext) -> str:
        if teller.runs == 1:
            number = connection_of(bank, run)
            elsewhere(other, f"SELECT pg_terminate_backend({number})")
            until(lambda: not is_connected(other, number))
            bank.deposit(run, 100)
        return "done"

    assert teller.deliver(lose) == Returned("done")
    assert (teller.runs, bank.deposits()) == (2, [2])


def test_a_step(bank: Bank) -> None:
    """Has a transaction, and so perhaps a connection, of its own."""
    teller = Teller(bank)
    guard = teller.bench.guard(following=teller.sent)

    def body(run: RunContext) -> list[int]:
        step = run.step.options(receipts=bank.receipts)
        return [step(f"pay {amount}", partial(bank.deposit, run), amount) for amount in (1, 2)]

    assert teller.bench.deliver("one", body, guard=guard) == Returned([1, 2])
    assert (bank.deposits(), len(bank.rows())) == ([1, 2], 2)


def test_what_operators_do(bank: Bank) -> None:
    """The check at the start, and the purge."""
    assert bank.receipts.look().error is None
    bank.receipts.begin(row(), 1).commit(replace(finished(), expires_at=100))
    assert bank.receipts.purge(200) == 1
    assert bank.rows() == []
