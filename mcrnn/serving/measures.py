"""What the server measures of itself, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from mcrnn.serving.served_model import ServedModel

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Bounds of the histogram of durations."""


class Measures:
    """Counts requests and frames, and knows which version is served."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "mcrnn_requests",
            "Requests for forecasts, by kind of body and status.",
            ["kind", "status"],
            registry=self._registry,
        )
        self._seconds = Histogram(
            "mcrnn_request_seconds", "Duration of requests for forecasts.", buckets=SECONDS, registry=self._registry
        )
        self._frames = Counter("mcrnn_forecast_frames", "Frames that were forecast.", registry=self._registry)
        self._model = Gauge(
            "mcrnn_model_info",
            "1 for the model that is served.",
            ["model", "version", "digest"],
            registry=self._registry,
        )

    def count_request(self, kind: str, status: int, seconds: float) -> None:
        """Count a request that was answered."""
        self._requests.labels(kind, str(status)).inc()
        self._seconds.observe(seconds)

    def count_frames(self, frames: int) -> None:
        """Count frames that were forecast."""
        self._frames.inc(frames)

    def show_model(self, served: ServedModel) -> None:
        """Say which model is served now."""
        identity = served.identity
        self._model.clear()
        self._model.labels(identity["model"], identity.get("model_version", ""), identity["model_digest"]).set(1)

    def exposition(self) -> bytes:
        """Return everything in the text format of Prometheus."""
        return generate_latest(self._registry)
