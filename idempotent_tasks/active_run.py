"""A body that runs under a claim, as the body itself sees it."""

from collections.abc import Callable

from idempotent_tasks.records import Claim

__all__ = ["ActiveRun"]


class ActiveRun:
    """A body that runs under a claim; ``self.idempotency`` inside it."""

    def __init__(self, claim: Claim, release: Callable[..., None]) -> None:
        self.claim = claim
        #: When the key was claimed, in epoch seconds by the store's clock.
        self.began_at = claim.expires_at - claim.request.lease_seconds
        self.handed_over = False
        #: Whether the claim is known to be gone: another delivery may be running the body too.
        self.lost = False
        #: Whether the run is ending its claim itself, by a commit or a release: that it is gone then says nothing.
        self.ending = False
        self._release = release

    @property
    def key(self) -> str:
        """The record's key: pass it downstream, so that a repeated effect is recognised there."""
        return self.claim.key

    @property
    def fence(self) -> int:
        """The claim's fence: a later run of the key has a larger one."""
        return self.claim.fence

    @property
    def attempt(self) -> int:
        """1 for a first try; each run that crashed since the last clean end adds 1."""
        return self.claim.attempt

    def hand_over(self, reason: str, *, crashed: bool = False) -> None:
        """Free the key now: the body is over, or a message that will claim it is about to be published."""
        if not self.handed_over:
            self.handed_over = self.ending = True
            self._release(self.claim, reason, crashed=crashed)
