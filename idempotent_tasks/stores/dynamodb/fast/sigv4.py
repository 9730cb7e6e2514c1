"""Signs requests with AWS Signature Version 4, like a request of boto3's that differs only in body, headers and time.

https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from hmac import digest
from typing import Any, Final, Self
from urllib.parse import urlsplit

from idempotent_tasks.core.clock import ServerClock

__all__ = ["DATE", "TOKEN", "Signer", "SigningTime"]

#: The headers with the time of the signature and with the session token of the credentials, in lower case.
DATE: Final = "x-amz-date"
TOKEN: Final = "x-amz-security-token"  # noqa: S105 - a name
_AUTHORIZATION: Final = re.compile(
    r"AWS4-HMAC-SHA256 Credential=(?P<access_key>[^/]+)/\d{8}/(?P<region>[^/]+)/(?P<service>[^/]+)/aws4_request, "
    r"SignedHeaders=(?P<signed>[^,]+), Signature=(?P<signature>[0-9a-f]{64})"
)
#: Errors that refuse a request for the time of its signature: by their code, or by their text.
#: https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-troubleshooting.html
_REFUSED_TIMES: Final = frozenset({"RequestExpired", "RequestInTheFuture", "RequestTimeTooSkewed"})
_REFUSED_TIME_TEXTS: Final = ("Signature expired", "Signature not yet current")
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}


class SigningTime:
    """The time to sign requests with: `ServerClock.now`, or `last_shown` once DynamoDB has refused a signature's time.

    Args:
        clock: DynamoDB's clock, which observes every answer, also refusals.
    """

    def __init__(self, clock: ServerClock) -> None:
        self._clock = clock
        #: Whether DynamoDB has refused a signature's time once.  Then each request is signed with the time of the last
        #: answer, also where boto3 sends it.
        self.refused = False

    def now(self) -> float:
        """Return the time in epoch seconds."""
        return self._clock.last_shown() if self.refused else self._clock.now()

    def monotonic(self) -> float:
        """Return seconds by a monotonic clock."""
        return self._clock.monotonic()

    def observe(self, answer: Mapping[str, Any]) -> None:
        """Set `refused` if DynamoDB's answer refuses a signature as expired or not yet valid."""
        error = answer.get("Error")
        if error is not None:
            text = str(error.get("Message", ""))
            if error.get("Code") in _REFUSED_TIMES or any(refused in text for refused in _REFUSED_TIME_TEXTS):
                self.refused = True


@dataclass(frozen=True, slots=True)
class Signer:
    """Signs requests with the access key, scope and signed headers of a request that boto3 signed."""

    access_key: str
    #: The signature's scope without the day: region, service and ``aws4_request``.
    scope: str
    #: The canonical request before the headers: method, path and the empty query.
    opening: str
    signed: tuple[str, ...]
    host: str
    #: The signing key of a day, by the day and the secret key it was derived from; kept out of the ``repr``.
    _keys: dict[tuple[str, str], bytes] = field(repr=False)

    @classmethod
    def from_request(cls, request: Any, headers: Mapping[str, str], credentials: Any) -> Self | None:
        """Return a signer that reproduces a request's signature; None where that is not possible.

        Args:
            request: a signed one (``botocore.awsrequest.AWSPreparedRequest``).
            headers: its headers by name in lower case.
            credentials: those that it was signed with.
        """
        found = _AUTHORIZATION.fullmatch(headers.get("authorization", ""))
        parts = urlsplit(request.url)
        if found is None or parts.query or DATE not in headers or not isinstance(request.body, bytes):
            return None
        default = parts.port in (None, _DEFAULT_PORTS.get(parts.scheme))
        name = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
        signer = cls(
            access_key=found["access_key"],
            scope=f"{found['region']}/{found['service']}/aws4_request",
            opening=f"{request.method}\n{parts.path or '/'}\n\n",
            signed=tuple(found["signed"].split(";")),
            host=f"{name}" if default else f"{name}:{parts.port}",
            _keys={},
        )
        known = {**headers, "host": signer.host}
        if not set(signer.signed) <= known.keys() or credentials.access_key != signer.access_key:
            return None
        same = signer.authorization(known, request.body, credentials.secret_key) == headers["authorization"]
        return signer if same else None

    def authorization(self, headers: Mapping[str, str], body: bytes, secret_key: str) -> str:
        """Return the value of a request's header ``Authorization``.

        Args:
            headers: the request's, by name in lower case, ``host`` and `DATE` among them.
            body: the request's.
            secret_key: the secret of `access_key`.
        """
        timestamp, names = headers[DATE], ";".join(self.signed)
        lines = "".join(f"{name}:{' '.join(headers[name].split())}\n" for name in self.signed)
        canonical = f"{self.opening}{lines}\n{names}\n{sha256(body).hexdigest()}"
        scope = f"{timestamp[:8]}/{self.scope}"
        text = f"AWS4-HMAC-SHA256\n{timestamp}\n{scope}\n{sha256(canonical.encode()).hexdigest()}"
        signature = digest(self._key(timestamp[:8], secret_key), text.encode(), "sha256").hex()
        return f"AWS4-HMAC-SHA256 Credential={self.access_key}/{scope}, SignedHeaders={names}, Signature={signature}"

    def _key(self, day: str, secret_key: str) -> bytes:
        known = self._keys.get((day, secret_key))
        if known is not None:
            return known
        key = f"AWS4{secret_key}".encode()
        for part in (day, *self.scope.split("/")):
            key = digest(key, part.encode(), "sha256")
        # Yesterday's key is not needed any more.
        self._keys.clear()
        self._keys[day, secret_key] = key
        return key
