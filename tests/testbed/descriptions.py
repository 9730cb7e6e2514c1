"""Has boto3 read the descriptions of its services once, for this process and all that are forked from it.

It reads more than 1 MB of JSON for each session otherwise, and looks for it in the folders of all services: every third
sample found the workers of these tests at the reading.
"""

from functools import cache
from typing import Any, Final

import boto3
from botocore.loaders import JSONFileLoader, Loader

__all__: list[str] = []

#: Those that a worker of these tests speaks to.
SERVICES: Final = ("dynamodb", "sqs")

read, look = JSONFileLoader.load_file, Loader.list_available_services


@cache
def _read_once(path: str) -> Any:
    return read(JSONFileLoader(), path)


@cache
def _look_once(kind: str) -> list[str]:
    # All of these tests look into the same folders: botocore's own.
    found: list[str] = look(Loader(), type_name=kind)
    return found


JSONFileLoader.load_file = lambda _, path: _read_once(path)
Loader.list_available_services = lambda _, type_name: _look_once(type_name)

for service in SERVICES:
    boto3.Session(aws_access_key_id="none", aws_secret_access_key="none", region_name="eu-west-1").client(service)
