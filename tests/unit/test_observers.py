"""The observers for Prometheus and OpenTelemetry, with the real libraries; and the names that choose observers."""

import builtins
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from celery import Celery
from celery.events.state import State
from opentelemetry import metrics, trace
from opentelemetry.instrumentation.celery import CeleryInstrumentor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import HistogramDataPoint, InMemoryMetricReader, NumberDataPoint
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import REGISTRY

from idempotent_tasks import ConfigurationError, events
from idempotent_tasks.observers import SHORT_NAMES, celery_events, opentelemetry_api, prometheus_metrics
from idempotent_tasks.settings import settings_of
from idempotent_tasks.testing import MemoryStore
from tests.support.shop import Shop
from tests.unit.test_events import NAMED, SAMPLES

#: A name of its own: the metrics of a process are everybody's.
TASK: dict[str, Any] = {**NAMED, "task": "shop.observed"}
REPLAYED = events.Replayed(**TASK, holder_task_id="77aa", age_seconds=12.5)
COMMITTED = events.Committed(**TASK, fence=9, replayable=True, seconds=1.5)


def sample(name: str, **labels: str) -> float:
    """Return what Prometheus would scrape."""
    return REGISTRY.get_sample_value(name, {"task": "shop.observed", **labels}) or 0.0


class TestPrometheus:
    """``idempotent_tasks.observers.prometheus_metrics``."""

    def test_events_are_counted_by_task_and_kind(self) -> None:
        """Twice is two; a key or a task id is no label."""
        before = sample("idempotent_tasks_events_total", event="replayed")
        prometheus_metrics.observe(REPLAYED)
        prometheus_metrics.observe(REPLAYED)
        assert sample("idempotent_tasks_events_total", event="replayed") == before + 2

    def test_times_are_measured(self) -> None:
        """How long runs take from claim to commit, and how old replays are."""
        runs, ages = sample("idempotent_tasks_run_seconds_sum"), sample("idempotent_tasks_replay_age_seconds_sum")
        prometheus_metrics.observe(COMMITTED)
        prometheus_metrics.observe(REPLAYED)
        prometheus_metrics.observe(events.Replayed(**TASK, holder_task_id=None, age_seconds=None))
        assert sample("idempotent_tasks_run_seconds_sum") == runs + 1.5
        assert sample("idempotent_tasks_replay_age_seconds_sum") == ages + 12.5

    def test_crashes_and_deferrals_are_measured(self) -> None:
        """How many claims were no first try, and how often messages were put off."""
        attempts, deferrals = sample("idempotent_tasks_attempts_sum"), sample("idempotent_tasks_deferrals_sum")
        prometheus_metrics.observe(events.Claimed(**TASK, fence=9, attempt=3))
        prometheus_metrics.observe(events.Deferred(**TASK, countdown_seconds=1.25, reason="busy", deferrals=4))
        prometheus_metrics.observe(events.Released(**TASK, reason="Retry"))
        assert sample("idempotent_tasks_attempts_sum") == attempts + 3
        assert sample("idempotent_tasks_deferrals_sum") == deferrals + 4

    @pytest.mark.parametrize("end", ["Committed", "Released", "Superseded", "Unrecorded", "Lost"])
    def test_claims_in_flight(self, end: str) -> None:
        """Each claim counts once until its run ends, or it is lost; ends of claims elsewhere change nothing."""
        (ending,) = [event for event, _ in SAMPLES if type(event).__name__ == end]
        one, other = (replace(ending, task="shop.observed", task_id=task_id) for task_id in ("one", "other"))
        prometheus_metrics.observe(other)
        for _ in range(2):
            prometheus_metrics.observe(events.Claimed(**{**TASK, "task_id": "one"}, fence=9, attempt=1))
        assert sample("idempotent_tasks_claims_in_flight") == 1
        prometheus_metrics.observe(other)
        assert sample("idempotent_tasks_claims_in_flight") == 1
        prometheus_metrics.observe(one)
        prometheus_metrics.observe(one)
        assert sample("idempotent_tasks_claims_in_flight") == 0

    @pytest.mark.parametrize("name", ["commit", "release"])
    def test_a_claim_that_was_lost_is_not_in_flight(self, shop: Shop, store: MemoryStore, name: str) -> None:
        """The end of a run whose claim another has, or whose record is gone, is counted like any other."""
        shop.app.conf.idempotency_observers = ["prometheus"]

        def flights() -> float:
            return REGISTRY.get_sample_value("idempotent_tasks_claims_in_flight", {"task": "shop.charge"}) or 0.0

        def body(task: Any) -> None:
            seen.append(flights())
            store.release(task.idempotency.claim, "by hand")
            if name == "release":
                raise KeyError

        shop.sells(body)
        seen: list[float] = []
        before = flights()
        shop.deliver()
        assert (seen, flights()) == ([before + 1], before)

    def test_every_kind_is_taken(self) -> None:
        """No event is too odd to count."""
        for event, _ in SAMPLES:
            prometheus_metrics.observe(event)


