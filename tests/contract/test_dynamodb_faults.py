"""What goes wrong between a store and DynamoDB: a typed error each, and after a lost answer the same answer again."""

import os
import signal
import threading
from collections.abc import Callable
from typing import Any

import pytest
from botocore.config import Config

from idempotent_tasks import DynamoDBStore, Record, Status, StoreMisconfiguredError, StoreUnavailableError
from idempotent_tasks.core.records import Claim, Committed, Granted, Released, Renewed
from tests.contract.conftest import MakeStore
from tests.support.guarding import KEY, Interrupt, done, grant, request_by
from tests.testbed.processes import free_port
from tests.testbed.wire import Answer, Fault, Forward, Wire, answer, hold, internal_error, lose_answer, refuse

RETENTION = 3600
#: Longer than any of these tests takes, in seconds.
LONG_SECONDS = 20.0

WEB_PAGE = b"<html><body>It works!</body></html>"


def page(status: int) -> Fault:
    """Answer with a page in the server's place."""
    return lambda _: Answer(status, WEB_PAGE, (("Content-Type", "text/html"),))


TRANSIENT: dict[str, Fault] = {
    "cut": refuse,
    "lost": lose_answer,
    "InternalServerError": internal_error,
    "ServiceUnavailable": answer(503, "ServiceUnavailable"),
    **{
        code: answer(400, code)
        for code in (
            "LimitExceededException",
            "ProvisionedThroughputExceededException",
            "ReplicatedWriteConflictException",
            "RequestLimitExceeded",
            "ThrottlingException",
            "TransactionConflictException",
        )
    },
    "gateway": lambda _: Answer(502, WEB_PAGE, (("Content-Type", "text/html"),)),
    "too-many-requests": lambda _: Answer(429, WEB_PAGE, (("Content-Type", "text/html"),)),
    "nobody-knows": answer(400, "MadeUpException"),
    **{f"page-{status}": page(status) for status in (400, 403, 404, 407, 408, 413, 451, 520)},
    "timeout": answer(408, "ValidationException"),
    "json-of-a-gateway": lambda _: Answer(403, b'{"message": "Forbidden"}', (("Content-Type", "application/json"),)),
    "success-of-a-gateway": lambda _: Answer(200, b'{"ok": true}', (("Content-Type", "application/json"),)),
}

#: A refusal of a signature, which passes when keys are rotated or known or a clock is set, and a part of the remedy.
CREDENTIALS = {
    "ExpiredTokenException": "renew the credentials",
    "IncompleteSignatureException": "proxy",
    "InvalidSignatureException": "clock",
    "MissingAuthenticationTokenException": "credentials",
    "RequestExpired": "clock is far off",
    "UnrecognizedClientException": "credentials",
}

#: An error of DynamoDB's that stays until somebody acts, and a part of the remedy.
PERMANENT = {
    "AccessDeniedException": "allow the action",
    "ResourceNotFoundException": "create-table",
    "SerializationException": "key schema",
    "UnknownOperationException": "fix the endpoint",
    "ValidationException": "key schema",
}

#: Every call that sends something, on a claim that is held.
CALLS: dict[str, tuple[str, Callable[[DynamoDBStore, Claim], object]]] = {
    "claim": ("UpdateItem", lambda store, _: store.claim(request_by("two"))),
    "commit": ("UpdateItem", lambda store, claim: store.commit(claim, done(), RETENTION)),
    "release": ("UpdateItem", lambda store, claim: store.release(claim, "Retry")),
    "renew": ("UpdateItem", lambda store, claim: store.renew(claim, 60, RETENTION)),
    "restore": ("PutItem", lambda store, _: store.restore(store_record("shop.charge#other"))),
    "get": ("GetItem", lambda store, _: store.get(KEY)),
    "forget": ("DeleteItem", lambda store, _: store.forget(KEY)),
}

each_call = pytest.mark.parametrize(("operation", "call"), CALLS.values(), ids=CALLS)


def store_record(key: str) -> Record:
    """Return a finished record."""
    return Record(key=key, status=Status.COMPLETED, expiration=4_000_000_000, owner="one", fence=1, codec="json")


