"""Items that another program wrote: those of Powertools for AWS Lambda are understood, broken ones are named."""

from typing import Any

import pytest

from idempotent_tasks import DynamoDBStore, RecordCorruptError, Status
from idempotent_tasks.core.encoding import decode_result
from idempotent_tasks.core.records import Busy, Finished, Lost, Mismatch, Superseded
from tests.contract.conftest import MakeStore
from tests.support.guarding import KEY, done, grant, request_by

RETENTION = 3600

Item = dict[str, dict[str, Any]]


def seconds(store: DynamoDBStore, from_now: int) -> dict[str, str]:
    """Return an epoch second as Powertools writes ``expiration``."""
    return {"N": str(int(store.clock.now()) + from_now)}


def milliseconds(store: DynamoDBStore, from_now: int) -> dict[str, str]:
    """Return an epoch millisecond, given in seconds from now, as Powertools writes ``in_progress_expiration``."""
    return {"N": str(int((store.clock.now() + from_now) * 1000))}


def put(raw: Any, store: DynamoDBStore, **attributes: dict[str, Any]) -> None:
    """Write an item under `KEY` past the library."""
    raw.put_item(TableName=store.table, Item={"id": {"S": KEY}, **attributes})


class TestPowertools:
    """Items as Powertools for AWS Lambda (Python) writes them: no owner, no fence, no codec."""

    def test_a_completed_item_replays(self, dynamodb: DynamoDBStore, raw: Any) -> None:
        """Its ``data`` is JSON text and is the key's result."""
        put(
            raw,
            dynamodb,
            status={"S": "COMPLETED"},
            expiration=seconds(dynamodb, 600),
            in_progress_expiration=milliseconds(dynamodb, -5),
            data={"S": '{"paid": 12}'},
        )
        answer = dynamodb.claim(request_by())
        assert isinstance(answer, Finished)
        assert (answer.record.owner, answer.record.fence, answer.record.codec) == (None, 0, None)
        assert decode_result(answer.record) == {"paid": 12}

    def test_a_completed_item_without_data_replays_none(self, dynamodb: DynamoDBStore, raw: Any) -> None:
        """A function that returned nothing leaves no ``data``."""
        put(raw, dynamodb, status={"S": "COMPLETED"}, expiration=seconds(dynamodb, 600))
        answer = dynamodb.claim(request_by())
        assert isinstance(answer, Finished)
        assert decode_result(answer.record) is None

    def test_an_item_in_progress_blocks(self, dynamodb: DynamoDBStore, raw: Any) -> None:
        """A function that runs holds the key until its time-out."""
        until = milliseconds(dynamodb, 60)
        put(
            raw,
            dynamodb,
            status={"S": "INPROGRESS"},
            expiration=seconds(dynamodb, 600),
            in_progress_expiration=until,
        )
        answer = dynamodb.claim(request_by())
        assert isinstance(answer, Busy)
        assert answer.until == int(until["N"]) / 1000

    def test_an_item_in_progress_that_expired_is_taken_over(self, dynamodb: DynamoDBStore, raw: Any) -> None:
        """A function that died is replaced; fence and attempt start as for a new key."""
        put(
            raw,
            dynamodb,
            status={"S": "INPROGRESS"},
            expiration=seconds(dynamodb, 600),
            in_progress_expiration=milliseconds(dynamodb, -5),
        )
        before = int((dynamodb.clock.now() - 2) * 1000)
        claim = grant(dynamodb)
        assert claim.attempt == 1
        assert claim.fence > before

    def test_an_item_in_progress_without_a_time_out_blocks_until_it_expires(
        self, dynamodb: DynamoDBStore, raw: Any
    ) -> None:
        """Outside Lambda Powertools knows no time-out: nobody can tell whether the holder lives."""
        until = seconds(dynamodb, 600)
        put(raw, dynamodb, status={"S": "INPROGRESS"}, expiration=until)
        answer = dynamodb.claim(request_by())
        assert isinstance(answer, Busy)
        assert answer.until == int(until["N"])

    @pytest.mark.parametrize("status", ["INPROGRESS", "COMPLETED"])
    def test_an_expired_item_is_taken_over(self, dynamodb: DynamoDBStore, raw: Any, status: str) -> None:
        """What DynamoDB's TTL has not deleted yet counts as deleted."""
        put(raw, dynamodb, status={"S": status}, expiration=seconds(dynamodb, -5), data={"S": "1"})
        grant(dynamodb)
        assert dynamodb.get(KEY).data is None

    def test_another_payload_is_a_mismatch(self, dynamodb: DynamoDBStore, raw: Any) -> None:
        """Its payload digest is compared like our own."""
        put(
            raw,
            dynamodb,
            status={"S": "COMPLETED"},
            expiration=seconds(dynamodb, 600),
            data={"S": "1"},
            validation={"S": "a"},
        )
        assert dynamodb.claim(request_by(validation="b")) == Mismatch("a", "b")

    def test_it_supersedes_our_claim(self, dynamodb: DynamoDBStore, raw: Any) -> None:
        """Powertools took the key over and finished: our late outcome and release change nothing."""
        claim = grant(dynamodb)
        put(raw, dynamodb, status={"S": "COMPLETED"}, expiration=seconds(dynamodb, 600), data={"S": '"theirs"'})
        record = dynamodb.get(KEY)
        assert dynamodb.commit(claim, done(), RETENTION) == Superseded(record)
        assert dynamodb.release(claim, "Retry") == Lost()
        assert dynamodb.renew(claim, 60, RETENTION) == Lost()
        assert dynamodb.get(KEY) == record
        assert (record.status, record.data) == (Status.COMPLETED, '"theirs"')


