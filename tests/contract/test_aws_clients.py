"""What a client is made of, and that nothing stays that was only absent, or refused, in one moment."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import boto3
import botocore.session
import pytest
from botocore.credentials import CredentialProvider
from botocore.credentials import Credentials as BotoCredentials
from botocore.exceptions import NoCredentialsError

from idempotent_tasks import StoreUnavailableError
from idempotent_tasks.core.retry import limited
from idempotent_tasks.errors import StoreError
from idempotent_tasks.stores.aws import LONGEST_LOOKUP_SECONDS, Credentials
from idempotent_tasks.stores.dynamodb.client import Connection
from idempotent_tasks.testing import FakeClock
from tests.conftest import REGION
from tests.support.credential_services import direct
from tests.support.fast_path import ask
from tests.testbed.forking import Child
from tests.testbed.waiting import wait_for
from tests.testbed.wire import Wire, answer

KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
#: Seconds: longer than until the first look, shorter than a minute.
A_WHILE = 30.0

Connect = Callable[..., "Watched"]


class Watched(Connection):
    """A connection that counts how often it looks for credentials and a region."""

    looks = 0

    def _found(self) -> Any:
        self.looks += 1
        return super()._found()


@pytest.fixture
def dynamodb_endpoint(roto: str) -> str:
    """The endpoint URL of one DynamoDB: what is sent does not depend on who answers."""
    return roto


@pytest.fixture
def clock() -> FakeClock:
    """The time between looks."""
    return FakeClock()


@pytest.fixture
def connect(wire: Wire, clock: FakeClock, session: boto3.Session, fast: bool) -> Connect:
    """Makes connections to a server that accepts any signature; whatever they ask is refused: that is an answer."""
    accept(wire)

    def connected(**given: Any) -> Watched:
        connection = Watched(**{"endpoint_url": wire.endpoint, "fast": fast, "clock": clock, **given})
        # What botocore knows of its services is read once.
        connection._loader = session._session.get_component("data_loader")
        return connection

    return connected


def accept(wire: Wire) -> None:
    """Answer every request from now on."""
    wire.clear()
    wire.break_all(answer(400, "ConditionalCheckFailedException"))


def refuse_signatures(wire: Wire) -> None:
    """Refuse the credentials of every request from now on."""
    wire.clear()
    wire.break_all(answer(400, "UnrecognizedClientException"))


def scopes(wire: Wire) -> list[tuple[str, str]]:
    """Return with which key and for which region each request was signed."""
    parts = [request.headers["authorization"].partition("Credential=")[2].split("/") for request in wire.requests]
    return [(part[0], part[2]) for part in parts]


@pytest.fixture
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment has no credentials."""
    for name in KEYS:
        monkeypatch.delenv(name)


def give_keys(monkeypatch: pytest.MonkeyPatch, key: str = "AKIAFOUND") -> None:
    """Put credentials into the environment."""
    for name in KEYS:
        monkeypatch.setenv(name, key)


