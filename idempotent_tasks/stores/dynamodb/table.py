"""Creates and verifies the table: its name, key schema, on-demand billing, TTL."""

import re
from typing import Any, Final

from idempotent_tasks.errors import ConfigurationError, StoreMisconfiguredError, StoreUnavailableError
from idempotent_tasks.stores.dynamodb.client import Connection, Succeeded
from idempotent_tasks.stores.dynamodb.item import ItemSchema

__all__ = [
    "check_table_name",
    "create_table",
    "describe",
    "is_strongly_consistent",
    "key_schema_problem",
    "replica_regions",
    "ttl_problem",
    "verify_table",
]

#: The names that DynamoDB takes (``TableName`` in its service model), and ARNs, which each operation takes instead
#: (``TableArn``); a stand-in's ARN may have another Region and account than AWS has.
_NAME: Final = r"[a-zA-Z0-9_.-]{3,255}"
_TABLE: Final = re.compile(rf"(?:arn:aws[a-z-]*:dynamodb:[a-z0-9-]+:\d+:table/)?{_NAME}")

ACTIVE_WITHIN_SECONDS: Final = 60.0
POLL_SECONDS: Final = 0.5
#: The states of a replica that is not there, or not for long.
_NO_REPLICA: Final = ("CREATION_FAILED", "DELETING")


def check_table_name(table: str) -> None:
    """Raise `ConfigurationError` for what DynamoDB takes neither as a table's name nor as its ARN."""
    if isinstance(table, str) and _TABLE.fullmatch(table):
        return
    # In a malformed URL, what precedes an @ may be a part of a secret.
    shown = repr(table) if not isinstance(table, str) or "@" not in table else "a text with an @"
    msg = (
        f"{shown} is no name of a DynamoDB table: it has 3 to 255 of the characters a-z, A-Z, 0-9, '_', '.' and '-'; "
        "or give the table's ARN, arn:aws:dynamodb:REGION:ACCOUNT:table/NAME"
    )
    raise ConfigurationError(msg)


def create_table(
    connection: Connection,
    table: str,
    schema: ItemSchema,
    *,
    deletion_protection: bool = False,
    kms_key: str | None = None,
) -> bool:
    """Create the table unless it is there, wait until it is active, turn on what is asked for, and TTL.

    Returns:
        Whether it has TTL, which a global table with strong consistency cannot have.
    """
    settings: dict[str, Any] = {}
    if deletion_protection:
        settings["DeletionProtectionEnabled"] = True
    if kms_key is not None:
        settings["SSESpecification"] = {"Enabled": True, "SSEType": "KMS", "KMSMasterKeyId": kms_key}
    if describe(connection, table) is None:
        connection.request(
            "create_table",
            refusal="ResourceInUseException",
            TableName=table,
            BillingMode="PAY_PER_REQUEST",
            KeySchema=_key_schema(schema),
            AttributeDefinitions=[
                {"AttributeName": key["AttributeName"], "AttributeType": "S"} for key in _key_schema(schema)
            ],
            **settings,
        )
    description = _await_active(connection, table)
    _check_schema(description, table, schema)
    for name, value in settings.items():
        if not _has(description, name, value):
            # One change for each request, and each waits for the one before: DynamoDB takes no others.
            connection.request("update_table", TableName=table, **{name: value})
            description = _await_active(connection, table)
    if is_strongly_consistent(description):
        return False
    if _ttl_attribute(connection, table) is None:
        connection.request(
            "update_time_to_live",
            # "TimeToLive is already enabled", by a concurrent caller; for which attribute is checked below.
            refusal="ValidationException",
            TableName=table,
            TimeToLiveSpecification={"Enabled": True, "AttributeName": schema.expiry_attr},
        )
    _check_ttl(connection, table, schema)
    return True


def _has(description: dict[str, Any], name: str, value: Any) -> bool:
    """Return whether a table's description shows a setting of its creation."""
    if name == "SSESpecification":
        key: bool = description.get("SSEDescription", {}).get("KMSMasterKeyArn") == value["KMSMasterKeyId"]
        return key
    return bool(description.get(name) == value)


