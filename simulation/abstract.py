"""``python -m simulation.abstract``: the checker against the promise's definition, on all histories up to a size.

An abstract history is a sequence of what the checker reads, legal or not: claims that are granted and renewed, runs
that begin and end, commits, releases, results.  The promise is defined here a second time, straight from its words and
without regard to speed, and both must say the same of every history.
"""

import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import product
from typing import Any, Final

import click

from simulation.checker import check
from simulation.history import Entry, History
from simulation.scheduler import START

__all__ = ["FEW", "Alphabet", "Comparison", "compare", "compare_results"]

KEY: Final = "order"
OWNERS: Final = ("A", "B")
#: Seconds from one step to the next: far more than the checker's tolerance.
STEP_SECONDS: Final = 10.0
#: The tasks of one key that report results.
REPORTERS: Final = ("A", "B", "C")
#: The most disagreements that are printed.
MOST_SHOWN: Final = 5


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that happens."""

    kind: str
    owner: str
    #: Of a grant or renewal: after how many steps the claim is expired.
    lasts: int = 0
    #: Of a grant: by how much its fence is larger than the last.
    grows: int = 1


@dataclass(frozen=True, slots=True)
class _Record:
    """The key's record after a step, None values where it has none."""

    owner: str | None = None
    until: float = 0.0
    fence: int = 0
    outcome: str | None = None

    def item(self) -> dict[str, Any]:
        """Return it as a table's item."""
        item: dict[str, Any] = {
            "status": {"S": "INPROGRESS" if self.outcome is None else "COMPLETED"},
            "in_progress_expiration": {"N": str(int((START + self.until) * 1000))},
            "fence": {"N": str(self.fence)},
            "expiration": {"N": str(int(START) + 100_000)},
            # After any deletion, of which there are none.
            "claimed_at": {"N": str(int(START * 1000) + 1_000_000)},
        }
        if self.owner is not None:
            item["owner"] = {"S": self.owner}
        if self.outcome is not None:
            item["data"] = {"S": self.outcome}
        return item


#: The steps that write the record.
_WRITES: Final = frozenset({"grant", "renew", "release", "commit"})


def _written(record: _Record, step: Step, at: float) -> _Record:
    """Return the record that a step leaves, whether it was allowed to or not."""
    until = at + step.lasts * STEP_SECONDS - STEP_SECONDS / 2
    match step.kind:
        case "grant":
            return _Record(step.owner, until, record.fence + step.grows)
        case "renew":
            return _Record(record.owner, until, record.fence, record.outcome)
        case "release":
            return _Record(None, at, record.fence, record.outcome)
        case _:
            return _Record(record.owner, record.until, record.fence, json.dumps(step.owner))


@dataclass(frozen=True, slots=True)
class Abstract:
    """An abstract history: steps, each with the record before and after it."""

    steps: tuple[Step, ...] = ()
    records: tuple[_Record, ...] = (_Record(fence=1),)

    def then(self, step: Step) -> "Abstract":
        """Return the history with one more step."""
        record = self.records[-1]
        if step.kind in _WRITES:
            record = _written(record, step, len(self.steps) * STEP_SECONDS)
        return Abstract((*self.steps, step), (*self.records, record))

    def place(self, kind: str, owner: str) -> int | None:
        """Return where an owner's first step of a kind is."""
        places = (place for place, step in enumerate(self.steps) if (step.kind, step.owner) == (kind, owner))
        return next(places, None)

    def history(self) -> History:
        """Return it as the checker reads it."""
        entries: list[Entry] = []
        for place, step in enumerate(self.steps):
            at = place * STEP_SECONDS
            about = {"run": OWNERS.index(step.owner) + 1, "key": KEY, "owner": step.owner, "process": step.owner}
            about |= {
                "lock": None,
                "task": "abstract",
                "order": KEY,
                "fence": 0,
                "id": step.owner,
                "task_id": step.owner,
            }
            if step.kind in _WRITES:
                entries.append(
                    Entry(at, "written", {"key": KEY, "item": self.records[place + 1].item(), "by": step.owner})
                )
                event = {"grant": "Claimed", "commit": "Committed"}.get(step.kind)
                if event is not None:
                    entries.append(Entry(at, event, about))
            else:
                entries.append(Entry(at, step.kind, about))
        # Something is wrong with the network: the checker takes nothing for undisturbed.
        return History(0, "abstract", entries, counts={"request-lost": 1}, items={KEY: self.records[-1].item()})


