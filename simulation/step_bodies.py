"""Bodies with steps, in either world: what the steps are, what they do, and what is noted of them."""

import random
import sys
from collections.abc import Callable
from typing import Any, Final, Protocol

from idempotent_tasks.core.processes import this_process
from idempotent_tasks.core.records import Record
from idempotent_tasks.core.recovery import Done, NotDone, Recovery, Unknown
from idempotent_tasks.core.steps import RunEnds
from idempotent_tasks.errors import StepMismatchError
from simulation.faults import Faults
from simulation.history import History
from simulation.network import Service, SimulatedClient
from simulation.process import check_alive
from simulation.provider import CLIENT_SECONDS, SETTLE_SECONDS
from simulation.scheduler import CLOCK_SECONDS, Scheduler

__all__ = ["KEEP_FAULTS", "Spec", "StepClient", "Steps", "new_specs", "redeployed", "value_of"]

#: A step of a plan: its ``name``, how many ``seconds`` it takes, of how many ``bytes`` its result is, what goes
#: ``wrong`` in it, with which ``chance`` where it is asked about, its ``inputs``, and what it does with a ``row``.
Spec = dict[str, Any]

NAMES: Final = ("charge", "ship 1", "ship 2", "mail", "book", "close")
#: Bytes of a result: some fit into the record, some do so once, and some never do.
SIZES: Final = (0, 0, 0, 700, 1_500, 3_000)
#: What a step does instead of returning, or before it.
MISHAPS: Final = ("raises", "dies", "exits")
#: What ``recover`` of a step does instead of asking.
UNANSWERED: Final = ("recover raises", "recover knows nothing")
#: What befalls a process while it keeps a step.
KEEP_FAULTS: Final = ("killed-in-keep", "stopped-in-keep", "interrupted-in-keep")
#: Seconds within which it is struck after it has sent a write: on the way there, or back.
STRIKE_SECONDS: Final = 0.06
#: The most seconds of a step when nothing goes wrong any more.
CALM_SECONDS: Final = 1.0
#: Seconds of a request's way to the provider, and of its answer's.
_WAY_SECONDS: Final = (0.01, 0.3)


class StepsWorld(Protocol):
    """What a world has for bodies with steps."""

    @property
    def draw(self) -> random.Random:
        """Its random numbers."""

    @property
    def scheduler(self) -> Scheduler:
        """What runs everything."""

    @property
    def faults(self) -> Faults:
        """What goes wrong."""

    @property
    def history(self) -> History:
        """What has happened."""

    @property
    def note(self) -> Callable[..., None]:
        """Notes that something happens."""


def new_specs(draw: random.Random, *, asks: bool) -> list[Spec]:
    """Return the steps of one body, in order."""
    return [_new_spec(draw, name, asks=asks) for name in draw.sample(NAMES, draw.randint(3, 5))]


def _new_spec(draw: random.Random, name: str, *, asks: bool) -> Spec:
    mishaps = MISHAPS + (UNANSWERED if asks else ())
    return {
        "name": name,
        "seconds": round(draw.choice([0.01, draw.uniform(0, 2), draw.uniform(0, 2), draw.uniform(0, 12)]), 3),
        "bytes": draw.choice(SIZES),
        "wrong": draw.choice(["", "", "", draw.choice(mishaps)]),
        "inputs": 0,
    }


def redeployed(draw: random.Random, specs: list[Spec], *, asks: bool) -> list[Spec]:
    """Return the steps of another version of a body: with one more or less, in another order, or changed."""
    others, place = sorted({*NAMES} - {each["name"] for each in specs}), draw.randrange(len(specs))
    match draw.choice(["insert", "remove", "reorder", "change"]):
        case "insert":
            return [*specs[:place], _new_spec(draw, draw.choice(others), asks=asks), *specs[place:]]
        case "remove":
            return [*specs[:place], *specs[place + 1 :]]
        case "reorder":
            return draw.sample(specs, len(specs))
    return [{**each, "inputs": int(each is specs[place])} for each in specs]


def value_of(result: Any) -> str:
    """Return what makes a step's result another one than that of any other call of the function."""
    return str(result["value"])


