"""The templates, checked with the parsers and linters of their tools."""

import ast
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import hcl2
import pytest

from idempotent_tasks import DynamoDBStore, S3Results
from idempotent_tasks.cli.templates import TEMPLATES, Bucket, Table

PLAIN = DynamoDBStore("records")
COMPOSITE = DynamoDBStore(
    "arn:aws:dynamodb:eu-west-1:1:table/records", key_attr="pk", sort_key_attr="sk", expiry_attr="ttl"
)
BUCKET = Bucket.of(S3Results("large-results", "shop"), 86_400)

each_table = pytest.mark.parametrize(
    "table",
    [
        Table.of(PLAIN, point_in_time_recovery=False),
        Table.of(COMPOSITE, point_in_time_recovery=True),
        Table.of(PLAIN, point_in_time_recovery=False, bucket=BUCKET),
    ],
    ids=["plain", "composite", "bucket"],
)


@each_table
def test_cloudformation(table: Table, tmp_path: Path) -> None:
    """cfn-lint accepts the template, and it has what the store needs."""
    file = tmp_path / "template.json"
    file.write_text(TEMPLATES["cloudformation"](table))
    lint = [str(Path(sys.executable).with_name("cfn-lint")), "--template", str(file), "--regions", "eu-west-1"]
    linted = subprocess.run(lint, check=False, capture_output=True, text=True)
    assert (linted.returncode, linted.stdout) == (0, ""), linted.stdout + linted.stderr
    resources = json.loads(file.read_text())["Resources"]
    properties = resources["IdempotencyTable"]["Properties"]
    assert properties["TableName"] == "records"
    assert {each["AttributeName"]: each["KeyType"] for each in properties["KeySchema"]} == table.keys
    assert properties["TimeToLiveSpecification"] == {"AttributeName": table.ttl_attribute, "Enabled": True}
    assert ("IdempotencyResults" in resources) is (table.bucket is not None)
    if table.bucket is not None:
        results = resources["IdempotencyResults"]["Properties"]
        assert results["BucketName"] == "large-results"
        (rule,) = results["LifecycleConfiguration"]["Rules"]
        assert (rule["Status"], rule["Prefix"], rule["ExpirationInDays"]) == ("Enabled", "shop/", 2)


@each_table
def test_terraform(table: Table) -> None:
    """The text is HCL, and has what the store needs."""
    resource, *others = hcl2.load(io.StringIO(TEMPLATES["terraform"](table)))["resource"]
    shown = plain(resource)["aws_dynamodb_table"]["idempotency"]
    assert (shown["name"], shown["billing_mode"]) == ("records", "PAY_PER_REQUEST")
    assert (shown["hash_key"], shown.get("range_key")) == (table.partition_key, table.sort_key)
    assert [each["name"] for each in shown["attribute"]] == list(table.keys)
    assert shown["ttl"][0] == {"attribute_name": table.ttl_attribute, "enabled": True}
    assert shown["point_in_time_recovery"][0]["enabled"] is table.point_in_time_recovery
    named = {kind: each for other in others for kind, each in plain(other).items()}
    assert bool(named) is (table.bucket is not None)
    if named:
        assert named["aws_s3_bucket"]["idempotency_results"]["bucket"] == "large-results"
        (rule,) = named["aws_s3_bucket_lifecycle_configuration"]["idempotency_results"]["rule"]
        assert (rule["filter"][0]["prefix"], rule["expiration"][0]["days"]) == ("shop/", 2)


def plain(value: Any) -> Any:
    """Return a value of hcl2 without its quotes and marks."""
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
    assert ({"large-results", "shop/", 2} <= texts) is (table.bucket is not None)


@each_table
def test_iam(table: Table) -> None:
    """Workers are allowed less than operators, and no one a wildcard; a bucket adds two statements."""
    policy = json.loads(TEMPLATES["iam"](table))
    worker, operator, *results = policy["Statement"]
    assert [each["Resource"] for each in results] == (
        [] if table.bucket is None else ["arn:aws:s3:::large-results/shop/*", "arn:aws:s3:::large-results"]
    )
    assert not any("*" in action for each in results for action in each["Action"])
    assert set(worker["Action"]) < set(operator["Action"])
    assert not any("*" in action for action in operator["Action"])
    assert {worker["Resource"], operator["Resource"]} == {"arn:aws:dynamodb:*:*:table/records"}
