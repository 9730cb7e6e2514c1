"""The history checker: events in, findings out. Pure; it knows no broker, no process and no contender.

Four things break no promise, because no guard outside the effect can prevent them. They are findings all the same,
of kinds of their own, and every contender is judged alike:

* an effect whose run was killed before its outcome was stored, and that a later run repeats (`Kind.LIMIT`);
* a start beside a run that was paused, and that this or an earlier start overtook before the paused one could know that
  it had gone on (`Kind.ZOMBIE_RUN`);
* the second effect of a pair of which one overtook the other so, or while it was paused between the end of its body and
  the storing of its outcome, and an effect that repeats one of an overtaken run whose outcome was discarded
  (`Kind.ZOMBIE_EFFECT`);
* a message that nobody acknowledged and that is nowhere (`Kind.VANISHED`): kombu takes a message out of Redis before
  it notes it as unacknowledged, and a worker that is killed in between takes it along. On a broker that keeps
  messages until they are acknowledged, the same is a lost key.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import combinations
from typing import Final

from benchmarks.chaos.history import Event, History, Run, What

__all__ = ["ONE_EFFECT", "OVERTAKING_SECONDS", "SUCCESS", "Finding", "Kind", "Messages", "check"]

SUCCESS: Final = "SUCCESS"
#: The name of the only effect of a body.
ONE_EFFECT: Final = ("",)
#: The delivery ended because Celery published the message again.
RETRY: Final = "RETRY"
_UNFINISHED: Final = ("PENDING", "STARTED", RETRY)
_SIGNS: Final = (What.PUBLISHED, What.RECEIVED, What.STARTED, What.DEFERRED, What.OVER)


class Messages:
    """The messages of a history."""

    def __init__(self, history: History) -> None:
        #: The publications of each key, those included that the contender dropped.
        self.publications: dict[str, list[Event]] = {}
        self._results: dict[str, list[Event]] = {}
        #: The signs of life of each message, oldest first.
        self._signs: dict[str, list[Event]] = {}
        self._runs = {run.started.run: run for run in history.all_runs()}
        self._deaths = [each for each in history.of(What.KILLED) if not each.pid] + list(history.of(What.EXITED))
        self._broker_is_empty = any(history.of(What.EMPTY))
        for event in history.events:
            if event.what in (What.PUBLISHED, What.DROPPED):
                self.publications.setdefault(event.key, []).append(event)
            if event.what in _SIGNS and event.task_id:
                self._signs.setdefault(event.task_id, []).append(event)
            elif event.what is What.RESULT:
                self._results.setdefault(event.task_id, []).append(event)

    def answers(self, publication: Event) -> list[Event]:
        """Return the successful results that its publisher could see."""
        return [event for event in self._results.get(publication.task_id, ()) if event.state == SUCCESS]

    def vanished(self, publication: Event) -> bool:
        """Return whether the message is nowhere, although nobody acknowledged its last copy.

        It has no result, the broker is empty, and it was last seen with the broker, or in a process that was killed;
        and a whole worker was killed after that.
        """
        finished = [each for each in self._results.get(publication.task_id, ()) if each.state not in _UNFINISHED]
        signs = self._signs.get(publication.task_id)
        if finished or not signs or not self._broker_is_empty:
            return False
        last = signs[-1]
        deaths = [death for death in self._deaths if death.at >= last.at]
        match last.what:
            case What.RECEIVED:
                return any(death.worker == last.worker for death in deaths)
            case What.STARTED:
                return self._runs[last.run].killed is not None and bool(deaths)
            case What.OVER:
                again = last.state == RETRY or any(each.what is What.DEFERRED for each in signs[-2:])
                return again and bool(deaths)
            case _:
                return bool(deaths)

    def end_of(self, publication: Event) -> str:
        """Say how the message ended, for people."""
        if publication.what is What.DROPPED:
            return "was not published"
        results = self._results.get(publication.task_id)
        last = self._signs[publication.task_id][-1]
        state = f" {last.state}" if last.state else ""
        where = f"last seen at line {last.line}, {last.at:.3f} s: {last.what}{state}"
        return f"ends in {results[-1].state if results else 'no state'}; {where}"


#: Seconds after the end of a pause in which a run may still be overtaken: it takes a moment to see that it was late.
OVERTAKING_SECONDS: Final = 1.0


class Kind(StrEnum):
    """What a finding is about."""

    DUPLICATED = "duplicated effect"
    LOST = "lost key"
    OVERLAP = "overlapping runs"
    CONFLICT = "conflicting results"
    UNANSWERED = "publisher without a result"
    LIMIT = "effect repeated after a kill between effect and commit"
    VANISHED = "message lost between the broker and a killed worker"
    ZOMBIE_RUN = "run overtaken while paused"
    ZOMBIE_EFFECT = "effect of a run overtaken while paused"

    @property
    def breaks_promise(self) -> bool:
        """Whether a guard could have prevented it."""
        return self not in (Kind.LIMIT, Kind.VANISHED, Kind.ZOMBIE_RUN, Kind.ZOMBIE_EFFECT)


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One place where a promise broke, or a limit was met: the event at which it shows."""

    kind: Kind
    key: str
    #: The journal's line and its time in seconds; 0 where the history as a whole shows it.
    line: int
    at: float
    pids: tuple[int, ...]
    text: str
    #: Of several effects of a body, the one that it is about.
    step: str = ""


