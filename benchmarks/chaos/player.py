"""Plays the plan on one contender: publishes, strikes, supervises, watches until nothing happens, has keys resolved."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from celery.states import READY_STATES

from benchmarks import provider
from benchmarks.chaos.arena import Arena, Reader, now
from benchmarks.chaos.contenders import CONTENDERS, build_app
from benchmarks.chaos.fleet import WORKER_APP, WORKERS, Fleet, Nemesis, environment_of
from benchmarks.chaos.history import Event, History, What
from benchmarks.chaos.plan import Job, Message, Plan
from benchmarks.parked import Operator
from tests.testbed.brokers import messages_held

__all__ = ["Game", "Player"]

TICK_SECONDS: Final = 0.1
#: Results and broker are asked less often than the journal is read.
LOOK_SECONDS: Final = 1.0
START_SECONDS: Final = 90.0
#: Seconds of silence after which a contender is done: where every publisher has its result; where one has not, and the
#: broker tells that it holds nothing; and where the broker does not tell, longer than the longest countdown.
QUIET_SECONDS: Final = 3.0
EMPTY_SECONDS: Final = 6.0
UNTOLD_SECONDS: Final = 35.0
#: Seconds for what is published again when parked keys were resolved.
RESOLVED_SECONDS: Final = 60.0


@dataclass(frozen=True, kw_only=True)
class Game:
    """What all players of a run share."""

    plan: Plan
    pool: str
    #: The players begin together when each of them has its workers.
    start: threading.Barrier
    #: Set when the run is to end early.
    stop: threading.Event
    #: Seconds from the beginning after which a player that has not settled gives up.
    limit_seconds: float


@dataclass(kw_only=True)
class Player:
    """The state of one contender while it is played."""

    arena: Arena
    game: Game
    #: Returns, when all is over, the effects that were not in the journal before: those of transactions.
    committed_effects: Callable[[], Iterable[Mapping[str, Any]]] = tuple
    history: History = field(default_factory=History)
    settled: bool = False
    seconds: float = 0.0
    missed: int = 0
    #: Publications so far whose result is not known to be final: message id to key.
    _waiting: dict[str, str] = field(default_factory=dict)
    _published: int = 0

    def __post_init__(self) -> None:
        self._journal = self.arena.journal
        self._reader = Reader(self._journal.path)
        self._app = build_app(self.arena)
        self._jobs = {job.key: job for job in self.game.plan.jobs}

    def play(self) -> list[Event]:
        """Play the whole plan and return what happened.

        Raises:
            TimeoutError: the workers did not come up.
            threading.BrokenBarrierError: those of another player did not.
        """
        with Fleet(self.arena, self.game.pool) as fleet, self._closing():
            fleet.fill()
            self._await_workers(fleet)
            self.game.start.wait(START_SECONDS)
            self._play(fleet)
        for effect in self.committed_effects():
            self._journal.append(What.EFFECT, **effect)
        self._take_news()
        return self.history.events

    def _await_workers(self, fleet: Fleet) -> None:
        give_up_at = now() + START_SECONDS
        while len({event.worker for event in self.history.of(What.READY)}) < WORKERS:
            self._take_news()
            time.sleep(TICK_SECONDS)
            if now() > give_up_at or self.game.stop.is_set():
                raise TimeoutError(f"the workers of {self.arena.contender} are not ready:\n{fleet.tails()}")

    def _play(self, fleet: Fleet) -> None:
        nemesis = Nemesis(strikes=self.game.plan.strikes, fleet=fleet, journal=self._journal)
        begun = looked = last_sign = now()
        give_up_at = begun + self.game.limit_seconds
        while not self.game.stop.is_set() and now() < give_up_at:
            elapsed = now() - begun
            fleet.fill()
            busy = self._take_news()
            # Before the publications: a message that comes in the instant of a kill is often lost with the worker.
            nemesis.strike(elapsed, self.history)
            busy = self._publish_until(elapsed) or busy or self._published < len(self.game.plan.messages)
            if now() - looked > LOOK_SECONDS:
                looked = now()
                busy = self._look() or busy
            if busy or self.history.running() or not nemesis.done:
                last_sign = now()
            elif now() - last_sign > self._quiet_seconds():
                if not self._resolve_parked():
                    self.settled = True
                    break
                last_sign, give_up_at = now(), now() + RESOLVED_SECONDS
            time.sleep(TICK_SECONDS)
        nemesis.resume_all()
        self.seconds, self.missed = now() - begun, nemesis.missed
        if not messages_held(self._app):
            self._journal.append(What.EMPTY)
        self._read_results(self._message_keys(), at_end=True)

    def _resolve_parked(self) -> bool:
        """Have an operator resolve what is parked, and return whether anything was."""
        if not CONTENDERS[self.arena.contender].parks:
            return False
        keys = self._message_keys()
        resolved = Operator(WORKER_APP, environment_of(self.arena)).resolve_parked(
            lambda record: keys[record["task_id"]], lambda key: provider.ask(self.arena.provider_url, key)
        )
        for key, decision in resolved:
            self._journal.append(What.RESOLVED, key=key, state=decision)
        # Their publishers had been given an error.
        self._waiting |= {task_id: key for task_id, key in keys.items() if key in dict(resolved)}
        return bool(resolved)

    def _quiet_seconds(self) -> float:
        if not self._waiting:
            return QUIET_SECONDS
        return EMPTY_SECONDS if self.arena.is_forgetful else UNTOLD_SECONDS

    def _publish_until(self, elapsed: float) -> bool:
        messages = self.game.plan.messages
        before = self._published
        while self._published < len(messages) and messages[self._published].at <= elapsed:
            self._publish(messages[self._published])
            self._published += 1
        return self._published > before

    def _publish(self, message: Message) -> None:
        job = self._jobs[message.key]
        result = self._app.tasks[self.arena.task_name].apply_async(kwargs=_arguments(job))
        # celery-once says that it published nothing by a result without an id.
        if result.id is None:
            self._journal.append(What.DROPPED, key=job.key)
        else:
            self._journal.append(What.PUBLISHED, key=job.key, task_id=result.id)
            self._waiting[result.id] = job.key

    def _look(self) -> bool:
        """Look for results, and return whether the broker still holds a message."""
        self._read_results(dict(self._waiting), at_end=False)
        return messages_held(self._app) > 0

    def _read_results(self, keys: dict[str, str], *, at_end: bool) -> None:
        for task_id, key in keys.items():
            meta: dict[str, Any] = self._app.backend.get_task_meta(task_id, cache=False)
            if at_end or meta["status"] in READY_STATES:
                self._waiting.pop(task_id, None)
                value = str(meta["result"])[:200]
                self._journal.append(What.RESULT, key=key, task_id=task_id, state=meta["status"], value=value)

    def _message_keys(self) -> dict[str, str]:
        return {event.task_id: event.key for event in self.history.of(What.PUBLISHED)}

    def _take_news(self) -> bool:
        news = self._reader.news()
        for event in news:
            self.history.take(event)
        return bool(news)

    @contextmanager
    def _closing(self) -> Iterator[None]:
        try:
            yield
        finally:
            with self._app.connection_for_write() as connection:
                self._app.amqp.queues[self.arena.queue](connection.default_channel).delete()
            self._app.close()


def _arguments(job: Job) -> dict[str, Any]:
    return {"key": job.key, "seconds": job.seconds, "effect_seconds": job.effect_seconds}
