"""A broker that delivers at least once, and a kombu transport that publishes to it."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from kombu.exceptions import OperationalError
from kombu.transport import virtual

from idempotent_tasks.core.delivery import COPY_HEADER
from simulation.faults import Faults
from simulation.process import check_alive
from simulation.scheduler import Scheduler

__all__ = ["Broker", "Consumer", "Delivered", "Transport"]

#: The broker that `Transport` publishes to: that of the history that runs.
_current: list["Broker"] = []


@dataclass(eq=False, slots=True)
class Delivered:
    """A message that a consumer holds, unacknowledged."""

    payload: dict[str, Any]
    consumer: "Consumer"
    #: When it is delivered again unless it is acknowledged, in epoch seconds; None for never.
    until: float | None


@dataclass(eq=False, slots=True)
class Consumer:
    """A worker's connection that takes messages."""

    receive: Callable[["Delivered"], None]
    #: How many unacknowledged messages it takes at most.
    prefetch: Callable[[], int]
    held: list[Delivered] = field(default_factory=list)


class Broker:
    """One queue, in memory.

    Args:
        scheduler: of the history.
        faults: what goes wrong.
        visibility_seconds: after which an unacknowledged message is delivered again; None for only when its connection
            is lost.
    """

    def __init__(self, scheduler: Scheduler, faults: Faults, visibility_seconds: float | None) -> None:
        self.scheduler = scheduler
        self.faults = faults
        self.visibility_seconds = visibility_seconds
        self.ready: list[dict[str, Any]] = []
        self._consumers: list[Consumer] = []
        #: Every consumer that has taken a message, of dead workers too.
        self._holders: list[Consumer] = []
        _current[:] = [self]

    def publish(self, payload: dict[str, Any]) -> None:
        """Take a message, which may be refused, lost on the way back, or doubled."""
        check_alive()
        if self.faults.happens("publish-refused"):
            raise OperationalError("simulated: the broker does not take it")
        self._put(payload)
        if self.faults.happens("message-doubled"):
            self._put(payload)
        if self.faults.happens("publish-unconfirmed"):
            raise OperationalError("simulated: the connection is lost before the answer")

    def _put(self, payload: dict[str, Any]) -> None:
        self.ready.append(deepcopy(payload))
        self._deliver_soon()

    def subscribe(self, consumer: Consumer) -> None:
        """Deliver to a consumer from now on."""
        self._consumers.append(consumer)
        self._deliver_soon()

    def lose(self, consumer: Consumer) -> None:
        """Lose a consumer's connection: what it holds is delivered again, soon or after the visibility timeout."""
        self.cancel(consumer)
        for held in list(consumer.held):
            if self.visibility_seconds is None:
                self.faults.counts["restored"] += 1
                self._requeue(held)

    def cancel(self, consumer: Consumer) -> None:
        """Deliver nothing more to a consumer, which keeps what it holds."""
        if consumer in self._consumers:
            self._consumers.remove(consumer)

    def ack(self, held: Delivered) -> None:
        """Remove a message, unless it was delivered again since."""
        if held in held.consumer.held:
            held.consumer.held.remove(held)
            self._deliver_soon()

    def reject(self, held: Delivered, *, requeue: bool) -> None:
        """Deliver a message again, or drop it."""
        if held not in held.consumer.held:
            return
        if requeue:
            self.faults.counts["requeued"] += 1
            self._requeue(held)
        else:
            self.ack(held)

    def unsettled(self) -> int:
        """Return how many messages wait or are held."""
        return len(self.ready) + sum(len(consumer.held) for consumer in self._holders)

    def others_of(self, task_id: str, copy: str | None) -> int:
        """Return how many messages of a task wait or are held, but for those that have this copy's header."""
        payloads = [*self.ready, *(held.payload for consumer in self._holders for held in consumer.held)]
        headers = [payload["headers"] for payload in payloads]
        return sum(each["id"] == task_id and each.get(COPY_HEADER) != copy for each in headers)

    def _requeue(self, held: Delivered) -> None:
        held.consumer.held.remove(held)
        payload = deepcopy(held.payload)
        payload["properties"]["delivery_info"]["redelivered"] = True
        # Some brokers put it where it was, others at the end.
        self.ready.insert(self.scheduler.draw.choice([0, len(self.ready)]), payload)
        self._deliver_soon()

    def _deliver_soon(self) -> None:
        self.scheduler.after(self.scheduler.draw.uniform(0.0, 0.01), self._deliver)

    def _deliver(self) -> None:
        takers = [consumer for consumer in self._consumers if len(consumer.held) < consumer.prefetch()]
        while self.ready and takers:
            consumer = self.scheduler.draw.choice(takers)
            place = self._place()
            payload = self.ready.pop(place)
            until = None if self.visibility_seconds is None else self.scheduler.now + self.visibility_seconds
            held = Delivered(payload, consumer, until)
            consumer.held.append(held)
            if consumer not in self._holders:
                self._holders.append(consumer)
            if until is not None:
                self.scheduler.at(until, partial(self._time_out, held))
            consumer.receive(held)
            takers = [each for each in takers if len(each.held) < each.prefetch()]

    def _place(self) -> int:
        """Return which of the waiting messages is delivered next: the first, unless they are reordered."""
        if len(self.ready) > 1 and self.faults.happens("message-reordered"):
            return self.scheduler.draw.randrange(1, len(self.ready))
        return 0

    def _time_out(self, held: Delivered) -> None:
        if held in held.consumer.held:
            self.faults.counts["visibility-timeout"] += 1
            self._requeue(held)


class _Channel(virtual.Channel):
    """Publishes to the broker of the history that runs."""

    def _put(self, queue: str, message: dict[str, Any], **_: Any) -> None:
        _current[0].publish(message)

    def _size(self, queue: str) -> int:
        return 0

    def _purge(self, queue: str) -> int:
        return 0


class Transport(virtual.Transport):
    """kombu's transport to the simulated broker; workers take their messages from `Broker` itself."""

    Channel = _Channel
    driver_type = "simulated"
    driver_name = "simulated"
    connection_errors = (OperationalError,)
    channel_errors = ()
