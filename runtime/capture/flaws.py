"""Why sound is not to be believed, and how loud it is. No float makes these fail."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from edgemem.runtime.capture.audio import Samples

SILENT_DB = -120.0  # what level_db gives at least
_FULL_SCALE = 0.999
_LARGEST = 8.0  # sound files of floats may pass full scale, but not so
_CLIPPED_RUN = 3  # samples at full scale side by side; fewer are a peak
_CLIPPED_SHARE = 0.03  # loud knocks reach 0.01 in good recordings
_STEADY = 1e-5  # less than one step of 16 bits from lowest to highest: no living microphone


def flaw_of(samples: Samples) -> str | None:
    """samples: (n,), n > 0. "not finite", "out of range", "clipped", "constant", or None."""
    if not np.isfinite(samples).all():
        return "not finite"
    lowest, highest = float(samples.min()), float(samples.max())
    if max(-lowest, highest) > _LARGEST:
        return "out of range"
    if highest - lowest < _STEADY:
        return "constant"
    return "clipped" if clipped_share(samples) > _CLIPPED_SHARE else None


def clipped_share(samples: Samples) -> float:
    """Of samples (n,): the share that stands at full scale in runs of at least three."""
    full = np.abs(samples) >= _FULL_SCALE
    if not full.any():
        return 0.0
    lengths = _run_lengths(full)
    return float(lengths[lengths >= _CLIPPED_RUN].sum()) / len(samples)


def level_db(samples: Samples) -> float:
    """Root mean square of samples (n,) in decibels of full scale, those that are not finite left out; at least -120."""
    heard = samples[np.isfinite(samples)].astype(np.float64)
    power = float(np.mean(np.square(heard))) if len(heard) else 0.0
    return max(SILENT_DB, 10 * math.log10(power)) if power > 0 else SILENT_DB


def _run_lengths(marked: NDArray[np.bool_]) -> NDArray[np.int64]:
    """How long each run of marked samples is."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], marked, [False]))))
    return np.asarray(edges[1::2] - edges[::2], np.int64)