@pytest.mark.usefixtures("no_keys")
class TestWithoutCredentials:
    """A stand-in on this machine is asked with made-up credentials where there are none."""

    def test_they_are_replaced_once_there_are_some(
        self, connect: Connect, wire: Wire, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """By the credentials that were only absent when the process began."""
        connection = connect(region=REGION)
        ask(connection)
        give_keys(monkeypatch)
        ask(connection)
        clock.advance(A_WHILE)
        for _ in range(2):
            ask(connection)
        assert [key for key, _ in scopes(wire)] == ["local", "local", "AKIAFOUND", "AKIAFOUND"]
        clock.advance(LONGEST_LOOKUP_SECONDS)
        ask(connection)
        assert connection.looks == 2

    def test_one_client_serves_as_long_as_there_are_none(self, connect: Connect, wire: Wire, clock: FakeClock) -> None:
        """It is kept with its connection, and the looks become rare."""
        connection = connect(region=REGION)
        client = connection.client_of_this_process()
        for _ in range(1000):
            ask(connection)
            clock.advance(1)
        assert connection.client_of_this_process() is client
        assert len({request.client_port for request in wire.requests}) == (2 if connection._fast_client else 1)
        assert 5 < connection.looks < 20

    def test_looking_takes_a_tenth_of_the_time(
        self, connect: Connect, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Where a metadata service that is not there is waited for, it is asked less often."""
        find = Watched._found

        def find_slowly(connection: Watched) -> Any:
            clock.advance(2)
            return find(connection)

        monkeypatch.setattr(Watched, "_found", find_slowly)
        connection = connect(region=REGION)
        for _ in range(1000):
            connection.client_of_this_process()
            clock.advance(0.1)
        assert 2 * connection.looks < 15

    def test_a_look_that_fails(
        self, connect: Connect, wire: Wire, clock: FakeClock, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        """The client that there is goes on."""
        connection = connect(region=REGION)
        ask(connection)
        monkeypatch.setenv("AWS_PROFILE", "is-not-there-yet")
        clock.advance(A_WHILE)
        ask(connection)
        config = tmp_path / "config"
        config.write_text("[profile is-not-there-yet]\naws_access_key_id = AKIAPROFILE\naws_secret_access_key = x\n")
        monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
        clock.advance(A_WHILE)
        ask(connection)
        assert [key for key, _ in scopes(wire)] == ["local", "local", "AKIAPROFILE"]

    def test_a_session_that_finds_some_later(
        self, connect: Connect, wire: Wire, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Also one that the user made."""
        connection = connect(session=boto3.Session(region_name=REGION))
        ask(connection)
        give_keys(monkeypatch)
        clock.advance(A_WHILE)
        ask(connection)
        assert [key for key, _ in scopes(wire)] == ["local", "AKIAFOUND"]

    def test_threads_that_wait_for_credentials(self, connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
        """They fail with the thread that looked, instead of looking one after the other; the next one looks."""
        looking, go_on = threading.Event(), threading.Event()
        find = Watched._found

        def find_slowly(connection: Watched) -> Any:
            looking.set()
            assert go_on.wait(30)
            return find(connection)

        monkeypatch.setattr(Watched, "_found", find_slowly)
        connection = connect(region=REGION, endpoint_url="http://dynamodb.invalid:8000")

        def client() -> Exception | None:
            try:
                connection.client_of_this_process()
            except (NoCredentialsError, StoreUnavailableError) as error:
                return error
            return None

        with ThreadPoolExecutor(8) as threads:
            first = threads.submit(client)
            assert looking.wait(30)
            others = [threads.submit(client) for _ in range(7)]
            wait_for(lambda: threads._work_queue.qsize() == 0, 30, "the threads do not begin")
            with limited(FakeClock(), 0), pytest.raises(StoreUnavailableError, match="no time is left to wait for it"):
                connection.client_of_this_process()
            go_on.set()
            assert isinstance(first.result(), NoCredentialsError)
            assert None not in [each.result() for each in others]
        # A thread that came late looks by itself.
        assert connection.looks < 8
        give_keys(monkeypatch)
        assert client() is None

    def test_another_endpoint_is_not_asked(self, connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
        """Made-up credentials are for this machine; elsewhere there is no client without real ones."""
        connection = connect(region=REGION, endpoint_url="http://dynamodb.invalid:8000")
        with pytest.raises(StoreUnavailableError, match="no credentials were found"):
            ask(connection)
        assert connection.provider is None
        give_keys(monkeypatch)
        connection.client_of_this_process()
        assert connection.provider == "env"


class TestWithoutARegion:
    """Where nobody named one."""

    @pytest.fixture(autouse=True)
    def _no_region(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("AWS_DEFAULT_REGION")

    def test_the_one_of_an_endpoint_is_replaced(
        self, connect: Connect, wire: Wire, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Signatures for another region than an endpoint's would be refused for the life of the process."""
        connection = connect()
        ask(connection)
        monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)
        clock.advance(A_WHILE)
        ask(connection)
        assert [region for _, region in scopes(wire)] == ["us-east-1", REGION]

    def test_none_at_all(self, connect: Connect, wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
        """It may appear, and then the same store works."""
        direct(monkeypatch, "dynamodb", wire.endpoint)
        connection = connect(endpoint_url=None)
        with pytest.raises(StoreUnavailableError, match="You must specify a region"):
            ask(connection)
        monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)
        ask(connection)
        assert len(scopes(wire)) == 1


class TestRefused:
    """Credentials that nobody refreshes, and that are no longer known."""

    @pytest.fixture
    def file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_keys: None) -> Path:
        """A file that somebody else writes credentials to."""
        path = tmp_path / "credentials"
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(path))
        write_keys(path, "ASIAONE")
        return path

    def test_a_file_with_others(self, connect: Connect, wire: Wire, clock: FakeClock, file: Path) -> None:
        """They are taken from it once the old ones are refused, which boto3 itself never does."""
        connection = connect(region=REGION)
        ask(connection)
        write_keys(file, "ASIATWO")
        refuse_signatures(wire)
        with pytest.raises(StoreError):
            ask(connection)
        accept(wire)
        clock.advance(A_WHILE)
        ask(connection)
        assert [key for key, _ in scopes(wire)] == ["ASIATWO"]

    def test_the_same_ones(self, connect: Connect, wire: Wire, clock: FakeClock, file: Path) -> None:
        """The client is kept, and not looked for at each refusal."""
        connection = connect(region=REGION)
        client = connection.client_of_this_process()
        refuse_signatures(wire)
        for _ in range(100):
            with pytest.raises(StoreError):
                ask(connection)
            clock.advance(1)
        assert connection.client_of_this_process() is client
        assert 3 < connection.looks < 12

    def test_given_ones(self, connect: Connect, wire: Wire, clock: FakeClock) -> None:
        """The user has to give others."""
        connection = connect(region=REGION, credentials=Credentials("GIVEN", "secret"))
        refuse_signatures(wire)
        for _ in range(3):
            with pytest.raises(StoreError):
                ask(connection)
            clock.advance(A_WHILE)
        assert connection.looks == 1


def write_keys(path: Path, key: str) -> None:
    """Write a file of credentials."""
    path.write_text(f"[default]\naws_access_key_id = {key}\naws_secret_access_key = {key}\n")


@pytest.fixture
def no_default_session() -> Iterator[None]:
    """boto3's default session is the test's own."""
    before, boto3.DEFAULT_SESSION = boto3.DEFAULT_SESSION, None
    yield
    boto3.DEFAULT_SESSION = before


@pytest.fixture
def configured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The environment has credentials and no region; a profile has others, and one."""
    config = tmp_path / "config"
    config.write_text(
        "[profile pay]\nregion = eu-north-1\naws_access_key_id = AKIAPROFILE\naws_secret_access_key = x\n"
    )
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    monkeypatch.delenv("AWS_DEFAULT_REGION", raising=False)
    give_keys(monkeypatch, "AKIAENV")


class Vault(CredentialProvider):
    """A credential provider of the user's own."""

    METHOD = "vault"

    def load(self) -> BotoCredentials:
        """Return what the vault has."""
        return BotoCredentials("AKIAVAULT", "x", method=self.METHOD)


def with_a_provider() -> botocore.session.Session:
    """Return a session whose chain of providers was extended."""
    session = botocore.session.Session()
    session.get_component("credential_provider").insert_before("env", Vault())
    return session


def with_credentials() -> botocore.session.Session:
    """Return a session whose credentials were put into it, as where they refresh themselves."""
    session = botocore.session.Session()
    session._credentials = BotoCredentials("AKIAINSIDE", "x", method="sts-assume-role")
    return session


@pytest.mark.usefixtures("no_default_session")
class TestTheDefaultSession:
    """``boto3.setup_default_session``, called before the first request, counts; what boto3 made by itself does not."""

    @pytest.mark.parametrize(
        ("given", "expected"),
        [
            pytest.param(lambda: {"profile_name": "pay"}, ("AKIAPROFILE", "eu-north-1"), id="profile"),
            pytest.param(lambda: {"region_name": "eu-south-1"}, ("AKIAENV", "eu-south-1"), id="region"),
            pytest.param(
                lambda: {"aws_access_key_id": "AKIAGIVEN", "aws_secret_access_key": "x"},
                ("AKIAGIVEN", "us-east-1"),
                id="credentials",
            ),
            pytest.param(
                lambda: {"botocore_session": with_a_provider()}, ("AKIAVAULT", "us-east-1"), id="provider-of-its-own"
            ),
            pytest.param(
                lambda: {"botocore_session": with_credentials()}, ("AKIAINSIDE", "us-east-1"), id="botocore-session"
            ),
        ],
    )
    @pytest.mark.usefixtures("configured")
    def test_one_that_was_set_up(
        self, connect: Connect, wire: Wire, given: Callable[[], dict[str, Any]], expected: tuple[str, str]
    ) -> None:
        """Its profile, region and credentials are used as those of ``session=``."""
        boto3.setup_default_session(**given())
        ask(connect())
        assert scopes(wire) == [expected]

    def test_what_the_store_itself_says_counts_more(self, connect: Connect, wire: Wire) -> None:
        """Region and credentials of its URL, and a session of its own."""
        boto3.setup_default_session(aws_access_key_id="AKIAGIVEN", aws_secret_access_key="x", region_name="eu-south-1")
        own = boto3.Session("AKIAOWN", "x", region_name="eu-north-1")
        ask(connect(region=REGION, credentials=Credentials("AKIAURL", "x")))
        ask(connect(session=own))
        assert scopes(wire) == [("AKIAURL", REGION), ("AKIAOWN", "eu-north-1")]

    def test_one_that_boto3_has_made(
        self, connect: Connect, wire: Wire, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Any ``boto3.client`` makes one, which would keep credentials that were refused."""
        give_keys(monkeypatch, "AKIAOLD")
        boto3.client("sts", region_name=REGION)
        assert boto3.DEFAULT_SESSION.get_credentials().access_key == "AKIAOLD"
        connection = connect(region=REGION)
        refuse_signatures(wire)
        with pytest.raises(StoreError):
            ask(connection)
        give_keys(monkeypatch, "AKIANEW")
        accept(wire)
        clock.advance(A_WHILE)
        ask(connection)
        assert [key for key, _ in scopes(wire)] == ["AKIANEW"]

    def test_a_forked_child_makes_a_client_of_its_own(self, connect: Connect, wire: Wire) -> None:
        """From the session that was set up before the fork."""
        boto3.setup_default_session(aws_access_key_id="AKIAGIVEN", aws_secret_access_key="x", region_name="eu-south-1")
        connection = connect()
        ask(connection)
        Child(lambda: ask(connection)).result()
        assert scopes(wire) == [("AKIAGIVEN", "eu-south-1")] * 2
        assert len({request.client_port for request in wire.requests}) == 2
