"""Whose client a store uses: its own, a session's or a ready-made one, and after a fork never the parent's."""

import os
import pickle
import threading
from collections.abc import Callable
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.loaders import JSONFileLoader

from idempotent_tasks import ConfigurationError, DynamoDBStore, StoreMisconfiguredError
from idempotent_tasks.core.records import Busy, Committed
from tests.conftest import REGION
from tests.contract.conftest import MakeStore
from tests.support.guarding import KEY, done, grant, request_by
from tests.testbed.forking import Child
from tests.testbed.wire import Wire


def client_of(store: DynamoDBStore) -> Any:
    """Return the client that the store uses in this process."""
    return store.connection.client_of_this_process()


def ports(wire: Wire) -> set[int]:
    """Return the client's side of every connection since the last `Wire.clear`."""
    return {request.client_port for request in wire.requests}


class TestWhoseClient:
    """Ways to hand over a connection to AWS."""

    def test_a_session(self, dynamodb: DynamoDBStore) -> None:
        """A session brings its region and its credentials."""
        session = boto3.Session("AKIASESSION", "secret", region_name="ap-southeast-2")
        client = client_of(DynamoDBStore("table", session=session))
        assert client.meta.region_name == "ap-southeast-2"
        assert client._request_signer._credentials.access_key == "AKIASESSION"

    def test_a_config(self) -> None:
        """A config keeps its own values; what it does not say is the library's choice."""
        config = client_of(DynamoDBStore("table", region=REGION, config=Config(read_timeout=1.5))).meta.config
        assert config.read_timeout == 1.5
        assert config.connect_timeout < 10
        assert config.retries["total_max_attempts"] == 1

    def test_a_ready_made_client(self, dynamodb: DynamoDBStore, raw: Any) -> None:
        """A client that the user made carries the whole protocol."""
        store = DynamoDBStore(dynamodb.table, client=raw)
        assert store.commit(grant(store), done(), 60) == Committed()
        assert client_of(store) is raw

    @pytest.mark.parametrize(
        "given",
        [
            {"region": REGION},
            {"endpoint_url": "http://localhost:8000"},
            {"config": Config()},
            {"session": boto3.Session()},
        ],
        ids=lambda given: next(iter(given)),
    )
    def test_a_ready_made_client_is_complete(self, raw: Any, given: dict[str, Any]) -> None:
        """What such a client contains already cannot be given beside it."""
        with pytest.raises(ConfigurationError, match="client="):
            DynamoDBStore("table", client=raw, **given)

    def test_only_a_store_that_makes_its_client_is_verifiable_before_a_fork(
        self, dynamodb: DynamoDBStore, raw: Any
    ) -> None:
        """A ready-made client must stay unused until the worker has forked."""
        assert dynamodb.verifiable
        assert not DynamoDBStore(dynamodb.table, client=raw).verifiable

    def test_one_client_a_process(self, dynamodb: DynamoDBStore, wire: Wire) -> None:
        """All calls of a process, and the store's forms for its apps, share one client and its connections."""
        client = client_of(dynamodb)
        # boto3 sends the first request of each kind, over a connection of its own.
        grant(dynamodb, key="shop.charge#first")
        wire.clear()
        grant(dynamodb)
        grant(dynamodb.for_app("shop"), "two", key="shop.charge#other")
        assert client_of(dynamodb) is client_of(dynamodb.for_app("shop")) is client
        assert len(ports(wire)) == 1


