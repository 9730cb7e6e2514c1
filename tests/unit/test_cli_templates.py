"""The templates, read by the parsers and linters of the tools that they are for."""

import ast
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import hcl2
import pytest

from idempotent_tasks import DynamoDBStore
from idempotent_tasks.cli.templates import TEMPLATES, Table

PLAIN = DynamoDBStore("records")
COMPOSITE = DynamoDBStore(
    "arn:aws:dynamodb:eu-west-1:1:table/records", key_attr="pk", sort_key_attr="sk", expiry_attr="ttl"
)

each_table = pytest.mark.parametrize(
    "table",
    [
        Table.of(PLAIN, point_in_time_recovery=False),
        Table.of(COMPOSITE, point_in_time_recovery=True),
    ],
    ids=["plain", "composite"],
)


@each_table
def test_cloudformation(table: Table, tmp_path: Path) -> None:
    """cfn-lint, CloudFormation's own linter, has nothing to say, and the template says what the store needs."""
    file = tmp_path / "template.json"
    file.write_text(TEMPLATES["cloudformation"](table))
    lint = [str(Path(sys.executable).with_name("cfn-lint")), "--template", str(file), "--regions", "eu-west-1"]
    linted = subprocess.run(lint, check=False, capture_output=True, text=True)
    assert (linted.returncode, linted.stdout) == (0, ""), linted.stdout + linted.stderr
    properties = json.loads(file.read_text())["Resources"]["IdempotencyTable"]["Properties"]
    assert properties["TableName"] == "records"
    assert {each["AttributeName"]: each["KeyType"] for each in properties["KeySchema"]} == table.keys
    assert properties["TimeToLiveSpecification"] == {"AttributeName": table.ttl_attribute, "Enabled": True}


@each_table
def test_terraform(table: Table) -> None:
    """The text is HCL, and says what the store needs."""
    [resource] = hcl2.load(io.StringIO(TEMPLATES["terraform"](table)))["resource"]
    told = plain(resource)["aws_dynamodb_table"]["idempotency"]
    assert (told["name"], told["billing_mode"]) == ("records", "PAY_PER_REQUEST")
    assert (told["hash_key"], told.get("range_key")) == (table.partition_key, table.sort_key)
    assert [each["name"] for each in told["attribute"]] == list(table.keys)
    assert told["ttl"][0] == {"attribute_name": table.ttl_attribute, "enabled": True}
    assert told["point_in_time_recovery"][0]["enabled"] is table.point_in_time_recovery


def plain(value: Any) -> Any:
    """Return what hcl2 read without the quotes and marks that it keeps."""
    if isinstance(value, dict):
        return {plain(name): plain(each) for name, each in value.items() if not str(name).startswith("__")}
    if isinstance(value, list):
        return [plain(each) for each in value]
    return value.strip('"') if isinstance(value, str) else value


@each_table
def test_cdk_python(table: Table) -> None:
    """The text is a Python module with a stack, and names the store's attributes."""
    module = ast.parse(TEMPLATES["cdk-python"](table))
    (stack,) = (node for node in module.body if isinstance(node, ast.ClassDef))
    assert stack.name == "IdempotencyStack"
    texts = {node.value for node in ast.walk(module) if isinstance(node, ast.Constant)}
    assert {"records", *table.keys, table.ttl_attribute} <= texts


@each_table
def test_iam(table: Table) -> None:
    """Two statements on one table: workers may less than operators, and nobody may everything."""
    policy = json.loads(TEMPLATES["iam"](table))
    worker, operator = policy["Statement"]
    assert set(worker["Action"]) < set(operator["Action"])
    assert not any("*" in action for action in operator["Action"])
    assert {worker["Resource"], operator["Resource"]} == {"arn:aws:dynamodb:*:*:table/records"}
