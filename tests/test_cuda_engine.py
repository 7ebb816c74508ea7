"""What the cuda engine has beyond the rules of all engines: batches ahead, faults, its budget, its kinds of cache.

Without a GPU it runs in Triton's interpreter, a step at a time; graphs are then played by a stand-in.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from subprocess import CalledProcessError
from typing import Any

import numpy as np
import pytest
from interpreted_cuda import INTERPRETED
from runnable_packages import plain_model, rich_model, runnable_package, same_precision

from edgemem.kernels.cost import step_cost
from edgemem.profiles.floors import KV_FORMATS, engine_step
from edgemem.profiles.moved import moved_bytes
from edgemem.runtime.cuda_budget import cuda_budget, weight_bytes
from edgemem.runtime.cuda_engine import KV_KINDS, CudaEngine
from edgemem.runtime.cuda_graphs import STEPS_A_REPLAY, Batch, Replayed, StepsAhead
from edgemem.runtime.errors import BudgetError, EngineError, SettingsError
from edgemem.runtime.native_engine import NativeEngine
from edgemem.runtime.package import Package
from edgemem.runtime.sampling import Sampler, Sampling
from edgemem.runtime.session import Session
from edgemem.tools.gpu_models import RandomModel

import torch  # isort: skip  # after interpreted_cuda, which sets the environment that Triton reads

TOKENS = np.array([3, 1, 4, 1, 5, 9, 2], dtype=np.int32)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Package]:
    """One layer: a step of it takes Triton's interpreter little time."""
    model = plain_model(layers=1)
    path = tmp_path_factory.mktemp("cuda") / "one.edgemem"
    with Package.open(runnable_package(path, model, same_precision(model, "int4-g32-min", head="int8-g32"))) as opened:
        yield opened


@pytest.fixture
def engine(package: Package) -> Iterator[CudaEngine]:
    opened = CudaEngine(package, capacity=48)
    yield opened
    opened.close()


def ids(engine: Any, sampling: Sampling, limit: int, history: Any = ()) -> list[int]:
    return [token.id for token in engine.decode(Sampler(sampling, history), limit)]


SAMPLED = Sampling(temperature=0.9, top_k=20, top_p=0.9, min_p=0.02, repetition_penalty=1.3, seed=11)


@pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling(temperature=1.0, seed=5), SAMPLED], ids=["greedy", "drawn", "all"]
)
def test_tokens_are_those_of_the_host_sampler(package: Package, engine: CudaEngine, sampling: Sampling) -> None:
    engine.extend(TOKENS)
    sampler, wanted = Sampler(sampling, TOKENS.tolist()), []
    other = CudaEngine(package, capacity=48)
    logits = other.extend(TOKENS).logits
    for _ in range(5):
        assert logits is not None
        wanted.append(sampler.sample(logits))
        logits = other.extend(np.array(wanted[-1:], dtype=np.int32)).logits
    other.close()
    assert ids(engine, sampling, 5, TOKENS.tolist()) == wanted


def test_a_token_by_steps_is_a_token_by_large_products(engine: CudaEngine) -> None:
    engine.extend(TOKENS[:5])
    state = engine.state()
    found = []
    for engine._singly in (False, True):
        engine.restore(state)
        for token in TOKENS[5:]:
            logits = engine.extend(np.array([token])).logits
        assert logits is not None
        found.append((logits.copy(), engine.state()))
    (by_products, first), (by_steps, second) = found
    np.testing.assert_allclose(by_steps, by_products, atol=2e-3 * np.abs(by_products).max())
    np.testing.assert_allclose(first.keys, second.keys, atol=2e-3)
    np.testing.assert_allclose(first.values, second.values, atol=2e-3)


@pytest.mark.parametrize("layers", [(0, 2), (2, 4)])
def test_stages_give_the_same_states_by_steps(tmp_path: Path, layers: tuple[int, int]) -> None:
    model = rich_model()
    path = runnable_package(tmp_path / "rich.edgemem", model, same_precision(model, "int8-g32", embedding="bf16"))
    with Package.open(path) as package:
        stage = CudaEngine(package, capacity=16, layers=layers)
        rows = TOKENS[:3] if layers[0] == 0 else np.random.default_rng(0).standard_normal((3, 64)).astype(np.float32)
        stage.extend(rows[:2])
        before = stage.state()
        found = []
        for stage._singly in (False, True):
            stage.restore(before)
            step = stage.extend(rows[2:])
            values = step.hidden if step.logits is None else step.logits
            assert values is not None
            found.append(values.copy())
        stage.close()
    np.testing.assert_allclose(found[1], found[0], atol=5e-3 * np.abs(found[0]).max())


