"""A figure over the units of several streams, with its interval by the bootstrap over streams and the units in each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemem.tools.memory_eval.statistics import Estimate

RESAMPLES = 1000
Statistic = Callable[[NDArray[np.float64]], Any]
Units = Sequence[float] | NDArray[Any]


def pooled(streams: Sequence[Units], statistic: Statistic = np.mean) -> Estimate | None:
    """`statistic` of all units together; a stream without units takes no part. None where there are no units at all.

    Streams are drawn anew, then units in each: events of one stream have its background in common.
    """
    groups = [np.array(units, dtype=np.float64) for units in streams if len(units)]
    if not groups:
        return None
    random = np.random.default_rng(0)
    found = []
    for _ in range(RESAMPLES):
        drawn = [groups[index] for index in random.integers(0, len(groups), len(groups))]
        found.append(
            float(statistic(np.concatenate([units[random.integers(0, len(units), len(units))] for units in drawn])))
        )
    low, high = np.percentile(found, (2.5, 97.5))
    return Estimate(float(statistic(np.concatenate(groups))), float(low), float(high))
