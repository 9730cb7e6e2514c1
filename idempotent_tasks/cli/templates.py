"""CloudFormation, Terraform, CDK and IAM templates for the table and the bucket of large results; no I/O."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

from idempotent_tasks.checks.dynamodb import WORKER_ACTIONS
from idempotent_tasks.stores.dynamodb import DynamoDBStore
from idempotent_tasks.stores.dynamodb.admin import OPERATOR_ACTIONS
from idempotent_tasks.stores.s3 import BUCKET_ACTIONS, OBJECT_ACTIONS, S3Results, days_of

__all__ = ["TEMPLATES", "Bucket", "Table"]


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
    #: Stores results that are too large for a record.
    bucket: Bucket | None = None

    @classmethod
    def of(cls, store: DynamoDBStore, *, point_in_time_recovery: bool, bucket: Bucket | None = None) -> Self:
        """Return the table that a store needs; one that is named by its ARN keeps only its name."""
        layout = store.schema
        return cls(
            name=store.table.rpartition("/")[2],
            partition_key=layout.key_attr,
            sort_key=layout.sort_key_attr,
            ttl_attribute=layout.expiry_attr,
            point_in_time_recovery=point_in_time_recovery,
            bucket=bucket,
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
    }
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
    return f"""resource "aws_dynamodb_table" "idempotency" {{
  name         = "{table.name}"
  billing_mode = "PAY_PER_REQUEST"
  hash_key     = "{table.partition_key}"
{sort}{attributes}
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
    imports = "Duration, RemovalPolicy, Stack" if table.bucket else "RemovalPolicy, Stack"
    s3 = "from aws_cdk import aws_s3 as s3\n" if table.bucket else ""
    return f"""from aws_cdk import {imports}
from aws_cdk import aws_dynamodb as dynamodb
{s3}from constructs import Construct


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
{recovery}            removal_policy=RemovalPolicy.RETAIN,
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
    resource = f"arn:aws:dynamodb:*:*:table/{table.name}"

    def statement(who: str, actions: tuple[str, ...]) -> dict[str, Any]:
        return {
            "Sid": who,
            "Effect": "Allow",
            "Action": [f"dynamodb:{action}" for action in actions],
            "Resource": resource,
        }

    statements = [
        statement("IdempotencyWorker", WORKER_ACTIONS),
        statement("IdempotencyOperator", (*WORKER_ACTIONS, *OPERATOR_ACTIONS)),
    ]
    if table.bucket is not None:
        statements += _bucket_statements(table.bucket)
    return json.dumps({"Version": "2012-10-17", "Statement": statements}, indent=2)


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
