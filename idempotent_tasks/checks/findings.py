"""Findings: the faults that checks report, by code, and why each matters."""

from dataclasses import dataclass
from typing import Final

__all__ = ["WHY", "Finding"]

#: Why each finding matters, by its code. `docs/checks.md` has a section for each.
WHY: Final = {
    "acks-late-off": "the message is acknowledged before the body runs: a worker that dies takes the only copy along",
    "reject-on-worker-lost-off": "a message whose pool process dies counts as failed instead of being delivered again",
    "request-class-replaced": "nobody releases the claim of a process that dies: redeliveries wait until it expires",
    "transport-never-redelivers": "a message whose worker dies is lost, and no guard can bring it back",
    "visibility-below-time-limit": "the broker delivers a message again while its body runs; each such delivery is "
    "deferred, which costs requests and messages until the body ends",
    "prefetch-outlives-visibility": "messages that a worker holds in reserve are delivered again before it starts them",
    "prefetch-unlimited": "a worker takes every message, deferred copies too, and holds them until they are delivered "
    "again",
    "eta-task-limit-low": "copies that wait for a busy key fill what a worker may hold, and it takes no other message",
    "time-limit-ignored": "nothing ends a body that hangs; its claim is renewed for as long as its worker lives",
    "expires-before-redelivery": "a redelivery that comes after the record has expired runs the body again",
    "result-expires-first": "publishers can no longer read a result that a duplicate still gets replayed",
    "broadcast-not-deferred": "a duplicate cannot be published again for one subscriber: it waits in its slot until "
    "the run that it met is over, and fails if its time limit comes first",
    "queue-limits-unknown": "a worker may hold deferred copies for longer than the queue lets it, and SQS delivers "
    "them again, until they are dead letters",
    "pickled-results": "pickle runs code when it is read: whoever can write to the table or the bucket can run code in "
    "the workers",
    "results-bucket-refuses": "large results are returned but not stored, and replays of those that are wait for it",
    "results-bucket-keeps": "large results stay in the bucket, and are paid for indefinitely",
    "results-bucket-expires-first": "a replay fails whose result S3 has deleted before the record expired",
    "delivery-limit-below-max-crashes": "RabbitMQ drops the message before CrashLoopError makes the failure visible",
    "settings-changed": "what an old store holds is not seen in a new one, and any other change is ignored",
    "prefix-shared": "a delivery of one task can be given the result of the other, or wait for it",
    "celery-unsupported": "the hooks that release the claims of dead processes are not as this library uses them",
    "store-unreachable": "no delivery can claim its key; all of them are deferred until the store answers",
    "store-refuses": "no delivery can claim its key; all of them are deferred until the configuration is fixed",
    "table-missing": "no delivery can claim its key; all of them are deferred until the table is there",
    "table-key-schema": "no delivery can claim its key; all of them are deferred until store and table agree",
    "table-ttl-off": "records that have expired stay in the table, and are paid for indefinitely",
    "permission-missing": "what needs this action fails; without UpdateItem every delivery is deferred",
    "clock-offset": "countdowns, expiries of messages and signatures of requests go by this machine's clock, and AWS "
    "refuses requests when it is 5 minutes off",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """A fault of the configuration, the broker or the store that weakens the guarantee."""

    #: One of `WHY`.
    code: str
    #: What was found, and where.
    what: str
    #: The fix, with the text to paste.
    remedy: str

    def __post_init__(self) -> None:
        if self.code not in WHY:
            raise ValueError(f"no kind of finding is called {self.code!r}")

    @property
    def why(self) -> str:
        """Why it matters."""
        return WHY[self.code]

    def __str__(self) -> str:
        return f"{self.code}: {self.what}; {self.why}. Remedy: {self.remedy}"
