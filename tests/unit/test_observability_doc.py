"""docs/how-to/observability.md says what there is: each event, field, level, metric, attribute, name and value."""

import logging
import re
from dataclasses import fields
from pathlib import Path

from prometheus_client import REGISTRY

from idempotent_tasks import events
from idempotent_tasks.observers import SHORT_NAMES, celery_events, prometheus_metrics
from idempotent_tasks.settings import _OFF, _ON, DISABLED_VARIABLE, PORT_VARIABLE

PAGE = (Path(__file__).parents[2] / "docs" / "how-to" / "observability.md").read_text()
OWN = {field.name for field in fields(events.Event)}


def table(heading: str) -> list[list[str]]:
    """Return the rows of the table whose first column has this heading and which comes first."""
    _, _, rest = PAGE.partition(f"\n| {heading} |")
    lines = rest.split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def names(cell: str) -> list[str]:
    """Return what stands in backquotes."""
    return re.findall(r"`([^`]+)`", cell)


def test_every_event_is_described_with_its_level_and_fields() -> None:
    """In the order of the code; a field that is added or renamed must be explained."""
    written = [(names(row[0])[0], row[1], names(row[2])) for row in table("event | level")]
    assert written == [
        (kind.__name__, logging.getLevelName(kind.level), [each.name for each in fields(kind) if each.name not in OWN])
        for kind in events.KINDS
    ]
    assert all(row[-1] for row in table("event | level"))


def test_every_common_field_is_described() -> None:
    """Those of all events."""
    assert [names(row[0])[0] for row in table("field")] == [field.name for field in fields(events.Event)]


def test_every_short_name_is_described() -> None:
    """And what it needs."""
    described = {names(row[0])[0].strip('"'): row[2] for row in table("name")}
    assert set(described) == {*SHORT_NAMES, "module:name"}
    assert "[prometheus]" in described["prometheus"]
    assert "[opentelemetry]" in described["opentelemetry"]


def test_every_celery_event_is_described() -> None:
    """The states by name, the others by their rule."""
    written = {names(row[0])[0]: names(row[1])[0] for row in table("event | Celery event") if names(row[0])}
    assert written == {kind.__name__: celery_events.event_type(kind) for kind in celery_events.STATES}
    assert names(table("event | Celery event")[-1][1]) == ["idempotency-", celery_events.event_type(events.Lost)]


def test_every_prometheus_metric_is_described() -> None:
    """Under the name that is scraped."""
    prometheus_metrics.observe(events.Lost(task="shop.page", task_id="4f1c", key="k", worker="w1@shop"))
    scraped = {
        f"{family.name}_total" if family.type == "counter" else family.name: family.type
        for family in REGISTRY.collect()
        if family.name.startswith("idempotent_tasks_")
    }
    assert {names(row[0])[0]: row[1] for row in table("metric | type")} == scraped


def test_the_kill_switch_is_described() -> None:
    """Its variable and its values, and the one of the port."""
    (sentence,) = re.findall(r"Both take (.+?);", PAGE, re.DOTALL)
    assert names(sentence) == [*_ON, *_OFF]
    assert f"{DISABLED_VARIABLE}=1" in PAGE
    assert f"{PORT_VARIABLE}=9464" in PAGE


def test_the_links_lead_somewhere() -> None:
    """Files are there, and so are headings."""
    headings = {heading.strip().lower().replace(" ", "-") for heading in re.findall(r"^#+ (.+)", PAGE, re.MULTILINE)}
    linked = re.findall(r"\]\(([^)]+)\)", PAGE)
    assert [each for each in linked if each.startswith("#") and each[1:] not in headings] == []
    folder = Path(__file__).parents[2] / "docs" / "how-to"
    assert [each for each in linked if not each.startswith(("#", "http")) and not (folder / each).exists()] == []
