"""Figures of a record: what they are for samples whose answer is known, and what they never do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from profile_records import BYTES, DEVICE, GB, KEY, cell, record, session, unmeasured

from edgemem.profiles.bootstrap import interval, resampled_medians
from edgemem.profiles.peaks import best, block_shares, peaks_beside
from edgemem.profiles.record import Block, Cell, Record, Session, Sweep, Telemetry
from edgemem.profiles.statistics import Figures, figures, percentile
from edgemem.runtime.token_prefix import common_prefix

STEPS = st.lists(st.floats(0.01, 1e4), min_size=1, max_size=6)


def figures_of(whole: Record, index: int = 0) -> Figures:
    found = figures(whole, whole.cells[index])
    assert found is not None
    return found


def figures_of_sessions(*sessions: Session) -> Figures:
    return figures_of(record(cell(sessions=sessions)))


def arm(name: str, step_ms: Sequence[Sequence[float]], tokens: Sequence[int] = (5, 6, 7)) -> Cell:
    sessions = [session(number, steps, tokens=tokens) for number, steps in enumerate(step_ms)]
    return cell(replace(KEY, arm=name), sessions)


def test_figures_of_known_samples() -> None:
    found = figures_of_sessions(session(0, (1.0, 2.0, 9.0)), session(1, (1.0, 1.0, 1.0)), session(2, (4.0, 4.0, 4.0)))
    assert found.step_ms == 2.0  # the median of 2, 1, 4
    assert (found.p50_ms, found.p99_ms) == (2.0, 9.0)
    assert found.tokens_per_s == 500.0
    assert found.bytes_per_s == pytest.approx(5 * GB)
    assert found.peak_bytes_per_s == 20 * GB
    assert found.copy_bytes_per_s == 10 * GB
    assert found.of_measured == found.of_best_sweep == pytest.approx(0.25)
    assert found.cv == pytest.approx(np.std([2, 1, 4], ddof=1) / (7 / 3))
    assert (found.floor_ms, found.footprint_floor_ms) == pytest.approx((0.5, 0.6))
    assert found.footprint_peak == "measured"
    assert (found.launch_ms, found.residual_ms) == (None, pytest.approx(1.5))
    assert (found.of_datasheet, found.watts, found.joules_per_token, found.celsius, found.clocks_moved) == (None,) * 5
    assert found.counted_bytes is None


def test_each_session_is_set_against_its_own_peak() -> None:
    """The memory of a shared machine is slow for a while: steps and sweeps of one process are slow together."""
    slow, fast = session(0, (4.0,), peak=5.0 * GB), session(1, (1.0,), peak=20.0 * GB)
    found = figures_of_sessions(slow, fast)
    assert found.of_measured == found.of_best_sweep == pytest.approx(0.5)
    assert found.of_measured_interval == pytest.approx((0.5, 0.5))


def interleaved(blocks: Sequence[tuple[float, float]], last: float) -> Session:
    """(peak, step_ms) of sweeps and the block that follows them, and the peak of the last sweeps."""
    peaks = [peak for peak, _ in blocks] + [last]
    return replace(
        session(0, (1.0,)),
        blocks=tuple(Block(3 * index + 2, step_ms, (step_ms,)) for index, (_, step_ms) in enumerate(blocks)),
        sweeps=tuple(Sweep(3 * index, peak * GB) for index, peak in enumerate(peaks)),
        copies=tuple(Sweep(3 * index + 1, 90.0 * GB) for index in range(len(peaks))),
    )


def test_each_block_is_set_against_the_sweeps_beside_it() -> None:
    """Memory that slows down within a session: 10 MB in 1 ms of 20 GB/s, then in 4 ms of 5 GB/s, are the same half."""
    changing = interleaved([(20.0, 1.0), (19.0, 1.0), (5.0, 4.0), (4.5, 4.0), (5.0, 4.0)], 5.0)
    found = figures_of_sessions(changing)
    assert block_shares(BYTES.useful, changing) == pytest.approx([0.5, 10 / 19, 0.5, 0.5, 0.5])
    assert found.of_measured == pytest.approx(0.5)
    assert found.of_best_sweep == pytest.approx(0.125)
    assert found.peak_bytes_per_s == 5.0 * GB


def test_the_interval_of_the_fraction_tells_steps_blocks_and_sessions_that_differ() -> None:
    steps, blocks = session(0, (0.8, 1.0, 1.2)), interleaved([(20.0, 0.8), (20.0, 1.0), (20.0, 1.25)], 20.0)
    for varied in ([steps], [blocks], [session(number, (ms,)) for number, ms in enumerate((0.8, 1.0, 1.2))]):
        found = figures_of_sessions(*varied)
        low, high = found.of_measured_interval
        assert found.of_measured == pytest.approx(0.5)
        assert low < 0.5 < high
    assert figures_of_sessions(session(0, (1.0,))).of_measured_interval == pytest.approx((0.5, 0.5))


def test_sweeps_on_the_far_side_of_another_arms_block_are_not_beside() -> None:
    sweeps = tuple(Sweep(order, rate * GB) for order, rate in ((0, 20.0), (2, 5.0), (4, 40.0)))
    ours = replace(session(0, (4.0,)), blocks=(Block(1, 4.0, (4.0,)),), sweeps=sweeps, copies=())
    assert [peak for _, peak in peaks_beside(ours)] == [20.0 * GB]
    nothing_beside = replace(ours, blocks=(Block(9, 4.0, (4.0,)), Block(7, 4.0, (4.0,))))
    assert [(block.order, peak) for block, peak in peaks_beside(nothing_beside)] == [(7, 40.0 * GB), (9, 40.0 * GB)]


@given(st.lists(st.tuples(st.floats(1, 100), st.floats(0.01, 100)), min_size=1, max_size=8), st.floats(1, 100))
def test_peaks_beside_are_at_most_the_best(blocks: list[tuple[float, float]], last: float) -> None:
    changing = interleaved(blocks, last)
    beside = [peak for _, peak in peaks_beside(changing)]
    rates = [*(peak for peak, _ in blocks), last]
    assert beside == [max(pair) * GB for pair in pairwise(rates)]
    assert max(beside) == best(changing.sweeps)


def test_a_datasheet_peak_counts_for_the_footprint_floor() -> None:
    device = replace(DEVICE, datasheet_bytes_per_s=40.0 * GB)
    found = figures_of(record(cell(sessions=[session(0, (1.0,))]), device=device))
    assert found.of_datasheet == pytest.approx(0.25)
    assert found.footprint_floor_ms == pytest.approx(0.3)
    assert found.footprint_peak == "datasheet"
    assert found.floor_ms == pytest.approx(0.5)


def test_a_cell_without_samples_has_no_figures() -> None:
    whole = record()
    assert [figures(whole, one) is None for one in whole.cells] == [False, True, True]


def test_launch_is_what_graphs_save() -> None:
    eager, graph = arm("eager", [(3.0,), (3.2,)]), arm("graph", [(2.0,), (2.0,)])
    whole = record(eager, graph, cell(replace(KEY, engine="onnx"), [session(0, (9.0,))]))
    first, second, third = (figures_of(whole, index) for index in range(3))
    assert (first.launch_ms, second.launch_ms, third.launch_ms) == (pytest.approx(1.1), 0.0, None)
    for found in (first, second):
        assert found.floor_ms + (found.launch_ms or 0) + found.residual_ms == pytest.approx(found.step_ms)
    alone = record(eager, unmeasured(graph.key, "failed", "no memory"))
    assert figures_of(alone).launch_ms is None


def test_arms_are_compared_over_the_sessions_they_share() -> None:
    ours = arm("default", [(1.0,), (1.0,), (1.0,)], tokens=(1, 2, 3, 4))
    sessions = [session(1, (2.0,), tokens=(1, 2, 9, 4)), session(2, (4.0,), tokens=(1, 2, 3, 9))]
    theirs = cell(replace(KEY, engine="onnx"), sessions)
    elsewhere = cell(replace(KEY, context=17))
    (versus,) = figures_of(record(ours, theirs, elsewhere)).versus
    assert (versus.engine, versus.arm, versus.sessions, versus.equal_tokens) == ("onnx", "default", 2, 2)
    assert versus.times_as_fast == pytest.approx(3.0)
    assert versus.interval == pytest.approx((2.0, 4.0))
    (back,) = figures_of(record(ours, theirs, elsewhere), 1).versus
    assert back.times_as_fast == pytest.approx((0.5 + 0.25) / 2)
    assert figures_of(record(ours, cell(replace(KEY, engine="onnx"), [session(7, (1.0,))]))).versus == ()


def telemetry(
    energy_j: float | None = None,
    celsius: float | None = None,
    clocks: tuple[float, float] | None = None,
    throttled: tuple[str, ...] = (),
) -> Telemetry:
    return Telemetry(2.0, energy_j, celsius, {} if clocks is None else {"cpu": clocks}, throttled)


def test_power_and_heat() -> None:
    read = session(0, (1.0, 1.0), telemetry=telemetry(30.0, 50.0, (1000.0, 1040.0)))
    hotter = session(1, (1.0, 1.0, 1.0), telemetry=telemetry(10.0, 60.0))
    unread = session(2, (1.0,), telemetry=telemetry())
    found = figures_of_sessions(read, hotter, unread, session(3, (1.0,)))
    assert (found.watts, found.joules_per_token, found.celsius) == (10.0, 8.0, 60.0)
    assert found.clocks_moved is False
    assert found.flags == ()


def test_counted_bytes_are_the_median_of_what_was_counted() -> None:
    counts = (9.0e6, None, 11.0e6)
    sessions = [replace(session(number, (1.0,)), counted_bytes=count) for number, count in enumerate(counts)]
    assert figures_of_sessions(*sessions).counted_bytes == 10.0e6


@pytest.mark.parametrize(
    ("seen", "flag"),
    [(telemetry(clocks=(940.0, 1000.0)), "clocks_moved"), (telemetry(throttled=("cpu thermal",)), "throttled")],
)
def test_a_session_of_moving_clocks_or_throttling_is_flagged(seen: Telemetry, flag: str) -> None:
    assert figures_of_sessions(session(0, (1.0,)), session(1, (1.0,), telemetry=seen)).flags == (flag,)


def test_a_session_on_a_busy_machine_is_flagged() -> None:
    quiet, busy = replace(session(0, (1.0,)), busy_elsewhere=0.01), replace(session(1, (1.0,)), busy_elsewhere=0.2)
    assert figures_of_sessions(quiet, session(2, (1.0,))).flags == ()
    found = figures_of_sessions(quiet, busy)
    assert (found.busy_elsewhere, found.flags) == (0.2, ("machine_busy",))


def test_a_peak_that_moves_between_sessions_is_flagged() -> None:
    for other, flags in ((18.1, ()), (17.9, ("peak_moved",))):
        sessions = (session(0, (1.0,), peak=20.0 * GB), session(1, (1.0,), peak=other * GB))
        assert figures_of_sessions(*sessions).flags == flags


def test_a_step_that_the_cache_may_serve_is_flagged() -> None:
    for llc_bytes, flags in ((BYTES.useful // 4 + 1, ("fits_in_cache",)), (BYTES.useful // 4, ()), (None, ())):
        assert figures_of(record(cell(), device=replace(DEVICE, llc_bytes=llc_bytes))).flags == flags


def test_more_than_the_peak_is_flagged_beyond_the_interval_alone() -> None:
    assert figures_of_sessions(*(session(number, (0.4, 0.41)) for number in range(3))).flags == ("over_peak",)
    near = figures_of_sessions(session(0, (0.4,)), session(1, (0.49,)), session(2, (0.6,)))
    assert near.of_measured > 1
    assert near.flags == ()


def test_arms_of_one_engine_must_give_the_same_tokens() -> None:
    other = cell(replace(KEY, engine="onnx"), [session(0, (1.0,), tokens=(8, 8, 8))])
    same = record(arm("eager", [(1.0,)]), arm("graph", [(1.0,)]), other)
    assert [figures_of(same, index).flags for index in range(3)] == [(), (), ()]
    differing = record(arm("eager", [(1.0,)]), arm("graph", [(1.0,)], tokens=(5, 6, 8)), other)
    assert [figures_of(differing, index).flags for index in range(3)] == [("tokens_differ",), ("tokens_differ",), ()]
    unsteady = [session(0, (1.0,)), session(1, (1.0,), tokens=(5, 6, 8))]
    assert figures_of_sessions(*unsteady).flags == ("tokens_differ",)


@given(st.lists(STEPS, min_size=1, max_size=5))
def test_intervals_lie_within_the_samples_and_repeat(steps: list[list[float]]) -> None:
    low, high = interval(resampled_medians(steps))
    assert min(map(min, steps)) <= low <= high <= max(map(max, steps))
    assert (low, high) == interval(resampled_medians(steps))


@given(STEPS, st.floats(1e6, 1e12))
def test_the_floor_over_the_step_is_the_fraction(step_ms: list[float], peak: float) -> None:
    found = figures_of_sessions(session(0, step_ms, peak=peak))
    assert found.floor_ms / found.step_ms == pytest.approx(found.of_measured)
    assert found.floor_ms + found.residual_ms == pytest.approx(found.step_ms)


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    """Ten sessions that differ, of steps that differ: nine in ten intervals or more hold the true median."""
    random = np.random.default_rng(3)
    held = 0
    for _ in range(100):
        steps = random.normal(10 + random.normal(0, 0.3, (10, 1)), 0.5, (10, 32))
        low, high = interval(resampled_medians(steps.tolist()))
        held += low <= 10 <= high
    assert held >= 88


@pytest.mark.parametrize(
    ("ours", "theirs", "same"), [((), (), 0), ((1, 2), (1, 2), 2), ((1, 2), (1,), 1), ((1, 2), (3, 2), 0)]
)
def test_equal_tokens(ours: tuple[int, ...], theirs: tuple[int, ...], same: int) -> None:
    assert common_prefix(ours, theirs) == same


@given(st.lists(st.floats(0, 1e6), min_size=1))
def test_percentile_is_the_nearest_rank(values: list[float]) -> None:
    found = percentile(values, 99)
    assert sum(value <= found for value in values) >= 0.99 * len(values)
    assert sum(value < found for value in values) < 0.99 * len(values)
