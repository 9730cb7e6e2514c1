"""Findings: the faults that checks report, by code, and why each matters."""

import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Final

from idempotent_tasks.errors import ConfigurationError

__all__ = ["PER_TASK", "WHY", "Finding", "check_known", "names_of", "place_of"]

#: How many tasks a text names at most.
MOST_NAMED: Final = 5

#: Why each finding matters, by its code. `docs/reference/checks.md` has a section for each.
WHY: Final = {
    "check-failed": "what this check looks for may be wrong, and nobody would know",
    "acks-late-off": "the message is acknowledged before the body runs: if the worker dies, the message is lost",
    "reject-on-worker-lost-off": "a message whose pool process dies counts as failed instead of being delivered again",
    "request-class-replaced": "the claim of a process that dies is not released: redeliveries wait until it expires",
    "task-not-guarded": "the option has no effect: each delivery of the task's messages runs its body",
    "option-misplaced": "it has no effect: Celery makes an attribute of it, which nobody reads",
    "skip-without-key": "the key is the task id, and each tick of a schedule has its own: two ticks can run at once",
    "key-names-no-parameter": "every delivery of the task fails with MissingKeyError, or runs unguarded under "
    "missing_key='run'",
    "retries-parked": "each retry that Celery makes by itself is a rerun, which is parked for a person instead of "
    "being tried",
    "transport-never-redelivers": "a message whose worker dies is lost, and no guard can bring it back",
    "visibility-below-time-limit": "the broker delivers a message again while its body runs; each such delivery is "
    "deferred, which costs requests and messages until the body ends",
    "visibility-far-above-time-limit": "the message of a worker that is killed is delivered again only when the "
    "visibility timeout has passed",
    "prefetch-outlives-visibility": "messages that a worker has prefetched are delivered again before it starts them",
    "prefetch-unlimited": "a worker prefetches every message, also deferred copies, and holds them so long that the "
    "broker delivers them again",
    "eta-task-limit-low": "deferred copies of one busy key may use up the limit, and then the worker takes no other "
    "message",
    "time-limit-ignored": "nothing ends a body that hangs; its claim is renewed for as long as its worker lives",
    "time-limit-missing": "a body that hangs keeps its process and its key for as long as the worker lives, and "
    "its duplicates are deferred all that time",
    "expires-before-redelivery": "a redelivery that comes after the record has expired runs the body again, and takes "
    "itself for the first run",
    "result-expires-first": "publishers can no longer read a result that is still replayed to duplicates",
    "broadcast-not-deferred": "a duplicate cannot be published again for one subscriber: it waits in its pool slot "
    "until the other run has ended, and fails if its time limit comes first",
    "queue-limits-unknown": "a worker may hold deferred copies for longer than the queue's visibility timeout, and "
    "SQS delivers them again, until they go to the dead-letter queue",
    "pickled-results": "pickle runs code when it is read: whoever can write to the table or the bucket can run code "
    "in the workers",
    "results-bucket-refuses": "new large results are returned but not stored, and replays of stored ones wait until "
    "the bucket works",
    "results-bucket-keeps": "large results stay in the bucket, and AWS bills them indefinitely",
    "results-bucket-expires-first": "S3 deletes a result before its record expires, and then its replays fail",
    "delivery-limit-below-max-crashes": "RabbitMQ drops the message before it fails visibly with CrashLoopError",
    "receipts-table": "no delivery of these tasks, or that comes to such a step, can write its receipt: all are "
    "deferred until one can",
    "receipts-idle": "a delivery of the key cannot tell what a run on a dead host has done, and waits until the "
    "database notices",
    "settings-changed": "records in the old store are not found in the new one, and a change of any other setting is "
    "ignored",
    "prefix-shared": "a delivery of one task can be given the result of the other, or wait for it",
    "downstream-shared": "a system that takes the keys answers the effect of one task with the result of the other's, "
    "and does not carry it out",
    "celery-unsupported": "older Celery lacks the hooks with which this library releases the claims of dead processes",
    "store-unreachable": "no delivery can claim its key: all deliveries are deferred until the store answers",
    "store-refuses": "no delivery can claim its key: all deliveries are deferred until the configuration is fixed",
    "table-missing": "no delivery can claim its key: all deliveries are deferred until the table exists",
    "table-key-schema": "no delivery can claim its key: all deliveries are deferred until store and table agree",
    "table-ttl-off": "expired records stay in the table, and AWS bills them indefinitely",
    "table-replicated": "two Regions can claim one key at the same time and both run its body: the promise holds only "
    "while the workers of one Region use the table",
    "permission-missing": "requests of that kind fail; without UpdateItem every delivery is deferred",
    "prefix-not-allowed": "no delivery of these tasks can claim its key on this worker: all are deferred",
    "older-workers": "a run that such a worker began is known of for expires only, so that a later one may take itself "
    "for the first run",
    "clock-offset": "countdowns, message expiries and request signatures use this machine's clock, and AWS refuses "
    "requests when it is 5 minutes off",
}
#: The codes of findings that are each about some tasks, which can silence them: ``Idempotency(silenced_checks=[...])``.
PER_TASK: Final = frozenset(
    {
        "acks-late-off",
        "delivery-limit-below-max-crashes",
        "downstream-shared",
        "expires-before-redelivery",
        "key-names-no-parameter",
        "older-workers",
        "option-misplaced",
        "pickled-results",
        "prefetch-outlives-visibility",
        "prefix-not-allowed",
        "prefix-shared",
        "reject-on-worker-lost-off",
        "request-class-replaced",
        "receipts-idle",
        "receipts-table",
        "result-expires-first",
        "retries-parked",
        "skip-without-key",
        "time-limit-ignored",
        "time-limit-missing",
        "visibility-below-time-limit",
    }
)


