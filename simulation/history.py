"""What happened in a world: its entries in the order of time, and what notes them."""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf
from typing import Any, Final

from idempotent_tasks.core.processes import this_process
from simulation.calls import Call
from simulation.network import TRANSACTION, Service
from simulation.scheduler import START, Scheduler

__all__ = ["TRIED_ON_SECONDS", "Entry", "History", "Recorder", "step_in"]

#: Seconds after the last fault within which every outcome that was kept is stored or given up: a request that has left
#: by then may be waited for.
TRIED_ON_SECONDS: Final = 45.0
#: Seconds between two entries of the same time.
MOMENT: Final = 1e-6
#: The name of a step's own item.
_STEP: Final = re.compile(r"(.*)#(\d+)#([0-9a-f]{16})")


@dataclass(frozen=True, slots=True)
class Entry:
    """Something that happened."""

    at: float
    kind: str
    details: dict[str, Any]

    @property
    def item(self) -> dict[str, Any]:
        """The item that a write has left; empty where it has deleted it."""
        return self.details["item"] or {}


@dataclass
class History:
    """What happened under one seed."""

    seed: int
    task: str
    entries: list[Entry] = field(default_factory=list)
    #: The calls of the store, in the order in which they were made.
    calls: list[Call] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    #: The records at the end, by key, as items.
    items: dict[str, Any] = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)
    #: What its bodies and calls have that others have not.
    features: frozenset[str] = frozenset()
    #: Whether messages are acknowledged before their bodies run.
    acks_early: bool = False
    #: For how many seconds a record without an outcome is kept from its last claim or renewal; None where that is not
    #: known.
    unresolved_seconds: float | None = None
    #: For how many seconds after a run without an outcome nobody is granted its key.
    settle_seconds: float = 0.0
    #: The bucket's objects at the end, by their addresses.
    objects: dict[str, bytes] = field(default_factory=dict)
    #: By process: how many requests DynamoDB has carried out.
    requests: Counter[str] = field(default_factory=Counter)
    #: The tasks that the result backend has ever called failed, by id.
    failed: set[str] = field(default_factory=set)
    #: The name of the operator's process.
    operator: str = ""
    #: That of the person's who decides parked keys.
    person: str = ""
    #: Whether the claims of children that end are released by their parent processes.
    watched: bool = True
    #: By kind of entry, or by kind and task: how many there must be in a directed history.
    expected: dict[str, int] = field(default_factory=dict)
    #: By when it must have ended, in seconds.
    due: float = inf
    #: The names of the processes that live at the end, and when that is, in seconds.
    living: frozenset[str] = frozenset()
    until: float = 0.0
    ended: bool = False
    failures: list[BaseException] = field(default_factory=list)

    def of(self, *kinds: str) -> list[Entry]:
        """Return the entries of some kinds, in order."""
        return [entry for entry in self.entries if entry.kind in kinds]


class Recorder:
    """Notes entries at the scheduler's time, and the items that a service writes."""

    def __init__(self, history: History, scheduler: Scheduler, service: Service) -> None:
        self._history = history
        self._scheduler = scheduler
        self._service = service
        service.on_request = self._on_request
        self._transactions = 0
        #: Called with each entry.
        self.on_entry: Callable[[Entry], None] = lambda _: None

    def note(self, kind: str, **details: Any) -> None:
        """Note that something happened now."""
        entries, at = self._history.entries, self._scheduler.now - START
        if entries:
            # A time says which of two came first.
            at = max(at, entries[-1].at + MOMENT)
        entries.append(Entry(at, kind, details))
        self.on_entry(entries[-1])

    def observe(self, event: Any, **more: Any) -> None:
        """Note an event of the library, by the process that runs."""
        details = {name: getattr(event, name) for name in event.__dataclass_fields__}
        self.note(type(event).__name__, process=this_process().name(), **details, **more)

    def _on_request(
        self, process: Any, operation: str, parameters: dict[str, Any], outcome: str | tuple[str, ...]
    ) -> None:
        if operation == TRANSACTION:
            self._on_transaction(process, parameters["TransactItems"], outcome)
        elif operation == "get_item" and (step := step_in(_name_in(parameters))):
            self.note("step-read", **step, by=process.name())
        elif operation not in ("get_item", "scan") and outcome == "done":
            self._on_written(parameters, process)

    def _on_written(self, parameters: dict[str, Any], process: Any, **about: Any) -> None:
        key = _name_in(parameters)
        # An update makes a new item, and changes none.
        item = self._service.table.items.get(key)
        step = step_in(key)
        if step:
            self.note("step-written", **step, item=item, by=process.name())
        else:
            self.note("written", key=key, item=item, by=process.name(), **about)

    def _on_transaction(self, process: Any, writes: Any, outcome: str | tuple[str, ...]) -> None:
        """Note what a transaction has written to records and to an app's tables, or that it was cancelled."""
        self._transactions += 1
        tables = self._service.tables
        for write in writes:
            ((kind, parameters),) = write.items()
            table, name = parameters["TableName"], _name_in(parameters)
            if table not in tables and outcome == "done":
                self._on_written(parameters, process, transaction=self._transactions)
            elif table not in tables:
                owner = parameters.get("ExpressionAttributeValues", {}).get(":holder", {}).get("S")
                self.note("cancelled", key=name, owner=owner, codes=outcome, by=process.name())
            elif outcome == "done" and kind != "ConditionCheck":
                about = {"transaction": self._transactions, "table": table, "name": name, "by": process.name()}
                self.note("applied", **about, item=tables[table].items.get(name))


def step_in(name: str) -> dict[str, Any]:
    """Return whose step has an item of a name: the key, its generation and the step's id; empty for any other item."""
    found = _STEP.fullmatch(name)
    return {} if found is None else {"key": found[1], "generation": int(found[2]), "step": found[3]}


def _name_in(parameters: dict[str, Any]) -> str:
    name: str = (parameters.get("Key") or parameters["Item"])["id"]["S"]
    return name
