"""Who answers: left at once, returned to slowly; and without a place to go, tried again at growing intervals."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemem.runtime.errors import SettingsError
from edgemem.split.switching import Event, Switch, SwitchSettings

SETTINGS = SwitchSettings(good_probes=3, patience_s=60, first_retry_s=0.5, last_retry_s=4.0, deadline_s=1.0)
events = st.lists(st.tuples(st.sampled_from(get_args(Event)), st.floats(0, 10)), max_size=60)


def play(*events: Event, local: bool = True, begin: Switch | None = None) -> Switch:
    switch = begin or Switch()
    for now, event in enumerate(events):
        switch = switch.after(event, float(now), SETTINGS, local=local)
    return switch


def test_a_lost_link_sends_the_work_here_at_once() -> None:
    switch = play("answered", "lost")
    assert (switch.mode, switch.route, switch.here) == ("local", "local", True)


@pytest.mark.parametrize("good", range(5))
def test_it_returns_after_good_probes_in_a_row_and_not_before_the_server_is_current(good: int) -> None:
    switch = play("lost", *["probed"] * good)
    assert switch.mode == ("local" if good < 3 else "returning")
    assert switch.route == "local"
    assert play("current", begin=switch).mode == ("local" if good < 3 else "remote")
    assert play("missed", "probed", "probed", begin=switch).mode == "local"


def test_without_a_local_stage_the_pauses_grow_to_their_limit() -> None:
    switch, pauses = Switch(), []
    for _ in range(6):
        switch = switch.after("lost", 7.0, SETTINGS, local=False)
        pauses.append(switch.due - 7.0)
        assert (switch.route, switch.here) == ("degraded", False)
    assert pauses == [0.5, 1.0, 2.0, 4.0, 4.0, 4.0]
    assert not switch.given_up(66.9, SETTINGS)
    assert switch.given_up(67.0, SETTINGS)
    for _ in range(2):
        switch = switch.after("answered", 80.0, SETTINGS, local=False)
        assert switch.route == "degraded"
        assert not switch.given_up(1e9, SETTINGS)
    assert switch.after("answered", 80.0, SETTINGS, local=False) == Switch()


def test_a_late_answer_is_waited_for_where_there_is_nothing_else() -> None:
    assert play("late", local=False).route == "degraded"
    assert play("late", "answered", "answered", "late", local=False).good == 0


@given(events, st.booleans())
def test_whatever_happens(events: list[tuple[Event, float]], local: bool) -> None:
    switch, now, in_a_row = Switch(), 0.0, 0
    for event, passed in events:
        now += passed
        before, switch = switch, switch.after(event, now, SETTINGS, local=local)
        if not local:
            assert not switch.here
        elif before.here:
            in_a_row = 0 if event == "missed" else in_a_row + (event == "probed")
            if not switch.here:
                assert event == "current"
                assert in_a_row >= SETTINGS.good_probes
            assert (switch.mode == "returning") == (switch.here and in_a_row >= SETTINGS.good_probes)
        else:
            in_a_row = 0
            assert switch.here == (event == "lost")
        if event == "lost" and not switch.here:
            assert now < switch.due <= now + SETTINGS.last_retry_s
            assert switch.since <= now


@pytest.mark.parametrize(
    "changes",
    [
        {"deadline_s": 0},
        {"probe_s": -1.0},
        {"good_probes": 0},
        {"good_probes": 1.5},
        {"good_probes": True},
        {"patience_s": float("nan")},
        {"stall_s": float("inf")},
        {"last_retry_s": "1"},
        {"warm": 1},
    ],
)
def test_settings_out_of_range_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match=next(iter(changes))):
        SwitchSettings(**changes)
