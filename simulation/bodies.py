"""What a body does: a plan, which its message carries, step by step."""

import random
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from celery import chain, group
from celery.exceptions import Ignore, Reject, SoftTimeLimitExceeded

from idempotent_tasks import Atomic
from idempotent_tasks.core.processes import this_process
from simulation.app import RECEIPTS
from simulation.step_bodies import Spec, Steps, new_specs
from simulation.tasks import SETTLING_STEPS, FinalError, follow
from simulation.tills import Writes, writes_of

if TYPE_CHECKING:
    from simulation.world import World

__all__ = [
    "ATOMIC_FEATURES",
    "BODY_FEATURES",
    "RECEIPT_FEATURES",
    "RECOVERIES",
    "RERUN_FEATURES",
    "STEP_FEATURES",
    "STEP_ROWS",
    "Run",
    "new_atomic_plan",
    "new_plan",
    "new_receipt_plan",
    "new_rerun_plan",
    "new_step_plan",
]

Plan = list[Any]

#: What only some histories' bodies do: by name, the steps of which one is in each plan.
BODY_FEATURES: Final[dict[str, tuple[tuple[str, Any], ...]]] = {
    "final-failure": (("fail_finally", 0.5), ("fail_finally", 1)),
    "crash-loop": (("die", 1),),
    "body-rejects": (("reject", True), ("reject", False)),
    "body-ignores": (("ignore", 0.5),),
    "body-replaces": (("replace", "task"), ("replace", "chain"), ("replace", "group")),
    "body-publishes": (("publish", None),),
    "retry-without-raise": (("retry_quietly", 1),),
    "callbacks-changed": (("stop_callbacks", 0.5),),
    "exits": (("exit", 0.5),),
    "out-of-memory": (("exhaust", 0.5),),
    "nothing-done": (("do_nothing", 0.5),),
}
#: What only some histories' ``recover`` does, beside asking the provider.
RECOVERIES: Final = ("raises", "retries", "dies", "exits", "knows-nothing", "is-slow", "returns-none")
#: What only bodies of tasks with ``on_rerun`` or ``recover``, their calls and ``recover`` have.
RERUN_FEATURES: Final = ("gives-up", "large-message", *(f"recover-{each}" for each in RECOVERIES))
#: What only bodies with writes have: by name, which writes.
ATOMIC_FEATURES: Final = {
    "writes-refused": "taken",
    "writes-checked": "checked",
    "writes-own-record": "own-record",
    "writes-many": "many",
    "writes-nothing": "nothing",
}
#: What only bodies with rows have: a constraint that is checked when they are committed, nothing to write, and tasks
#: that follow.
RECEIPT_FEATURES: Final = ("row-refused", "row-refused-finally", "no-row", "follows")
#: What a step in a transaction does: it writes a row, after which a task may have to follow, or hands its run over.
STEP_ROWS: Final = ("row", "row", "row", "row-then", "row-then", "row-handed-over")
#: What only bodies with steps have: they go on where a step has ended them, or call a step with other arguments.
STEP_FEATURES: Final = ("end-swallowed", "other-arguments")
#: What that constraint says.
_REFUSALS: Final[dict[str, type[Exception]]] = {"row-refused": ValueError, "row-refused-finally": FinalError}
#: Steps that are done with the likelihood that is their argument, and only while things go wrong.
_CHANCES: Final = frozenset(
    {"fail", "fail_finally", "die", "exit", "exhaust", "ignore", "stop_callbacks", "do_nothing", "give_up", "spoil"}
)
#: Of a message: not all of them fit into a record, and two do not.
LARGE_BYTES: Final = (180_000, 180_000, 320_000)
#: Characters of a result that goes into the bucket.
LARGE: Final = 200


class _Unwritable:
    """A result that has no JSON form."""


