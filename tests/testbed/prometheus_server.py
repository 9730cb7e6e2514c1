"""A Prometheus from its package that scrapes one target, and answers queries."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

from tests.support.services import unavailable
from tests.testbed.processes import child, free_port, listening
from tests.testbed.waiting import wait_for

__all__ = ["Prometheus", "prometheus_scraping"]

START_SECONDS = 20.0
CONFIGURATION = """\
global: {{scrape_interval: 500ms, scrape_timeout: 500ms}}
scrape_configs: [{{job_name: worker, static_configs: [{{targets: ["127.0.0.1:{port}"]}}]}}]
"""


@dataclass(frozen=True)
class Prometheus:
    """A running server."""

    url: str

    def query(self, promql: str) -> list[float]:
        """Return the values of an instant query, one for each series."""
        return [float(each["value"][1]) for each in self._get("query", query=promql)["result"]]

    def label_values(self, label: str, metric: str) -> list[str]:
        """Return what a dashboard's ``label_values(metric, label)`` offers."""
        values: list[str] = self._get(f"label/{label}/values", **{"match[]": metric})
        return values

    def _get(self, path: str, **parameters: str) -> Any:
        # A refused query is an HTTPError, whose body names the mistake.
        with urlopen(f"{self.url}/api/v1/{path}?{urlencode(parameters)}", timeout=START_SECONDS) as answer:
            return json.load(answer)["data"]


@contextmanager
def prometheus_scraping(port: int, directory: Path) -> Iterator[Prometheus]:
    """Run a server that scrapes a port of this machine twice a second, for the length of a block."""
    executable = shutil.which("prometheus")
    if executable is None:
        unavailable("Prometheus", "no prometheus on the PATH", "apt-get install --no-install-recommends prometheus")
    own = free_port()
    configuration = directory / "prometheus.yml"
    configuration.write_text(CONFIGURATION.format(port=port))
    command = [
        executable,
        f"--config.file={configuration}",
        f"--storage.tsdb.path={directory / 'tsdb'}",
        f"--web.listen-address=127.0.0.1:{own}",
    ]
    with child(command, directory / "prometheus.log") as server:
        wait_for(lambda: listening(own), START_SECONDS, lambda: f"Prometheus did not start:\n{server.tail()}")
        yield Prometheus(f"http://127.0.0.1:{own}")