class TestTransient:
    """Errors after which the call may be repeated."""

    @pytest.mark.parametrize("fault", TRANSIENT.values(), ids=TRANSIENT)
    def test_each_fault(self, dynamodb: DynamoDBStore, wire: Wire, fault: Fault) -> None:
        """A claim that met it is unavailable for now, said with what and where; the next one is granted."""
        wire.break_nth("UpdateItem", 1, fault)
        with pytest.raises(StoreUnavailableError) as caught:
            dynamodb.claim(request_by())
        assert "dynamodb:UpdateItem" in str(caught.value)
        assert dynamodb.table in str(caught.value)
        grant(dynamodb)

    @pytest.mark.parametrize(("code", "remedy"), CREDENTIALS.items(), ids=CREDENTIALS)
    def test_each_refusal_of_a_signature(self, dynamodb: DynamoDBStore, wire: Wire, code: str, remedy: str) -> None:
        """It may pass, and says what was refused, in DynamoDB's own words up to those that quote the request."""
        grant(dynamodb, key="shop.charge#other")
        wire.clear()
        words = "words of DynamoDB.\n\nThe Canonical String was\nx-amz-security-token:secret"
        wire.break_nth("UpdateItem", 1, answer(400, code, words))
        with pytest.raises(StoreUnavailableError, match=remedy) as caught:
            dynamodb.claim(request_by())
        for part in ("dynamodb:UpdateItem", dynamodb.table, code, "words of DynamoDB"):
            assert part in str(caught.value)
        assert "security-token" not in str(caught.value)
        grant(dynamodb)

    @each_call
    def test_each_call(
        self, dynamodb: DynamoDBStore, wire: Wire, operation: str, call: Callable[[DynamoDBStore, Claim], object]
    ) -> None:
        """Every call says that the store is unavailable, and sends its request once: retrying is the guard's."""
        claim = grant(dynamodb)
        wire.clear()
        wire.break_when(lambda name, _: name == operation, internal_error)
        with pytest.raises(StoreUnavailableError):
            call(dynamodb, claim)
        assert wire.operations() == [operation]

    def test_the_first_request_of_all(self, dynamodb: DynamoDBStore, make_store: MakeStore, wire: Wire) -> None:
        """Where the clock cannot be asked nothing is claimed, and the next call asks again."""
        store = make_store()
        wire.break_nth("GetItem", 1, refuse)
        with pytest.raises(StoreUnavailableError):
            store.claim(request_by())
        assert wire.operations() == ["GetItem"]
        grant(store)
        assert wire.operations() == ["GetItem", "GetItem", "UpdateItem"]

    def test_nobody_listens(self, session: Any) -> None:
        """An endpoint without a server is named."""
        endpoint = f"http://127.0.0.1:{free_port()}"
        store = DynamoDBStore("table", endpoint_url=endpoint, session=session)
        for call in (store.verify, store.create_table, lambda: store.claim(request_by())):
            with pytest.raises(StoreUnavailableError, match=endpoint):
                call()

    def test_no_answer_in_time(self, make_store: MakeStore, dynamodb: DynamoDBStore, wire: Wire) -> None:
        """A server that accepts and then says nothing holds a worker no longer than the time-out of ``config=``."""
        store = make_store(config=Config(read_timeout=0.3))
        grant(store, key="shop.charge#other")
        never = threading.Event()
        wire.clear()
        wire.break_nth("UpdateItem", 1, hold(never))
        with pytest.raises(StoreUnavailableError, match="ReadTimeoutError"):
            store.claim(request_by())
        never.set()

    def test_the_retries_of_a_config_are_ignored(self, make_store: MakeStore, wire: Wire) -> None:
        """There is one authority for retries, and it is not botocore."""
        store = make_store(config=Config(retries={"max_attempts": 5, "mode": "adaptive"}))
        wire.break_all(internal_error)
        with pytest.raises(StoreUnavailableError):
            store.claim(request_by())
        assert wire.operations() == ["GetItem"]


class TestPermanent:
    """Errors that stay until somebody acts."""

    @pytest.mark.parametrize(("code", "remedy"), PERMANENT.items(), ids=PERMANENT)
    def test_each_refusal(self, dynamodb: DynamoDBStore, wire: Wire, code: str, remedy: str) -> None:
        """What was refused, where, DynamoDB's own words, and what to do."""
        grant(dynamodb, key="shop.charge#other")
        wire.clear()
        wire.break_nth("UpdateItem", 1, answer(400, code, "words of DynamoDB"))
        with pytest.raises(StoreMisconfiguredError, match=remedy) as caught:
            dynamodb.claim(request_by())
        for part in ("dynamodb:UpdateItem", dynamodb.table, code, "words of DynamoDB"):
            assert part in str(caught.value)

    @each_call
    def test_each_call(
        self, dynamodb: DynamoDBStore, wire: Wire, operation: str, call: Callable[[DynamoDBStore, Claim], object]
    ) -> None:
        """Every call names its own action, so that the policy can be fixed."""
        claim = grant(dynamodb)
        wire.clear()
        wire.break_all(answer(400, "AccessDeniedException"))
        with pytest.raises(StoreMisconfiguredError, match=f"dynamodb:{operation}"):
            call(dynamodb, claim)

    @each_call
    @pytest.mark.parametrize(
        "success",
        [
            Answer(200, WEB_PAGE, (("Content-Type", "text/html"),)),
            Answer(200, b"{}", (("Content-Type", "application/json"),)),
            Answer(200, b'{"status": "ok"}', (("Content-Type", "application/x-amz-json-1.0"),)),
        ],
        ids=["page", "empty", "health-check"],
    )
    def test_a_web_server_is_no_dynamodb(
        self,
        dynamodb: DynamoDBStore,
        wire: Wire,
        operation: str,
        call: Callable[[DynamoDBStore, Claim], object],
        success: Answer,
    ) -> None:
        """Status 200, from a wrong endpoint or a gateway, is no answer by itself: above all it is no commit."""
        claim = grant(dynamodb)
        wire.clear()
        wire.break_all(lambda _: success)
        with pytest.raises(StoreUnavailableError):
            call(dynamodb, claim)

    def test_an_endpoint_that_is_none(self, session: Any) -> None:
        """A mistyped endpoint is a matter of configuration, not of the network."""
        with pytest.raises(StoreMisconfiguredError, match="not-a-url"):
            DynamoDBStore("table", endpoint_url="not-a-url", session=session).claim(request_by())


