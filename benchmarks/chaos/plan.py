"""What one seed decides: the work, its duplicates, and who is struck when; the same for every contender. Pure."""

import json
import random
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum
from hashlib import sha256
from typing import Final, Generic, TypeVar

__all__ = [
    "LAST_RANK",
    "Deck",
    "Job",
    "Message",
    "Outage",
    "Plan",
    "Rotation",
    "Strike",
    "StrikeKind",
    "Trouble",
    "draw",
]

#: Seconds between two messages on average: about four bodies of a contender run at a time.
SECONDS_PER_MESSAGE: Final = 0.45
#: One body of six is long, up to almost twice the visibility timeout; the others are short.
LONG_SHARE: Final = 1 / 6
SHORT_SECONDS: Final = (0.2, 1.5)
LONG_SECONDS: Final = (2.0, 7.0)
#: Four effects of five come near the end of their body, as a careful author puts them; in parts of its length.
LATE_SHARE: Final = 0.8
LATE_EFFECT: Final = (0.85, 0.99)
EARLY_EFFECT: Final = (0.1, 0.85)
#: Half of the duplicates are published while the first is likely to run, half of them up to so many seconds later.
LATEST_DUPLICATE: Final = 12.0
#: So many kills hit a whole worker, the others one child of its pool.
WORKER_SHARE: Final = 0.1
PAUSED_WORKER_SHARE: Final = 0.5
#: A pool of threads can only be killed as a whole, and a worker that is killed every second never ends a body.
THREADS_SHARE: Final = 0.25
#: Pauses, for each kill; and how long they are, in seconds: longer than any contender's claim of a few seconds.
PAUSE_SHARE: Final = 0.2
PAUSE_SECONDS: Final = (6.0, 16.0)
#: Outages of the store: how many seconds of the run come with one, and how long one is. A lease of a few seconds is
#: meant to outlast them; none outlasts an outage that is longer than itself.
SECONDS_PER_OUTAGE: Final = 12.0
OUTAGE_SECONDS: Final = (0.5, 2.0)
#: Troubles of the credential service, in seconds: botocore waits a second between its tries, so one that begins in the
#: last moment of a trouble gets its credentials a second later, about as late as after the longest outage.
TROUBLE_SECONDS: Final = (0.5, 1.2)
#: Between a trouble and an outage: long enough to renew a lease that just lived through the first of the two.
RELIEF_SECONDS: Final = 2.0
#: From one rotation of the credentials to the next; they go on while the run comes to rest.
ROTATION_SECONDS: Final = (2.0, 7.0)
ROTATIONS_AFTER_SECONDS: Final = 120.0
#: How long the credentials are said to live. botocore asks for new ones before each request in their last ten minutes,
#: and may go on with the old ones if it gets none in the five minutes before: one key of three is so.
SHORT_LIFE_SECONDS: Final = (30.0, 120.0)
LONG_LIFE_SECONDS: Final = (11 * 60.0, 14 * 60.0)
LONG_LIFE_SHARE: Final = 1 / 3
#: The run begins when the first bodies run, and ends when the last were just published; in seconds.
CALM_SECONDS: Final = 1.0
AFTERMATH_SECONDS: Final = 3.0
#: The rank of a blow is less than 1, also rounded.
LAST_RANK: Final = 0.9999


class StrikeKind(StrEnum):
    """What is done to a process that runs a body."""

    KILL_CHILD = "kill child"
    KILL_WORKER = "kill worker"
    PAUSE_CHILD = "pause child"
    PAUSE_WORKER = "pause worker"

    @property
    def whole_worker(self) -> bool:
        """Whether the worker's whole process group is struck."""
        return self in (StrikeKind.KILL_WORKER, StrikeKind.PAUSE_WORKER)

    @property
    def kills(self) -> bool:
        """Whether it is SIGKILL; else it is SIGSTOP, and SIGCONT later."""
        return self in KILLS


