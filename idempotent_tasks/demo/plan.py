"""What the demo will do to which payment: the same workload and the same kills for both phases, from one seed."""

from dataclasses import dataclass
from enum import StrEnum
from random import Random

__all__ = [
    "FEWEST_PAYMENTS",
    "MOST_PAYMENTS",
    "STRIKE_AFTER_SECONDS",
    "TIME_LIMIT_SECONDS",
    "VISIBILITY_TIMEOUT_SECONDS",
    "Fate",
    "Payment",
    "draw",
]

#: The broker delivers again what was not acknowledged for this long.
VISIBILITY_TIMEOUT_SECONDS = 5
#: The hard time limit of the payment's body: longer than any body here.
TIME_LIMIT_SECONDS = 9
#: How far into the first run of a doomed payment the kill falls.
STRIKE_AFTER_SECONDS = 0.8
#: One payment of each fate at least, and some that nothing happens to.
FEWEST_PAYMENTS = 8
#: What two workers get through within a phase's time.
MOST_PAYMENTS = 60


class Fate(StrEnum):
    """What goes wrong for a payment."""

    #: Nothing: one message, a body shorter than the visibility timeout.
    NONE = "none"
    #: The producer publishes it twice.
    TWICE = "published twice"
    #: Its body outlives the visibility timeout, so the broker delivers it again meanwhile.
    SLOW = "outlives the visibility timeout"
    #: The pool child that charges it is killed.
    CHILD_KILLED = "pool child killed"
    #: The whole worker that charges it is killed.
    WORKER_KILLED = "worker killed"


#: How long a body of each fate works, in seconds: from, to.
_SECONDS = {
    Fate.NONE: (0.5, 1.4),
    Fate.TWICE: (0.8, 1.8),
    Fate.SLOW: (6.2, 7.0),
    Fate.CHILD_KILLED: (2.6, 3.2),
    Fate.WORKER_KILLED: (2.6, 3.2),
}
#: How long after the first message a second one may follow, in seconds: at once, while the body runs, after it.
_GAPS = (0.0, 0.6, 3.0)
#: Payments published in a second.
_RATE = 4.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Payment:
    """One payment that is wanted exactly once, whatever its messages and workers go through."""

    name: str
    cents: int
    fate: Fate
    #: How long its body works.
    seconds: float
    #: When each of its messages is published, in seconds from the phase's start.
    publish_at: tuple[float, ...]


def draw(count: int, seed: int) -> tuple[Payment, ...]:
    """Draw the workload.

    Args:
        count: how many payments, `FEWEST_PAYMENTS` at least.
        seed: the same seed and count give the same workload.
    """
    random = Random(seed)  # noqa: S311 - a reproducible draw is the point
    fates = _fates(count)
    random.shuffle(fates)
    return tuple(_payment(index, fate, random) for index, fate in enumerate(fates))


def _fates(count: int) -> list[Fate]:
    bad = [
        *[Fate.WORKER_KILLED] * max(1, count // 40),
        *[Fate.CHILD_KILLED] * max(1, count // 10),
        *[Fate.SLOW] * max(1, count // 10),
        *[Fate.TWICE] * max(1, count // 4),
    ]
    return bad + [Fate.NONE] * (count - len(bad))


def _payment(index: int, fate: Fate, random: Random) -> Payment:
    first = index / _RATE
    # A doomed payment with a second message: the duplicate meets the claim of a run that will die.
    twice = fate is Fate.TWICE or (fate is Fate.CHILD_KILLED and index % 2 == 0)
    return Payment(
        name=f"pay-{index + 1:02d}",
        cents=random.randrange(500, 20_000),
        fate=fate,
        seconds=round(random.uniform(*_SECONDS[fate]), 2),
        publish_at=(first, first + random.choice(_GAPS)) if twice else (first,),
    )
