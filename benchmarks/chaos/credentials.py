"""Credentials that fail and rotate: the HTTP service that gives them to workers, and what DynamoDB says to old ones.

The service is the one of ECS and of EKS Pod Identity, which the AWS SDKs find by
``AWS_CONTAINER_CREDENTIALS_FULL_URI``.
"""

import json
import random
import re
import threading
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from math import inf
from typing import Final, assert_never

from benchmarks.chaos.plan import Deck, Plan
from tests.testbed.wire import Answer, Fault, Request

__all__ = ["CredentialAnswer", "CredentialFault", "Credentials", "credential_service", "refuse_rotated"]

#: How long the key of the beginning is said to live, and one that is given out too late; in seconds.
FIRST_LIFE_SECONDS: Final = 60.0
#: For so long after a rotation a part of the service does not know of it, and gives the old key to every other request.
LAG_SECONDS: Final = 0.5
#: How long ago a key has expired that is given out expired.
EXPIRED_SECONDS: Final = 60.0
PATH: Final = "/v1/credentials"

_KEY: Final = "ASIACHAOS"
_AUTHORIZATION: Final = re.compile(rf"Credential={_KEY}(\d+)/")
#: What a broken agent says with status 200; botocore finds no JSON, no credentials, or no time in it.
_GARBAGE: Final = (
    b"<html><body>Welcome to the portal</body></html>",
    b'{"AccessKeyId": "ASIACH',
    b'{"Code": "Failed", "Message": "made up by the chaos command"}',
)
#: The refusals of a key that is no longer good, and None: some of DynamoDB's hosts do not know yet.
_REFUSALS: Final = (
    ("UnrecognizedClientException", "The security token included in the request is invalid."),
    ("ExpiredTokenException", "The security token included in the request is expired"),
    None,
)


class CredentialFault(StrEnum):
    """What the service does in a time of trouble; the last one also for a moment after each rotation."""

    UNAVAILABLE = "credentials 503"
    #: It answers when the trouble is over.
    SLOW = "credentials slow"
    #: It answers 200, but not with credentials.
    GARBAGE = "credentials garbage"
    #: It gives credentials that have expired by their own account.
    EXPIRED = "credentials expired"
    #: It gives the key before the last rotation as if it were good.
    ROTATED_OUT = "credentials rotated out"


@dataclass(frozen=True, kw_only=True, slots=True)
class CredentialAnswer:
    """What the service answers to one request."""

    status: int
    body: bytes
    #: For how long it keeps the answer back.
    delay_seconds: float = 0.0