KILLS: Final = (StrikeKind.KILL_CHILD, StrikeKind.KILL_WORKER)
PAUSES: Final = (StrikeKind.PAUSE_CHILD, StrikeKind.PAUSE_WORKER)


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One key and the body that runs for it; durations in seconds."""

    key: str
    seconds: float
    #: From the start of the body to its effect.
    effect_seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Message:
    """One publication of a key."""

    #: Seconds from the beginning.
    at: float
    key: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Strike:
    """One blow. Its victim is found when it falls, among the bodies that then run, oldest first."""

    #: Seconds from the beginning.
    at: float
    kind: StrikeKind
    #: Which of the running bodies: 0 is the oldest, almost 1 the youngest.
    rank: float
    #: How long a pause lasts.
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Outage:
    """A time in which the store answers nobody; seconds."""

    at: float
    seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Trouble:
    """A time in which the credential service gives nobody what DynamoDB accepts, or only late; seconds."""

    at: float
    seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Rotation:
    """The moment in which the credential service begins to give a new key; the old one is no longer good."""

    #: Seconds from the beginning.
    at: float
    #: How long the new key is said to live.
    life_seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """All that the seed decides, in the order of time."""

    seed: int
    jobs: tuple[Job, ...]
    messages: tuple[Message, ...]
    strikes: tuple[Strike, ...]
    outages: tuple[Outage, ...]
    troubles: tuple[Trouble, ...]
    rotations: tuple[Rotation, ...]

    @property
    def traced(self) -> bool:
        """Whether the messages carry the headers of a tracing SDK: those of odd seeds do."""
        return self.seed % 2 == 1

    @property
    def digest(self) -> str:
        """Tells two plans apart; equal plans have equal digests on every machine."""
        return sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:12]

    @property
    def last_at(self) -> float:
        """Seconds from the beginning to the last message or strike."""
        times = [message.at for message in self.messages] + [strike.at for strike in self.strikes]
        return max(times)


def draw(*, seed: int, keys: int, messages: int, kills: int, threads: bool, pause: bool, faults: bool) -> Plan:
    """Return the plan of a seed.

    Args:
        seed: decides everything that the other arguments leave open.
        keys: how many different keys there are.
        messages: how many messages are published for them: the surplus over ``keys`` are duplicates.
        kills: how many blows are kills.
        threads: whether the pools are threads, of which only whole workers can be struck.
        pause: whether processes are also stopped and continued.
        faults: whether the store also has outages, and the credential service troubles and rotations.
    """
    # One stream for each part, so that an option changes its own part only.
    window = messages * SECONDS_PER_MESSAGE
    jobs = _jobs(random.Random(f"{seed} jobs"), keys)
    kill_count = max(1, round(kills * THREADS_SHARE)) if threads and kills else kills
    strikes = _strikes(random.Random(f"{seed} kills"), kill_count, window, pauses=False, threads=threads)
    if pause:
        count = max(2, round(kill_count * PAUSE_SHARE))
        strikes += _strikes(random.Random(f"{seed} pauses"), count, window, pauses=True, threads=threads)
    outages = _outages(random.Random(f"{seed} outages"), window) if faults else []
    return Plan(
        seed=seed,
        jobs=tuple(jobs),
        messages=tuple(_messages(random.Random(f"{seed} messages"), jobs, messages, window)),
        strikes=tuple(sorted(strikes, key=lambda strike: strike.at)),
        outages=tuple(outages),
        troubles=tuple(_troubles(random.Random(f"{seed} troubles"), outages, window)) if faults else (),
        rotations=tuple(_rotations(random.Random(f"{seed} rotations"), window)) if faults else (),
    )


def _jobs(rng: random.Random, count: int) -> list[Job]:
    jobs = []
    for number in range(1, count + 1):
        seconds = rng.uniform(*(LONG_SECONDS if rng.random() < LONG_SHARE else SHORT_SECONDS))
        share = rng.uniform(*(LATE_EFFECT if rng.random() < LATE_SHARE else EARLY_EFFECT))
        jobs.append(Job(key=f"k{number:03d}", seconds=round(seconds, 3), effect_seconds=round(seconds * share, 3)))
    return jobs


def _messages(rng: random.Random, jobs: list[Job], count: int, window: float) -> list[Message]:
    firsts = {job.key: rng.uniform(0.0, window * 0.95) for job in jobs}
    messages = [Message(at=round(at, 3), key=key) for key, at in firsts.items()]
    for _ in range(count - len(jobs)):
        job = rng.choice(jobs)
        meanwhile = rng.random() < 1 / 2
        gap = rng.uniform(0.0, job.seconds + 1.0) if meanwhile else rng.uniform(job.seconds, LATEST_DUPLICATE)
        messages.append(Message(at=round(min(firsts[job.key] + gap, window), 3), key=job.key))
    return sorted(messages, key=lambda message: (message.at, message.key))


def _strikes(rng: random.Random, count: int, window: float, *, pauses: bool, threads: bool) -> list[Strike]:
    share = 1.0 if threads else PAUSED_WORKER_SHARE if pauses else WORKER_SHARE
    workers = min(count, max(1, round(count * share)))
    child, worker = PAUSES if pauses else KILLS
    span = window + AFTERMATH_SECONDS - CALM_SECONDS
    # Each in a part of the time of its own: a worker needs seconds to start, and the others must not be gone by then.
    times = [(worker, CALM_SECONDS + span * (number + rng.random()) / workers) for number in range(workers)]
    times += [(child, rng.uniform(CALM_SECONDS, CALM_SECONDS + span)) for _ in range(count - workers)]
    return [
        Strike(
            at=round(at, 3),
            kind=kind,
            rank=min(round(rng.random(), 4), LAST_RANK),
            seconds=round(rng.uniform(*PAUSE_SECONDS), 3) if pauses else 0.0,
        )
        for kind, at in times
    ]


def _outages(rng: random.Random, window: float) -> list[Outage]:
    count = max(1, round(window / SECONDS_PER_OUTAGE))
    # Each in a part of the time of its own, so that two never make a longer one.
    part = (window - CALM_SECONDS) / count
    latest = max(part - OUTAGE_SECONDS[1], 0.0)
    begins = [CALM_SECONDS + number * part + rng.uniform(0.0, latest) for number in range(count)]
    return [Outage(at=round(at, 3), seconds=round(rng.uniform(*OUTAGE_SECONDS), 3)) for at in begins]


def _troubles(rng: random.Random, outages: list[Outage], window: float) -> list[Trouble]:
    """Return one trouble for each gap between two outages that is long enough, and one after the last of them."""
    begins = [CALM_SECONDS, *(outage.at + outage.seconds + RELIEF_SECONDS for outage in outages)]
    needed = TROUBLE_SECONDS[1]
    # The last gap is as long as it must be: even a short run has a trouble.
    ends = [*(outage.at - RELIEF_SECONDS for outage in outages), max(window, begins[-1] + needed)]
    found = []
    for begin, end in zip(begins, ends, strict=True):
        at, seconds = rng.uniform(begin, max(begin, end - needed)), rng.uniform(*TROUBLE_SECONDS)
        if end >= begin + needed:
            found.append(Trouble(at=round(at, 3), seconds=round(seconds, 3)))
    return found


def _rotations(rng: random.Random, window: float) -> list[Rotation]:
    found, at = [], 0.0
    while at < window + ROTATIONS_AFTER_SECONDS:
        at += rng.uniform(*ROTATION_SECONDS)
        life = rng.uniform(*(LONG_LIFE_SECONDS if rng.random() < LONG_LIFE_SHARE else SHORT_LIFE_SECONDS))
        found.append(Rotation(at=round(at, 3), life_seconds=round(life, 3)))
    return found


T = TypeVar("T")


class Deck(Generic[T]):
    """Cards in a random order: each is dealt as often as it is there, then all are shuffled again.

    Unlike independent draws, so many deals as there are cards have seen every card.

    Args:
        rng: decides the order.
        cards: at least one.
    """

    def __init__(self, rng: random.Random, cards: Iterable[T]) -> None:
        self._rng = rng
        self._cards = tuple(cards)
        self._left: list[T] = []

    def deal(self) -> T:
        """Return the next card."""
        if not self._left:
            self._left = self._rng.sample(self._cards, len(self._cards))
        return self._left.pop()
