"""Fits that give back what their steps were made from, within bounds; predictions that say what they are."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from profile_records import BYTES, DEVICE, KEY, cell, record, session, target, unmeasured

from edgemem.kernels.cost import step_cost
from edgemem.kernels.formats import Precision
from edgemem.profiles.prediction import Fit, Measurement, fit, measurements, predict
from edgemem.profiles.shapes import SHAPES, shape
from edgemem.runtime.errors import SettingsError

PEAK = 200e9
NAMES = ("qwen3-0.6b", "qwen3-4b", "llama-3.1-8b")
EXACT = Fit(0.8, 0.02, (("a", 0.01), ("b", -0.03)), "a fit made up")


def made(efficiency: float, phase_ms: float, names: Sequence[str] = NAMES) -> list[Measurement]:
    """Steps of known shapes in bf16, of exactly these two numbers."""
    steps = []
    for name in names:
        cost = step_cost(SHAPES[name], lambda matrix: Precision("bf16"), 512, kv_element_bytes=2)
        ms = 1e3 * cost.streamed_bytes / (efficiency * PEAK) + cost.phases * phase_ms
        steps.append(Measurement(name, cost.streamed_bytes, cost.phases, ms, PEAK))
    return steps


@given(st.floats(0.05, 1.0), st.floats(0.0, 1.0))
def test_a_fit_finds_the_two_numbers(efficiency: float, phase_ms: float) -> None:
    found = fit(made(efficiency, phase_ms), "made up")
    assert found.efficiency == pytest.approx(efficiency, rel=1e-6)
    assert found.phase_ms == pytest.approx(phase_ms, rel=1e-6, abs=1e-9)
    assert found.worst < 1e-9


@given(st.lists(st.floats(0.5, 2.0), min_size=3, max_size=3))
def test_a_fit_stays_within_bounds_and_none_within_them_is_better(noise: list[float]) -> None:
    steps = [replace(step, step_ms=step.step_ms * by) for step, by in zip(made(0.9, 0.01), noise, strict=True)]
    found = fit(steps, "noise")
    assert 0 < found.efficiency <= 1
    assert found.phase_ms >= 0

    def loss(efficiency: float, phase_ms: float) -> float:
        candidate = replace(found, efficiency=efficiency, phase_ms=phase_ms)
        times = [sum(candidate.milliseconds(step.streamed_bytes, step.phases, step.peak)) for step in steps]
        return sum((ms / step.step_ms - 1) ** 2 for ms, step in zip(times, steps, strict=True))

    best = loss(found.efficiency, found.phase_ms)
    assert best == pytest.approx(sum(residual**2 for _, residual in found.residuals), abs=1e-12)
    for share in (0.9, 0.99, 1.01, 1.1):
        for extra in (-0.01, -0.001, 0.0, 0.001, 0.01):
            efficiency, phase_ms = min(1.0, found.efficiency * share), max(0.0, found.phase_ms + extra)
            assert loss(efficiency, phase_ms) >= best - 1e-12


def test_steps_faster_than_their_floor_are_fitted_at_the_whole_peak() -> None:
    found = fit([replace(step, step_ms=0.9 * step.floor_ms) for step in made(1.0, 0.0)], "a wrong peak")
    assert (found.efficiency, found.phase_ms) == (1.0, 0.0)
    assert [residual for _, residual in found.residuals] == pytest.approx([1 / 0.9 - 1] * 3)
    assert found.worst == pytest.approx(1 / 0.9 - 1)


@pytest.mark.parametrize("names", [[], ["qwen3-4b"], ["qwen3-4b", "qwen3-4b"]])
def test_steps_that_do_not_differ_are_not_fitted(names: list[str]) -> None:
    with pytest.raises(SettingsError, match="second shape"):
        fit(made(0.5, 0.1, names), "too few")


@pytest.mark.parametrize("field", ["streamed_bytes", "phases", "step_ms", "peak"])
@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), True])
def test_measurements_are_positive_numbers(field: str, value: float) -> None:
    with pytest.raises(SettingsError, match=field):
        replace(made(0.5, 0.1)[0], **{field: value})


def test_a_prediction_is_labelled_and_tells_its_inputs_and_their_origin() -> None:
    step = step_cost(shape("qwen2.5-7b"), lambda matrix: Precision("int4", 32), 2048, kv_element_bytes=2)
    predicted = predict(EXACT, step, "qwen2.5-7b in int4-g32, 2048 slots", 204.8e9, "datasheet of agx-orin")
    assert predicted.streaming_ms == pytest.approx(1e3 * step.streamed_bytes / (0.8 * 204.8e9))
    assert predicted.phases_ms == pytest.approx(0.02 * (5 * 28 + 1))
    assert predicted.tokens_per_s == pytest.approx(1e3 / (predicted.streaming_ms + predicted.phases_ms))
    assert predicted.line().startswith("prediction: ")
    assert "3.0%" in predicted.line()
    plain = json.loads(json.dumps(predicted.to_dict()))
    assert plain["label"] == "prediction"
    assert plain["error"] == 0.03
    origins = {given_["name"]: (given_["value"], given_["origin"]) for given_ in plain["inputs"]}
    assert origins["peak bandwidth"] == (204.8e9, "datasheet of agx-orin")
    assert origins["efficiency"] == (0.8, "a fit made up")
    assert origins["phase cost"] == (0.02, "a fit made up")
    assert origins["phases"][0] == 141
    assert origins["streamed bytes"] == (step.streamed_bytes, "cost model of qwen2.5-7b in int4-g32, 2048 slots")


@pytest.mark.parametrize("peak", [0.0, -1.0, float("nan"), float("inf")])
def test_no_prediction_without_a_peak(peak: float) -> None:
    step = step_cost(shape("smollm2-135m"), lambda matrix: Precision("bf16"), 0, kv_element_bytes=2)
    with pytest.raises(SettingsError, match="peak"):
        predict(EXACT, step, "a step", peak, "nowhere")


def test_a_step_that_was_fitted_is_predicted_as_it_was_measured() -> None:
    name = "smollm2-1.7b"
    found = fit(made(0.7, 0.05), "made up")
    step = step_cost(shape(name), lambda matrix: Precision("bf16"), 512, kv_element_bytes=2)
    assert predict(found, step, name, PEAK, "made up").step_ms == pytest.approx(made(0.7, 0.05, [name])[0].step_ms)


@pytest.mark.parametrize("datasheet", [None, 50e9])
def test_measurements_come_from_the_measured_cells_of_one_engine(datasheet: float | None) -> None:
    run = record(
        cell(sessions=[session(0, [2.0, 2.0])]),
        cell(replace(KEY, engine="onnx", kv="fp32")),
        unmeasured(replace(KEY, context=32), "failed", "no memory"),
        device=replace(DEVICE, datasheet_bytes_per_s=datasheet),
        targets=(target(),),
    )
    (found,) = measurements(run, "native")
    assert (found.streamed_bytes, found.step_ms) == (BYTES.useful, 2.0)
    assert found.phases == 5 * target().model.layers + 1
    assert found.peak == (datasheet or 20e9)
    assert found.name == "tiny, 16 slots"
    assert len(list(measurements(run, "onnx"))) == 1
    assert not list(measurements(run, "native", "graph"))