class TestLostAnswers:
    """The write is applied, its answer is lost, and the guard repeats the call."""

    def test_claim(self, dynamodb: DynamoDBStore, wire: Wire) -> None:
        """The repetition is granted the claim that the first try took."""
        wire.break_nth("UpdateItem", 1, lose_answer)
        with pytest.raises(StoreUnavailableError):
            dynamodb.claim(request_by())
        applied = dynamodb.get(KEY)
        answered = dynamodb.claim(request_by())
        assert isinstance(answered, Granted)
        assert (answered.claim.fence, answered.claim.attempt) == (applied.fence, 1)
        assert answered.claim.in_progress_expiration == applied.in_progress_expiration
        assert dynamodb.commit(answered.claim, done(), RETENTION) == Committed()

    def test_claim_retried_by_the_client_itself(
        self, dynamodb: DynamoDBStore, wire: Wire, session: Any, refusal_read: list[str]
    ) -> None:
        """A ready-made client with botocore's own retries meets its own record, and that is a grant too."""
        config = Config(retries={"total_max_attempts": 2, "mode": "standard"})
        client = session.client("dynamodb", endpoint_url=wire.endpoint, config=config)
        store = DynamoDBStore(dynamodb.table, client=client)
        wire.break_nth("UpdateItem", 1, lose_answer)
        assert grant(store).attempt == 1
        assert wire.operations() == ["GetItem", "UpdateItem", "UpdateItem", *refusal_read]

    @pytest.mark.parametrize(
        ("name", "wanted"), [("commit", Committed()), ("release", Released())], ids=["commit", "release"]
    )
    def test_last_writes(self, dynamodb: DynamoDBStore, wire: Wire, name: str, wanted: object) -> None:
        """The repetition is told that all is well, and the record is as the first try left it."""
        claim = grant(dynamodb)
        wire.clear()
        wire.break_nth("UpdateItem", 1, lose_answer)
        _, call = CALLS[name]
        with pytest.raises(StoreUnavailableError):
            call(dynamodb, claim)
        applied = dynamodb.get(KEY)
        assert applied.attempt == 0
        assert call(dynamodb, claim) == wanted
        assert dynamodb.get(KEY) == applied

    def test_renew(self, dynamodb: DynamoDBStore, wire: Wire) -> None:
        """The repetition renews once more."""
        claim = grant(dynamodb)
        wire.clear()
        wire.break_nth("UpdateItem", 1, lose_answer)
        with pytest.raises(StoreUnavailableError):
            dynamodb.renew(claim, 300, RETENTION)
        assert (dynamodb.get(KEY).in_progress_expiration or 0) > claim.in_progress_expiration
        assert isinstance(dynamodb.renew(claim, 300, RETENTION), Renewed)

    def test_restore(self, dynamodb: DynamoDBStore, wire: Wire) -> None:
        """The repetition finds its own record and is content."""
        record = store_record(KEY)
        wire.break_nth("PutItem", 1, lose_answer)
        with pytest.raises(StoreUnavailableError):
            dynamodb.restore(record)
        dynamodb.restore(record)
        assert dynamodb.get(KEY) == record


def test_what_somebody_raises_into_a_request_comes_out(dynamodb: DynamoDBStore, wire: Wire) -> None:
    """A soft time limit during a request is no failure of the store, which would be tried again as if nothing was."""

    def interrupt(*_: object) -> None:
        raise Interrupt

    def signal_us(_: Forward) -> None:
        os.kill(os.getpid(), signal.SIGUSR1)
        interrupted.wait(LONG_SECONDS)

    dynamodb.claim(request_by("one", key="shop.charge#other"))
    interrupted, before = threading.Event(), signal.signal(signal.SIGUSR1, interrupt)
    try:
        wire.break_nth("UpdateItem", 2, signal_us)
        with pytest.raises(Interrupt):
            dynamodb.claim(request_by("two"))
    finally:
        interrupted.set()
        signal.signal(signal.SIGUSR1, before)
    assert isinstance(dynamodb.claim(request_by("three")), Granted)
