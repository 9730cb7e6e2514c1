"""Workflows whose first tasks are guarded `charge`s, and what follows them told apart by name."""

import json
from dataclasses import dataclass
from typing import Any

import redis
from celery import Signature

from tests.support.rig import Rig
from tests.testbed.brokers import messages_held
from tests.testbed.waiting import POLL_SECONDS

__all__ = ["PATIENT_SECONDS", "RESULT", "Canvases"]

#: What every `charge` returns.
RESULT = 17
#: The visibility timeout of a worker that is killed while it holds messages: nobody else shall get them before.
PATIENT_SECONDS = 60
#: How often in a row the broker must be found empty: Redis hands a message over in two steps.
LOOKS = int(0.4 / POLL_SECONDS)
IDLE_SECONDS = 40.0


@dataclass(frozen=True)
class Canvases:
    """Makes the signatures of one rig on Redis, and counts what they did."""

    rig: Rig

    def charge(self, order: str, **options: Any) -> Signature:
        """Return a guarded task that returns `RESULT`."""
        return self.rig.app.tasks["charge"].s(order, RESULT).set(**options)

    def guarded(self, name: str, **options: Any) -> Signature:
        """Return a guarded task that follows another and passes its result on; its key is its task id."""
        return self.rig.app.tasks["follow"].s(name).set(**options)

    def plain(self, name: str, **options: Any) -> Signature:
        """Return the same as a plain Celery task."""
        return self.rig.app.tasks["follow_plain"].s(name).set(**options)

    def effects(self, name: str) -> list[Any]:
        """Return the values with which the follower of this name had its effect, one for each time."""
        return [entry["value"] for entry in self.rig.journal.entries("effect", key=name)]

    def ids(self, name: str) -> list[str]:
        """Return the distinct task ids under which the task of this name had its effect."""
        return sorted({entry["id"] for entry in self.rig.journal.entries("effect", key=name)})

    def state(self, task_id: str) -> str:
        """Return the state that the result backend has now."""
        return str(self.rig.app.backend.get_task_meta(task_id, cache=False)["status"])

    def wait_until_idle(self) -> None:
        """Return when the broker has no message any more, neither waiting nor unacknowledged.

        Raises:
            TimeoutError: with the journal.
        """
        empty = 0

        def idle() -> bool:
            nonlocal empty
            empty = 0 if messages_held(self.rig.app) else empty + 1
            return empty >= LOOKS

        self.rig.journal.wait_until(idle, IDLE_SECONDS, "the broker still has messages")

    def wait_until_acknowledged(self, task: str) -> None:
        """Return when the worker has acknowledged every message of a plain task that had its effect.

        A worker that is killed before that leaves a message that Celery rightly runs again.

        Raises:
            TimeoutError: with the journal.
        """
        done = {entry["id"] for entry in self.rig.journal.entries("effect", task=task)}
        self.rig.journal.wait_until(
            lambda: not done & self._unacknowledged(), IDLE_SECONDS, f"a {task} that is over is not acknowledged"
        )

    def _unacknowledged(self) -> set[str]:
        config = self.rig.config
        with redis.Redis.from_url(config.broker_url) as client:
            held = client.hvals(f"{config.transport_options['global_keyprefix']}unacked")
            return {json.loads(each)[0]["headers"]["id"] for each in held}
