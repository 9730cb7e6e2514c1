"""What a receipt costs: a guarded Django task whose rows commit with it, beside the guard that people write by hand.

``python -m benchmarks.rows`` runs both in turn in one process, on a PostgreSQL and a stand-in for DynamoDB of its own.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final
from uuid import uuid4

from celery import Celery

from benchmarks.command import own_environment
from benchmarks.speed.calls import store_at
from idempotent_tasks import Idempotency, IdempotentTask
from tests.testbed.servers import postgresql_database, postgresql_server, roto_server

ROUNDS: Final = 9
CALLS: Final = 100

#: Runs one call of an order that nobody has paid yet; returns for how many seconds the order's row was locked.
Call = Callable[[int], float]


class Orders:
    """The database of both: orders, what was paid, and receipts; on this thread's connection of Django."""

    def __init__(self, variables: Mapping[str, str], name: str) -> None:
        from django.conf import settings

        address = {"HOST": variables["PGHOST"], "PORT": variables["PGPORT"], "USER": variables["PGUSER"]}
        default = {"ENGINE": "django.db.backends.postgresql", "NAME": name, "CONN_MAX_AGE": None, **address}
        settings.configure(
            DATABASES={"default": default}, INSTALLED_APPS=["idempotent_tasks.receipts.django"], LOGGING_CONFIG=None
        )
        import django
        from django.core.management import call_command

        from idempotent_tasks.receipts.django import DjangoReceipts

        django.setup()
        call_command("migrate", verbosity=0)
        self.receipts = DjangoReceipts()
        self.sql("CREATE TABLE orders (id INTEGER PRIMARY KEY, result INTEGER)")
        self.sql("CREATE TABLE payments (amount INTEGER)")

    def sql(self, statement: str, parameters: Sequence[Any] | None = None) -> Sequence[Any]:
        """Run a statement; return its rows."""
        from django.db import connection

        with connection.cursor() as cursor:
            cursor.execute(statement, parameters)
            return list(cursor.fetchall()) if cursor.description else []

    def close(self) -> None:
        """Close the connection."""
        from django.db import connection

        connection.close()


def main() -> None:
    """Print the medians of both, and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="rounds of each, in turn (default %(default)s)")
    parser.add_argument("--calls", type=int, default=CALLS, help="calls in a round (default %(default)s)")
    options = parser.parse_args()
    with contenders() as (orders, calls):
        # What is made on first use is no part of a round.
        for call in calls.values():
            _played(orders, call, 5)
        rounds: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
        for _ in range(options.rounds):
            for name, call in calls.items():
                rounds[name].append(_played(orders, call, options.calls))
    report(rounds)


def report(rounds: dict[str, list[tuple[float, float]]]) -> None:
    """Write a line for each contender, and the ratios of the medians."""
    medians = {}
    for name, measured in rounds.items():
        medians[name] = [statistics.median(each) * 1000 for each in zip(*measured, strict=True)]
        low, high = min(each for each, _ in measured) * 1000, max(each for each, _ in measured) * 1000
        call, lock = medians[name]
        line = f"{name:15} {call:.2f} ms a call ({low:.2f} to {high:.2f}), order's row locked for {lock:.2f} ms"
        sys.stdout.write(line + "\n")
    ours, theirs = medians["receipt"], medians["hand-written"]
    line = f"receipt by hand-written: a call {ours[0] / theirs[0]:.2f}, the lock {ours[1] / theirs[1]:.2f}"
    sys.stdout.write(line + "\n")


def _played(orders: Orders, call: Call, calls: int) -> tuple[float, float]:
    """Return the mean seconds of a call, and of its order's lock."""
    numbers = [uuid4().int % 2**31 for _ in range(calls)]
    for number in numbers:
        orders.sql("INSERT INTO orders VALUES (%s, NULL)", [number])
    began = time.perf_counter()
    locked = sum(call(number) for number in numbers)
    return (time.perf_counter() - began) / calls, locked / calls


@contextmanager
def contenders() -> Iterator[tuple[Orders, dict[str, Call]]]:
    """Yield a database with orders, and by name what pays one."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="rows-")))
        stack.enter_context(own_environment(folder))
        variables = stack.enter_context(postgresql_server())
        name = f"rows-{uuid4().hex[:12]}"
        stack.enter_context(postgresql_database(variables, name))
        orders = Orders(variables, name)
        stack.callback(orders.close)
        store = store_at(stack.enter_context(roto_server(folder)), f"rows-{uuid4().hex[:12]}")
        store.create_table()
        app = Celery("rows", broker="memory://", backend="cache+memory://", set_as_current=False)
        stack.callback(app.close)
        app.conf.update(idempotency_store=store)
        yield orders, {"receipt": _with_receipt(app, orders), "hand-written": _by_hand(app, orders)}


def _with_receipt(app: Any, orders: Orders) -> Call:
    policy = Idempotency(key="order", receipts=orders.receipts)
    locked: list[float] = []

    def pay(order: int) -> int:
        orders.sql("INSERT INTO payments VALUES (%s)", [order])
        orders.sql("UPDATE orders SET result = %s WHERE id = %s", [order, order])
        locked.append(time.perf_counter())
        return order

    task = app.task(pay, name="rows.receipt", base=IdempotentTask, shared=False, idempotency=policy)
    ended = _noting_ends(orders)

    def call(order: int) -> float:
        task.apply((order,)).get()
        return ended.pop() - locked.pop()

    return call


def _noting_ends(orders: Orders) -> list[float]:
    """Return the list to which the end of each transaction with a receipt is added."""
    begin = orders.receipts.begin
    ended: list[float] = []

    def begin_noting(*given: Any) -> Any:
        transaction = begin(*given)
        commit = transaction.commit

        def commit_noting(receipt: Any) -> None:
            commit(receipt)
            ended.append(time.perf_counter())

        transaction.commit = commit_noting  # type: ignore[method-assign]
        return transaction

    orders.receipts.begin = begin_noting  # type: ignore[assignment]
    return ended


def _by_hand(app: Any, orders: Orders) -> Call:
    from django.db.transaction import atomic

    def pay(order: int) -> tuple[int, float]:
        with atomic():
            ((result,),) = orders.sql("SELECT result FROM orders WHERE id = %s FOR UPDATE", [order])
            locked = time.perf_counter()
            if result is None:
                orders.sql("INSERT INTO payments VALUES (%s)", [order])
                orders.sql("UPDATE orders SET result = %s WHERE id = %s", [order, order])
        return order, time.perf_counter() - locked

    task = app.task(pay, name="rows.by_hand", shared=False)

    def call(order: int) -> float:
        return float(task.apply((order,)).get()[1])

    return call


if __name__ == "__main__":
    main()
