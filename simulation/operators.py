"""Operators: release, forget and purge records at random moments, as ``celery idempotency`` does."""

from typing import TYPE_CHECKING, Any

from idempotent_tasks.cli.context import AdminContext
from idempotent_tasks.cli.format import is_live, state
from idempotent_tasks.cli.modify import REASON
from idempotent_tasks.cli.records import matching
from idempotent_tasks.core.processes import this_process
from idempotent_tasks.core.records import Record
from idempotent_tasks.errors import StoreError
from idempotent_tasks.stores.dynamodb import DynamoDBStore
from simulation.app import app

if TYPE_CHECKING:
    from simulation.world import World

__all__ = ["Operator"]


class Operator:
    """A person with a terminal, on a machine that has workers too."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self._process = world.new_process(world.draw.choice(world.machines))

    @property
    def name(self) -> str:
        """The process's name."""
        return self._process.name() or ""

    def act(self, kind: str) -> None:
        """Do to a record, or to all of them, what one command does; forcibly or not."""
        self._process.spawn(lambda: self._act(kind, force=self._world.draw.random() < 0.5), "command")

    def _act(self, kind: str, *, force: bool) -> None:
        recorded: Any = self._world.store_of(this_process())
        # An operator writes without the store's calls.
        store: DynamoDBStore = recorded.store
        admin = AdminContext(app=app, store=store)
        # What was shown is looked at for a while.
        try:
            found = [each for each in matching(admin, states=(), task=None, before=None) if isinstance(each, Record)]
            self._world.scheduler.sleep(self._world.draw.uniform(0, 2))
            for record in found if kind == "purged" else self._world.draw.sample(found, min(len(found), 1)):
                if force or not (is_live(record, admin.now()) or record.parked_bytes or record.parked_at is not None):
                    self._change(admin, kind, record, force=force)
        except StoreError as error:
            self._world.note("command-failed", why=type(error).__name__)

    def _change(self, admin: AdminContext, kind: str, record: Record, *, force: bool) -> None:
        self._world.note(kind, key=record.key, force=force)
        if kind != "released":
            admin.operations.delete(record, force=force)
        elif state(record, admin.now()) in ("running", "reserved"):
            admin.operations.release(record, REASON, force=force)
