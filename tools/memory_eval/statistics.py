"""Means and paired differences with intervals, by the percentile bootstrap over units. Pure functions of numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

RESAMPLES = 10_000
LEAST_UNITS = 5  # of fewer, an interval by resampling means little
Word = Literal["wins", "loses", "no difference", "too few units"]


@dataclass(frozen=True)
class Estimate:
    """low, high: the ends of the 95 % interval."""

    value: float
    low: float
    high: float


def mean(units: Sequence[float]) -> Estimate:
    """Of at least one unit. Of a single one nothing is known beyond itself, and the interval is a point."""
    values = np.array(units, dtype=np.float64)
    drawn = np.random.default_rng(0).integers(0, len(values), (RESAMPLES, len(values)))
    low, high = np.percentile(values[drawn].mean(axis=1), (2.5, 97.5))
    return Estimate(float(values.mean()), float(low), float(high))


def difference(ours: Sequence[float], theirs: Sequence[float]) -> Estimate:
    """Of the means, over pairs of the same unit. Raises ValueError for lists of different lengths."""
    return mean([our - their for our, their in zip(ours, theirs, strict=True)])


def word(found: Estimate, units: int, *, higher_is_better: bool) -> Word:
    """Whether the interval of a difference leaves out 0, and on which side."""
    if units < LEAST_UNITS:
        return "too few units"
    if found.low <= 0 <= found.high:
        return "no difference"
    return "wins" if (found.low > 0) == higher_is_better else "loses"