def check_known(codes: Iterable[str], option: str, task: str | None = None) -> None:
    """Validate the codes that an app silences, or a task.

    Args:
        codes: the codes.
        option: where they are set, for the message.
        task: the task that silences them, whose own they must be; None for the app.

    Raises:
        ConfigurationError: no finding has such a code, or the finding is not about a task.
    """
    known = WHY.keys() if task is None else PER_TASK
    for code in sorted(set(codes) - known):
        if code in WHY:
            msg = f"{option} has {code!r}, which is not about single tasks; name it in idempotency_silenced_checks"
        else:
            close = get_close_matches(code, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(sorted(known))}"
            msg = f"{option} has {code!r}, which is no code of a finding; {hint}"
        raise ConfigurationError(msg, task)


def names_of(tasks: Iterable[str]) -> str:
    """Return the names of tasks, `MOST_NAMED` at most, as text."""
    names = list(tasks)
    shown = ", ".join(map(repr, names[:MOST_NAMED]))
    more = len(names) - MOST_NAMED
    return f"task {shown}" if len(names) == 1 else f"tasks {shown}" + (f" and {more} more" if more > 0 else "")


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """A fault of the configuration, the broker or the store that weakens the guarantee."""

    #: One of `WHY`.
    code: str
    #: What was found, and where.
    what: str
    #: The fix, with the text to paste.
    remedy: str
    #: The names of the tasks that it is about; for a code of `PER_TASK` one at least.
    tasks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.code not in WHY:
            raise ValueError(f"no kind of finding is called {self.code!r}")
        if self.code in PER_TASK and not self.tasks:
            raise ValueError(f"a finding {self.code!r} is about tasks; name them")

    @property
    def why(self) -> str:
        """Why it matters."""
        return WHY[self.code]

    def __str__(self) -> str:
        return f"{self.code}: {self.what}; {self.why}. Remedy: {self.remedy}"


def place_of(error: BaseException) -> str:
    """Return where an error was raised, as ``in function (file:line)``."""
    raised = traceback.extract_tb(error.__traceback__)
    return f"in {raised[-1].name} ({raised[-1].filename}:{raised[-1].lineno})" if raised else "somewhere"
