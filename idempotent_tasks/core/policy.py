"""`Idempotency`: the options of one task, validated when the task is declared."""

import math
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from datetime import timedelta
from difflib import get_close_matches
from pkgutil import resolve_name
from reprlib import repr as short
from typing import Any, Final, Literal, Self, get_args

from idempotent_tasks.core.encoding import CODECS, JSON, NONE, is_codec
from idempotent_tasks.core.keys import KeySource, Selector, check_prefix
from idempotent_tasks.core.powertools import DEFAULT_HASH, HASHES
from idempotent_tasks.core.receipts import Receipts
from idempotent_tasks.core.records import Record
from idempotent_tasks.core.recovery import Recover
from idempotent_tasks.errors import ConfigurationError

__all__ = [
    "AtPublish",
    "Duration",
    "Idempotency",
    "MissingKey",
    "OnBusy",
    "OnReplay",
    "OnRerun",
    "OnStoreError",
    "check_codes",
    "imported_tools",
    "seconds",
]

#: Seconds, or a ``timedelta``.
Duration = int | float | timedelta
OnBusy = Literal["defer", "wait", "raise", "skip"]
OnRerun = Literal["run", "park"]
OnStoreError = Literal["defer", "raise", "run"]
MissingKey = Literal["raise", "run"]
#: An exception's type, or its name as ``module:name``.
FinalError = type[Exception] | str
#: Takes the replayed result and its record and returns the result; or its name as ``module:name``.
OnReplay = Callable[[Any, Record], Any] | str
AtPublish = Literal["send", "join", "raise"]

_CHOICES: Final[dict[str, Any]] = {
    "on_busy": OnBusy,
    "on_rerun": OnRerun,
    "on_store_error": OnStoreError,
    "missing_key": MissingKey,
    "at_publish": AtPublish,
}
#: The names under which a task class declares its policy.
_ATTRIBUTES: Final = ("idempotency", "idempotency_policy")
#: Powertools would read a failure as a success, and another codec's text as its own JSON.
_NOT_WITH_POWERTOOLS: Final = ("codec", "store_failures")
#: The options that say what a rerun does.
_OF_RERUNS: Final = ("on_rerun", "recover", "settle")
#: For how many seconds an outcome is replayed to its own task id under ``expires=0``: longer than SQS's longest
#: visibility timeout, 12 hours
#: (https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-visibility-timeout.html).
OWN_RETENTION_SECONDS: Final = 86_400.0
#: The key of a task whose runs all exclude each other: a JMESPath literal.
_WHOLE_TASK: Final = "'task'"


