"""Coverage against frames saved, over the trigger's threshold, beside periodic and random capture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from edgemem.runtime.capture.trigger import TriggerSettings
from edgemem.tools.capture_eval.figures import saved
from edgemem.tools.capture_eval.outcome import HeardStream, at_random, capture, periodic, waits

_OPEN_AT = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
_DRAWS = 50


@dataclass(frozen=True)
class CurvePoint:
    """At one threshold, on the streams of one mix: what is saved and covered, and what the baselines cover then."""

    mix: str
    open_at: float
    saved: float
    covered: float
    periodic: float
    random: float


def curve(streams: Sequence[HeardStream], settings: TriggerSettings, delay_s: float) -> list[CurvePoint]:
    """Of each mix in `streams`, over thresholds from low to high; close_at keeps its share of open_at."""
    points = []
    for mix in dict.fromkeys(heard.key.mix for heard in streams):
        alike = [heard for heard in streams if heard.key.mix == mix]
        for open_at in _OPEN_AT:
            close_at = open_at * settings.close_at / settings.open_at
            points.append(_point(alike, replace(settings, open_at=open_at, close_at=close_at), delay_s))
    return points


def _point(streams: Sequence[HeardStream], settings: TriggerSettings, delay_s: float) -> CurvePoint:
    ours: list[float] = []
    theirs: dict[str, list[float]] = {"periodic": [], "random": []}
    shares = []
    for heard in streams:
        captured = capture(heard, settings, delay_s)
        shares.append(saved(captured, settings.interval_s))
        ours += np.isfinite(waits(captured.frames_s, heard.events)).tolist()
        random = np.random.default_rng(0)
        for name, policy in (("periodic", periodic), ("random", at_random)):
            drawn = [policy(len(captured.frames_s), heard.seconds, random) for _ in range(_DRAWS)]
            theirs[name] += np.isfinite([waits(times, heard.events) for times in drawn]).mean(axis=0).tolist()
    return CurvePoint(
        streams[0].key.mix,
        settings.open_at,
        float(np.mean(shares)),
        float(np.mean(ours)),
        float(np.mean(theirs["periodic"])),
        float(np.mean(theirs["random"])),
    )
