"""Percentile bootstrap over levels: sessions (fresh processes), blocks within a session, steps within a block."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
Interval = tuple[float, float]


def resampled_medians(samples: Sequence[Sequence[float]]) -> NDArray[np.float64]:
    """(rows, RESAMPLES): bootstrapped medians of each row of samples. The same on every call."""
    random = np.random.default_rng(0)
    rows = []
    for values in samples:
        drawn = random.integers(0, len(values), (RESAMPLES, len(values)))
        rows.append(np.median(np.array(values)[drawn], axis=1))
    return np.array(rows)


def medians_of_drawn(values: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    """(resamples,): medians over rows drawn anew, of each one of its own resamples; `values` is (rows, resamples)."""
    random = np.random.default_rng(seed)
    rows, resamples = values.shape
    chosen = random.integers(0, rows, (resamples, rows))
    inner = random.integers(0, resamples, (resamples, rows))
    medians: NDArray[np.float64] = np.median(values[chosen, inner], axis=1)
    return medians


def interval(values: NDArray[np.float64]) -> Interval:
    """The 95 % percentile interval of the median over sessions; `values` is (sessions, resamples of each)."""
    low, high = np.percentile(medians_of_drawn(values, 1), (2.5, 97.5))
    return float(low), float(high)
