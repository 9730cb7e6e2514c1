"""Rows and receipts, held against a history: an effect commits with the outcome of its key, once, or not at all."""

import json
import math
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, Final

from idempotent_tasks.core.receipts import WHOLE_BODY
from idempotent_tasks.core.results import ELSEWHERE
from simulation.history import Entry, History
from simulation.items import is_parked, text
from simulation.provider import SETTLE_SECONDS
from simulation.run_counts import RunCounts
from simulation.scheduler import CLOCK_SECONDS
from simulation.tasks import ASKING, LEASE_SECONDS, PARKING

__all__ = ["RECEIPT_INVARIANTS", "ReceiptRows"]

#: A quarter of the longest claim, by a clock that is off.
LONGEST_WAIT_SECONDS: Final = (LEASE_SECONDS + SETTLE_SECONDS + CLOCK_SECONDS) / 4

Found = Iterator[tuple[float, str]]
#: A key, its generation, and the step that a receipt is of; of a whole body `WHOLE_BODY`.
Start = tuple[str, int, str]


class ReceiptRows:
    """What a history's transactions in the user's database have made durable: those of bodies, and those of steps.

    Args:
        history: the history.
        counts: its claims.
        may_lose: whether its messages may be lost.
    """

    def __init__(self, history: History, counts: RunCounts, *, may_lose: bool) -> None:
        self.history = history
        self.counts = counts
        self.may_lose = may_lose
        self.receipts = history.of("receipt-committed")
        #: By transaction: the rows that were committed, at least one.
        self.rows: dict[int, list[Entry]] = defaultdict(list)
        for entry in history.of("row-committed"):
            self.rows[entry.details["transaction"]].append(entry)
        #: By run: its begin, and the return of its body in a transaction.
        self.began = {each.details["run"]: each for each in history.of("began")}
        self.returned = {each.details["run"]: each for each in history.of("returns")}
        #: By key and fence: the generation of a claim.
        self._generations = {
            (key, int(text(each.item, "fence") or 0)): int(text(each.item, "generation") or 0)
            for key, written in counts.written.items()
            for each in written
        }

    def rows_with(self, receipt: Entry) -> list[Entry]:
        """Return the rows that were committed with a receipt."""
        return self.rows.get(receipt.details["transaction"], [])

    def start_of(self, entry: Entry, fence: str = "grant") -> Start:
        """Return what the receipt of a body has, of an entry about a claim, whose fence has a name there."""
        key = entry.details["key"]
        return key, self._generations.get((key, entry.details.get(fence) or 0), 0), WHOLE_BODY

    def granted_at(self, key: str, fence: int) -> float:
        """Return when a claim was granted."""
        written = self.counts.written[key]
        return next((each.at for each in written if text(each.item, "fence") == str(fence)), math.inf)

    def of_start(self, start: Start) -> list[Entry]:
        """Return the receipts of a body or step in one generation of its key, in the order of their commits."""
        return [each for each in self.receipts if _start(each) == start]

    def starts(self) -> set[Start]:
        """Return what has receipts."""
        return {_start(each) for each in self.receipts}

    def value_of(self, receipt: Entry) -> Any:
        """Return the result in a receipt; None where it has none."""
        data = receipt.details["data"]
        if (receipt.details["codec"] or "").endswith(ELSEWHERE):
            data = self.history.objects.get(data, b"null").decode()
        try:
            return json.loads(data)
        except (TypeError, ValueError):
            return None

    def following(self) -> Iterator[tuple[Entry, str, str]]:
        """Yield what must follow: its receipt, what names it, and its task id."""
        for receipt in self.receipts:
            for each in receipt.details["following"]:
                signature = json.loads(each)
                yield receipt, signature["args"][1], signature["options"]["task_id"]

    def outcomes(self) -> Iterator[Entry]:
        """Yield the writes that give records of the task's keys their outcomes."""
        for key, written in self.counts.written.items():
            old: dict[str, Any] = {}
            for entry in written:
                is_outcome = text(entry.item, "status") in ("COMPLETED", "FAILED")
                if key.startswith(f"{self.history.task}#") and is_outcome and not _same_outcome(old, entry.item):
                    yield entry
                old = entry.item

    def is_told(self, receipt: Entry) -> bool:
        """Return whether somebody has been told the result in a receipt: a delivery, or the body that has the step."""
        about = {"key": receipt.details["key"]}
        if not receipt.details["step"]:
            return any(about.items() <= each.details.items() for each in self.history.of("Committed", "Replayed"))
        about |= {"generation": receipt.details["generation"], "name": receipt.details["step"]}
        return any(about.items() <= each.details.items() for each in self.history.of("step-returned"))

    def failures(self) -> Iterator[Entry]:
        """Yield the receipts of final failures."""
        return (each for each in self.receipts if each.details["status"] == "FAILED")

    def reports(self) -> Iterator[tuple[Entry, int]]:
        """Yield what deliveries report as the result of a run whose body returned in a transaction."""
        # What follows a run may return its number too.
        own = {e.details["id"] for e in self.history.of("published") if e.details.get("task") == self.history.task}
        for entry in self.history.of("reported"):
            value = entry.details["value"]
            run = value.get("run") if isinstance(value, dict) else value
            is_success = entry.details["status"] == "SUCCESS" and entry.details["id"] in own
            if is_success and isinstance(run, int) and run in self.returned:
                yield entry, run


