"""What DynamoDB's answers are taken for with either client, and what is not believed."""

import json
import zlib
from typing import Any

import boto3
import pytest

from idempotent_tasks import StoreUnavailableError
from idempotent_tasks.stores.dynamodb.client import Connection, Refused, Succeeded
from tests.support.canned import JSON, Canned, Said, page
from tests.support.fast_path import ask

NAMESPACE = "com.amazonaws.dynamodb.v20120810#"
CONDITION = "ConditionalCheckFailedException"
HTML = ("Content-Type", "text/html")

#: An attribute as JSON, and as what it is read.
ATTRIBUTES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "binary": ({"B": "gAX/"}, {"B": b"\x80\x05\xff"}),
    "no-bytes": ({"B": ""}, {"B": b""}),
    "binary-set": ({"BS": ["AA==", "gAU="]}, {"BS": [b"\x00", b"\x80\x05"]}),
    "in-a-list": ({"L": [{"B": "AA=="}, {"S": "AA=="}]}, {"L": [{"B": b"\x00"}, {"S": "AA=="}]}),
    "in-a-map": (
        {"M": {"x": {"M": {"y": {"B": "AA=="}}}}},
        {"M": {"x": {"M": {"y": {"B": b"\x00"}}}}},
    ),
    "entries-named-as-types": (
        {"M": {"B": {"S": "AA=="}, "BS": {"L": [{"S": "AA=="}]}, "S": {"B": "AA=="}}},
        {"M": {"B": {"S": "AA=="}, "BS": {"L": [{"S": "AA=="}]}, "S": {"B": b"\x00"}}},
    ),
    "others": (
        {"M": {"n": {"N": "1.50"}, "z": {"NULL": True}, "t": {"BOOL": False}, "s": {"SS": ["é", "\x00"]}}},
        {"M": {"n": {"N": "1.50"}, "z": {"NULL": True}, "t": {"BOOL": False}, "s": {"SS": ["é", "\x00"]}}},
    ),
}

each_attribute = pytest.mark.parametrize(("sent", "read"), ATTRIBUTES.values(), ids=ATTRIBUTES)
each_name = pytest.mark.parametrize("name", ["data", "B", "BS"])


def open_connection(canned: Canned, session: boto3.Session, *, fast: bool) -> Connection:
    """Return a connection after its first request: where there is a fast path, it is open."""
    connection = Connection(endpoint_url=canned.endpoint, session=session, fast=fast)
    ask(connection)
    return connection


@pytest.fixture
def connection(canned: Canned, session: boto3.Session, fast: bool) -> Connection:
    """A connection with each client."""
    return open_connection(canned, session, fast=fast)


@pytest.fixture
def short(canned: Canned, session: boto3.Session) -> Connection:
    """A connection on the fast path."""
    return open_connection(canned, session, fast=True)


class TestItems:
    """Attributes as boto3 reads them: what is binary as bytes."""

    @each_name
    @each_attribute
    def test_an_item(
        self, connection: Connection, canned: Canned, name: str, sent: dict[str, Any], read: dict[str, Any]
    ) -> None:
        """Of every type, under a name that is a type's too."""
        canned.say(json.dumps({"Item": {name: sent}}).encode())
        answer = ask(connection)
        assert isinstance(answer, Succeeded)
        assert answer.answer["Item"] == {name: read}

    @each_attribute
    def test_the_old_item_of_a_refusal(
        self, connection: Connection, canned: Canned, sent: dict[str, Any], read: dict[str, Any]
    ) -> None:
        """What made a condition false comes with the error."""
        canned.say(json.dumps({"__type": NAMESPACE + CONDITION, "Item": {"data": sent}}).encode(), status=400)
        assert ask(connection) == Refused({"data": read})

    def test_no_item(self, connection: Connection, canned: Canned) -> None:
        """An answer without members is one."""
        canned.say(b"{}")
        answer = ask(connection)
        assert isinstance(answer, Succeeded)
        assert set(answer.answer) == {"ResponseMetadata"}


