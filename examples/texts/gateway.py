"""A gateway for text messages in a process of its own: it takes no keys, and cannot be asked what it has sent.

What it was asked to send it sends, whatever becomes of whoever has asked.
"""

import json
import os
import time
from http import HTTPStatus
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

PORT = int(os.environ.get("GATEWAY_PORT", "8082"))
#: What arrives at telephones; only a person reads it.
SENT = Path(os.environ.get("SENT", "sent.txt"))
#: Seconds that the gateway takes to send, and after that to answer.
SEND_SECONDS = float(os.environ.get("SEND_SECONDS", "0.2"))
ANSWER_SECONDS = float(os.environ.get("ANSWER_SECONDS", "0.1"))
#: How many requests it refuses before it accepts one.
REFUSALS = int(os.environ.get("REFUSALS", "0"))
TIMEOUT_SECONDS = float(os.environ.get("TIMEOUT_SECONDS", "60"))


class Refused(Exception):  # noqa: N818 - it is the gateway's answer
    """The gateway has too much to do, and has sent nothing."""


def send(number: str, text: str) -> str:
    """Have a text sent and return the gateway's receipt.

    Raises:
        Refused: nothing was sent.
    """
    gateway = HTTPConnection("localhost", PORT, timeout=TIMEOUT_SECONDS)
    try:
        gateway.request("POST", f"/{number}", json.dumps({"text": text}))
        answer = gateway.getresponse()
        if answer.status == HTTPStatus.TOO_MANY_REQUESTS:
            raise Refused
        return str(json.loads(answer.read()))
    finally:
        gateway.close()


class Gateway(BaseHTTPRequestHandler):
    """The gateway's API."""

    refusals = REFUSALS

    def do_POST(self) -> None:
        """Send a text, or refuse to."""
        number = self.path.removeprefix("/")
        text = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["text"]
        if Gateway.refusals:
            Gateway.refusals -= 1
            print(f"refused {number}", flush=True)
            self._answer(HTTPStatus.TOO_MANY_REQUESTS, None)
            return
        print(f"asked to send to {number}", flush=True)
        time.sleep(SEND_SECONDS)
        with SENT.open("a") as sent:
            sent.write(f"to {number}: {text}\n")
        time.sleep(ANSWER_SECONDS)
        self._answer(HTTPStatus.OK, f"sent to {number}")

    def _answer(self, status: HTTPStatus, content: Any) -> None:
        try:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(content).encode())
        except OSError:
            pass  # whoever has asked is gone; the text is sent all the same


if __name__ == "__main__":
    print(f"gateway on port {PORT}", flush=True)
    ThreadingHTTPServer(("localhost", PORT), Gateway).serve_forever()
