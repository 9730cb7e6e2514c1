"""What one contender has to itself: queue, prefixes, locks, table, journal; a value that travels to its workers."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.chaos.journal import Journal

__all__ = ["VARIABLE", "Arena"]

#: The environment variable that carries an `Arena` to a worker, as JSON.
VARIABLE: Final = "IDEMPOTENT_TASKS_STORM_ARENA"


@dataclass(frozen=True, kw_only=True)
class Arena:
    """All that a worker process must know; nothing in it is shared with another contender or another run."""

    contender: str
    #: Begins the names of the task, of the queue and of all keys in Redis.
    prefix: str
    broker_url: str
    transport_options: dict[str, Any]
    #: A Redis database for the results, and one for the locks of those who keep theirs in Redis.
    result_backend: str
    lock_url: str
    #: The DynamoDB endpoint, region and table of those who keep records; empty for the others.
    endpoint: str
    region: str
    table: str
    #: Where its workers get their AWS credentials from; empty where their environment has them.
    credentials_uri: str
    #: Whether its messages carry the headers of a tracing SDK.
    traced: bool
    #: Where the journal and the logs are.
    directory: str

    @property
    def journal(self) -> Journal:
        """Where everything about this contender is written down."""
        return Journal(Path(self.directory) / "journal.jsonl")

    @property
    def task_name(self) -> str:
        """The name of the one task."""
        return f"{self.prefix}.charge"

    @property
    def queue(self) -> str:
        """The name of the one queue."""
        return f"{self.prefix}.queue"

    def to_json(self) -> str:
        """Return the text for the environment."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Arena":
        """Read the text of `to_json`."""
        return cls(**json.loads(text))
