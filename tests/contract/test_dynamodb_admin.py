"""An operator's view of a table: every record seen once, and nothing changed that is not as it was shown."""

from dataclasses import replace
from typing import Any

import pytest

from idempotent_tasks import DynamoDBStore, Record, RecordNotFoundError, Status, StoreUnavailableError
from idempotent_tasks.core.records import Busy, Granted, Lost, Renewed, Superseded
from idempotent_tasks.core.retry import SHORTEST_TRY
from idempotent_tasks.stores.dynamodb.admin import PAGE_RETRY_SECONDS, SILENCE_SECONDS, Corrupt, TableAdmin
from idempotent_tasks.testing import FakeClock
from tests.contract.conftest import MakeStore
from tests.support.guarding import done, grant, request_by
from tests.testbed.wire import Fault, Wire, answer, refuse

#: A dozen pages: DynamoDB returns at most 1 MB in one.
BULKY = 20
BULK = "x" * 300_000


@pytest.fixture
def operations(dynamodb: DynamoDBStore) -> TableAdmin:
    """The view of this test's table."""
    return TableAdmin(dynamodb)


def claimed(store: DynamoDBStore, key: str, **given: Any) -> Record:
    """Claim a key and return its record."""
    grant(store, key=key, **given)
    return store.get(key)


def test_every_record_is_seen_once_whatever_the_pages(operations: TableAdmin, dynamodb: DynamoDBStore) -> None:
    """A table of many pages is gone through to its end, without the data that would fill memory."""
    for number in range(BULKY):
        dynamodb.commit(grant(dynamodb, key=f"shop#{number}"), done(f'"{BULK}"'), 3600)
    seen = [each for each in operations.records() if isinstance(each, Record)]
    assert sorted(each.key for each in seen) == sorted(f"shop#{number}" for number in range(BULKY))
    assert {each.data for each in seen} == {None}
    assert {each.status for each in seen} == {Status.COMPLETED}
    whole = {each.data for each in operations.records(data=True) if isinstance(each, Record)}
    assert whole == {f'"{BULK}"'}


def test_a_composite_table_shows_its_own_partition_only(make_store: MakeStore) -> None:
    """Apps that share a table of two keys do not see each other's records."""
    ours, theirs = (make_store(sort_key_attr="sort", static_pk_value=name) for name in ("ours", "theirs"))
    ours.create_table()
    grant(ours, key="shop#1")
    grant(theirs, key="shop#2")
    assert [each.key for each in TableAdmin(ours).records()] == ["shop#1"]
    (record,) = TableAdmin(theirs).records()
    assert isinstance(record, Record)
    assert TableAdmin(theirs).release(record, "by hand")
    assert TableAdmin(theirs).delete(theirs.get("shop#2"))
    assert list(TableAdmin(theirs).records()) == []


@pytest.mark.parametrize(
    ("fault", "seconds"),
    [(answer(400, "ThrottlingException"), PAGE_RETRY_SECONDS), (refuse, SILENCE_SECONDS)],
    ids=["busy", "away"],
)
def test_how_long_a_page_is_asked_for(make_store: MakeStore, wire: Wire, fault: Fault, seconds: float) -> None:
    """A store that is busy is asked again for longer than one that does not answer at all."""
    clock = FakeClock()
    store = make_store(clock=clock)
    store.create_table()
    wire.clear()
    wire.break_all(fault)
    begun = clock.monotonic()
    with pytest.raises(StoreUnavailableError):
        list(TableAdmin(store).records())
    assert seconds - 2 * SHORTEST_TRY <= clock.monotonic() - begun <= seconds
    assert len(wire.operations()) > 1


def test_filters_are_the_stores(operations: TableAdmin, dynamodb: DynamoDBStore) -> None:
    """Status and task select what is stored."""
    grant(dynamodb, key="shop#1", task="shop.charge")
    dynamodb.commit(grant(dynamodb, key="shop#2", task="shop.charge"), done(), 3600)
    dynamodb.commit(grant(dynamodb, key="shop#3", task="shop.remind"), done(), 3600)
    assert [each.key for each in operations.records(status=Status.COMPLETED, task="shop.charge")] == ["shop#2"]


