"""Credentials that cannot be had for a while, on real workers: nothing is lost, nothing runs twice."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import REGION
from tests.integration.conftest import MakeRig
from tests.support.credential_services import ROLE, CredentialServices, credential_services, direct
from tests.support.rig import Rig
from tests.testbed.waiting import wait_for

BY_ORDER = {"idempotency": {"key": "order", "lease": 20}}
WAIT_SECONDS = 20.0

on_redis = pytest.mark.parametrize("broker", ["redis"], indirect=True)


@pytest.fixture
def services(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[CredentialServices]:
    """The environment of this process and of its workers has a role by a token, as on EKS."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    token = tmp_path / "token"
    token.write_text("a.made.up.jwt")
    with credential_services() as running:
        monkeypatch.setenv("AWS_ROLE_ARN", ROLE)
        monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(token))
        direct(monkeypatch, "sts", running.endpoint)
        monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)
        yield running


@pytest.fixture
def rig(services: CredentialServices, make_guarded: MakeRig) -> Rig:
    """A worker that has claimed and committed with its role's credentials, which every request refreshes."""
    rig = make_guarded(visibility_seconds=60, tasks={"charge": BY_ORDER})
    rig.start_worker(1)
    assert rig.result(rig.send("charge", "warm-up", 1)) == 1
    assert services.requests
    return rig


def wait_for_tries(services: CredentialServices, number: int) -> None:
    """Return when STS was asked this often more."""
    asked = len(services.requests)
    wait_for(lambda: len(services.requests) >= asked + number, WAIT_SECONDS, lambda: f"asked: {services.requests}")


@on_redis
@pytest.mark.parametrize(("status", "code"), [(400, "Throttling"), (403, "AccessDenied")])
def test_at_the_claim(rig: Rig, services: CredentialServices, status: int, code: str) -> None:
    """The delivery is deferred, and its body runs once when they are back; a refusal that stays is no other case."""
    services.status, services.code = status, code
    published = rig.send("charge", "ord-1", 17)
    rig.journal.wait_for("Deferred", id=published.id)
    services.status = 200
    assert rig.result(published) == 17
    assert rig.journal.count("effect", key="ord-1") == 1


@on_redis
def test_at_the_claim_expired(rig: Rig, services: CredentialServices) -> None:
    """What STS gives has expired: an error of Python's own out of boto3."""
    services.lives_seconds = -5
    published = rig.send("charge", "ord-1", 17)
    rig.journal.wait_for("Deferred", id=published.id)
    services.lives_seconds = 60
    assert rig.result(published) == 17
    assert rig.journal.count("effect", key="ord-1") == 1


@on_redis
def test_at_the_commit(rig: Rig, services: CredentialServices) -> None:
    """The outcome is recorded when they are back within the lease, and a duplicate gets it."""
    rig.journal.shut("before-effect")
    published = rig.send("charge", "ord-1", 17)
    rig.journal.wait_for("at-gate")
    services.status, services.code = 400, "ExpiredTokenException"
    rig.journal.open("before-effect")
    wait_for_tries(services, 4)
    services.status = 200
    assert rig.result(published) == 17
    assert rig.result(rig.send("charge", "ord-1", 17)) == 17
    assert rig.journal.count("effect", key="ord-1") == 1
    assert not rig.journal.entries("Unrecorded")


@on_redis
@pytest.mark.parametrize("time_limit", [3, 6])
def test_a_hard_time_limit_does_not_strike_while_they_are_waited_for(
    rig: Rig, services: CredentialServices, time_limit: int
) -> None:
    """STS accepts and says nothing: the delivery is deferred in time, not killed and acknowledged as failed."""
    services.go_on.clear()
    published = rig.send("charge", "ord-1", 17, time_limit=time_limit)
    rig.journal.wait_for("Deferred", id=published.id)
    services.go_on.set()
    assert rig.result(published) == 17
    assert rig.journal.count("effect", key="ord-1") == 1
