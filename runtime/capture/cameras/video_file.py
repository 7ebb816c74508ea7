"""VideoFileCamera: the picture that a video shows at a time, as if it had been filmed while the audio was heard."""

from __future__ import annotations

import math
from pathlib import Path

from edgemem.runtime.capture.cameras.opencv import open_video
from edgemem.runtime.capture.picture import Picture
from edgemem.runtime.errors import FileError

_MOST_FRAMES = 1 << 31
_ROUNDING = 1e-6  # of a frame: a time that is a frame's own must not show the one before


class VideoFileCamera:
    """A Camera. The video and the audio begin together."""

    def __init__(self, path: Path) -> None:
        """Raises FileError for what is no video."""
        self.name = str(path)
        self._stream = open_video(path)
        rate, frames = self._stream.frames_per_s, self._stream.frames
        if not (0 < rate <= 1000 and 0 < frames <= _MOST_FRAMES):
            self._stream.close()
            got = f"{frames:g} frames, {rate:g} a second"
            raise FileError("the video does not say how long it is", where=path, got=got)
        self._rate, self._frames = rate, int(frames)

    def take(self, at_s: float) -> Picture:
        """What is shown at `at_s`. Raises FileError beyond the video's end, or where it is damaged."""
        frame = math.floor(max(0.0, at_s) * self._rate + _ROUNDING)
        if frame >= self._frames:
            got = f"a picture wanted at {at_s:.2f} s"
            raise FileError(f"the video ends at {self._frames / self._rate:.2f} s", where=self.name, got=got)
        pixels = self._stream.read() if self._stream.seek(frame) else None
        if pixels is None:
            raise FileError(f"the video shows nothing at {at_s:.2f} s", where=self.name, got="damaged data")
        return Picture(pixels, at_s)

    def sleep(self) -> None:
        pass

    def close(self) -> None:
        self._stream.close()
