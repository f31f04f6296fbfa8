"""The numbers of `GET /metrics`, for Prometheus.

Names of prompts are labels of metrics. They are those that the server has loaded, never what a
request wrote, so a client cannot make metrics without end.
"""

from collections import Counter as Counts
from collections.abc import Callable

import jax
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from spt_jax.serving.batcher import BatchReport

CONTENT_TYPE = CONTENT_TYPE_LATEST

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_COMPILED = "/jax/core/compile/backend_compile_duration"


class Telemetry:
    """Counters, gauges and histograms of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

        def make(kind, name: str, text: str, labels: tuple[str, ...] = (), **options):
            return kind(f"spt_jax_{name}", text, labels, registry=self.registry, **options)

        self.requests = make(Counter, "requests", "Requests.", ("route", "status"))
        self.latency = make(
            Histogram,
            "request_seconds",
            "Seconds from the head of a request to the end of its answer.",
            ("route",),
            buckets=_SECONDS,
        )
        self.rows = make(Counter, "rows", "Rows that were computed.", ("program", "prompt"))
        self.tokens = make(Counter, "tokens", "Tokens of texts and of answers.", ("kind",))
        self.batches = make(Counter, "batches", "Batches.", ("program",))
        self.batch_seconds = make(
            Histogram, "batch_seconds", "Seconds of a batch.", ("program",), buckets=_SECONDS
        )
        self.waited = make(
            Histogram, "queue_seconds", "Seconds that a first row waited.", buckets=_SECONDS
        )
        self.fill = make(
            Histogram,
            "batch_fill",
            "Share of the rows of a batch that are no padding.",
            buckets=tuple(eighth / 8 for eighth in range(1, 9)),
        )
        self.waiting = make(Gauge, "queue_rows", "Rows that wait.")
        self.compilations = make(Counter, "compilations", "Programs compiled or read from a cache.")
        jax.monitoring.register_event_duration_secs_listener(self._on_event)

    def watch_queue(self, waiting: Callable[[], int]) -> None:
        """Read the number of rows that wait from a function."""
        self.waiting.set_function(waiting)

    def on_batch(self, report: BatchReport) -> None:
        """Count a batch."""
        self.batches.labels(report.program).inc()
        self.batch_seconds.labels(report.program).observe(report.seconds)
        self.waited.observe(report.waited)
        self.fill.observe(len(report.prompts) / report.size)
        for name, rows in Counts(report.prompts).items():
            self.rows.labels(report.program, name or "").inc(rows)

    def on_request(self, route: str, status: int, seconds: float) -> None:
        """Count a request."""
        self.requests.labels(route, str(status)).inc()
        self.latency.labels(route).observe(seconds)

    def on_tokens(self, inputs: int, outputs: int) -> None:
        """Count tokens."""
        self.tokens.labels("input").inc(inputs)
        self.tokens.labels("output").inc(outputs)

    def text(self) -> bytes:
        """Return all numbers in the format of Prometheus."""
        return generate_latest(self.registry)

    def _on_event(self, event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event == _COMPILED:
            self.compilations.inc()
