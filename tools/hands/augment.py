"""Takes of a clip as other moments, rooms and microphones would have it: later, over a background, noisy, at another
level. Levels are drawn alike for hands and background, so that loudness tells nothing. Pure functions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgemem.runtime.capture.audio import RATE_HZ, Samples
from edgemem.tools.hands.settings import TrainSettings

_SILENCE = 1e-5  # level of a sound that is none
_CEILING = 0.99


@dataclass(frozen=True, eq=False)
class Take:
    """samples: what is heard. alone: the clip in it without what was added, at its own level. Of equal length."""

    samples: Samples
    alone: Samples


def level(samples: NDArray[np.floating]) -> float:
    """Root mean square, at least what counts as silence."""
    return max(float(np.sqrt(np.square(samples, dtype=np.float64).mean())), _SILENCE)


def take(sound: Samples, under: Samples | None, settings: TrainSettings, random: np.random.Generator) -> Take:
    """under: the background to lay below it, looped from a random place."""
    lead = round(random.uniform(0, settings.lead_s) * RATE_HZ)
    alone = np.concatenate([np.zeros(lead, np.float32), sound])
    mixed = alone.astype(np.float64)
    if under is not None:
        below = under[(int(random.integers(len(under))) + np.arange(len(mixed))) % len(under)]
        mixed += below * (level(sound) / level(under) / _ratio(settings.snr_db, random))
    mixed += random.standard_normal(len(mixed)) * level(mixed) * _ratio(settings.noise_db, random)
    mixed *= _ratio(settings.level_db, random) / level(mixed)
    peak = float(np.abs(mixed).max())
    return Take((mixed * min(1.0, _CEILING / peak)).astype(np.float32), alone)


def _ratio(decibels: tuple[float, float], random: np.random.Generator) -> float:
    return float(10 ** (random.uniform(*decibels) / 20))