@pytest.mark.parametrize("kv", KV_KINDS)
def test_each_kind_of_cache_counts_saves_and_goes_on(package: Package, kv: Any) -> None:
    engine, other = (CudaEngine(package, capacity=16, kv=kv) for _ in range(2))
    engine.extend(TOKENS)
    state = engine.state()
    other.restore(state)
    for name in ("keys", "values", "logits"):
        np.testing.assert_array_equal(getattr(other.state(), name), getattr(state, name))
    assert ids(other, Sampling(), 2) == ids(engine, Sampling(), 2)
    kept = KV_FORMATS["cuda"][kv]
    traffic, cost = engine.traffic(), engine_step(package.manifest, engine.length, "cuda", kv)
    assert traffic.total == cost.streamed_bytes
    assert traffic.kv_write == 2 * 2 * (16 * kept.element_bytes + kept.scale_bytes)
    engine.close()
    other.close()


def test_a_decode_that_was_overtaken_does_not_go_on(engine: CudaEngine) -> None:
    engine.extend(TOKENS)
    decoding = engine.decode(Sampler(Sampling()), 9)
    next(decoding)
    engine.truncate(3)
    with pytest.raises(EngineError, match="middle of a decode"):
        next(decoding)
    assert engine.length == 3
    engine.extend(TOKENS[:1])
    not_begun = engine.decode(Sampler(Sampling()), 9)
    engine.truncate(2)
    with pytest.raises(EngineError, match="no logits"):
        next(not_begun)


def test_steps_that_ran_ahead_are_forgotten(engine: CudaEngine) -> None:
    """As under graphs, where the device is ahead of what was taken."""
    engine.extend(TOKENS)
    decoding = engine.decode(Sampler(Sampling()), 9)
    next(decoding)
    engine._logits_of = engine.length + 4
    decoding.close()
    assert engine.length == len(TOKENS)
    assert engine.state().logits is None
    with pytest.raises(EngineError, match="no logits"):
        engine.decode(Sampler(Sampling()), 1)
    engine.extend(TOKENS[:1])
    assert engine.state().logits is not None


class Played:
    """Replays without a GPU: each step's token is its number, `seconds` after the one before."""

    mode = "graph"

    def __init__(self, seconds: float) -> None:
        self.seconds, self.now, self.steps, self.runs = seconds, 0.0, 0, list[int]()

    def run(self, count: int) -> None:
        self.runs.append(count)

    def clock(self) -> float:
        return self.now

    def send(self, count: int) -> Any:
        first, self.steps = self.steps, self.steps + count
        played = self

        class Sent:
            def wait(self) -> tuple[list[int], list[float]]:
                played.now += count * played.seconds
                return list(range(first, first + count)), [0.5] * count

        return Sent()


@pytest.mark.parametrize("steps", [0, 1, 3, 4, 13])
def test_batches_ahead_give_every_step_once(steps: int) -> None:
    played = Played(0.001)
    ahead = StepsAhead(played, played, steps, clock=played.clock)  # type: ignore[arg-type]
    tokens: list[int] = []
    while batch := ahead.take():
        tokens += [token for token, _ in batch]
        assert ahead.queued + 1 - len(tokens) <= 2 * STEPS_A_REPLAY  # what a cancelled answer has run in vain
    assert tokens == list(range(steps + 1))
    assert sum(played.runs) == ahead.queued == steps
    assert set(played.runs) <= {1, STEPS_A_REPLAY}
    assert ahead.take() == []


def test_long_steps_come_one_by_one() -> None:
    played = Played(0.050)
    ahead = StepsAhead(played, played, 40, clock=played.clock)  # type: ignore[arg-type]
    while ahead.take():
        pass
    assert played.runs[2:] == [1] * len(played.runs[2:])
    assert sum(played.runs) == 40


def test_a_graph_is_captured_the_second_time(monkeypatch: pytest.MonkeyPatch) -> None:
    launched: list[int] = []
    replayed: list[str] = []

    class Graph:
        def replay(self) -> None:
            replayed.append("graph")

    steps = Replayed(launched.append, "graph")
    monkeypatch.setattr(steps, "_capture", lambda count: Graph())
    for count in (2, 2, 2, 1):
        steps.run(count)
    assert launched == [0, 1, 0]
    assert replayed == ["graph", "graph"]
    eager = Replayed(launched.append, "eager")
    eager.run(1)
    eager.run(1)
    assert launched == [0, 1, 0, 0, 0]


def test_modes_that_the_gpu_has_not_are_refused(package: Package, engine: CudaEngine) -> None:
    with pytest.raises(SettingsError, match="abacus"):
        CudaEngine(package, mode="abacus")  # type: ignore[arg-type]
    if INTERPRETED:
        with pytest.raises(SettingsError, match="eager"):
            CudaEngine(package, mode="graph")
        with pytest.raises(SettingsError, match="eager"):
            engine.set_mode("graph+pdl")
        with pytest.raises(EngineError, match="no GPU"):
            engine.device_step_ms(4)
    engine.set_mode("eager")
    with pytest.raises(SettingsError, match="fp16 or bf16"):
        CudaEngine(package, kv="int3")  # type: ignore[arg-type]


