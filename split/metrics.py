"""What a server tells of itself, in Prometheus' format. The one file that knows prometheus_client."""

from __future__ import annotations

from collections.abc import Callable

from edgemem.runtime.errors import LinkError, SettingsError

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Counters of one server. Raises SettingsError where the library is not installed."""

    def __init__(self) -> None:
        try:
            from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
        except ImportError as problem:
            do = 'pip install "edgemem-runtime[serve]"'
            raise SettingsError("serving needs prometheus_client", got=problem, do=do) from problem
        self._registry = registry = CollectorRegistry()
        self._sessions = Gauge("edgemem_split_sessions", "Sessions that are held", registry=registry)
        self._bytes = Gauge("edgemem_split_session_bytes", "Memory of the sessions held", registry=registry)
        self._refused = Counter("edgemem_split_refused", "Sessions refused", ["code"], registry=registry)
        self._operations = Counter("edgemem_split_operations", "Operations done", ["kind"], registry=registry)
        self._tokens = Counter("edgemem_split_tokens", "Tokens consumed", registry=registry)
        self._waited = Histogram(
            "edgemem_split_wait_seconds", "From a frame to its turn", buckets=_SECONDS, registry=registry
        )
        self._took = Histogram(
            "edgemem_split_compute_seconds", "From its turn to the reply", buckets=_SECONDS, registry=registry
        )

        self._batch = Histogram(
            "edgemem_split_batch_rows", "Sessions' rows of one pass", buckets=_ROWS, registry=registry
        )

    def holds(self, sessions: int, bytes_held: int) -> None:
        self._sessions.set(sessions)
        self._bytes.set(bytes_held)

    def refused(self, code: str) -> None:
        self._refused.labels(code).inc()

    def done(self, kind: str, tokens: int, waited_s: float, took_s: float) -> None:
        self._operations.labels(kind).inc()
        self._tokens.inc(tokens)
        self._waited.observe(waited_s)
        self._took.observe(took_s)

    def computed_together(self, rows: int) -> None:
        """Single rows of as many sessions, in one pass over the weights."""
        self._batch.observe(rows)

    def text(self) -> str:
        """All of it, as /metrics gives it."""
        from prometheus_client import generate_latest

        return generate_latest(self._registry).decode()

    def serve(self, port: int, host: str = "127.0.0.1") -> tuple[int, Callable[[], None]]:
        """Answer GET /metrics from a thread; the port, and what ends it. Raises LinkError where it cannot be had."""
        from prometheus_client import start_http_server

        try:
            server, thread = start_http_server(port, host, self._registry)
        except (OSError, OverflowError) as problem:  # the latter for a port that is none
            raise LinkError("the address for metrics cannot be had", where=f"{host}:{port}", got=problem) from problem

        def stop() -> None:
            server.shutdown()
            server.server_close()
            thread.join()

        return server.server_port, stop
