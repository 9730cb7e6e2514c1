"""The small world with tasks whose bodies have steps: plain ones, beside parked reruns, and ones that ask."""

import random
from typing import Any, Final

from billiard.exceptions import SoftTimeLimitExceeded

from idempotent_tasks.core.lease import RunContext
from idempotent_tasks.core.policy import Idempotency
from simulation.faults import LATEST_IN_LEASES
from simulation.history import History
from simulation.network import Service, SimulatedClient
from simulation.provider import SETTLE_SECONDS
from simulation.scheduler import START
from simulation.small import HARD_LIMIT_SECONDS, LEASE_SECONDS, FinalError, Message, SmallTask
from simulation.small_random import FAULTS_END, RATES, RandomWorld, play_in
from simulation.step_bodies import KEEP_FAULTS, StepClient, Steps, new_specs, redeployed

__all__ = ["KEEP_RATES", "TASKS", "play"]

_LIMITED: Final = Idempotency(key="order", grace=2)
_LEASED: Final = Idempotency(key="order", lease=LEASE_SECONDS, store_failures=(FinalError,))
_ASKS: Final = {"settle": SETTLE_SECONDS}
_LOCKED: Final = Idempotency.exclusive(lease=LEASE_SECONDS, on_busy="defer")
TASKS: Final = {
    task.name: task
    for task in (
        SmallTask("steps", _LEASED),
        SmallTask("steps-limited", _LIMITED, HARD_LIMIT_SECONDS),
        SmallTask("steps-exclusive", _LOCKED, by_id=True, locked=True),
        SmallTask("steps-parks", _LEASED.over({"on_rerun": "park"})),
        SmallTask("steps-asks", _LEASED.over(_ASKS)),
        SmallTask("steps-asks-limited", _LIMITED.over(_ASKS), HARD_LIMIT_SECONDS),
    )
}
#: Rates of what befalls a process while it keeps a step.
KEEP_RATES: Final = dict.fromkeys(KEEP_FAULTS, 0.2)
#: The part of all histories in which nothing but interrupts keeps a step from being stored.
CALM: Final = 0.2


class _StepsWorld(RandomWorld):
    """A small world of bodies with steps, of which another version may be deployed meanwhile.

    Args:
        seed: of the history.
    """

    def __init__(self, seed: int) -> None:
        super().__init__(seed, TASKS)
        self._asks = self.task.policy.settle is not None
        #: When another version of the bodies is deployed.
        self._deployed_at = START + self.draw.choice([FAULTS_END, self.draw.uniform(0, 15), self.draw.uniform(0, 30)])

    def rates(self, draw: random.Random) -> dict[str, float]:
        """Return the faults of the history, of which there are more."""
        if draw.random() < CALM:
            return {"soft-limit": RATES["soft-limit"], "interrupted-in-keep": KEEP_RATES["interrupted-in-keep"]}
        kinds = draw.sample(KEEP_FAULTS, draw.choice([0, 0, 1, 2]))
        return super().rates(draw) | {kind: KEEP_RATES[kind] for kind in kinds}

    def _connected(self, service: Service) -> SimulatedClient:
        return StepClient(service, self, self.interrupt, LATEST_IN_LEASES * LEASE_SECONDS)

    def new_plan(self) -> Any:
        """Return the plans of one message in both versions, and whether its body goes on where a step has ended it."""
        draw, usual = self.draw, super().new_plan()
        specs = new_specs(draw, asks=self._asks)
        versions = [specs, redeployed(draw, specs, asks=self._asks)]
        place = draw.randrange(len(usual) + 1)
        swallows = draw.random() < 0.2
        return [[*usual[:place], *(("call", each) for each in own), *usual[place:]] for own in versions], swallows

    def body(self, run: RunContext, message: Message, number: int) -> int:
        """Follow the plan of the version that is deployed when the run begins."""
        versions, swallows = message.plan
        steps = Steps(self, run, number, asks=self._asks, swallows=swallows)
        try:
            for step, argument in versions[self.scheduler.now >= self._deployed_at]:
                if step == "call":
                    steps.call(argument)
                else:
                    self.follow(step, argument, run, message, number)
        except SoftTimeLimitExceeded:
            # As with ``autoretry_for``, once.
            self.follow("retry", 1, run, message, number)
            raise
        return number


def play(seed: int) -> History:
    """Play the history of a seed, and return what happened."""
    return play_in(_StepsWorld(seed))
