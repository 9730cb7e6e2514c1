"""The table of the simulated app: counters, and receipts of the runs that added to them."""

import random
from typing import Any, Final

from simulation.wire import Item

__all__ = ["CLOSED", "RECORDS", "TILLS", "Writes", "run_of", "writes_of"]

#: The tables' names.
RECORDS: Final = "records"
TILLS: Final = "tills"
#: What can be taken once, by whichever key.
SLOTS: Final = ("slot-1", "slot-2")
#: The item that a check is for that a schedule makes false.
CLOSED: Final = "closed"
#: As many as a transaction takes beside the record and its counter.
MANY: Final = 98

#: As of `idempotent_tasks.Atomic`.
Writes = list[dict[str, dict[str, Any]]]


def writes_of(kind: str, key: str, run: int, generation: int, draw: random.Random | None = None) -> Writes:
    """Return a run's writes: it adds 1 to its key's counter, and puts a receipt.

    Args:
        kind: ``adds``; ``taken``, ``checked`` or ``unless-closed``, where a condition may be false; ``own-record``,
            which is refused before anything is sent; ``many``; or ``nothing``, which has none.
        key: the record's.
        run: its number, in each item.
        generation: of the record.
        draw: chooses what may be taken; None for always the same.
    """
    draw = draw or random.Random(0)
    marks = {"run": {"N": str(run)}, "generation": {"N": str(generation)}}
    counter = {
        "TableName": TILLS,
        "Key": {"id": {"S": key}},
        "UpdateExpression": "ADD amount :one SET #run = :run, #generation = :generation",
        "ExpressionAttributeNames": {"#run": "run", "#generation": "generation"},
        "ExpressionAttributeValues": {":one": {"N": "1"}, **{f":{name}": each for name, each in marks.items()}},
    }
    writes: Writes = [{"Update": counter}, _put(f"{key}/{run}", marks)]
    match kind:
        case "nothing":
            return []
        case "many":
            return [writes[0], *(_put(f"{key}/{run}/{number}", marks) for number in range(MANY))]
        case "taken":
            writes.append(_put(draw.choice(SLOTS), marks, ConditionExpression="attribute_not_exists(id)"))
        case "checked":
            condition = draw.choice(["attribute_not_exists(id)", "attribute_exists(id)"])
            check = {"TableName": TILLS, "Key": {"id": {"S": SLOTS[0]}}, "ConditionExpression": condition}
            writes.append({"ConditionCheck": check})
        case "unless-closed":
            closed = {"TableName": TILLS, "Key": {"id": {"S": CLOSED}}}
            writes.append({"ConditionCheck": {**closed, "ConditionExpression": "attribute_not_exists(id)"}})
        case "own-record":
            writes.append({"Delete": {"TableName": RECORDS, "Key": {"id": {"S": key}}}})
    return writes


def _put(name: str, marks: Item, **condition: str) -> dict[str, dict[str, Any]]:
    return {"Put": {"TableName": TILLS, "Item": {"id": {"S": name}, **marks}, **condition}}


def run_of(item: Item) -> int:
    """Return the run that has written an item."""
    return int(item["run"]["N"])
