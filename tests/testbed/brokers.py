"""How the tests use each broker: its URL, and options that make a lost delivery come back within seconds."""

from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urlsplit

__all__ = ["Broker", "rabbitmq", "redis", "sqs"]

VISIBILITY_SECONDS = 5
#: Longer than billiard needs to notice a dead child (up to 5 s): kombu 5.7 stops the whole worker where it rejects
#: an SQS message that was delivered again meanwhile (``ReceiptHandleIsInvalid``).
CHILD_LOSS_SECONDS = 20


@dataclass(frozen=True)
class Broker:
    """One broker, ready for `app.conf`."""

    name: str
    url: str
    transport_options: dict[str, Any] = field(default_factory=dict)

    def with_visibility(self, seconds: int) -> "Broker":
        """Return this broker with another visibility timeout, if it has one at all."""
        if "visibility_timeout" not in self.transport_options:
            return self
        return replace(self, transport_options={**self.transport_options, "visibility_timeout": seconds})


def redis(url: str, prefix: str) -> Broker:
    """Redis, whose sweep for unacknowledged messages would take 100 s by default."""
    options = {
        "global_keyprefix": prefix,
        "visibility_timeout": VISIBILITY_SECONDS,
        "unacked_restore_interval": 1,
        "unacked_restore_throttle": 1,
        # A worker that is killed while it gives messages back keeps the others from it for so long: 300 s by default.
        "unacked_mutex_expire": 3,
    }
    return Broker("redis", f"{url}/0", options)


def rabbitmq(url: str) -> Broker:
    """RabbitMQ, which gives a delivery back as soon as its connection is gone."""
    return Broker("rabbitmq", url)


def sqs(endpoint: str) -> Broker:
    """SQS of an emulator, which never marks a redelivery and wants a fresh queue for each visibility timeout."""
    options = {
        "region": "us-east-1",
        "is_secure": False,
        "visibility_timeout": VISIBILITY_SECONDS,
        "wait_time_seconds": 0,
        "polling_interval": 0.2,
    }
    return Broker("sqs", f"sqs://testing:testing@{urlsplit(endpoint).netloc}", options)
