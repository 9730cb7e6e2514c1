"""Large results in a real bucket: what is written and read, what is refused, and what the checks find there."""

import hashlib
import pickle
import secrets
from collections.abc import Callable, Iterator
from io import BytesIO
from typing import Any
from uuid import uuid4

import boto3
import pytest
from celery import Celery

from idempotent_tasks import (
    ConfigurationError,
    Idempotency,
    IdempotentTask,
    ResultUnavailableError,
    S3Results,
    StoreMisconfiguredError,
    StoreUnavailableError,
)
from idempotent_tasks.checks import CheckContext, Finding, run_checks
from idempotent_tasks.checks.s3 import BUCKET_FINDINGS
from idempotent_tasks.testing import MemoryStore
from tests.conftest import REGION
from tests.support.credential_services import direct
from tests.testbed.wire import Answer, Fault, Forward, Wire, answer, cut, lose_answer, refuse, wire_to

EXPIRES_AT = 1_800_000_000
WEEK = 7 * 86_400
DATA = secrets.token_bytes(100_000)
#: In the names of tests, which pytest-xdist compares.
ANY_DIGEST = "0" * 64
DIGEST = hashlib.sha256(DATA).hexdigest()


def told(status: int, code: str) -> Answer:
    """Return an answer of S3's that names an error."""
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>no</Message></Error>"
    return Answer(status, body.encode(), (("Content-Type", "application/xml"),))


def refuse_as(code: str) -> Fault:
    """Refuse a request as S3 does."""
    return lambda _: told(403, code)


def page(status: int) -> Fault:
    """Answer with a page in S3's place."""
    return lambda _: Answer(status, b"<html><body>made up</body></html>", (("Content-Type", "text/html"),))


FAULTS: dict[str, Fault] = {
    "refused": refuse,
    "answer-lost": lose_answer,
    "cut": cut,
    "slow-down": answer(503, "SlowDown"),
    "internal": answer(500, "InternalError"),
    "throttled": answer(429, "x"),
    **{f"page-{status}": page(status) for status in (200, 400, 403, 404, 407, 408, 502)},
    "empty": lambda _: Answer(404, b""),
    **{
        code: refuse_as(code)
        for code in ("ExpiredToken", "InvalidAccessKeyId", "RequestTimeTooSkewed", "SignatureDoesNotMatch", "MadeUp")
    },
}

MakeResults = Callable[..., S3Results]


@pytest.fixture
def wire(ministack: str) -> Iterator[Wire]:
    """A counting, fault-injecting proxy in front of S3."""
    with wire_to(ministack) as proxy:
        yield proxy


@pytest.fixture
def s3(ministack: str, session: boto3.Session) -> Any:
    """A client of the same server past the wire and the library."""
    return session.client("s3", endpoint_url=ministack)


@pytest.fixture
def bucket(s3: Any) -> str:
    """An empty bucket of the test's own."""
    name = f"results-{uuid4().hex[:12]}"
    s3.create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": REGION})
    return name


@pytest.fixture
def make_results(wire: Wire, bucket: str, session: boto3.Session) -> MakeResults:
    """Makes the bucket's results behind the wire."""
    return lambda prefix="shop", **given: S3Results(
        given.pop("bucket", bucket), prefix, endpoint_url=wire.endpoint, session=session, **given
    )


@pytest.fixture
def results(make_results: MakeResults) -> S3Results:
    """The bucket's results under a prefix."""
    return make_results()


def listed(s3: Any, bucket: str) -> list[str]:
    """Return the names of the objects in a bucket."""
    return [each["Key"] for each in s3.list_objects_v2(Bucket=bucket).get("Contents", [])]


