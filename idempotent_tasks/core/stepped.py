"""The steps of one run: found, asked about, run, and kept."""

from dataclasses import InitVar, dataclass, field
from typing import Any

from idempotent_tasks.core.canonical import UncanonicalError
from idempotent_tasks.core.encoding import NONE
from idempotent_tasks.core.keys import inputs_digest
from idempotent_tasks.core.lease import RunContext
from idempotent_tasks.core.policy import Idempotency
from idempotent_tasks.core.receipts import Following
from idempotent_tasks.core.records import MOST_STEPS, KeptSteps, Lost, Outcome, Step, Unanswered
from idempotent_tasks.core.recovery import Done, NotDone, Unknown
from idempotent_tasks.core.results import Results
from idempotent_tasks.core.retry import RetryingStore
from idempotent_tasks.core.steps import INSIDE_TRANSACTION, RunEnds, StepCall, StepUnkept, StepUnresolved
from idempotent_tasks.core.transaction import TransactedRun
from idempotent_tasks.errors import (
    ConfigurationError,
    KeyEncodingError,
    RecordNotFoundError,
    ResultEncodingError,
    ResultUnavailableError,
    StepMismatchError,
    StoreError,
    StoreMisconfiguredError,
    StoreUnavailableError,
)

__all__ = ["SteppedRun"]


