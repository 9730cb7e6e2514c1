"""The tasks of the histories: the shipped `IdempotentTask` under each policy, with bodies that follow a plan."""

from typing import Any, Final

from idempotent_tasks import Idempotency, IdempotentTask
from idempotent_tasks.core.records import Record
from idempotent_tasks.core.recovery import Recovery
from simulation.app import RECEIPTS, app, world
from simulation.provider import SETTLE_SECONDS

__all__ = [
    "ASKING",
    "ATOMIC_TASKS",
    "DIRECTED_TASKS",
    "EARLY",
    "LEASE_SECONDS",
    "PARKING",
    "PARKING_TASKS",
    "RECEIPT_TASKS",
    "RECOVERING_TASKS",
    "SETTLING_STEPS",
    "STEP_TASKS",
    "TASKS",
    "UNRESOLVED_SECONDS",
    "FinalError",
    "apologise",
    "follow",
]

LEASE_SECONDS: Final = 10
HARD_LIMIT_SECONDS: Final = 8
SOFT_LIMIT_SECONDS: Final = 5
#: Seconds for which the shortest outcome is kept.
BRIEF_SECONDS: Final = 20
#: Seconds for which a record without an outcome is kept, as is the default.
UNRESOLVED_SECONDS: Final = 14 * 86_400.0
#: The task whose messages are acknowledged before its body runs.
EARLY: Final = "early"


class FinalError(Exception):
    """A failure that is the outcome of its key."""


def _declare(name: str, policy: Idempotency, **options: Any) -> Any:
    @app.task(base=IdempotentTask, bind=True, name=name, shared=False, idempotency=policy, **options)
    def body(self: Any, order: str, plan: list[Any], amount: int = 0) -> Any:
        return world().run_body(self, order, plan, amount)

    return body


def _by_order(**more: Any) -> Idempotency:
    return Idempotency(**{"key": "order", "lease": LEASE_SECONDS, "store_failures": FinalError, **more})


def _limited(**more: Any) -> Idempotency:
    return Idempotency(key="order", grace=2, store_failures=FinalError, **more)


_EXCLUSIVE: Final = Idempotency.exclusive(lease=LEASE_SECONDS, on_busy="defer", store_failures=FinalError)
_PER_ORDER: Final = Idempotency.exclusive(key="order", lease=LEASE_SECONDS, store_failures=FinalError)
_CRASHING: Final = _by_order(max_crashes=2)
#: By the policy that they show.
TASKS: Final = {
    "limited": _declare("limited", _limited(), time_limit=HARD_LIMIT_SECONDS),
    "soft": _declare("soft", _limited(), time_limit=HARD_LIMIT_SECONDS, soft_time_limit=SOFT_LIMIT_SECONDS),
    "soft-only": _declare("soft-only", _by_order(), soft_time_limit=SOFT_LIMIT_SECONDS),
    "leased": _declare("leased", _by_order()),
    "leased-limited": _declare("leased-limited", _limited(lease=4), time_limit=HARD_LIMIT_SECONDS),
    "own": _declare("own", Idempotency(lease=LEASE_SECONDS, store_failures=FinalError)),
    "waits": _declare("waits", _by_order(on_busy="wait", wait_timeout=5)),
    "raises": _declare("raises", _by_order(on_busy="raise", on_store_error="raise")),
    "joined": _declare("joined", _by_order(at_publish="join", reserve=30)),
    "refused": _declare("refused", _by_order(at_publish="raise", reserve=30)),
    "validated": _declare("validated", _by_order(validate="amount")),
    "brief": _declare("brief", _by_order(expires=BRIEF_SECONDS)),
    "crashing": _declare("crashing", _CRASHING),
    "cached": _declare("cached", _by_order(cache=30)),
    "exclusive": _declare("exclusive", _EXCLUSIVE, soft_time_limit=SOFT_LIMIT_SECONDS),
    "skipping": _declare("skipping", _PER_ORDER, time_limit=HARD_LIMIT_SECONDS),
    EARLY: _declare(EARLY, _by_order(), acks_late=False),
}


def _ask(record: Record, order: str, plan: list[Any], amount: int = 0) -> Recovery:  # noqa: ARG001 - as the body's
    return world().recover(record, plan)


