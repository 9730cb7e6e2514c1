"""The bank's HTTP API: requests with the same `Idempotency-Key` are one deposit."""

from typing import Annotated

from database import engine
from fastapi import FastAPI, Header, HTTPException, Response, status
from models import Account
from pydantic import BaseModel, PositiveInt
from sqlalchemy.orm import Session
from tasks import deposit

from idempotent_tasks import PayloadMismatchError

api = FastAPI(title="Accounts")


class NewDeposit(BaseModel):
    """The body of a request."""

    cents: PositiveInt


class Outcome(BaseModel):
    """The state of a deposit, with its number once it is there."""

    task_id: str
    state: str
    number: int | None = None


@api.post("/accounts/{name}/deposits", status_code=status.HTTP_202_ACCEPTED)
def publish(
    name: str, new: NewDeposit, idempotency_key: Annotated[str, Header(min_length=1, max_length=200)]
) -> Outcome:
    """Publish a deposit, and write nothing: what must be there once is written by the task."""
    # Two customers may choose the same key: each account has its own.
    published = deposit.apply_async((name, new.cents), idempotency_key=f"{name}:{idempotency_key}")
    return Outcome(task_id=published.id, state="PENDING")


@api.get("/deposits/{task_id}")
def outcome(task_id: str, response: Response) -> Outcome:
    """Return the outcome, or 202 while there is none."""
    result = deposit.AsyncResult(task_id)
    if not result.ready():
        response.status_code = status.HTTP_202_ACCEPTED
        return Outcome(task_id=task_id, state=result.state)
    if isinstance(result.result, PayloadMismatchError):
        raise HTTPException(status.HTTP_409_CONFLICT, "this Idempotency-Key was used for another deposit")
    if result.failed():
        raise HTTPException(status.HTTP_502_BAD_GATEWAY, "the deposit failed")
    return Outcome(task_id=task_id, state=result.state, number=result.result)


@api.get("/accounts/{name}")
def account(name: str) -> dict[str, int]:
    """Return the balance of an account."""
    with Session(engine) as session:
        found = session.get(Account, name)
    if found is None:
        raise HTTPException(status.HTTP_404_NOT_FOUND, "there is no such account")
    return {"balance_cents": found.balance_cents}