def new_plan(draw: random.Random, features: frozenset[str]) -> Plan:
    """Return the plan of one message."""
    sleeps = [0.01, draw.uniform(0, 3), draw.uniform(0, 15)]
    plan: Plan = [
        ("sleep", round(draw.choice(sleeps), 3)),
        ("retry", draw.choice([0, 0, 0, 1, 2])),
        ("effect", None),
        ("fail", draw.choice([0, 0, 0.5])),
        ("die", draw.choice([0, 0, 0, 0.3])),
        ("sleep", round(draw.choice([0.0, draw.uniform(0, 3)]), 3)),
    ]
    for feature in sorted(features & BODY_FEATURES.keys()):
        plan.insert(draw.randrange(len(plan) + 1), (*draw.choice(BODY_FEATURES[feature]), feature))
    results = [each for each in ("large-result", "unwritable-result") if each in features]
    plan.append(("return", draw.choice([None, *results, *results])))
    if "catches-interrupt" in features:
        plan.insert(0, ("catch", draw.choice([True, False])))
    return plan


def new_rerun_plan(draw: random.Random, features: frozenset[str]) -> Plan:
    """Return the plan of one message of a task with ``on_rerun`` or ``recover``: it has its effect at the provider."""
    plan = new_plan(draw, features)
    effect = next(place for place, each in enumerate(plan) if each[0] == "effect")
    plan.insert(effect + 1, ("charge", None))
    if "gives-up" in features:
        # What has no effect yet may say so.
        plan.insert(draw.randint(0, effect), ("give_up", 0.5, "gives-up"))
    recoveries = [each for each in RECOVERIES if f"recover-{each}" in features]
    if recoveries:
        plan.append(("ask", [draw.choice(recoveries), draw.choice([0.5, 1])]))
    if "large-message" in features:
        # With its base 64, some of them fit alone, and none fits twice.
        plan.append(("carry", draw.randbytes(draw.choice(LARGE_BYTES)).hex(), "large-message"))
    return plan


def new_atomic_plan(draw: random.Random, features: frozenset[str]) -> Plan:
    """Return the plan of one message of a task whose effect is a write to DynamoDB; now and then it has none."""
    plan, own = new_plan(draw, features), sorted(features & ATOMIC_FEATURES.keys())
    kinds: list[tuple[str, ...]] = [("adds",), ("adds",), ("adds",), *((ATOMIC_FEATURES[each], each) for each in own)]
    if draw.random() < 0.9:
        effect = next(place for place, each in enumerate(plan) if each[0] == "effect")
        plan.insert(effect + 1, ("write", *draw.choice(kinds)))
    return plan


def new_receipt_plan(draw: random.Random, features: frozenset[str], *, asks: bool) -> Plan:
    """Return the plan of one message of a task whose effect is a row; of one that ``asks``, also at the provider."""
    plan = new_rerun_plan(draw, features) if asks else new_plan(draw, features)
    has_row = "no-row" not in features or draw.random() < 0.5
    kinds = ["usual", *(each for each in sorted(_REFUSALS) if each in features)]
    steps: Plan = [("row", draw.choice(kinds))] if has_row else []
    if "follows" in features and draw.random() < 0.8:
        steps.append(("then", None, "follows"))
    effect = next(place for place, each in enumerate(plan) if each[0] == "effect")
    if not has_row:
        plan[effect] = ("effect", None, "no-row")
    for step in steps:
        plan.insert(draw.choice([effect, effect + 1]), step)
    if plan[-1] == ("return", "unwritable-result"):
        # Without a receipt each copy runs the body again: for ever, if there were one for each that has failed.
        plan[-1] = ("spoil", 1.0, "unwritable-result")
    return plan


