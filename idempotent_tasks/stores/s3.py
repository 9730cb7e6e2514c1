"""Large results as objects in an S3 bucket, each named after the SHA-256 digest of its bytes."""

import re
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from hashlib import sha256
from io import BytesIO
from math import ceil
from typing import Any, Final, Self
from urllib.parse import parse_qsl, urlsplit

from botocore.config import Config

from idempotent_tasks.core.encoding import MAX_RESULT_BYTES
from idempotent_tasks.core.retry import time_left
from idempotent_tasks.errors import ConfigurationError, ResultUnavailableError, StoreError, StoreUnavailableError
from idempotent_tasks.stores.aws import OUR_CONFIG, Credentials, ProcessClient
from idempotent_tasks.stores.aws_errors import (
    NoTimeLeftError,
    Request,
    Service,
    blames_credentials,
    error_code,
    translated,
)

__all__ = ["BUCKET_ACTIONS", "OBJECT_ACTIONS", "S3Results", "days_of"]

#: A worker's permissions on objects and on their bucket: without ``ListBucket`` S3 answers 403 for an absent object.
#: The lifecycle rules are read when a worker starts.
OBJECT_ACTIONS: Final = ("s3:PutObject", "s3:GetObject")
BUCKET_ACTIONS: Final = ("s3:ListBucket", "s3:GetLifecycleConfiguration")

#: How much of an object is read at once.
PIECE_BYTES: Final = 1024 * 1024
#: Megabytes take longer than a request to DynamoDB.
_CONFIG: Final = OUR_CONFIG.merge(Config(read_timeout=5))
#: The permanent error codes of S3, each with its remedy; any other is transient.
#: https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html
_FIX_BUCKET: Final = "allow s3:PutObject, s3:GetObject and s3:ListBucket to the worker's role, or fix the bucket's name"
S3: Final = Service(
    prefix="s3",
    permanent={
        "AccessDenied": _FIX_BUCKET,
        "AllAccessDisabled": _FIX_BUCKET,
        "AuthorizationHeaderMalformed": "set the bucket's own region",
        "IllegalLocationConstraintException": "set the bucket's own region",
        "InvalidBucketName": _FIX_BUCKET,
        "InvalidObjectState": "restore the object from the archive, and keep the bucket's results out of it",
        "KMS.DisabledException": "enable the bucket's key",
        "KMS.NotFoundException": "give the bucket a key that exists",
        "MethodNotAllowed": "fix the endpoint: what answers there does not know this operation",
        "NoSuchBucket": _FIX_BUCKET,
        "PermanentRedirect": "set the bucket's own region",
    },
    settings="the region, endpoint or credentials of idempotency_results_bucket",
)
_ABSENT: Final = "NoSuchKey"
_TEXT_PARAMETERS: Final = ("region", "endpoint_url")


