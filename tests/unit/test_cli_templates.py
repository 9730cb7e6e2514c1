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

KMS_KEY = "arn:aws:kms:eu-west-1:123456789012:key/11111111-2222-3333-4444-555555555555"

each_table = pytest.mark.parametrize(
    "table",
    [
        Table.of(PLAIN, point_in_time_recovery=False),
        Table.of(COMPOSITE, point_in_time_recovery=True),
        Table.of(PLAIN, point_in_time_recovery=False, bucket=BUCKET),
        Table.of(PLAIN, deletion_protection=True, kms_key=KMS_KEY),
    ],
    ids=["plain", "composite", "bucket", "protected"],
)


@each_table
def test_cloudformation(table: Table, tmp_path: Path) -> None:
    """cfn-lint accepts the template, and it has what the store needs."""
    template = TEMPLATES["cloudformation"](table)
    assert linted(template, tmp_path) == (0, "")
    resources = json.loads(template)["Resources"]
    properties = resources["IdempotencyTable"]["Properties"]
    assert properties["TableName"] == "records"
    assert {each["AttributeName"]: each["KeyType"] for each in properties["KeySchema"]} == table.keys
    assert properties["TimeToLiveSpecification"] == {"AttributeName": table.ttl_attribute, "Enabled": True}
    assert properties["DeletionProtectionEnabled"] is table.deletion_protection
    encrypted = {"SSEEnabled": True, "SSEType": "KMS", "KMSMasterKeyId": KMS_KEY}
    assert properties.get("SSESpecification") == (encrypted if table.kms_key else None)
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
    assert shown["deletion_protection_enabled"] is table.deletion_protection
    encrypted = [{"enabled": True, "kms_key_arn": KMS_KEY}]
    assert plain(shown.get("server_side_encryption")) == (encrypted if table.kms_key else None)
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
    (call,) = (
        node for node in ast.walk(module) if isinstance(node, ast.Call) and "dynamodb.Table(" in ast.unparse(node)
    )
    named = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
    assert ("deletion_protection" in named) is table.deletion_protection
    assert named.get("encryption") == (table.kms_key and "dynamodb.TableEncryption.CUSTOMER_MANAGED")
    assert (f"kms.Key.from_key_arn(self, 'IdempotencyKey', '{KMS_KEY}')" == named.get("encryption_key")) is bool(
        table.kms_key
    )


@each_table
def test_iam(table: Table, tmp_path: Path) -> None:
    """Workers are allowed less than operators, and no one a wildcard; a key adds a statement, a bucket two."""
    policy = policy_of(table, tmp_path)
    worker, operator, *others = policy["Statement"]
    results = [each for each in others if each["Sid"] != "IdempotencyKey"]
    assert [each["Resource"] for each in results] == (
        [] if table.bucket is None else ["arn:aws:s3:::large-results/shop/*", "arn:aws:s3:::large-results"]
    )
    assert not any("*" in action for each in results for action in each["Action"])
    assert set(worker["Action"]) < set(operator["Action"])
    assert not any("*" in action for action in operator["Action"])
    assert {worker["Resource"], operator["Resource"]} == {"arn:aws:dynamodb:*:*:table/records"}
    keys = [each for each in others if each["Sid"] == "IdempotencyKey"]
    assert [each["Resource"] for each in keys] == ([] if table.kms_key is None else [KMS_KEY])
    for each in keys:
        # Only through DynamoDB, in the key's own Region.
        assert each["Condition"] == {"StringEquals": {"kms:ViaService": "dynamodb.eu-west-1.amazonaws.com"}}
        assert {"kms:Decrypt", "kms:CreateGrant", "kms:DescribeKey"} <= set(each["Action"])


@pytest.mark.parametrize(
    ("tenant", "pattern"),
    [("acme.", "acme.*"), ("acme#", "acme#*"), ("a*c?$", "a${*}c${?}${$}*")],
)
@pytest.mark.parametrize("store", [PLAIN, COMPOSITE], ids=["plain", "composite"])
def test_iam_of_a_tenant(store: DynamoDBStore, tenant: str, pattern: str, tmp_path: Path) -> None:
    """Each action on items is limited to keys that begin so, literally; what reaches other tenants' is left out."""
    table = Table.of(store, tenant=tenant)
    *limited, whole = policy_of(table, tmp_path)["Statement"]
    assert [each["Sid"] for each in limited] == ["IdempotencyTenantWorker", "IdempotencyTenantOperator"]
    for each in limited:
        assert each["Condition"] == {
            "ForAllValues:StringLike": {"dynamodb:LeadingKeys": [pattern]},
            # A request without leading keys would fit the line above.
            "Null": {"dynamodb:LeadingKeys": "false"},
        }
    worker, operator = (set(each["Action"]) for each in limited)
    assert worker == {"dynamodb:UpdateItem", "dynamodb:PutItem", "dynamodb:GetItem"}
    reads = {"dynamodb:Query"} if table.sort_key else set()
    assert operator == {*worker, "dynamodb:DeleteItem", *reads}
    assert (whole["Action"], "Condition" in whole) == (["dynamodb:DescribeTable", "dynamodb:DescribeTimeToLive"], False)


def policy_of(table: Table, folder: Path) -> dict[str, Any]:
    """Return the policy of a table's template, which a linter of policies accepts."""
    policy: dict[str, Any] = json.loads(TEMPLATES["iam"](table))
    resource = {"Type": "AWS::IAM::ManagedPolicy", "Properties": {"PolicyDocument": policy}}
    template = {"AWSTemplateFormatVersion": "2010-09-09", "Resources": {"Policy": resource}}
    assert linted(json.dumps(template), folder) == (0, "")
    return policy


def linted(template: str, folder: Path) -> tuple[int, str]:
    """Return the exit code and the findings of cfn-lint."""
    file = folder / "template.json"
    file.write_text(template)
    lint = [str(Path(sys.executable).with_name("cfn-lint")), "--template", str(file), "--regions", "eu-west-1"]
    done = subprocess.run(lint, check=False, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr
