"""The demo's own environment variables: what the caller set for real brokers and accounts must not reach it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["own_environment"]

#: These would lead the demo to other brokers and accounts.
_FOREIGN_PREFIXES = ("AWS_", "BOTO_", "CELERY_")
#: The demo speaks to this machine only, which a proxy could not reach.
_PROXY_SUFFIX = "_PROXY"
_STAND_IN_ACCOUNT = {
    "AWS_ACCESS_KEY_ID": "demo",
    "AWS_SECRET_ACCESS_KEY": "demo",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
}


@contextmanager
def own_environment(folder: Path) -> Iterator[None]:
    """Keep this process and its children away from the caller's brokers and accounts meanwhile.

    Args:
        folder: where children put their temporary files, which they leave behind when they are killed.
    """
    before = dict(os.environ)
    for name in filter(_foreign, before):
        del os.environ[name]
    os.environ.update(_STAND_IN_ACCOUNT, TMPDIR=str(folder))
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _foreign(name: str) -> bool:
    return name.startswith(_FOREIGN_PREFIXES) or name.upper().endswith(_PROXY_SUFFIX)
