"""Workers of this version and of one before runs were counted, on one table: each carries on what the other left."""

from typing import Any

import pytest

from idempotent_tasks import DynamoDBStore, Status
from idempotent_tasks.core.records import (
    Busy,
    Claim,
    Committed,
    Finished,
    Lost,
    Parked,
    Released,
    Renewed,
    Superseded,
    reservation_owner,
)
from tests.contract.conftest import MakeLambda
from tests.support.guarding import KEY, done, grant, request_by
from tests.support.older_version import OlderWorker
from tests.support.powertools import KEY as SHARED_KEY
from tests.testbed.wire import Wire

RETENTION = 3600
#: Seconds: of a claim that is over at once.
OVER = -1


@pytest.fixture
def older(dynamodb: DynamoDBStore, raw: Any) -> OlderWorker:
    """A delivery of the older version, of the key of this test."""
    return OlderWorker(raw, dynamodb.table, KEY)


def crash(store: DynamoDBStore, owner: str = "one", **given: Any) -> Claim:
    """Claim the key and die: the claim is over."""
    return grant(store, owner, lease_seconds=OVER, **given)


def set_expired(store: DynamoDBStore, raw: Any) -> None:
    """Let the record be past its time, as if nobody had deleted it since."""
    raw.update_item(
        TableName=store.table,
        Key={"id": {"S": KEY}},
        UpdateExpression="SET expiration = :past",
        ExpressionAttributeValues={":past": {"N": "1"}},
    )


class TestTheirsHere:
    """What the older version left."""

    def test_a_claim_is_respected(self, dynamodb: DynamoDBStore, older: OlderWorker) -> None:
        """While it lives; its holder renews, and commits what this version replays."""
        assert older.claim()
        answer = dynamodb.claim(request_by("two"))
        assert isinstance(answer, Busy)
        assert older.renew(answer.holder.in_progress_expiration or 0, 60)
        assert older.commit()
        finished = dynamodb.claim(request_by("two"))
        assert isinstance(finished, Finished)
        assert (finished.record.data, finished.record.runs, finished.record.generation) == ('"older"', 0, None)

    def test_a_crash_is_an_earlier_run(
        self, dynamodb: DynamoDBStore, older: OlderWorker, wire: Wire, refusal_read: list[str]
    ) -> None:
        """It has counted none, so it takes a second write; the fence and the crashes go on."""
        assert older.claim(OVER)
        left = dynamodb.get(KEY)
        wire.clear()
        claim = grant(dynamodb, "two")
        assert wire.operations() == ["UpdateItem", *refusal_read, "UpdateItem"]
        assert (claim.runs, claim.attempt, claim.fence) == (2, 2, left.fence + 1)
        record = dynamodb.get(KEY)
        assert (record.previous_owner, record.previous_task_id) == ("old", "id-old")
        assert record.previous_claimed_at == left.claimed_at
        assert dynamodb.commit(claim, done(), RETENTION) == Committed()

    def test_several_crashes_are_as_many_runs(self, dynamodb: DynamoDBStore, older: OlderWorker) -> None:
        """Of its own runs it counts the crashes in a row."""
        for _ in range(3):
            assert older.claim(OVER)
        assert grant(dynamodb, "two").runs == 4

    def test_a_failure_is_an_earlier_run(self, dynamodb: DynamoDBStore, older: OlderWorker) -> None:
        """A released key may have been run: nobody knows that it was not."""
        assert older.claim()
        assert older.release()
        claim = grant(dynamodb, "two")
        assert (claim.runs, claim.attempt) == (2, 1)

    def test_a_reservation_is_none(self, dynamodb: DynamoDBStore, older: OlderWorker) -> None:
        """Its message's delivery takes it over as the first run."""
        assert older.claim(reserves=True)
        claim = grant(dynamodb, "two", task_id="id-old")
        assert (claim.runs, claim.attempt) == (1, 1)
        assert dynamodb.get(KEY).previous_task_id is None

    @pytest.mark.parametrize("crashed", [True, False], ids=["crashed", "failed"])
    def test_a_reservation_after_a_run(self, dynamodb: DynamoDBStore, older: OlderWorker, *, crashed: bool) -> None:
        """A later publish hides who ran the key before, but not that somebody may have."""
        assert older.claim(OVER)
        if not crashed:
            assert older.release()
        assert older.claim(reserves=True)
        assert grant(dynamodb, "two", task_id="id-old").runs == 2

    def test_an_unseen_claim_is_released(self, dynamodb: DynamoDBStore, older: OlderWorker) -> None:
        """A deferred copy may reach this version with the older one's token: what ran before is not known."""
        assert older.claim()
        assert dynamodb.release(Claim.unseen(request_by("old")), "Unseen", began=False) == Released()
        claim = grant(dynamodb, "two")
        assert (claim.runs, claim.attempt) == (2, 1)

    @pytest.mark.parametrize("end", ["outcome", "claim"])
    def test_what_has_expired_is_gone(self, dynamodb: DynamoDBStore, raw: Any, older: OlderWorker, end: str) -> None:
        """The key starts afresh, whatever the older version left in the item."""
        assert older.claim(OVER)
        if end == "outcome":
            assert older.commit()
        set_expired(dynamodb, raw)
        claim = grant(dynamodb, "two")
        assert (claim.runs, claim.attempt) == (1, 1)
        assert claim.generation == claim.claimed_at