class TestObjects:
    """Objects named after what is in them."""

    def test_an_object_is_written_and_read(self, results: S3Results, s3: Any, bucket: str, wire: Wire) -> None:
        """One request each; the name is the digest, and the metadata say until when it is wanted."""
        address = results.put(DATA, EXPIRES_AT)
        assert address == f"s3://{bucket}/shop/{DIGEST}"
        assert results.get(address) == DATA
        assert wire.operations() == ["PUT", "GET"]
        told = s3.head_object(Bucket=bucket, Key=f"shop/{DIGEST}")
        assert told["Metadata"] == {"idempotency-expires": "2027-01-15T08:00:00+00:00"}

    def test_the_same_result_is_one_object(self, results: S3Results, s3: Any, bucket: str) -> None:
        """Its age starts again with each writing, so that S3 deletes it after the last record that names it."""
        assert results.put(DATA, EXPIRES_AT) == results.put(DATA, EXPIRES_AT + 60)
        assert listed(s3, bucket) == [f"shop/{DIGEST}"]
        told = s3.head_object(Bucket=bucket, Key=f"shop/{DIGEST}")
        assert told["Metadata"] == {"idempotency-expires": "2027-01-15T08:01:00+00:00"}

    @pytest.mark.parametrize(("prefix", "begins"), [("", ""), ("/", ""), ("a/b", "a/b/"), ("a/", "a/")], ids=repr)
    def test_a_prefix_is_a_folder(
        self, make_results: MakeResults, s3: Any, bucket: str, prefix: str, begins: str
    ) -> None:
        """Names begin with it and one slash."""
        make_results(prefix).put(DATA, EXPIRES_AT)
        assert listed(s3, bucket) == [f"{begins}{DIGEST}"]

    def test_another_prefix_is_read_too(self, make_results: MakeResults) -> None:
        """A record keeps its address when the setting has changed."""
        address = make_results("old").put(DATA, EXPIRES_AT)
        assert make_results("new").get(address) == DATA

    def test_an_object_that_is_gone(self, results: S3Results, s3: Any, bucket: str) -> None:
        """The error names the object and the rule that may have deleted it."""
        address = results.put(DATA, EXPIRES_AT)
        s3.delete_object(Bucket=bucket, Key=f"shop/{DIGEST}")
        with pytest.raises(ResultUnavailableError, match=rf"{DIGEST} is gone; give the bucket's lifecycle rule more"):
            results.get(address)

    @pytest.mark.parametrize("data", [b"", DATA[:-1], DATA + b"x"], ids=["empty", "cut", "longer"])
    def test_an_object_that_was_changed(self, results: S3Results, s3: Any, bucket: str, data: bytes) -> None:
        """What is read is what was written, or nothing."""
        address = results.put(DATA, EXPIRES_AT)
        s3.put_object(Bucket=bucket, Key=f"shop/{DIGEST}", Body=data)
        with pytest.raises(ResultUnavailableError, match="is not the result that was stored there"):
            results.get(address)

    @pytest.mark.parametrize("length", [None, 10, 10_000], ids=["no-length", "wrong-length", "right-length"])
    def test_an_object_that_is_too_large(
        self, results: S3Results, bucket: str, monkeypatch: pytest.MonkeyPatch, length: int | None
    ) -> None:
        """It is not read to its end, and not at all where S3 says how long it is."""
        monkeypatch.setattr("idempotent_tasks.stores.s3.MAX_RESULT_BYTES", 1000)
        monkeypatch.setattr("idempotent_tasks.stores.s3.PIECE_BYTES", 100)
        body = BytesIO(DATA[:10_000])
        length_told = {} if length is None else {"ContentLength": length}
        answer = {"ETag": '"made up"', "Body": body, **length_told}
        monkeypatch.setattr(results.client(), "get_object", lambda **_: answer)
        positions: list[int] = []
        monkeypatch.setattr(body, "close", lambda: positions.append(body.tell()), raising=False)
        digest = hashlib.sha256(DATA[:10_000]).hexdigest()
        with pytest.raises(ResultUnavailableError, match="is not the result that was stored there"):
            results.get(f"s3://{bucket}/shop/{digest}")
        assert positions == [0 if length == 10_000 else 1100]

    @pytest.mark.parametrize("prefix", ["a#b", "a?b", "a%20b", "ä b", "a//b"])
    def test_a_name_is_taken_as_it_is(self, make_results: MakeResults, prefix: str) -> None:
        """What a URL would read otherwise is part of the name."""
        results = make_results(prefix)
        assert results.get(results.put(DATA, EXPIRES_AT)) == DATA

    @pytest.mark.parametrize("other", ["elsewhere", "{bucket}-other", "{bucket}.s3.example.org", "x@{bucket}"])
    def test_another_bucket(self, results: S3Results, bucket: str, wire: Wire, other: str) -> None:
        """A record leads to the bucket that the app has, and to no other that its role may read."""
        with pytest.raises(ResultUnavailableError, match=r"stored in another bucket than .* only this one is read"):
            results.get(f"s3://{other.format(bucket=bucket)}/shop/{DIGEST}")
        assert wire.operations() == []

    def test_another_object_of_the_bucket(self, results: S3Results, s3: Any, bucket: str, wire: Wire) -> None:
        """What is not named after what is in it is none of ours, and not asked for."""
        s3.put_object(Bucket=bucket, Key="shop/accounts.csv", Body=DATA)
        wire.clear()
        for name in ("shop/accounts.csv", f"shop/{DIGEST}.csv", f"shop/{DIGEST.upper()}", DIGEST[:-1]):
            with pytest.raises(ResultUnavailableError, match="no address of S3"):
                results.get(f"s3://{bucket}/{name}")
        assert wire.operations() == []

    @pytest.mark.parametrize(
        "address",
        [
            *("", "shop/x", "https://elsewhere/x", "s3://bucket", "s3:///x", "s3://[bucket/x", f"s3://{ANY_DIGEST}"),
            *(f"s3://[/{ANY_DIGEST}\n", f"https://elsewhere/{ANY_DIGEST}", f"s3:///{ANY_DIGEST}"),
        ],
    )
    def test_what_is_no_address(self, results: S3Results, wire: Wire, address: str) -> None:
        """Nothing is asked of anybody."""
        with pytest.raises(ResultUnavailableError, match="no address of S3"):
            results.get(address)
        assert wire.operations() == []


