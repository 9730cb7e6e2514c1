"""A store from its URL: what it can say, what it refuses, and what it never repeats aloud."""

import traceback
from typing import Any
from urllib.parse import quote, urlsplit

import pytest

from idempotent_tasks import ConfigurationError, DynamoDBStore, StoreUnavailableError
from idempotent_tasks.core.records import Busy, Granted
from tests.support.guarding import grant, request_by
from tests.testbed.processes import free_port

SECRET = "wJalrXUtnFEMI/K7MDENG+bPxRfiCY"


@pytest.fixture
def no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment without AWS credentials and without a region, as on a new laptop."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name)


def client_of(store: DynamoDBStore) -> Any:
    """Return the client that the store uses in this process."""
    return store.connection.client_of_this_process()


class TestPlaces:
    """Where the table is."""

    def test_a_region(self) -> None:
        """A host without a port is a region of AWS."""
        store = DynamoDBStore.from_url("dynamodb://ap-southeast-2/celery-idempotency")
        assert store.table == "celery-idempotency"
        assert client_of(store).meta.region_name == "ap-southeast-2"
        assert client_of(store).meta.endpoint_url == "https://dynamodb.ap-southeast-2.amazonaws.com"

    def test_a_region_and_an_endpoint(self, dynamodb_endpoint: str, table: str) -> None:
        """An endpoint beside the region stands in for AWS."""
        store = DynamoDBStore.from_url(f"dynamodb://ap-southeast-2/{table}?endpoint_url={dynamodb_endpoint}")
        store.create_table()
        grant(store)
        assert client_of(store).meta.region_name == "ap-southeast-2"

    @pytest.mark.usefixtures("no_credentials")
    @pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
    def test_a_local_server(self, dynamodb_endpoint: str, table: str, host: str) -> None:
        """A host with a port is a stand-in; it needs neither credentials nor a region."""
        store = DynamoDBStore.from_url(f"dynamodb://{host}:{urlsplit(dynamodb_endpoint).port}/{table}")
        store.create_table()
        grant(store)

    def test_localhost_has_a_usual_port(self) -> None:
        """DynamoDB Local listens on 8000."""
        assert (
            client_of(DynamoDBStore.from_url("dynamodb://localhost/keys")).meta.endpoint_url == "http://localhost:8000"
        )

    @pytest.mark.usefixtures("no_credentials")
    def test_credentials(self) -> None:
        """Credentials in the URL, quoted as URLs want it, are those of the client."""
        store = DynamoDBStore.from_url(f"dynamodb://AKIAKEY:{quote(SECRET, safe='')}@localhost:8000/keys")
        credentials = client_of(store)._request_signer._credentials
        assert (credentials.access_key, credentials.secret_key) == ("AKIAKEY", SECRET)

    def test_credentials_in_a_url_fix_the_region(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A stand-in may keep tables by Region, so that a shell with another one must not see another table."""
        url = "dynamodb://local:local@localhost:8000/keys"
        for region in ("eu-west-1", "us-west-2"):
            monkeypatch.setenv("AWS_DEFAULT_REGION", region)
            assert client_of(DynamoDBStore.from_url(url)).meta.region_name == "us-east-1"
            assert client_of(DynamoDBStore.from_url(f"{url}?region=eu-west-3")).meta.region_name == "eu-west-3"
            assert client_of(DynamoDBStore.from_url("dynamodb://localhost:8000/keys")).meta.region_name == region

    def test_an_arn_is_a_table(self) -> None:
        """The whole path is the table's name, which may be an ARN."""
        arn = "arn:aws:dynamodb:eu-west-1:123456789012:table/celery"
        assert DynamoDBStore.from_url(f"dynamodb://eu-west-1/{arn}").table == arn


class TestParameters:
    """The rest of the constructor."""

    def test_each_attribute_name(self) -> None:
        """The record layout can be said in the URL as in the constructor."""
        names: dict[str, Any] = {
            "key_attr": "a",
            "sort_key_attr": "b",
            "static_pk_value": "c d",
            "status_attr": "e",
            "expiry_attr": "f",
            "in_progress_expiry_attr": "g",
            "data_attr": "h",
            "validation_key_attr": "i",
        }
        roles = ["owner", "fence", "attempt", "task", "task_id", "worker", "claimed_at", "completed_at", "codec"]
        others = {role: f"x_{role}" for role in [*roles, "error"]}
        query = {**names, **{f"{role}_attr": name for role, name in others.items()}}
        url = "dynamodb://eu-west-1/keys?" + "&".join(f"{name}={quote(value)}" for name, value in query.items())
        assert DynamoDBStore.from_url(url).schema == DynamoDBStore("keys", **names, attributes=others).schema

    @pytest.mark.parametrize(("value", "fast"), [("true", True), ("True", True), ("false", False), ("FALSE", False)])
    def test_the_fast_path(self, value: str, fast: bool) -> None:
        """Whether requests take the fast path is the constructor's ``fast``, in words."""
        assert DynamoDBStore.from_url(f"dynamodb://eu-west-1/keys?fast={value}").connection._fast is fast

    def test_the_usual_path(self) -> None:
        """A URL that says nothing of it means the same as a constructor without the argument."""
        assert (
            DynamoDBStore.from_url("dynamodb://eu-west-1/keys").connection._fast
            is DynamoDBStore("keys").connection._fast
        )

    @pytest.mark.parametrize("value", ["yes", "1", "0", "fast", "truefalse"])
    def test_a_switch_that_is_in_no_position(self, value: str) -> None:
        """Whatever else somebody meant by it, the two words are named."""
        with pytest.raises(ConfigurationError, match=f"fast='{value}' is neither true nor false"):
            DynamoDBStore.from_url(f"dynamodb://eu-west-1/keys?fast={value}")

    def test_keys_that_clash(self) -> None:
        """A mistake in the layout is found in a URL too."""
        with pytest.raises(ConfigurationError, match="must differ"):
            DynamoDBStore.from_url("dynamodb://eu-west-1/keys?key_attr=x&sort_key_attr=x")

    def test_an_empty_parameter(self) -> None:
        """A value that got lost, as of an unset variable, is no reason to talk to AWS instead."""
        with pytest.raises(ConfigurationError, match="'endpoint_url' is empty"):
            DynamoDBStore.from_url("dynamodb://eu-west-1/keys?endpoint_url=")

    def test_an_unknown_parameter(self) -> None:
        """A typo is named, beside what is known."""
        with pytest.raises(ConfigurationError, match=r"unknown parameter 'keyattr'.*key_attr"):
            DynamoDBStore.from_url("dynamodb://eu-west-1/keys?keyattr=x")


@pytest.mark.parametrize(
    "url",
    [
        "",
        "T",
        "dynamodb://eu-west-1",
        "dynamodb://eu-west-1/",
        "dynamodb:///keys",
        "dynamodb:T",
        "redis://localhost:6379/0",
        "dynamodb://localhost:eight/keys",
        "dynamodb://localhost:99999/keys",
        "dynamodb://[::1/keys",
    ],
)
def test_what_is_no_store_url(url: str) -> None:
    """A configuration error says what to write, before anything is sent."""
    with pytest.raises(ConfigurationError):
        DynamoDBStore.from_url(url)


class TestTableNames:
    """What DynamoDB takes as ``TableName``: a name, or the ARN of a table."""

    @pytest.mark.parametrize(
        "table",
        [
            "abc",
            "Celery_idempotency-v1.2",
            "x" * 255,
            "arn:aws:dynamodb:eu-west-1:123456789012:table/celery-idempotency",
            "arn:aws-us-gov:dynamodb:us-gov-west-1:123456789012:table/keys",
            "arn:aws:dynamodb:ddblocal:000000000000:table/keys",
        ],
    )
    def test_a_name_that_can_be(self, table: str) -> None:
        """It is kept as it is, by the constructor and in a URL."""
        assert DynamoDBStore(table).table == table
        assert DynamoDBStore.from_url(f"dynamodb://eu-west-1/{quote(table, safe='')}").table == table

    @pytest.mark.parametrize(
        "table",
        [
            "ab",
            "x" * 256,
            "celery idempotency",
            "celery/idempotency",
            "keys\n",
            "schlüssel",
            "arn:aws:s3:eu-west-1:123456789012:table/keys",
            "arn:aws:dynamodb:eu-west-1:123456789012:table/no",
            "arn:aws:dynamodb:eu-west-1:123456789012:table/keys/index/by-task",
        ],
    )
    def test_a_name_that_cannot_be(self, table: str) -> None:
        """It is refused where the store is made, by name, and the rule is said."""
        for make in (
            DynamoDBStore,
            lambda name: DynamoDBStore.from_url(f"dynamodb://eu-west-1/{quote(name, safe='')}"),
        ):
            with pytest.raises(ConfigurationError, match="3 to 255 of the characters") as caught:
                make(table)
            assert repr(table) in str(caught.value)

    def test_what_may_be_a_part_of_a_secret(self) -> None:
        """A secret that begins with digits and a slash ends up in the place of the table, and is not quoted."""
        with pytest.raises(ConfigurationError, match="3 to 255 of the characters") as caught:
            DynamoDBStore.from_url("dynamodb://AKIAKEY:12/wJalrXUtnFEMI@localhost:8000/keys")
        assert_hidden(told(caught.value))

    def test_a_store_of_a_table_that_is_named_by_its_arn(self, dynamodb: DynamoDBStore, raw: Any) -> None:
        """A request that names the table by its ARN reaches it."""
        arn = raw.describe_table(TableName=dynamodb.table)["Table"]["TableArn"]
        assert isinstance(DynamoDBStore(arn, client=raw).claim(request_by()), Granted)
        assert isinstance(dynamodb.claim(request_by("second")), Busy)


class TestSecrets:
    """Credentials are used and never shown."""

    def test_in_the_repr(self) -> None:
        """Neither the store nor what it holds prints them."""
        store = DynamoDBStore.from_url(f"dynamodb://AKIAKEY:{quote(SECRET, safe='')}@localhost:8000/keys")
        shown = f"{store!r} {store} {vars(store)} {vars(store.connection)}"
        assert_hidden(shown)
        assert "localhost:8000" in repr(store)

    def test_in_an_endpoint(self) -> None:
        """An endpoint with credentials of a gateway keeps them to itself."""
        assert_hidden(repr(DynamoDBStore("keys", endpoint_url="http://AKIAKEY:wJalrXUtnFEMI@localhost:8000")))

    def test_in_the_error_of_a_request(self) -> None:
        """A server that cannot be reached is named without them."""
        url = f"dynamodb://AKIAKEY:{quote(SECRET, safe='')}@127.0.0.1:{free_port()}/table"
        with pytest.raises(StoreUnavailableError) as caught:
            DynamoDBStore.from_url(url).claim(request_by())
        assert_hidden(told(caught.value))

    @pytest.mark.parametrize("secret", [SECRET, quote(SECRET, safe="")], ids=["unquoted", "quoted"])
    @pytest.mark.parametrize(
        "rest",
        [
            "localhost:8000",
            "localhost:eight/keys",
            "localhost:8000/keys?typo=1",
            "localhost:8000/keys?fast=1",
            "[::1/keys",
        ],
    )
    def test_in_the_error_of_a_url(self, secret: str, rest: str) -> None:
        """A URL that is refused is not repeated whole, also where a ``/`` in the secret was the mistake."""
        with pytest.raises(ConfigurationError) as caught:
            DynamoDBStore.from_url(f"dynamodb://AKIAKEY:{secret}@{rest}")
        assert_hidden(told(caught.value))


def told(error: BaseException) -> str:
    """Return all that a log shows of an error and its causes, except for the source lines."""
    return "".join(traceback.format_exception(error, limit=0))


def assert_hidden(text: str) -> None:
    """Fail where a part of the secret is in the text."""
    for part in ("wJalrXUtnFEMI", "K7MDENG", "bPxRfiCY"):
        assert part not in text, text
