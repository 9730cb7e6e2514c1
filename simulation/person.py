"""The person who decides parked keys, with the calls of ``celery idempotency resolve``, in their order."""

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from kombu.exceptions import OperationalError

from idempotent_tasks.cli.context import AdminContext
from idempotent_tasks.cli.resolve import leave_receipt
from idempotent_tasks.core.encoding import JSON, encode_result
from idempotent_tasks.core.policy import Idempotency
from idempotent_tasks.core.processes import this_process
from idempotent_tasks.core.receipts import WHOLE_BODY
from idempotent_tasks.core.records import Outcome, Record
from idempotent_tasks.errors import RecordNotFoundError, StoreError
from idempotent_tasks.messaging.parking import decoded_message, publish_parked
from idempotent_tasks.settings import settings_of
from idempotent_tasks.stores.dynamodb import DynamoDBStore
from simulation.app import app
from simulation.items import is_parked
from simulation.tasks import ASKING, UNRESOLVED_SECONDS

if TYPE_CHECKING:
    from simulation.world import World

__all__ = ["Person"]

#: Seconds for which an outcome is kept: longer than any history.
KEPT_SECONDS: Final = 100_000.0


class _AbortedError(Exception):
    """The person has pressed Ctrl-C."""


class Person:
    """Decides keys that are parked, now and then, and at the end all of them.

    Args:
        world: the history's.
    """

    def __init__(self, world: "World") -> None:
        self._world = world
        self._process = world.new_process(world.draw.choice(world.machines))
        self._decisions = 0
        #: How many commands run; one that is killed is never over.
        self.busy = 0
        #: Returns what the body would have returned; None where it is to run again.
        self.judge: Callable[[Record], int | None] = self._judgement
        #: Returns for how many seconds the next step waits.
        self.pause = self._some_seconds

    @property
    def name(self) -> str:
        """The process's name."""
        return self._process.name() or ""

    def act(self) -> None:
        """Resolve one key that is parked, or whose messages are to be published yet."""
        self._process.spawn(lambda: self._resolve_some(most=1), "command")

    def look_again(self, seconds: float) -> None:
        """Resolve all keys now, and again after so many seconds."""
        self._process.spawn(lambda: self._resolve_some(most=None), "command")
        self._world.scheduler.after(seconds, lambda: self.look_again(seconds))

    def _resolve_some(self, most: int | None) -> None:
        self.busy += 1
        items = self._world.service.table.items
        keys = [key for key, item in sorted(items.items()) if is_parked(item) or "parked" in item]
        for key in keys if most is None else self._world.draw.sample(keys, min(len(keys), most)):
            with suppress(_AbortedError):
                try:
                    self._resolve(key)
                except (StoreError, OperationalError) as error:
                    self._world.note("command-failed", why=type(error).__name__)
        self.busy -= 1

    def _resolve(self, key: str) -> None:
        recorded: Any = self._world.store_of(this_process())
        store: DynamoDBStore = recorded.store
        admin = AdminContext(app=app, store=store)
        with suppress(RecordNotFoundError):
            record = store.get(key)
            if record.parked_at is not None:
                self._decide(admin, record)
            record = store.get(key)
            for task_id, message in record.parked.items():
                self._think()
                publish_parked(app, decoded_message(message))
                self._world.note("published-again", key=key, id=task_id)
                self._think()
                admin.operations.remove_message(record, task_id)

    def _decide(self, admin: AdminContext, record: Record) -> None:
        self._think()
        value = self.judge(record)
        outcome = None if value is None else encode_result(value, JSON)
        self._world.note("deciding", key=record.key, done=value)
        problem = None if outcome is None else self._leave_receipt(record, outcome, admin.now())
        if problem is not None:
            self._world.note("command-refused", key=record.key, why=problem)
            # As the command says: the next run takes the result of the receipt; and where nobody knows, later.
            if (record.key, WHOLE_BODY) not in self._world.database.rows:
                return
            value = outcome = None
        kept = UNRESOLVED_SECONDS if outcome is None else KEPT_SECONDS
        is_written = admin.operations.resolve(record, outcome, kept)
        self._world.note("resolved", key=record.key, done=value, written=is_written)

    def _leave_receipt(self, record: Record, outcome: Outcome, now: float) -> str | None:
        policy: Idempotency = app.tasks[self._world.history.task].policy_under(settings_of(app))
        receipts = policy.imported_receipts
        return None if receipts is None else leave_receipt(receipts, policy, record, outcome, now)

    def _judgement(self, record: Record) -> int | None:
        if self._world.history.task in ASKING:
            return self._world.provider.look_up(record.key)
        self._decisions += 1
        return self._world.draw.choice([None, 1_000 + self._decisions])

    def _some_seconds(self) -> float:
        return self._world.draw.choice([0.0, self._world.draw.uniform(0, 2)])

    def _think(self) -> None:
        """Take a while, or go away."""
        world = self._world
        world.scheduler.sleep(self.pause())
        if world.faults.happens("resolve-aborted", shows=True):
            raise _AbortedError
