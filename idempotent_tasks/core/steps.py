"""Steps: parts of a body whose outcomes are kept, so that later runs of the key take them instead of running again.

`idempotent_tasks.core.stepped` carries them out in a run.
"""

from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, ParamSpec, TypeVar

from idempotent_tasks.core.atomic import Atomic
from idempotent_tasks.core.keys import signature_of
from idempotent_tasks.core.policy import imported_tools
from idempotent_tasks.core.receipts import Receipts
from idempotent_tasks.core.recovery import Recover
from idempotent_tasks.errors import ConfigurationError, StoreError

__all__ = ["INSIDE_TRANSACTION", "RunEnds", "StepCall", "StepCaller", "StepUnkept", "StepUnresolved"]

P = ParamSpec("P")
T = TypeVar("T")

#: The most characters of a step's name.
MOST_NAME_CHARACTERS: Final = 255
#: Why a step is refused that a transaction would undo.
INSIDE_TRANSACTION: Final = (
    "is inside a transaction of receipts=, whose rollback it would outlive; call it before or after"
)
#: What a function returns that has done nothing yet.
_UNBEGUN: Final = (Coroutine, Generator, AsyncGenerator, Atomic)


class RunEnds(BaseException):
    """Ends a body that may not go on; no ``Exception``, so that what the body catches lets it pass."""


class StepUnkept(RunEnds):
    """A step may not begin, or its outcome is not kept, because the claim is lost or the store does not answer."""

    def __init__(self, error: StoreError, *, is_lost: bool = False) -> None:
        super().__init__(error, is_lost)
        #: What a later delivery may try again after.
        self.error = error
        #: Whether another delivery may have the key.
        self.is_lost = is_lost


class StepUnresolved(RunEnds):
    """Nobody knows whether an earlier run has done a step."""

    def __init__(self, reason: str, error: Exception | None = None) -> None:
        super().__init__(reason, error)
        #: As in `idempotent_tasks.core.guard.Unresolved`.
        self.reason = reason
        self.error = error


@dataclass(frozen=True, kw_only=True, slots=True)
class StepCall:
    """One call of ``self.idempotency.step()``."""

    name: str
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    #: What a rerun asks that does not find the step; None to run it.
    recover: Callable[..., Any] | None = None
    #: Where its effect commits with its receipt; None for nowhere.
    receipts: Receipts | None = None

    @property
    def unfit(self) -> str | None:
        """Why ``recover`` cannot be called with what the function is called with; None if it can."""
        asked = signature_of(self.recover) if self.recover is not None else None
        try:
            if asked is not None:
                asked.bind("record", *self.args, **self.kwargs)
        except TypeError as error:
            return f"has recover=, which cannot be called with the record and the step's own arguments: {error}"
        return None

    def run(self, task: str | None = None, key: str | None = None) -> Any:
        """Call the function, and check what it returns."""
        value = self.function(*self.args, **self.kwargs)
        self.check(value, task, key)
        return value

    def check(self, value: object, task: str | None = None, key: str | None = None) -> None:
        """Refuse what the function returned, if it has not begun yet and nobody here would carry it out.

        Args:
            value: what it returned.
            task, key: of the run.

        Raises:
            ConfigurationError: it is a coroutine, a generator or `Atomic`.
        """
        if not isinstance(value, _UNBEGUN):
            return
        if isinstance(value, Coroutine):
            # Else Python warns that nobody has awaited it.
            value.close()
        remedy = "return it from the body" if isinstance(value, Atomic) else "have the function carry it out"
        msg = f"step {self.name!r} returned a {type(value).__name__}, of which nothing is done yet: {remedy}"
        raise ConfigurationError(msg, task, key)


@dataclass(frozen=True, slots=True)
class StepCaller:
    """``self.idempotency.step``: runs a part of the body once for each fresh start of the key, and keeps its result.

    A run that comes after a crash, a retry or a deployment gets the result that is kept.  A step is known by its name,
    whatever stands before or after it.  A crash between the function's effect and the write of its result has the next
    run call the function again; `options` has the tools that close this.
    """

    #: Carries a step out, in whichever run it is.
    perform: Callable[[StepCall], Any]
    _recover: Callable[..., Any] | None = None
    _receipts: Receipts | None = None

    def __call__(self, name: str, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function with arguments, or return the result that is kept of an earlier call under this name.

        Args:
            name: of the step, 1 to 255 characters, once in a run: name what it is about, as ``f"charge {item}"``.
            function: its effect.
            args, kwargs: the function's; plain values, as for a key.

        Returns:
            The result as it is stored and read back, so that the first run and a later one see the same.

        Raises:
            ConfigurationError: the name was used in this run already or cannot be one; the key has 500 steps; a
                transaction of receipts is open; the run was handed over; the store keeps no steps; or the function has
                returned a coroutine, a generator or `Atomic`, of which nothing is done.
            KeyEncodingError: an argument has no canonical form.
            StepMismatchError: an earlier run has called the step with other arguments.
            ResultEncodingError: the function has returned, and its result cannot be stored; it is not called again.
            ResultUnavailableError: an earlier run has done the step, and its result was not stored, or is gone.
            BaseException: what the function raises; the step is not kept then.  Where the body may not go on, because
                its claim is lost or the store does not answer, its run is ended by one that is no ``Exception``.
        """
        call = StepCall(
            name=_checked(name, function),
            function=function,
            args=args,
            kwargs=kwargs,
            recover=self._recover,
            receipts=self._receipts,
        )
        result: T = self.perform(call)
        return result

    def options(self, *, recover: Recover | None = None, receipts: Receipts | str | None = None) -> "StepCaller":
        """Return a caller whose steps have a tool of their own.

        Args:
            recover: called by a rerun that does not find the step, as ``recover(record, *args, **kwargs)`` with the
                step's arguments; returns `Done`, `NotDone` or `Unknown`.  The task needs ``settle=``.
            receipts: the function runs in a transaction of this database, and commits with the step's receipt.

        Raises:
            ConfigurationError: both are given, or one is not what it takes.
        """
        if recover is not None and receipts is not None:
            msg = "recover= has no effect beside receipts=, which tells what was done: drop one of them"
            raise ConfigurationError(msg)
        asked, kept = imported_tools(recover, receipts)
        return replace(self, _recover=asked, _receipts=kept)


def _checked(name: object, function: object) -> str:
    if not isinstance(name, str) or not name.strip() or len(name) > MOST_NAME_CHARACTERS or not name.isprintable():
        shown = f"{type(name).__name__}" if not isinstance(name, str) else f"text of {len(name)} characters"
        msg = f"a step's name is a printable text of 1 to {MOST_NAME_CHARACTERS} characters, not a {shown}"
        raise ConfigurationError(msg)
    if not callable(function):
        msg = f"step {name!r} takes a function and its arguments, and got a {type(function).__name__}: do not call it"
        raise ConfigurationError(msg)
    return name
