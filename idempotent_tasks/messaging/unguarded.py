"""Runs without a claim: of bodies that are called directly, or as a policy or setting allows."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Self

from celery.canvas import maybe_signature

from idempotent_tasks.core.atomic import Atomic, refuse_in_transaction, transacting
from idempotent_tasks.core.delivery import Delivery, read_delivery
from idempotent_tasks.core.keys import step_key
from idempotent_tasks.core.lease import RunContext
from idempotent_tasks.core.policy import Idempotency
from idempotent_tasks.core.processes import this_process
from idempotent_tasks.core.receipts import (
    Receipts,
    ReceiptTransaction,
    TransactionLost,
    check_following,
    session_of,
)
from idempotent_tasks.core.records import ClaimRequest
from idempotent_tasks.core.retry import transacted
from idempotent_tasks.core.steps import INSIDE_TRANSACTION, StepCall, StepCaller
from idempotent_tasks.errors import ConfigurationError, MissingKeyError
from idempotent_tasks.messaging.claim_request import claim_request, downstream_of
from idempotent_tasks.settings import Settings

__all__ = ["Body", "UnguardedRun", "disabled_run"]

#: Runs a body under a run.
Body = Callable[["RunContext | UnguardedRun"], Any]


@dataclass(slots=True)
class UnguardedRun:
    """``self.idempotency`` in a body that runs without a claim: called directly, or as a policy or setting allows."""

    key: str | None = None
    fence: int = 0
    attempt: int = 0
    lost: bool = False
    downstream_key: str | None = None
    run: int = 1
    rerun: bool = False
    #: As of a `RunContext`.
    transaction: ReceiptTransaction | None = field(default=None, compare=False)
    following: list[Any] = field(default_factory=list, compare=False)

    @classmethod
    def of(cls, request: ClaimRequest) -> Self:
        """Return the run of a delivery that does not request its claim, with the keys that the claim would have had."""
        return cls(request.key, downstream_key=request.downstream_key)

    @classmethod
    def keyless(cls, delivery: Delivery, policy: Idempotency, task: Any) -> Self:
        """Return the run of a delivery that has no record's key; it may have one for downstream systems.

        Raises:
            KeyEncodingError, TypeError: as `claim_request`.
        """
        try:
            return cls(downstream_key=downstream_of(delivery, policy, task.run_signature))
        except MissingKeyError:
            return cls()

    @property
    def step(self) -> StepCaller:
        """What runs a part of the body: each time, because no record keeps its result; see `RunContext.step`."""
        return StepCaller(self._run_step)

    def step_key(self, name: str) -> str | None:
        """Return the key to pass to downstream systems for one step; None where the run has none for the body."""
        downstream = self.downstream_key or self.key
        return None if downstream is None else step_key(downstream, name)

    def nothing_done(self) -> None:
        """Do nothing: without a claim, no run is counted."""

    @property
    def session(self) -> Any:
        """The SQLAlchemy session of the body's transaction; see `RunContext.session`."""
        return session_of(self.transaction, key=self.key)

    def after_commit(self, signature: Any) -> None:
        """Have a signature sent after the body's transaction, once at most: no record can send it again.

        See `RunContext.after_commit`.
        """
        check_following(self.transaction, signature, key=self.key)
        self.following.append(signature)

    def perform(self, body: Body, policy: Idempotency, settings: Settings, task: str) -> Any:
        """Run a body under this run; return its result once its writes, and its transaction, are carried out.

        Args:
            body: the body.
            policy: with receipts, the body runs in a transaction of their database, without a row.
            settings: of the app, whose store carries out the writes of `Atomic`, without a record.
            task: the task's name.

        Raises:
            AtomicWriteError: DynamoDB has refused the writes.
            ConfigurationError: the app's store has no transactions, or as `Receipts.begin`.
            StoreError: there was no answer in time; the writes may have been carried out.
            BaseException: what the body, its database or the broker has raised.
        """
        receipts = policy.imported_receipts
        value = body(self) if receipts is None else self._transacted(body, receipts)
        if not isinstance(value, Atomic):
            return value
        refused = transacted(transacting(settings.store, task), value, this_process().token())
        if refused is not None:
            raise value.refused(refused.codes, task)
        return value.result

    def _run_step(self, call: StepCall) -> Any:
        if self.transaction is not None:
            raise ConfigurationError(f"step {call.name!r} {INSIDE_TRANSACTION}", key=self.key)
        return call.run() if call.receipts is None else self._transacted(lambda _: call.run(), call.receipts)

    def _transacted(self, body: Body, receipts: Receipts) -> Any:
        self.transaction = transaction = receipts.begin(None, 0)
        try:
            value = body(self)
            refuse_in_transaction(value, transaction, key=self.key)
            transaction.flush()
            transaction.commit(None)
        except TransactionLost as lost:
            raise lost.error from None
        finally:
            self.transaction = None
            transaction.rollback()
        following, self.following = self.following, []
        for signature in following:
            maybe_signature(signature).apply_async()
        return value


def disabled_run(
    task: Any, settings: Settings, context: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> UnguardedRun:
    """Return the run of a delivery under the kill switch, with the keys that it would have had.

    A service that takes a key must not take this run for another piece of work.

    Args:
        task: the bound `IdempotentTask`.
        settings: of its app.
        context: the delivery's ``celery.app.task.Context``.
        args, kwargs: the body's arguments.
    """
    with suppress(Exception):
        delivery = read_delivery(task.name, context, args, kwargs)
        policy = task.policy_under(settings)
        try:
            return UnguardedRun.of(claim_request(delivery, policy, task.run_signature))
        except MissingKeyError:
            return UnguardedRun.keyless(delivery, policy, task)
    return UnguardedRun()
