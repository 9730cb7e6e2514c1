"""Steps of bodies, held against a history: what ran, what is kept, what asked, and what later runs of the key got."""

import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final, NamedTuple

from idempotent_tasks.core.encoding import COMPRESSED
from idempotent_tasks.core.records import KeptSteps
from idempotent_tasks.core.results import ELSEWHERE
from simulation.history import Entry, History
from simulation.items import holder, text, until
from simulation.run_counts import RunCounts
from simulation.scheduler import CLOCK_SECONDS, START

__all__ = ["STEP_INVARIANTS", "StepFacts"]

#: How a call of a step ends.
_ENDS: Final = ("step-returned", "step-ended")
#: Seconds by which the times of entries are later than those of calls, at most.
_ROUNDING: Final = 0.01
#: Seconds within which a step is kept where the store answers.
_KEEP_SECONDS: Final = 1.0

Found = Iterator[tuple[float, str]]


class StepName(NamedTuple):
    """A step of a key, in one of the key's generations."""

    key: str
    generation: int
    name: str

    def __str__(self) -> str:
        return f"step {self.name!r} of {self.key}"


@dataclass(frozen=True, slots=True)
class Kept:
    """The write by which a record has a step."""

    step: StepName
    entry: Entry
    #: The record that it met.
    old: dict[str, Any]
    #: The result of the step, as in `simulation.step_bodies`; None where it has none.
    value: str | None


