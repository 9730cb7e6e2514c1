"""CloudFormation, Terraform, CDK and IAM templates for the table and the bucket of large results; no I/O."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

from idempotent_tasks.checks.dynamodb import DESCRIPTIONS, WORKER_ACTIONS
from idempotent_tasks.stores.dynamodb import DynamoDBStore
from idempotent_tasks.stores.dynamodb.admin import OPERATOR_ACTIONS
from idempotent_tasks.stores.s3 import BUCKET_ACTIONS, OBJECT_ACTIONS, S3Results, days_of

__all__ = ["TEMPLATES", "Bucket", "Table"]

#: What DynamoDB needs of a customer-managed key in the name of its caller.
#: https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/encryption.usagenotes.html#dynamodb-kms-authz
KEY_ACTIONS: Final = ("Encrypt", "Decrypt", "ReEncrypt*", "GenerateDataKey*", "DescribeKey", "CreateGrant")


@dataclass(frozen=True, kw_only=True, slots=True)
class Bucket:
    """A bucket for large results, and the days after which its objects expire."""

    name: str
    prefix: str
    days: int

    @classmethod
    def of(cls, results: S3Results, longest_seconds: float) -> Self:
        """Return the bucket of an app whose longest record retention is this many seconds."""
        return cls(name=results.bucket, prefix=results.prefix, days=days_of(longest_seconds))


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """The table that a template describes."""

    name: str
    partition_key: str
    sort_key: str | None
    ttl_attribute: str
    point_in_time_recovery: bool
    #: The partition key that all records of a table with a composite key share; None for a table with a simple key.
    partition: str | None = None
    deletion_protection: bool = False
    #: The ARN of the customer-managed KMS key that it is encrypted with; None for DynamoDB's own.
    kms_key: str | None = None
    #: What the keys of the one tenant that a policy is for begin with; None for a policy for all.
    tenant: str | None = None
    #: Stores results that are too large for a record.
    bucket: Bucket | None = None

    @classmethod
    def of(cls, store: DynamoDBStore, *, point_in_time_recovery: bool = False, **others: Any) -> Self:
        """Return the table that a store needs, with other fields as given; of an ARN it keeps only the name."""
        layout = store.schema
        return cls(
            name=store.table.rpartition("/")[2],
            partition_key=layout.key_attr,
            sort_key=layout.sort_key_attr,
            ttl_attribute=layout.expiry_attr,
            partition=None if layout.sort_key_attr is None else layout.static_pk_value,
            point_in_time_recovery=point_in_time_recovery,
            **others,
        )

    @property
    def keys(self) -> Mapping[str, str]:
        """The key attributes, each with its role in the key schema."""
        sort = {} if self.sort_key is None else {self.sort_key: "RANGE"}
        return {self.partition_key: "HASH", **sort}


def _cloudformation(table: Table) -> str:
    properties: dict[str, Any] = {
        "TableName": table.name,
        "BillingMode": "PAY_PER_REQUEST",
        "AttributeDefinitions": [{"AttributeName": name, "AttributeType": "S"} for name in table.keys],
        "KeySchema": [{"AttributeName": name, "KeyType": role} for name, role in table.keys.items()],
        "TimeToLiveSpecification": {"AttributeName": table.ttl_attribute, "Enabled": True},
        "PointInTimeRecoverySpecification": {"PointInTimeRecoveryEnabled": table.point_in_time_recovery},
        "DeletionProtectionEnabled": table.deletion_protection,
    }
    if table.kms_key is not None:
        properties["SSESpecification"] = {"SSEEnabled": True, "SSEType": "KMS", "KMSMasterKeyId": table.kms_key}
    resource = {
        "Type": "AWS::DynamoDB::Table",
        # Without its records every task could run again: deleting the stack must not delete them.
        "DeletionPolicy": "Retain",
        "UpdateReplacePolicy": "Retain",
        "Properties": properties,
    }
    resources = {"IdempotencyTable": resource}
    if table.bucket is not None:
        resources["IdempotencyResults"] = _cloudformation_bucket(table.bucket)
    return json.dumps({"AWSTemplateFormatVersion": "2010-09-09", "Resources": resources}, indent=2)


def _cloudformation_bucket(bucket: Bucket) -> dict[str, Any]:
    rule = {"Id": "IdempotencyResults", "Status": "Enabled", "Prefix": bucket.prefix, "ExpirationInDays": bucket.days}
    return {
        "Type": "AWS::S3::Bucket",
        "DeletionPolicy": "Retain",
        "UpdateReplacePolicy": "Retain",
        "Properties": {
            "BucketName": bucket.name,
            "LifecycleConfiguration": {"Rules": [rule]},
            "PublicAccessBlockConfiguration": {
                "BlockPublicAcls": True,
                "BlockPublicPolicy": True,
                "IgnorePublicAcls": True,
                "RestrictPublicBuckets": True,
            },
        },
    }


def _terraform(table: Table) -> str:
    sort = "" if table.sort_key is None else f'  range_key    = "{table.sort_key}"\n'
    attributes = "".join(f'\n  attribute {{\n    name = "{name}"\n    type = "S"\n  }}\n' for name in table.keys)
    encryption = (
        ""
        if table.kms_key is None
        else f'\n  server_side_encryption {{\n    enabled     = true\n    kms_key_arn = "{table.kms_key}"\n  }}\n'
    )
    return f"""resource "aws_dynamodb_table" "idempotency" {{
  name         = "{table.name}"
  billing_mode = "PAY_PER_REQUEST"
  hash_key     = "{table.partition_key}"
{sort}
  deletion_protection_enabled = {str(table.deletion_protection).lower()}
{attributes}{encryption}
  ttl {{
    attribute_name = "{table.ttl_attribute}"
    enabled        = true
  }}

  point_in_time_recovery {{
    enabled = {str(table.point_in_time_recovery).lower()}
  }}

  lifecycle {{
    prevent_destroy = true
  }}
}}{"" if table.bucket is None else _terraform_bucket(table.bucket)}"""


def _terraform_bucket(bucket: Bucket) -> str:
    return f"""

