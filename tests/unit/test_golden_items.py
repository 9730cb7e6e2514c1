"""Items as they lie in tables: one of each codec, word for word; every later version must read them as this one."""

from base64 import b64decode
from dataclasses import replace
from datetime import date
from typing import Any

import pytest

from idempotent_tasks.core.encoding import CODECS, COMPRESSED, FAILURE, NONE, OMITTED, PICKLE, decode_result
from idempotent_tasks.core.keys import inputs_digest
from idempotent_tasks.core.policy import Idempotency
from idempotent_tasks.core.records import (
    Claim,
    KeptSteps,
    Outcome,
    Record,
    Step,
    step_id,
    step_item_key,
    step_item_keys,
)
from idempotent_tasks.core.results import Results
from idempotent_tasks.core.retry import RetryingStore
from idempotent_tasks.errors import ResultUnavailableError, StoredFailureError
from idempotent_tasks.messaging import callbacks
from idempotent_tasks.stores.dynamodb import DynamoDBStore
from idempotent_tasks.stores.dynamodb.item import Item
from idempotent_tasks.testing import MemoryStore
from idempotent_tasks.testing.conformance.requests import request_by
from tests.support.stores import MemoryBucket

KEY = "shop.charge#3d2a"
#: What every item of a finished run has.
COMMON: Item = {
    "id": {"S": KEY},
    "status": {"S": "COMPLETED"},
    "expiration": {"N": "1764067600"},
    "in_progress_expiration": {"N": "1764064035000"},
    "owner": {"S": "6f0f2a51b2d84f0ea2f2b7f1d9f6a0c3"},
    "fence": {"N": "1764064000123"},
    "attempt": {"N": "0"},
    "task": {"S": "shop.charge"},
    "task_id": {"S": "4f1c"},
    "worker": {"S": "celery@host"},
    "process": {"S": "linux:host:boot:pidns:71:1234"},
    "claimed_at": {"N": "1764064000123"},
    "completed_at": {"N": "1764064001500"},
    "dispatched": {"SS": ["4f1c"]},
}
FAILED: Item = {"status": {"S": "FAILED"}, "error": {"S": "builtins.ValueError"}}
TEAS = "tea " * 30
ZIPPED_TEAS = b64decode("eJyLVipJTVQYCKwUCwAzSymJ")
ZIPPED_FAILURE = b64decode(
    "eJyrViqpLEhVslJQSirNzCnJzCvWC0vMKU11LSrKL1LSUVBKLEovBkpHK6WkJudk5qWmAAVNDWOBMsUliSUgndVKSYl52SAj8vKLSjKUamsBsFobZQ=="
)
ADDRESS = "s3://results/shop/63304e867cb9de49356f30da481722a5231038adbb553c08136e386c30e39e02"
ZIPPED_ADDRESS = "s3://results/shop/d8e23f612e365c78735e8aea78521dcdb534395d87a2e35ee89d9a132380b415"
#: What is stored in the bucket.
OBJECTS = {ADDRESS: b'{"paid": true}', ZIPPED_ADDRESS: ZIPPED_TEAS}