@pytest.fixture(scope="module")
def spans() -> InMemorySpanExporter:
    """The spans that end in this process."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    return exporter


@pytest.fixture(scope="module")
def measured() -> Iterator[InMemoryMetricReader]:
    """What is measured in this process."""
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    metrics.set_meter_provider(provider)
    yield reader
    provider.shutdown()


class TestOpenTelemetry:
    """``idempotent_tasks.observers.opentelemetry_api``, seen by the SDK."""

    def test_the_tasks_span_tells_of_a_replay(self, spans: InMemorySpanExporter) -> None:
        """An event with its fields, and attributes to search for."""
        with trace.get_tracer("tests").start_as_current_span("run/shop.observed"):
            opentelemetry_api.observe(REPLAYED)
        span = spans.get_finished_spans()[-1]
        (event,) = span.events
        assert event.name == "idempotency.replayed"
        assert event.attributes is not None
        assert event.attributes["idempotency.age_seconds"] == 12.5
        assert span.attributes is not None
        assert dict(span.attributes) == {"idempotency.key": "shop.charge#17", "idempotency.outcome": "replayed"}

    def test_what_follows_does_not_hide_the_outcome(self, spans: InMemorySpanExporter) -> None:
        """Whoever looks for runs of a second attempt, or for what was committed, finds them by an attribute."""
        with trace.get_tracer("tests").start_as_current_span("run/shop.observed"):
            for event in (events.Claimed(**TASK, fence=9, attempt=2), COMMITTED, events.Dispatched(**TASK)):
                opentelemetry_api.observe(event)
        span = spans.get_finished_spans()[-1]
        assert [each.name.partition(".")[2] for each in span.events] == ["claimed", "committed", "dispatched"]
        assert span.attributes is not None
        assert (span.attributes["idempotency.attempt"], span.attributes["idempotency.outcome"]) == (2, "committed")

    def test_a_crash_loop_is_found(self, spans: InMemorySpanExporter, shop: Shop, store: MemoryStore) -> None:
        """The release that follows does not make it one of many."""
        shop.app.conf.idempotency_observers = ["opentelemetry"]
        shop.sells(lambda task: 17, idempotency={"max_crashes": 1})
        store.release(shop.claim_elsewhere(), "WorkerLostError", crashed=True)
        with trace.get_tracer("tests").start_as_current_span("run/shop.looping"):
            shop.deliver()
        span = spans.get_finished_spans()[-1]
        assert [each.name.partition(".")[2] for each in span.events] == ["crashlooped", "released"]
        assert span.attributes is not None
        assert span.attributes["idempotency.outcome"] == "crashlooped"

    def test_the_span_is_the_one_of_celerys_instrumentation(self, spans: InMemorySpanExporter, shop: Shop) -> None:
        """The duplicate's own span says that it was a replay."""
        shop.app.conf.idempotency_observers = ["opentelemetry"]
        shop.sells(lambda task: 17)
        instrumentor = CeleryInstrumentor()  # type: ignore[no-untyped-call]
        instrumentor.instrument()
        try:
            for _ in range(2):
                shop.deliver()
        finally:
            instrumentor.uninstrument()
        ran = [each for each in spans.get_finished_spans() if each.name == "run/shop.charge"]
        outcomes = [(each.attributes or {}).get("idempotency.outcome") for each in ran]
        assert outcomes == ["committed", "replayed"]

    def test_nothing_is_traced_outside_a_span(self, spans: InMemorySpanExporter) -> None:
        """Nor does it fail, whatever the event."""
        spans.clear()
        for event, _ in SAMPLES:
            opentelemetry_api.observe(event)
        assert spans.get_finished_spans() == ()

    def test_events_and_times_are_measured(self, measured: InMemoryMetricReader) -> None:
        """A counter by task and kind, and a histogram of seconds."""
        opentelemetry_api.observe(COMMITTED)
        data = measured.get_metrics_data()
        assert data is not None
        found = {each.name: each for scope in data.resource_metrics[0].scope_metrics for each in scope.metrics}
        (point,) = [
            each
            for each in found["idempotent_tasks.events"].data.data_points
            if each.attributes == {"celery.task_name": "shop.observed", "idempotency.event": "committed"}
        ]
        assert isinstance(point, NumberDataPoint)
        assert point.value >= 1
        durations = found["idempotent_tasks.run.duration"]
        assert durations.unit == "s"
        assert any(isinstance(each, HistogramDataPoint) and each.sum >= 1.5 for each in durations.data.data_points)