class Steps:
    """Calls the steps of one run.

    Args:
        world: the history's.
        run: what the body has as ``self.idempotency``.
        number: of the run.
        asks: whether the steps have ``recover``, but for those with a row.
        swallows: whether the body goes on where a step has ended it.
        receipts: where the rows commit.
        write: writes the row of a step.
    """

    def __init__(
        self,
        world: StepsWorld,
        run: Any,
        number: int,
        *,
        asks: bool,
        swallows: bool,
        receipts: Any = None,
        write: Callable[[Spec], None] = lambda _: None,
    ) -> None:
        self._world = world
        self._run = run
        self._number = number
        self._asks = asks
        self._swallows = swallows
        self._receipts = receipts
        self._write = write

    def call(self, spec: Spec) -> None:
        """Call a step, and note what it returns to the body."""
        caller, name, inputs = self._run.step, spec["name"], spec["inputs"]
        if "row" in spec:
            caller = caller.options(receipts=self._receipts)
        elif self._asks:
            caller = caller.options(recover=lambda record, *_: self._recover(record, spec))
        try:
            result = caller(name, lambda *_: self._perform(spec), name, inputs)
        except StepMismatchError:
            self._note("step-mismatched", spec)
            raise
        except RunEnds as ends:
            self._note("step-ended", spec, why=type(ends).__name__, is_lost=getattr(ends, "is_lost", False))
            if not self._swallows:
                raise
            self._count("end-swallowed")
            return
        self._note("step-returned", spec, value=value_of(result))

    def _note(self, kind: str, spec: Spec, **details: Any) -> None:
        run, claim, process = self._run, getattr(self._run, "claim", None), this_process()
        about = {"key": run.key, "generation": 0 if claim is None else claim.generation, "name": spec["name"]}
        about |= {"owner": claim and claim.owner, "inputs": spec["inputs"]}
        self._world.note(kind, **about, run=self._number, process=process.name(), **details)

    def _count(self, kind: str) -> None:
        self._world.faults.counts[kind] += 1

    def _perform(self, spec: Spec) -> Any:
        """Be the function of a step."""
        value, world = f"{spec['name']}/{self._number}", self._world
        self._note("step-ran", spec, value=value, rerun=getattr(self._run, "rerun", False), row="row" in spec)
        if "row" in spec:
            self._write(spec)
        elif self._asks:
            self._request(spec, value)
        # When nothing goes wrong any more, none lasts longer than the task may: copies of retries would never end.
        world.scheduler.sleep(spec["seconds"] if world.faults.active else min(spec["seconds"], CALM_SECONDS))
        if spec["wrong"] in MISHAPS and world.faults.active and world.draw.random() < 0.5:
            self._go_wrong(spec["wrong"])
        self._note("step-done", spec, value=value, row="row" in spec)
        return _result(value, spec)

    def _go_wrong(self, how: str) -> None:
        self._count(f"step-{how}")
        if how == "raises":
            raise ValueError("simulated: the step fails")
        self._count("body-died")
        if how == "exits":
            sys.exit(1)
        process: Any = this_process()
        process.kill()
        process.check_alive()

    def _request(self, spec: Spec, value: str) -> None:
        """Have the effect at a provider, whose answer may come too late."""
        world = self._world
        seconds = world.draw.uniform(*_WAY_SECONDS)
        if world.faults.active and world.draw.random() < 0.2:
            seconds = world.draw.uniform(CLIENT_SECONDS, SETTLE_SECONDS - CLOCK_SECONDS)
        about = {"key": self._run.key, "generation": self._run.claim.generation, "name": spec["name"]}
        world.scheduler.after(seconds, lambda: world.note("step-charged", **about, value=value))
        world.scheduler.sleep(min(seconds, CLIENT_SECONDS))
        if seconds > CLIENT_SECONDS:
            self._count("step-late")
            raise TimeoutError("simulated: the provider does not answer")

    def _recover(self, record: Record, spec: Spec) -> Recovery:
        """Be the ``recover`` of a step: ask the provider, or fail."""
        world = self._world
        self._note("step-asked", spec, rerun=self._run.rerun)
        if spec["wrong"] in UNANSWERED and world.faults.active and world.draw.random() < spec.get("chance", 0.5):
            self._count(spec["wrong"].replace(" ", "-"))
            if spec["wrong"] == "recover raises":
                raise ConnectionError("simulated: nobody can be asked")
            return Unknown("simulated")
        world.scheduler.sleep(world.draw.uniform(*_WAY_SECONDS) if world.draw.random() < 0.8 else spec["seconds"])
        check_alive()
        about = {"key": record.key, "generation": record.generation, "name": spec["name"]}
        is_done = any(about.items() <= each.details.items() for each in world.history.of("step-charged"))
        # Who asks has a result of its own, so that it shows who has kept it.
        answer = Done(_result(f"{spec['name']}/{self._number}", spec)) if is_done else NotDone()
        self._note("step-answered", spec, answer=type(answer).__name__)
        world.scheduler.sleep(world.draw.uniform(*_WAY_SECONDS))
        return answer


def _result(value: str, spec: Spec) -> Any:
    # What cannot be compressed to less than it takes in a record.
    return {"value": value, "text": random.Random(value).randbytes(spec["bytes"]).hex()}


class StepClient(SimulatedClient):
    """A client whose process may be struck while it keeps a step.

    Args:
        interrupt: raises a soft time limit in a process.
        longest: seconds for which a process is stopped at most.
    """

    def __init__(self, service: Service, world: StepsWorld, interrupt: Callable[[Any], None], longest: float) -> None:
        super().__init__(service, world.scheduler, world.faults)
        self._world = world
        self._interrupt = interrupt
        self._longest = longest

    def _send(self, operation: str, parameters: dict[str, Any]) -> Any:
        if _keeps_step(operation, parameters):
            self._strike(this_process())
        return super()._send(operation, parameters)

    def _strike(self, process: Any) -> None:
        world = self._world
        after = world.draw.uniform(0, STRIKE_SECONDS)
        if world.faults.happens("killed-in-keep"):
            world.scheduler.after(after, process.kill)
        elif world.faults.happens("stopped-in-keep"):
            world.scheduler.after(after, process.stop)
            world.scheduler.after(after + world.draw.uniform(0, self._longest), process.go_on)
        elif world.faults.happens("interrupted-in-keep"):
            world.scheduler.after(after, lambda: self._interrupt(process))


def _keeps_step(operation: str, parameters: dict[str, Any]) -> bool:
    if operation == "put_item":
        return "step" in parameters["Item"]
    values = parameters.get("ExpressionAttributeValues", {})
    return operation == "update_item" and not {":steps", ":step", ":steps_elsewhere"}.isdisjoint(values)
