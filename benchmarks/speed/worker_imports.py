"""What any worker that speaks to DynamoDB has imported, whoever guards its tasks."""

import boto3  # noqa: F401
import botocore.session  # noqa: F401
import kombu.utils.json  # noqa: F401
