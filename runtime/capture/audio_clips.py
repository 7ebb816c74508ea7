"""AudioClips: short recordings around openings of the trigger, as WAV files. Made only where the user asked for it."""

from __future__ import annotations

import io
import os
import time
import wave
from collections import deque
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np

from edgemem.runtime.capture.audio import RATE_HZ, Block, Samples
from edgemem.runtime.errors import FileError
from edgemem.runtime.store.disk import RealDisk, write_whole

FOLDER = "audio"
_BEFORE, _AFTER = 3 * RATE_HZ, 2 * RATE_HZ
_MOST = 60 * RATE_HZ  # after the first opening of a clip: it is held in memory


class AudioClips:
    """Three seconds before an opening to two after it; 16 bits, mono, 16 kHz. One thread may use it."""

    def __init__(
        self, log_folder: Path, cap_bytes: int, *, days: float = 0.0, now: Callable[[], float] = time.time
    ) -> None:
        """cap_bytes: of all clips, beyond which the oldest go. days: that a clip is kept; 0: always. now: seconds since
        1970, for the names."""
        self.folder = log_folder / FOLDER
        self._cap_bytes, self._days, self._now = cap_bytes, days, now
        self._blocks: deque[Block] = deque()
        self._until: int | None = None  # the position up to which the clip that is wanted goes
        self._latest = 0  # and up to which openings may draw it out

    def hear(self, block: Block) -> Path | None:
        """The next block; the clip that is complete with it. Raises FileError where that cannot be written, and is gone
        then."""
        self._blocks.append(block)
        complete = self._until is not None and block.end >= self._until
        clip = self.finish() if complete else None
        while self._until is None and self._blocks[0].end <= block.end - _BEFORE:
            self._blocks.popleft()
        return clip

    def want(self, position: int) -> None:
        """A clip around this position; one that is not complete yet goes on instead, for a minute at most."""
        if self._until is None:
            self._latest = position + _MOST
        self._until = min(position + _AFTER, self._latest)

    def finish(self) -> Path | None:
        """Write what there is of a clip that is wanted, if one is. Raises FileError."""
        until, self._until = self._until, None
        if until is None or not self._blocks:
            return None
        name = f"{time.strftime('%Y-%m-%dT%H%M%S', time.gmtime(self._now()))}-{until}.wav"
        try:
            with closing(RealDisk(self.folder)) as disk:
                write_whole(disk, name, [_wav(np.concatenate([block.samples for block in self._blocks]))])
            self._prune()
        except OSError as problem:
            raise FileError("a recording cannot be written", where=self.folder, got=problem.strerror) from problem
        return self.folder / name

    def interrupt(self) -> Path | None:
        """Sound is missing from here on: a clip that is wanted ends, and none begins before. Raises FileError."""
        try:
            return self.finish()
        finally:
            self._blocks.clear()

    def _prune(self) -> None:
        held, oldest = 0, self._now() - 86400 * self._days if self._days else 0.0
        for clip in sorted(self.folder.glob("*.wav"), reverse=True):
            status = clip.stat()
            held += status.st_size
            if held > self._cap_bytes or status.st_mtime < oldest:
                os.unlink(clip)


def _wav(samples: Samples) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(RATE_HZ)
        heard = np.nan_to_num(samples, nan=0.0, posinf=1.0, neginf=-1.0).clip(-1.0, 1.0)
        writer.writeframes((heard * 32767).astype("<i2").tobytes())
    return file.getvalue()