def _start(entry: Entry) -> Start:
    return entry.details["key"], entry.details["generation"], entry.details["step"]


def _named(start: Start) -> str:
    key, _, step = start
    return f"step {step!r} of {key}" if step else key


def _same_outcome(old: dict[str, Any], new: dict[str, Any]) -> bool:
    names = ("status", "data", "generation")
    return [text(old, name) for name in names] == [text(new, name) for name in names]


def _rows_once(rows: ReceiptRows) -> Found:
    """Of a body, or a step, one transaction is committed in a generation, with the outcome of the run of its rows."""
    seen: set[Start] = set()
    for receipt in rows.receipts:
        if _start(receipt) in seen:
            yield receipt.at, f"{_named(_start(receipt))} was committed again in one generation"
        seen.add(_start(receipt))
        own = rows.rows_with(receipt)
        runs = {each.details["run"] for each in own}
        if own and receipt.details["status"] != "COMPLETED":
            yield receipt.at, f"rows of run {min(runs)} were committed, and it has failed"
        if len(runs) > 1:
            yield receipt.at, f"the rows of the runs {sorted(runs)} were committed together"


def _rows_in_order(rows: ReceiptRows) -> Found:
    """No transaction of an earlier start of a key is committed after one of a later start."""
    last: dict[str, int] = {}
    for receipt in rows.receipts:
        name, generation = _named(_start(receipt)), receipt.details["generation"]
        if generation < last.get(name, 0):
            yield receipt.at, f"{name} was committed in generation {generation} after {last[name]}"
        last[name] = generation


def _outcome_of_receipt(rows: ReceiptRows) -> Found:
    """The outcome on a record is that of the receipt of its generation, which was there first."""
    for entry in rows.outcomes():
        start = entry.details["key"], int(text(entry.item, "generation") or 0), WHOLE_BODY
        earlier = [each for each in rows.of_start(start) if each.at < entry.at]
        said = text(entry.item, "status"), text(entry.item, "data")
        if not earlier:
            yield entry.at, f"{start[0]} has an outcome without a receipt"
        elif said != (earlier[0].details["status"], earlier[0].details["data"]):
            yield entry.at, f"{start[0]} has another outcome than its receipt"


def _own_rows(rows: ReceiptRows) -> Found:
    """Rows of bodies are committed of a run that has returned, was not handed over, and has written no others."""
    handed_over = {each.details["run"] for each in rows.history.of("retries")}
    for own in rows.rows.values():
        run, at = own[0].details["run"], own[0].at
        if own[0].details["step"]:
            continue
        returned = rows.returned.get(run)
        if returned is None or returned.at > at:
            yield at, f"rows of run {run} were committed, and its body has not returned"
        elif returned.details["rows"] != len(own):
            yield at, f"{len(own)} of {returned.details['rows']} rows of run {run} were committed"
        if run in handed_over:
            yield at, f"rows of run {run} were committed, and it was handed over"


def _reported_rows(rows: ReceiptRows) -> Found:
    """Who reports the result of a run that has rows reports a receipt of it, and the rows are durable."""
    handed_over = {each.details["id"] for each in rows.history.of("handed-over")}
    for entry, run in rows.reports():
        if entry.details["id"] in handed_over:
            continue
        # What is known of a run may be the result of a later start too.
        key = rows.began[run].details["key"]
        before = [each for each in rows.receipts if each.details["key"] == key and each.at < entry.at]
        if not any(rows.value_of(each) == entry.details["value"] for each in before):
            yield entry.at, f"the result of run {run} of {key} was reported without a receipt"
            continue
        fence = rows.began[run].details["grant"]
        own = [each for each in before if each.details["fence"] == fence]
        durable = sum(len(rows.rows_with(each)) for each in own)
        if own and durable != rows.returned[run].details["rows"]:
            yield entry.at, f"the result of run {run} of {key} was reported without its rows"


