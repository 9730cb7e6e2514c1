"""Signatures of the fast path: botocore's own, for whatever request, and nothing learned that would not give them."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from botocore.auth import SigV4Auth, SigV4QueryAuth
from botocore.awsrequest import AWSPreparedRequest, AWSRequest
from botocore.credentials import Credentials, ReadOnlyCredentials
from hypothesis import given
from hypothesis import strategies as st

from idempotent_tasks.stores.dynamodb.fast.sigv4 import DATE, Signer
from tests.support.fast_path import sign_at

NOW = datetime(2026, 11, 25, 12, 34, 56, tzinfo=UTC)
CREDENTIALS = ReadOnlyCredentials("AKIAKEY", "wJalrXUtnFEMI/K7MDENG+bPxRfiCY", "token")
HEADERS = {
    "Content-Type": "application/x-amz-json-1.0",
    "X-Amz-Target": "DynamoDB_20120810.GetItem",
    "User-Agent": "Boto3/1 md/Botocore#1",
}

#: What a header's value may hold, blanks that a signature folds among it.
values = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=30)
#: In one case each, because HTTP does not tell cases apart.
headers = st.dictionaries(st.from_regex(r"X-[a-z0-9-]{1,12}", fullmatch=True), values, max_size=4)
words = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters="/,"), min_size=1, max_size=40)
times = st.datetimes(NOW.replace(year=2020, tzinfo=None), NOW.replace(year=2099, tzinfo=None), timezones=st.just(UTC))
urls = st.builds(
    "{}://{}{}{}".format,
    st.sampled_from(["http", "https"]),
    st.sampled_from(["localhost", "LOCALHOST", "dynamodb.eu-west-1.amazonaws.com", "127.0.0.1", "[::1]", "[fe80::1]"]),
    st.sampled_from(["", ":80", ":443", ":8000"]),
    st.sampled_from(["", "/", "/a/b"]),
)


def signed(
    *,
    url: str = "http://localhost:8000/",
    body: bytes = b"{}",
    more: dict[str, str] | None = None,
    at: datetime = NOW,
    credentials: Any = CREDENTIALS,
    auth: Callable[..., Any] = SigV4Auth,
    region: str = "eu-west-1",
) -> AWSPreparedRequest:
    """Return a request as botocore signs it."""
    request = AWSRequest("POST", url, {**HEADERS, **(more or {})}, body)
    with pytest.MonkeyPatch.context() as patch:
        sign_at(patch, lambda: at)
        auth(credentials, "dynamodb", region).add_auth(request)
    return request.prepare()


def by_name(request: AWSPreparedRequest) -> dict[str, str]:
    """Return the headers by name in lower case."""
    pairs = request.headers.items()
    return {name.lower(): value.decode() if isinstance(value, bytes) else value for name, value in pairs}


def learned(request: AWSPreparedRequest, credentials: Any = CREDENTIALS) -> Signer | None:
    """Return who signs as this request is signed."""
    return Signer.from_request(request, by_name(request), credentials)


class TestSameAsBotocore:
    """The signature of another request with the same headers' names is the one that botocore gives it."""

    @given(
        where=st.fixed_dictionaries({"url": urls, "region": st.sampled_from(["eu-west-1", "local"])}),
        named=headers,
        access_key=words,
        has_token=st.booleans(),
        data=st.data(),
    )
    def test_any_request(
        self, *, where: dict[str, Any], named: dict[str, str], access_key: str, has_token: bool, data: st.DataObject
    ) -> None:
        """Of other bodies, headers, times, secrets and tokens than the one that was learned from."""

        def drawn() -> tuple[AWSPreparedRequest, ReadOnlyCredentials]:
            token = data.draw(words) if has_token else None
            credentials = ReadOnlyCredentials(access_key, data.draw(words), token)
            body, at = data.draw(st.binary(min_size=1, max_size=200)), data.draw(times)
            more = {name: data.draw(values) for name in named}
            return signed(**where, more=more, body=body, at=at, credentials=credentials), credentials

        signer = learned(*drawn())
        assert signer is not None
        request, credentials = drawn()
        known = {**by_name(request), "host": signer.host}
        authorization = signer.authorization(known, request.body, credentials.secret_key)
        assert authorization == known["authorization"]

    def test_credentials_of_botocores_own_class(self) -> None:
        """What is learned from does not depend on how the credentials are held."""
        credentials = Credentials("AKIAKEY", "secret")
        assert learned(signed(credentials=credentials), credentials.get_frozen_credentials()) is not None