def check(
    events: Iterable[Event], keys: Sequence[str], *, forgetful: bool = False, steps: Sequence[str] = ONE_EFFECT
) -> list[Finding]:
    """Return what the history shows, in the order of time.

    Args:
        events: everything that happened.
        keys: every key that was asked for; one that no event names is lost.
        forgetful: whether the broker's client takes messages out of the broker before it notes that it has them.
        steps: the names of the effects that each key is to have.
    """
    history = History(events)
    messages = Messages(history)
    findings: list[Finding] = []
    for key in keys:
        runs = history.runs.get(key, [])
        for step in steps:
            findings += _effects(key, step, runs)
        findings += _overlaps(key, runs)
        missing = [step for step in steps if not any(step in run.effects for run in runs)]
        findings += _answers(key, missing, messages, forgetful=forgetful)
    return sorted(findings, key=lambda finding: (finding.at, finding.line))


def _effects(key: str, step: str, runs: Sequence[Run]) -> Iterator[Finding]:
    done = sorted((run for run in runs if step in run.effects), key=lambda run: run.effects[step].at)
    for number, run in enumerate(done[1:], start=1):
        excuses = [_excuse(earlier, run, runs) for earlier in done[:number]]
        kind = next((excuse for excuse in (Kind.DUPLICATED, Kind.ZOMBIE_EFFECT) if excuse in excuses), Kind.LIMIT)
        first = done[excuses.index(kind)]
        what = f"{key} in step {step}" if step else key
        text = f"effect {number + 1} of {what} by {_name(run)}; {_name(first)} had it at {first.effects[step].at:.3f}"
        yield _finding(kind, run.effects[step], (first, run), text)


def _excuse(earlier: Run, later: Run, runs: Sequence[Run]) -> Kind:
    """Return why a later effect repeats an earlier one; `Kind.DUPLICATED` where nothing excuses it."""
    # Two runs that were alive at once are no repetition of a dead run's effect, whatever befell one of them. A provider
    # may carry out the request of the dead one after that of its successor.
    first, second = sorted((earlier, later), key=lambda run: run.started.at)
    if first.killed is not None and second.started.at >= first.killed.at:
        return Kind.LIMIT
    if _overtaken(earlier, later) or _overtaken(later, earlier):
        return Kind.ZOMBIE_EFFECT
    # Where the one that overtook it had no outcome either, somebody has to run the body again.
    unrecorded = earlier.discarded and _overtaken_before(earlier, later.started.at, runs)
    return Kind.ZOMBIE_EFFECT if unrecorded else Kind.DUPLICATED


def _overlaps(key: str, runs: Sequence[Run]) -> Iterator[Finding]:
    for first, second in combinations(runs, 2):
        if first.alive_at(second.started.at):
            kind = Kind.ZOMBIE_RUN if _overtaken_before(first, second.started.at, runs) else Kind.OVERLAP
            text = f"{_name(second)} of {key} starts while {_name(first)} runs, since {first.started.at:.3f}"
            yield _finding(kind, second.started, (first, second), text)


def _overtaken(paused: Run, other: Run) -> bool:
    """Return whether the other run started while this one was paused, or before it could know that it was late."""
    return any(pause.begin.at <= other.started.at <= pause.end + OVERTAKING_SECONDS for pause in paused.pauses)


def _overtaken_before(paused: Run, at: float, runs: Sequence[Run]) -> bool:
    """Return whether a run was overtaken while it was paused, by anybody, until this time."""
    return any(other is not paused and other.started.at <= at and _overtaken(paused, other) for other in runs)


def _answers(key: str, without: Sequence[str], messages: Messages, *, forgetful: bool) -> Iterator[Finding]:
    publications = messages.publications.get(key, [])
    given = [event for each in publications for event in messages.answers(each)]
    vanished = [each for each in publications if forgetful and messages.vanished(each)]
    for each in vanished:
        yield _finding(Kind.VANISHED, each, (), f"message {each.task_id} of {key} {messages.end_of(each)}")
    if given and not without:
        yield from _conflicts(key, given)
        for each in publications:
            if not messages.answers(each) and each not in vanished:
                text = f"message {each.task_id or '(no id)'} of {key} {messages.end_of(each)}"
                yield _finding(Kind.UNANSWERED, each, (), text)
    elif len(vanished) < len(publications) or not publications:
        missing = "no effect" + "".join(f" in step {step}" for step in without if step) if without else "no result"
        ends = "; ".join(f"message {each.task_id or '(no id)'} {messages.end_of(each)}" for each in publications)
        text = f"{key} has {missing}: {ends or 'it was never published'}"
        yield Finding(kind=Kind.LOST, key=key, line=0, at=0.0, pids=(), text=text)


def _conflicts(key: str, given: Sequence[Event]) -> Iterator[Finding]:
    seen: dict[str, Event] = {}
    for event in sorted(given, key=lambda event: (event.at, event.line)):
        if seen and event.value not in seen:
            first = next(iter(seen.values()))
            text = f"message {event.task_id} of {key} has {event.value}, message {first.task_id} had {first.value}"
            yield _finding(Kind.CONFLICT, event, (), text)
        seen.setdefault(event.value, event)


def _finding(kind: Kind, event: Event, runs: Sequence[Run], text: str) -> Finding:
    pids = tuple(dict.fromkeys(run.started.pid for run in runs))
    return Finding(kind=kind, key=event.key, line=event.line, at=event.at, pids=pids, text=text, step=event.step)


def _name(run: Run) -> str:
    return f"run {run.started.run} (pid {run.started.pid}, line {run.started.line})"
