"""Moved bytes: what engines hold and report, and plain counts of blocks and lanes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from runnable_packages import plain_model, rich_model, runnable_package, same_precision

from edgemem.kernels.formats import Precision
from edgemem.kernels.native import native
from edgemem.profiles.floors import KV_FORMATS, engine_step, kv_format, model_step
from edgemem.profiles.moved import moved_bytes
from edgemem.runtime.budget import native_budget, onnx_budget
from edgemem.runtime.errors import SettingsError
from edgemem.runtime.model import ModelSpec
from edgemem.runtime.open import open_engine
from edgemem.runtime.package import Package

MODELS = {
    "plain": plain_model(),
    "odd rows": plain_model(vocabulary=301, tied_head=True, heads=2, kv_heads=1),
    "rich": rich_model(),
}
PLANS = ("int4-g32-min", "int8-g32", "bf16")


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> ModelSpec:
    return MODELS[request.param]


@pytest.mark.parametrize("plan", PLANS)
def test_weights_moved_are_the_weights_that_an_engine_keeps(tmp_path: Path, model: ModelSpec, plan: str) -> None:
    path = runnable_package(tmp_path / "m.edgemem", model, same_precision(model, plan))
    with Package.open(path) as package:
        whole = (0, model.layers)
        kept = {
            "native": dict(native_budget(package, 16, whole, 1).lines)["weights, packed"],
            "onnx": dict(onnx_budget(package, 16, whole, 1, 1).lines)["weights packed by ONNX Runtime"],
        }
        for engine, packed in kept.items():
            beside = sum(
                op.weight_bytes
                for op in engine_step(package.manifest, 9, engine).ops
                if op.name in ("embedding", "norm") or op.name.endswith("vectors")
            )
            assert moved_bytes(model, package.precision, 9, engine).weights == packed + beside


@pytest.mark.parametrize(("engine", "kv"), [(engine, kv) for engine, kinds in KV_FORMATS.items() for kv in kinds])
@pytest.mark.parametrize("slots", [0, 1, 15, 16, 100])
def test_an_engine_moves_no_less_than_the_step_needs(model: ModelSpec, engine: str, kv: str, slots: int) -> None:
    plan = same_precision(model, "int4-g32")
    useful = model_step(model, plan.__getitem__, slots, kv_format(engine, kv))
    moved = moved_bytes(model, plan.__getitem__, slots, engine, kv)
    assert moved.weights >= useful.weight_bytes
    assert moved.kv_read >= useful.kv_read_bytes
    assert moved.kv_write >= useful.kv_write_bytes


@pytest.mark.skipif(native() is None, reason="the native kernels were not built")
@pytest.mark.parametrize("kv", KV_FORMATS["native"])
def test_useful_bytes_are_what_the_native_engine_reports(tiny_package: Path, kv: str) -> None:
    with Package.open(tiny_package) as package:
        engine = open_engine(package, "native", capacity=32, kv=kv)
        engine.extend(np.arange(3, 12, dtype=np.int32))
        traffic, cost = engine.traffic(), engine_step(package.manifest, 9, "native", kv)
        engine.close()
    assert (traffic.weights, traffic.kv_read, traffic.kv_write) == (
        cost.weight_bytes,
        cost.kv_read_bytes,
        cost.kv_write_bytes,
    )


@pytest.mark.parametrize(
    ("slots", "window", "key_slots", "value_slots"),
    [
        (0, 0, 16, 0),
        (15, 0, 16, 15),
        (16, 0, 32, 16),
        (40, 0, 48, 40),
        (40, 8, 48 - 32, 40 - 33),
        (40, 25, 48 - 16, 24),
    ],
)
def test_native_keys_come_in_blocks_of_16_slots(slots: int, window: int, key_slots: int, value_slots: int) -> None:
    model = plain_model(layers=2, kv_heads=2, head_dim=20, windows=(window, window))
    plan = same_precision(model, "fp16")
    halves = moved_bytes(model, plan.__getitem__, slots, "native", "fp16")
    assert halves.kv_read == 2 * 2 * (key_slots * 20 * 2 + value_slots * 32 * 2)  # values in whole lanes
    assert halves.kv_write == 2 * 2 * (16 * 20 * 2 + 32 * 2)
    as_bytes = moved_bytes(model, plan.__getitem__, slots, "native", "int8")
    assert as_bytes.kv_read == 2 * 2 * (key_slots * (20 + 4 + 4) + value_slots * 32)
    assert as_bytes.kv_write == 2 * 2 * (16 * 20 + 32 + 2 * 4)


def test_onnx_reads_keys_and_values_for_every_query_head_and_whatever_the_window() -> None:
    model = plain_model(layers=2, heads=4, kv_heads=2, head_dim=16, windows=(5, 0))
    moved = moved_bytes(model, lambda name: Precision("fp32"), 30, "onnx")
    assert moved.kv_read == 2 * 2 * 4 * 16 * 4 * 30
    assert moved.kv_write == 2 * 2 * 2 * 16 * 4


def test_other_engines_are_refused() -> None:
    with pytest.raises(SettingsError, match="abacus"):
        moved_bytes(plain_model(), lambda name: Precision("fp32"), 1, "abacus")
