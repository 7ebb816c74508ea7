"""Sounds as streams are composed of: trimmed to where they sound, their level known, steady ones told from the rest."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgemem.runtime.capture.audio import Samples

FRAME = 320  # samples of 20 ms, by which sounds are judged
STEADY = 0.9  # from this share of active frames on, a sound is steady
_ACTIVE_DB = 20.0  # a frame is active down to this much below the loud ones
_LOUD_PERCENTILE = 95
_SILENCE = 1e-6


@dataclass(frozen=True, eq=False)
class Sound:
    """kind: what is heard, a clip's class, or empty. hands: whether hands are at work in it. samples: (n,) float32."""

    kind: str
    hands: bool
    samples: Samples


def active_frames(samples: Samples) -> NDArray[np.bool_]:
    """(n // FRAME,), at least one: which are within 20 dB of the 95th percentile of all frames' levels."""
    frames = samples[: len(samples) // FRAME * FRAME].reshape(-1, FRAME).astype(np.float64)
    levels = np.sqrt((frames**2).mean(axis=1)) + _SILENCE
    active: NDArray[np.bool_] = levels >= np.percentile(levels, _LOUD_PERCENTILE) / 10 ** (_ACTIVE_DB / 20)
    return active


def active_share(samples: Samples) -> float:
    """Of its frames: near 1 for a fan, far from it for a bark."""
    return float(active_frames(samples).mean())


def trimmed(samples: Samples) -> Samples:
    """From its first active frame to its last: an event begins where its sound does."""
    first = int(np.flatnonzero(active_frames(samples))[0])
    return without_tail(samples)[first * FRAME :]


def without_tail(samples: Samples) -> Samples:
    """Up to the end of its last active frame."""
    last = int(np.flatnonzero(active_frames(samples))[-1])
    return samples[: (last + 1) * FRAME]


def active_level(samples: Samples) -> float:
    """Root mean square over the active frames, at least what counts as silence."""
    frames = samples[: len(samples) // FRAME * FRAME].reshape(-1, FRAME).astype(np.float64)
    return max(float(np.sqrt((frames[active_frames(samples)] ** 2).mean())), _SILENCE)


def level(samples: Samples) -> float:
    """Root mean square over all of it, at least what counts as silence."""
    return max(float(np.sqrt(np.square(samples, dtype=np.float64).mean())), _SILENCE)


def faded(samples: Samples, samples_in: int, samples_out: int) -> Samples:
    """A copy that rises from 0 and falls to 0 evenly, over at most half of it each."""
    result = np.array(samples, dtype=np.float32)
    rise, fall = min(samples_in, len(result) // 2), min(samples_out, len(result) // 2)
    result[:rise] *= np.linspace(0, 1, rise, endpoint=False, dtype=np.float32)
    result[len(result) - fall :] *= np.linspace(1, 0, fall, endpoint=False, dtype=np.float32)
    return result