def verify_table(connection: Connection, table: str, schema: ItemSchema) -> None:
    """Raise `StoreMisconfiguredError` unless the table is as `create_table` would leave it."""
    description = describe(connection, table)
    if description is None:
        msg = f"table {table!r} does not exist at {connection!r}; create it: celery -A <app> idempotency create-table"
        raise StoreMisconfiguredError(msg)
    _check_schema(description, table, schema)
    if not is_strongly_consistent(description):
        _check_ttl(connection, table, schema)


def describe(connection: Connection, table: str) -> dict[str, Any] | None:
    """Return DynamoDB's description of a table; None where there is no table of this name."""
    described = connection.request("describe_table", refusal="ResourceNotFoundException", TableName=table)
    return dict(described.answer["Table"]) if isinstance(described, Succeeded) else None


def replica_regions(description: dict[str, Any]) -> list[str]:
    """Return the other Regions that a global table has replicas in; none for a table of one Region."""
    own = str(description.get("TableArn", "")).split(":")[3:4]
    replicas = [each for each in description.get("Replicas", ()) if each.get("ReplicaStatus") not in _NO_REPLICA]
    return sorted({each["RegionName"] for each in replicas} - set(own))


def is_strongly_consistent(description: dict[str, Any]) -> bool:
    """Return whether a table is a global one with multi-Region strong consistency: it has no TTL and no transactions.

    https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/V2globaltables_HowItWorks.html
    """
    return description.get("MultiRegionConsistency") == "STRONG"


def _await_active(connection: Connection, table: str) -> dict[str, Any]:
    waited = 0.0
    while waited <= ACTIVE_WITHIN_SECONDS:
        description = describe(connection, table)
        if description is not None and description["TableStatus"] == "ACTIVE":
            return description
        connection.clock.sleep(POLL_SECONDS)
        waited += POLL_SECONDS
    msg = f"table {table!r} is not active after {ACTIVE_WITHIN_SECONDS:g} s; call create_table() again"
    raise StoreUnavailableError(msg)


def _key_schema(schema: ItemSchema) -> list[dict[str, str]]:
    keys = [{"AttributeName": schema.key_attr, "KeyType": "HASH"}]
    if schema.sort_key_attr is not None:
        keys.append({"AttributeName": schema.sort_key_attr, "KeyType": "RANGE"})
    return keys


def _check_schema(description: dict[str, Any], table: str, schema: ItemSchema) -> None:
    problem = key_schema_problem(description, table, schema)
    if problem is not None:
        raise StoreMisconfiguredError(f"{problem}; set key_attr and sort_key_attr, or use another table")


def key_schema_problem(description: dict[str, Any], table: str, schema: ItemSchema) -> str | None:
    """Return how a table's key schema differs from the store's; None where it does not."""
    found = sorted((key["KeyType"], key["AttributeName"]) for key in description["KeySchema"])
    wanted = sorted((key["KeyType"], key["AttributeName"]) for key in _key_schema(schema))
    types = {each["AttributeName"]: each["AttributeType"] for each in description["AttributeDefinitions"]}
    if found == wanted and all(types.get(name) == "S" for _, name in wanted):
        return None
    return (
        f"table {table!r} has the key {[(*key, types.get(key[1])) for key in found]}, this store needs "
        f"{[(*key, 'S') for key in wanted]}"
    )


def _ttl_attribute(connection: Connection, table: str) -> str | None:
    described = connection.request("describe_time_to_live", TableName=table)
    if not isinstance(described, Succeeded):
        return None
    ttl = described.answer["TimeToLiveDescription"]
    enabled = ttl.get("TimeToLiveStatus") in ("ENABLED", "ENABLING")
    return str(ttl["AttributeName"]) if enabled else None


def _check_ttl(connection: Connection, table: str, schema: ItemSchema) -> None:
    problem = ttl_problem(connection, table, schema)
    if problem is not None:
        msg = (
            f"{problem}: expired records would stay indefinitely; turn TTL on for the attribute "
            f"{schema.expiry_attr!r}, as DynamoDBStore(...).create_table() does"
        )
        raise StoreMisconfiguredError(msg)


def ttl_problem(connection: Connection, table: str, schema: ItemSchema) -> str | None:
    """Return what is wrong with a table's TTL; None where nothing is."""
    attribute = _ttl_attribute(connection, table)
    if attribute == schema.expiry_attr:
        return None
    return f"table {table!r} has " + ("no TTL" if attribute is None else f"its TTL on {attribute!r}")
