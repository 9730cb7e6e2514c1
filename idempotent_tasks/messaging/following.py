"""Tasks that follow a body's transaction: in its receipt as texts, and published from there."""

from collections.abc import Sequence
from typing import Any

from celery.canvas import maybe_signature
from kombu.utils import json

from idempotent_tasks.core.receipts import WHOLE_BODY, Following
from idempotent_tasks.core.records import Claim
from idempotent_tasks.errors import ConfigurationError
from idempotent_tasks.messaging.callbacks import derive_task_ids

__all__ = ["SignaturesToFollow"]


class SignaturesToFollow(Following):
    """What publishes the signatures that a body has given to ``self.idempotency.after_commit()``.

    Args:
        app: the Celery app of the task.
    """

    def __init__(self, app: Any) -> None:
        self._app = app

    def encode(self, signatures: Sequence[Any], claim: Claim, step: str = WHOLE_BODY) -> Sequence[str]:
        """Return signatures as JSON, with ids of the key, its generation, step and place; see `Following.encode`."""
        clones = [maybe_signature(each, app=self._app).clone() for each in signatures]
        place = "after_commit" if step == WHOLE_BODY else f"after_commit of {step}"
        derive_task_ids(clones, f"{claim.key}/{claim.generation}/{place}")
        try:
            return [str(json.dumps(each)) for each in clones]
        except Exception as error:
            msg = (
                "a signature given to after_commit() has arguments without a JSON form; pass ids, or other plain values"
            )
            raise ConfigurationError(msg, claim.request.task, claim.key) from error

    def send(self, texts: Sequence[str]) -> None:
        """Publish what `encode` returned; raises what the broker's client raises."""
        for text in texts:
            maybe_signature(json.loads(text), app=self._app).apply_async()