class TestCeleryEvents:
    """``idempotent_tasks.observers.celery_events``, as the model of Celery's monitors takes them."""

    @pytest.mark.parametrize(("event", "level"), SAMPLES, ids=[type(event).__name__ for event, _ in SAMPLES])
    def test_only_what_celery_does_not_show_is_a_state(self, event: events.Event, level: int) -> None:
        """A task that runs again after a release is shown as started, not as released indefinitely."""
        state, told = State(), {"uuid": "4f1c", "hostname": "w1@shop", "pid": 1, "utcoffset": 0}
        kinds = ["task-received", "task-started", celery_events.event_type(type(event)), "task-started"]
        for clock, kind in enumerate(kinds, 1):
            state.event(
                {**told, "type": kind, "timestamp": float(clock), "local_received": float(clock), "clock": clock}
            )
        name = type(event).__name__
        assert state.tasks["4f1c"].state == (name.upper() if name in {"Replayed", "Deferred", "Skipped"} else "STARTED")
        assert list(state.workers) == ["w1@shop"]


class TestNames:
    """``idempotency_observers``."""

    @pytest.mark.parametrize("name", SHORT_NAMES)
    def test_short_names(self, app: Celery, name: str) -> None:
        """Each stands for an observer that can be imported."""
        app.conf.idempotency_observers = [name]
        assert settings_of(app)

    @pytest.mark.parametrize(
        ("name", "module"), [("prometheus", "prometheus_client"), ("opentelemetry", "opentelemetry")]
    )
    def test_a_missing_extra_is_named(
        self, app: Celery, monkeypatch: pytest.MonkeyPatch, name: str, module: str
    ) -> None:
        """The error says what to install."""
        real = builtins.__import__

        def missing(wanted: str, *more: Any) -> Any:
            if wanted.partition(".")[0] == module:
                raise ModuleNotFoundError(f"No module named {wanted!r}", name=wanted)
            return real(wanted, *more)

        observer = SHORT_NAMES[name].partition(":")[0]
        monkeypatch.delitem(sys.modules, observer)
        monkeypatch.setattr(builtins, "__import__", missing)
        app.conf.idempotency_observers = [name]
        with pytest.raises(ConfigurationError, match=f"pip install {module.replace('_', '-')}"):
            settings_of(app)

    def test_an_unknown_name(self, app: Celery) -> None:
        """The error lists the short names."""
        app.conf.idempotency_observers = ["grafana"]
        with pytest.raises(ConfigurationError, match="short names are log, celery, opentelemetry, prometheus"):
            settings_of(app)