def _follows(rows: ReceiptRows) -> Found:
    """What follows a committed receipt is sent at least once, where one of its tasks is told; nothing else is."""
    sent = {(each.details["of"], each.details["id"]) for each in rows.history.of("followed")}
    wanted = {(name, task_id) for _, name, task_id in rows.following()}
    for name, task_id in sorted(sent - wanted):
        if "/then/" in name:
            yield rows.history.until, f"{name} was sent as {task_id}, and no receipt says so"
    for receipt, name, task_id in rows.following():
        if (name, task_id) not in sent and rows.is_told(receipt) and not rows.may_lose:
            yield receipt.at, f"{name} was never sent"


def _no_body_after(rows: ReceiptRows) -> Found:
    """No body begins for a key that has a receipt of its generation, nobody is asked about it, and it is not parked."""
    durable = {_start(each): each.at for each in reversed(rows.receipts)}
    for entry in rows.history.of("began", "asked"):
        at = durable.get(rows.start_of(entry), math.inf)
        # A body begins with its row locked; who is asked may not know of what commits meanwhile.
        since = entry.at if entry.kind == "began" else rows.granted_at(entry.details["key"], entry.details["grant"])
        if at < since:
            yield entry.at, f"{entry.details['key']} {entry.kind} although it has a receipt"
    for key, written in rows.counts.written.items():
        old: dict[str, Any] = {}
        for entry in written:
            start = key, int(text(entry.item, "generation") or 0), WHOLE_BODY
            if is_parked(entry.item) and not is_parked(old):
                granted_at = rows.granted_at(key, int(text(old, "fence") or 0))
                if durable.get(start, math.inf) < granted_at:
                    yield entry.at, f"{key} was parked although it has a receipt"
            old = entry.item


def _once_a_claim(rows: ReceiptRows) -> Found:
    """Where an earlier run is asked about, or parked, no body runs again under the claim of one that did not commit."""
    seen: set[tuple[str, int]] = set()
    for entry in rows.history.of("began"):
        claim = entry.details["key"], entry.details.get("grant") or 0
        if claim in seen and claim[0].startswith(f"{rows.history.task}#"):
            yield entry.at, f"run {entry.details['run']} began again, and nobody was asked"
        seen.add(claim)


def _limited_wait(rows: ReceiptRows) -> Found:
    """No transaction waits for another one's row for more than a quarter of its claim."""
    for entry in rows.history.of("waits"):
        is_person = entry.details["process"] == rows.history.person
        if entry.details["seconds"] > LONGEST_WAIT_SECONDS and not is_person:
            yield entry.at, f"{entry.details['key']} waits {entry.details['seconds']:.1f} s for its row"


def _asks(rows: ReceiptRows) -> bool:
    return rows.history.task in ASKING | PARKING


#: By name: what finds its violations, and the precondition.
RECEIPT_INVARIANTS: Final[dict[str, tuple[Any, Any]]] = {
    "rows once": (_rows_once, lambda rows: bool(rows.rows) and bool(rows.history.of("receipt-found"))),
    "rows in order": (
        _rows_in_order,
        lambda rows: len({_named(each) for each in rows.starts()}) < len(rows.starts()),
    ),
    "outcome of receipt": (
        _outcome_of_receipt,
        lambda rows: any(not each.details["step"] for each in rows.receipts) and any(rows.outcomes()),
    ),
    "own rows": (_own_rows, lambda rows: any(not each[0].details["step"] for each in rows.rows.values())),
    "reported rows": (_reported_rows, lambda rows: any(rows.reports())),
    "what follows": (_follows, lambda rows: any(rows.following())),
    "no body after": (
        _no_body_after,
        lambda rows: any(rows.history.of("receipt-found")),
    ),
    "once a claim": (
        _once_a_claim,
        lambda rows: _asks(rows) and not {"deadlock-at-commit", "deadlock-in-body"}.isdisjoint(rows.history.counts),
    ),
    "limited wait": (_limited_wait, lambda rows: any(rows.history.of("waits"))),
}