def test_what_is_no_record_is_told_as_such(operations: TableAdmin, dynamodb: DynamoDBStore, raw: Any) -> None:
    """An item of somebody else does not end the list."""
    grant(dynamodb, key="shop#1")
    raw.put_item(TableName=dynamodb.table, Item={"id": {"S": "other"}, "status": {"S": "odd"}})
    seen = {each.key: each for each in operations.records()}
    assert isinstance(seen["shop#1"], Record)
    corrupt = seen["other"]
    assert isinstance(corrupt, Corrupt)
    assert "'status' is 'odd'" in corrupt.why


def test_a_released_key_is_claimable_with_a_larger_fence(operations: TableAdmin, dynamodb: DynamoDBStore) -> None:
    """The next delivery runs at once; the record says who freed it."""
    record = claimed(dynamodb, "shop#1")
    assert operations.release(record, "by hand")
    released = dynamodb.get("shop#1")
    assert (released.free, released.error, released.fence) == (True, "by hand", record.fence)
    answer = dynamodb.claim(request_by("second", key="shop#1"))
    assert isinstance(answer, Granted)
    assert answer.claim.fence == record.fence + 1
    assert answer.claim.attempt == 1


def test_a_claim_that_was_renewed_since_is_left_alone(operations: TableAdmin, dynamodb: DynamoDBStore) -> None:
    """What was shown as dead may have been slow: its renewal wins over release and deletion."""
    claim = grant(dynamodb, key="shop#1")
    shown = dynamodb.get("shop#1")
    assert isinstance(dynamodb.renew(claim, 60, 3600), Renewed)
    assert not operations.release(shown, "by hand")
    assert not operations.delete(shown)
    assert isinstance(dynamodb.claim(request_by("second", key="shop#1")), Busy)


def test_force_goes_over_a_renewal_and_the_holder_learns_it(operations: TableAdmin, dynamodb: DynamoDBStore) -> None:
    """The renewer finds its claim lost; the outcome of the released body is not recorded, whoever claims next."""
    claim = grant(dynamodb, key="shop#1")
    shown = dynamodb.get("shop#1")
    assert isinstance(dynamodb.renew(claim, 60, 3600), Renewed)
    assert operations.release(shown, "by hand", force=True)
    assert isinstance(dynamodb.renew(claim, 60, 3600), Lost)
    assert isinstance(dynamodb.commit(claim, done(), 3600), Superseded)


@pytest.mark.parametrize("force", [False, True])
def test_a_successor_is_never_touched(operations: TableAdmin, dynamodb: DynamoDBStore, force: bool) -> None:
    """Force is about the claim that was shown, not about whoever holds the key by now."""
    claim = grant(dynamodb, key="shop#1")
    shown = dynamodb.get("shop#1")
    dynamodb.release(claim, "Retry")
    grant(dynamodb, "second", key="shop#1")
    assert not operations.release(shown, "by hand", force=force)
    assert not operations.delete(shown, force=force)
    assert dynamodb.get("shop#1").owner == "second"


@pytest.mark.parametrize("force", [False, True])
def test_an_outcome_that_came_meanwhile_stays(operations: TableAdmin, dynamodb: DynamoDBStore, force: bool) -> None:
    """The commit was faster than the operator."""
    claim = grant(dynamodb, key="shop#1")
    shown = dynamodb.get("shop#1")
    dynamodb.commit(claim, done(), 3600)
    assert not operations.release(shown, "by hand", force=force)
    assert not operations.delete(shown, force=force)
    assert dynamodb.get("shop#1").status is Status.COMPLETED


def test_a_record_without_an_owner_can_be_deleted(operations: TableAdmin, dynamodb: DynamoDBStore, raw: Any) -> None:
    """Powertools for AWS Lambda writes no owner and no fence."""
    foreign = {"id": {"S": "shop#1"}, "status": {"S": "COMPLETED"}, "expiration": {"N": "9999999999"}}
    raw.put_item(TableName=dynamodb.table, Item={**foreign, "data": {"S": "1"}})
    shown = dynamodb.get("shop#1")
    assert not operations.delete(replace(shown, owner="somebody"))
    assert operations.delete(shown)
    with pytest.raises(RecordNotFoundError):
        dynamodb.get("shop#1")
