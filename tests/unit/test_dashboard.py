"""The Grafana dashboard names what there is."""

import json

from prometheus_client import REGISTRY

from idempotent_tasks import events
from idempotent_tasks.observers import prometheus_metrics
from tests.support.dashboard import DASHBOARD, event_names, metric_names, queries


def test_it_reads_metrics_that_the_observer_writes() -> None:
    """A metric that is renamed, or one that nobody looks at, is noticed."""
    prometheus_metrics.observe(
        events.Claimed(task="shop.board", task_id="4f1c", key="k", worker="w1@shop", fence=1, attempt=1)
    )
    families = [each for each in REGISTRY.collect() if each.name.startswith("idempotent_tasks_")]
    assert metric_names() <= {sample.name for family in families for sample in family.samples}
    assert {family.name for family in families if any(name.startswith(family.name) for name in metric_names())} == {
        family.name for family in families
    }


def test_it_names_events_that_there_are() -> None:
    """And every kind that is logged as a warning or an error has a number of its own."""
    kinds = {kind.__name__.lower(): kind for kind in events.KINDS}
    assert event_names() <= set(kinds)
    alarming = {name for name, kind in kinds.items() if kind.level > events.Event.level}
    alarmed = {
        name for name in kinds for title, query in queries().items() if f'"{name}"' in query and "Needs" in title
    }
    assert alarmed == alarming


def test_panels_do_not_lie_over_each_other() -> None:
    """Each has its place and a number of its own, and says what it shows."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    cells = [
        (place["x"] + right, place["y"] + down)
        for place in (panel["gridPos"] for panel in panels)
        for right in range(place["w"])
        for down in range(place["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(right for right, _ in cells) < 24
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert all(panel["description"].endswith(".") for panel in panels)