FAULTS: list[tuple[Exception, bool, str]] = [
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), False, "need not be restarted"),
    (RuntimeError("CUDA error: an illegal memory access was encountered\nmore"), True, "restart the process"),
    (RuntimeError("PassManager::run failed"), False, "need not be restarted"),
    (CalledProcessError(1, ["gcc", "main.c"]), False, "need not be restarted"),
]


@pytest.mark.parametrize(("fault", "is_lost", "advice"), FAULTS, ids=["memory", "sticky", "other", "compiler"])
def test_a_fault_ends_the_engine_and_leaves_its_length(
    engine: CudaEngine, monkeypatch: pytest.MonkeyPatch, fault: Exception, is_lost: bool, advice: str
) -> None:
    def fail() -> None:
        raise fault

    monkeypatch.setattr("edgemem.runtime.cuda_faults.context_is_lost", lambda: is_lost)
    engine.extend(TOKENS)
    decoding = engine.decode(Sampler(Sampling()), 9)
    next(decoding)
    monkeypatch.setattr(engine._step, "launch", fail)
    with pytest.raises(EngineError, match=advice) as caught:
        next(decoding)
    assert "\nmore" not in str(caught.value)
    assert engine.length == len(TOKENS)
    for use in (engine.state, lambda: engine.extend(TOKENS), lambda: engine.truncate(0)):
        with pytest.raises(EngineError, match="closed"):
            use()
    engine.close()


def test_a_fault_in_the_middle_of_an_answer_loses_nothing_of_the_journal(
    tiny_package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Session.open(tiny_package, engine="cuda", context=64, store=tmp_path / "store")
    engine: Any = session.engine
    answer = session.stream("The", ignore_eos=True, max_tokens=9)
    first = next(answer)
    monkeypatch.setattr(engine._step, "launch", _out_of_memory)
    with pytest.raises(EngineError, match="memory ran out"):
        list(answer)
    used = engine.length
    session.close()
    with Session.open(tiny_package, engine="native", context=64, store=tmp_path / "store") as again:
        assert again.engine.length >= used > 0
        assert again.messages[-2:][0]["content"] == "The"
        assert first.text in again.messages[-1]["content"]


def _out_of_memory() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize("plan", ["int4-g32", "int4-g64-min", "bf16", "fp32"])
def test_the_budget_holds_the_weights_as_they_are_on_the_device(tmp_path: Path, plan: str) -> None:
    model = plain_model(tied_head=True, vocabulary=101, layers=2)
    precision = same_precision(model, plan, key="fp16", embedding="int8-g32")
    with Package.open(runnable_package(tmp_path / "m.edgemem", model, precision)) as package:
        engine = CudaEngine(package, capacity=16)
        assert engine._step.nbytes == weight_bytes(package, (0, 2))
        lines = dict(cuda_budget(package, 16, (0, 2), "fp16").lines)
        assert lines["KV cache"] == engine._cache.keys.nbytes + engine._cache.values.nbytes
        assert lines["weights"] > engine._step.nbytes
        assert lines["logits"] >= 4 * engine._step.logits.nbytes
        engine.close()


@pytest.mark.parametrize(("weights", "card"), [("bf16", 24), ("int4-g128", 8)])
def test_a_model_of_7b_fits_where_its_weights_do(weights: str, card: int) -> None:
    package = RandomModel("qwen2.5-7b", weights, 4096).as_package()
    assert cuda_budget(package, 4096, (0, 28), "fp16").total < 0.9 * card * 2**30


def test_weights_moved_are_those_on_the_device(package: Package) -> None:
    model = package.model
    cost = step_cost(model, package.precision, 9, kv_element_bytes=2)
    beside = sum(op.weight_bytes for op in cost.ops if "vectors" in op.name or op.name in ("embedding", "norm"))
    held = weight_bytes(package, (0, 1)) - package.precision("embedding").bytes_for(97, 64)
    assert moved_bytes(model, package.precision, 9, "cuda").weights == held + beside


def test_too_little_memory_is_refused_with_the_table_before_anything_is_loaded(
    package: Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgemem.runtime.cuda_engine.available_gpu_memory", lambda: 1 << 20)
    monkeypatch.setattr(CudaEngine, "_open", lambda self: pytest.fail("it was loaded"))
    with pytest.raises(BudgetError, match=r"GPU has too little(.|\n)*KV cache(.|\n)*total"):
        CudaEngine(package)


def test_batches_are_read_when_they_are_done() -> None:
    batch = Batch(torch.tensor([4, 2], dtype=torch.int32), torch.tensor([0.25, 0.5]), None)
    assert batch.wait() == ([4, 2], [0.25, 0.5])


def test_it_agrees_with_the_native_engine(package: Package, engine: CudaEngine) -> None:
    native = NativeEngine(package, capacity=48, threads=1)
    ours, theirs = engine.extend(TOKENS).logits, native.extend(TOKENS).logits
    assert ours is not None
    assert theirs is not None
    np.testing.assert_allclose(ours, theirs, atol=5e-2 * np.abs(theirs).max())
    native.close()
