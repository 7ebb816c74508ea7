"""The speed of one answer, and how near it came to the measured read bandwidth."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from edgemem.profiles.bandwidth import measured_bandwidth
from edgemem.profiles.floors import Floors, footprint_bytes
from edgemem.runtime.errors import BudgetError
from edgemem.runtime.machine import usable_cores
from edgemem.runtime.manifest import Manifest
from edgemem.runtime.session import Session, Timings


@dataclass(frozen=True)
class Speed:
    """floors: of a decode step at the answer's mean length. read_bandwidth: bytes/s, None if not measured."""

    engine: str
    threads: int
    timings: Timings
    floors: Floors
    read_bandwidth: float | None = None

    def measured(self) -> Speed:
        """The same with the read bandwidth, measured now where there is memory for that."""
        try:
            return replace(self, read_bandwidth=measured_bandwidth(self.threads, self.engine))
        except BudgetError:
            return self

    @property
    def bandwidth(self) -> float:
        """Bytes a second that decoding streamed; nan before a second token."""
        return self.floors.streamed_bytes * self.timings.decode_tokens_per_second

    @property
    def bandwidth_share(self) -> float | None:
        return None if self.read_bandwidth is None else self.bandwidth / self.read_bandwidth

    def line(self) -> str:
        """One line for people, without what an answer this short cannot tell."""
        timings = self.timings
        reading = f"{self.bandwidth / 1e9:.1f} GB/s"
        if self.read_bandwidth is not None and self.bandwidth_share is not None:
            reading += f" = {self.bandwidth_share:.0%} of the measured {self.read_bandwidth / 1e9:.1f}"
        prompt_rate = timings.prefill_tokens_per_second
        parts = [
            (timings.decode_tokens_per_second, f"{timings.decode_tokens_per_second:.1f} tokens/s"),
            (prompt_rate, f"prompt {prompt_rate:.0f} tokens/s ({timings.prefill_tokens})"),
            (timings.time_to_first_token_ms, f"first token after {timings.time_to_first_token_ms:.0f} ms"),
            (self.floors.streamed_bytes, f"{self.floors.streamed_bytes / 1e6:.1f} MB/token"),
            (self.bandwidth, reading),
            (self.threads, f"{self.engine}, {self.threads} thread{'s' if self.threads > 1 else ''}"),
        ]
        return " | ".join(text for value, text in parts if math.isfinite(value))

    def to_dict(self) -> dict[str, Any]:
        """For JSON; a rate that an answer this short does not have is nan."""
        timings = self.timings
        return {
            "time_to_first_token_ms": timings.time_to_first_token_ms,
            "prefill_tokens_per_second": timings.prefill_tokens_per_second,
            "decode_tokens_per_second": timings.decode_tokens_per_second,
            "engine": self.engine,
            "prompt_tokens": timings.prompt_tokens,
            "bytes_per_token": self.floors.streamed_bytes,
            "read_bandwidth_gb_s": None if self.read_bandwidth is None else self.read_bandwidth / 1e9,
            "bandwidth_share": self.bandwidth_share,
            **self.floors.milliseconds(self.read_bandwidth),
            "threads": self.threads,
        }


class SpeedMeter:
    """Watches one answer. The bytes of its decode steps grow evenly, so the first and the last tell their mean."""

    def __init__(self, session: Session, manifest: Manifest, threads: int | None) -> None:
        """threads: as the session was opened with."""
        self._session, self._manifest, self._threads = session, manifest, threads or usable_cores()
        self._first: Floors | None = None

    def mark(self) -> None:
        """Call at each chunk; the first counts."""
        if self._first is None:
            self._first = self._now()

    def speed(self) -> Speed:
        """Of the answer that has ended."""
        last = self._now()
        first = self._first or last
        mean = Floors(
            (first.streamed_bytes + last.streamed_bytes) / 2, (first.footprint_bytes + last.footprint_bytes) / 2
        )
        return Speed(self._session.engine.name, self._threads, self._session.timings, mean)

    def _now(self) -> Floors:
        engine = self._session.engine
        return Floors(engine.traffic().total, footprint_bytes(self._manifest, engine.length, engine.name))