class TestFaults:
    """A bucket that does not answer as it should."""

    @pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
    @pytest.mark.parametrize("method", ["PUT", "GET"])
    def test_repeating_may_help(self, results: S3Results, wire: Wire, method: str, fault: Any) -> None:
        """It is told so, after one request; the repetition succeeds."""
        address = results.put(DATA, EXPIRES_AT)
        wire.clear()
        wire.break_nth(method, 1, fault)

        def call() -> object:
            return results.put(DATA, EXPIRES_AT) if method == "PUT" else results.get(address)

        if (method, fault) != ("PUT", cut):  # the answer to a PUT has no body that could be cut
            with pytest.raises(StoreUnavailableError, match=r"s3:(Put|Get)Object on bucket 'results-"):
                call()
            assert wire.operations() == [method]
        assert call() == (address if method == "PUT" else DATA)

    def test_nobody_listens(self, results: S3Results, wire: Wire) -> None:
        """An address where nobody listens may have a listener later."""
        with wire.unplugged(), pytest.raises(StoreUnavailableError, match="got no answer"):
            results.put(DATA, EXPIRES_AT)

    def test_no_bucket(self, make_results: MakeResults) -> None:
        """Repeating does not help; the error says what does."""
        results = make_results(bucket="there-is-none")
        for call in (lambda: results.put(DATA, EXPIRES_AT), lambda: results.get(f"s3://there-is-none/{DIGEST}")):
            with pytest.raises(StoreMisconfiguredError, match=r"NoSuchBucket: .*Remedy: .*fix the bucket's name"):
                call()

    def test_no_permission(self, results: S3Results, wire: Wire) -> None:
        """Without a permission repeating does not help; the error says what does."""
        wire.break_all(denied)
        with pytest.raises(StoreMisconfiguredError, match=r"AccessDenied: no. Remedy: allow s3:PutObject"):
            results.put(DATA, EXPIRES_AT)

    def test_no_credentials(self, bucket: str, ministack: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Nothing is sent; once there are some it is, by the same object."""
        with monkeypatch.context() as patch:
            patch.delenv("AWS_ACCESS_KEY_ID")
            results = S3Results(bucket, region=REGION)
            with pytest.raises(StoreUnavailableError, match=r"no credentials were found; s3:PutObject on bucket"):
                results.put(DATA, EXPIRES_AT)
        direct(monkeypatch, "s3", ministack)
        assert results.put(DATA, EXPIRES_AT)


def denied(_forward: Forward) -> Answer:
    """Answer as S3 does where an action is not allowed."""
    return told(403, "AccessDenied")


class TestConfiguration:
    """Where the bucket is named."""

    @pytest.mark.parametrize(
        ("url", "bucket", "prefix", "above"),
        [
            ("results", "results", "", None),
            ("results/shop", "results", "shop/", None),
            ("s3://results", "results", "", None),
            ("s3://results/a/b/?above_bytes=4096&region=eu-west-1", "results", "a/b/", 4096),
            ("s3://results?endpoint_url=http://localhost:9000", "results", "", None),
        ],
    )
    def test_a_url(self, url: str, bucket: str, prefix: str, above: int | None) -> None:
        """A name, a prefix, and parameters."""
        results = S3Results.from_url(url)
        assert (results.bucket, results.prefix, results.above_bytes) == (bucket, prefix, above)

    @pytest.mark.parametrize(
        "url",
        [
            "",
            "s3://",
            "https://results",
            "s3://key:secret@results",
            "s3://r?above_bytes=-1",
            "s3://r?region=",
            "s3://r?x=1",
            "s3://r?access=secret",
            "s3://[secret",
        ],
    )
    def test_a_wrong_url(self, url: str) -> None:
        """Is refused without quoting a secret."""
        with pytest.raises(ConfigurationError, match="bucket") as caught:
            S3Results.from_url(url)
        assert "secret" not in str(caught.value)

    def test_wrong_arguments(self) -> None:
        """Are refused at once."""
        with pytest.raises(ConfigurationError, match="above_bytes=-1"):
            S3Results("results", above_bytes=-1)
        with pytest.raises(ConfigurationError, match="complete in itself"):
            S3Results("results", region=REGION, client=object())

    def test_each_process_has_a_client_of_its_own(self, bucket: str, ministack: str) -> None:
        """What is sent to a spawned process connects there."""
        results = S3Results(bucket, "shop", endpoint_url=ministack)
        address = results.put(DATA, EXPIRES_AT)
        assert pickle.loads(pickle.dumps(results)).get(address) == DATA


Look = Callable[..., list[Finding]]

#: Every kind, by the test that provokes it and fixes it.
PROVOKED = {
    "results-bucket-refuses": "test_a_bucket_that_is_not_there",
    "results-bucket-keeps": "test_no_rule",
    "results-bucket-expires-first": "test_a_rule_that_is_too_fast",
}


def test_every_problem_is_provoked() -> None:
    """A kind of problem without a test here would be a guess."""
    assert set(PROVOKED) == set(BUCKET_FINDINGS)
    assert set(PROVOKED.values()) <= set(globals())


def do_nothing() -> None:
    """Be a body."""


@pytest.fixture
def look(results: S3Results) -> Look:
    """Look at an app with a task whose records live for a week."""

    def look(bucket: S3Results = results) -> list[Finding]:
        app = Celery("shop", broker="amqp://localhost", set_as_current=False)
        app.conf.update(idempotency_store=MemoryStore(), idempotency_results_bucket=bucket)
        app.conf.update(result_expires=None, task_time_limit=60)
        policy = Idempotency(expires=WEEK)
        app.task(do_nothing, name="shop.charge", base=IdempotentTask, shared=False, idempotency=policy)
        return run_checks(CheckContext.of_app(app, "celery.concurrency.prefork"))

    return look


def expire(s3: Any, bucket: str, days: int, **rule: Any) -> None:
    """Give a bucket a lifecycle rule."""
    whole = {"ID": "x", "Status": "Enabled", "Filter": {"Prefix": ""}, "Expiration": {"Days": days}, **rule}
    s3.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration={"Rules": [whole]})


def codes(found: list[Finding]) -> list[str]:
    """Return what was found."""
    return [each.code for each in found]


def test_a_bucket_that_is_not_there(look: Look, make_results: MakeResults, s3: Any, bucket: str) -> None:
    """It is found; with its name fixed nothing is."""
    (found,) = look(make_results(bucket="there-is-none"))
    assert found.code == "results-bucket-refuses"
    assert "HeadBucket" in found.what
    expire(s3, bucket, 8)
    assert look() == []


def test_no_rule(look: Look, s3: Any, bucket: str, wire: Wire) -> None:
    """A bucket that keeps everything is found, and no more after the rule; nothing is written on the way."""
    (found,) = look()
    assert found.code == "results-bucket-keeps"
    assert "under 'shop/' after 8 days" in found.remedy
    expire(s3, bucket, 8)
    assert look() == []
    assert wire.operations() == ["HEAD", "GET"] * 2
    assert listed(s3, bucket) == []


@pytest.mark.parametrize(
    "rule",
    [
        {"Status": "Disabled"},
        {"Filter": {"Prefix": "other/"}},
        {"Filter": {"Tag": {"Key": "a", "Value": "b"}}},
    ],
    ids=["disabled", "elsewhere", "tagged"],
)
def test_a_rule_that_is_none(look: Look, s3: Any, bucket: str, rule: dict[str, Any]) -> None:
    """A rule that leaves our objects alone is as good as none."""
    expire(s3, bucket, 8, **rule)
    assert codes(look()) == ["results-bucket-keeps"]


def test_a_rule_that_is_too_fast(look: Look, s3: Any, bucket: str) -> None:
    """Objects must outlive the records of a week by a day."""
    expire(s3, bucket, 7, Filter={"Prefix": "shop/"})
    (found,) = look()
    assert found.code == "results-bucket-expires-first"
    assert "after 7 days, a record may be kept for 7" in found.what
    expire(s3, bucket, 8, Filter={"Prefix": "shop/"})
    assert look() == []


def test_who_may_not_see_the_rules_is_not_told_of_them(look: Look, wire: Wire) -> None:
    """The permission is for the check alone; nothing fails without it."""
    wire.break_nth("GET", 1, denied)
    assert look() == []


def test_a_ready_made_client_is_not_asked(look: Look, s3: Any) -> None:
    """It must not be used before a fork."""
    assert look(S3Results("there-is-none", client=s3)) == []
    assert codes(look(S3Results("there-is-none", endpoint_url=s3.meta.endpoint_url))) == ["results-bucket-refuses"]
