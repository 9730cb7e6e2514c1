"""A bank in a process of its own: it takes no idempotency keys, and says whether it knows a transfer's reference.

What it was asked to transfer it transfers, whatever becomes of whoever has asked.
"""

import json
import os
import time
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

PORT = int(os.environ.get("BANK_PORT", "8081"))
STATEMENT = Path(os.environ.get("STATEMENT", "statement.txt"))
#: Seconds that the bank takes to transfer, after that to answer, and to look up a reference.
TRANSFER_SECONDS = float(os.environ.get("TRANSFER_SECONDS", "0.2"))
ANSWER_SECONDS = float(os.environ.get("ANSWER_SECONDS", "0.1"))
LOOKUP_SECONDS = float(os.environ.get("LOOKUP_SECONDS", "0.1"))
#: Seconds that a client waits for an answer.
TIMEOUT_SECONDS = float(os.environ.get("TIMEOUT_SECONDS", "10"))


def transfer(reference: str, cents: int) -> dict[str, Any]:
    """Ask the bank for a transfer and return it."""
    return _ask("POST", f"/transfers/{reference}", {"cents": cents})


def find(reference: str) -> dict[str, Any] | None:
    """Return the transfer of a reference, or None if the bank knows of none."""
    return _ask("GET", f"/transfers/{reference}") or None


def _ask(method: str, path: str, payload: Any = None) -> Any:
    bank = HTTPConnection("localhost", PORT, timeout=TIMEOUT_SECONDS)
    try:
        bank.request(method, path, json.dumps(payload))
        return json.loads(bank.getresponse().read())
    finally:
        bank.close()


def note(line: str) -> None:
    """Add a line to the statement."""
    with STATEMENT.open("a") as statement:
        statement.write(f"{line}\n")


class Bank(BaseHTTPRequestHandler):
    """The bank's API."""

    def do_POST(self) -> None:
        """Transfer."""
        reference = self.path.rpartition("/")[2]
        cents = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["cents"]
        note(f"asked for {reference}")
        time.sleep(TRANSFER_SECONDS)
        note(f"transferred {cents} for {reference}")
        time.sleep(ANSWER_SECONDS)
        self._answer({"reference": reference, "cents": cents})

    def do_GET(self) -> None:
        """Look up a reference."""
        reference = self.path.rpartition("/")[2]
        note(f"looks up {reference}")
        time.sleep(LOOKUP_SECONDS)
        lines = [line.split() for line in STATEMENT.read_text().splitlines()]
        found = [int(line[1]) for line in lines if line[0] == "transferred" and line[-1] == reference]
        self._answer({"reference": reference, "cents": found[0]} if found else {})

    def _answer(self, content: Any) -> None:
        try:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(content).encode())
        except OSError:
            pass  # whoever has asked is gone; what was transferred stays transferred


if __name__ == "__main__":
    print(f"bank on port {PORT}", flush=True)
    ThreadingHTTPServer(("localhost", PORT), Bank).serve_forever()
