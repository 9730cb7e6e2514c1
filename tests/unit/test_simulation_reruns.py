"""The invariants of reruns, on histories that are written by hand."""

from dataclasses import replace
from typing import Any

from simulation.checker import check
from simulation.history import Entry, History
from simulation.rerun_rules import RERUN_INVARIANTS


class TestWhatIsFound:
    """By the invariants, in histories that no shipped code plays."""

    def found(self, task: str, *entries: Entry, person: str = "") -> list[str]:
        """Return the invariants that a history violates."""
        history = History(
            0, task, [named(each, task) for each in entries], ended=True, person=person, settle_seconds=8.0
        )
        return [each.invariant for each in check(history) if each.invariant in RERUN_INVARIANTS]

    def test_a_parked_key_that_changes(self) -> None:
        """Its owner, for example, by a late renewal."""
        parked = item(owner="parked after a", parked_at=2)
        changed = {**parked, "in_progress_expiration": {"N": "5"}}
        assert self.found("parks", *written(item(owner="a"), parked, changed)) == ["stays parked"]

    def test_a_key_that_another_has_parked(self) -> None:
        """Who has lost the claim parks nothing."""
        parked = item(owner="parked after b", parked_at=2)
        assert self.found("parks", *written(item(owner="a"), parked)) == ["stays parked"]

    def test_a_message_that_is_gone(self) -> None:
        """Or was replaced by another, or is there and not counted."""
        parked = item(owner="parked after a", parked_at=2)
        kept = {**parked, "parked": {"M": {"id-1": {"B": b"x"}}}, "parked_bytes": {"N": "5"}}
        other = {**kept, "parked": {"M": {"id-1": {"B": b"y"}}}}
        assert self.found("parks", *written(item(owner="a"), kept)) == []
        assert self.found("parks", *written(item(owner="a"), kept, parked)) == ["kept messages"]
        assert self.found("parks", *written(item(owner="a"), kept, other)) == ["kept messages"]
        miscounted = {**kept, "parked_bytes": {"N": "0"}}
        assert self.found("parks", *written(item(owner="a"), kept, miscounted)) == ["kept messages"]

    def test_a_message_that_the_next_decision_has_not_published(self) -> None:
        """It was published after the decision before, and parked again since."""
        message = {"parked": {"M": {"id-1": {"B": b"x"}}}, "parked_bytes": {"N": "5"}}
        first, second = (item(owner="parked after a", parked_at=each) | message for each in (2, 3))
        decided, removed = item() | message, item()
        published = Entry(3.5, "published-again", {"key": KEY, "id": "id-1"})
        once = written(item(owner="a"), first, decided, removed)
        again = written(item(owner="a"), first, decided, item(owner="a") | message, second, decided, removed)
        assert self.found("parks", *once, published, person=WRITER) == []
        assert self.found("parks", *again, published, person=WRITER) == ["kept messages"]
        assert self.found("parks", *again, published, replace(published, at=6.5), person=WRITER) == []

    def test_an_effect_that_happens_twice(self) -> None:
        """Under a claim that lives for long enough."""
        asked = Entry(3.0, "asked", {"key": KEY, "grant": 1, "rerun": True})
        charged = [Entry(4.0 + each, "charged", {"key": KEY, "run": each}) for each in range(2)]
        assert self.found("recovers", *written(item(owner="a")), asked, *charged) == ["one effect"]

    def test_a_first_run_that_asks(self) -> None:
        """Nothing was begun that could be asked about."""
        asked = Entry(3.0, "asked", {"key": KEY, "grant": 1, "rerun": False})
        assert self.found("recovers", *written(item(owner="a")), asked) == ["asked first"]

    def test_a_claim_before_the_key_has_settled(self) -> None:
        """The provider would be asked too early."""
        free = item(settled_at=1_700_000_010_000)
        taken = item(owner="b", fence=2, claimed_at=1_700_000_003_000, in_progress_expiration=1_700_000_021_000)
        first = item(owner="a", claimed_at=1_700_000_000_000, in_progress_expiration=1_700_000_018_000)
        assert self.found("recovers", *written(first, free, taken)) == ["settled"]


KEY = "order"
#: The process of all writes.
WRITER = "machine-0/101"


def named(entry: Entry, task: str) -> Entry:
    """Return an entry about the key of a task."""
    return replace(entry, details={**entry.details, "key": f"{task}#{entry.details['key']}"})


def item(owner: str = "", **numbers: int) -> dict[str, Any]:
    """Return a record in progress as an item."""
    wire = {name: {"N": str(each)} for name, each in {"fence": 1, **numbers}.items()}
    return {"status": {"S": "INPROGRESS"}, **({"owner": {"S": owner}} if owner else {}), **wire}


def written(*items: dict[str, Any]) -> list[Entry]:
    """Return the writes of these items, a second apart."""
    return [
        Entry(float(at), "written", {"key": KEY, "item": each, "by": WRITER}) for at, each in enumerate(items, start=1)
    ]
