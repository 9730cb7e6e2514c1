"""The one who strikes: each blow of the plan falls on a body that runs when its time has come."""

import signal
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from benchmarks.chaos.fleet import Fleet
from benchmarks.chaos.history import History, Run, What
from benchmarks.chaos.journal import Journal
from benchmarks.chaos.plan import Strike

__all__ = ["Nemesis"]

#: A blow that finds no victim for so many seconds falls no more.
PATIENCE_SECONDS: Final = 15.0


@dataclass(kw_only=True)
class Nemesis:
    """Strikes one contender as planned."""

    strikes: Sequence[Strike]
    fleet: Fleet
    journal: Journal
    #: How many blows found no victim.
    missed: int = 0
    _next: int = 0
    _stopped: list[tuple[float, Run, Strike]] = field(default_factory=list)

    @property
    def done(self) -> bool:
        """Whether every blow fell, and everything that was paused goes on again."""
        return self._next == len(self.strikes) and not self._stopped

    def strike(self, elapsed: float, history: History) -> None:
        """Let the blows fall that are due.

        Args:
            elapsed: seconds from the beginning.
            history: everything until now; what falls here is not in it yet.
        """
        self._resume(elapsed)
        victims = [run for run in history.running() if not self._is_stopped(run) and self.fleet.has(run.started.worker)]
        while self._next < len(self.strikes) and self.strikes[self._next].at <= elapsed:
            strike = self.strikes[self._next]
            if victims:
                victim = victims[int(strike.rank * len(victims))]
                self._fall(strike, victim, elapsed)
                victims = [run for run in victims if run.started.worker != victim.started.worker]
            elif elapsed - strike.at < PATIENCE_SECONDS:
                return
            else:
                self.missed += 1
            self._next += 1

    def resume_all(self) -> None:
        """Let everything go on that is still paused."""
        self._resume(float("inf"))

    def _fall(self, strike: Strike, victim: Run, elapsed: float) -> None:
        what = What.KILLED if strike.kind.kills else What.PAUSED
        worker, pid = victim.started.worker, victim.started.pid
        # Before the signal: what a victim's successor does is then never older than the blow.
        self.journal.append(what, worker=worker, pid=0 if strike.kind.whole_worker else pid, key=victim.key)
        if not strike.kind.kills:
            self._stopped.append((elapsed + strike.seconds, victim, strike))
        number = signal.SIGKILL if strike.kind.kills else signal.SIGSTOP
        if not strike.kind.whole_worker:
            self.fleet.send_to_child(worker, pid, number)
        elif strike.kind.kills:
            self.fleet.kill(worker)
        else:
            self.fleet.send(worker, number)

    def _resume(self, elapsed: float) -> None:
        for due in [each for each in self._stopped if each[0] <= elapsed]:
            self._stopped.remove(due)
            _, victim, strike = due
            worker, pid = victim.started.worker, victim.started.pid
            if strike.kind.whole_worker:
                self.fleet.send(worker, signal.SIGCONT)
            else:
                self.fleet.send_to_child(worker, pid, signal.SIGCONT)
            self.journal.append(What.RESUMED, worker=worker, pid=0 if strike.kind.whole_worker else pid)

    def _is_stopped(self, run: Run) -> bool:
        return any(
            run.started.worker == victim.started.worker
            if strike.kind.whole_worker
            else run.started.pid == victim.started.pid
            for _, victim, strike in self._stopped
        )
