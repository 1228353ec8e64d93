"""Prometheus metrics: where time goes, what is refused, how full the store is. No label names a series or a person."""

from __future__ import annotations

from collections.abc import Callable
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

_SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)


class Metrics:
    """The metrics of one orchestrator, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._stages = Histogram(
            "medvl_stage_seconds",
            "Time of a stage of a request; of llm_* and segmenter_* the sum over parts that run side by side.",
            ("method", "stage"),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._requests = Counter(
            "medvl_requests", "Finished requests by gRPC code.", ("method", "code"), registry=self.registry
        )
        self._refusals = Counter(
            "medvl_refusals", "Requests that ended with an error, by its reason.", ("reason",), registry=self.registry
        )
        self._in_flight = Gauge("medvl_in_flight", "Requests at work.", ("method",), registry=self.registry)
        self._tokens = Counter("medvl_tokens", "Tokens of the language model.", ("kind",), registry=self.registry)
        self._received = Counter("medvl_received_bytes", "Bytes of voxels received.", registry=self.registry)
        self._serving = Gauge("medvl_serving", "1 while every canary is answered, else 0.", registry=self.registry)

    def watch(self, name: str, help_text: str, value: Callable[[], float]) -> None:
        """Add a gauge whose value is read when Prometheus asks."""
        Gauge(name, help_text, registry=self.registry).set_function(value)

    def begin(self, method: str) -> None:
        """Count a request as at work."""
        self._in_flight.labels(method).inc()

    def end(self, method: str, code: str, stages_ms: dict[str, float]) -> None:
        """Count a request as finished, with what its stages took."""
        self._in_flight.labels(method).dec()
        self._requests.labels(method, code).inc()
        for stage, ms in stages_ms.items():
            self._stages.labels(method, stage).observe(ms / 1e3)

    def refused(self, reason: str) -> None:
        """Count an error by its reason."""
        self._refusals.labels(reason).inc()

    def tokens(self, prompt: int, completion: int) -> None:
        """Count tokens of the language model."""
        self._tokens.labels("prompt").inc(prompt)
        self._tokens.labels("completion").inc(completion)

    def received(self, size_bytes: int) -> None:
        """Count voxels that came in."""
        self._received.inc(size_bytes)

    def serving(self, serving: bool) -> None:
        """Say whether every canary is answered."""
        self._serving.set(serving)

    def expose(self, port: int, host: str) -> WSGIServer:
        """Serve the metrics over HTTP from a thread; shut the returned server down to end it."""
        server, _ = start_http_server(port, host, registry=self.registry)
        return server
