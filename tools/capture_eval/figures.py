"""The figures of a group of streams that are alike: frames saved, events covered, waits, false openings, by policy.

Periodic and random capture take as many frames of each stream as the trigger did, heartbeats included.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from edgemem.tools.capture_eval.intervals import pooled
from edgemem.tools.capture_eval.outcome import (
    Captured,
    Times,
    at_random,
    false_openings,
    frames_in_events,
    periodic,
    waits,
)
from edgemem.tools.memory_eval.statistics import Estimate

TRIGGER, PERIODIC, RANDOM = "trigger", "periodic", "random"
Policy = Callable[[int, float, np.random.Generator], Times]
_WAIT_DRAWS = 20  # of all draws; more of them make no interval narrower, as the events stay the same
_POLICIES: dict[str, Policy] = {PERIODIC: periodic, RANDOM: at_random}


@dataclass(frozen=True)
class PolicyFigures:
    """Intervals hold 95 %. covered: share of events with a frame in them. wait_s: median from an event's start to its
    first frame, of covered events; late_s: the 95th percentile. None where nothing was covered."""

    policy: str
    covered: Estimate
    wait_s: Estimate | None
    late_s: Estimate | None


@dataclass(frozen=True)
class GroupFigures:
    """Of the streams of one mix and signal-to-noise ratio.

    saved: 1 - frames over those of a camera that is always on, at the trigger's own rate. in_events: share of frames
    that show hands at work. triggered: share of events with a frame that is no heartbeat. false_per_hour: openings that
    no hands caused, per hour. gain: the trigger's coverage less periodic capture's, in shares of events.
    """

    mix: str
    snr_db: float
    streams: int
    events: int
    frames_per_hour: float
    saved: Estimate
    in_events: Estimate
    triggered: Estimate
    false_per_hour: Estimate
    policies: tuple[PolicyFigures, ...]
    gain: Estimate

    def policy(self, name: str) -> PolicyFigures:
        return next(one for one in self.policies if one.policy == name)


def groups(captured: Sequence[Captured], interval_s: float, draws: int) -> list[GroupFigures]:
    """For each mix and signal-to-noise ratio, in the streams' order. interval_s: of a camera that is always on."""
    alike: dict[tuple[str, float], list[Captured]] = {}
    for one in captured:
        alike.setdefault((one.key.mix, one.key.snr_db), []).append(one)
    return [group_figures(streams, interval_s, draws) for streams in alike.values()]


def group_figures(streams: Sequence[Captured], interval_s: float, draws: int) -> GroupFigures:
    """streams: at least one, with events. draws: of periodic and random capture for each stream."""
    hours = sum(one.seconds for one in streams) / 3600
    ours = [waits(one.frames_s, one.events) for one in streams]
    triggered = [waits(_triggered(one), one.events) for one in streams]
    theirs = {name: [_drawn(one, policy, draws) for one in streams] for name, policy in _POLICIES.items()}
    return GroupFigures(
        mix=streams[0].key.mix,
        snr_db=streams[0].key.snr_db,
        streams=len(streams),
        events=sum(len(one.events) for one in streams),
        frames_per_hour=sum(len(one.frames_s) for one in streams) / hours,
        saved=_known(pooled([[saved(one, interval_s)] for one in streams])),
        in_events=_known(pooled([[frames_in_events(one) / max(len(one.frames_s), 1)] for one in streams])),
        triggered=_known(pooled([np.isfinite(each) for each in triggered])),
        false_per_hour=_known(pooled([[false_openings(one) * 3600 / one.seconds] for one in streams])),
        policies=(
            _policy_figures(TRIGGER, [each[None] for each in ours]),
            *(_policy_figures(name, each) for name, each in theirs.items()),
        ),
        gain=_known(pooled([np.isfinite(a) - _shares(b) for a, b in zip(ours, theirs[PERIODIC], strict=True)])),
    )


def saved(captured: Captured, interval_s: float) -> float:
    """Share of the frames of a camera that takes one every interval_s which were not taken."""
    return 1 - len(captured.frames_s) * interval_s / captured.seconds


def _triggered(captured: Captured) -> list[float]:
    pairs = zip(captured.frames_s, captured.heartbeat, strict=True)
    return [at_s for at_s, heartbeat in pairs if not heartbeat]


def _drawn(captured: Captured, policy: Policy, draws: int) -> Times:
    """(draws, events): waits."""
    random = np.random.default_rng((captured.key.fold, captured.key.number))
    count = len(captured.frames_s)
    return np.stack([waits(policy(count, captured.seconds, random), captured.events) for _ in range(draws)])


def _policy_figures(name: str, drawn: Sequence[Times]) -> PolicyFigures:
    """drawn: for each stream (draws, events)."""
    few = [each[:_WAIT_DRAWS] for each in drawn]
    known = [each[np.isfinite(each)] for each in few]
    return PolicyFigures(
        name,
        _known(pooled([_shares(each) for each in drawn])),
        pooled(known, np.median),
        pooled(known, lambda units: np.percentile(units, 95)),
    )


def _shares(drawn: Times) -> Times:
    """(events,): in how many of the draws each event was covered."""
    shares: Times = np.isfinite(drawn).mean(axis=0)
    return shares


def _known(estimate: Estimate | None) -> Estimate:
    if estimate is None:
        raise ValueError("streams without events have no figures")
    return estimate
