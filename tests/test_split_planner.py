"""The planner against brute force, what must hold of every plan, and when a link is planned for anew."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from runnable_packages import plain_model, same_precision

from edgemem.kernels.cost import step_cost
from edgemem.runtime.errors import SettingsError
from edgemem.split.measuring import StageTime, fit_stages
from edgemem.split.plan_reasons import neighbours
from edgemem.split.planner import (
    Activation,
    Choice,
    Constraints,
    Point,
    Problem,
    Width,
    choices,
    excesses,
    plan,
    point_of,
)
from edgemem.split.replanning import Hysteresis, Replanning, links_to_plan_for
from edgemem.split.sides import LinkSpeed, StageTimes, Weights, weights_of

LAYERS = 4
ROOMY = Constraints(device_bytes=10**9, deadline_ms=1e6, kl_nats=10.0)


def width(layer_bytes: int, device_ms: float, server_ms: float) -> Width:
    """An embedding of 50 bytes, a head of 70."""
    front = (0, *(50 + split * layer_bytes for split in range(1, LAYERS)), 120 + LAYERS * layer_bytes)
    back = (120 + LAYERS * layer_bytes, *(70 + behind * layer_bytes for behind in range(LAYERS - 1, 0, -1)), 0)
    return Width(Weights(front, back), StageTimes(device_ms, 0.5, 1.0), StageTimes(server_ms, 0.1, 0.2))


def table_of(values: list[float | None]) -> Any:
    """A quality that takes its values from a list, the same for the same point; known of all layers on the device."""

    def quality(split: int, front: str | None, back: str | None, activation: str | None) -> float | None:
        key = f"{split}{front}{back}{activation}".encode()
        value = values[sum(key) % len(values)]
        return 0.02 if value is None and split == LAYERS else value

    return quality


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    times = st.floats(0.01, 20)
    widths = {
        name: width(size, draw(times), draw(times))
        for name, size in (("int4", 100), ("int8", 200))[: draw(st.integers(1, 2))]
    }
    activations = {"int8": Activation(80.0, draw(st.floats(0, 2))), "fp16": Activation(128.0)}
    return Problem(
        widths=widths,
        activations=activations,
        contexts=tuple(draw(st.sets(st.sampled_from((8, 16, 64)), min_size=1))),
        layer_slot_bytes=draw(st.integers(0, 4)),
        workspace_bytes=draw(st.integers(0, 50)),
        link=LinkSpeed(draw(st.floats(1e4, 1e7)), draw(st.floats(0, 40))),
        quality=table_of(draw(st.lists(st.sampled_from((None, 0.0, 0.01, 0.02)), min_size=1, max_size=5))),
    )


CONSTRAINTS = st.builds(
    Constraints,
    device_bytes=st.integers(0, 1500),
    deadline_ms=st.floats(1, 150),
    kl_nats=st.sampled_from((0.0, 0.01, 0.05)),
    server_bytes=st.none() | st.integers(0, 1500),
    least_split=st.integers(0, LAYERS),
    prefer=st.sampled_from(("bytes", "time")),
)


def brute_force(problem: Problem, limits: Constraints) -> list[Point]:
    """All feasible points, written out anew."""
    found = []
    for split in range(limits.least_split, LAYERS + 1):
        for front in problem.widths if split else [None]:
            for back in problem.widths if split < LAYERS else [None]:
                for states in problem.activations if front and back else [None]:
                    for context in problem.contexts:
                        kl = problem.quality(split, front, back, states)
                        device = server = 0
                        wire, time = 0.0, 0.0
                        if front:
                            side = problem.widths[front]
                            slots = split * context * problem.layer_slot_bytes
                            device = side.weights.front_bytes[split] + slots + problem.workspace_bytes
                            time += split * side.device.layer_ms + 0.5 + (1.0 if split == LAYERS else 0.0)
                        if back:
                            side = problem.widths[back]
                            slots = (LAYERS - split) * context * problem.layer_slot_bytes
                            server = side.weights.back_bytes[split] + slots + problem.workspace_bytes
                            time += (LAYERS - split) * side.server.layer_ms + 0.2 + (0.1 if split == 0 else 0.0)
                            wire = problem.activations[states].token_bytes if states else 4.0
                            time += problem.link.round_trip_ms + 8000 * wire / problem.link.bits_per_s
                            time += problem.activations[states].codec_ms if states else 0.0
                        if kl is None or kl > limits.kl_nats or device > limits.device_bytes:
                            continue
                        if time > limits.deadline_ms or (limits.server_bytes or math.inf) < server:
                            continue
                        if limits.server_bytes == 0 and server:
                            continue
                        found.append(Point(Choice(split, front, back, states, context), device, server, time, wire, kl))
    return found


def worth(point: Point | None) -> tuple[float, float, float]:
    """Lower is better, and nothing is the worst."""
    if point is None:
        return (math.inf, 0.0, 0.0)
    return (point.kl_nats, -point.choice.context, point.wire_bytes)


@given(problems(), CONSTRAINTS)
def test_the_choice_is_that_of_brute_force(problem: Problem, limits: Constraints) -> None:
    found, all_feasible = plan(problem, limits), brute_force(problem, limits)
    near = [one for one in all_feasible if abs(one.token_ms - limits.deadline_ms) < 1e-9]
    assume(not near)  # where rounding decides
    assert found.feasible == len(all_feasible)
    if not all_feasible:
        assert found.chosen is None
        assert found.front == ()
        return
    assert found.chosen is not None
    best = min((one.kl_nats, -one.choice.context) for one in all_feasible)
    same = [one for one in all_feasible if (one.kl_nats, -one.choice.context) == best]
    assert (found.chosen.kl_nats, -found.chosen.choice.context) == best
    if limits.prefer == "bytes":
        assert found.chosen.wire_bytes == min(one.wire_bytes for one in same)
    else:
        assert found.chosen.token_ms == pytest.approx(min(one.token_ms for one in same))


@given(problems(), CONSTRAINTS)
def test_the_front_holds_exactly_what_nothing_beats(problem: Problem, limits: Constraints) -> None:
    found = plan(problem, limits)
    points = [point for choice in choices(problem) if (point := point_of(problem, choice)) is not None]
    feasible = [one for one in points if one.choice.split >= limits.least_split and not excesses(one, limits)]

    def ends(point: Point) -> tuple[float, ...]:
        return (*worth(point), point.token_ms)

    def beaten(point: Point) -> bool:
        return any(
            ends(other) != ends(point) and all(a <= b for a, b in zip(ends(other), ends(point), strict=True))
            for other in feasible
        )

    assert set(found.front) == {point for point in feasible if not beaten(point)}
    assert found.chosen in (found.front or (None,))


@given(problems(), CONSTRAINTS, st.integers(0, 1000), st.floats(0, 100), st.floats(1, 10), st.floats(0, 1))
def test_more_of_anything_never_makes_the_choice_worse(
    problem: Problem, limits: Constraints, more_bytes: int, more_ms: float, faster: float, nearer: float
) -> None:
    limits = replace(limits, prefer="bytes")
    before = plan(problem, limits)
    link = replace(problem.link, bits_per_s=faster * problem.link.bits_per_s)
    near = replace(problem.link, round_trip_ms=nearer * problem.link.round_trip_ms)
    for richer, looser in (
        (problem, replace(limits, device_bytes=limits.device_bytes + more_bytes)),
        (problem, replace(limits, deadline_ms=limits.deadline_ms + more_ms)),
        (replace(problem, link=link), limits),
        (replace(problem, link=near), limits),
    ):
        assert worth(plan(richer, looser).chosen) <= worth(before.chosen)


@given(problems(), CONSTRAINTS)
def test_a_neighbour_lost_for_a_reason_that_holds(problem: Problem, limits: Constraints) -> None:
    found = plan(problem, limits)
    beside, grid = neighbours(found), set(choices(problem))
    if found.chosen is None:
        assert beside == ()
        return
    for one in beside:
        assert one.choice != found.chosen.choice
        assert one.choice in grid
        assert one.point == point_of(problem, one.choice)
        if one.point is not None:
            assert one.why
            assert all(amount >= 0 for amount in one.why.values())
            if over := excesses(one.point, limits):
                assert one.why == over


@given(problems(), CONSTRAINTS)
def test_the_nearest_point_would_be_feasible_with_what_it_needs(problem: Problem, limits: Constraints) -> None:
    found = plan(problem, limits)
    assert (found.chosen is None) == (found.nearest is not None)
    if found.nearest is None:
        return
    over = excesses(found.nearest, limits)
    assert over
    changes: dict[str, Any] = {
        "device memory": {"device_bytes": found.nearest.device_bytes},
        "server memory": {"server_bytes": found.nearest.server_bytes},
        "deadline": {"deadline_ms": found.nearest.token_ms},
        "KL": {"kl_nats": found.nearest.kl_nats},
    }
    needed = {name: value for limit in over for name, value in changes[limit].items()}
    assert plan(problem, replace(limits, **needed)).chosen is not None
    for point in (one for choice in choices(problem) if (one := point_of(problem, choice)) is not None):
        if point.choice.split >= limits.least_split:
            assert len(excesses(point, limits)) >= len(over)


def simple(**changes: Any) -> Problem:
    values: dict[str, Any] = {
        "widths": {"int4": width(100, 10.0, 1.0), "int8": width(200, 20.0, 2.0)},
        "activations": {"fp16": Activation(128.0)},
        "contexts": (16,),
        "layer_slot_bytes": 2,
        "workspace_bytes": 10,
        "link": LinkSpeed(1e6, 5.0),
        "quality": lambda *_: 0.0,
    }
    return Problem(**{**values, **changes})


def test_what_a_point_costs() -> None:
    point = point_of(simple(), Choice(1, "int4", "int8", "fp16", 16))
    assert point is not None
    assert (point.device_bytes, point.server_bytes) == (50 + 100 + 32 + 10, 70 + 600 + 96 + 10)
    assert point.token_ms == pytest.approx(10.0 + 0.5 + 5.0 + 1.024 + 3 * 2.0 + 0.2)
    assert point.wire_bytes == 128


def test_all_layers_on_one_side_leave_the_other_empty() -> None:
    here = point_of(simple(), Choice(LAYERS, "int4", None, None, 16))
    there = point_of(simple(), Choice(0, None, "int4", None, 16))
    assert here is not None
    assert there is not None
    assert (here.server_bytes, here.wire_bytes, here.token_ms) == (0, 0, pytest.approx(41.5))
    assert (there.device_bytes, there.wire_bytes) == (0, 4)
    assert there.token_ms == pytest.approx(4.3 + 5.0 + 0.032)


def test_bytes_or_time_are_preferred() -> None:
    quickest, fewest = (plan(simple(), replace(ROOMY, prefer=prefer)).chosen for prefer in ("time", "bytes"))
    assert quickest is not None
    assert quickest.choice.split == 0
    assert fewest is not None
    assert fewest.choice.split == LAYERS


def test_a_deadline_that_nothing_meets_names_the_deadline() -> None:
    found = plan(simple(), replace(ROOMY, deadline_ms=2.0))
    assert found.nearest is not None
    assert set(excesses(found.nearest, found.constraints)) == {"deadline"}
    assert neighbours(found) == ()


def test_no_known_quality_is_no_plan() -> None:
    with pytest.raises(SettingsError, match="quality"):
        plan(simple(quality=lambda *_: None), ROOMY)


def test_weights_are_those_of_the_cost_model() -> None:
    model = plain_model()
    precision = same_precision(model, "fp16")
    weights = weights_of(model, precision.__getitem__)
    whole = step_cost(model, precision.__getitem__, 0, kv_element_bytes=2).footprint_bytes
    assert weights.front_bytes[0] == weights.back_bytes[model.layers] == 0
    assert weights.front_bytes[model.layers] == weights.back_bytes[0] == whole
    for split in range(1, model.layers):
        assert weights.front_bytes[split] + weights.back_bytes[split] == whole  # an untied head is held once


@given(st.floats(0, 5), st.floats(0, 5), st.floats(0, 5), st.integers(2, 40))
def test_a_line_is_found_again(layer_ms: float, entry_ms: float, exit_ms: float, layers: int) -> None:
    times = StageTimes(layer_ms, entry_ms, exit_ms)
    cut = layers // 2
    ranges = [(0, layers), (0, cut), (cut, layers), (0, 1), (layers - 1, layers)]
    samples = [StageTime(a, b, times.stage_ms(b - a, embedding=a == 0, head=b == layers)) for a, b in ranges if a < b]
    found = fit_stages(samples, layers)
    for stage in samples:
        fitted = found.stage_ms(stage.last - stage.first, embedding=stage.first == 0, head=stage.last == layers)
        assert fitted == pytest.approx(stage.token_ms, abs=1e-6)


def test_a_link_is_planned_for_anew_only_when_it_stays_away() -> None:
    state = Replanning(LinkSpeed(20e6, 30.0), Hysteresis(factor=1.5, least_ms=2.0, in_a_row=3))
    slow, fine = LinkSpeed(5e6, 30.0), LinkSpeed(18e6, 34.0)
    dues = []
    for measured in (slow, slow, fine, slow, slow, slow, slow):
        state = state.after(measured)
        dues.append(state.due)
    assert dues == [False, False, False, False, False, True, False]
    assert state.planned == slow


def test_of_measured_links_those_come_that_make_a_plan_due() -> None:
    planned, slow = LinkSpeed(20e6, 30.0), LinkSpeed(5e6, 30.0)
    assert list(links_to_plan_for(planned, [slow, slow, planned, slow, slow])) == []
    assert list(links_to_plan_for(planned, [*[slow] * 5, *[planned] * 4])) == [slow, planned]


@given(st.floats(1e5, 1e9), st.floats(0, 500), st.lists(st.floats(0.7, 1.4), min_size=1, max_size=20))
def test_a_link_within_the_hysteresis_is_never_planned_for_anew(rate: float, trip: float, factors: list[float]) -> None:
    state = Replanning(LinkSpeed(rate, trip))
    for factor in factors:
        state = state.after(LinkSpeed(rate * factor, trip * factor))
        assert not state.due
        assert state.planned == LinkSpeed(rate, trip)


@pytest.mark.parametrize(
    "make",
    [
        lambda: replace(ROOMY, device_bytes=-1),
        lambda: replace(ROOMY, device_bytes=True),
        lambda: replace(ROOMY, deadline_ms=0),
        lambda: replace(ROOMY, deadline_ms=math.nan),
        lambda: replace(ROOMY, kl_nats=math.inf),
        lambda: replace(ROOMY, server_bytes=1.5),
        lambda: replace(ROOMY, least_split=-1),
        lambda: replace(ROOMY, prefer="both"),
        lambda: LinkSpeed(0, 1.0),
        lambda: LinkSpeed(1e6, -1.0),
        lambda: LinkSpeed(1e6, 1.0, -5),
        lambda: StageTimes(-1.0),
        lambda: Activation(math.nan),
        lambda: Weights((0, 1), (1,)),
        lambda: Weights((0, -1), (1, 0)),
        lambda: simple(widths={}),
        lambda: simple(contexts=(0,)),
        lambda: simple(layer_slot_bytes=1.0),
        lambda: Hysteresis(factor=0.5),
        lambda: Hysteresis(in_a_row=0),
        lambda: plan(simple(quality=lambda *_: math.nan), ROOMY),
    ],
)
def test_values_out_of_range_are_refused(make: Any) -> None:
    with pytest.raises(SettingsError):
        make()