class StepFacts:
    """A history's steps.

    Args:
        history: the history.
        counts: its claims.
        forced: the keys whose claims an operator may have ended by force.
        is_calm: whether nothing kept the outcome of a step from being stored.
    """

    def __init__(self, history: History, counts: RunCounts, forced: set[str], *, is_calm: bool) -> None:
        self.history = history
        self.forced = forced
        self.is_calm = is_calm
        self.written = counts.written
        self.ran, self.done, self.returned, self.ended = map(history.of, ("step-ran", "step-done", *_ENDS))
        self.began = {each.details["run"]: each for each in history.of("began")}
        #: By run and name: the steps whose functions have handed their run over.
        self.handed_over = {(each.details["run"], each.details["name"]) for each in history.of("step-handed-over")}
        #: The steps that commit with a row.
        self.with_rows = {_of(each) for each in self.ran if each.details["row"]}
        #: By name and place: the writes of each step's own item.
        self.items: dict[tuple[str, int, str], list[Entry]] = {}
        for entry in history.of("step-written"):
            about = entry.details["key"], entry.details["generation"], entry.details["step"]
            self.items.setdefault(about, []).append(entry)
        #: By step: the first write by which its record has it.
        self.kept: dict[StepName, Kept] = {}
        for each in self._keeps() if history.of("step-ran", "step-asked") else ():
            self.kept.setdefault(each.step, each)

    def _keeps(self) -> Iterator[Kept]:
        for key, written in self.written.items():
            old: dict[str, Any] = {}
            for entry in written:
                generation = _generation(entry.item)
                before = self.names_in(key, old) if _generation(old) == generation else {}
                for name, wire in self.names_in(key, entry.item).items():
                    if name not in before:
                        value = self.value_in(wire or self.item_at(key, generation, name, entry.at))
                        yield Kept(StepName(key, generation, name), entry, old, value)
                old = entry.item

    def names_in(self, key: str, item: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """Return the steps that a record has, by name, each as it lies there; empty where it has an item of its own."""
        here = {name: wire["M"] for name, wire in item.get("steps", {"M": {}})["M"].items()}
        for step_id in item.get("steps_elsewhere", {"SS": []})["SS"]:
            here.setdefault(self._name_of(key, _generation(item), step_id), {})
        return here

    def _name_of(self, key: str, generation: int, step_id: str) -> str:
        written = self.items.get((key, generation, step_id), ())
        return next((name for each in written if (name := text(each.item, "step")) is not None), step_id)

    def item_at(self, key: str, generation: int, name: str, at: float) -> dict[str, Any]:
        """Return a step's own item as of a time; empty where there is none."""
        written = self.items.get((key, generation, _step_id(name)), ())
        return next((each.item for each in reversed(written) if each.at <= at), {})

    def record_at(self, key: str, at: float) -> dict[str, Any]:
        """Return the record of a key as of a time."""
        return next((each.item for each in reversed(self.written[key]) if each.at <= at), {})

    def value_in(self, wire: dict[str, Any]) -> str | None:
        """Return the result of a step as it lies in the record or in its own item; None if it has none."""
        data, codec = next(iter(wire.get("data", {}).values()), None), text(wire, "codec") or ""
        return None if data is None else self.value_of(data, codec)

    def value_of(self, data: Any, codec: str) -> str | None:
        """Return the result of a step that is kept as such data; None if it has none."""
        if codec.endswith(ELSEWHERE):
            data, codec = self.history.objects.get(data, b"null"), codec.removesuffix(ELSEWHERE)
        if codec.endswith(COMPRESSED):
            data = zlib.decompress(data)
        found = json.loads(data)
        return None if found is None else str(found["value"])

    def has_claim(self, run: int, at: float, settle: float = 0.0) -> bool:
        """Return whether a run has its claim, and its lock's, at a time, for long enough to settle."""
        began = self.began[run].details
        records = [self.record_at(key, at) for key in (began["key"], began["lock"]) if key is not None]
        is_own = all(holder(item) == began["owner"] for item in records)
        return (
            is_own
            and until(records[0]) - settle >= at - CLOCK_SECONDS
            and all(until(item) >= at - CLOCK_SECONDS for item in records)
        )

    def lost(self) -> dict[int, float]:
        """Return when a run was told that its claim, or its lock's, is lost."""
        last: dict[str, Entry] = {}
        lost: dict[int, float] = {}
        for entry in self.history.of("began", "Lost"):
            began = last.get(entry.details["process"])
            if entry.kind == "began":
                last[entry.details["process"]] = entry
            elif began is not None and entry.details["key"] in (began.details["key"], began.details["lock"]):
                lost.setdefault(began.details["run"], entry.at)
        return lost

    def goes_on(self, entry: Entry) -> Entry | None:
        """Return the next thing that a process does which shows that it is over with its delivery, if there is one."""
        process = entry.details["process"]
        later = (each for each in self.history.of("again", "ended") if each.at > entry.at)
        return next((each for each in later if each.details["process"] == process), None)

    def is_interrupted_again(self, done: Entry) -> bool:
        """Return whether two interrupts come while a step is kept, of which a soft time limit sends but one."""
        return sum(abs(at - done.at) < _KEEP_SECONDS for at in self._interrupts(done.details["process"])) > 1

    def is_interrupted_twice(self, run: int) -> bool:
        """Return whether two interrupts came to the process of a run since it began; a soft time limit sends one."""
        began = self.began[run]
        return sum(at > began.at for at in self._interrupts(began.details["process"])) > 1

    def _interrupts(self, process: str) -> Iterator[float]:
        """Yield when each interrupt came to a process."""
        for each in self.history.of("soft-limit", "fault"):
            is_one = each.details.get("fault", each.kind) in ("soft-limit", "interrupted-in-keep")
            if is_one and each.details.get("process") == process:
                yield each.at

    def is_forced(self, run: int) -> bool:
        """Return whether an operator may have ended the claim of a run."""
        began = self.began[run]
        return bool({began.details["key"], began.details["lock"]} & self.forced)


def _generation(item: dict[str, Any]) -> int:
    return int(text(item, "generation") or 0)


def _step_id(name: str) -> str:
    return sha256(name.encode()).hexdigest()[:16]


def _of(entry: Entry) -> StepName:
    return StepName(entry.details["key"], entry.details["generation"], entry.details["name"])


def _run_of(value: str) -> int:
    """Return the run whose function, or whose question, has a result."""
    return int(value.rsplit("/", 1)[1])


def _ran_once(facts: StepFacts) -> Found:
    """A step whose outcome is kept does not run again, under any claim of its generation."""
    for entry in facts.ran:
        kept = facts.kept.get(_of(entry))
        # A run without its claim is another rule's.
        if kept is not None and kept.entry.at < entry.at and facts.has_claim(entry.details["run"], entry.at):
            yield (
                entry.at,
                f"{kept.step} ran again in run {entry.details['run']}, and is kept since {kept.entry.at:.3f}",
            )


def _one_value(facts: StepFacts) -> Found:
    """Each run of a generation gets the result of a step that is kept, which was kept first, and no other."""
    for entry in facts.returned:
        kept, value = facts.kept.get(_of(entry)), entry.details["value"]
        if kept is None or kept.entry.at > entry.at:
            yield entry.at, f"run {entry.details['run']} got {value!r} of {_of(entry)}, which is not kept"
        elif kept.value != value:
            yield entry.at, f"run {entry.details['run']} got {value!r} of {_of(entry)}, and {kept.value!r} is kept"


def _claimed(facts: StepFacts) -> Found:
    """A step begins only under its run's claim, and its lock's, so early that its requests settle within the claim."""
    lost = facts.lost()
    for entry in facts.ran:
        run = entry.details["run"]
        if lost.get(run, entry.at) < entry.at:
            yield entry.at, f"{_of(entry)} began in run {run}, whose claim was known to be lost"
        if not facts.is_forced(run) and not facts.has_claim(run, entry.at, facts.history.settle_seconds):
            yield entry.at, f"{_of(entry)} began in run {run} without a claim"


def _survives(facts: StepFacts) -> Found:
    """What a key has kept stays as it is until it has an outcome or begins anew, and then it has none."""
    for key, written in facts.written.items():
        old: dict[str, Any] = {}
        for entry in written:
            before, after = facts.names_in(key, old), facts.names_in(key, entry.item)
            is_same = bool(old and entry.item) and _generation(old) == _generation(entry.item)
            if text(entry.item, "status") != "INPROGRESS":
                if after:
                    yield entry.at, f"the outcome of {key} has the steps {sorted(after)}"
            elif not is_same and after:
                yield entry.at, f"{key} begins anew with the steps {sorted(after)}"
            elif is_same and (lost := [name for name in before if after.get(name) != before[name]]):
                yield entry.at, f"{key} has lost or changed the steps {sorted(lost)}"
            old = entry.item


def _asked_first(facts: StepFacts) -> Found:
    """A step that can be asked about runs in a rerun only after ``recover`` has said `NotDone`; no first run asks."""
    answers: dict[tuple[int, str], str] = {}
    for entry in facts.history.of("step-asked", "step-answered", "step-ran"):
        about = entry.details["run"], entry.details["name"]
        if entry.kind == "step-answered":
            answers[about] = entry.details["answer"]
        elif entry.kind == "step-asked" and not entry.details["rerun"]:
            yield entry.at, f"{_of(entry)} was asked about in run {about[0]}, and no run began before"
        elif entry.kind == "step-ran" and _must_ask(entry) and answers.get(about) != "NotDone":
            yield entry.at, f"{_of(entry)} ran in run {about[0]}, a rerun, and the answer was {answers.get(about)}"


def _must_ask(ran: Entry) -> bool:
    # Of a step with a row its receipt has been asked.
    return bool(ran.details["rerun"]) and not ran.details["row"]


def _one_effect(facts: StepFacts) -> Found:
    """The effect of a step that can be asked about happens once."""
    charged: set[StepName] = set()
    # What a person has decided to run is a first run, which asks nobody.
    exempt = facts.forced | {each.details["key"] for each in facts.history.of("resolved")}
    for entry in facts.history.of("step-charged"):
        if _of(entry) in charged and _of(entry).key not in exempt:
            yield entry.at, f"the effect of {_of(entry)} happened again"
        charged.add(_of(entry))


def _by_holder(facts: StepFacts) -> Found:
    """A step is kept by the run that has the key's claim, and of its own generation."""
    for kept in facts.kept.values():
        if kept.value is None:
            continue
        began = facts.began[_run_of(kept.value)].details
        # Who finds the receipt of a row keeps the result of another run.
        is_own = holder(kept.old) == began["owner"] or kept.step in facts.with_rows
        if not is_own or began["key"] != kept.step.key:
            yield kept.entry.at, f"{kept.step} was kept for run {began['run']}, which has no claim"


def _answered(facts: StepFacts) -> Found:
    """A step whose store has said that it is kept is in the record."""
    for call in facts.history.calls:
        if call.method != "keep_step" or not isinstance(call.answer, KeptSteps) or call.ended_at is None:
            continue
        kept = [each for each in facts.kept.values() if (each.step.key, each.step.name) == (call.key, call.data)]
        if not any(each.entry.at + START <= call.ended_at + _ROUNDING for each in kept):
            yield call.ended_at - START, f"step {call.data!r} of {call.key} was said to be kept, and is not"


def _named_first(facts: StepFacts) -> Found:
    """A step's own item is there before the record names it, is not read before, and keeps its result after."""
    named = {
        (kept.step.key, kept.step.generation, _step_id(kept.step.name)): kept
        for kept in facts.kept.values()
        if not kept.entry.item.get("steps", {"M": {}})["M"].get(kept.step.name)
    }
    for about, kept in named.items():
        written = [each for each in facts.items.get(about, ()) if each.item]
        if not any(each.at < kept.entry.at for each in written):
            yield kept.entry.at, f"{kept.step} is named in its record, and has no item"
        for entry in written:
            if entry.at > kept.entry.at and facts.value_in(entry.item) != kept.value:
                yield entry.at, f"the item of {kept.step} was replaced"
    for entry in facts.history.of("step-read"):
        found = named.get((entry.details["key"], entry.details["generation"], entry.details["step"]))
        if found is None or found.entry.at > entry.at:
            yield entry.at, f"the item of a step of {entry.details['key']} was read before its record named it"


def _ends(facts: StepFacts) -> Found:
    """A run that was ended in a step does no other, has no outcome, and releases its key unless that is lost."""
    ended: dict[int, Entry] = {}
    for entry in facts.history.of("step-ended", "step-ran", "step-returned"):
        run = entry.details["run"]
        if run in ended and entry.kind != "step-ended":
            yield entry.at, f"run {run} went on with {_of(entry)} after it was ended in a step"
        elif entry.kind == "step-ended":
            ended.setdefault(run, entry)
    # Its parent sees to the claim of a process that exits, and its expiry to that of one that is interrupted twice.
    exited = {each.details["run"] for each in facts.history.of("exits")}
    for run, entry in ended.items():
        for written in facts.written[entry.details["key"]]:
            is_own = text(written.item, "owner") == entry.details["owner"]
            if is_own and text(written.item, "status") != "INPROGRESS" and written.at > entry.at:
                yield written.at, f"run {run} has an outcome although it was ended in a step"
        over = facts.goes_on(entry)
        if over is None or run in exited or facts.is_interrupted_twice(run) or entry.details["why"] != "StepUnkept":
            continue
        record = facts.record_at(entry.details["key"], over.at)
        if entry.details["is_lost"] and holder(record) != entry.details["owner"]:
            continue
        about = "release", entry.details["key"], entry.details["owner"]
        if not any((call.method, call.key, call.owner) == about for call in facts.history.calls):
            yield over.at, f"run {run} was ended in a step, and its key was not released"


def _same_inputs(facts: StepFacts) -> Found:
    """Nobody gets the result of a step that was called with other arguments."""
    inputs = {each.details["value"]: each.details["inputs"] for each in facts.ran}
    for entry in facts.returned:
        if inputs.get(entry.details["value"], entry.details["inputs"]) != entry.details["inputs"]:
            yield entry.at, f"run {entry.details['run']} got the result of {_of(entry)} with other arguments"


def _calm(facts: StepFacts) -> Found:
    """Where the store answers and no process is killed or stopped, a step that has returned never runs again."""
    done: dict[StepName, int] = {}
    for entry in facts.history.of("step-done", "step-ran"):
        about = entry.details["run"], entry.details["name"]
        if entry.kind == "step-done" and not facts.is_interrupted_again(entry) and about not in facts.handed_over:
            done[_of(entry)] = entry.details["run"]
        elif entry.kind == "step-ran" and _of(entry) in done and not facts.is_forced(entry.details["run"]):
            yield entry.at, f"{_of(entry)} ran again in run {entry.details['run']} after run {done[_of(entry)]}"


def _came_again(facts: StepFacts) -> bool:
    """Return whether a run began of a key of which an earlier one had done a step."""
    done: dict[str, float] = {}
    for entry in facts.done:
        done.setdefault(entry.details["key"], entry.at)
    return any(done.get(each.details["key"], each.at) < each.at for each in facts.began.values())


def _differ(facts: StepFacts) -> bool:
    """Return whether a step was called with several arguments."""
    calls = facts.history.of("step-ran", "step-returned", "step-mismatched")
    return len({(_of(each), each.details["inputs"]) for each in calls}) > len({*map(_of, calls)})


#: By name: what finds its violations, and the precondition.
STEP_INVARIANTS: Final[dict[str, tuple[Any, Any]]] = {
    "step once": (_ran_once, _came_again),
    "one value of a step": (_one_value, lambda facts: bool(facts.returned)),
    "step's claim": (_claimed, lambda facts: bool(facts.ran)),
    "steps survive": (_survives, lambda facts: bool(facts.kept)),
    "step asked first": (_asked_first, lambda facts: bool(facts.history.of("step-asked"))),
    "one effect of a step": (_one_effect, lambda facts: bool(facts.history.of("step-charged"))),
    "kept by the holder": (_by_holder, lambda facts: bool(facts.kept)),
    "step answered": (
        _answered,
        lambda facts: any(isinstance(each.answer, KeptSteps) for each in facts.history.calls),
    ),
    "step's own item": (_named_first, lambda facts: bool(facts.history.of("step-read"))),
    "ended in a step": (_ends, lambda facts: bool(facts.ended)),
    "step's arguments": (_same_inputs, _differ),
    "calm step": (_calm, lambda facts: facts.is_calm and _came_again(facts)),
}
