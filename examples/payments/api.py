"""The payment service's HTTP API: requests with the same `Idempotency-Key` are charged once."""

from typing import Annotated, Any

from fastapi import FastAPI, Header, HTTPException, Response, status
from pydantic import BaseModel, PositiveInt
from tasks import charge

from idempotent_tasks.errors import KeyEncodingError, MissingKeyError, PayloadMismatchError

api = FastAPI(title="Payments")


class Payment(BaseModel):
    """The body of a request."""

    customer: str
    amount_cents: PositiveInt


class Outcome(BaseModel):
    """The state of a payment, with its receipt once it is charged."""

    task_id: str
    state: str
    receipt: dict[str, Any] | None = None


@api.post("/payments", status_code=status.HTTP_202_ACCEPTED)
def pay(payment: Payment, idempotency_key: Annotated[str, Header()]) -> Outcome:
    """Publish the charge; the task id in the answer leads to its outcome."""
    try:
        published = charge.apply_async(
            (idempotency_key, payment.customer, payment.amount_cents), idempotency_key=idempotency_key
        )
    except (KeyEncodingError, MissingKeyError) as error:
        raise HTTPException(status.HTTP_400_BAD_REQUEST, str(error)) from error
    return Outcome(task_id=published.id, state="PENDING")


@api.get("/payments/{task_id}")
def outcome(task_id: str, response: Response) -> Outcome:
    """Return the outcome, or 202 while there is none."""
    result = charge.AsyncResult(task_id)
    if not result.ready():
        response.status_code = status.HTTP_202_ACCEPTED
        return Outcome(task_id=task_id, state=result.state)
    if isinstance(result.result, PayloadMismatchError):
        raise HTTPException(status.HTTP_409_CONFLICT, "this Idempotency-Key was used for another payment")
    if result.failed():
        raise HTTPException(status.HTTP_502_BAD_GATEWAY, "the charge failed")
    return Outcome(task_id=task_id, state=result.state, receipt=result.result)
