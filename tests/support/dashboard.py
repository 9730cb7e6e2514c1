"""The Grafana dashboard as the tests read it: its queries, with Grafana's variables filled in."""

import json
import re
from pathlib import Path

__all__ = ["DASHBOARD", "event_names", "metric_names", "queries"]

DASHBOARD = Path(__file__).parents[2] / "docs" / "grafana" / "idempotent-tasks.json"
#: What Grafana puts in at a reader's choice.
VARIABLES = {"$task": ".*", "$__rate_interval": "1m", "$__range": "5m"}


def queries() -> dict[str, str]:
    """Return every query of every panel in PromQL, by the panel's title and the query's letter."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    found = {f"{panel['title']} {target['refId']}": target["expr"] for panel in panels for target in panel["targets"]}
    return {name: _filled(query) for name, query in found.items()}


def metric_names() -> set[str]:
    """Return the names of the samples that the queries read."""
    return {name for query in queries().values() for name in re.findall(r"\bidempotent_tasks_\w+", query)}


def event_names() -> set[str]:
    """Return the values of the label ``event`` that the queries name."""
    named = [names for query in queries().values() for names in re.findall(r'event[=!]~?"([^"]*)"', query)]
    return {name for names in named for name in names.split("|")}


def _filled(query: str) -> str:
    for variable, value in VARIABLES.items():
        query = query.replace(variable, value)
    return query