def _parking(**more: Any) -> Idempotency:
    return _by_order(on_rerun="park", **more)


def _recovering(**more: Any) -> Idempotency:
    return _by_order(recover=_ask, settle=SETTLE_SECONDS, **more)


_PARKED_ONE: Final = Idempotency.exclusive(
    key="order", lease=LEASE_SECONDS, store_failures=FinalError, on_rerun="park", on_busy="defer"
)
_RECOVERED_ONE: Final = Idempotency.exclusive(
    key="order", lease=LEASE_SECONDS, store_failures=FinalError, recover=_ask, settle=SETTLE_SECONDS
)
#: Those whose reruns wait for a person.
PARKING_TASKS: Final = {
    "parks": _declare("parks", _parking()),
    "parks-limited": _declare("parks-limited", _limited(on_rerun="park"), time_limit=HARD_LIMIT_SECONDS),
    "parks-soft": _declare("parks-soft", _parking(), soft_time_limit=SOFT_LIMIT_SECONDS),
    "parks-own": _declare("parks-own", Idempotency(lease=LEASE_SECONDS, store_failures=FinalError, on_rerun="park")),
    "parks-waits": _declare("parks-waits", _parking(on_busy="wait", wait_timeout=5)),
    "parks-joined": _declare("parks-joined", _parking(at_publish="join", reserve=30)),
    "parks-refused": _declare("parks-refused", _parking(at_publish="raise", reserve=30)),
    "parks-exclusive": _declare("parks-exclusive", _PARKED_ONE),
    "parks-crashing": _declare("parks-crashing", _parking(max_crashes=1)),
}
#: Those whose reruns ask first.
RECOVERING_TASKS: Final = {
    "recovers": _declare("recovers", _recovering()),
    "recovers-limited": _declare(
        "recovers-limited",
        _limited(recover=_ask, settle=SETTLE_SECONDS),
        time_limit=HARD_LIMIT_SECONDS,
        soft_time_limit=SOFT_LIMIT_SECONDS,
    ),
    "recovers-soft": _declare("recovers-soft", _recovering(), soft_time_limit=SOFT_LIMIT_SECONDS),
    "recovers-own": _declare(
        "recovers-own",
        Idempotency(lease=LEASE_SECONDS, store_failures=FinalError, recover=_ask, settle=SETTLE_SECONDS),
    ),
    "recovers-waits": _declare("recovers-waits", _recovering(on_busy="wait", wait_timeout=5)),
    "recovers-raises": _declare("recovers-raises", _recovering(on_busy="raise", on_store_error="raise")),
    "recovers-skips": _declare("recovers-skips", _recovering(on_busy="skip")),
    "recovers-joined": _declare("recovers-joined", _recovering(at_publish="join", reserve=30)),
    "recovers-exclusive": _declare("recovers-exclusive", _RECOVERED_ONE),
}

#: Those whose bodies return `Atomic`.
ATOMIC_TASKS: Final = {
    "writes": _declare("writes", _by_order()),
    "writes-limited": _declare("writes-limited", _limited(), time_limit=HARD_LIMIT_SECONDS),
    "writes-leased-limited": _declare("writes-leased-limited", _limited(lease=4), time_limit=HARD_LIMIT_SECONDS),
    "writes-soft": _declare("writes-soft", _by_order(), soft_time_limit=SOFT_LIMIT_SECONDS),
    "writes-own": _declare("writes-own", Idempotency(lease=LEASE_SECONDS, store_failures=FinalError)),
    "writes-brief": _declare("writes-brief", _by_order(expires=BRIEF_SECONDS)),
    "writes-cached": _declare("writes-cached", _by_order(cache=30)),
    "writes-joined": _declare("writes-joined", _by_order(at_publish="join", reserve=30)),
    "writes-raises": _declare("writes-raises", _by_order(on_busy="raise", on_store_error="raise")),
    "writes-exclusive": _declare("writes-exclusive", _EXCLUSIVE),
    "writes-parks": _declare("writes-parks", _parking()),
    "writes-recovers": _declare("writes-recovers", _recovering()),
    "writes-early": _declare("writes-early", _by_order(), acks_late=False),
}


def _with_receipts(policy: Idempotency) -> Idempotency:
    return Idempotency(**{**policy.given, "receipts": RECEIPTS})