class TestErrors:
    """Which error an answer names."""

    @pytest.mark.parametrize("named", [CONDITION, NAMESPACE + CONDITION], ids=["bare", "with-namespace"])
    def test_in_the_body(self, connection: Connection, canned: Canned, named: str) -> None:
        """With and without what AWS's protocols put before the name."""
        canned.say(json.dumps({"__type": named, "message": "words"}).encode(), status=400)
        assert ask(connection) == Refused(None)

    def test_with_an_address(self, short: Connection, canned: Canned) -> None:
        """What may follow the name is cut off, as botocore does in its later versions."""
        named = f"{NAMESPACE}{CONDITION}:http://internal.amazon.com/coral/"
        canned.say(json.dumps({"__type": named}).encode(), status=400)
        assert ask(short) == Refused(None)

    @pytest.mark.parametrize(
        "named",
        [CONDITION, NAMESPACE + CONDITION, f"{CONDITION}:http://internal.amazon.com/coral/"],
        ids=["bare", "with-namespace", "with-address"],
    )
    @pytest.mark.parametrize("body", [b"{}", b"", b"<html>", b"[]"], ids=["empty", "nothing", "page", "list"])
    def test_in_a_header_only(self, short: Connection, canned: Canned, named: str, body: bytes) -> None:
        """Botocore does not read that header for DynamoDB; an answer to `HEAD` or through a gateway has no other."""
        canned.say(body, ("x-amzn-errortype", named), status=400)
        assert ask(short) == Refused(None)

    @pytest.mark.parametrize("member", ["message", "Message"])
    def test_its_words(self, connection: Connection, canned: Canned, member: str) -> None:
        """They are told, in whichever case the member's name is."""
        canned.say(json.dumps({"__type": f"{NAMESPACE}Made.Up", member: "words of DynamoDB"}).encode(), status=400)
        with pytest.raises(StoreUnavailableError, match=r"Made\.Up: words of DynamoDB"):
            ask(connection)

    @pytest.mark.parametrize("body", [b"", b"{}", b"<html>", b'{"__ty'], ids=["nothing", "empty", "page", "half"])
    @pytest.mark.parametrize("status", [429, 500, 502, 503])
    def test_a_status_without_a_name(self, connection: Connection, canned: Canned, body: bytes, status: int) -> None:
        """It says enough: this may be tried again."""
        canned.say(body, status=status)
        with pytest.raises(StoreUnavailableError, match=f"failed for now: {status}"):
            ask(connection)

    @pytest.mark.parametrize(
        "body", [b'{"__type": 5}', b'{"message": null}', b'"text"', b"[]"], ids=["number", "null", "text", "list"]
    )
    def test_a_refusal_that_is_none_of_dynamodbs(self, connection: Connection, canned: Canned, body: bytes) -> None:
        """Whoever said so, the next answer may be DynamoDB's; on it botocore fails with errors of Python's own."""
        canned.say(body, status=400)
        with pytest.raises(StoreUnavailableError):
            ask(connection)


class TestNotBelieved:
    """Answers with status 200 that say nothing of what became of the request."""

    def test_a_page(self, connection: Connection, canned: Canned) -> None:
        """A gateway's or another server's."""
        said = Said(page(b"<html>It works!</html>", HTML))
        canned.answer = lambda _: said
        with pytest.raises(StoreUnavailableError):
            ask(connection)

    @pytest.mark.parametrize(
        "body", [b'{"Item": {"id"', b"<html>", b"[]", b"null", b'"text"', b'{"Item": {"x": {"B": "x"}}}']
    )
    def test_what_is_no_answer(self, short: Connection, canned: Canned, body: bytes) -> None:
        """Said to be DynamoDB's, but cut off or of another form: botocore may take it for an answer without members."""
        canned.say(body)
        with pytest.raises(StoreUnavailableError, match="got no answer"):
            ask(short)

    def test_half_an_answer(self, short: Connection, canned: Canned) -> None:
        """One that is shorter than it says, which botocore takes as it came."""
        whole = page(b'{"Item": {}}  ', JSON)
        canned.answer = lambda _: Said(whole[:-2], ends=True)
        with pytest.raises(StoreUnavailableError, match="got no answer"):
            ask(short)

    @pytest.mark.parametrize("status", [200, 400])
    def test_a_checksum_that_is_wrong(self, short: Connection, canned: Canned, status: int) -> None:
        """A bit that tipped on the way: neither an item nor a refusal is taken from it."""
        body = json.dumps({"__type": CONDITION, "Item": {"id": {"S": "key"}}}).encode()
        canned.say(body, ("x-amz-crc32", f"{zlib.crc32(body) ^ 1}"), status=status)
        with pytest.raises(StoreUnavailableError):
            ask(short)

    def test_a_checksum_that_is_right(self, connection: Connection, canned: Canned) -> None:
        """DynamoDB sends one with each answer."""
        body = b'{"Item": {"id": {"S": "key"}}}'
        canned.say(body, ("x-amz-crc32", f"{zlib.crc32(body)}"))
        answer = ask(connection)
        assert isinstance(answer, Succeeded)
        assert answer.answer["Item"] == {"id": {"S": "key"}}
