"""Any bytes are a sound file whose blocks follow each other, or a FileError, at opening or where it is damaged."""

from __future__ import annotations

import io
import math
from pathlib import Path

import driver
import numpy as np
import soundfile

from edgemem.runtime.capture.audio import RATE_HZ, Block
from edgemem.runtime.capture.sources.sound_file import SoundFile
from edgemem.runtime.errors import FileError


def _seeds() -> list[bytes]:
    """Tenths of a second, in containers whose headers say what follows in different ways."""
    tone = 0.4 * np.sin(2 * np.pi * 440 * np.arange(800) / 8_000)
    seeds = []
    for container, encoding in (("WAV", "PCM_16"), ("WAV", "IMA_ADPCM"), ("FLAC", "PCM_16"), ("AIFF", "PCM_24")):
        file = io.BytesIO()
        soundfile.write(file, tone, 8_000, format=container, subtype=encoding)
        seeds.append(file.getvalue())
    return seeds


def fuzz_one_input(data: bytes) -> bool:
    with driver.in_memory_file(data) as descriptor:
        try:
            source = SoundFile(Path(f"/proc/self/fd/{descriptor}"), speed=None)
            end = 0
            for piece in source.pieces():
                if not isinstance(piece, Block) or piece.start != end or piece.samples.dtype != np.float32:
                    raise AssertionError(f"{piece} after a block that ended at {end}")
                end = piece.end
        except FileError:
            return False
    if math.isfinite(source.seconds) and abs(end - source.seconds * RATE_HZ) > 2:
        raise AssertionError(f"{source.seconds} s gave {end} samples")
    return True


SEEDS = _seeds()

if __name__ == "__main__":
    driver.main(fuzz_one_input, SEEDS)
