"""Services that give credentials, and fail: what a store says of it, whom it names, and that it recovers."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import botocore.session
import pytest
from billiard.exceptions import SoftTimeLimitExceeded
from botocore.credentials import CredentialProvider, Credentials
from botocore.exceptions import ClientError
from celery import Celery

from idempotent_tasks import (
    DynamoDBStore,
    Idempotency,
    IdempotentTask,
    S3Results,
    StoreMisconfiguredError,
    StoreUnavailableError,
)
from idempotent_tasks.checks import CheckContext, run_checks
from idempotent_tasks.core.clock import SystemClock
from idempotent_tasks.core.retry import limited
from idempotent_tasks.errors import StoreError
from idempotent_tasks.stores.dynamodb.client import Connection
from tests.conftest import REGION
from tests.support.canned import Canned
from tests.support.credential_services import ACCESS_KEY, ROLE, CredentialServices, credential_services, direct
from tests.support.fast_path import ask

#: Seconds; less than any time-out of ours, and more than a request takes that is answered.
SHORT_SECONDS = 0.4

Connect = Callable[[], Connection]


@pytest.fixture
def services() -> Iterator[CredentialServices]:
    """The services, which give whatever they are asked for."""
    with credential_services() as running:
        yield running


@pytest.fixture
def loader(session: boto3.Session) -> Any:
    """What botocore knows of its services, which is read once."""
    return session._session.get_component("data_loader")


@pytest.fixture
def connect(canned: Canned, loader: Any, fast: bool) -> Connect:
    """Makes connections with a session of their own, which reads the environment."""

    def connected() -> Connection:
        connection = Connection(endpoint_url=canned.endpoint, region=REGION, fast=fast)
        connection._loader = loader
        return connection

    return connected


@pytest.fixture
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment has no credentials."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)


@pytest.fixture
def role(services: CredentialServices, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_keys: None) -> None:
    """The environment's profile assumes a role."""
    config = tmp_path / "config"
    base = "[profile base]\naws_access_key_id = testing\naws_secret_access_key = testing\n"
    config.write_text(f"[profile worker]\nrole_arn = {ROLE}\nsource_profile = base\n{base}")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    monkeypatch.setenv("AWS_PROFILE", "worker")
    direct(monkeypatch, "sts", services.endpoint)


@pytest.fixture
def token(services: CredentialServices, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_keys: None) -> Path:
    """The environment has a role and the file with a token for it, as on EKS."""
    path = tmp_path / "token"
    path.write_text("a.made.up.jwt")
    monkeypatch.setenv("AWS_ROLE_ARN", ROLE)
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(path))
    direct(monkeypatch, "sts", services.endpoint)
    return path


@pytest.fixture
def container(services: CredentialServices, monkeypatch: pytest.MonkeyPatch, no_keys: None) -> None:
    """The environment names the container's credentials service, as on ECS and with EKS Pod Identity."""
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{services.endpoint}/v1/credentials")


@pytest.fixture
def instance(services: CredentialServices, monkeypatch: pytest.MonkeyPatch, no_keys: None) -> None:
    """The environment has an instance's metadata service, as on EC2."""
    monkeypatch.delenv("AWS_EC2_METADATA_DISABLED")
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", f"{services.endpoint}/")


def unavailable(connection: Connection) -> str:
    """Send a request that must fail for now, see that nobody blames DynamoDB for it, and return what is said."""
    with pytest.raises(StoreUnavailableError) as caught:
        ask(connection)
    said = str(caught.value)
    assert "dynamodb:GetItem on table 'table'" in said
    assert "was not sent" in said
    for blame in ("was refused", "key schema", "got no answer", "failed for now"):
        assert blame not in said
    return said


