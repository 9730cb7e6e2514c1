"""The tables of the bank: accounts, and the deposits that their balances are made of."""

from sqlalchemy import ForeignKey
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    """The base of all tables."""


class Account(Base):
    """An account and its balance."""

    __tablename__ = "accounts"

    name: Mapped[str] = mapped_column(primary_key=True)
    balance_cents: Mapped[int] = mapped_column(default=0)


class Deposit(Base):
    """A deposit, which is part of a balance; that it is there once is due to its task's receipt."""

    __tablename__ = "deposits"

    number: Mapped[int] = mapped_column(primary_key=True)
    account: Mapped[str] = mapped_column(ForeignKey("accounts.name"))
    cents: Mapped[int]