class TestFork:
    """A store that was made, and perhaps used, before the worker forked."""

    def test_a_store_that_the_parent_used(self, dynamodb: DynamoDBStore, wire: Wire) -> None:
        """Children that run at the same time use clients and connections of their own; the parent's goes on."""
        grant(dynamodb)
        grant(dynamodb, key="shop.charge#second")
        inherited = client_of(dynamodb)
        parents = ports(wire)
        wire.clear()

        def claim_in(key: str) -> Callable[[], tuple[bool, int]]:
            return lambda: (grant(dynamodb, key=key).attempt == 1, id(client_of(dynamodb)) == id(inherited))

        children = [Child(claim_in(f"shop.charge#child-{number}")) for number in range(4)]
        assert [child.result() for child in children] == [(True, False)] * 4
        assert len(ports(wire)) == 4
        childrens = ports(wire)
        assert not childrens & parents
        wire.clear()
        assert isinstance(dynamodb.claim(request_by("two")), Busy)
        assert client_of(dynamodb) is inherited
        assert ports(wire) & parents
        assert not ports(wire) & childrens

    def test_parent_and_child_contend(self, dynamodb: DynamoDBStore) -> None:
        """Owners are told apart across processes: a child meets its parent's claim."""
        claim = grant(dynamodb)
        answer = Child(lambda: dynamodb.claim(request_by("two"))).result()
        assert answer == Busy(claim.expires_at, dynamodb.get(KEY))

    def test_a_store_that_nobody_used(self, dynamodb: DynamoDBStore, make_store: MakeStore, wire: Wire) -> None:
        """Each child asks for DynamoDB's time once, at its first claim."""
        store = make_store()

        def claim_two() -> None:
            grant(store, key="shop.charge#first")
            grant(store, "two", key="shop.charge#second")

        Child(claim_two).result()
        assert wire.operations() == ["GetItem", "UpdateItem", "UpdateItem"]

    def test_a_child_of_a_parent_that_used_the_store_starts_at_once(
        self, make_store: MakeStore, wire: Wire, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It knows DynamoDB's clock, and reads no file for its client, from its parent's first request."""

        def read_nothing(_self: Any, path: str) -> None:
            raise AssertionError(f"{path} is read again")

        store = make_store(session=None, region=REGION)
        store.create_table()
        wire.clear()
        monkeypatch.setattr(JSONFileLoader, "load_file", read_nothing)
        assert Child(lambda: grant(store).attempt).result() == 1
        assert wire.operations() == ["UpdateItem"]

    def test_a_child_forked_while_its_parent_makes_a_client(
        self, dynamodb: DynamoDBStore, wire: Wire, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A thread of the parent is at it at that moment; the child does not wait for a lock that nobody opens."""
        making, go_on = threading.Event(), threading.Event()
        session = boto3.Session(region_name="eu-west-1")
        make, parent = session.client, os.getpid()

        def make_slowly(*args: Any, **kwargs: Any) -> Any:
            if os.getpid() == parent:
                making.set()
                assert go_on.wait(30)
            return make(*args, **kwargs)

        monkeypatch.setattr(session, "client", make_slowly)
        store = DynamoDBStore(dynamodb.table, endpoint_url=wire.endpoint, session=session)
        thread = threading.Thread(target=lambda: grant(store, key="shop.charge#parent"), daemon=True)
        thread.start()
        assert making.wait(30)
        assert Child(lambda: grant(store, key="shop.charge#child").attempt).result() == 1
        go_on.set()
        thread.join(30)
        assert dynamodb.get("shop.charge#parent").attempt == 1

    def test_a_ready_made_client_that_the_parent_used(self, dynamodb: DynamoDBStore, raw: Any, wire: Wire) -> None:
        """Its sockets are the parent's: the child refuses, says what to give instead, and the parent goes on."""
        store = DynamoDBStore(dynamodb.table, client=raw)
        grant(store)
        with pytest.raises(StoreMisconfiguredError, match=r"before the fork.*session="):
            Child(lambda: store.claim(request_by("two"))).result()
        assert isinstance(store.claim(request_by("two")), Busy)

    def test_a_ready_made_client_that_nobody_used(self, dynamodb: DynamoDBStore, raw: Any) -> None:
        """A client that opened no connection yet may be a child's."""
        store = DynamoDBStore(dynamodb.table, client=raw)
        assert Child(lambda: grant(store).attempt).result() == 1


def test_a_store_can_be_sent_to_a_spawned_process(make_store: MakeStore, wire: Wire) -> None:
    """Its pickled form leaves client and connections behind and makes new ones."""
    store = make_store(session=None, region=REGION)
    store.create_table()
    grant(store)
    sent = pickle.loads(pickle.dumps(store))
    assert isinstance(sent.claim(request_by("two")), Busy)
    assert client_of(sent) is not client_of(store)
