"""The whole sound of a clip, short enough to be held in memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgemem.runtime.capture.audio import Block, Samples
from edgemem.runtime.capture.sources.sound_file import SoundFile
from edgemem.runtime.errors import FileError

LEAST_S, MOST_S = 0.1, 60.0


def read_clip(path: Path) -> Samples:
    """(n,) float32, mono, RATE_HZ. Raises FileError for what is no sound of 0.1 to 60 s, or is not all finite."""
    sound = SoundFile(path, speed=None)
    if not LEAST_S <= sound.seconds <= MOST_S:
        got, wanted = f"{sound.seconds:.2f} s", f"{LEAST_S:g} to {MOST_S:g} s"
        raise FileError("a clip of the wrong length", where=path, got=got, wanted=wanted, do="cut it into pieces")
    samples = np.concatenate([piece.samples for piece in sound.pieces() if isinstance(piece, Block)])
    if not np.isfinite(samples).all():
        raise FileError("the sound holds NaN or Inf", where=path)
    return samples
