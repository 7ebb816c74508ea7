"""The kitchen of the demo: a recording composed from the clips in demo_data, and what glasses would see meanwhile.

What is heard when is known, as it is composed; what is seen are eight photographs that have nothing to do with it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Event

import numpy as np

from edgemem import tools
from edgemem.runtime.capture.audio import RATE_HZ, Block, Samples
from edgemem.runtime.capture.cameras.callable import CallableCamera
from edgemem.runtime.capture.cameras.opencv import Pixels, decode_image
from edgemem.runtime.capture.picture import Picture
from edgemem.runtime.capture.sources.pacing import Pace
from edgemem.runtime.capture.sources.sound_file import SoundFile
from edgemem.tools.capture_eval.plan import CROSSFADE, Background, Palette, Placed, StreamPlan
from edgemem.tools.capture_eval.sounds import trimmed
from edgemem.tools.capture_eval.stream import ComposedStream
from edgemem.tools.capture_timeline import Span

# What happens, in this order, and what is seen then. Hands are at work where something is seen.
_SCRIPT = (
    ("cupboard", "a-cup-of-coffee"),
    ("dog", ""),
    ("plates-1", "a-clock-on-the-wall"),
    ("speech", ""),
    ("cutlery-1", "a-ginger-cat"),
    ("blender", ""),
    ("drawer", "a-man-with-a-camera-on-a-tripod"),
    ("dishes", "a-brick-wall"),
    ("sneeze", ""),
    ("plates-2", "a-woman-in-a-space-suit"),
    ("cutlery-2", "a-rocket-on-its-pad"),
    ("sweeping", "grass"),
)
_BACKGROUND = "rain"
_PAUSE_S = (5.0, 11.0)
_SNR_DB = 26.0  # of the hands at work over rain outside: a quiet kitchen


@dataclass(frozen=True)
class Happening(Span):
    """seen: the name of an image."""

    seen: str


class Kitchen:
    """An AudioSource, the same for the same seed; `camera` sees what is there at the time."""

    name = "a composed kitchen"

    def __init__(self, seed: int = 0, *, speed: float | None = None) -> None:
        """speed: times real time; None for as fast as it is taken. Raises EngineError where a library is missing."""
        self._closed = Event()
        self._pace = Pace(speed, time.monotonic)
        self.happenings, plan = _planned(np.random.default_rng(seed))
        self.seconds = plan.length / RATE_HZ
        self._stream = ComposedStream(plan, Palette({}, (), (_clip(_BACKGROUND),)), _SNR_DB)
        self._images = {name: _image(name) for _, name in _SCRIPT if name}

    def pieces(self) -> Iterator[Block]:
        return self._pace.play(self._open_pieces(), self._closed.wait)

    def close(self) -> None:
        self._closed.set()

    def camera(self) -> CallableCamera:
        return CallableCamera(lambda at_s: self._images[self.seen_at(at_s)], "glasses")

    def caption(self, picture: Picture) -> str:
        """The name of the image; a model that describes pictures would stand here."""
        return self.seen_at(picture.at_s).replace("-", " ")

    def seen_at(self, at_s: float) -> str:
        """What is seen: that of the last hands at work, before the first of them that of the first."""
        scenes = [one for one in self.happenings if one.hands]
        begun = [one for one in scenes if one.start_s <= at_s]
        return (begun or scenes)[-1 if begun else 0].seen

    def _open_pieces(self) -> Iterator[Block]:
        for block in self._stream.pieces():
            if self._closed.is_set():
                return
            yield block


def _planned(random: np.random.Generator) -> tuple[tuple[Happening, ...], StreamPlan]:
    happenings, placed = [], []
    at = round(random.uniform(*_PAUSE_S) * RATE_HZ)
    for name, seen in _SCRIPT:
        samples = trimmed(_clip(name))
        end = at + len(samples)
        placed.append(Placed(name, at, end, (samples,)))
        happenings.append(Happening(name.partition("-")[0], at / RATE_HZ, end / RATE_HZ, bool(seen), seen))
        at = end + round(random.uniform(*_PAUSE_S) * RATE_HZ)
    return tuple(happenings), StreamPlan(at, tuple(placed), (Background(0, 0, 0, at + CROSSFADE),))


def _clip(name: str) -> Samples:
    blocks = SoundFile(_data("sounds", f"{name}.flac"), speed=None).pieces()
    return np.concatenate([block.samples for block in blocks if isinstance(block, Block)])


def _image(name: str) -> Pixels:
    path = _data("images", f"{name}.jpg")
    return decode_image(path.read_bytes(), path)


def _data(folder: str, name: str) -> Path:
    return Path(tools.__path__[0], "demo_data", folder, name)