#: The attributes beside `COMMON`, and the result.
RESULTS: dict[str, tuple[Item, Any]] = {
    "json": (
        {"codec": {"S": "json"}, "data": {"S": '{"on": {"__type__": "date", "__value__": "2026-03-01"}}'}},
        {"on": date(2026, 3, 1)},
    ),
    "powertools": ({"data": {"S": '{"paid": true}'}}, {"paid": True}),
    "json+zlib": ({"codec": {"S": "json+zlib"}, "data": {"B": ZIPPED_TEAS}}, [TEAS]),
    "json+s3": ({"codec": {"S": "json+s3"}, "data": {"S": ADDRESS}}, {"paid": True}),
    "json+zlib+s3": ({"codec": {"S": "json+zlib+s3"}, "data": {"S": ZIPPED_ADDRESS}}, [TEAS]),
    "pickle": (
        {"codec": {"S": "pickle"}, "data": {"B": b64decode("gASVDwAAAAAAAACPlCiMA3RlYZRLEYaUkC4=")}},
        {("tea", 17)},
    ),
    "pickle+zlib": (
        {"codec": {"S": "pickle+zlib"}, "data": {"B": b64decode("eJxrYJnKzwAB/VM0ephLUhOneAu2TZmgBwBMYwcF")}},
        {("tea", 17)},
    ),
}
#: The attributes beside `COMMON` and `FAILED`; the exception is always the same.
FAILURES: dict[str, Item] = {
    "failure": {
        "codec": {"S": "failure"},
        "data": {"S": '{"type": "builtins.ValueError", "args": ["declined", 51], "state": {"bank": "north"}}'},
    },
    "failure+zlib": {"codec": {"S": "failure+zlib"}, "data": {"B": ZIPPED_FAILURE}},
}
#: The attributes of an outcome whose task stores no data.
OMITTED_DATA: Item = {"codec": {"S": "omitted"}}
#: The attributes of an outcome without data, and the error of its replay.
NOTHING: Item = {"codec": {"S": "none"}, "error": {"S": "the result has 500000 bytes as json, the store takes 389120"}}

#: The attributes of a record in progress whose body has steps.
STEPPED: Item = {
    "status": {"S": "INPROGRESS"},
    "generation": {"N": "1764064000123"},
    "runs": {"N": "2"},
    "steps": {
        "M": {
            "charge": {
                "M": {
                    "inputs": {"S": "cb3ae14b31f7f4ce6edd1ddf09cf5e07"},
                    "codec": {"S": "json"},
                    "data": {"S": '{"paid": true}'},
                }
            },
            "report é": {"M": {"inputs": {"S": "4f"}, "codec": {"S": "json+zlib"}, "data": {"B": ZIPPED_TEAS}}},
            "odd": {
                "M": {"inputs": {"S": "4f"}, "codec": {"S": "none"}, "error": {"S": "the result has 500000 bytes"}}
            },
        }
    },
    "steps_elsewhere": {"SS": ["0c36bea8ecd2a2d8", "845e91831319e89c"]},
}
#: A step's own item, and its key.
STEP_KEY = "shop.charge#3d2a#1764064000123#845e91831319e89c"
STEP: Item = {
    "id": {"S": STEP_KEY},
    "step": {"S": "report"},
    "inputs": {"S": "4f53cda18c2baa0c0354bb5f9a3ecbe5"},
    "codec": {"S": "json+zlib"},
    "data": {"B": ZIPPED_TEAS},
    "fence": {"N": "1764064000123"},
    "expiration": {"N": "1765273600"},
}


@pytest.fixture
def outcomes(store: MemoryStore) -> Results:
    """What reads the items, with their bucket and with pickle accepted."""
    bucket = MemoryBucket()
    bucket.objects.update(OBJECTS)
    policy = Idempotency(store_failures=(ValueError,))
    return Results(
        store=RetryingStore(store=store, observe=lambda _: None), policy=policy, bucket=bucket, accepted={PICKLE}
    )


def read(*parts: Item) -> Record:
    """Return the record of an item that is made up of these attributes, the last one counting."""
    item: Item = {name: value for part in (COMMON, *parts) for name, value in part.items()}
    return DynamoDBStore("idempotency").schema.record(KEY, item)


@pytest.mark.parametrize(("item", "value"), RESULTS.values(), ids=RESULTS.keys())
def test_a_result_is_read(outcomes: Results, item: Item, value: Any) -> None:
    """The result of an old item is what the body returned then, of the same type."""
    result = outcomes.result(read(item))
    assert (result, type(result)) == (value, type(value))


