"""The templates, checked with the parsers and linters of their tools."""

import ast
import io
import json
from functools import cache
from typing import Any

import hcl2
import pytest
from cfnlint.config import ConfigMixIn
from cfnlint.decode import decode_str
from cfnlint.runner import Runner

from idempotent_tasks import DynamoDBStore, S3Results
from idempotent_tasks.cli.templates import TEMPLATES, Bucket, Table

PLAIN = DynamoDBStore("records")
COMPOSITE = DynamoDBStore(
    "arn:aws:dynamodb:eu-west-1:1:table/records", key_attr="pk", sort_key_attr="sk", expiry_attr="ttl"
)
BUCKET = Bucket.of(S3Results("large-results", "shop"), 86_400)

REGION = "eu-west-1"
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
def test_cloudformation(table: Table) -> None:
    """cfn-lint accepts the template, and it has what the store needs."""
    template = TEMPLATES["cloudformation"](table)
    assert linted(template) == []
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


def test_cfn_lint_finds_mistakes() -> None:
    """In a template and in a policy, or its acceptance would show nothing."""
    template = TEMPLATES["cloudformation"](Table.of(PLAIN, point_in_time_recovery=False))
    assert linted(template.removesuffix("}"))
    assert linted(template.replace("PAY_PER_REQUEST", "PAY_BY_HAND"))
    assert linted(template.replace("AWS::DynamoDB::Table", "AWS::DynamoDB::Desk"))
    policy = TEMPLATES["iam"](Table.of(PLAIN))
    assert linted_policy(policy) == []
    assert linted_policy(policy.replace("Allow", "Permit"))


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
def test_iam(table: Table) -> None:
    """Workers are allowed less than operators, and no one a wildcard; a key adds a statement, a bucket two."""
    policy = policy_of(table)
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
def test_iam_of_a_tenant(store: DynamoDBStore, tenant: str, pattern: str) -> None:
    """Each action on items is limited to keys that begin so, literally; what reaches other tenants' is left out."""
    table = Table.of(store, tenant=tenant)
    *limited, whole = policy_of(table)["Statement"]
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


def policy_of(table: Table) -> dict[str, Any]:
    """Return the policy of a table's template, which a linter of policies accepts."""
    text = TEMPLATES["iam"](table)
    assert linted_policy(text) == []
    policy: dict[str, Any] = json.loads(text)
    return policy


def linted_policy(text: str) -> list[str]:
    """Return the findings of cfn-lint about a policy."""
    resource = {"Type": "AWS::IAM::ManagedPolicy", "Properties": {"PolicyDocument": json.loads(text)}}
    return linted(json.dumps({"AWSTemplateFormatVersion": "2010-09-09", "Resources": {"Policy": resource}}))


def linted(template: str) -> list[str]:
    """Return the findings of cfn-lint."""
    decoded, mistakes = decode_str(template)
    findings = mistakes or linter().validate_template(decoded)
    return [f"{finding.rule.id} {finding.message}" for finding in findings]


@cache
def linter() -> Runner:
    """Return what its command runs, with all of its rules: hundreds of files, read once."""
    return Runner(ConfigMixIn(regions=[REGION]))