@dataclass(frozen=True, slots=True)
class Alphabet:
    """What may happen in the histories of one comparison."""

    #: After how many steps a claim is expired: before the next, after the next, never.
    lasts: tuple[int, ...] = (1, 2, 100)
    #: By how much a claim's fence is larger than the one before.
    grows: tuple[int, ...] = (0, 1)

    def histories(self, length: int) -> Iterator[Abstract]:
        """Yield every history of up to so many steps, of which the first is the first owner's."""
        open_ = [Abstract()]
        while open_:
            abstract = open_.pop()
            if abstract.steps:
                yield abstract
            if len(abstract.steps) < length:
                open_.extend(abstract.then(step) for step in self._next(abstract))

    def _next(self, abstract: Abstract) -> Iterator[Step]:
        """Yield what may happen next, whether the protocol allows it or not."""
        for owner in OWNERS if abstract.steps else OWNERS[:1]:
            is_holder = abstract.records[-1].owner == owner
            # A grant to who has the key already, with the fence that it has, is a renewal.
            growths = [grows for grows in self.grows if grows or not is_holder]
            yield from (Step("grant", owner, *each) for each in product(self.lasts, growths))
            if abstract.place("grant", owner) is not None:
                yield Step("release", owner)
                yield Step("commit", owner)
            if is_holder:
                yield from (Step("renew", owner, lasts) for lasts in self.lasts)
            if abstract.place("began", owner) is None:
                yield Step("began", owner)
            elif abstract.place("over", owner) is None:
                yield Step("over", owner)


def _is_promised(abstract: Abstract, owner: str, place: int) -> bool:
    """Return whether just before a step an owner has a claim that nobody may take.

    It was granted, has not expired since it was granted or last renewed, its owner has neither released nor committed
    it, and its run is not over.
    """
    promised_until = -1.0
    for before in range(place):
        step, record = abstract.steps[before], abstract.records[before + 1]
        if step.owner != owner:
            continue
        if step.kind == "grant" or (step.kind == "renew" and record.outcome is None):
            promised_until = record.until
        elif step.kind in ("release", "commit", "over"):
            promised_until = -1.0
    return promised_until > place * STEP_SECONDS


#: Claims that are expired before the next step or never, with fences that grow: for longer histories.
FEW: Final = Alphabet(lasts=(1, 100), grows=(1,))


def one_run(abstract: Abstract) -> bool:
    """Return whether, while a claim is alive, no other run of the key begins, nor gets the key before it does."""
    for runner, other in (OWNERS, OWNERS[::-1]):
        began, over, later = (abstract.place(*each) for each in (("began", runner), ("over", runner), ("began", other)))
        if began is None or later is None or not began < later or (over is not None and over < later):
            continue
        if any(_is_promised(abstract, runner, place) and _takes(abstract, place, runner) for place in range(later + 1)):
            return False
    return True


def _takes(abstract: Abstract, place: int, runner: str) -> bool:
    """Return whether a step of another's takes the key, or begins a run."""
    step = abstract.steps[place]
    return step.owner != runner and step.kind in {"began", *_WRITES}


def live_claim(abstract: Abstract) -> bool:
    """Return whether each body begins under a claim that is its own, in progress and not expired."""
    for place, step in enumerate(abstract.steps):
        record = abstract.records[place]
        alive = record.owner == step.owner and record.outcome is None and record.until > place * STEP_SECONDS
        if step.kind == "began" and not alive:
            return False
    return True


def one_outcome(abstract: Abstract) -> bool:
    """Return whether each record that follows an outcome has that outcome."""
    outcomes = [record.outcome for record in abstract.records]
    return all(
        later == earlier for place, earlier in enumerate(outcomes) if earlier is not None for later in outcomes[place:]
    )


def fences(abstract: Abstract) -> bool:
    """Return whether each grant has a larger fence than every grant before it."""
    granted = [
        record.fence for step, record in zip(abstract.steps, abstract.records[1:], strict=True) if step.kind == "grant"
    ]
    return all(one < other for place, one in enumerate(granted) for other in granted[place + 1 :])


DEFINITIONS: Final[dict[str, Callable[[Abstract], bool]]] = {
    "one run": one_run,
    "live claim": live_claim,
    "one outcome": one_outcome,
    "fences": fences,
}


