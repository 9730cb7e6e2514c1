"""The bank's database: PostgreSQL, or SQLite for its tests."""

import os
from typing import Any

from models import Account, Base
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from idempotent_tasks.receipts.sqlalchemy import SQLAlchemyReceipts

URL = os.environ.get("DATABASE_URL", "postgresql+psycopg://postgres@localhost/shop")
#: In the server: ends the transaction of a worker that is frozen or gone, for whose receipt others wait.
POSTGRESQL: dict[str, Any] = {
    "options": "-c idle_in_transaction_session_timeout=60s -c tcp_keepalives_idle=10"
    " -c tcp_keepalives_interval=5 -c tcp_keepalives_count=3",
    # In the worker: notices that the server's machine is gone.
    "connect_timeout": 5,
    "tcp_user_timeout": 30_000,
}

engine = create_engine(URL, pool_pre_ping=True, connect_args=POSTGRESQL if URL.startswith("postgresql") else {})
receipts = SQLAlchemyReceipts(engine)


def create() -> None:
    """Create the tables, the receipts' among them, and an account."""
    Base.metadata.create_all(engine)
    receipts.create_table()
    with Session(engine) as session, session.begin():
        session.merge(Account(name="ann", balance_cents=0))


if __name__ == "__main__":
    create()