#: Attribute and what is wrong with it; None where it is missing.
WRONG: list[tuple[str, dict[str, Any] | None]] = [
    ("status", None),
    ("status", {"N": "1"}),
    ("status", {"S": "DONE"}),
    ("status", {"S": "EXPIRED"}),
    ("expiration", None),
    ("expiration", {"S": "1700000000"}),
    ("expiration", {"S": "2026-11-23T09:00:00Z"}),
    ("in_progress_expiration", {"S": "1"}),
    ("data", {"M": {"paid": {"N": "12"}}}),
    ("data", {"N": "12"}),
    ("data", {"NULL": True}),
    ("validation", {"B": b"a"}),
    ("owner", {"N": "1"}),
    ("fence", {"S": "7"}),
    ("fence", {"N": "7.5"}),
    ("attempt", {"S": "1"}),
    ("task", {"L": []}),
    ("task_id", {"N": "1"}),
    ("worker", {"BOOL": True}),
    ("claimed_at", {"S": "1"}),
    ("completed_at", {"S": "1"}),
    ("codec", {"N": "1"}),
    ("error", {"SS": ["a"]}),
]


def name_of(wrong: tuple[str, dict[str, Any] | None]) -> str:
    """Return a test id such as ``fence-N-7.5``."""
    attribute, value = wrong
    [(kind, content)] = (value or {"missing": ""}).items()
    return f"{attribute}-{kind}" + (f"-{content}" if isinstance(content, str) and content else "")


def sound(store: DynamoDBStore) -> Item:
    """Return every attribute of a finished record, sound."""
    now = milliseconds(store, 0)
    return {
        "status": {"S": "COMPLETED"},
        "expiration": seconds(store, 600),
        "in_progress_expiration": milliseconds(store, 60),
        "data": {"S": "1"},
        "validation": {"S": "a"},
        "owner": {"S": "other"},
        "fence": now,
        "attempt": {"N": "0"},
        "task": {"S": "shop.charge"},
        "task_id": {"S": "id-other"},
        "worker": {"S": "worker@host"},
        "claimed_at": now,
        "completed_at": now,
        "codec": {"S": "json"},
        "error": {"S": "none"},
    }


def with_wrong(item: Item, attribute: str, value: dict[str, Any] | None) -> Item:
    """Return the item with one attribute wrong, or missing."""
    rest = {name: each for name, each in item.items() if name != attribute}
    return rest if value is None else {**rest, attribute: value}


class TestCorruptItems:
    """Items that no idempotency library writes."""

    def test_the_sound_item_is_sound(self, dynamodb: DynamoDBStore, raw: Any) -> None:
        """What the tests below break is a record that can be read."""
        put(raw, dynamodb, **sound(dynamodb))
        assert dynamodb.get(KEY).owner == "other"

    @pytest.mark.parametrize(("attribute", "value"), WRONG, ids=map(name_of, WRONG))
    def test_it_is_named(self, dynamodb: DynamoDBStore, raw: Any, attribute: str, value: dict[str, Any] | None) -> None:
        """Claim, commit and get name the key and the attribute, and no data; the item stays for a person to see."""
        late = grant(dynamodb)
        put(raw, dynamodb, **with_wrong(sound(dynamodb), attribute, value))
        before = raw.scan(TableName=dynamodb.table)["Items"]
        for call in (
            lambda: dynamodb.claim(request_by("two")),
            lambda: dynamodb.commit(late, done(), RETENTION),
            lambda: dynamodb.get(KEY),
        ):
            with pytest.raises(RecordCorruptError, match=f"'{attribute}'") as caught:
                call()
            assert caught.value.key == KEY
        assert raw.scan(TableName=dynamodb.table)["Items"] == before

    @pytest.mark.parametrize("value", [{"S": "7"}, {"N": "7.5"}, {"L": []}], ids=["S", "N", "L"])
    @pytest.mark.parametrize("attribute", ["fence", "attempt"])
    def test_a_claim_cannot_count_on_it(
        self, dynamodb: DynamoDBStore, raw: Any, attribute: str, value: dict[str, Any]
    ) -> None:
        """A dead holder's item whose numbers are none is no ground for a grant: the same error names it."""
        dead = {**sound(dynamodb), "status": {"S": "INPROGRESS"}, "in_progress_expiration": {"N": "1"}}
        put(raw, dynamodb, **{**dead, attribute: value})
        with pytest.raises(RecordCorruptError, match=f"'{attribute}'") as caught:
            dynamodb.claim(request_by("two"))
        assert caught.value.key == KEY

    def test_it_is_named_as_the_table_names_it(self, make_store: MakeStore, raw: Any) -> None:
        """With other attribute names the error speaks of those."""
        store = make_store(data_attr="result")
        store.create_table()
        put(raw, store, **with_wrong(sound(store), "data", None), result={"M": {}})
        with pytest.raises(RecordCorruptError, match="'result'"):
            store.claim(request_by())