@dataclass(frozen=True, kw_only=True)
class Idempotency:
    """Options of one task: which deliveries are duplicates, and what happens to them.

    An option that is not given comes from the app's setting ``idempotency_<option>``, else from the default here.
    Durations are seconds or a ``timedelta``.

    Args:
        key: what makes two deliveries the same: a JMESPath expression over the arguments by name, a callable that
            takes the arguments and returns the key, or None for the task id.
        validate: the part of the arguments that must not change between deliveries of one key, as an expression or a
            callable, or None for no part; a delivery that differs fails with `PayloadMismatchError`.
        downstream: what makes two effects in another system the same, as an expression or a callable.
            ``self.idempotency.downstream_key`` is made of it alone, and outlives a change of the task's name or key.
            Begin it with a literal of the task's own: ``"['charge', order.id]"``.  None for the record's key.
        prefix: separates the keys of different tasks; None for the task's name.  Set it before you rename a task.
        expires: how long an outcome is kept and replayed, in seconds.  0 makes the key a lock: one run at a time, and
            other task ids run when it is over instead of replaying; the same task id, delivered again, gets its own
            outcome for a day.
        unresolved_for: how long the record of a key is kept while a run of it began and left no outcome, in seconds: so
            long does ``self.idempotency.rerun`` know of that run.
        on_busy: what a delivery does if its key is running: ``defer`` publishes it again for later, ``wait`` waits
            in this worker slot and then defers, ``raise`` fails with `InProgressError`, ``skip`` drops it (for
            periodic tasks; needs a ``key``), unless it is the running task's own message, delivered again, or a link, a
            chain or a chord waits for it.
        wait_timeout: how long ``on_busy="wait"`` waits, in seconds.
        on_rerun: what a delivery does if an earlier run of its key began and left no outcome: ``run`` the body again,
            or ``park`` the key and its messages and fail with `UnresolvedError`, until a person says what came of that
            run (``celery idempotency resolve``): no effect is repeated by itself.
        recover: called before a rerun instead of ``on_rerun``, with the key's `Record` and the arguments of the body:
            asks the other system what came of the earlier run, and returns `Done`, `NotDone` or `Unknown`, which parks
            the key.  If it raises, a later delivery asks again; the fifth time the key is parked.
        settle: for how long what a dead run has requested elsewhere may still be on its way, in seconds: longer than
            the client's time-out.  So long does nobody get the key after a run without an outcome.  Required by
            ``recover``, and by that of a step.
        receipts: where the body's rows are, and a receipt of its result beside them, in one transaction that the
            library opens: ``DjangoReceipts(using="default")`` or ``SQLAlchemyReceipts(engine)``, or its name as
            ``module:name``.  A run that finds the receipt of an earlier one takes its result, whatever ended that one.
            None for no such transaction.
        on_store_error: what a delivery does if the store does not answer its claim: ``defer``, ``raise`` the
            `StoreError`, or ``run`` the body unguarded.
        missing_key: what a delivery does if its key or its ``downstream``, or a part of one, selects nothing: ``raise``
            `MissingKeyError`, or ``run`` the body unguarded.
        lease: claim a key for this many seconds and renew the claim while the body runs; None to claim it for the
            task's whole time limit.  With a lease, the keys of a lost machine are free after one lease.
        grace: how long a claim outlives the task's hard time limit, in seconds.
        max_crashes: after how many crashes in a row a delivery fails with `CrashLoopError`; ``sys.exit()`` in a body
            is a crash too.
        codec: how results are stored: ``json``; ``pickle`` or another serializer of kombu that the app accepts;
            ``none`` to store none, for secrets: a replay returns None.  By default as the app writes results and
            messages.
        store_failures: types of final exceptions: one that the body raises is stored as the key's outcome, and later
            deliveries raise it again; any other exception releases the key.
        on_replay: called with the result and the `Record` of each replay; returns the result.  What it raises is the
            delivery's failure, and the record stays as it is.
        at_publish: what ``apply_async`` does if the key has a task already, queued, running or done: ``send``
            publishes without asking the store, ``join`` publishes nothing and returns that task's result, ``raise``
            raises `DuplicateError`.
        reserve: how long a message may wait in its queue while its key stays reserved for it, in seconds.
        cache: how long an outcome may be replayed from this process's memory without asking the store, in seconds;
            None for not at all.
        powertools: share records with a function under Powertools for AWS Lambda (Python): True, or the name of its
            ``hash_function`` if that is not md5.  ``key`` is required, and ``prefix`` must be its ``key_prefix``.
        silenced_checks: codes of findings about this task that are known and accepted; the setting's are accepted for
            the whole app.

    Raises:
        ConfigurationError: an unknown option, or a value that an option does not take.
    """

    key: KeySource = None
    validate: KeySource = None
    downstream: KeySource = None
    prefix: str | None = None
    expires: Duration = 3600
    unresolved_for: Duration = 14 * 86_400
    on_busy: OnBusy = "defer"
    wait_timeout: Duration = 10
    on_rerun: OnRerun = "run"
    recover: Recover | None = None
    settle: Duration | None = None
    receipts: Receipts | str | None = None
    on_store_error: OnStoreError = "defer"
    missing_key: MissingKey = "raise"
    lease: Duration | None = None
    grace: Duration = 5
    max_crashes: int = 5
    codec: str = JSON
    store_failures: FinalError | Collection[FinalError] = ()
    on_replay: OnReplay | None = None
    at_publish: AtPublish = "send"
    reserve: Duration = 300
    cache: Duration | None = None
    powertools: bool | str = False
    silenced_checks: Collection[str] = ()

    def __new__(cls, **given: Any) -> Self:
        """Note which options were given: settings fill the others only."""
        known = [field.name for field in fields(cls)]
        for name in given:
            if name not in known:
                close = get_close_matches(name, known, n=1)
                hint = f"did you mean {close[0]!r}?" if close else f"fields are {', '.join(known)}"
                raise ConfigurationError(f"Idempotency has no field {name!r}; {hint}")
        self = super().__new__(cls)
        object.__setattr__(self, "_given", frozenset(given))
        return self

    def __post_init__(self) -> None:
        """Validate every value, and compile the selectors once."""
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in get_args(choices):
                raise ConfigurationError(f"{name}={getattr(self, name)!r} is not one of {get_args(choices)}")
        _check_codec(self.codec)
        for name in ("expires", "unresolved_for", "wait_timeout", "grace", "reserve"):
            _check_seconds(name, getattr(self, name), positive=name in ("reserve", "unresolved_for"))
        for name in ("lease", "cache", "settle"):
            if getattr(self, name) is not None:
                _check_seconds(name, getattr(self, name), positive=name != "settle")
        if not isinstance(self.max_crashes, int) or isinstance(self.max_crashes, bool) or self.max_crashes < 1:
            raise ConfigurationError(f"max_crashes={self.max_crashes!r} is not a whole number of at least 1")
        if self.prefix is not None:
            check_prefix(self.prefix)
        for each in self._failures():
            _check_failure(each)
        for name in ("on_replay", "recover"):
            _check_hook(name, getattr(self, name))
        _check_receipts(self.receipts)
        check_codes("silenced_checks", self.silenced_checks)
        self._check_reruns()
        self._check_powertools()
        # What a provider keeps must not depend on whose records the task shares.
        hashes = {"key": self._powertools_hash, "validate": self._powertools_hash, "downstream": None}
        selectors = {
            name: Selector.of(name, getattr(self, name), powertools_hash)
            for name, powertools_hash in hashes.items()
            if getattr(self, name) is not None
        }
        object.__setattr__(self, "_selectors", selectors)

    def __set_name__(self, owner: Any, name: str) -> None:
        """Have a Celery task class refuse to become a task that is not guarded, which would ignore the policy.

        The class may still be a base of guarded tasks, and Python 3.11 hides what is raised here behind a
        ``RuntimeError``: so what is refused is an instance.
        """
        if name in _ATTRIBUTES and hasattr(owner, "apply_async") and not _is_guarded(owner):
            owner.__init__ = _refusing_unguarded(owner, name)

    def _check_reruns(self) -> None:
        problem = None
        if self.recover is not None and self.on_rerun != "run":
            problem = "on_rerun= has no effect beside recover=, which decides what a rerun does: drop one of them"
        elif self.recover is not None and self.settle is None:
            problem = (
                "recover= needs settle=: for how many seconds a request of a dead run may still be on its way, longer "
                "than the client's time-out; before that, the other system is asked too early"
            )
        elif self.settle_seconds > self.unresolved_seconds:
            problem = "settle= is longer than unresolved_for=: by then the record of the earlier run is gone"
        elif (self.parks or self.receipts is not None) and self.on_store_error == "run":
            names = {"recover": "recover=", "settle": "settle=", "receipts": "receipts="}
            given = next((text for name, text in names.items() if getattr(self, name) is not None), "on_rerun='park'")
            problem = f"{given} cannot be had with on_store_error='run', which runs the body whatever came before it"
        if problem is not None:
            raise ConfigurationError(problem)

    def _check_powertools(self) -> None:
        if self.powertools is False:
            return
        if not isinstance(self.powertools, bool | str) or self._powertools_hash not in HASHES:
            msg = f"powertools={self.powertools!r} is neither True nor a hash function, one of {sorted(HASHES)}"
            raise ConfigurationError(msg)
        if self.key is None:
            msg = (
                "powertools=True needs key=: Powertools digests a part of the event, and a task id is no part of it; "
                "name the argument that is its event, or the part that its event_key_jmespath selects"
            )
            raise ConfigurationError(msg)
        if self.expires_at_once:
            raise ConfigurationError("powertools=True cannot be had with expires=0: Powertools knows no locks")
        defaults = {field.name: field.default for field in fields(self)}
        for name in _NOT_WITH_POWERTOOLS:
            if name in defaults and getattr(self, name) != defaults[name]:
                raise ConfigurationError(f"powertools=True cannot be had with {name}=: Powertools could not read it")

    @property
    def _powertools_hash(self) -> str | None:
        return DEFAULT_HASH if self.powertools is True else self.powertools or None

    @classmethod
    def exclusive(cls, *, key: KeySource = None, **options: Any) -> Self:
        """Return the policy of a task that must not overlap itself, such as a periodic one.

        While one runs, other task ids are dropped (``on_busy="skip"``); when it is over, the next one runs instead of
        replaying (``expires=0``).  The same task id, delivered again, waits for its own run and gets its outcome.

        Args:
            key: which runs exclude each other, as for `Idempotency`; None for all runs of the task.
            options: other options, such as ``on_busy="defer"`` to have the others wait their turn.

        Raises:
            ConfigurationError: as `Idempotency`; or ``expires`` is given.
        """
        if "expires" in options:
            raise ConfigurationError("exclusive() takes no expires=: nothing is replayed to other task ids")
        return cls(**{"on_busy": "skip", **options, "key": _WHOLE_TASK if key is None else key, "expires": 0})

    @property
    def expires_at_once(self) -> bool:
        """Whether no outcome is replayed to another task id."""
        return seconds(self.expires) == 0

    @property
    def retention_seconds(self) -> float:
        """For how many seconds an outcome is kept."""
        return OWN_RETENTION_SECONDS if self.expires_at_once else seconds(self.expires)

    @property
    def unresolved_seconds(self) -> float:
        """For how many seconds a record without an outcome is kept."""
        return seconds(self.unresolved_for)

    @property
    def settle_seconds(self) -> float:
        """For how many seconds what a run has requested elsewhere may outlive it."""
        return 0.0 if self.settle is None else seconds(self.settle)

    @property
    def parks(self) -> bool:
        """Whether a key may be parked: who asks about an earlier run, or about a step of it, gives ``settle``."""
        return self.on_rerun == "park" or self.settle is not None

    @property
    def key_selector(self) -> Selector | None:
        """`key`, compiled."""
        return self._compiled("key")

    @property
    def validate_selector(self) -> Selector | None:
        """`validate`, compiled."""
        return self._compiled("validate")

    @property
    def downstream_selector(self) -> Selector | None:
        """`downstream`, compiled."""
        return self._compiled("downstream")

    @property
    def final_errors(self) -> tuple[type[Exception], ...]:
        """The exception types of `store_failures`, without those named as text: see `imported`."""
        return tuple(each for each in self._failures() if isinstance(each, type))

    @property
    def imported_receipts(self) -> Receipts | None:
        """`receipts`; None where they are named as text: see `imported`."""
        return None if isinstance(self.receipts, str) else self.receipts

    def imported(self) -> "Idempotency":
        """Return this policy with every ``module:name`` imported.

        Raises:
            ConfigurationError: a name cannot be imported, or is nothing that the field takes.
        """
        found = {
            "store_failures": tuple(_imported("store_failures", each) for each in self._failures()),
            "on_replay": _imported("on_replay", self.on_replay),
            "recover": _imported("recover", self.recover),
            "receipts": _imported("receipts", self.receipts),
        }
        named = {name: each for name, each in found.items() if each != getattr(self, name) and name in self.given}
        return Idempotency(**{**self.given, **named}) if named else self

    def _failures(self) -> tuple[FinalError, ...]:
        listed = self.store_failures
        if isinstance(listed, type | str) or not isinstance(listed, Collection):
            return (listed,)
        return tuple(listed)

    def _compiled(self, name: str) -> Selector | None:
        selectors: dict[str, Selector] = self.__dict__["_selectors"]
        return selectors.get(name)

    @classmethod
    def of(cls, value: "Idempotency | Mapping[str, Any] | None") -> "Idempotency":
        """Return the policy that a task declares: a policy, a mapping of its fields, or None for the defaults.

        Raises:
            ConfigurationError: it is something else, or names a field that does not exist.
        """
        if isinstance(value, Idempotency):
            return value
        if value is None:
            return cls()
        if isinstance(value, Mapping):
            return cls(**value)
        raise ConfigurationError(f"idempotency={value!r} is neither an Idempotency nor a mapping of its fields")

    @property
    def given(self) -> dict[str, Any]:
        """The options that were given, without defaults."""
        names: frozenset[str] = self.__dict__["_given"]
        return {name: getattr(self, name) for name in names}

    def over(self, defaults: Mapping[str, Any]) -> "Idempotency":
        """Return this policy with ``defaults`` for the options that were not given.

        What it says itself about reruns replaces all that the defaults say about them.
        """
        own = self.given
        if not own.keys().isdisjoint(_OF_RERUNS):
            defaults = {name: each for name, each in defaults.items() if name not in _OF_RERUNS}
        return Idempotency(**{**defaults, **own})


