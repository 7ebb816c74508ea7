"""The trigger: when it opens, takes, closes and beats, by examples and for any scores at any times."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemem.runtime.capture.audio import HOP_SAMPLES, RATE_HZ, WINDOW_SAMPLES
from edgemem.runtime.capture.trigger import Take, Trigger, TriggerSettings
from edgemem.runtime.errors import SettingsError

PLAIN = TriggerSettings(
    open_at=0.5,
    close_at=0.3,
    smoothing_s=0,
    habituation_s=0,
    hold_s=2,
    interval_s=2,
    slowing=1,
    refractory_s=1,
    heartbeat_s=0,
)
Score = float | None


def takes(settings: TriggerSettings, scores: list[Score], step_s: float = 1.0) -> list[Take]:
    """What is taken when the scores come one every `step_s`, the first at 0."""
    trigger = Trigger(settings)
    return [take for place, score in enumerate(scores) for take in trigger.step(place * step_s, score)]


def times(settings: TriggerSettings, scores: list[Score], step_s: float = 1.0) -> list[tuple[float, str]]:
    return [(take.at_s, take.cause) for take in takes(settings, scores, step_s)]


def test_it_opens_takes_at_intervals_and_closes_after_the_hold() -> None:
    trigger = Trigger(PLAIN)
    seen = []
    for at, score in enumerate([0.4, 0.5, 0.9, 0.3, 0.2, 0.2, 0.2, 0.49]):
        took = trigger.step(at, score)
        seen.append((trigger.is_open, [take.cause for take in took]))
    assert seen == [
        (False, []),
        (True, ["open"]),
        (True, []),
        (True, ["interval"]),
        (True, []),
        (True, []),  # due, but it is low
        (False, []),  # below close_at at 4, 5 and 6: for two seconds
        (False, []),  # between the thresholds it stays as it is
    ]


def test_the_hold_begins_again_when_the_score_comes_back_to_close_at() -> None:
    trigger = Trigger(PLAIN)
    for at, score in enumerate([0.9, 0.1, 0.1, 0.3, 0.1, 0.1]):
        trigger.step(at, score)
        assert trigger.is_open
    trigger.step(6, 0.1)
    assert not trigger.is_open


def test_without_a_hold_it_closes_at_the_first_low_score_and_takes_nothing_then() -> None:
    settings = replace(PLAIN, hold_s=0, interval_s=1)
    assert times(settings, [0.9, 0.9, 0.1, 0.9]) == [(0, "open"), (1, "interval"), (3, "open")]


def test_smoothing_follows_the_time_constant() -> None:
    trigger = Trigger(TriggerSettings(smoothing_s=2.0, habituation_s=0))
    trigger.step(1.0, 0.8)
    assert trigger.smoothed == 0.8  # the first counts whole
    trigger.step(1.0 + 2.0 * math.log(2), 0.2)  # half of the past is left
    assert trigger.smoothed == pytest.approx(0.5)
    trigger.step(1000.0, 0.1)
    assert trigger.smoothed == pytest.approx(0.1)


@given(st.floats(0.1, 1.0), st.floats(0.01, 5.0), st.integers(1, 50))
def test_a_constant_score_stays_what_it_is(score: float, smoothing_s: float, steps: int) -> None:
    settings = TriggerSettings(open_at=score, close_at=score / 2, smoothing_s=smoothing_s, habituation_s=0)
    trigger = Trigger(settings)
    for step in range(steps):
        trigger.step(step * 0.48, score)
        assert trigger.smoothed == score
        assert trigger.is_open


def test_what_is_heard_for_long_counts_by_half() -> None:
    trigger = Trigger(replace(PLAIN, habituation_s=10))
    trigger.step(0, 0.0)
    trigger.step(1, 0.8)
    assert trigger.smoothed == 0.8  # what is new counts whole
    trigger.step(1 + 10 * math.log(2), 0.8)
    assert trigger.smoothed == pytest.approx(0.8 - 0.5 * 0.8 * (1 - math.exp(-0.1)))
    for at in range(100, 200):
        trigger.step(at, 0.8)
    assert trigger.smoothed == pytest.approx(0.4, abs=1e-3)
    assert trigger.is_open  # 0.4 is not below close_at
    trigger.step(200, 1.0)
    assert trigger.smoothed == pytest.approx(0.6, abs=1e-3)
    trigger.step(201, 0.0)
    assert trigger.smoothed == 0


def test_the_take_of_an_opening_waits_for_the_refractory_time() -> None:
    settings = replace(PLAIN, heartbeat_s=5, refractory_s=2)
    scores: list[Score] = [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.9, 0.9, 0.9]
    assert times(settings, scores) == [(5, "heartbeat"), (7, "open")]
    assert times(settings, [*scores[:7], 0.1, 0.1, 0.1]) == [(5, "heartbeat"), (7, "open")]  # it is still open then
    closed = replace(settings, hold_s=0)
    assert times(closed, [*scores[:7], 0.1, 0.1, 0.1]) == [(5, "heartbeat")]


def test_intervals_keep_their_average_rate_whatever_the_step() -> None:
    settings = replace(PLAIN, interval_s=1, refractory_s=0.5)
    assert len(takes(settings, [0.9] * 1000, step_s=0.48)) == pytest.approx(480, abs=1)


def test_intervals_grow_to_the_longest() -> None:
    settings = replace(PLAIN, interval_s=1, slowing=2, longest_interval_s=5)
    taken = [at for at, _ in times(settings, [0.9] * 20)]
    assert taken == [0, 1, 3, 7, 12, 17]


def test_a_score_that_fell_and_rises_begins_anew_without_closing() -> None:
    settings = replace(PLAIN, interval_s=1, slowing=2, hold_s=9)
    between = settings.close_at + 0.01
    scores: list[Score] = [0.9, 0.9, 0.1, between, 0.9, 0.9, 0.9]
    assert times(settings, scores) == [(0, "open"), (1, "interval"), (3, "interval"), (4, "open"), (5, "interval")]
    scores[2] = between  # it never fell
    assert times(settings, scores) == [(0, "open"), (1, "interval"), (3, "interval")]


def test_missed_intervals_are_not_made_up_for() -> None:
    scores: list[Score] = [0.9, *[None] * 7, 0.9, 0.9, 0.9, 0.9]
    assert times(replace(PLAIN, hold_s=60), scores) == [(0, "open"), (8, "open"), (10, "interval")]


def test_heartbeats_come_when_there_was_no_picture_for_long() -> None:
    settings = replace(PLAIN, heartbeat_s=4, hold_s=0)
    scores: list[Score] = [0.0] * 6 + [0.9] + [None] * 10
    assert times(settings, scores) == [(4, "heartbeat"), (6, "open"), (10, "heartbeat"), (14, "heartbeat")]
    assert times(replace(settings, heartbeat_s=0), [0.0] * 500) == []


def test_a_heartbeat_carries_its_kind_and_score() -> None:
    settings = replace(PLAIN, heartbeat_s=1)
    assert [(take.kind, take.score) for take in takes(settings, [0.2, 0.25])] == [("heartbeat", 0.25)]
    assert [(take.kind, take.score) for take in takes(settings, [0.75])] == [("trigger", 0.75)]


def test_nothing_believable_closes_it_but_takes_nothing() -> None:
    trigger = Trigger(PLAIN)
    trigger.step(0, 0.9)
    for at in (1, 2):
        assert trigger.step(at, None) == ()
        assert trigger.is_open
    trigger.step(3, None)
    assert not trigger.is_open
    assert trigger.smoothed == 0


def test_pre_roll_reaches_back_from_an_opening_only() -> None:
    settings = replace(PLAIN, pre_roll_s=1.5)
    scores: list[Score] = [0.0, 0.0, 0.0, 0.9, 0.9, 0.9]
    assert times(settings, scores) == [(1.5, "open"), (5, "interval")]
    assert times(settings, [0.9]) == [(0, "open")]  # nothing is before the beginning
    beaten = replace(settings, heartbeat_s=2, refractory_s=1)
    assert times(beaten, scores[:4]) == [(2, "heartbeat"), (3, "open")]  # nor within the refractory time


def test_times_in_whole_samples_are_not_lost_to_rounding() -> None:
    """A hold, an interval and a heartbeat of whole hops end on their hop, wherever the stream is."""
    hop_s = HOP_SAMPLES / RATE_HZ
    settings = TriggerSettings(
        smoothing_s=0, hold_s=2 * hop_s, interval_s=3 * hop_s, slowing=1, refractory_s=3 * hop_s, heartbeat_s=10 * hop_s
    )
    trigger = Trigger(settings)
    taken = []
    for hop in range(45 * 500):
        score = 0.9 if hop % 45 < 10 else 0.0
        if trigger.step((WINDOW_SAMPLES + hop * HOP_SAMPLES) / RATE_HZ, score):
            taken.append(hop % 45)
        assert trigger.is_open == (hop % 45 < 12)
    assert taken == [0, 3, 6, 9, 19, 29, 39] * 500


@pytest.mark.parametrize("at_s", [3.0, 2.9, -1.0, math.nan, math.inf])
def test_time_goes_forward(at_s: float) -> None:
    trigger = Trigger(PLAIN)
    trigger.step(3.0, 0.9)
    with pytest.raises(ValueError, match="time went"):
        trigger.step(at_s, 0.9)
    assert trigger.step(5.0, 0.9) == (Take(5.0, "interval", 0.9),)


@pytest.mark.parametrize("at_s", [-0.1, math.nan, -math.inf, math.inf])
def test_time_begins_at_zero_or_later(at_s: float) -> None:
    with pytest.raises(ValueError, match="time went"):
        Trigger(PLAIN).step(at_s, 0.9)


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf, -0.01, 1.01])
def test_scores_are_from_0_to_1(score: float) -> None:
    trigger = Trigger(PLAIN)
    with pytest.raises(ValueError, match="score"):
        trigger.step(0.0, score)
    assert (trigger.smoothed, trigger.is_open) == (0.0, False)
    assert trigger.step(0.0, 0.9)  # the refused step left no trace


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"open_at": 1.1}, "open_at"),
        ({"open_at": 0.3}, "close_at"),
        ({"close_at": 0}, "close_at"),
        ({"close_at": -0.1}, "close_at"),
        ({"open_at": math.nan}, "open_at"),
        ({"smoothing_s": math.inf}, "smoothing_s"),
        ({"hold_s": -1}, "hold_s"),
        ({"interval_s": 0, "refractory_s": 0}, "interval_s"),
        ({"interval_s": 0.4}, "refractory_s"),
        ({"heartbeat_s": 0.4}, "refractory_s"),
        ({"slowing": 0.9}, "slowing"),
        ({"longest_interval_s": 0.9}, "longest_interval_s"),
        ({"heartbeat_s": True}, "heartbeat_s"),
        ({"pre_roll_s": "1"}, "pre_roll_s"),
        ({"pre_roll_s": 301}, "pre_roll_s"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(change: dict[str, Any], named: str) -> None:
    with pytest.raises(SettingsError, match=f"the trigger's {named} is out of range"):
        TriggerSettings(**change)


@st.composite
def any_settings(draw: st.DrawFn) -> TriggerSettings:
    open_at = draw(st.floats(0.05, 1.0))
    refractory_s = draw(st.sampled_from([0.0, 0.3, 0.5, 1.0]))
    return TriggerSettings(
        open_at=open_at,
        close_at=open_at * draw(st.sampled_from([0.1, 0.5, 0.9])),
        smoothing_s=draw(st.sampled_from([0.0, 0.2, 1.0])),
        habituation_s=draw(st.sampled_from([0.0, 5.0])),
        hold_s=draw(st.sampled_from([0.0, 0.96, 1.92])),
        interval_s=refractory_s + draw(st.sampled_from([0.1, 0.48, 1.0])),
        slowing=draw(st.sampled_from([1.0, 1.5, 2.0])),
        refractory_s=refractory_s,
        heartbeat_s=draw(st.sampled_from([0.0, refractory_s + 0.5, 5.0])),
        pre_roll_s=draw(st.sampled_from([0.0, 0.4, 3.0])),
    )


SCORES = st.one_of(st.none(), st.sampled_from([0.0, 0.5, 1.0]), st.floats(0, 1))
STREAMS = st.lists(st.tuples(st.integers(1, 5), SCORES), max_size=120)  # hops of 0.1 s since the step before


@given(any_settings(), STREAMS)
def test_rules_that_hold_for_any_scores(settings: TriggerSettings, stream: list[tuple[int, Score]]) -> None:
    trigger = Trigger(settings)
    at, slack_s = 0, 1 / RATE_HZ
    pictures: list[float] = []  # of when
    quiet_since_s, low_since_s = math.nan, math.inf
    for hops, score in stream:
        at += hops
        at_s, was_open = at / 10, trigger.is_open
        took = trigger.step(at_s, score)
        low_since_s = min(low_since_s, at_s) if trigger.smoothed < settings.close_at else math.inf
        if trigger.is_open and not was_open:
            assert trigger.smoothed >= settings.open_at
            assert score is not None
        if not trigger.is_open:
            assert trigger.smoothed < settings.open_at
        if was_open:
            assert trigger.is_open == (at_s - low_since_s < settings.hold_s - slack_s / 2)
        for take in took:
            assert take.kind == "heartbeat" or (trigger.is_open and score is not None)
            assert max(0, at_s - settings.pre_roll_s) <= take.at_s <= at_s
            assert take.at_s == at_s or take.cause == "open"
            assert not pictures or take.at_s - pictures[-1] >= settings.refractory_s - slack_s
            pictures.append(take.at_s)
        quiet_since_s = at_s if took or math.isnan(quiet_since_s) else quiet_since_s
        if settings.heartbeat_s:  # at the first step that is late enough
            assert at_s - quiet_since_s < settings.heartbeat_s
