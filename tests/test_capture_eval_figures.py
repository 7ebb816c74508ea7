"""Figures of an evaluation on cases made by hand: they are exact, and the baselines take as many frames."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemem.runtime.capture.trigger import TriggerSettings
from edgemem.runtime.errors import SettingsError
from edgemem.tools.capture_eval.cost import Energy
from edgemem.tools.capture_eval.curve import curve
from edgemem.tools.capture_eval.figures import PERIODIC, RANDOM, TRIGGER, group_figures, groups, saved
from edgemem.tools.capture_eval.intervals import pooled
from edgemem.tools.capture_eval.outcome import (
    Captured,
    Event,
    HeardStream,
    StreamKey,
    at_random,
    capture,
    false_openings,
    frames_in_events,
    periodic,
    waits,
    window_end_s,
)
from edgemem.tools.capture_eval.settings import CLAIM_DB, RARE, USUAL
from edgemem.tools.capture_eval.sweep import candidates, judged, swept

EVENTS = (Event("drawer", 10.0, 14.0), Event("plates", 50.0, 60.0))
STEADY = TriggerSettings(
    open_at=0.5,
    close_at=0.3,
    smoothing_s=0.0,
    habituation_s=0.0,
    hold_s=0.96,
    interval_s=1.0,
    slowing=1.0,
    longest_interval_s=1.0,
    refractory_s=0.5,
    heartbeat_s=30.0,
)


def captured(
    frames_s: Sequence[float],
    *,
    mix: str = USUAL,
    snr_db: float = CLAIM_DB,
    number: int = 0,
    heartbeats: Sequence[float] = (),
    openings_s: Sequence[float] = (),
) -> Captured:
    heartbeat = tuple(at_s in heartbeats for at_s in frames_s)
    return Captured(StreamKey(mix, snr_db, 2, number), 100.0, EVENTS, tuple(frames_s), heartbeat, tuple(openings_s))


def heard(mix: str, *, loud: Sequence[tuple[float, float]], seconds: float = 100.0) -> HeardStream:
    """Scores are 0.9 at the ends of windows in any of `loud`, 0.1 else."""
    count = int((seconds - 0.975) / 0.48) + 1
    ends = [window_end_s(index) for index in range(count)]
    scores = tuple(0.9 if any(first <= end <= last for first, last in loud) else 0.1 for end in ends)
    return HeardStream(StreamKey(mix, CLAIM_DB, 0, 0), seconds, EVENTS, scores)


def test_windows_end_where_the_listener_has_them_end() -> None:
    assert window_end_s(0) == 0.975
    assert window_end_s(2) == pytest.approx(0.975 + 0.96)


def test_a_wait_is_from_the_beginning_to_the_first_frame_in_the_event() -> None:
    assert waits([9.9, 10.5, 11.0, 60.1], EVENTS).tolist() == [0.5, math.inf]
    assert waits([10.0, 60.0], EVENTS).tolist() == [0.0, 10.0]
    assert waits([], EVENTS).tolist() == [math.inf, math.inf]
    assert waits([14.1, 49.9], EVENTS).tolist() == [math.inf, math.inf]


def test_the_trigger_is_the_listeners_own() -> None:
    found = capture(heard(USUAL, loud=[(10.0, 14.0)]), STEADY, 0.01)
    first = next(window_end_s(index) for index in range(200) if window_end_s(index) >= 10.0)
    assert found.openings_s == (first,)
    assert found.frames_s[0] == pytest.approx(first + 0.01)
    pairs = list(zip(found.frames_s, found.heartbeat, strict=True))
    taken = [at_s for at_s, heartbeat in pairs if not heartbeat]
    assert np.diff(taken) == pytest.approx(1.0, abs=0.5)
    assert 10.0 <= taken[0] <= taken[-1] <= 14.0 + 0.96 + 0.01
    beats = [at_s for at_s, heartbeat in pairs if heartbeat]
    assert len(beats) == 2  # 30 s and 60 s after the last picture
    assert beats[0] == pytest.approx(taken[-1] + 30, abs=0.5)
    assert waits(found.frames_s, found.events)[0] == pytest.approx(first + 0.01 - 10.0)


def test_what_is_not_to_be_believed_opens_nothing() -> None:
    whole = heard(USUAL, loud=[(0.0, 100.0)])
    broken = HeardStream(whole.key, whole.seconds, whole.events, (None,) * len(whole.scores))
    found = capture(broken, STEADY, 0.0)
    assert not found.openings_s
    assert all(found.heartbeat)
    assert len(found.frames_s) == 3


def test_an_opening_is_false_when_its_window_held_no_hands() -> None:
    assert false_openings(captured([], openings_s=[9.0, 10.1, 14.9, 15.0, 80.0])) == 3
    assert frames_in_events(captured([9.9, 10.0, 14.0, 14.1, 55.0])) == 3


@given(count=st.integers(0, 50), seconds=st.floats(1, 4000), seed=st.integers(0, 1000))
def test_baselines_take_as_many_frames(count: int, seconds: float, seed: int) -> None:
    for policy in (periodic, at_random):
        times = policy(count, seconds, np.random.default_rng(seed))
        assert len(times) == count
        assert np.all(np.diff(times) >= 0)
        assert np.all((times >= 0) & (times <= seconds))
    if count:
        assert np.diff(periodic(count, seconds, np.random.default_rng(seed))) == pytest.approx(seconds / count)


def test_figures_of_two_streams_are_exact() -> None:
    # 10 frames each: 1 in the first event of one stream, 1 in both of the other; 3 false openings in 200 s.
    one = captured([10.5, *range(70, 79)], number=0, openings_s=[10.4, 69.9])
    two = captured([12.0, 51.0, *range(80, 88)], number=1, heartbeats=[51.0], openings_s=[12.0, 79.0, 85.0])
    found = group_figures([one, two], 1.0, 4000)
    trigger = found.policy(TRIGGER)
    assert (found.mix, found.snr_db, found.streams, found.events) == (USUAL, CLAIM_DB, 2, 4)
    assert found.frames_per_hour == 360
    assert saved(one, 1.0) == pytest.approx(0.9)
    assert saved(one, 2.0) == pytest.approx(0.8)
    assert found.saved.value == pytest.approx(0.9)
    assert found.saved.low == pytest.approx(found.saved.high)
    assert trigger.covered.value == 0.75
    assert trigger.covered.low < 0.75 < trigger.covered.high
    assert found.triggered.value == 0.5  # one event had a heartbeat alone
    assert trigger.wait_s is not None
    assert trigger.wait_s.value == 1.0  # of 0.5, 2 and 1 s
    assert trigger.late_s is not None
    assert trigger.late_s.value == pytest.approx(1.9)
    assert found.false_per_hour.value == pytest.approx(54)
    assert found.in_events.value == pytest.approx(0.15)
    # 10 frames in 100 s: one each 10 s hits 4 s in 4 of 10 cases, and 10 s always.
    assert found.policy(PERIODIC).covered.value == pytest.approx((0.4 + 1) / 2, abs=0.01)
    by_chance = (1 - 0.96**10 + 1 - 0.9**10) / 2
    assert found.policy(RANDOM).covered.value == pytest.approx(by_chance, abs=0.01)
    assert found.gain.value == pytest.approx(0.75 - 0.7, abs=0.01)


def test_groups_are_by_mix_and_ratio() -> None:
    streams = [
        captured([11.0], snr_db=0.0),
        captured([], snr_db=0.0, number=1),
        captured([55.0], mix=RARE),
    ]
    found = groups(streams, 1.0, 10)
    assert [(group.mix, group.snr_db, group.streams) for group in found] == [(USUAL, 0.0, 2), (RARE, CLAIM_DB, 1)]
    never = group_figures([captured([])], 1.0, 10)
    assert never.policy(TRIGGER).covered.value == 0
    assert never.policy(TRIGGER).wait_s is None
    assert never.policy(PERIODIC).late_s is None
    assert never.saved.value == 1


def test_intervals_are_over_streams_and_their_units() -> None:
    assert pooled([]) is None
    assert pooled([[], []]) is None
    even = pooled([[1.0, 1.0], [1.0]])
    assert even is not None
    assert (even.value, even.low, even.high) == (1.0, 1.0, 1.0)
    unlike = pooled([[0.0] * 50, [1.0] * 50])  # streams differ, so the figure is not known by 100 units
    assert unlike is not None
    assert (unlike.value, unlike.low, unlike.high) == (0.5, 0.0, 1.0)
    alike = pooled([[0.0, 1.0] * 25, [0.0, 1.0] * 25])
    assert alike is not None
    assert 0.35 < alike.low < 0.5 < alike.high < 0.65
    middle = pooled([[1.0, 2.0, 9.0]], np.median)
    assert middle is not None
    assert middle.value == 2.0


def test_a_sweep_finds_the_settings_that_save_most_and_cover_enough() -> None:
    # The events score 0.9 in full; another sound scores 0.65 again and again, which low thresholds fall for.
    streams = []
    for mix in (USUAL, RARE):
        plain = heard(mix, loud=[(10.0, 14.5), (50.0, 60.5)])
        again = [0.65 if index % 4 else 0.01 for index in range(len(plain.scores))]
        scores = tuple(
            again[index] if 20 <= window_end_s(index) <= 45 else score for index, score in enumerate(plain.scores)
        )
        streams.append(HeardStream(plain.key, plain.seconds, plain.events, scores))
    shares: list[float] = []
    start = STEADY
    found = swept(streams, start, 0.0, shares.append)
    best = found.candidates[0]
    assert found.tried == len(set(candidates(start)) | {start})
    assert shares == sorted(shares)
    assert best.good_enough
    assert best.settings.open_at > 0.65 or best.settings.habituation_s > 0  # what is usual does not open it
    assert best.covered == 1.0
    assert best.false_per_hour == 0
    assert best == judged(streams, best.settings, 0.0)
    ours = next(one for one in found.candidates if one.settings == start)
    assert (ours.saved + ours.saved_rare) < (best.saved + best.saved_rare)
    assert all(one.settings.interval_s == start.interval_s for one in found.candidates)
    deaf = [HeardStream(one.key, one.seconds, one.events, (0.0,) * len(one.scores)) for one in streams]
    nothing = swept(deaf, start, 0.0, lambda share: None).candidates[0]
    assert not nothing.good_enough


def test_a_curve_goes_from_all_to_nothing() -> None:
    points = curve([heard(mix, loud=[(10.0, 14.5), (50.0, 60.5)]) for mix in (USUAL, RARE)], STEADY, 0.0)
    assert list(dict.fromkeys(point.mix for point in points)) == [USUAL, RARE]
    usual = [point for point in points if point.mix == USUAL]
    assert usual[0].open_at < 0.1  # below every score: always on
    assert usual[0].saved < 0.1
    assert usual[0].covered == 1
    assert usual[-1].saved > 0.95
    assert usual[-1].covered < 1
    between = [point for point in usual if 0.1 < point.open_at < 0.9]
    assert all(point.covered == 1 and point.saved > 0.7 for point in between)
    assert all(0 <= point.random <= point.periodic + 0.05 for point in usual)


def test_energy_is_what_the_given_costs_add_up_to() -> None:
    energy = Energy(audio_mw=10.0, frame_mj=200.0, camera_idle_mw=30.0)
    assert energy.joules_per_hour(3600, listening=False) == pytest.approx(30 * 3.6 + 720)
    assert energy.joules_per_hour(360, listening=True) == pytest.approx(40 * 3.6 + 72)
    for wrong in (-1.0, math.nan, math.inf):
        with pytest.raises(SettingsError, match="frame_mj"):
            Energy(audio_mw=1.0, frame_mj=wrong, camera_idle_mw=1.0)
