"""What listening costs, as a process of its own finds it, and what that would be in energy by a user's own figures."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from edgemem.profiles.plain import from_plain, parse_json
from edgemem.profiles.process import run_process
from edgemem.runtime.errors import EngineError, SettingsError

_LIMIT_S = 300.0


@dataclass(frozen=True)
class Cost:
    """cpu_share: seconds of one core for a second of sound. hop_ms: from a window's end to its decision, median;
    late_hop_ms: the 99th percentile. base_bytes: resident with Python and NumPy alone; added_bytes: more than that,
    while listening. seconds: of sound that was heard."""

    seconds: float
    cpu_share: float
    hop_ms: float
    late_hop_ms: float
    base_bytes: int
    added_bytes: int


def measure_cost(seconds: float) -> Cost:
    """Of the shipped ear and head on noise, in a fresh process. Raises EngineError where that fails."""
    job = {"seconds": seconds}
    said = run_process([sys.executable, "-m", "edgemem.tools.capture_eval.listener"], job, _LIMIT_S + seconds)
    try:
        return from_plain(Cost, parse_json(said))
    except ValueError as problem:
        raise EngineError("the listener's process gave no figures", got=problem) from problem


@dataclass(frozen=True)
class Energy:
    """Costs that a user supplies. audio_mw: drawn by listening. frame_mj: for one frame, with what is done with it.
    camera_idle_mw: drawn by the camera between frames, whether it is woken or takes one after the other."""

    audio_mw: float
    frame_mj: float
    camera_idle_mw: float

    def __post_init__(self) -> None:
        for name in ("audio_mw", "frame_mj", "camera_idle_mw"):
            if not 0 <= getattr(self, name) <= 1e9:
                raise SettingsError(f"{name} is out of range", got=getattr(self, name), wanted="0 to 1e9")

    def joules_per_hour(self, frames_per_hour: float, *, listening: bool) -> float:
        drawn_mw = self.camera_idle_mw + (self.audio_mw if listening else 0.0)
        return (drawn_mw * 3600 + self.frame_mj * frames_per_hour) / 1000
