"""Answers on the fast path: in whatever form and pieces, they are what Python's own client takes them for."""

import json
from base64 import b64encode
from collections import deque
from http.client import HTTPException, HTTPResponse, IncompleteRead
from io import BytesIO
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from idempotent_tasks.stores.dynamodb.fast import client, http
from idempotent_tasks.stores.dynamodb.fast.http import Reply, is_from_dynamodb, read_reply

BODY = b'{"Attributes": {}}'
PLAIN = b"HTTP/1.1 200 OK\r\nX-Id: one\r\nContent-Length: 18\r\n\r\n" + BODY
CHUNKS = b"2\r\n{}\r\n0\r\n\r\n"
#: Longer than what is asked for at a time.
LARGE = b"x" * 200_000

openings = st.sampled_from(["HTTP/1.1 200 OK", "HTTP/1.1 400 Bad Request", "HTTP/1.1 503 "]) | st.sampled_from(
    [
        "HTTP/1.1 200",
        "HTTP/1.0 200 OK",
        "HTTP/1.1 204 No Content",
        "HTTP/1.1 304 No",
        "HTTP/1.1 100 Continue",
        "ICY 200",
    ]
)
names = st.sampled_from(["Content-Length", "content-length", "Transfer-Encoding", "Connection", "X-Id", "X Id", "é"])
values = st.sampled_from(["", "2", "18", " 18 ", "+18", "-1", "²", "chunked", "close", "Keep-Alive", "a: b", "\x0b"])
lines = st.builds("{}: {}".format, names, values) | st.sampled_from(["X-Id:x", "none", "\tfolded: twice", "X: \r", ":"])
ends = st.sampled_from(["\r\n"] * 9 + ["\n"])
bodies = st.sampled_from([b"", b"{}", BODY, BODY + b"more", CHUNKS])


@st.composite
def answers(draw: st.DrawFn) -> bytes:
    """Return an answer, mostly with a length, that may have anything in it that servers get wrong."""
    head = [draw(openings), *draw(st.lists(lines, max_size=3)), *draw(st.sampled_from([[], ["Content-Length: 18"]]))]
    return "".join(line + draw(ends) for line in [*head, ""]).encode("latin-1") + draw(bodies)


class Pieces:
    """A connection that gives what its server sent in these pieces, and then its end."""

    def __init__(self, *pieces: bytes) -> None:
        self._pieces = deque(filter(None, pieces))

    def recv(self, size: int) -> bytes:
        """Return the next piece, or as much of it as is asked for."""
        piece = self._pieces.popleft() if self._pieces else b""
        if len(piece) > size:
            self._pieces.appendleft(piece[size:])
        return piece[:size]

    def recv_into(self, buffer: Any) -> int:
        """Write into a buffer what `recv` would return."""
        part = self.recv(len(buffer))
        buffer[: len(part)] = part
        return len(part)


def read(*pieces: bytes) -> Reply:
    """Return what is read of an answer in these pieces."""
    connection: Any = Pieces(*pieces)
    return read_reply(connection)


def cut(whole: bytes, places: list[int]) -> list[bytes]:
    """Return bytes in pieces that begin in these places."""
    begins = sorted({0, *(place for place in places if place < len(whole))})
    return [whole[begin:end] for begin, end in zip(begins, [*begins[1:], len(whole)], strict=True)]


def by_python(whole: bytes) -> Reply:
    """Return what `http.client` makes of an answer."""
    source: Any = SimpleNamespace(makefile=lambda _: BytesIO(whole))
    with HTTPResponse(source, method="POST") as response:
        response.begin()
        headers = {name.lower(): value for name, value in response.getheaders()}
        return Reply(response.status, headers, response.read(), keeps=not response.will_close)


def told(reply: Reply) -> tuple[Any, ...]:
    """Return what is the same of one answer, whoever read it: blanks around a value are none of it (RFC 9110)."""
    headers = {name: value.strip(" \t") for name, value in reply.headers.items()}
    return reply.status, headers, reply.body, reply.keeps


@given(answers(), st.lists(st.integers(1, 120), max_size=3))
@example(PLAIN, [])
@example(PLAIN, [20, 60])
@example(PLAIN.replace(b"X-Id: one", b"content-length: 3"), [])
@example(PLAIN.replace(b"X-Id: one", b"Connection: close"), [])
@example(PLAIN.replace(b"X-Id: one", b"Transfer-Encoding: chunked").replace(BODY, CHUNKS), [])
def test_any_answer_is_what_pythons_own_client_takes_it_for(answer: bytes, places: list[int]) -> None:
    """Status, headers, body and whether the connection goes on; or the same error."""
    try:
        expected = by_python(answer)
    except (HTTPException, ValueError) as error:
        with pytest.raises(type(error)):
            read(*cut(answer, places))
    else:
        assert told(read(*cut(answer, places))) == told(expected)


