"""STS, the container's and the instance's credential services in one real HTTP server, each as a test wants it."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import botocore.session
import pytest
from botocore.configprovider import BOTOCORE_DEFAUT_SESSION_VARIABLES

__all__ = ["ACCESS_KEY", "ROLE", "CredentialServices", "credential_services", "direct"]

#: What every service gives.
ACCESS_KEY = "ASIATESTING"
ROLE = "arn:aws:iam::123456789012:role/worker"
_NAMESPACE = "https://sts.amazonaws.com/doc/2011-06-15/"
_TIME = "%Y-%m-%dT%H:%M:%SZ"


@dataclass
class CredentialServices:
    """What the services answer, and what they were asked."""

    endpoint: str = ""
    #: Seconds for which credentials are good; below 10 minutes every request refreshes them first.
    lives_seconds: float = 60.0
    #: A status in place of a success, for all of them.
    status: int = 200
    #: The code of STS's refusal, beside a status.
    code: str = "MadeUp"
    #: Answers wait for this.
    go_on: threading.Event = field(default_factory=threading.Event)
    #: HTTP methods and paths, in the order of their arrival.
    requests: list[str] = field(default_factory=list)

    def expiration(self) -> str:
        """Return when what is given now ends."""
        return (datetime.now(UTC) + timedelta(seconds=self.lives_seconds)).strftime(_TIME)

    def json(self) -> bytes:
        """Return credentials as the metadata services of containers and instances do."""
        given = {"Code": "Success", "AccessKeyId": ACCESS_KEY, "SecretAccessKey": "secret", "Token": "token"}
        return json.dumps({**given, "Expiration": self.expiration()}).encode()

    def xml(self, action: str) -> bytes:
        """Return credentials as STS does."""
        return (
            f'<{action}Response xmlns="{_NAMESPACE}"><{action}Result><AssumedRoleUser><Arn>{ROLE}</Arn>'
            f"<AssumedRoleId>A:s</AssumedRoleId></AssumedRoleUser><Credentials><AccessKeyId>{ACCESS_KEY}</AccessKeyId>"
            f"<SecretAccessKey>secret</SecretAccessKey><SessionToken>token</SessionToken><Expiration>"
            f"{self.expiration()}</Expiration></Credentials></{action}Result><ResponseMetadata><RequestId>r</RequestId>"
            f"</ResponseMetadata></{action}Response>"
        ).encode()

    def refusal(self) -> bytes:
        """Return STS's error."""
        error = f"<Error><Type>Sender</Type><Code>{self.code}</Code><Message>words of STS</Message></Error>"
        return f'<ErrorResponse xmlns="{_NAMESPACE}">{error}<RequestId>r</RequestId></ErrorResponse>'.encode()


def direct(patch: pytest.MonkeyPatch, service: str, endpoint: str) -> None:
    """Have boto3 ask for a service at an endpoint, wherever it makes a client without naming one.

    Args:
        patch: for how long.
        service: by boto3's name.
        endpoint: the URL.
    """
    if "ignore_configured_endpoint_urls" in BOTOCORE_DEFAUT_SESSION_VARIABLES:
        patch.setenv(f"AWS_ENDPOINT_URL_{service.upper()}", endpoint)
        return
    # Before botocore 1.31 the environment names none.
    create = botocore.session.Session.create_client

    def create_there(session: Any, name: str, *args: Any, **kwargs: Any) -> Any:
        given = {**kwargs, "endpoint_url": kwargs.get("endpoint_url") or endpoint} if name == service else kwargs
        return create(session, name, *args, **given)

    patch.setattr(botocore.session.Session, "create_client", create_there)


@contextmanager
def credential_services() -> Iterator[CredentialServices]:
    """Run the services for the length of a block."""
    services = CredentialServices()
    services.go_on.set()
    with _Server(services) as server:
        services.endpoint = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        try:
            yield services
        finally:
            services.go_on.set()
            server.shutdown()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, services: CredentialServices) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.services = services


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path.endswith("/security-credentials/"):
            self._say(b"worker", b"")
        else:
            self._say(self._services.json(), b"try later")

    def do_PUT(self) -> None:
        self._say(b"token-of-imds", b"")

    def do_POST(self) -> None:
        asked = self.rfile.read(int(self.headers["Content-Length"])).decode()
        action = asked.partition("Action=")[2].partition("&")[0]
        self._say(self._services.xml(action), self._services.refusal())

    @property
    def _services(self) -> CredentialServices:
        assert isinstance(self.server, _Server)
        return self.server.services

    def _say(self, success: bytes, failure: bytes) -> None:
        services = self._services
        services.requests.append(f"{self.command} {self.path}")
        services.go_on.wait(30)
        body = success if services.status == 200 else failure
        # A client that gave the answer up has closed its end.
        with suppress(ConnectionError):
            self.send_response(services.status)
            self.send_header("Content-Type", "text/xml" if self.command == "POST" else "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, *_args: object) -> None:
        pass
