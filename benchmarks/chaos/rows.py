"""Effects that a database can take back: rows in PostgreSQL and items in DynamoDB, there once they are committed."""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any, Final

import boto3
from sqlalchemy import (
    URL,
    Column,
    Connection,
    Double,
    Engine,
    Integer,
    MetaData,
    NullPool,
    Table,
    Text,
    create_engine,
    insert,
    select,
    text,
    update,
)
from sqlalchemy.orm import Session

from benchmarks.chaos.arena import now
from idempotent_tasks.receipts.sqlalchemy import SQLAlchemyReceipts
from tests.testbed.servers import postgresql_database

__all__ = [
    "committed_items",
    "committed_rows",
    "database",
    "engine_of",
    "item_of",
    "locked_order",
    "store_result",
    "write",
    "write_at_once",
]

_METADATA: Final = MetaData()
#: No effect is refused because another has the key: that is the contenders' business.
_EFFECTS: Final = Table(
    "effects",
    _METADATA,
    Column("run", Text, primary_key=True),
    *(Column(name, Text, nullable=False) for name in ("key", "task_id", "value")),
    Column("step", Text, nullable=False, server_default=""),
    Column("pid", Integer, nullable=False),
    Column("at", Double, nullable=False),
)
#: The rows that a hand-written guard locks.
_ORDERS: Final = Table("orders", _METADATA, Column("key", Text, primary_key=True), Column("result", Text))


@cache
def engine_of(url: str) -> Engine:
    """Return the engine of a database; each transaction has a connection of its own, which no fork shares."""
    return create_engine(url, poolclass=NullPool)


@contextmanager
def database(server: Mapping[str, str], name: str, keys: Iterable[str]) -> Iterator[str]:
    """Create a database with an order of each key for the length of a block, and yield its URL.

    Args:
        server: libpq's variables.
        name: of the database.
        keys: of the orders.
    """
    host, port, user = (server[variable] for variable in ("PGHOST", "PGPORT", "PGUSER"))
    url = str(URL.create("postgresql+psycopg", username=user, host=host, port=int(port), database=name))
    with postgresql_database(server, name):
        engine = engine_of(url)
        _METADATA.create_all(engine)
        SQLAlchemyReceipts(engine).create_table()
        with engine.begin() as connection:
            connection.execute(insert(_ORDERS), [{"key": key} for key in keys])
        yield url


def write(connection: Connection | Session, effect: Mapping[str, Any]) -> None:
    """Write the row of an effect in an open transaction; the effect is the fields of an `Event`."""
    connection.execute(insert(_EFFECTS), {**effect, "at": now()})


def write_at_once(url: str, effect: Mapping[str, Any]) -> None:
    """Write the row of an effect in a transaction of its own, and commit it."""
    with engine_of(url).begin() as connection:
        write(connection, effect)


def committed_rows(url: str) -> list[dict[str, Any]]:
    """Return the effects whose rows are committed, once every transaction that wrote one has ended."""
    with engine_of(url).begin() as connection:
        connection.execute(text("LOCK TABLE effects IN SHARE MODE"))
        return [dict(row) for row in connection.execute(select(_EFFECTS)).mappings()]


def locked_order(connection: Connection, key: str) -> str | None:
    """Lock the row of an order until the transaction ends, and return its result; None if it has none yet."""
    result: str | None = connection.execute(
        select(_ORDERS.c.result).where(_ORDERS.c.key == key).with_for_update()
    ).scalar_one()
    return result


def store_result(connection: Connection, key: str, result: str) -> None:
    """Store the result in the row of an order."""
    connection.execute(update(_ORDERS).where(_ORDERS.c.key == key).values(result=result))


def item_of(table: str, effect: Mapping[str, Any]) -> dict[str, Any]:
    """Return the write, as of DynamoDB's transactions, that puts the item of an effect into a table."""
    item = {"id": {"S": effect["run"]}, "effect": {"S": json.dumps({**effect, "at": now()})}}
    return {"Put": {"TableName": table, "Item": item}}


def committed_items(table: str, **client: Any) -> list[dict[str, Any]]:
    """Return the effects whose items are in a table; ``client`` is boto3's region and endpoint."""
    pages = boto3.client("dynamodb", **client).get_paginator("scan").paginate(TableName=table, ConsistentRead=True)
    return [json.loads(item["effect"]["S"]) for page in pages for item in page["Items"]]
