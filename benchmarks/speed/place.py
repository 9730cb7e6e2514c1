"""Where one contender is measured: a value that travels to its workers in the environment."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

__all__ = ["REGION", "VARIABLE", "Place"]

#: The environment variable that carries a `Place` to a worker, as JSON.
VARIABLE: Final = "IDEMPOTENT_TASKS_SPEED_PLACE"
REGION: Final = "eu-west-1"


@dataclass(frozen=True, kw_only=True)
class Place:
    """All that a worker process must know; its names belong to one contender in one round."""

    contender: str
    #: Begins the names of the queues and of all keys in Redis and in the table.
    prefix: str
    broker_url: str
    result_backend: str
    #: The DynamoDB endpoint and table.
    endpoint: str
    table: str
    #: An empty folder for the marks and the log.
    directory: str

    @property
    def folder(self) -> Path:
        """The folder as a path."""
        return Path(self.directory)

    @property
    def failure(self) -> Path:
        """The file that is there once a task has failed."""
        return self.folder / "failure"

    @property
    def queue(self) -> str:
        """The name of the queue that the worker consumes."""
        return f"{self.prefix}.queue"

    @property
    def staging_queue(self) -> str:
        """The name of the queue that collects messages before the worker may have them."""
        return f"{self.prefix}.staged"

    @property
    def unacknowledged(self) -> str:
        """The Redis key of the messages that were delivered and not yet acknowledged."""
        return f"{self.prefix}.unacked"

    @property
    def transport_options(self) -> dict[str, Any]:
        """Kombu's options: keys of its own, because a server may have other users."""
        return {
            "unacked_key": self.unacknowledged,
            "unacked_index_key": f"{self.unacknowledged}.index",
            "unacked_mutex_key": f"{self.unacknowledged}.mutex",
        }

    def to_json(self) -> str:
        """Return the text for the environment."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Place":
        """Read the text of `to_json`."""
        return cls(**json.loads(text))