@dataclass(frozen=True, slots=True)
class Reported:
    """What tasks of one key report, beside the outcomes that were committed."""

    #: The owners whose runs committed, one after the other, whether they were allowed to or not.
    commits: tuple[str, ...]
    #: By task: whose result it reports; None where it does not succeed.
    results: tuple[str | None, ...]
    #: Whether a run could not record its outcome.
    unrecorded: bool

    def history(self) -> History:
        """Return it as the checker reads it."""
        record = _Record(outcome=json.dumps(self.commits[-1]) if self.commits else None)
        kinds = [*(("Committed", owner) for owner in self.commits), *(("Replayed", owner) for owner in REPORTERS)]
        kinds += [("Unrecorded", REPORTERS[0])] * self.unrecorded
        entries = [Entry(float(at), kind, {"task_id": owner, "key": KEY}) for at, (kind, owner) in enumerate(kinds)]
        results = {
            f"celery-task-meta-{task_id}": json.dumps({"status": "SUCCESS", "result": result})
            for task_id, result in zip(REPORTERS, self.results, strict=True)
            if result is not None
        }
        return History(0, "abstract", entries, counts={"request-lost": 1}, items={KEY: record.item()}, results=results)


def all_reported() -> Iterator[Reported]:
    """Yield what three tasks can report of up to three commits."""
    commits = [each for length in range(len(REPORTERS) + 1) for each in product(REPORTERS, repeat=length)]
    results = product((None, *REPORTERS), repeat=len(REPORTERS))
    yield from (Reported(*each) for each in product(commits, results, (False, True)))


def one_result(reported: Reported) -> bool:
    """Return whether every two tasks that succeed report one result, and the record's if it has one.

    A run that could not record its outcome reports it all the same.
    """
    found = [*(each for each in reported.results if each is not None)]
    recorded = [reported.commits[-1] if found and reported.commits else each for each in found]
    return reported.unrecorded or all(
        one == other == record for one, record in zip(found, recorded, strict=True) for other in found
    )


@dataclass
class Comparison:
    """How often checker and definition agree."""

    histories: int = 0
    #: By invariant: how many histories violate it, as both say.
    violated: Counter[str] = field(default_factory=Counter)
    #: Where they disagree: the invariant, what the definition says, and the history.
    disagreements: list[tuple[str, bool, Any]] = field(default_factory=list)

    def add(self, name: str, history: Any, *, defined: bool, checked: bool) -> None:
        """Add what both say of a history: whether it keeps an invariant."""
        if defined is not checked:
            self.disagreements.append((name, defined, history))
        self.violated[name] += not defined


def compare(length: int, alphabet: Alphabet) -> Comparison:
    """Compare the checker with the definitions on every abstract history of up to so many steps."""
    comparison = Comparison()
    for abstract in alphabet.histories(length):
        comparison.histories += 1
        violated = {each.invariant for each in check(abstract.history())}
        for name, holds in DEFINITIONS.items():
            comparison.add(name, abstract, defined=holds(abstract), checked=name not in violated)
    return comparison


def compare_results() -> Comparison:
    """Compare the checker with the definition of one result on all that tasks can report."""
    comparison = Comparison()
    for reported in all_reported():
        comparison.histories += 1
        violated = {each.invariant for each in check(reported.history())}
        comparison.add("one result", reported, defined=one_result(reported), checked="one result" not in violated)
    return comparison


@click.command()
@click.option("--length", default=4, show_default=True, help="The most steps of a history.")
@click.option("--few", is_flag=True, help="Fewer kinds of claims, for longer histories.")
def show(length: int, *, few: bool) -> None:
    """Compare the checker with the promise's definition on all abstract histories up to a size.

    Exit code 0 if they agree on every one, 1 otherwise.
    """
    began = time.process_time()
    comparisons = compare(length, FEW if few else Alphabet()), compare_results()
    for comparison in comparisons:
        violated = ", ".join(f"{name} {count}" for name, count in sorted(comparison.violated.items()))
        click.echo(
            f"{comparison.histories} histories, {len(comparison.disagreements)} disagreements; broken: {violated}"
        )
        for name, holds, history in comparison.disagreements[:MOST_SHOWN]:
            click.echo(f"{name} {'holds' if holds else 'is broken'} by its definition alone: {history}")
    click.echo(f"{time.process_time() - began:.1f} s of processor time")
    sys.exit(any(comparison.disagreements for comparison in comparisons))


if __name__ == "__main__":
    show()