@pytest.mark.parametrize("item", FAILURES.values(), ids=FAILURES.keys())
def test_a_failure_is_read(outcomes: Results, item: Item) -> None:
    """The exception of an old item is what the body raised then."""
    error = outcomes.failure(read(FAILED, item))
    assert (type(error), error.args, vars(error)) == (ValueError, ("declined", 51), {"bank": "north"})


def test_an_omitted_result_is_read(outcomes: Results) -> None:
    """An old item of ``codec="none"`` replays as None, and a failure by its type."""
    assert outcomes.result(read(OMITTED_DATA)) is None
    error = outcomes.failure(read(FAILED, OMITTED_DATA))
    assert isinstance(error, StoredFailureError)
    assert error.original == "builtins.ValueError"


def test_nothing_is_read(outcomes: Results) -> None:
    """An old item without data still says why."""
    with pytest.raises(ResultUnavailableError, match="500000 bytes"):
        outcomes.result(read(NOTHING))


def test_steps_in_a_record_are_read(outcomes: Results) -> None:
    """By their names, with results of each type; of those that lie elsewhere, what names their items."""
    record = read(STEPPED)
    assert record.steps == KeptSteps(
        here={
            "charge": Step(inputs="cb3ae14b31f7f4ce6edd1ddf09cf5e07", codec="json", data='{"paid": true}'),
            "report é": Step(inputs="4f", codec="json+zlib", data=ZIPPED_TEAS),
            "odd": Step(inputs="4f", codec="none", error="the result has 500000 bytes"),
        },
        elsewhere=frozenset({"0c36bea8ecd2a2d8", "845e91831319e89c"}),
    )
    claim = Claim.shown_by(record)
    assert outcomes.result_of_step("charge", Outcome.of_step(record.steps.here["charge"]), claim) == {"paid": True}
    assert outcomes.result_of_step("report é", Outcome.of_step(record.steps.here["report é"]), claim) == [TEAS]
    assert step_item_keys(record)["845e91831319e89c"] == STEP_KEY


def test_a_steps_own_item_is_read() -> None:
    """Under the key that this version looks for."""
    claim = replace(Claim.unseen(request_by(key=KEY)), generation=1764064000123)
    assert step_id("report") == "845e91831319e89c"
    assert step_item_key(claim, "report") == STEP_KEY
    step = DynamoDBStore("idempotency").schema.step(STEP_KEY, STEP)
    assert step == Step(inputs="4f53cda18c2baa0c0354bb5f9a3ecbe5", codec="json+zlib", data=ZIPPED_TEAS)


def test_the_arguments_of_an_old_step_are_recognised() -> None:
    """A later version computes the same digest of them, or a rerun across an upgrade is a mismatch."""
    assert inputs_digest([17, "EUR"], {"on": date(2026, 3, 1)}) == "39c1730d625bf77533e78d31dac468cb"


def test_every_codec_has_an_item() -> None:
    """A codec that this version writes is in the lists above, with and without compression."""
    written = {NONE, OMITTED, FAILURE, FAILURE + COMPRESSED, *CODECS, *(name + COMPRESSED for name in CODECS)}
    assert written <= {"none", "omitted", *RESULTS, *FAILURES}


@pytest.mark.parametrize("item", [*(item for item, _ in RESULTS.values()), *FAILURES.values(), OMITTED_DATA], ids=repr)
def test_an_older_reader_refuses(item: Item) -> None:
    """A codec's name that a reader does not know is an error, whatever is in the item."""
    renamed = {**item, "codec": {"S": "tomorrow's"}}
    with pytest.raises(ResultUnavailableError, match="unknown codec"):
        decode_result(read(renamed), accepted={PICKLE})


def test_a_changed_continuation_is_read() -> None:
    """What follows a task, where its body has changed that; older items have none."""
    text = '{"callbacks": null, "errbacks": null, "chain": null, "chord": null}'
    changed = read(RESULTS["json"][0], {"continuation": {"S": text}})
    assert not any(callbacks.recorded(changed.continuation or "").values())
    assert read(RESULTS["json"][0]).continuation is None
