"""From seconds to the table: rates, bytes a step, share of the read ceiling, and the ratio to llama.cpp."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from edgemem.profiles.table import markdown_table
from edgemem.profiles.units import size_text
from edgemem.tools.bench import compare
from edgemem.tools.peers.workload import SpeedTest

BASE = "llama.cpp"
HEADERS = (
    "model",
    "size",
    "runtime",
    "threads",
    "test",
    "t/s",
    "ms/step",
    "MB/step",
    "GB/s",
    "of read ceiling",
    f"ratio to {BASE} [95 %]",
)
Seconds = list[list[float]]  # by round, then repetition


@dataclass(frozen=True)
class Row:
    """One line of the table. step_*: of decode tests alone. ratio: how many times as fast as llama.cpp. failure: why
    there is no figure, or why some rounds are missing."""

    model: str
    size_bytes: int
    runtime: str
    threads: int
    test: str
    rate: float | None = None
    rate_std: float | None = None
    step_ms: float | None = None
    step_bytes: int | None = None
    bandwidth: float | None = None
    ceiling_share: float | None = None
    ratio: float | None = None
    ratio_interval: tuple[float, float] | None = None
    step_p99_over_median: float | None = None
    failure: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def cells(self) -> tuple[str, ...]:
        """The texts under HEADERS."""
        head = (self.model, size_text(self.size_bytes), self.runtime, str(self.threads), self.test)
        if self.rate is None:
            return (*head, *("–",) * (len(HEADERS) - 6), f"no figure: {self.failure}")
        ratio = "–"
        if self.ratio is not None and self.ratio_interval is not None:
            low, high = self.ratio_interval
            ratio = f"{self.ratio:.2f} [{low:.2f}, {high:.2f}]"
        return (
            *head,
            f"{self.rate:.1f} ± {self.rate_std:.1f}",
            "–" if self.step_ms is None else f"{self.step_ms:.2f}",
            "–" if self.step_bytes is None else f"{self.step_bytes / 1e6:.1f}",
            "–" if self.bandwidth is None else f"{self.bandwidth / 1e9:.1f}",
            "–" if self.ceiling_share is None else f"{self.ceiling_share:.0%}",
            ratio,
        )


def rates(test: SpeedTest, seconds: Seconds) -> tuple[float, float]:
    """Mean and standard deviation of tokens a second, over all repetitions of all rounds; 0 for a single one."""
    values = [test.tokens / value for round_ in seconds for value in round_]
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def speedup(
    ours: Mapping[int, list[float]], theirs: Mapping[int, list[float]]
) -> tuple[float, tuple[float, float]] | None:
    """How many times as fast we are, and its 95 % bootstrap interval, over the rounds that both finished.

    Keys are rounds. Rounds are resampled in pairs, then repetitions within them. None if there is no such round.
    """
    common = sorted(ours.keys() & theirs.keys())
    if not common:
        return None
    result = compare(np.array([ours[key] for key in common]), np.array([theirs[key] for key in common]))
    return result.ratio, result.interval


def decode_figures(
    test: SpeedTest, seconds: Seconds, step_bytes: int, ceiling: float | None
) -> dict[str, float | int | None]:
    """Milliseconds a step (median), its bytes, bytes a second and their share of the ceiling, in bytes a second."""
    step_s = statistics.median(value for round_ in seconds for value in round_) / test.steps
    bandwidth = step_bytes / step_s
    share = None if ceiling is None else bandwidth / ceiling
    return {"step_ms": 1e3 * step_s, "step_bytes": step_bytes, "bandwidth": bandwidth, "ceiling_share": share}


def markdown(rows: Sequence[Row]) -> str:
    return markdown_table(HEADERS, [row.cells() for row in rows])


def comma_separated(rows: Sequence[Row]) -> str:
    """One line a row with plain numbers, columns named as Row's fields."""
    out = io.StringIO()
    plain = [row.to_dict() for row in rows]
    for row in plain:
        low, high = row.pop("ratio_interval") or (None, None)
        row.update(ratio_low=low, ratio_high=high)
    writer = csv.DictWriter(out, list(plain[0]) if plain else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(plain)
    return out.getvalue()