def new_step_plan(draw: random.Random, features: frozenset[str], rows: Mapping[str, str], *, asks: bool) -> Plan:
    """Return the plan of one message of a task whose body has steps.

    Args:
        draw: the history's random numbers.
        features: of the history.
        rows: by the names of the steps that write a row: one of `STEP_ROWS`.
        asks: whether the others can be asked about.
    """
    plan = new_plan(draw, features)
    for spec in new_specs(draw, asks=asks):
        if spec["name"] in rows:
            spec["row"] = rows[spec["name"]]
        if "other-arguments" in features and draw.random() < 0.2:
            spec["inputs"] = 1
        # In any place, also where others are between them.
        plan.insert(draw.randrange(len(plan)), ("call", spec))
    if "end-swallowed" in features:
        plan.insert(0, ("swallow", None))
    return plan


class Run:
    """One run of a body.

    Args:
        world: the history's.
        task: the bound task.
        number: of the run, which is its result.
    """

    def __init__(self, world: "World", task: Any, number: int) -> None:
        self._world = world
        self._task = task
        self._number = number
        self._process: Any = this_process()
        self._result: Any = number
        self._catches = False
        self._writes: Writes | None = None
        self._rows = 0
        self._swallows = False

    def follow(self, plan: Plan) -> Any:
        """Do each step of a plan, and return the body's result."""
        try:
            for step, argument, *feature in plan:
                if step in _CHANCES and not (self._world.faults.active and self._world.draw.random() < argument):
                    continue
                for each in feature:
                    self._world.faults.counts[each] += 1
                # A step's method has its name.
                getattr(self, f"_{step}")(argument)
        except SoftTimeLimitExceeded:
            if not self._catches:
                raise
            self._world.faults.counts["interrupt-caught"] += 1
        if self._task.idempotency.transaction is not None:
            self._world.note("returns", run=self._number, rows=self._rows)
        if self._writes is None:
            return self._result
        changes = sum("ConditionCheck" not in each for each in self._writes)
        self._world.note("returns-writes", run=self._number, key=self._task.idempotency.key, writes=changes)
        return Atomic(self._result, self._writes)

    def _sleep(self, seconds: float) -> None:
        self._world.scheduler.sleep(seconds)

    def _effect(self, _: None) -> None:
        run = self._task.idempotency
        self._world.note("effect", run=self._number, key=run.key, lost=run.lost, downstream=run.downstream_key)

    def _swallow(self, _: None) -> None:
        self._swallows = True

    def _call(self, spec: Spec) -> None:
        asks = self._task.name in SETTLING_STEPS
        Steps(
            self._world,
            self._task.idempotency,
            self._number,
            asks=asks,
            swallows=self._swallows,
            receipts=RECEIPTS,
            write=self._write_in_step,
        ).call(spec)

    def _write_in_step(self, spec: Spec) -> None:
        run = self._task.idempotency
        run.session.insert(self._number)
        if spec["row"] == "row-handed-over" and self._world.faults.active and self._world.draw.random() < 0.5:
            self._world.faults.counts["row-handed-over"] += 1
            self._again(throw=False)
            self._world.note("step-handed-over", run=self._number, name=spec["name"])
            self._world.note("handed-over", id=self._task.request.id)
        if spec["row"] == "row-then":
            run.after_commit(follow.si(self._number, f"{run.key}/then/{spec['name']}/{self._number}"))

    def _catch(self, catches: bool) -> None:  # noqa: FBT001 - a step's argument
        self._catches = catches

    def _fail(self, _: float) -> None:
        raise ValueError("simulated: the body fails")

    def _fail_finally(self, _: float) -> None:
        self._world.note("failed-for-good", run=self._number)
        raise FinalError("simulated: the body fails for good", self._number)

    def _retry(self, times: int) -> None:
        if self._task.request.retries < times:
            raise self._again()

    def _again(self, *, throw: bool = True) -> BaseException:
        """Retry, and note when: the run does no more from here, whenever its release arrives."""
        self._world.note("retries", run=self._number)
        error: BaseException = self._task.retry(countdown=self._world.draw.uniform(0, 5), max_retries=None, throw=throw)
        return error

    def _retry_quietly(self, times: int) -> None:
        if self._task.request.retries < times:
            self._again(throw=False)
            self._world.note("handed-over", id=self._task.request.id)

    def _die(self, _: float) -> None:
        self._world.faults.counts["body-died"] += 1
        self._process.kill()
        self._process.check_alive()

    def _exit(self, _: float) -> None:
        self._world.note("exits", run=self._number)
        sys.exit(1)

    def _exhaust(self, _: float) -> None:
        raise MemoryError("simulated: out of memory")

    def _ignore(self, _: float) -> None:
        self._world.note("ignored-by-body", id=self._task.request.id)
        raise Ignore

    def _reject(self, requeue: bool) -> None:  # noqa: FBT001 - a step's argument
        if self._world.faults.active and self._world.draw.random() < 0.5:
            raise Reject("simulated: the body rejects its message", requeue=requeue)

    def _publish(self, _: None) -> None:
        child = f"{self._task.request.id}-child"
        follow.apply_async((self._number, child), task_id=child)
        self._world.note("published", id=child, order=child, task=follow.name)

    def _replace(self, kind: str) -> None:
        # Each run sends another replacement.
        of = f"{self._task.request.id}-{kind}-{self._number}"
        self._world.note("replaced", id=self._task.request.id)
        signatures = {
            "task": follow.si(self._number, of),
            "chain": chain(follow.si(self._number, of), follow.s(f"{of}-end")),
            "group": group(follow.si(self._number, f"{of}-{place}") for place in range(2)),
        }
        raise self._task.replace(signatures[kind])

    def _stop_callbacks(self, _: float) -> None:
        self._world.note("callbacks-stopped", id=self._task.request.id, run=self._number)
        self._task.request.callbacks = None

    def _stop_callbacks_at_first(self, _: None) -> None:
        if not self._task.idempotency.tries:
            self._stop_callbacks(1)

    def _do_nothing_at_first(self, _: None) -> None:
        if not self._task.idempotency.tries:
            self._do_nothing(1)

    def _do_nothing(self, _: float) -> None:
        self._world.note("nothing-done", run=self._number)
        self._task.idempotency.nothing_done()

    def _give_up(self, _: float) -> None:
        self._do_nothing(0)
        raise self._again()

    def _write(self, kind: str) -> None:
        run = self._task.idempotency
        # A run without a record is the only one of its own key, which is only in the app's table.
        claim = getattr(run, "claim", None)
        key, generation = run.key or f"unguarded-{self._number}", 0 if claim is None else claim.generation
        self._writes = writes_of(kind, key, self._number, generation, self._world.draw)

    def _row(self, kind: str) -> None:
        refusal = _REFUSALS.get(kind) if self._world.faults.active else None
        if refusal is not None:
            self._world.faults.counts[kind] += 1
        self._task.idempotency.session.insert(self._number, refusal and refusal("simulated: a constraint"))
        self._rows += 1

    def _then(self, _: None) -> None:
        run = self._task.idempotency
        run.after_commit(follow.si(self._number, f"{run.key}/then/{self._number}"))

    def _charge(self, _: None) -> None:
        try:
            self._world.provider.request(self._task.idempotency.key, self._number)
        except TimeoutError:
            # As with ``autoretry_for``, or without.
            if self._world.draw.random() < 0.3:
                raise
            raise self._again() from None

    def _carry(self, _: str) -> None:
        """Do nothing with what makes the message large."""

    def _ask(self, _: list[Any]) -> None:
        """Do nothing: what ``recover`` does is no step of the body."""

    def _return(self, kind: str | None) -> None:
        if kind is not None:
            self._world.faults.counts[kind] += 1
        if kind == "large-result":
            self._result = {"run": self._number, "text": "x" * LARGE}
        elif kind == "unwritable-result":
            self._spoil(1.0)

    def _spoil(self, _: float) -> None:
        self._result = _Unwritable()
