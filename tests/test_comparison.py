"""Two records side by side: the differing conditions, ratios with intervals, and what only one of them has."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from profile_records import DEVICE, KEY, cell, record, session, target, unmeasured

from edgemem.profiles.comparison import HEADERS, compare
from edgemem.profiles.conditions import conditions, precision_text, quality_text
from edgemem.profiles.record import Cell, CellKey, Record
from edgemem.runtime.manifest import Quality


def timed(step_ms: float, key: CellKey = KEY, spread: float = 0.01) -> Cell:
    """Five sessions whose medians lie within `spread` of `step_ms`."""
    middles = [step_ms * (1 + spread * offset) for offset in (-1, -0.5, 0, 0.5, 1)]
    return cell(key, [session(number, (0.99 * ms, ms, 1.01 * ms)) for number, ms in enumerate(middles)])


def test_a_faster_run_is_faster_by_its_ratio() -> None:
    (pair,) = compare(record(timed(2.0)), record(timed(1.6))).pairs
    assert pair.times_as_fast == pytest.approx(1.25)
    low, high = pair.interval
    assert 1.2 < low < 1.25 < high < 1.3
    assert (pair.a_step_ms, pair.b_step_ms, pair.verdict) == (pytest.approx(2.0), pytest.approx(1.6), "faster")


def test_swapping_the_runs_turns_the_ratio_over() -> None:
    a, b = record(timed(2.0)), record(timed(1.6))
    (there,), (back,) = compare(a, b).pairs, compare(b, a).pairs
    assert back.times_as_fast == pytest.approx(1 / there.times_as_fast)
    assert back.verdict == "slower"
    assert back.a_of_measured == there.b_of_measured


def test_noise_shows_no_difference() -> None:
    (pair,) = compare(record(timed(2.0, spread=0.3)), record(timed(1.9, spread=0.3))).pairs
    assert pair.interval[0] < 1 < pair.interval[1]
    assert pair.verdict == "no difference shown"


def test_a_run_against_itself_differs_in_nothing() -> None:
    same = record(timed(2.0))
    found = compare(same, same)
    assert found.differences == ()
    assert found.pairs[0].times_as_fast == 1.0
    assert (found.only_a, found.only_b) == ((), ())


def test_the_same_comparison_gives_the_same_interval() -> None:
    a, b = record(timed(2.0)), record(timed(1.6))
    assert compare(a, b) == compare(a, b)


def test_differing_conditions_are_named_with_both_sides() -> None:
    a = record(timed(2.0))
    board = replace(DEVICE, reported="another board", governor="performance")
    b = replace(a, device=board, versions={**a.versions, "onnxruntime": "1.23"})
    assert set(compare(a, b).differences) == {
        ("device", "some board (in no table)", "another board (in no table)"),
        ("reported as", "some board", "another board"),
        ("governor", "not known", "performance"),
        ("version of onnxruntime", "not installed", "1.23"),
    }


def test_cells_that_one_side_lacks_are_named() -> None:
    longer = replace(KEY, context=32)
    a = record(timed(2.0), timed(3.0, longer))
    b = record(timed(1.6), unmeasured(longer, "failed", "no memory"), timed(1.0, replace(KEY, engine="onnx")))
    found = compare(a, b)
    assert [pair.key.context for pair in found.pairs] == [16]
    assert found.only_a == ("tiny native default at 32",)
    assert found.only_b == ("tiny onnx default at 16",)


def test_threads_and_kv_are_conditions_not_cells() -> None:
    other = replace(KEY, threads=8, kv="int8")
    found = compare(record(timed(2.0)), record(timed(1.0, other)))
    assert len(found.pairs) == 1
    assert ("threads", "2", "8") in found.differences
    assert ("keys and values", "native fp16", "native int8") in found.differences


def renamed(name: str, step_ms: float) -> Record:
    return record(timed(step_ms, replace(KEY, target=name)), targets=(target(name=name),))


def test_one_model_each_is_compared_whatever_its_name() -> None:
    found = compare(renamed("int4", 1.0), renamed("int8", 2.0))
    assert [pair.verdict for pair in found.pairs] == ["slower"]
    assert any(name == "model" for name, _, _ in found.differences)


def test_models_among_several_are_compared_by_name() -> None:
    names = ("int4", "int8")
    both = record(
        *(timed(1.0, replace(KEY, target=name)) for name in names), targets=tuple(target(name=n) for n in names)
    )
    found = compare(both, renamed("int8", 2.0))
    assert [pair.key.target for pair in found.pairs] == ["int8"]
    assert found.only_a == ("int4 native default at 16",)


def test_a_comparison_is_plain_json_and_a_table() -> None:
    found = compare(record(timed(2.0)), record(timed(1.6)))
    plain = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert plain["pairs"][0]["verdict"] == "faster"
    assert len(found.pairs[0].cells()) == len(HEADERS)


def test_conditions_say_what_the_weights_are_worth() -> None:
    texts = conditions(record(timed(1.0)))
    assert texts["weights"] == "embedding int8-g32, head int4-g32-min, layers int4-g32-min"
    assert "KL 0.01 nats" in texts["quality"]
    assert quality_text(target(quality=None, quality_note="random weights")) == "random weights"
    quality = Quality("t", 10, 20.0, 19.0, 0.5, 0.25)
    assert quality_text(target(quality=quality)).startswith(
        "perplexity 20 against 19, KL 0.5 nats, same first choice 25.0%"
    )


def test_weights_that_differ_between_layers_are_shown_in_full() -> None:
    small = target()
    (run,) = small.precision["layers"]
    mixed = {**small.precision, "layers": [{**run, "query": "fp16"}]}
    assert '"query": "fp16"' in precision_text(replace(small, precision=mixed))