resource "aws_s3_bucket" "idempotency_results" {{
  bucket = "{bucket.name}"
}}

resource "aws_s3_bucket_public_access_block" "idempotency_results" {{
  bucket                  = aws_s3_bucket.idempotency_results.id
  block_public_acls       = true
  block_public_policy     = true
  ignore_public_acls      = true
  restrict_public_buckets = true
}}

resource "aws_s3_bucket_lifecycle_configuration" "idempotency_results" {{
  bucket = aws_s3_bucket.idempotency_results.id

  rule {{
    id     = "idempotency-results"
    status = "Enabled"

    filter {{
      prefix = "{bucket.prefix}"
    }}

    expiration {{
      days = {bucket.days}
    }}
  }}
}}"""


def _cdk_python(table: Table) -> str:
    def attribute(name: str) -> str:
        return f'dynamodb.Attribute(name="{name}", type=dynamodb.AttributeType.STRING)'

    sort = "" if table.sort_key is None else f"            sort_key={attribute(table.sort_key)},\n"
    recovery = (
        "            point_in_time_recovery_specification=dynamodb.PointInTimeRecoverySpecification(\n"
        "                point_in_time_recovery_enabled=True\n            ),\n"
        if table.point_in_time_recovery
        else ""
    )
    protection = "            deletion_protection=True,\n" if table.deletion_protection else ""
    encryption = (
        ""
        if table.kms_key is None
        else "            encryption=dynamodb.TableEncryption.CUSTOMER_MANAGED,\n"
        f'            encryption_key=kms.Key.from_key_arn(self, "IdempotencyKey", "{table.kms_key}"),\n'
    )
    imports = "Duration, RemovalPolicy, Stack" if table.bucket else "RemovalPolicy, Stack"
    more = "from aws_cdk import aws_kms as kms\n" if table.kms_key else ""
    more += "from aws_cdk import aws_s3 as s3\n" if table.bucket else ""
    return f"""from aws_cdk import {imports}
from aws_cdk import aws_dynamodb as dynamodb
{more}from constructs import Construct


