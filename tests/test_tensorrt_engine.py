"""What is the tensorrt engine's own: buckets, chunks, clean slots, what a step reads, and how TensorRT is driven.

ONNX Runtime stands in for TensorRT where numbers count, and a simulated TensorRT where the order of its calls does.
The rules that all engines obey are in test_engines.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from plan_engines import plan_engine
from runnable_packages import plain_model, runnable_package, same_precision

from edgemem.kernels.cost import step_cost
from edgemem.runtime.errors import EngineError, NumericError, SettingsError
from edgemem.runtime.open import open_engine
from edgemem.runtime.package import Package
from edgemem.runtime.plan_buffers import PlanBuffers
from edgemem.runtime.plan_engine import PlanEngine
from edgemem.runtime.plan_shape import PlanShape
from edgemem.runtime.sampling import Sampler, Sampling
from edgemem.runtime.tensorrt_library import Library
from edgemem.runtime.tensorrt_runner import TensorRtRunner


def some_tokens(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 97, count).astype(np.int32)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Package]:
    model = plain_model()
    path = tmp_path_factory.mktemp("plans") / "p.edgemem"
    with Package.open(runnable_package(path, model, same_precision(model, "int4-g32-min", head="fp16"))) as opened:
        yield opened


@pytest.fixture
def engine(package: Package, tmp_path: Path) -> Iterator[PlanEngine]:
    opened = plan_engine(package, tmp_path, capacity=64)
    yield opened
    opened.close()


class Watched:
    """A runner that notes what it is asked to run."""

    def __init__(self, runner: Any) -> None:
        self.runner, self.buffers, self.runs = runner, runner.buffers, []

    def run(self, count: int, bucket: int, rows: int) -> None:
        self.runs.append((count, bucket, rows))
        self.runner.run(count, bucket, rows)

    def close(self) -> None:
        self.runner.close()


def watch(engine: PlanEngine) -> Watched:
    watched = Watched(engine._runner)
    engine._runner = watched
    return watched


def test_a_run_looks_at_the_smallest_bucket_that_holds_it_over_one_cache(engine: PlanEngine) -> None:
    watched = watch(engine)
    place = watched.buffers.cache.buffer.data_ptr()
    engine.extend(some_tokens(3))
    decoded = list(engine.decode(Sampler(Sampling()), 16))
    assert engine.length == 3 + 15 == 2 + len(decoded)
    buckets = [bucket for _, bucket, _ in watched.runs]
    assert buckets == [4] + [4] + [16] * 12 + [64] * 2
    assert watched.buffers.cache.buffer.data_ptr() == place
    assert watched.buffers.inputs(1, 64, 1)["past_key_values.0.key"].data_ptr() == place


def test_long_input_runs_in_chunks_and_scored_input_in_rows(package: Package, tmp_path: Path) -> None:
    whole, pieces = (plan_engine(package, tmp_path, capacity=64) for _ in range(2))
    shape = PlanShape(layers=(0, 3), capacity=64, buckets=(4, 16, 64), chunk=10, rows=4)
    buffers = PlanBuffers(package.model, shape, "cpu")
    pieces._shape, pieces._runner.buffers = shape, buffers  # type: ignore[union-attr]
    watched = watch(pieces)
    tokens = some_tokens(24)
    wanted, got = whole.extend(tokens), pieces.extend(tokens)
    assert watched.runs == [(10, 16, 1), (10, 64, 1), (4, 64, 1)]
    np.testing.assert_allclose(got.logits, wanted.logits, atol=5e-3 * np.abs(wanted.logits).max())
    scored, in_rows = (engine.extend(some_tokens(9, 1), surprisal=True).surprisal for engine in (whole, pieces))
    assert watched.runs[3:] == [(4, 64, 4), (4, 64, 4), (1, 64, 1)]
    assert scored is not None
    np.testing.assert_allclose(in_rows, scored, atol=0.05)


def test_logits_are_those_of_the_main_graph(package: Package, engine: PlanEngine) -> None:
    main = open_engine(package, "onnx", capacity=64, threads=1)
    tokens = some_tokens(40)
    wanted, got = main.extend(tokens).logits, engine.extend(tokens).logits
    main.close()
    np.testing.assert_allclose(got, wanted, atol=2e-2 * np.abs(wanted).max())  # int8 activations there, none here


def test_a_step_reads_its_bucket_and_minima_in_float32(package: Package, engine: PlanEngine) -> None:
    slot = 3 * 2 * 2 * 16 * 2
    read = []
    for length in (0, 3, 4, 15, 16, 63):
        engine.truncate(0)
        if length:
            engine.extend(some_tokens(length))
        read.append(engine.traffic().kv_read // slot)
    assert read == [4, 4, 16, 16, 64, 64]
    stored = step_cost(package.model, package.precision, 0, kv_element_bytes=2)
    groups = 3 * (64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 128) // 32 + 64 // 32  # and one row of the embedding
    assert engine.traffic().weights == stored.weight_bytes + 2 * groups
    assert engine.traffic().kv_write == slot


def test_slots_not_in_use_hold_zeros_whatever_failed(engine: PlanEngine) -> None:
    cache = engine._runner.buffers.cache.buffer  # type: ignore[union-attr]
    engine.extend(some_tokens(30))
    assert cache[:, :, :, :30].abs().amax(dim=(0, 1, 2, 4)).min() > 0

    def clean() -> bool:
        return not bool(cache[:, :, :, engine.length :].any())

    engine.keep(np.array([0, 5, 29]))
    assert engine.length == 3
    assert clean()
    state = engine.state()
    engine.extend(some_tokens(20))
    engine.restore(state)
    assert clean()
    sound = engine.extend(some_tokens(3)).logits
    assert sound is not None
    sound = sound.copy()
    state.values[:, :, 2] = np.nan
    engine.restore(state)
    with pytest.raises(NumericError):
        engine.extend(some_tokens(3))
    assert engine.length == 3
    assert clean()
    state.values[:, :, 2] = 0
    engine.truncate(2)
    engine.extend(some_tokens(3))  # what was no number is gone


def test_fewer_slots_than_the_plan_s_may_be_used_and_more_are_refused(package: Package, engine: PlanEngine) -> None:
    runner: Any = engine._runner
    small = PlanEngine(package, runner, name="tensorrt", capacity=8)
    assert small.capacity == 8
    small.extend(some_tokens(8))
    assert small.traffic().kv_read == 16 * 3 * 2 * 2 * 16 * 2
    with pytest.raises(SettingsError, match=r"fewer slots(.|\n)*--max-context"):
        PlanEngine(package, runner, name="tensorrt", capacity=65)


class SimulatedCuda:
    """torch over the CPU, with a GPU's streams and graphs that only note what is done to them."""

    def __init__(self, notes: list[Any]) -> None:
        self.notes, self.capturing = notes, False
        self.cuda = self
        self.uint8 = torch.uint8

    def empty(self, size: int, *, dtype: Any, device: str) -> torch.Tensor:
        assert device == "cuda"
        return torch.empty(size, dtype=dtype)

    def Stream(self) -> Any:
        return SimpleNamespace(cuda_stream=7, wait_stream=lambda other: None, synchronize=lambda: None)

    def current_stream(self) -> Any:
        return SimpleNamespace(wait_stream=lambda other: None)

    @contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        assert stream.cuda_stream == 7
        yield

    def CUDAGraph(self) -> Any:
        return SimpleNamespace(replay=lambda: self.notes.append("replay"))

    @contextmanager
    def graph(self, graph: Any, *, stream: Any) -> Iterator[None]:
        self.notes.append("capture")
        yield


