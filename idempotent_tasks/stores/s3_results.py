"""Results that a record is too small for: objects in S3, named after what is in them."""

import re
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from hashlib import sha256
from http import HTTPStatus
from io import BytesIO
from math import ceil
from typing import Any, Final, Self
from urllib.parse import parse_qsl, urlsplit

from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    FlexibleChecksumError,
    HTTPClientError,
    IncompleteReadError,
)
from botocore.exceptions import ConnectionError as BotoConnectionError
from botocore.parsers import ResponseParserError

from idempotent_tasks.codec import MAX_RESULT_BYTES
from idempotent_tasks.errors import (
    ConfigurationError,
    ResultUnavailableError,
    StoreError,
    StoreMisconfiguredError,
    StoreUnavailableError,
)
from idempotent_tasks.stores.aws_client import OUR_CONFIG, Credentials, ProcessClient, raise_interrupt

__all__ = ["BUCKET_ACTIONS", "OBJECT_ACTIONS", "S3Results", "days_of"]

#: What a worker does with objects, and with their bucket: without ``ListBucket`` S3 calls an absent object forbidden;
#: the rules are looked at when a worker starts.
OBJECT_ACTIONS: Final = ("s3:PutObject", "s3:GetObject")
BUCKET_ACTIONS: Final = ("s3:ListBucket", "s3:GetLifecycleConfiguration")

#: How much of an object is read at once.
PIECE_BYTES: Final = 1024 * 1024
#: Megabytes take longer than an item.
_CONFIG: Final = OUR_CONFIG.merge(Config(read_timeout=5))
_TRANSIENT: Final = frozenset(
    {"InternalError", "OperationAborted", "RequestTimeout", "ServiceUnavailable", "SlowDown", "ThrottlingException"}
)
#: No answer, a cut one, or one that was damaged on its way.
_BROKEN_OFF: Final = (
    BotoConnectionError,
    FlexibleChecksumError,
    HTTPClientError,
    IncompleteReadError,
    ResponseParserError,
)
_ABSENT: Final = frozenset({"404", "NoSuchKey"})
_TEXT_PARAMETERS: Final = ("region", "endpoint_url")