@dataclass(kw_only=True, eq=False)
class SteppedRun:
    """The run of a claim whose body may have steps."""

    run: RunContext
    #: What earlier runs have left.
    kept: InitVar[KeptSteps]
    #: Over a store that no cache answers for.
    store: RetryingStore
    policy: Idempotency
    results: Results
    following: Following | None
    #: By name, the first calls of the body.
    _used: dict[str, StepCall] = field(init=False, default_factory=dict)
    _kept: KeptSteps = field(init=False)
    #: Whether a step's ``recover`` is being asked.
    _asking: bool = field(init=False, default=False)

    def __post_init__(self, kept: KeptSteps) -> None:
        """Begin with what earlier runs have left."""
        self._kept = kept

    def perform(self, call: StepCall) -> Any:
        """Return the result of a step that is kept, or run it and keep its result; see `StepCall`."""
        if self.run.ends is not None:
            raise self.run.ends
        try:
            return self._performed(call)
        except RunEnds as ends:
            # The body cannot go on by catching it.
            self.run.ends = ends
            raise

    def _performed(self, call: StepCall) -> Any:
        inputs = self._checked(call)
        # In one call, because a body may have steps in several threads.
        if self._used.setdefault(call.name, call) is not call:
            raise self._refusal(call.name, "was called before in this run; name what it is about, as f'charge {item}'")
        if call.name in self._kept:
            return self._replayed(call.name, inputs)
        self._refuse_late(call.name)
        outcome = self._done(call, inputs) if call.receipts is None else self._transacted(call, inputs)
        if outcome.codec == NONE:
            raise ResultEncodingError(outcome.error or "", *self._where)
        return self._result(call.name, outcome)

    @property
    def _where(self) -> tuple[str, str]:
        return self.run.claim.request.task, self.run.key

    def _checked(self, call: StepCall) -> str:
        """Refuse a step that cannot be kept, before anything is done; return the digest of its arguments."""
        problem = self._problem(call)
        if problem is not None:
            raise self._refusal(call.name, problem)
        try:
            self.store.stepping  # noqa: B018 - refuses a store that keeps none
            return inputs_digest(call.args, call.kwargs)
        except StoreMisconfiguredError as error:
            raise ConfigurationError(error.message, *self._where) from None
        except UncanonicalError as error:
            msg = f"an argument of step {call.name!r} is {error}; pass ids or other plain values, or none: lambda: f(x)"
            raise KeyEncodingError(msg, *self._where) from None

    def _refusal(self, name: str, problem: str) -> ConfigurationError:
        return ConfigurationError(f"step {name!r} {problem}", *self._where)

    def _problem(self, call: StepCall) -> str | None:
        run, problem = self.run, None
        if run.handed_over:
            problem = "comes after the run has handed its key over, as by retry(throw=False)"
        elif self._asking:
            problem = "is inside recover=, which only looks; call it in the body"
        elif run.transaction is not None or run.part is not None:
            problem = INSIDE_TRANSACTION
        elif call.recover is not None and self.policy.settle is None:
            problem = "has recover=, which needs Idempotency(settle=): how long a dead run's request may be on its way"
        elif call.unfit is not None:
            problem = call.unfit
        elif not run.claim.generation:
            problem = "needs a store whose claims have a generation, as Store.claim says"
        elif call.name not in self._kept and len(self._kept) >= MOST_STEPS:
            problem = f"is one more than the {MOST_STEPS} that a key may have; publish tasks for parts of them"
        return problem

    def _replayed(self, name: str, inputs: str) -> Any:
        step = self._kept.here.get(name)
        if step is None:
            step = self._fetched(name)
        self._refuse_other(name, step.inputs, inputs)
        return self._result(name, Outcome.of_step(step))

    def _refuse_other(self, name: str, kept: str, inputs: str) -> None:
        """Refuse the result of a step that was done with other arguments, by their digests."""
        if kept != inputs:
            msg = (
                f"step {name!r} was done with other arguments by an earlier run of this key: give it a name of its own "
                "for each effect, and arguments that are the same in every run"
            )
            raise StepMismatchError(msg, *self._where, name)

    def _result(self, name: str, outcome: Outcome) -> Any:
        try:
            return self.results.result_of_step(name, outcome, self.run.claim)
        except StoreError as error:
            raise self._unkept(error) from error

    def _fetched(self, name: str) -> Step:
        try:
            return self.store.kept_step(self.run.claim, name)
        except RecordNotFoundError:
            msg = f"step {name!r} was done by an earlier run, and its item was deleted or has expired"
            raise ResultUnavailableError(msg, *self._where) from None
        except StoreError as error:
            raise self._unkept(error) from error

    def _refuse_late(self, name: str) -> None:
        """End the run where its claim has ended: another delivery may be doing the step."""
        if self.run.claim_has_ended():
            how = "was lost" if self.run.lost else "ended"
            raise self._unkept(StoreUnavailableError(f"the claim {how} before step {name!r} began"), is_lost=True)

    def _done(self, call: StepCall, inputs: str) -> Outcome:
        """Run a step, or take the result that an earlier run's effect has, and keep it; return its outcome.

        An interrupt that comes when the effect is made is raised again once the step is kept.
        """
        is_done, value = False, None
        answer = self._answer(call)
        try:
            if isinstance(answer, Done):
                value, is_done = answer.result, True
            else:
                # On one line, so that no interrupt comes between the two.
                value, is_done = call.function(*call.args, **call.kwargs), True
            return self._keep_value(call, inputs, value)
        except self.store.interrupts:
            if is_done:
                self._keep_value(call, inputs, value)
            raise

    def _keep_value(self, call: StepCall, inputs: str, value: Any) -> Outcome:
        self._refuse_handed_over(call.name)
        call.check(value, *self._where)
        return self._keep(call, inputs, self.results.of_step(call.name, value))

    def _answer(self, call: StepCall) -> Done | NotDone:
        """Return whether an earlier run has done a step, if somebody can be asked."""
        if call.recover is None or not self.run.rerun:
            return NotDone()
        answer = self._asked(call)
        if isinstance(answer, NotDone):
            self._refuse_late(call.name)
        return answer

    def _refuse_handed_over(self, name: str) -> None:
        if self.run.handed_over:
            problem = "has handed the key over, as by retry(throw=False), and cannot be kept: raise the retry"
            raise self._refusal(name, problem)

    def _asked(self, call: StepCall) -> Done | NotDone:
        assert call.recover is not None  # noqa: S101 - asked for by who has one
        try:
            record = self.store.get(self.run.key)
        except StoreError as error:
            raise self._unkept(error) from error
        self._asking = True
        try:
            answer = call.recover(record, *call.args, **call.kwargs)
        except Exception as error:
            if self.run.handed_over:
                # It has published a retry, whose run asks again.
                raise
            raise StepUnresolved(f"{type(error).__name__} of step {call.name!r}", error) from error
        finally:
            self._asking = False
        self._refuse_handed_over(call.name)
        match answer:
            case Done() | NotDone():
                return answer
            case Unknown(reason):
                raise StepUnresolved(f"{reason} of step {call.name!r}")
        msg = (
            f"recover of step {call.name!r} returned a {type(answer).__name__}; "
            "have it return Done(result), NotDone() or Unknown(reason)"
        )
        raise StepUnresolved(ConfigurationError.__name__, ConfigurationError(msg, *self._where))

    def _transacted(self, call: StepCall, inputs: str) -> Outcome:
        """Have the step's effect commit with its receipt; or take the receipt that an earlier run has left."""
        receipts, following, part = call.receipts, self.following, RunContext(self.run.claim, self.store)
        part.lock = self.run.lock
        if receipts is None or following is None:
            raise self._refusal(call.name, "has receipts=, and nothing here sends what follows them")

        def run_part(part: RunContext, body: Any) -> None:
            part.value = body(part)
            self._refuse_handed_over(call.name)
            part.ended = True

        transacted = TransactedRun(
            run=part,
            step=call.name,
            inputs=inputs,
            receipts=receipts,
            following=following,
            store=self.store,
            body=lambda _: call.run(*self._where),
            run_body=run_part,
            encode=lambda: self._stored_part(call.name, part),
            is_final=lambda _: False,
        )
        self.run.part = part
        try:
            answer = transacted.perform()
        finally:
            self.run.part = None
        if answer is not None:
            raise self._unkept(answer.error, is_lost=self.run.claim_has_ended())
        return self._keep_receipt(call, inputs, transacted)

    def _keep_receipt(self, call: StepCall, inputs: str, transacted: TransactedRun) -> Outcome:
        """Keep and return the outcome that is in the database, and the arguments that it was done with."""
        receipt = transacted.run.receipt
        assert receipt is not None  # noqa: S101 - else the transaction was not carried out
        assert receipt.outcome is not None  # noqa: S101 - a row that is committed has one
        committed, done_with = receipt.outcome, receipt.inputs or inputs
        try:
            outcome = self._keep(call, done_with, committed)
        except self.store.interrupts:
            self._keep(call, done_with, committed)
            raise
        self._refuse_other(call.name, done_with, inputs)
        if isinstance(transacted.instead, self.store.interrupts):
            # It came while the commit was under way, and is for the body.
            raise transacted.instead
        return outcome

    def _stored_part(self, name: str, part: RunContext) -> tuple[Outcome, ResultEncodingError | None]:
        outcome = self.results.stored_step(self.results.of_step(name, part.value), part.claim)
        if outcome.codec == NONE:
            return outcome, ResultEncodingError(outcome.error or "", *self._where)
        return outcome, None

    def _keep(self, call: StepCall, inputs: str, outcome: Outcome) -> Outcome:
        """Keep and return a step's outcome."""
        stored = self.results.stored_step(outcome, self.run.claim)
        step = Step(inputs=inputs, codec=stored.codec, data=stored.data, error=stored.error)
        answer = self.store.keep_step(self.run, call.name, step, self._kept)
        match answer:
            case KeptSteps():
                # Another thread may have kept one meanwhile.
                self._kept = self._kept.joined(answer)
                # A result that no store takes is none in the run that has it, either.
                return stored if stored.codec == NONE else outcome
            case Unanswered(error):
                raise self._unkept(type(error)(f"{_not_kept(call)}: {error.message}"))
            case Lost():
                self.run.lose()
                raise self._unkept(StoreUnavailableError(f"{_not_kept(call)}: its claim was lost"), is_lost=True)

    def _unkept(self, error: StoreError, *, is_lost: bool = False) -> StepUnkept:
        return StepUnkept(type(error)(error.message, *self._where), is_lost=is_lost)


def _not_kept(call: StepCall) -> str:
    """Return what becomes of a step that is done, and whose outcome is not in the record."""
    then = "does it again" if call.recover is None else "asks recover"
    then = then if call.receipts is None else "takes its receipt"
    return f"step {call.name!r} is done, and could not be kept, so the next run {then}"
