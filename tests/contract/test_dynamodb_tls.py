"""TLS with either client: the same authorities are trusted, and who cannot prove to be the server gets no request."""

import functools
import re
import ssl
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import boto3
import pytest
import trustme
from urllib3.exceptions import InsecureRequestWarning

from idempotent_tasks import DynamoDBStore, StoreUnavailableError
from idempotent_tasks.core.records import CommitAnswer, Committed
from tests.conftest import REGION
from tests.support.fast_path import client_requests
from tests.support.guarding import done, grant, request_by
from tests.testbed.forking import Child
from tests.testbed.wire import Wire, wire_to

#: A server's own certificate names this host and no other.
HOST = "127.0.0.1"


@pytest.fixture
def authority() -> trustme.CA:
    """An authority that nobody trusts by himself."""
    return trustme.CA()


@pytest.fixture
def bundle(authority: trustme.CA, tmp_path: Path) -> str:
    """The file with the authority's certificate."""
    path = tmp_path / "authority.pem"
    authority.cert_pem.write_to_path(path)
    return str(path)


@pytest.fixture
def trusted(bundle: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The authority is one that this machine trusts."""
    monkeypatch.setenv("AWS_CA_BUNDLE", bundle)


@pytest.fixture
def served_as(roto: str, authority: trustme.CA) -> Iterator[Callable[[str], Wire]]:
    """Makes TLS servers in front of a DynamoDB whose certificate, of this authority, is for a given host."""
    with ExitStack() as running:

        def serve(host: str) -> Wire:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            authority.issue_cert(host).configure_cert(context)
            return running.enter_context(wire_to(roto, context))

        yield serve


def store_at(wire: Wire, table: str, *, fast: bool) -> DynamoDBStore:
    """Return a store at the server, with a session that reads the environment now."""
    return DynamoDBStore(table, endpoint_url=wire.endpoint, region=REGION, fast=fast)


def claim_and_commit(store: DynamoDBStore) -> CommitAnswer:
    """Run a key's claim and commit, twice."""
    store.commit(grant(store, key="shop.charge#child"), done(), 60)
    return store.commit(grant(store, key="shop.charge#another"), done(), 60)


def assert_works(store: DynamoDBStore, wire: Wire, *, fast: bool) -> None:
    """Fail where not every call goes through, or not by its client."""
    store.create_table()
    grant(store, key="shop.charge#first")
    wire.clear()
    sent = client_requests(store.connection)
    assert store.commit(grant(store), done(), 60) == Committed()
    assert len(wire.requests) == 2
    assert len(sent) == (0 if fast else 2)


class TestTrusted:
    """Where the authority is named."""

    @pytest.mark.usefixtures("trusted")
    def test_in_the_environment(self, served_as: Callable[[str], Wire], table: str, fast: bool) -> None:
        """``AWS_CA_BUNDLE`` names the file with the authorities."""
        wire = served_as(HOST)
        assert_works(store_at(wire, table, fast=fast), wire, fast=fast)

    def test_in_the_config_file(
        self,
        served_as: Callable[[str], Wire],
        bundle: str,
        table: str,
        fast: bool,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """``ca_bundle`` of the profile does too."""
        config = Path(bundle).with_name("config")
        config.write_text(f"[default]\nca_bundle = {bundle}\n")
        monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
        wire = served_as(HOST)
        assert_works(store_at(wire, table, fast=fast), wire, fast=fast)

    def test_in_the_variable_of_another_library(
        self,
        served_as: Callable[[str], Wire],
        bundle: str,
        table: str,
        fast: bool,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """``REQUESTS_CA_BUNDLE``, which botocore reads too, where no other names a file."""
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", bundle)
        wire = served_as(HOST)
        store = store_at(wire, table, fast=fast)
        assert_works(store, wire, fast=fast)
        # A forked child makes a client of its own.
        assert Child(lambda: claim_and_commit(store)).result() == Committed()

    def test_by_the_session(self, served_as: Callable[[str], Wire], table: str, fast: bool) -> None:
        """Whatever it hands its clients: here that no proof is asked for."""
        wire = served_as("dynamodb.example")
        session = boto3.Session(region_name=REGION)
        session.client = functools.partial(session.client, verify=False)
        store = DynamoDBStore(table, endpoint_url=wire.endpoint, session=session, fast=fast)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", InsecureRequestWarning)
            assert_works(store, wire, fast=fast)

    @pytest.mark.usefixtures("trusted")
    def test_in_a_file_that_is_replaced(
        self, served_as: Callable[[str], Wire], bundle: str, table: str, fast: bool
    ) -> None:
        """It is read for each connection: a server with a certificate of the next authority is trusted in time."""
        wire = served_as(HOST)
        store = store_at(wire, table, fast=fast)
        assert_works(store, wire, fast=fast)
        following = trustme.CA()
        following.cert_pem.write_to_path(bundle)
        with wire.unplugged():
            wire.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            following.issue_cert(HOST).configure_cert(wire.context)
        for key in ("shop.charge#1", "shop.charge#2", "shop.charge#3"):
            grant(store, key=key)


class TestNotTrusted:
    """Nothing is sent, and both clients say the same."""

    def test_an_unknown_authority(self, served_as: Callable[[str], Wire], table: str, fast: bool) -> None:
        """The authorities of botocore's own bundle did not sign this certificate."""
        wire = served_as(HOST)
        assert_refused(store_at(wire, table, fast=fast), wire, "CERTIFICATE_VERIFY_FAILED")

    @pytest.mark.usefixtures("trusted")
    @pytest.mark.parametrize("host", ["dynamodb.example", "127.0.0.2"])
    def test_a_certificate_for_another_host(
        self, served_as: Callable[[str], Wire], table: str, fast: bool, host: str
    ) -> None:
        """A trusted authority's, but somebody else's."""
        wire = served_as(host)
        assert_refused(store_at(wire, table, fast=fast), wire, "doesn't match|mismatch")

    @pytest.mark.usefixtures("trusted")
    def test_a_server_that_becomes_another(self, served_as: Callable[[str], Wire], table: str, fast: bool) -> None:
        """It is asked for its proof at each connection, however many requests it has answered."""
        wire = served_as(HOST)
        store = store_at(wire, table, fast=fast)
        assert_works(store, wire, fast=fast)
        with wire.unplugged():
            wire.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            trustme.CA().issue_cert(HOST).configure_cert(wire.context)
        assert_refused(store, wire, "CERTIFICATE_VERIFY_FAILED")

    @pytest.mark.usefixtures("trusted")
    def test_boto3_sends_the_next_one(self, served_as: Callable[[str], Wire], table: str) -> None:
        """After an error of TLS nothing follows the template of before."""
        wire = served_as(HOST)
        store = store_at(wire, table, fast=True)
        assert_works(store, wire, fast=True)
        with wire.unplugged():
            right, wire.context = wire.context, ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            trustme.CA().issue_cert(HOST).configure_cert(wire.context)
        with pytest.raises(StoreUnavailableError):
            store.claim(request_by())
        with wire.unplugged():
            wire.context = right
        sent = client_requests(store.connection)
        grant(store, key="shop.charge#next")
        assert sent == ["UpdateItem"]

    def test_authorities_that_cannot_be_read(
        self, served_as: Callable[[str], Wire], table: str, fast: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The file is not there: nothing is sent, with either client."""
        monkeypatch.setenv("AWS_CA_BUNDLE", "no-such-file.pem")
        wire = served_as(HOST)
        with pytest.raises(StoreUnavailableError):
            store_at(wire, table, fast=fast).claim(request_by())
        assert not wire.requests

    def test_a_server_without_tls(self, roto: str, table: str, fast: bool) -> None:
        """It answers with something that is no TLS."""
        with wire_to(roto) as wire:
            wire.endpoint = wire.endpoint.replace("http:", "https:")
            assert_refused(store_at(wire, table, fast=fast), wire, "SSL")


def assert_refused(store: DynamoDBStore, wire: Wire, why: str) -> None:
    """Fail where a request of the first two reaches the server, or the errors of both clients differ."""
    wire.clear()
    for _ in range(2):
        with pytest.raises(StoreUnavailableError, match=r"got no answer \(SSLError\)") as caught:
            store.claim(request_by())
        assert re.search(why, str(caught.value.__cause__))
        assert f"SSL validation failed for {wire.endpoint}/" in str(caught.value.__cause__)
    assert not wire.requests