def seconds(duration: Duration) -> float:
    """Return a duration in seconds."""
    return duration.total_seconds() if isinstance(duration, timedelta) else float(duration)


def _is_guarded(task: Any) -> bool:
    return hasattr(task, "policy_under")


def _refusing_unguarded(owner: Any, option: str) -> Callable[..., None]:
    """Return an ``__init__`` for a task class that declares a policy; it refuses instances that are not guarded."""
    own = vars(owner).get("__init__")

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807 - it becomes the method
        if not _is_guarded(self):
            msg = (
                f"{option}= of {owner.__name__} has no effect, because the task is not guarded: declare it with "
                'base=IdempotentTask, or every task of the app with task_cls="idempotent_tasks:IdempotentTask"'
            )
            raise ConfigurationError(msg, self.name)
        init = super(owner, self).__init__ if own is None else own.__get__(self)
        init(*args, **kwargs)

    return __init__


def check_codes(option: str, codes: object) -> frozenset[str]:
    """Validate that codes of findings are a collection of texts.  Return them.

    Raises:
        ConfigurationError: they are not.
    """
    if isinstance(codes, str) or not isinstance(codes, Collection) or not all(isinstance(each, str) for each in codes):
        raise ConfigurationError(f"{option}={short(codes)} is not a list of codes of findings")
    return frozenset(codes)


