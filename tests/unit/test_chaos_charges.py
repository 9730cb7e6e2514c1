"""The chaos command's one body: what it tells of itself, wherever its effect is."""

from pathlib import Path
from typing import Any

from celery import Celery

from benchmarks.chaos.arena import Journal, Reader
from benchmarks.chaos.charges import Effect, charge_by
from benchmarks.chaos.history import Event, What


def told(journal: Path, *, counts_instead: str | None = None) -> tuple[list[Effect], str, list[Event]]:
    """Run a body, and return the effects that it had, its value, and what it told the journal."""
    effects: list[Effect] = []

    def have(task: Any, effect: Effect) -> str | None:
        assert task.name == "charge"
        effects.append(effect)
        return counts_instead

    charge = charge_by(Journal(journal), have)
    task = Celery("chaos", set_as_current=False).task(charge, name="charge", bind=True, shared=False)
    value = task.apply(("k001", 0.0, 0.0), task_id="m1").get()
    return effects, value, Reader(journal).news()


def test_body_leaves_it_to_its_effect_to_say_that_it_is_there(tmp_path: Path) -> None:
    """The effect has the run's name and the value that the body returns; the journal has only start and end."""
    (effect,), value, (started, ended) = told(tmp_path / "journal.jsonl")
    assert [started.what, ended.what] == [What.STARTED, What.ENDED]
    for event in (started, ended):
        about = {"key": event.key, "run": event.run, "task_id": event.task_id, "pid": event.pid, "value": value}
        assert effect == about
    assert (ended.value, effect["key"], effect["task_id"]) == (value, "k001", "m1")


def test_value_of_an_earlier_effect_that_counts_instead(tmp_path: Path) -> None:
    """A receiver that recognises the key answers with what it has: that is what the body returns."""
    (effect,), value, (_, ended) = told(tmp_path / "journal.jsonl", counts_instead="earlier")
    assert value == ended.value == "earlier" != effect["value"]