class S3Results:
    """A bucket for results that are larger than the store takes.

    An object's name is the digest of its bytes, so what is read is known to be what was written, and the same result
    is stored once.  S3 deletes objects by a lifecycle rule of the bucket: one that is longer than any record is kept.

    Args:
        bucket: the bucket's name.
        prefix: what the names of the objects begin with; a ``/`` is added to one that does not end with it.
        above_bytes: from which size on a result goes to the bucket, in bytes as it is stored; by default only what the
            store does not take.
        region, endpoint_url, config, session: as for ``boto3.Session.client``; the config's retries are ignored.
        client: a ready-made client instead of the former; not for a client that is used before a fork.
        credentials: static credentials, for stand-ins.

    Raises:
        ConfigurationError: there is no bucket, or ``client`` comes with what it contains already.
    """

    def __init__(
        self,
        bucket: str,
        prefix: str = "",
        *,
        above_bytes: int | None = None,
        region: str | None = None,
        endpoint_url: str | None = None,
        config: Config | None = None,
        session: Any = None,
        client: Any = None,
        credentials: Credentials | None = None,
    ) -> None:
        if not bucket:
            raise ConfigurationError("the bucket for results has no name; write s3://BUCKET/PREFIX")
        if above_bytes is not None and above_bytes < 0:
            raise ConfigurationError(f"above_bytes={above_bytes} is negative")
        self.bucket = bucket
        self.prefix = f"{prefix.rstrip('/')}/" if prefix.strip("/") else ""
        self.above_bytes = above_bytes
        # A name of its own for each bucket is more than most stand-ins have.
        style = Config(s3={"addressing_style": "path"}) if endpoint_url else Config()
        self._client = ProcessClient(
            "s3",
            region=region,
            endpoint_url=endpoint_url,
            config=config,
            session=session,
            client=client,
            credentials=credentials,
            defaults=_CONFIG.merge(style),
        )

    @classmethod
    def from_url(cls, url: str) -> Self:
        """Make one from ``s3://BUCKET/PREFIX``, or ``BUCKET``, with ``region``, ``endpoint_url``, ``above_bytes``.

        Raises:
            ConfigurationError: the URL has no bucket, another scheme or an unknown parameter.
        """
        try:
            parts = urlsplit(url if "://" in url else f"s3://{url}")
        except ValueError:
            raise ConfigurationError("idempotency_results_bucket is no URL; write s3://BUCKET/PREFIX") from None
        if parts.scheme != "s3" or not parts.netloc or "@" in parts.netloc:
            raise ConfigurationError(f"results bucket {parts.scheme}://… is none; write s3://BUCKET/PREFIX")
        given: dict[str, Any] = {}
        for name, value in parse_qsl(parts.query, keep_blank_values=True):
            if name in _TEXT_PARAMETERS and value:
                given[name] = value
            elif name == "above_bytes" and value.isdecimal():
                given[name] = int(value)
            else:
                known = ", ".join((*_TEXT_PARAMETERS, "above_bytes"))
                # Without the value, which may be a secret.
                msg = f"results bucket {parts.netloc!r}: {name}= is unknown, or its value is wrong; known are {known}"
                raise ConfigurationError(msg)
        return cls(parts.netloc, parts.path.lstrip("/"), **given)

    def __repr__(self) -> str:
        return f"S3Results({self.bucket!r}, {self.prefix!r} at {self._client!r})"

    @property
    def verifiable(self) -> bool:
        """Whether the bucket may be asked before a worker forks: not with a ready-made client."""
        return not self._client.ready_made

    def client(self) -> Any:
        """Return boto3's client of this process."""
        return self._client.client_of_this_process()

    def put(self, data: bytes, expires_at: float) -> str:
        """Write an object, also where there is one of this name: its age, by which S3 deletes it, starts anew.

        Args:
            data: the bytes.
            expires_at: when its record expires, in epoch seconds; goes into the object's metadata, for people.

        Returns:
            The object's address, ``s3://BUCKET/PREFIX/DIGEST``.

        Raises:
            StoreUnavailableError: the network, a time-out, throttling, a 5xx.
            StoreMisconfiguredError: anything that repeating cannot mend.
        """
        digest = sha256(data)
        key = f"{self.prefix}{digest.hexdigest()}"
        with self._translated("PutObject", self.bucket):
            self.client().put_object(
                Bucket=self.bucket,
                Key=key,
                # Not the bytes: of those Python expects the socket to take all within one time-out.
                Body=BytesIO(data),
                ContentType="application/octet-stream",
                ChecksumSHA256=b64encode(digest.digest()).decode(),
                Metadata={"idempotency-expires": datetime.fromtimestamp(expires_at, UTC).isoformat(timespec="seconds")},
            )
        return f"s3://{self.bucket}/{key}"

    def get(self, address: str) -> bytes:
        """Read what `put` wrote, under whatever prefix, in this bucket and no other.

        Raises:
            ResultUnavailableError: the address is another bucket's or none; the object is gone, or is not what was
                written.
            StoreUnavailableError, StoreMisconfiguredError: as for `put`.
        """
        key = self._key(address)
        try:
            with self._translated("GetObject", self.bucket):
                data = _read(self.client().get_object(Bucket=self.bucket, Key=key))
        except _AbsentError:
            msg = (
                f"its result {address} is gone; give the bucket's lifecycle rule more days than any record is kept "
                "(`celery -A <app> idempotency template` writes it)"
            )
            raise ResultUnavailableError(msg) from None
        if data is None or sha256(data).hexdigest() != key.rpartition("/")[2]:
            msg = f"what {address} holds is not the result that was stored there; find out who writes to the bucket"
            raise ResultUnavailableError(msg)
        return data

    def _key(self, address: str) -> str:
        """Return the name of the object at an address; a record that somebody else wrote leads nowhere else."""
        if not re.fullmatch(r"s3://[^/].*/[0-9a-f]{64}", address, re.DOTALL):
            raise ResultUnavailableError("its result is stored at what is no address of S3 that this library wrote")
        ours = f"s3://{self.bucket}/"
        if not address.startswith(ours):
            msg = (
                f"its result is stored in another bucket than {self.bucket!r}, and only this one is read; "
                "set idempotency_results_bucket to the bucket that the record names if it is yours"
            )
            raise ResultUnavailableError(msg)
        return address.removeprefix(ours)

    @contextmanager
    def _translated(self, action: str, bucket: str) -> Iterator[None]:
        said = f"s3:{action} on bucket {bucket!r} at {self._client!r}"
        try:
            yield
        except ClientError as error:
            raise _from_answer(error, said) from error
        except _BROKEN_OFF as error:
            raise_interrupt(error)
            raise StoreUnavailableError(f"{said} got no answer ({type(error).__name__})") from error
        except (BotoCoreError, ValueError) as error:
            remedy = "mend the region, endpoint or credentials of idempotency_results_bucket"
            raise StoreMisconfiguredError(f"{said} cannot be sent: {error}; {remedy}") from error


def days_of(retention_seconds: float) -> int:
    """Return the days of a lifecycle rule that outlives a record: one more than it is kept, in whole days."""
    return ceil(retention_seconds / 86_400) + 1


def _read(answer: dict[str, Any]) -> bytes | None:
    """Read an object's bytes; None where they are more than any result has, of which nothing is kept."""
    data, body = BytesIO(), answer["Body"]
    if answer.get("ContentLength", 0) > MAX_RESULT_BYTES:
        body.close()
        return None
    # To the empty piece that follows the last one: botocore compares length and checksum there.
    while piece := body.read(PIECE_BYTES):
        data.write(piece)
        if data.tell() > MAX_RESULT_BYTES:
            body.close()
            return None
    return data.getvalue()


class _AbsentError(StoreError):
    """No object has this name."""


def _from_answer(error: ClientError, request: str) -> StoreError:
    code = error.response["Error"]["Code"]
    status = error.response["ResponseMetadata"].get("HTTPStatusCode", 0)
    if code in _ABSENT:
        return _AbsentError(request)
    if code in _TRANSIENT or status >= HTTPStatus.INTERNAL_SERVER_ERROR or status == HTTPStatus.TOO_MANY_REQUESTS:
        return StoreUnavailableError(f"{request} failed for now: {code}")
    remedy = "allow s3:PutObject, s3:GetObject and s3:ListBucket to the worker's role, or mend the bucket's name"
    return StoreMisconfiguredError(f"{request} was refused: {code}. Remedy: {remedy}")