class TestOursThere:
    """What this version left, and takes back."""

    def test_a_claim_is_respected(self, dynamodb: DynamoDBStore, older: OlderWorker) -> None:
        """While it lives, and its outcome, too."""
        claim = grant(dynamodb)
        assert not older.claim()
        dynamodb.commit(claim, done(), RETENTION)
        assert not older.claim()

    def test_its_run_counts(self, dynamodb: DynamoDBStore, older: OlderWorker) -> None:
        """Between two of this version's; its commit or release would have ended, or kept, the key as ever."""
        first = crash(dynamodb)
        assert older.claim(OVER)
        assert dynamodb.release(first, "ValueError") == Lost()
        third = grant(dynamodb, "three")
        assert (third.runs, third.generation, third.fence) == (3, first.generation, first.fence + 2)
        assert not older.commit()
        assert not older.release()

    def test_its_failure_counts(self, dynamodb: DynamoDBStore, older: OlderWorker) -> None:
        """Also after what this version has not counted as a run."""
        reserved = grant(dynamodb, reservation_owner("id-old"), task_id="id-old")
        assert reserved.runs == 0
        assert older.claim()
        assert older.release()
        assert grant(dynamodb, "three").runs == 2

    def test_its_unseen_claim_counts_all_the_same(self, dynamodb: DynamoDBStore, older: OlderWorker) -> None:
        """It says nothing about runs when it releases: one too many, never one too few."""
        crash(dynamodb)
        assert older.claim()
        assert older.release_unseen()
        assert grant(dynamodb, "three").runs == 3

    def test_its_outcome_supersedes(self, dynamodb: DynamoDBStore, raw: Any, older: OlderWorker) -> None:
        """A late commit is told so; when the outcome has expired, nothing of the count is left."""
        first = crash(dynamodb)
        crash(dynamodb, "two")
        assert older.claim()
        assert older.commit()
        answer = dynamodb.commit(first, done(), RETENTION)
        assert isinstance(answer, Superseded)
        assert answer.record.status is Status.COMPLETED
        set_expired(dynamodb, raw)
        fresh = grant(dynamodb, "three")
        assert (fresh.runs, fresh.attempt) == (1, 1)
        assert fresh.generation > first.generation

    def test_a_parked_key_is_in_progress_there(self, dynamodb: DynamoDBStore, older: OlderWorker) -> None:
        """An older version waits for the decision, and neither runs the body nor shortens that time."""
        crash(dynamodb)
        assert isinstance(dynamodb.park(grant(dynamodb, "two"), "Rerun"), Parked)
        assert not older.claim()
        assert not older.claim(reserves=True)
        assert dynamodb.get(KEY).parked_at is not None

    def test_a_key_that_settles_is_in_progress_there(self, dynamodb: DynamoDBStore, older: OlderWorker) -> None:
        """Until what the run has requested has arrived."""
        claim = grant(dynamodb, settle_seconds=60)
        assert dynamodb.release(claim, "TimeoutError") == Released()
        assert not older.claim()

    def test_what_has_settled_is_theirs(self, dynamodb: DynamoDBStore, raw: Any, older: OlderWorker) -> None:
        """They know nothing of the time that they leave in the record, which is past."""
        claim = grant(dynamodb, settle_seconds=60)
        dynamodb.release(claim, "TimeoutError")
        raw.update_item(
            TableName=dynamodb.table,
            Key={"id": {"S": KEY}},
            UpdateExpression="SET in_progress_expiration = :past, settled_at = :past",
            ExpressionAttributeValues={":past": {"N": "1"}},
        )
        assert older.claim()
        assert isinstance(dynamodb.claim(request_by("two")), Busy)
        assert older.release()
        assert grant(dynamodb, "two").runs == 3

    def test_its_retry_is_reserved_here(self, dynamodb: DynamoDBStore, older: OlderWorker) -> None:
        """Its message's delivery, by this version, is the second run; a renewal of this version holds there."""
        assert older.claim()
        assert older.release()
        assert older.claim(reserves=True)
        claim = grant(dynamodb, "two", task_id="id-old")
        assert isinstance(dynamodb.renew(claim, 60, RETENTION), Renewed)
        assert not older.claim()


class TestPowertools:
    """A function under Powertools for AWS Lambda (Python), which counts no runs either."""

    def test_its_death_is_an_earlier_run(self, dynamodb: DynamoDBStore, make_lambda: MakeLambda) -> None:
        """It names nobody."""

        def time_out() -> None:
            raise SystemExit

        with pytest.raises(SystemExit):
            make_lambda(remaining_milliseconds=-5_000).deliver(time_out)
        claim = grant(dynamodb, key=SHARED_KEY)
        record = dynamodb.get(SHARED_KEY)
        assert (claim.runs, claim.attempt, record.previous_task_id) == (2, 1, None)
        assert claim.generation == claim.claimed_at

    def test_a_parked_key_is_in_progress_there(self, dynamodb: DynamoDBStore, make_lambda: MakeLambda) -> None:
        """The function is told so, and does not run."""
        grant(dynamodb, key=SHARED_KEY, lease_seconds=OVER)
        dynamodb.park(grant(dynamodb, "two", key=SHARED_KEY), "Rerun")
        function = make_lambda()
        with pytest.raises(function.busy):
            function.deliver(lambda: "theirs")
        assert dynamodb.get(SHARED_KEY).parked_at is not None

    def test_its_late_outcome_over_a_run_of_ours(
        self, dynamodb: DynamoDBStore, make_lambda: MakeLambda, raw: Any
    ) -> None:
        """Leaves our count in the item, which the next generation does not take over."""

        def given_up_for_dead() -> str:
            assert grant(dynamodb, key=SHARED_KEY).runs == 2
            return "theirs, late"

        make_lambda(remaining_milliseconds=-5_000).deliver(given_up_for_dead)
        raw.update_item(
            TableName=dynamodb.table,
            Key={"id": {"S": SHARED_KEY}},
            UpdateExpression="SET expiration = :past",
            ExpressionAttributeValues={":past": {"N": "1"}},
        )
        assert grant(dynamodb, "two", key=SHARED_KEY).runs == 1
