"""A run in one transaction with its receipt: begun, lost and run again, found done by another run, or committed."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Final

from idempotent_tasks.core.lease import RunContext
from idempotent_tasks.core.receipts import WHOLE_BODY, Following, Receipt, Receipts, ReceiptTransaction, TransactionLost
from idempotent_tasks.core.records import Outcome, Unanswered
from idempotent_tasks.core.retry import RetryingStore, while_lost
from idempotent_tasks.errors import ConfigurationError, ResultEncodingError, StoreError, StoreUnavailableError

__all__ = ["TransactedRun", "has_receipt"]

#: The part of the time that is left for which a transaction waits for another one that holds its row.
WAIT_PART: Final = 1 / 4


@dataclass(kw_only=True, eq=False)
class TransactedRun:
    """The run of a claim whose task has receipts."""

    run: RunContext
    #: The name of the step that it is the run of; `WHOLE_BODY` for the body.
    step: str = WHOLE_BODY
    #: The digest of the step's arguments; None for the body.
    inputs: str | None = None
    receipts: Receipts
    following: Following
    store: RetryingStore
    body: Callable[[RunContext], Any]
    #: Runs a body to its outcome, and passes on what is none.
    run_body: Callable[[RunContext, Callable[[RunContext], Any]], None]
    #: Returns the outcome of a body that has ended, and why its result cannot be encoded.
    encode: Callable[[], tuple[Outcome, ResultEncodingError | None]]
    is_final: Callable[[BaseException], bool]
    #: Whether the body may run again at once in a transaction that the database has lost: not where it has effects
    #: elsewhere that somebody must be asked about.
    is_repeatable: bool = True
    #: Whether the outcome is known, so that the body does not run.
    _known: bool = field(init=False, default=False)
    #: What came when the body had ended, and nobody knows whether the transaction is committed: raised if it is not.
    instead: BaseException | None = field(init=False, default=None)

    def perform(self) -> Unanswered | None:
        """Run the body, or take an outcome that is known; leave it in ``run.receipt``, unless the run is handed over.

        Returns:
            None; or what has failed that a later delivery may try again, whose effect was not made or has its receipt.

        Raises:
            BaseException: what the body raised, no final failure; the transaction is rolled back.
            ConfigurationError: the store's claims have no generation; or as `Receipts.begin` and
                `ReceiptTransaction.commit`.
            ResultEncodingError: the result cannot be encoded; the transaction is rolled back.
        """
        run = self.run
        if not run.claim.generation:
            msg = "receipts= needs a store whose claims have a generation, as Store.claim says"
            raise ConfigurationError(msg, run.claim.request.task, run.key)
        # Until its receipt is there, the run has no outcome.
        self._known, run.ended, run.asking = run.ended, False, True
        answer = self._kept()
        if answer is None and run.failure is not None and run.receipt is None:
            # What a body has written that failed is rolled back; the failure has a transaction of its own.
            self._known = True
            answer = self._kept()
        if answer is not None or run.handed_over:
            run.ended = answer is None
            return answer
        run.ended = True
        return self._send_following()

    def _kept(self) -> Unanswered | None:
        try:
            return while_lost(self._transact, self.store.clock)
        except TransactionLost as lost:
            if lost.is_certain:
                raise lost.error from None
            return self._unavailable("its database did not answer whether the transaction is committed")

    def _transact(self) -> Unanswered | None:
        """Try one transaction.

        Raises:
            TransactionLost: it is to be tried again.
        """
        run = self.run
        try:
            transaction = _begun(self.receipts, run, self.store, self.step)
        except StoreError as error:
            return self._answered(error)
        try:
            return self._within(transaction)
        finally:
            run.transaction = None
            transaction.rollback()

    def _within(self, transaction: ReceiptTransaction) -> Unanswered | None:
        run = self.run
        if transaction.found is not None:
            return self._take(transaction.found)
        if self.instead is not None:
            raise self.instead
        if not self._known:
            if run.claim_has_ended():
                return self._unavailable("the claim ended before its transaction began")
            self._run_in(transaction)
            if run.handed_over or run.failure is not None:
                return None
        try:
            return self._commit(transaction)
        except self.store.interrupts as interrupt:
            self.instead = interrupt
            raise TransactionLost(interrupt, is_certain=False) from interrupt

    def _run_in(self, transaction: ReceiptTransaction) -> None:
        """Run the body in a transaction."""
        run = self.run
        if not run.asking:
            run.begin_again()
        run.asking, run.transaction = False, transaction
        try:
            self.run_body(run, lambda run: self._flushed(run, transaction))
        except Exception as error:
            self._refuse_lost(error, transaction)
            raise
        finally:
            run.ended = False
        if run.failure is not None:
            self._refuse_lost(run.failure, transaction)

    def _flushed(self, run: RunContext, transaction: ReceiptTransaction) -> Any:
        value = self.body(run)
        if not run.handed_over:
            transaction.flush()
        return value

    def _refuse_lost(self, error: BaseException, transaction: ReceiptTransaction) -> None:
        """Raise `TransactionLost` for an error of the body by which the database asks to run it again."""
        if self.is_repeatable and not self.run.handed_over and transaction.is_lost(error):
            raise TransactionLost(error) from error

    def _commit(self, transaction: ReceiptTransaction) -> Unanswered | None:
        run = self.run
        outcome, unwritable = self.encode()
        if unwritable is not None and not run.result_ignored:
            raise ResultEncodingError(unwritable.message, run.claim.request.task, run.key)
        begun = Receipt.of(run.claim, self.store.clock.now(), self.step)
        following = self.following.encode(run.following, run.claim, self.step)
        receipt = replace(begun, outcome=outcome, inputs=self.inputs, following=following)
        # Last of all: the outcome may have gone to a bucket first.
        if not self._known and self._is_passed_by and run.claim_has_ended():
            return self._unavailable("the claim ended before its transaction was committed")
        try:
            transaction.commit(receipt)
        except TransactionLost as lost:
            if not self.is_repeatable:
                self.instead = lost.error
            raise
        except StoreError as error:
            return self._answered(error)
        except Exception as error:
            if self._known or not self.is_final(error):
                raise
            run.failure = error
            return None
        run.receipt = receipt
        return None

    @property
    def _is_passed_by(self) -> bool:
        """Whether a later run may never meet the receipt: it fails before the step, or has the lock for another key."""
        return self.step != WHOLE_BODY or self.run.lock is not None

    def _take(self, found: Receipt) -> Unanswered | None:
        """Take the outcome that is in the row: of another run, or of this one if only the answer was lost."""
        run = self.run
        if found.generation > run.claim.generation:
            return self._unavailable("its database has the receipt of a later start of the key")
        run.receipt, run.is_replay = found, found.fence != run.claim.fence
        return None

    def _send_following(self) -> Unanswered | None:
        """Send what must follow, under the same ids whoever sends it."""
        receipt = self.run.receipt
        if receipt is None or not receipt.following:
            return None
        try:
            self.store.despite_interrupts(lambda: self.following.send(receipt.following))
        except Exception as error:  # noqa: BLE001 - a broker's client raises what it likes
            return self._unavailable(f"what follows its transaction cannot be published ({type(error).__name__})")
        return None

    def _unavailable(self, why: str) -> Unanswered:
        return self._answered(StoreUnavailableError(why))

    def _answered(self, error: StoreError) -> Unanswered:
        return Unanswered(type(error)(error.message, self.run.claim.request.task, self.run.key))


def _begun(receipts: Receipts, run: RunContext, store: RetryingStore, step: str = WHOLE_BODY) -> ReceiptTransaction:
    """Begin a transaction of a run's row; see `Receipts.begin`."""
    now = store.clock.now()
    left = min(run.claim.expires_at - now, store.deadline.seconds_left)
    return receipts.begin(Receipt.of(run.claim, now, step), max(left * WAIT_PART, 0.0))


def has_receipt(receipts: Receipts, run: RunContext, store: RetryingStore) -> bool:
    """Return whether an earlier run of a claim's key has left its receipt.

    Raises:
        StoreError, ConfigurationError: as `Receipts.begin`.
    """

    def look() -> bool:
        transaction = _begun(receipts, run, store)
        try:
            return transaction.found is not None
        finally:
            transaction.rollback()

    try:
        return while_lost(look, store.clock)
    except TransactionLost as lost:
        msg = f"its database has rolled back every look for a receipt ({type(lost.error).__name__})"
        raise StoreUnavailableError(msg, run.claim.request.task, run.key) from lost