class IdempotencyStack(Stack):
    def __init__(self, scope: Construct, construct_id: str, **kwargs) -> None:
        super().__init__(scope, construct_id, **kwargs)
        self.table = dynamodb.Table(
            self,
            "IdempotencyTable",
            table_name="{table.name}",
            partition_key={attribute(table.partition_key)},
{sort}            billing_mode=dynamodb.BillingMode.PAY_PER_REQUEST,
            time_to_live_attribute="{table.ttl_attribute}",
{recovery}{protection}{encryption}            removal_policy=RemovalPolicy.RETAIN,
        ){"" if table.bucket is None else _cdk_bucket(table.bucket)}"""


def _cdk_bucket(bucket: Bucket) -> str:
    return f"""
        self.results = s3.Bucket(
            self,
            "IdempotencyResults",
            bucket_name="{bucket.name}",
            block_public_access=s3.BlockPublicAccess.BLOCK_ALL,
            lifecycle_rules=[s3.LifecycleRule(prefix="{bucket.prefix}", expiration=Duration.days({bucket.days}))],
            removal_policy=RemovalPolicy.RETAIN,
        )"""


def _iam(table: Table) -> str:
    statements = _statements(table) if table.tenant is None else _tenant_statements(table, table.tenant)
    if table.kms_key is not None:
        statements.append(_key_statement(table.kms_key))
    if table.bucket is not None:
        statements += _bucket_statements(table.bucket)
    return json.dumps({"Version": "2012-10-17", "Statement": statements}, indent=2)


def _statements(table: Table) -> list[dict[str, Any]]:
    return [
        _statement("IdempotencyWorker", WORKER_ACTIONS, table),
        _statement("IdempotencyOperator", (*WORKER_ACTIONS, *OPERATOR_ACTIONS), table),
    ]


def _tenant_statements(table: Table, tenant: str) -> list[dict[str, Any]]:
    """Return the statements of a worker and an operator who reach only the records of one tenant.

    No statement has ``Scan``, which has no leading keys and returns the records of all tenants.  ``Query``, of a table
    with a composite key, reads one partition, which is a leading key.  ``Null`` is there because ``ForAllValues`` is
    true of a request without the key, if somebody adds such an action.
    https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/specifying-conditions.html
    https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_condition-single-vs-multi-valued-context-keys.html
    """
    items = tuple(action for action in WORKER_ACTIONS if action not in DESCRIPTIONS)
    reads = () if table.partition is None else ("Query",)
    of_tenant = {
        "ForAllValues:StringLike": {"dynamodb:LeadingKeys": [f"{_literal(tenant)}*"]},
        "Null": {"dynamodb:LeadingKeys": "false"},
    }
    return [
        {**_statement("IdempotencyTenantWorker", items, table), "Condition": of_tenant},
        {**_statement("IdempotencyTenantOperator", (*items, "DeleteItem", *reads), table), "Condition": of_tenant},
        _statement("IdempotencyTable", DESCRIPTIONS, table),
    ]


def _statement(who: str, actions: tuple[str, ...], table: Table) -> dict[str, Any]:
    return {
        "Sid": who,
        "Effect": "Allow",
        "Action": [f"dynamodb:{action}" for action in actions],
        "Resource": f"arn:aws:dynamodb:*:*:table/{table.name}",
    }


def _literal(text: str) -> str:
    """Return a text for ``StringLike`` in which nothing is a wildcard or a variable, as IAM's ``${*}`` writes it."""
    return re.sub(r"[*?$]", lambda found: f"${{{found[0]}}}", text)


def _key_statement(kms_key: str) -> dict[str, Any]:
    """Return the statement for a customer-managed key, which DynamoDB uses in the name of who reads or writes."""
    region = kms_key.split(":")[3]
    return {
        "Sid": "IdempotencyKey",
        "Effect": "Allow",
        "Action": [f"kms:{action}" for action in KEY_ACTIONS],
        "Resource": kms_key,
        "Condition": {"StringEquals": {"kms:ViaService": f"dynamodb.{region}.amazonaws.com"}},
    }


def _bucket_statements(bucket: Bucket) -> list[dict[str, Any]]:
    arn = f"arn:aws:s3:::{bucket.name}"
    objects = {"Sid": "IdempotencyResults", "Action": list(OBJECT_ACTIONS), "Resource": f"{arn}/{bucket.prefix}*"}
    whole = {"Sid": "IdempotencyResultsBucket", "Action": list(BUCKET_ACTIONS), "Resource": arn}
    return [{"Effect": "Allow", **each} for each in (objects, whole)]


TEMPLATES: Final[Mapping[str, Callable[[Table], str]]] = {
    "cdk-python": _cdk_python,
    "cloudformation": _cloudformation,
    "iam": _iam,
    "terraform": _terraform,
}