def _check_codec(codec: object) -> None:
    if codec != NONE and not is_codec(codec):
        known = (*CODECS, NONE)
        raise ConfigurationError(f"codec={codec!r} is not one of {known}, nor another serializer that kombu knows")


def _check_hook(name: str, hook: object) -> None:
    if not (hook is None or callable(hook) or isinstance(hook, str)):
        raise ConfigurationError(f"{name}={hook!r} is neither callable nor a 'module:name'")


def _check_receipts(receipts: object) -> None:
    # A class has all that its instances have.
    if isinstance(receipts, type) or not (receipts is None or isinstance(receipts, Receipts | str)):
        given = f"the class {receipts.__name__}" if isinstance(receipts, type) else f"a {type(receipts).__name__}"
        msg = f"receipts= takes DjangoReceipts(...), SQLAlchemyReceipts(...) or a 'module:name', not {given}"
        raise ConfigurationError(msg)


def _check_failure(kind: object) -> None:
    if not isinstance(kind, str) and not (isinstance(kind, type) and issubclass(kind, Exception)):
        raise ConfigurationError(f"store_failures={short(kind)} is no subclass of Exception, nor a 'module:name'")


def imported_tools(
    recover: Recover | None, receipts: Receipts | str | None
) -> tuple[Callable[..., Any] | None, Receipts | None]:
    """Return what a step is given of its own, with each ``module:name`` imported.

    Raises:
        ConfigurationError: a name cannot be imported, or is not what it has to be.
    """
    asked, kept = _imported("recover", recover), _imported("receipts", receipts)
    _check_hook("recover", asked)
    _check_receipts(kept)
    return asked, kept


def _imported(field: str, value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        found = resolve_name(value)
    except Exception as error:
        raise ConfigurationError(f"{field}={value!r} cannot be imported: {type(error).__name__}: {error}") from error
    if isinstance(found, str):
        raise ConfigurationError(f"{field}={value!r} is only a text")
    return found


def _check_seconds(name: str, value: object, *, positive: bool) -> None:
    length = math.nan
    if isinstance(value, int | float | timedelta) and not isinstance(value, bool):
        with suppress(OverflowError):
            length = seconds(value)
    if not math.isfinite(length) or length < 0 or (positive and length == 0):
        kind = "positive" if positive else "not negative"
        raise ConfigurationError(f"{name}={short(value)} is not a duration: seconds or a timedelta, {kind}")