@pytest.mark.parametrize("body", [b"", BODY, LARGE], ids=["empty", "small", "large"])
@pytest.mark.parametrize("piece", [1_000, 65_536, 1_000_000])
def test_an_answer_of_the_usual_form_is_read_without_it(
    monkeypatch: pytest.MonkeyPatch, body: bytes, piece: int
) -> None:
    """That is what makes the path fast; of whatever size, and in whatever pieces its body comes."""
    monkeypatch.delattr(http, "HTTPResponse")
    answer = b"HTTP/1.1 200 OK\r\nX-Id:  one \r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    pieces = cut(answer, list(range(piece, len(answer), piece)))
    assert read(*pieces) == Reply(200, {"x-id": "one", "content-length": f"{len(body)}"}, body, keeps=True)


#: Attributes may have the names of types.
attribute_names = st.sampled_from(["id", "B", "BS", "Bill", "é"])
binaries = st.binary(max_size=4).map(lambda data: b64encode(data).decode())
plain_values = st.fixed_dictionaries({"S": st.sampled_from(["", "B", '"B"', "\\u0042", "déjà"])})
binary_values = st.fixed_dictionaries({"B": binaries}) | st.fixed_dictionaries({"BS": st.lists(binaries, max_size=2)})
attribute_values = st.recursive(
    plain_values | binary_values,
    lambda inner: (
        st.fixed_dictionaries({"L": st.lists(inner, max_size=2)})
        | st.fixed_dictionaries({"M": st.dictionaries(attribute_names, inner, max_size=2)})
    ),
    max_leaves=6,
)


@given(st.dictionaries(attribute_names, attribute_values, max_size=3), st.booleans(), st.booleans())
@example({"data": {"B": "QkI="}}, True, True)
@example({"data": {"BS": ["QkI="]}}, False, True)
def test_binary_values_are_found_in_each_answer(item: dict[str, Any], is_ascii: bool, is_escaped: bool) -> None:
    """Each value of the types B and BS is read as bytes, however the name of its type is written."""
    text = json.dumps({"Item": item}, ensure_ascii=is_ascii)
    text = text.replace('"B', '"\\u0042') if is_escaped else text
    reply = Reply(200, {}, text.encode(), keeps=True)
    assert client._read("GetItem", reply)["Item"] == json.loads(text, object_hook=client._binary)["Item"]


def test_what_follows_a_body_stays_on_the_connection() -> None:
    """No more is asked for than the answer has: a connection with something on it is not used again."""
    connection: Any = Pieces(PLAIN[:-5], PLAIN[-5:] + b"more")
    assert read_reply(connection).body == BODY
    assert connection.recv(10) == b"more"


@pytest.mark.parametrize("had", [0, 3, len(BODY) - 1])
def test_an_answer_that_ends_too_soon(had: int) -> None:
    """It is an error, and not a shorter answer."""
    with pytest.raises(IncompleteRead):
        read(PLAIN.removesuffix(BODY) + BODY[:had])


OWN = {"content-type": "application/x-amz-json-1.0", "x-amzn-requestid": "4KBN", "date": "today", "server": "Server"}


@pytest.mark.parametrize(
    "headers",
    [
        OWN,
        {**OWN, "content-type": "Application/X-AMZ-json-1.1; charset=utf-8"},
        {**OWN, "x-amz-crc32": "2745614147", "connection": "keep-alive"},
    ],
    ids=["plain", "other-version", "more"],
)
def test_an_answer_of_dynamodbs(headers: dict[str, str]) -> None:
    """Its JSON, with the id that it gave the request."""
    assert is_from_dynamodb(headers)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {**OWN, "content-type": "application/json"},
        {**OWN, "content-type": "text/html"},
        {**OWN, "x-amzn-requestid": ""},
        {name: value for name, value in OWN.items() if name != "x-amzn-requestid"},
        {**OWN, "age": "0"},
        {**OWN, "via": "1.1 varnish"},
        {**OWN, "x-cache": "Miss from cloudfront"},
    ],
    ids=["nothing", "json", "page", "empty-id", "no-id", "aged", "passed-on", "cdn"],
)
def test_an_answer_of_somebody_elses(headers: dict[str, str]) -> None:
    """A gateway's, which has its own JSON or a page; or one that was passed on, and may be an old one."""
    assert not is_from_dynamodb(headers)