class TestSTS:
    """A role that is assumed."""

    @pytest.mark.usefixtures("role")
    @pytest.mark.parametrize(
        ("status", "code"),
        [
            (400, "Throttling"),
            (400, "ExpiredTokenException"),
            (400, "IDPCommunicationError"),
            (400, "InvalidIdentityToken"),
            (403, "InvalidClientTokenId"),
            (403, "SignatureDoesNotMatch"),
            (400, "NobodyKnowsThisOne"),
            (408, "AccessDenied"),
            (503, "AccessDenied"),
        ],
    )
    def test_a_refusal_that_may_pass(
        self, connect: Connect, services: CredentialServices, canned: Canned, status: int, code: str
    ) -> None:
        """It is STS's, and the next request asks again."""
        connection = connect()
        ask(connection)
        services.status, services.code = status, code
        assert f"STS answered AssumeRole with {code}: words of STS" in unavailable(connection)
        services.status = 200
        ask(connection)
        assert len(canned.requests) == 2

    @pytest.mark.usefixtures("role")
    @pytest.mark.parametrize("code", ["AccessDenied", "MalformedPolicyDocument", "ValidationError"])
    @pytest.mark.parametrize("requests", [0, 1, 2])
    def test_a_refusal_that_stays(
        self, connect: Connect, services: CredentialServices, requests: int, code: str
    ) -> None:
        """STS is named with what to do there, and not DynamoDB's table."""
        connection = connect()
        for _ in range(requests):
            ask(connection)
        services.status, services.code = 403, code
        with pytest.raises(StoreMisconfiguredError, match=f"STS answered AssumeRole with {code}: .*Remedy") as caught:
            ask(connection)
        assert "was refused" not in str(caught.value)
        services.status = 200
        ask(connection)

    @pytest.mark.parametrize("requests", [0, 1])
    def test_a_token_file_that_is_replaced(self, connect: Connect, token: Path, requests: int) -> None:
        """It is not there for a moment."""
        connection = connect()
        for _ in range(requests):
            ask(connection)
        away = token.rename(token.with_name("away"))
        assert f"from STS cannot be had: FileNotFoundError: No such file or directory: '{token}'" in (
            unavailable(connection)
        )
        away.rename(token)
        ask(connection)

    @pytest.mark.usefixtures("token")
    def test_credentials_that_have_expired(self, connect: Connect, services: CredentialServices) -> None:
        """STS gives such: botocore raises an error of Python's own."""
        connection = connect()
        ask(connection)
        services.lives_seconds = -5
        said = unavailable(connection)
        assert "the credentials from STS cannot be had: RuntimeError: Credentials were refreshed, but" in said
        assert said.endswith("Remedy: see why STS fails")
        services.lives_seconds = 60
        ask(connection)

    @pytest.mark.usefixtures("token")
    def test_one_that_hangs(self, connect: Connect, services: CredentialServices) -> None:
        """It is not waited for longer than the call may take, and botocore's own retries do not begin."""
        connection = connect()
        ask(connection)
        asked = len(services.requests)
        services.go_on.clear()
        clock = SystemClock()
        began = clock.monotonic()
        with limited(clock, SHORT_SECONDS):
            said = unavailable(connection)
        assert clock.monotonic() - began < 2 * SHORT_SECONDS
        assert f"STS at {services.endpoint.partition('://')[2]} did not answer (ReadTimeoutError)" in said
        assert len(services.requests) == asked + 1

    @pytest.mark.usefixtures("token")
    def test_no_time_is_left_after_it(
        self, services: CredentialServices, canned: Canned, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The request that the credentials were for is not sent: boto3's client asks for the time when it sends."""
        connection = Connection(endpoint_url=canned.endpoint, region=REGION, fast=False)
        ask(connection)
        asked = len(services.requests)
        clock = SystemClock()
        monkeypatch.setattr(clock, "monotonic", lambda: 100.0 if services.requests[asked:] else 0.0)
        with limited(clock, 10.0), pytest.raises(StoreUnavailableError):
            ask(connection)
        assert len(services.requests) == asked + 1
        assert len(canned.requests) == 1


class TestMetadata:
    """Services of the machine or the container."""

    @pytest.mark.usefixtures("container")
    @pytest.mark.parametrize("requests", [0, 1])
    def test_a_container_without_its_agent(
        self, connect: Connect, services: CredentialServices, monkeypatch: pytest.MonkeyPatch, requests: int
    ) -> None:
        """The agent answers 503, and then works."""
        monkeypatch.setattr("botocore.utils.ContainerMetadataFetcher.SLEEP_TIME", 0)
        connection = connect()
        for _ in range(requests):
            ask(connection)
        services.status = 503
        assert "from the container's credentials service cannot be had" in unavailable(connection)
        services.status = 200
        ask(connection)

    @pytest.mark.usefixtures("instance")
    def test_an_instance_whose_service_fails_at_first(
        self, services: CredentialServices, canned: Canned, fast: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Boto3 then has no credentials, as on a machine without any; no client of this moment is kept."""
        direct(monkeypatch, "dynamodb", canned.endpoint)
        connection = Connection(region=REGION, fast=fast)
        services.status = 503
        assert "no credentials were found" in unavailable(connection)
        services.status = 200
        ask(connection)
        assert len(canned.requests) == 1
        assert connection.provider == "iam-role"


class Provider(CredentialProvider):
    """Somebody's own source of credentials, in front of botocore's."""

    METHOD = "made-up"

    def __init__(self, failure: BaseException | None = None) -> None:
        super().__init__()
        self.failure = failure

    def load(self) -> Credentials:
        """Return credentials that ask the vault each time they are used."""
        return Failing(self)

    def ask_the_vault(self) -> None:
        """Fail where the test wants it."""
        if self.failure is not None:
            raise self.failure


class Failing(Credentials):
    """Credentials of a provider."""

    def __init__(self, provider: Provider) -> None:
        super().__init__(ACCESS_KEY, "secret", method=Provider.METHOD)
        self._provider = provider

    def get_frozen_credentials(self) -> Any:
        """Raise what the provider fails with, wrapped as such code does; else return them."""
        try:
            self._provider.ask_the_vault()
        except SoftTimeLimitExceeded as error:
            raise ValueError("the vault does not answer") from error
        return super().get_frozen_credentials()


@pytest.fixture
def provider() -> Provider:
    """A provider that works."""
    return Provider()


@pytest.fixture
def provided(provider: Provider, loader: Any) -> boto3.Session:
    """A session with the provider."""
    session = botocore.session.Session()
    session.register_component("data_loader", loader)
    session.get_component("credential_provider").providers.insert(0, provider)
    return boto3.Session(botocore_session=session, region_name=REGION)


@pytest.fixture
def connect_provided(provided: boto3.Session, canned: Canned, fast: bool) -> Connect:
    """Makes connections with the provider."""
    return lambda: Connection(session=provided, endpoint_url=canned.endpoint, fast=fast)


class TestProviders:
    """A provider that the user wrote."""

    @pytest.mark.parametrize(
        "failure",
        [
            KeyError("secret-word"),
            OSError("no route to the vault"),
            AssertionError("secret-word"),
            ClientError({"Error": {"Code": "ResourceNotFoundException", "Message": "no such secret"}}, "GetItem"),
            ClientError({"Error": {"Code": "AccessDeniedException"}}, "GetSecretValue"),
            StopIteration(),
        ],
        ids=["key", "os", "assertion", "same-operation", "denied-elsewhere", "stop"],
    )
    @pytest.mark.parametrize("requests", [0, 1])
    def test_whatever_it_raises(
        self, provider: Provider, connect_provided: Connect, failure: Exception, requests: int
    ) -> None:
        """It may pass; its words are its own, so they are not told; and it is not taken for DynamoDB's answer."""
        connection = connect_provided()
        for _ in range(requests):
            ask(connection)
        provider.failure = failure
        assert "secret-word" not in unavailable(connection)
        provider.failure = None
        ask(connection)

    def test_with_a_ready_made_client(self, provider: Provider, provided: boto3.Session, canned: Canned) -> None:
        """The same is known of its errors."""
        client = provided.client("dynamodb", endpoint_url=canned.endpoint)
        connection = Connection(client=client)
        ask(connection)
        provider.failure = KeyError("secret-word")
        assert "the credentials cannot be had: KeyError" in unavailable(connection)

    def test_an_interrupt_within_it(
        self, provider: Provider, provided: boto3.Session, canned: Canned, fast: bool
    ) -> None:
        """A soft time limit comes out as it is, also where the provider wrapped it."""
        connection = Connection(session=provided, endpoint_url=canned.endpoint, fast=fast)
        ask(connection)
        provider.failure = SoftTimeLimitExceeded(7)
        with pytest.raises(SoftTimeLimitExceeded) as caught:
            ask(connection)
        assert caught.value is provider.failure

    @pytest.mark.parametrize("ends", [SystemExit, KeyboardInterrupt])
    def test_an_end_of_the_process_within_it(
        self, provider: Provider, provided: boto3.Session, canned: Canned, fast: bool, ends: type[BaseException]
    ) -> None:
        """What is no error is none of the store's."""
        connection = Connection(session=provided, endpoint_url=canned.endpoint, fast=fast)
        provider.failure = ends()
        with pytest.raises(ends):
            ask(connection)

    def test_a_bucket(self, provider: Provider, provided: boto3.Session, canned: Canned) -> None:
        """Of S3 the same is said."""
        provider.failure = KeyError("secret-word")
        results = S3Results("results", session=provided, endpoint_url=canned.endpoint)
        with pytest.raises(StoreUnavailableError, match=r"cannot be had: KeyError; s3:PutObject on bucket 'results'"):
            results.put(b"data", 0)
        with pytest.raises(StoreUnavailableError, match="s3:GetObject"):
            results.get(f"s3://results/{'0' * 64}")


class TestWhatFollows:
    """What the rest of the library makes of it."""

    @pytest.mark.parametrize("failure", ["Throttling", "AccessDenied", None], ids=str)
    def test_the_checks_name_the_credentials(
        self, services: CredentialServices, canned: Canned, role: None, failure: str | None
    ) -> None:
        """A worker that starts is not sent to look at its network or its table's permissions; one look says enough."""
        if failure is None:
            services.lives_seconds = -5
        else:
            services.status, services.code = 403, failure
        app = Celery("shop", broker="amqp://localhost", set_as_current=False)
        app.conf.idempotency_store = DynamoDBStore("table", endpoint_url=canned.endpoint, region=REGION)
        (found,) = run_checks(CheckContext.of_app(app, "celery.concurrency.prefork"))
        assert found.code == "store-refuses"
        assert "STS" in found.what
        assert len([each for each in services.requests if each.startswith("POST")]) == 1

    def test_the_checks_of_a_bucket_do_not_fail(self, provider: Provider, provided: boto3.Session) -> None:
        """What its credentials raise is a finding."""
        provider.failure = KeyError()
        app = Celery("shop", broker="memory://", set_as_current=False)
        app.conf.idempotency_store = "memory://"
        app.conf.idempotency_results_bucket = S3Results("results", session=provided)
        found = run_checks(CheckContext.of_app(app, "celery.concurrency.prefork"))
        assert "results-bucket-refuses" in [each.code for each in found]

    def test_a_publisher_publishes_unreserved(self, canned: Canned, token: Path) -> None:
        """``delay()`` under ``at_publish`` needs no store."""
        app = Celery("shop", broker="memory://", backend="cache+memory://", set_as_current=False)
        app.conf.idempotency_store = DynamoDBStore("table", endpoint_url=canned.endpoint, region=REGION)
        policy = Idempotency(key="order", at_publish="join")

        @app.task(base=IdempotentTask, name="shop.charge", shared=False, idempotency=policy)
        def charge(order: str) -> str:
            return order

        token.unlink()
        assert charge.delay("ord-1").id
        assert not canned.requests


def test_every_error_is_a_stores(canned: Canned, fast: bool) -> None:
    """A ready-made client that is no client of boto3's raises what it likes."""

    class Client:
        def get_item(self, **_: Any) -> None:
            raise ZeroDivisionError

    with pytest.raises(StoreError, match="ZeroDivisionError"):
        ask(Connection(client=Client(), fast=fast))