class TestKeyOfTheDay:
    """The key that is kept between signatures is the day's and the secret's."""

    @pytest.mark.parametrize(
        ("first", "second"),
        [
            ({}, {"at": NOW.replace(day=26)}),
            ({"at": NOW.replace(day=26)}, {}),
            ({}, {"credentials": CREDENTIALS._replace(secret_key="another")}),
            ({}, {"at": NOW.replace(hour=23)}),
        ],
        ids=["next-day", "day-before", "other-secret", "same-day"],
    )
    def test_it_changes_with_them(self, first: dict[str, Any], second: dict[str, Any]) -> None:
        """There and back, each signature is botocore's."""
        signer = learned(signed())
        assert signer is not None
        for changed in (first, second, first):
            request = signed(**changed)
            known = {**by_name(request), "host": signer.host}
            secret = changed.get("credentials", CREDENTIALS).secret_key
            assert signer.authorization(known, request.body, secret) == known["authorization"]

    def test_one_is_kept(self) -> None:
        """A worker that runs for years keeps no more than its last."""
        signer = learned(signed())
        assert signer is not None
        known = {**by_name(signed()), "host": signer.host}
        for day in range(1, 29):
            signer.authorization({**known, DATE: f"202602{day:02}T000000Z"}, b"{}", CREDENTIALS.secret_key)
        assert list(signer._keys) == [("20260228", CREDENTIALS.secret_key)]


class TestNotLearned:
    """Requests that tell nothing, because the signature would not be theirs."""

    def test_a_signature_in_the_url(self) -> None:
        """It has no header that the next request could have too."""
        assert learned(signed(auth=SigV4QueryAuth)) is None

    def test_a_path_that_is_signed_in_another_form(self) -> None:
        """What is quoted in it is quoted once more."""
        assert learned(signed(url="http://localhost:8000/a%20b")) is None

    @pytest.mark.parametrize("name", ["AWS4-ECDSA-P256-SHA256", "AWS3-HTTPS", "Bearer"])
    def test_an_algorithm_of_another_name(self, name: str) -> None:
        """Whatever comes after it."""
        request = signed()
        request.headers["Authorization"] = by_name(request)["authorization"].replace("AWS4-HMAC-SHA256", name)
        assert learned(request) is None

    def test_a_query(self) -> None:
        """Its canonical form is nothing that DynamoDB's requests need."""
        assert learned(signed(url="http://localhost:8000/?a=b")) is None

    @pytest.mark.parametrize("place", [0, 31, 63])
    def test_a_tampered_signature(self, place: int) -> None:
        """In whichever of its digits."""
        request = signed()
        text = by_name(request)["authorization"]
        start = len(text) - 64 + place
        digit = "0" if text[start] != "0" else "1"
        request.headers["Authorization"] = text[:start] + digit + text[start + 1 :]
        assert learned(request) is None

    def test_a_tampered_body(self) -> None:
        """What was signed is what was sent."""
        request = signed()
        request.body = b'{"TableName": "another"}'
        assert learned(request) is None

    @pytest.mark.parametrize("header", ["Authorization", "X-Amz-Date", "X-Amz-Target", "X-Amz-Security-Token"])
    def test_a_header_that_is_missing(self, header: str) -> None:
        """Unsigned, undated, or without one of those that were signed."""
        request = signed()
        del request.headers[header]
        assert learned(request) is None

    @pytest.mark.parametrize(
        "others",
        [CREDENTIALS._replace(access_key="AKIAOTHER"), CREDENTIALS._replace(secret_key="another")],
        ids=["key", "secret"],
    )
    def test_other_credentials(self, others: ReadOnlyCredentials) -> None:
        """Those that were refreshed in between."""
        assert learned(signed(), others) is None

    def test_a_body_that_is_no_bytes(self) -> None:
        """A file or a generator cannot be read a second time."""
        request = signed()
        request.body = iter([b"{}"])
        assert learned(request) is None


def test_nothing_secret_is_shown() -> None:
    """Neither the secret nor a key that is made of it is in what a log prints of a signer."""
    signer = learned(signed())
    assert signer is not None
    assert CREDENTIALS.secret_key not in repr(signer)
