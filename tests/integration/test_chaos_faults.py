"""The chaos command's faults as boto3 meets them: over HTTP, before a stand-in for DynamoDB."""

from collections.abc import Iterator

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError, CredentialRetrievalError
from botocore.utils import ContainerMetadataFetcher

from benchmarks.chaos.credentials import CredentialFault, Credentials, credential_service, refuse_rotated
from benchmarks.chaos.faults import RATES, Faults
from benchmarks.chaos.plan import Plan, Rotation, Trouble, draw
from tests.conftest import REGION
from tests.testbed.wire import FAULT_RATES, Wire

PLAN = draw(seed=1, keys=20, messages=26, kills=8, threads=False, pause=False, faults=True)
TROUBLE = Trouble(at=20.0, seconds=0.01)
#: As long as an SDK knows a key without a doubt.
LASTING = 3600.0


class Agent:
    """A credential service whose time the test sets."""

    def __init__(self) -> None:
        self.at = 0.0
        parts = {name: getattr(PLAN, name) for name in ("seed", "jobs", "messages", "strikes", "outages")}
        rotations = (Rotation(at=5.0, life_seconds=LASTING), Rotation(at=10.0, life_seconds=60.0))
        plan = Plan(**parts, troubles=(TROUBLE,), rotations=rotations)
        self.credentials = Credentials(plan, elapsed=lambda: self.at)


@pytest.fixture
def agent(monkeypatch: pytest.MonkeyPatch) -> Iterator[Agent]:
    """The service that this process gets its credentials from."""
    agent = Agent()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    # botocore's own three tries, a second apart, would hide what one answer is to it.
    monkeypatch.setattr(ContainerMetadataFetcher, "RETRY_ATTEMPTS", 1)
    monkeypatch.setattr(ContainerMetadataFetcher, "SLEEP_TIME", 0)
    with credential_service(agent.credentials) as uri:
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", uri)
        yield agent


def test_rotated_key_is_refused_as_dynamodb_refuses_it(agent: Agent, wire: Wire) -> None:
    """A client that keeps its key over the rotation gets both errors, one that asks again neither."""
    wire.decide_by(refuse_rotated(agent.credentials))
    config = Config(retries={"total_max_attempts": 1})
    agent.at = 6.0
    keeps = boto3.Session().client("dynamodb", endpoint_url=wire.endpoint, region_name=REGION, config=config)
    keeps.list_tables()
    agent.at = 11.0
    codes = set()
    for _ in range(6):
        try:
            keeps.list_tables()
        except ClientError as error:
            codes.add(error.response["Error"]["Code"])
    assert codes == {"UnrecognizedClientException", "ExpiredTokenException"}
    asks = boto3.Session().client("dynamodb", endpoint_url=wire.endpoint, region_name=REGION, config=config)
    for _ in range(6):
        asks.list_tables()


def test_trouble_is_every_error_that_botocore_knows(agent: Agent) -> None:
    """No credentials, credentials that have expired, and an answer that botocore takes for credentials."""
    agent.at = TROUBLE.at
    errors: set[type[Exception]] = set()
    for _ in range(20):
        try:
            credentials = boto3.Session().get_credentials()
            assert credentials is not None
            credentials.get_frozen_credentials()
        except (CredentialRetrievalError, KeyError, RuntimeError) as error:
            errors.add(type(error))
    assert errors == {CredentialRetrievalError, KeyError, RuntimeError}
    assert all(agent.credentials.counts[fault] for fault in CredentialFault)


def test_faults_are_counted_where_they_were_played(dynamodb_endpoint: str) -> None:
    """Each request met one kind, or none; those of an outage are apart."""
    with Faults.before(dynamodb_endpoint, PLAN) as faults:
        config = Config(retries={"total_max_attempts": 1}, connect_timeout=5, read_timeout=10)
        client = boto3.client("dynamodb", endpoint_url=faults.endpoint, region_name=REGION, config=config)
        failures = sum(_fails(client) for _ in range(60))
        with faults.outage():
            assert all(_fails(client) for _ in range(5))
        played = faults.played()
    # A page of status 200 is no error to botocore.
    harmless = played["clear"] + played["delay"] + played["page 200"]
    assert played["refused in an outage"] == 5
    assert failures == 60 - harmless
    pages = sum(count for kind, count in played.items() if kind.startswith("page "))
    assert sum(played[kind] for kind in ("clear", *FAULT_RATES)) + pages == 60
    assert all(played[kind] for kind in RATES.keys() & played.keys())
    assert played["date ahead"] + played["date behind"] == pages > 0


def _fails(client: boto3.client) -> bool:
    try:
        client.list_tables()
    except Exception:  # noqa: BLE001 - each fault is another error
        return True
    return False
