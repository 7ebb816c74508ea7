"""Timed decode steps of one engine, and bytes of the middle one. The clock comes in as an argument."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from edgemem.runtime.engine import Engine
from edgemem.runtime.errors import EngineError
from edgemem.runtime.sampling import Sampler, Sampling

_TOGETHER = 0.05  # of the mean step: tokens that come sooner after one another were made in one call


@dataclass(frozen=True)
class Steps:
    """readings: seconds, before the first step and after each. tokens: what each step gave."""

    readings: tuple[float, ...]
    tokens: tuple[int, ...]


def decode_steps(engine: Engine, count: int, clock: Callable[[], float]) -> Steps:
    """`count` dependent greedy steps after the tokens consumed so far. EngineError if there were fewer.

    The first token that decode gives needs no step, only a choice, whose time falls to the first step; the last is
    not consumed, so that the next call begins with it again.
    """
    readings, tokens = [clock()], []
    for token in engine.decode(Sampler(Sampling()), count + 1):
        readings.append(clock())
        tokens.append(token.id)
    if len(tokens) != count + 1:
        raise EngineError("decoding ended early", where=f"slot {engine.length}", got=len(tokens) - 1, wanted=count)
    return Steps((readings[0], *readings[2:]), tuple(tokens[1:]))


def step_times(readings: Sequence[float]) -> tuple[list[float], int]:
    """Milliseconds of each step between the readings, and the most steps that came together.

    An engine may make several steps in one call: their tokens come at once, and share the call's time evenly.
    """
    gaps = [1e3 * (after - before) for before, after in pairwise(readings)]
    least = _TOGETHER * sum(gaps) / len(gaps)
    calls: list[list[float]] = []
    for gap in gaps:
        if gap < least and calls:
            calls[-1].append(gap)
        else:
            calls.append([gap])
    return [sum(call) / len(call) for call in calls for _ in call], max(map(len, calls))
