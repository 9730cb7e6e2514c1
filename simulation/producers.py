"""Producers: what is published, with which options, once or twice, alone or in a canvas."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from celery import chain, chord, group

from simulation.app import app
from simulation.bodies import Plan
from simulation.tasks import EARLY, TASKS, apologise, follow

if TYPE_CHECKING:
    from simulation.world import World

__all__ = ["CALL_FEATURES", "Call", "Producer"]

#: What only some histories' calls have, by how likely one call has it.
CALL_FEATURES: Final = {
    "traced": 0.5,
    "odd-headers": 0.5,
    "stamped": 0.5,
    "explicit-key": 0.5,
    "result-ignored": 0.3,
    "error-callback": 0.6,
    "two-keys": 0.5,
    "other-amount": 0.5,
    "chain": 0.5,
    "group": 0.5,
    "chord": 0.7,
}
#: Of these a call has one at most.
_CANVASES: Final = ("chain", "chord", "group")
#: Headers of this library's names with values that no copy of a message has.
_ODD_HEADERS: Final = (
    {"idempotency_deferrals": "many"},
    {"idempotency_deferrals": -1, "idempotency_unseen": "all"},
    {"idempotency_unseen": ["no token", 7], "idempotency_copy": "a/b"},
    {"idempotency_owner": "0" * 32, "idempotency_hard_limit": 0.001, "idempotency_watcher": 1},
)
#: As tracing SDKs leave them (https://github.com/celery/celery/issues/4875).
_TRACE: Final = {"sentry-trace": "1-2-1", "headers": {"sentry-trace": "1-2-1", "baggage": "a=b"}}
#: The part of messages with one link, without a feature.
_LINKED: Final = 0.3
_PUBLISHED_TWICE: Final = 0.3


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call of the history's task."""

    task_id: str
    order: str
    plan: Plan
    amount: int = 0
    options: dict[str, Any]
    #: Whether its signature is stamped.
    stamped: bool = False
    #: What follows it, as `follow` names it.
    followers: tuple[str, ...] = ()


class Producer:
    """Publishes the calls of one history, from a process of its own."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self._draw = world.draw
        self._process = world.new_process("producer")
        self._task = app.tasks[world.history.task]
        self._orders = [f"order-{number}" for number in range(self._draw.choice([1, 1, 1, 2]))]

    def publish_all(self) -> None:
        """Plan some calls, and publish them at random times."""
        for number in range(self._draw.randint(2, 4)):
            self._world.scheduler.after(self._draw.uniform(0, 15), partial(self._begin, number))

    def _begin(self, number: int) -> None:
        call = self._call(number)
        canvas = next((each for each in _CANVASES if self._has(each)), None)
        # What is never over would have the chord wait indefinitely.
        if canvas == "chord" and (self._task is TASKS[EARLY] or "body-ignores" in self._world.features):
            canvas = None
        self._process.spawn(lambda: self._publish_twice(call, canvas), "producer")

    def _publish_twice(self, call: Call, canvas: str | None) -> None:
        self.publish(call, canvas)
        if self._draw.random() < _PUBLISHED_TWICE and canvas is None:
            self._world.scheduler.sleep(self._draw.uniform(0, 10))
            other = self._draw.choice(["another", call.order]) if self._has("two-keys") else call.order
            self.publish(replace(call, order=other), None)

    def _has(self, feature: str) -> bool:
        """Return whether one call has a feature of the history, and count it if so."""
        if feature not in self._world.features or self._draw.random() >= CALL_FEATURES[feature]:
            return False
        self._world.faults.counts[feature] += 1
        return True

    def _call(self, number: int) -> Call:
        task_id, options = f"task-{number}", dict[str, Any]()
        if self._has("traced"):
            options["headers"] = dict(_TRACE)
        if self._has("odd-headers"):
            options["headers"] = {**options.get("headers", {}), **self._draw.choice(_ODD_HEADERS)}
        if self._has("explicit-key"):
            options["idempotency_key"] = self._draw.choice(["call-1", "call-2"])
        if self._has("result-ignored"):
            options["ignore_result"] = True
        if self._has("error-callback"):
            options["link_error"] = apologise.s()
        followers: tuple[str, ...] = ()
        if self._draw.random() < _LINKED:
            followers = (task_id,)
            options["link"] = follow.s(task_id)
            if self._draw.random() < 0.5:  # Else the library assigns one.
                options["link"].set(task_id=f"link-{number}")
        return Call(
            task_id=task_id,
            order=self._draw.choice(self._orders),
            plan=self._world.new_plan(),
            amount=self._draw.randint(1, 2) if self._has("other-amount") else 0,
            options=options,
            stamped=self._has("stamped"),
            followers=followers,
        )

    def publish(self, call: Call, canvas: str | None) -> None:
        """Publish a call, alone or in a canvas, and note what was published; in a strand of a process."""
        send, calls = self._sending(call, canvas)
        try:
            result = send()
        except Exception as error:  # noqa: BLE001 - the producer's business
            self._world.note("not-published", id=call.task_id, why=type(error).__name__)
            return
        if canvas is None:
            # Another's, where the call was joined to it.
            calls = [replace(call, task_id=result.id)]
        for each in calls:
            self._note(each)
        if canvas == "chord":
            self._world.note("chord", ids=[each.task_id for each in calls], of=f"{call.task_id}-chord")

    def _note(self, call: Call) -> None:
        options = call.options
        self._world.note(
            "published",
            id=call.task_id,
            order=call.order,
            key=options.get("idempotency_key"),
            task=self._task.name,
            plan=call.plan,
            followers=call.followers,
            ignored="ignore_result" in options,
            apology="link_error" in options,
            amount=call.amount,
        )

    def _sending(self, call: Call, canvas: str | None) -> tuple[Callable[[], Any], list[Call]]:
        """Return what publishes a call, alone or in a canvas, and all calls that are published."""
        of = call.task_id
        if canvas is None and not call.stamped:
            args = (call.order, call.plan, call.amount)
            return lambda: self._task.apply_async(args, task_id=of, **call.options), [call]
        if canvas == "chain":
            steps = (of, f"{of}-end")
            call = replace(call, followers=(*call.followers, *(f"{each}-chain" for each in steps)))
            following = [follow.s(f"{each}-chain").set(task_id=f"{each}-chain") for each in steps]
            return chain(self._signature(call), *following).apply_async, [call]
        if canvas is None:
            return self._signature(call).apply_async, [call]
        calls = [call, replace(call, task_id=f"{of}-b", plan=self._world.new_plan(), followers=())]
        members = [self._signature(each) for each in calls]
        if canvas == "group":
            return group(members).apply_async, calls
        body = follow.s(f"{of}-chord").set(task_id=f"{of}-chord")
        return chord(members, body).apply_async, calls

    def _signature(self, call: Call) -> Any:
        signature = self._task.s(call.order, call.plan, call.amount).set(task_id=call.task_id)
        options = dict(call.options)
        if call.task_id.endswith("-b"):
            options.pop("link", None)
        for name in ("link", "link_error"):
            if name in options:
                getattr(signature, name)(options.pop(name))
        signature.set(**options)
        if call.stamped:
            signature.stamp(tenant="blue")
        return signature