class Credentials:
    """The keys of one contender: which is good when, what the service answers, what DynamoDB does with an old one.

    Args:
        plan: its seed decides the sequence of faults, its rotations and troubles when there are any.
        elapsed: returns the seconds since the beginning.
    """

    def __init__(self, plan: Plan, elapsed: Callable[[], float]) -> None:
        self._elapsed = elapsed
        self._troubles = plan.troubles
        self._rotated_at = [rotation.at for rotation in plan.rotations]
        self._lives = [FIRST_LIFE_SECONDS, *(rotation.life_seconds for rotation in plan.rotations)]
        self._faults = Deck(random.Random(f"{plan.seed} credentials"), CredentialFault)
        self._lags = Deck(random.Random(f"{plan.seed} lags"), (True, False))
        self._garbage = Deck(random.Random(f"{plan.seed} garbage"), _GARBAGE)
        self._refusals = Deck(random.Random(f"{plan.seed} refusals"), _REFUSALS)
        self._lock = threading.Lock()
        #: How many answers of the service, and of DynamoDB, were which fault; how many rotations there were.
        self.counts: Counter[str] = Counter(dict.fromkeys(CredentialFault, 0))
        self.counts.update({refusal[0]: 0 for refusal in _REFUSALS if refusal})

    @property
    def rotations(self) -> int:
        """How many rotations there were until now, which is the number of the key that is good."""
        return self._rotations_at(self._elapsed())

    def answer(self) -> CredentialAnswer:
        """Return what the service answers now."""
        elapsed = self._elapsed()
        good = self._rotations_at(elapsed)
        ends = (each.at + each.seconds for each in self._troubles if each.at <= elapsed)
        trouble_seconds = max((end - elapsed for end in ends), default=0.0)
        with self._lock:
            fault = self._fault(elapsed, good, in_trouble=trouble_seconds > 0)
            garbage = self._garbage.deal() if fault is CredentialFault.GARBAGE else b""
        match fault:
            case CredentialFault.UNAVAILABLE:
                return CredentialAnswer(status=503, body=b"try later")
            case CredentialFault.GARBAGE:
                return CredentialAnswer(status=200, body=garbage)
            case CredentialFault.EXPIRED:
                return _given(good, -EXPIRED_SECONDS)
            case CredentialFault.ROTATED_OUT:
                return _given(good - 1, FIRST_LIFE_SECONDS)
            case CredentialFault.SLOW:
                return _given(good, self._lives[good], delay_seconds=trouble_seconds)
            case None:
                return _given(good, self._lives[good])
        assert_never(fault)

    def _rotations_at(self, elapsed: float) -> int:
        return bisect_right(self._rotated_at, elapsed)

    def _fault(self, elapsed: float, good: int, *, in_trouble: bool) -> CredentialFault | None:
        """Deal the fault of an answer, and count it."""
        rotated_at = self._rotated_at[good - 1] if good else -inf
        if in_trouble:
            fault = self._faults.deal()
        elif elapsed < rotated_at + LAG_SECONDS and self._lags.deal():
            fault = CredentialFault.ROTATED_OUT
        else:
            return None
        if fault is CredentialFault.ROTATED_OUT and not good:
            # Before the first rotation there is no older key.
            fault = CredentialFault.EXPIRED
        self.counts[fault] += 1
        return fault

    def refusal(self, authorization: str) -> Answer | None:
        """Return what DynamoDB answers to a request with this header; None where it takes the key."""
        signed_by = _AUTHORIZATION.search(authorization)
        if signed_by is None or int(signed_by[1]) >= self.rotations:
            return None
        with self._lock:
            refusal = self._refusals.deal()
            if refusal is None:
                return None
            code, message = refusal
            self.counts[code] += 1
        # As AWS's front end answers, which knows the keys: it is of another namespace than DynamoDB's own errors.
        body = json.dumps({"__type": f"com.amazon.coral.service#{code}", "message": message}).encode()
        return Answer(400, body, (("Content-Type", "application/x-amz-json-1.0"),))


def refuse_rotated(credentials: Credentials) -> Callable[[Request], Fault | None]:
    """Return what `Wire.decide_by` asks: it refuses requests that are signed with a key that is no longer good."""

    def decide(request: Request) -> Fault | None:
        refusal = credentials.refusal(request.headers.get("authorization", ""))
        return None if refusal is None else lambda _forward: refusal

    return decide


@contextmanager
def credential_service(credentials: Credentials) -> Iterator[str]:
    """Run the service for the length of a block and yield its address."""
    with _Server(credentials) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}{PATH}"
        finally:
            server.shutdown()


def _given(number: int, life_seconds: float, delay_seconds: float = 0.0) -> CredentialAnswer:
    expiration = datetime.now(UTC) + timedelta(seconds=life_seconds)
    given = {
        "AccessKeyId": f"{_KEY}{number:06d}",
        "SecretAccessKey": f"secret {number}",
        "Token": f"token-{number}",
        "Expiration": expiration.strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
    return CredentialAnswer(status=200, body=json.dumps(given).encode(), delay_seconds=delay_seconds)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    # A slow answer must not keep the run from ending.
    block_on_close = False
    request_queue_size = 128

    def __init__(self, credentials: Credentials) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.credentials = credentials


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, _Server)  # noqa: S101 - for the type checker
        answer = self.server.credentials.answer()
        time.sleep(answer.delay_seconds)
        # Who asked may have been killed meanwhile.
        with suppress(ConnectionError):
            self.send_response(answer.status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            self.wfile.write(answer.body)

    def log_message(self, *_: object) -> None:
        """Leave the terminal to the report."""
