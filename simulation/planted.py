"""Planted bugs: changes of the shipped code that break the promise, and that the simulation must find."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import CodeType, ModuleType
from typing import Final

__all__ = ["PLANTED", "PlantedBug", "plant"]


@dataclass(frozen=True, slots=True)
class PlantedBug:
    """One change of one module's source text."""

    name: str
    #: Of a history that finds it.
    seed: int
    module: str
    old: str
    new: str


def _bug(name: str, seed: int, module: str, old: str, new: str) -> PlantedBug:
    return PlantedBug(name, seed, f"idempotent_tasks.{module}", old, new)


_UPDATES: Final = "stores.dynamodb.updates"
_GUARD: Final = "core.guard"
_HANDLER: Final = "messaging.handler"
_LEASE: Final = "core.lease"

#: Conditions of the writes, and rules of guard, lease, handler and reaper.
PLANTED: Final = (
    _bug(
        "claim takes a live claim",
        1,
        _UPDATES,
        "#in_progress_expiration < :now_ms OR #owner",
        "#in_progress_expiration > :zero OR #owner",
    ),
    _bug("claim takes an outcome", 1, _UPDATES, '"(#status = :inprogress AND (#in', '"(#status <> :zero AND (#in'),
    _bug(
        "claim counts no fence",
        1,
        _UPDATES,
        "#fence = if_not_exists(#fence, :first_fence) + :one",
        "#fence = if_not_exists(#fence, :one)",
    ),
    _bug(
        "commit by anybody",
        701,
        _UPDATES,
        """        remove=("deferred", *_absent(optional)),
        condition=_HELD,""",
        """        remove=("deferred", *_absent(optional)),
        condition="#status = :inprogress OR #owner = :holder",""",
    ),
    _bug(
        "commit over an outcome",
        105,
        _UPDATES,
        """        remove=("deferred", *_absent(optional)),
        condition=_HELD,""",
        """        remove=("deferred", *_absent(optional)),
        condition="#owner = :holder OR #status <> :inprogress",""",
    ),
    _bug(
        "release by anybody",
        8,
        _UPDATES,
        "actions=actions, condition=_HELD, operands",
        'actions=actions, condition="#status = :inprogress OR #owner = :holder", operands',
    ),
    _bug(
        "release keeps the owner",
        12,
        _UPDATES,
        'remove=("owner", "deferred"), actions',
        'remove=("deferred",), actions',
    ),
    _bug(
        "no release after a failure",
        13,
        _GUARD,
        "run.hand_over(type(error).__name__, crashed=self._is_crash(error))",
        "pass",
    ),
    _bug(
        "no commit",
        1,
        _GUARD,
        "answer = self.store.commit(run, replace(outcome, continuation=run.continuation))",
        "answer = Committed()",
    ),
    _bug("no renewal", 72, _LEASE, "if not self.terms.renewed:", "if True:"),
    _bug(
        "busy deliveries are dropped",
        1,
        _HANDLER,
        'self._defer(holder.held_until - now, "busy", holder)',
        "raise Ignore",
    ),
    _bug(
        "merging without proof",
        1,
        _HANDLER,
        "if copy is not None and holder.awaits_successor(copy, now):",
        "if copy is not None:",
    ),
    _bug(
        "unclaimed deliveries are dropped",
        0,
        _HANDLER,
        "return self._defer_or_raise(error)\n\n    def _defer_or_raise",
        "raise Ignore\n\n    def _defer_or_raise",
    ),
    _bug(
        "a replay sends nothing",
        0,
        _HANDLER,
        "        if dispatched:\n            if self._has",
        "        if True:\n            if self._has",
    ),
    _bug(
        "a replay runs the body",
        94,
        _HANDLER,
        "return self._replay(record)\n            case Superseded",
        "return body(UnguardedRun())\n            case Superseded",
    ),
    _bug(
        "the superseded keeps its own result",
        701,
        _GUARD,
        "self._emit(events.Superseded, claim.request, fence=claim.fence)\n                return answer",
        "self._emit(events.Superseded, claim.request, fence=claim.fence)",
    ),
    _bug(
        "the reaper waits for no end",
        47,
        "worker.reaper",
        "ended = self.process.wait_for_end(pid, EXIT_WAIT_SECONDS)",
        "ended = True",
    ),
    _bug(
        "every holder has ended",
        1,
        _GUARD,
        "if isinstance(answer, Busy) and this_process().has_ended(answer.holder.process):",
        "if isinstance(answer, Busy):",
    ),
    _bug(
        "a lock is not claimed", 69, _GUARD, "case Granted() if request.lock is not None:", "case Granted() if False:"
    ),
)


class _Planter(MetaPathFinder):
    """Finds one module, and changes its text on the way."""

    def __init__(self, bug: PlantedBug) -> None:
        self._bug = bug

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec of the module that has the bug; None for any other."""
        if fullname != self._bug.module:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        assert spec is not None
        spec.loader = _Loader(self._bug, spec)
        return spec


class _Loader(SourceFileLoader):
    """Loads a module with a bug."""

    def __init__(self, bug: PlantedBug, spec: ModuleSpec) -> None:
        super().__init__(spec.name, spec.origin or "")
        self._bug = bug

    def get_code(self, fullname: str) -> CodeType:
        """Compile the changed text, never the cached one."""
        text = self.get_data(self.path).decode()
        if text.count(self._bug.old) != 1:
            raise ValueError(f"{self._bug.name!r}: its text is {text.count(self._bug.old)} times in {fullname}")
        code: CodeType = compile(text.replace(self._bug.old, self._bug.new), self.path, "exec")
        return code


def plant(name: str) -> PlantedBug:
    """Plant a bug, by its name, before its module is imported."""
    bug = next(each for each in PLANTED if each.name == name)
    assert bug.module not in sys.modules, f"{bug.module} is imported already"
    sys.meta_path.insert(0, _Planter(bug))
    return bug