class SimulatedPlan:
    """An ICudaEngine and its contexts, noting profiles, shapes and runs."""

    num_optimization_profiles = 3

    def __init__(self, notes: list[Any]) -> None:
        self.notes, self.refused = notes, ""

    def get_device_memory_size_for_profile_v2(self, index: int) -> int:
        return 100 * (index + 1)

    def create_execution_context(self, strategy: Any) -> Any:
        assert strategy == "by the user"
        return SimulatedContext(self)


class SimulatedContext:
    def __init__(self, plan: SimulatedPlan) -> None:
        self.plan, self.profile, self.shapes, self.addresses = plan, -1, {}, {}

    def set_device_memory(self, address: int, size: int) -> None:
        assert size == 300

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        self.profile = profile
        return stream == 7

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = shape
        return name != self.plan.refused

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return address > 0

    def infer_shapes(self) -> list[str]:
        return []

    def execute_async_v3(self, stream: int) -> bool:
        self.plan.notes.append((self.profile, self.shapes["input_ids"], self.shapes["slots"]))
        return stream == 7


@pytest.fixture
def simulated() -> tuple[TensorRtRunner, SimulatedPlan, list[Any]]:
    notes: list[Any] = []
    plan = SimulatedPlan(notes)
    strategy = SimpleNamespace(USER_MANAGED="by the user")
    library = Library("tensorrt", "11", SimpleNamespace(ExecutionContextAllocationStrategy=strategy))
    shape = PlanShape(layers=(0, 3), capacity=64, buckets=(16, 64), chunk=8, rows=4)
    runner = TensorRtRunner.__new__(TensorRtRunner)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edgemem.runtime.tensorrt_runner.import_torch", lambda: SimulatedCuda(notes))
        runner.__init__(library, plan, PlanBuffers(plain_model(), shape, "cpu"))  # type: ignore[misc]
    return runner, plan, notes


def test_a_step_runs_once_is_captured_and_then_replayed_in_each_bucket(simulated: Any) -> None:
    runner, _, notes = simulated
    for count, bucket in ((5, 16), (1, 16), (1, 16), (1, 64), (1, 16), (8, 64), (1, 64)):
        runner.run(count, bucket, 1)
    step_16, step_64 = (0, (1, 1), (16,)), (1, (1, 1), (64,))
    assert notes == [
        *[(2, (1, 5), (16,))],
        *[step_16, "capture", step_16, "replay"],
        *[step_64, "capture", step_64],
        *["replay", (2, (1, 8), (64,)), "replay"],
    ]


def test_keys_and_values_are_written_where_they_are_read(simulated: Any) -> None:
    runner, _, _ = simulated
    runner.run(1, 16, 1)
    addresses = runner._contexts[0].addresses
    for layer in range(3):
        for part in ("key", "value"):
            assert addresses[f"present.{layer}.{part}"] == addresses[f"past_key_values.{layer}.{part}"]
    assert {"input_ids", "position_ids", "slots", "logits_rows", "logits"} < set(addresses)


def test_what_tensorrt_refuses_is_an_error(simulated: Any) -> None:
    runner, plan, _ = simulated
    plan.refused = "slots"
    with pytest.raises(EngineError, match="refused a shape of slots"):
        runner.run(1, 16, 1)
    runner.close()
    runner.close()