class S3Results:
    """An S3 bucket for results that are larger than the store takes.

    An object's name is the digest of its bytes, so what is read is known to be what was written, and equal results
    are stored once.  A lifecycle rule of the bucket deletes the objects, later than any record expires.

    Args:
        bucket: the bucket's name.
        prefix: how the objects' names begin; a ``/`` is added where it does not end with one.
        above_bytes: the encoded size in bytes from which on a result is stored in the bucket; by default only what the
            store does not take.
        region, endpoint_url, config, session: as for ``boto3.Session.client``; the config's retries are ignored.
        client: a ready-made client instead of these; it must not be used before a fork.
        credentials: static credentials, for stand-ins.

    Raises:
        ConfigurationError: the bucket has no name, or ``client`` is given beside what it contains.
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
        # Most stand-ins do not resolve a host name for each bucket.
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
        """Parse ``s3://BUCKET/PREFIX`` or ``BUCKET``; parameters are ``region``, ``endpoint_url``, ``above_bytes``.

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
                # The value may be a secret.
                msg = f"results bucket {parts.netloc!r}: {name}= is unknown, or its value is wrong; known are {known}"
                raise ConfigurationError(msg)
        return cls(parts.netloc, parts.path.lstrip("/"), **given)

    def __repr__(self) -> str:
        return f"S3Results({self.bucket!r}, {self.prefix!r} at {self._client!r})"

    @property
    def verifiable(self) -> bool:
        """Whether the bucket may be checked before a worker forks: not with a ready-made client."""
        return not self._client.ready_made

    def client(self) -> Any:
        """Return this process's boto3 client."""
        return self._client.client_of_this_process()

    def put(self, data: bytes, expires_at: float) -> str:
        """Write an object and return its address; an equal one is overwritten, so that its lifecycle age restarts.

        Args:
            data: the bytes.
            expires_at: when its record expires, in epoch seconds; noted in the object's metadata, for people.

        Returns:
            The object's address, ``s3://BUCKET/PREFIX/DIGEST``.

        Raises:
            StoreUnavailableError: a transient error: the network, throttling, the credentials; or no time is left.
            StoreMisconfiguredError: an error that is certain to stay until somebody acts.
        """
        digest = sha256(data)
        key = f"{self.prefix}{digest.hexdigest()}"
        with self._asking("PutObject", self.bucket) as request:
            answer = self.client().put_object(
                Bucket=self.bucket,
                Key=key,
                # Not the bytes themselves: Python expects a socket to take all of those within one time-out.
                Body=_Timely(data),
                ContentType="application/octet-stream",
                ChecksumSHA256=b64encode(digest.digest()).decode(),
                Metadata={"idempotency-expires": datetime.fromtimestamp(expires_at, UTC).isoformat(timespec="seconds")},
            )
            _check_own(answer, request)
        return f"s3://{self.bucket}/{key}"

    def get(self, address: str) -> bytes:
        """Read an object that `put` wrote to this bucket, whatever its prefix.

        Raises:
            ResultUnavailableError: the address is malformed or of another bucket; the object is gone, or was changed.
            StoreUnavailableError, StoreMisconfiguredError: as for `put`.
        """
        key = self._key(address)
        try:
            with self._asking("GetObject", self.bucket) as request:
                answer = self.client().get_object(Bucket=self.bucket, Key=key)
                _check_own(answer, request)
                data = _read(answer)
        except StoreError as error:
            if error_code(error) != _ABSENT:
                raise
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
        """Return the object key of an address; refuse one outside this bucket, which a forged record may hold."""
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

    def ask(self, operation: str, action: str) -> dict[str, Any]:
        """Send a request about the bucket as a whole, and return its answer; raises as `put`.

        Args:
            operation: the client's method, for example ``head_bucket``.
            action: the API action, for example ``HeadBucket``.
        """
        with self._asking(action, self.bucket):
            answer: dict[str, Any] = getattr(self.client(), operation)(Bucket=self.bucket)
        return answer

    @contextmanager
    def _asking(self, action: str, bucket: str) -> Iterator[Request]:
        client = self._client
        request = Request(S3, action, lambda: f"bucket {bucket!r} at {client!r}", lambda: client.provider)
        try:
            with translated(request):
                yield request
        except StoreError as error:
            if blames_credentials(error):
                self._client.refused()
            raise


def days_of(retention_seconds: float) -> int:
    """Return the minimum days of a lifecycle rule that outlasts a record: its retention, rounded up, plus one."""
    return ceil(retention_seconds / 86_400) + 1


class _Timely(BytesIO):
    """A request body that cannot be read once no time is left: a client's time-outs limit only each single wait."""

    def read(self, size: int | None = -1, /) -> bytes:
        _check_time()
        return super().read(size)


def _read(answer: dict[str, Any]) -> bytes | None:
    """Read an object's bytes; None if they are more than `MAX_RESULT_BYTES`."""
    data, body = BytesIO(), answer["Body"]
    if answer.get("ContentLength", 0) > MAX_RESULT_BYTES:
        body.close()
        return None
    # Up to the empty piece at the end: there botocore compares length and checksum.
    while piece := body.read(PIECE_BYTES):
        _check_time()
        data.write(piece)
        if data.tell() > MAX_RESULT_BYTES:
            body.close()
            return None
    return data.getvalue()


def _check_time() -> None:
    if time_left() <= 0:
        raise NoTimeLeftError("was broken off: no time is left for the rest of the object")


def _check_own(answer: dict[str, Any], request: Request) -> None:
    """Raise unless a success is S3's own (has an ETag): botocore accepts any page with status 200."""
    if "ETag" not in answer:
        msg = f"{request} was answered by what is not S3; fix the endpoint, or the gateway in between"
        raise StoreUnavailableError(msg)