#: Those whose bodies write rows that commit with a receipt.
RECEIPT_TASKS: Final = {
    "rows": _declare("rows", _with_receipts(_by_order())),
    "rows-limited": _declare("rows-limited", _with_receipts(_limited()), time_limit=HARD_LIMIT_SECONDS),
    "rows-soft": _declare("rows-soft", _with_receipts(_by_order()), soft_time_limit=SOFT_LIMIT_SECONDS),
    "rows-own": _declare("rows-own", Idempotency(lease=LEASE_SECONDS, store_failures=FinalError, receipts=RECEIPTS)),
    "rows-brief": _declare("rows-brief", _with_receipts(_by_order(expires=BRIEF_SECONDS))),
    "rows-raises": _declare("rows-raises", _with_receipts(_by_order(on_busy="raise", on_store_error="raise"))),
    "rows-exclusive": _declare("rows-exclusive", _with_receipts(_EXCLUSIVE), soft_time_limit=SOFT_LIMIT_SECONDS),
    "rows-parks": _declare("rows-parks", _with_receipts(_parking())),
    "rows-recovers": _declare("rows-recovers", _with_receipts(_recovering())),
    "rows-early": _declare("rows-early", _with_receipts(_by_order()), acks_late=False),
}


def _asking_steps(policy: Idempotency) -> Idempotency:
    return Idempotency(**{**policy.given, "settle": SETTLE_SECONDS})


#: Those whose bodies have steps.
STEP_TASKS: Final = {
    "steps": _declare("steps", _by_order()),
    "steps-limited": _declare("steps-limited", _limited(), time_limit=HARD_LIMIT_SECONDS),
    "steps-soft": _declare("steps-soft", _by_order(), soft_time_limit=SOFT_LIMIT_SECONDS),
    "steps-own": _declare("steps-own", Idempotency(lease=LEASE_SECONDS, store_failures=FinalError)),
    "steps-brief": _declare("steps-brief", _by_order(expires=BRIEF_SECONDS)),
    "steps-cached": _declare("steps-cached", _by_order(cache=30)),
    "steps-joined": _declare("steps-joined", _by_order(at_publish="join", reserve=30)),
    "steps-raises": _declare("steps-raises", _by_order(on_busy="raise", on_store_error="raise")),
    "steps-exclusive": _declare("steps-exclusive", _EXCLUSIVE),
    "steps-parks": _declare("steps-parks", _parking()),
    "steps-asks": _declare("steps-asks", _asking_steps(_by_order())),
    "steps-asks-limited": _declare("steps-asks-limited", _asking_steps(_limited()), time_limit=HARD_LIMIT_SECONDS),
    "steps-early": _declare("steps-early", _by_order(), acks_late=False),
}
#: Those of them that can be asked about.
SETTLING_STEPS: Final = frozenset({"steps-asks", "steps-asks-limited"})
#: All whose reruns wait for a person, and all whose reruns ask first.
PARKING: Final = frozenset({*PARKING_TASKS, "writes-parks", "rows-parks", "steps-parks"})
ASKING: Final = frozenset({*RECOVERING_TASKS, "writes-recovers", "rows-recovers"})

#: Those of directed histories only.
DIRECTED_TASKS: Final = {
    "brief-lock": _declare("brief-lock", Idempotency.exclusive(lease=1.5, on_busy="defer")),
    # So that a claim which is taken early shows, whatever the clocks.
    "graceful": _declare("graceful", Idempotency(key="order", grace=20), time_limit=HARD_LIMIT_SECONDS),
    "strict": _declare("strict", _by_order(at_publish="raise", reserve=30, on_store_error="raise")),
    "writes-unguarded": _declare("writes-unguarded", Idempotency(key="plan.nothing", missing_key="run")),
}


def _follower(name: str) -> Any:
    policy = Idempotency(lease=LEASE_SECONDS)
    return app.task(name=name, bind=True, base=IdempotentTask, shared=False, idempotency=policy)


@_follower("follow")
def follow(self: Any, value: Any, of: str) -> Any:
    """Be what follows a task."""
    world().on_follow("followed", of, self.request.id, value)
    return value


@_follower("apologise")
def apologise(self: Any, failed: str) -> None:
    """Be what follows a task that has failed."""
    world().on_follow("apologised", failed, self.request.id, None)
