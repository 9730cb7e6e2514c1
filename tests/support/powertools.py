"""The two sides of one table: a guarded task of ours, and a function under Powertools for AWS Lambda (Python)."""

from collections.abc import Callable
from typing import Any, Protocol

import pytest
from aws_lambda_powertools.utilities.idempotency import (
    DynamoDBPersistenceLayer,
    IdempotencyConfig,
    idempotent_function,
)
from aws_lambda_powertools.utilities.idempotency.exceptions import (
    IdempotencyAlreadyInProgressError,
    IdempotencyValidationError,
)
from celery import Celery

from idempotent_tasks import IdempotentTask, InProgressError, PayloadMismatchError, Store

__all__ = ["AMOUNT", "KEY", "ORDER", "OTHER_ORDER", "Lambda", "Side", "Tasks", "never"]

PREFIX = "shop"
ORDER = {"id": "ord-17", "amount": 5}
OTHER_ORDER = {"id": "ord-17", "amount": 6}
#: The md5 of the JSON texts ``"ord-17"`` and ``5``.
KEY = f"{PREFIX}#0e4e303644b9b79f5a0443ae68c7b230"
AMOUNT = "e4da3b7fbbce2345d7772b0674a318d5"

#: What a side does for an order; it may let the other side come in between.
Body = Callable[[], Any]


class Side(Protocol):
    """One side."""

    @property
    def busy(self) -> type[Exception]:
        """What tells that the key is running on the other side."""
        ...

    @property
    def mismatch(self) -> type[Exception]:
        """What tells that the key was used with another payload."""
        ...

    def deliver(self, body: Body, order: Any = ORDER) -> Any:
        """Deliver an order once; return the result, or raise what the delivery raises."""
        ...


class Tasks:
    """Our side: an `IdempotentTask`, run in this process."""

    busy = InProgressError
    mismatch = PayloadMismatchError

    def __init__(self, store: Store, **policy: Any) -> None:
        app = Celery("shop", broker="memory://", set_as_current=False)
        app.conf.update(idempotency_store=store, idempotency_observers=[])
        given = {"powertools": True, "prefix": PREFIX, "key": "order.id", **policy}
        self._body: list[Body] = []
        bodies = self._body

        def charge(order: Any) -> Any:
            return bodies[-1]()

        self.task = app.task(charge, base=IdempotentTask, name="shop.charge", shared=False, idempotency=given)

    def deliver(self, body: Body, order: Any = ORDER) -> Any:
        """See `Side.deliver`."""
        self._body.append(body)
        try:
            return self.task.apply(kwargs={"order": order}).get()
        finally:
            self._body.pop()


class Lambda:
    """Their side: a function under ``@idempotent_function``.

    Args:
        layer: arguments of ``DynamoDBPersistenceLayer``.
        remaining_milliseconds: what the Lambda context says is left of the function's time, or None without a context.
        config: arguments of ``IdempotencyConfig``.
    """

    busy = IdempotencyAlreadyInProgressError
    mismatch = IdempotencyValidationError

    def __init__(
        self,
        table: str,
        client: Any,
        *,
        layer: dict[str, str] | None = None,
        remaining_milliseconds: int | None = 30_000,
        **config: Any,
    ) -> None:
        self._remaining_milliseconds = remaining_milliseconds
        self._body: list[Body] = []
        bodies = self._body
        given = {"event_key_jmespath": "id", "raise_on_no_idempotency_key": True, **config}
        powertools_config = IdempotencyConfig(**given)
        if remaining_milliseconds is not None:
            powertools_config.register_lambda_context(self)

        @idempotent_function(
            data_keyword_argument="order",
            persistence_store=DynamoDBPersistenceLayer(table_name=table, boto3_client=client, **(layer or {})),
            config=powertools_config,
            key_prefix=PREFIX,
        )
        def charge(*, order: Any) -> Any:
            return bodies[-1]()

        self._charge = charge

    def get_remaining_time_in_millis(self) -> int:
        """Be the Lambda context that Powertools asks."""
        assert self._remaining_milliseconds is not None
        return self._remaining_milliseconds

    def deliver(self, body: Body, order: Any = ORDER) -> Any:
        """See `Side.deliver`."""
        self._body.append(body)
        try:
            return self._charge(order=order)
        finally:
            self._body.pop()


def never() -> Any:
    """Be a body that must not run."""
    pytest.fail("the body ran although the key was taken")
