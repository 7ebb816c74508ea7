"""What happens in a stream, and when: events of hands at work, other sounds that pass, backgrounds. No sound yet.

Times are in samples. What is planned here is made into sound in stream.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgemem.runtime.capture.audio import RATE_HZ, Samples
from edgemem.runtime.errors import SettingsError
from edgemem.tools.capture_eval.sounds import FRAME, STEADY, Sound, active_share, trimmed, without_tail

SHORTEST_S, LONGEST_S = 3.0, 20.0  # of an event
PASSING_PER_HOUR = 30.0
_LEAST_PAUSE_S = 3.0  # between an event or a passing sound and the next
_BACKGROUND_S = (45.0, 120.0)
CROSSFADE = 2 * RATE_HZ
_LEAST_CLIP = 5 * FRAME  # less than this of a clip is no sound of anything


@dataclass(frozen=True, eq=False)
class Palette:
    """What a stream is made of. hands: by kind, trimmed. passing: other sounds that come and go, trimmed. steady: those
    that backgrounds are made of."""

    hands: dict[str, tuple[Samples, ...]]
    passing: tuple[Samples, ...]
    steady: tuple[Samples, ...]


@dataclass(frozen=True, eq=False)
class Placed:
    """Clips that follow each other without a pause from `start` to `end`. kind: of an event, "" for a passing sound."""

    kind: str
    start: int
    end: int
    clips: tuple[Samples, ...]


@dataclass(frozen=True)
class Background:
    """Which of the steady sounds, looped from `phase`, is heard from `start` to `end`; neighbours overlap."""

    steady: int
    phase: int
    start: int
    end: int


@dataclass(frozen=True, eq=False)
class StreamPlan:
    """length: of the whole. placed: events and passing sounds in order of time, none of which touch."""

    length: int
    placed: tuple[Placed, ...]
    backgrounds: tuple[Background, ...]

    @property
    def events(self) -> tuple[Placed, ...]:
        return tuple(one for one in self.placed if one.kind)


def palette(sounds: Sequence[Sound]) -> Palette:
    """Raises SettingsError where there are no hands at work, or nothing else."""
    hands: dict[str, list[Samples]] = {}
    for sound in sounds:
        if sound.hands:
            hands.setdefault(sound.kind or "hands", []).append(trimmed(sound.samples))
    others = [sound.samples for sound in sounds if not sound.hands]
    if not hands or not others:
        what = "background" if hands else "hands at work"
        raise SettingsError("a stream needs more clips", got=f"{len(sounds)} clips, none of {what}")
    least = min(STEADY, max(map(active_share, others)))  # without a steady one, the steadiest is the background
    steady = tuple(samples for samples in others if active_share(samples) >= least)
    passing = tuple(trimmed(samples) for samples in others if active_share(samples) < least)
    return Palette({kind: tuple(hands[kind]) for kind in sorted(hands)}, passing, steady)


def plan_stream(palette: Palette, seconds: float, share: float, random: np.random.Generator) -> StreamPlan:
    """A stream in which hands are at work for about `share` of the time, in events of 3 to 20 s."""
    length = round(seconds * RATE_HZ)
    contents = [*_events(palette, share * seconds, random), *_passing(palette, seconds, random)]
    order = random.permutation(len(contents))
    placed = _spread([contents[index] for index in order], length, random)
    return StreamPlan(length, placed, _backgrounds(len(palette.steady), length, random))


def _events(palette: Palette, seconds: float, random: np.random.Generator) -> list[Placed]:
    """As many as come nearest to `seconds` together, at least one; lengths evenly drawn on a scale of ratios. Each
    starts at 0."""
    found: list[Placed] = []
    missing_s, kinds = seconds, list(palette.hands)
    while not found or missing_s > 0:
        wanted_s = float(np.exp(random.uniform(np.log(SHORTEST_S), np.log(LONGEST_S))))
        if found and wanted_s > 2 * missing_s:
            break
        wanted_s = min(wanted_s, max(2 * missing_s, SHORTEST_S))
        kind = kinds[int(random.integers(len(kinds)))]
        found.append(_event(kind, palette.hands[kind], round(wanted_s * RATE_HZ), random))
        missing_s -= found[-1].end / RATE_HZ
    return found


def _event(kind: str, clips: Sequence[Samples], length: int, random: np.random.Generator) -> Placed:
    """Clips of one kind, none again before all were heard. The last is cut, and so that the event ends with a sound."""
    chosen: list[Samples] = []
    missing = length
    while missing > _LEAST_CLIP:
        for index in random.permutation(len(clips)):
            if missing > _LEAST_CLIP:
                chosen.append(clips[index][:missing])
                missing -= len(chosen[-1])
    chosen[-1] = without_tail(chosen[-1])
    return Placed(kind, 0, sum(map(len, chosen)), tuple(chosen))


def _passing(palette: Palette, seconds: float, random: np.random.Generator) -> list[Placed]:
    count = round(PASSING_PER_HOUR * seconds / 3600) if palette.passing else 0
    chosen = [palette.passing[int(random.integers(len(palette.passing)))] for _ in range(count)]
    return [Placed("", 0, len(samples), (samples,)) for samples in chosen]


def _spread(contents: Sequence[Placed], length: int, random: np.random.Generator) -> tuple[Placed, ...]:
    """In this order over the stream, with pauses that are exponentially distributed above the least."""
    pause = round(_LEAST_PAUSE_S * RATE_HZ)
    free = length - sum(one.end for one in contents) - pause * (len(contents) + 1)
    if free < 0:
        raise SettingsError("the stream is too short for what happens in it", got=f"{length / RATE_HZ:g} s")
    weights = random.exponential(size=len(contents) + 1)
    pauses = pause + np.floor(free * weights / weights.sum()).astype(int)
    placed, at = [], 0
    for one, before in zip(contents, pauses, strict=False):
        at += int(before)
        placed.append(Placed(one.kind, at, at + one.end, one.clips))
        at += one.end
    return tuple(placed)


def _backgrounds(steady: int, length: int, random: np.random.Generator) -> tuple[Background, ...]:
    """One after the other, each faded into the next, the same never twice in a row where there are others."""
    found: list[Background] = []
    at, last = 0, -1
    while at < length:
        others = [index for index in range(steady) if index != last or steady == 1]
        last = others[int(random.integers(len(others)))]
        end = at + round(random.uniform(*_BACKGROUND_S) * RATE_HZ)
        found.append(Background(last, int(random.integers(1 << 30)), at, end))
        at = end - CROSSFADE
    return tuple(found)
