"""What the desk counts, for Prometheus. No text and no ids ever become a label."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0)
"""Upper bounds of the buckets: from a cached label on a fast CPU to the default deadline."""


class Metrics:
    """One registry per app, so that two apps in one process never share a count."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._accepted = self._counter("accepted", "Events received", "platform", "receipt")
        self._outcomes = self._counter("outcomes", "Customer messages settled", "outcome")
        self._moods = self._counter("moods", "Moods read", "label")
        self._deliveries = self._counter("deliveries", "Attempts to deliver", "platform", "result")
        self._ratings = self._counter("ratings", "Replies rated by customers", "platform", "rating")
        self._engine = Histogram(
            "frontdesk_engine_seconds", "Engine time per request", ["role"], buckets=_SECONDS, registry=self.registry
        )
        self._first_token = Histogram(
            "frontdesk_first_token_seconds", "Time to a reply's first token", buckets=_SECONDS, registry=self.registry
        )
        self._openings = self._counter("circuit_openings", "Times that the engine failed too often to be asked")
        self._circuit = Gauge(
            "frontdesk_circuit_open", "1 while the engine is not asked because it fails, else 0", registry=self.registry
        )
        self._queue_age = Gauge("frontdesk_queue_age_seconds", "Age of the oldest due job", registry=self.registry)
        self._open = Gauge("frontdesk_open_escalations", "Open calls for a human", registry=self.registry)

    def _counter(self, name: str, help_text: str, *labels: str) -> Counter:
        return Counter(f"frontdesk_{name}", help_text, labels, registry=self.registry)

    def accepted(self, platform: str, receipt: str) -> None:
        self._accepted.labels(platform, receipt).inc()

    def outcome(self, outcome: str) -> None:
        self._outcomes.labels(outcome).inc()

    def mood(self, label: str) -> None:
        self._moods.labels(label).inc()

    def delivery(self, platform: str, result: str) -> None:
        self._deliveries.labels(platform, result).inc()

    def rated(self, platform: str, rating: str) -> None:
        self._ratings.labels(platform, rating).inc()

    def engine(self, role: str, seconds: float) -> None:
        self._engine.labels(role).observe(seconds)

    def first_token(self, seconds: float) -> None:
        self._first_token.observe(seconds)

    def circuit(self, is_open: bool) -> None:
        """It changed."""
        self._openings.inc(is_open)
        self._circuit.set(is_open)

    def load(self, queue_age_s: float, open_escalations: int) -> None:
        self._queue_age.set(queue_age_s)
        self._open.set(open_escalations)

    def render(self) -> bytes:
        """The Prometheus text format."""
        return generate_latest(self.registry)
