"""The check of a GPU as far as it goes without one: what it plans and writes, and that it says what is missing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import interpreted_cuda  # noqa: F401
import numpy as np
import pytest
from plan_engines import plan_engine
from profile_records import DEVICE
from runnable_packages import plain_model

from edgemem.kernels.cuda.sweep import DeviceSweep, sweep_bytes
from edgemem.profiles import shapes
from edgemem.profiles.record_file import read_record, write_record
from edgemem.profiles.shapes import shape
from edgemem.profiles.statistics import figures
from edgemem.runtime.cuda_engine import CudaEngine
from edgemem.runtime.cuda_support import CudaSupport, Gpu, cuda_support
from edgemem.runtime.engine import Engine
from edgemem.runtime.package import Package
from edgemem.tools import gpu_check, gpu_decode, gpu_tensorrt
from edgemem.tools.gpu_agreement import measure_agreement
from edgemem.tools.gpu_baseline import TorchDecoder, can_int4
from edgemem.tools.gpu_decode import cell_key, measure_decode, slots_for, step_bytes
from edgemem.tools.gpu_kernels import KernelRow, kernel_cases
from edgemem.tools.gpu_models import RandomModel, random_bfloat16
from edgemem.tools.gpu_plan import CONTEXT, Deadline, Timing, timings
from edgemem.tools.gpu_report import Findings, kernel_table, make_record, page


class Steady:
    """A memory that always reads as fast."""

    def read(self, passes: int) -> list[float]:
        return [2e9] * passes

    def copy(self, passes: int) -> list[float]:
        return [1e9] * passes


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> RandomModel:
    """A shape of one small layer."""
    monkeypatch.setitem(shapes.SHAPES, "tiny", plain_model(layers=1))
    return RandomModel("tiny", "int4-g32", 128)


@pytest.mark.skipif(cuda_support().usable, reason="there is a GPU")
def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_check.main([]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert len(shown.err.splitlines()) == 2
    assert "there is no NVIDIA GPU" in shown.err


def test_the_plan_has_every_model_in_both_precisions_and_leaves_out_what_does_not_fit() -> None:
    fitting, too_large = timings(1 << 40)
    assert [timing.label for timing in fitting[:3]] == ["qwen2.5-7b-bf16", "qwen2.5-7b-int4-g128", "llama-3.2-1b-bf16"]
    assert (len(fitting), too_large) == (8, [])
    assert 14.2e9 < fitting[0].bytes < 24e9
    fitting, too_large = timings(8 << 30)
    assert [timing.label for timing in too_large] == ["qwen2.5-7b-bf16"]
    assert len(fitting) == 7


def test_a_deadline_never_leaves_less_than_nothing() -> None:
    now = [100.0]
    deadline = Deadline(10, lambda: now[0])
    assert (deadline.left(), deadline.left(0.5)) == (10, 5)
    now[0] = 111.0
    assert deadline.left() == 0


def test_random_models_have_the_bytes_of_their_shape() -> None:
    model = RandomModel("smollm2-135m", "int4-g128", 512)
    kinds = {name.rpartition(".")[2]: str(kind) for name, kind in model.plan.items()}
    narrow = dict.fromkeys(("query", "key", "value", "output", "gate", "up"), "int4-g64")  # 576 columns: 4.5 * 128
    assert kinds == {**narrow, "down": "int4-g128", "embedding": "int8-g64"}
    matrix = model.matrix("layers.3.down")
    quantized = matrix.quantized()
    assert quantized is not None
    assert quantized.shape == (576, 1536)
    assert model.matrix("layers.7.down") is matrix
    assert model.target().quality_note == "random weights"
    assert RandomModel("qwen2.5-7b", "bf16", 512, layers=2).model.layers == 2


def test_random_bfloat16_is_of_the_wanted_size() -> None:
    bits = random_bfloat16(np.random.Generator(np.random.SFC64(0)), 64, 1024)
    values = (bits.astype(np.uint32) << 16).view(np.float32)
    assert np.isfinite(values).all()
    assert 0.5 < values.std() * 32 < 1.5
    assert abs(values.mean()) < 0.01 * values.std() * 32
    assert (values != 0).all()


def test_kernels_are_the_matrices_as_the_engine_stacks_them() -> None:
    cases = {case.name: (case.rows, case.columns) for case in kernel_cases(shape("qwen2.5-7b"))}
    assert cases == {
        "query, key, value": (4608, 3584),
        "output": (3584, 3584),
        "gate, up": (37888, 3584),
        "down": (3584, 18944),
        "head": (152064, 3584),
    }
    table = kernel_table([KernelRow("down", "int4-g128", "3584 x 18944", 35_000_000, 12.5)], 4e12)
    assert "| down | int4-g128 | 3584 x 18944 | 35.0 | 12.5 | 2800 | 70 % |" in table


def test_steps_are_timed_and_recorded(tiny: RandomModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in (("_WARM_STEPS", 1), ("_ROUNDS", 2), ("_BLOCK_STEPS", 2)):
        monkeypatch.setattr(gpu_decode, name, value)
    decoded = measure_decode(tiny, 5, Steady(), ("eager",))
    (cell,) = decoded.cells
    (session,) = cell.sessions
    assert cell.key == cell_key("tiny-int4-g32", "cuda", "eager", 5)
    assert [len(block.step_ms) for block in session.blocks] == [2, 2]
    assert len({session.tokens[:2], session.tokens[2:]}) == 1  # every block begins at the same place
    found = Findings(
        reads=[2e9, 2.1e9],
        timings=timings(1 << 40)[0],
        too_large=timings(1 << 30)[1][:1],
        tests="9 passed",
        agreement="a package: all of it",
        targets={tiny.label: tiny.target()},
        cells=[cell],
        host_share={(tiny.label, "graph"): 0.0123},
        kernels=[KernelRow("down", "bf16", "64 x 128", 16384, 2.0)],
        unmeasured=["baseline of tiny: no time was left"],
    )
    record = make_record(found, replace(DEVICE, reported="Test GPU"), "2026-01-01T00:00:00+00:00", {"torch": "2.13.0"})
    write_record(record, tmp_path / "record.json")
    assert read_record(tmp_path / "record.json") == record
    known = figures(record, record.cells[0])
    assert known is not None
    assert known.peak_bytes_per_s == 2e9
    text = page(found, record)
    for part in (
        "Test GPU",
        "9 passed",
        "all of it",
        "tiny-int4-g32",
        "1.2 %",
        "64 x 128",
        "no time was left",
        "does not fit",
    ):
        assert part in text


def _fails() -> KernelRow:
    raise RuntimeError("no memory")


@pytest.mark.skipif(cuda_support().usable, reason="there is a GPU")
def test_the_whole_check_goes_on_past_what_fails(
    tiny: RandomModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the interpreter: steps are timed, and graphs, which torch has not without a GPU, are lines that say so."""
    row = KernelRow("down", "bf16", "64 x 128", 16384, 2.0)
    gpu = CudaSupport(Gpu("Test", (9, 0)), None)
    for name, value in {
        "runtime.cuda_support.cuda_support": lambda: gpu,
        "kernels.cuda.sweep.sweep_bytes": lambda free: 1 << 18,
        "tools.gpu_plan.timings": lambda free: ([Timing(tiny.name, "bf16")], []),
        "tools.gpu_plan.CONTEXT": 5,
        "tools.gpu_kernels.kernel_jobs": lambda name: [("down", lambda: row), ("up", _fails)],
        "runtime.tensorrt_library.what_is_missing": lambda: None,
        "tools.gpu_tensorrt.measure_tensorrt": lambda ceiling, note: ["built", "as fast"],
        "tools.gpu_decode._WARM_STEPS": 1,
        "tools.gpu_decode._ROUNDS": 1,
        "tools.gpu_decode._BLOCK_STEPS": 2,
    }.items():
        monkeypatch.setattr(f"edgemem.{name}", value)
    assert gpu_check.main(["--no-tests", "--out", str(tmp_path)]) == 0
    record = read_record(tmp_path / "record.json")
    assert [(cell.key.target, cell.key.arm, cell.status) for cell in record.cells] == [
        ("tiny-bf16", "eager", "measured")
    ]
    assert record.interrupted
    text = (tmp_path / "tables.md").read_text(encoding="utf-8")
    assert "- baseline tiny-bf16: " in text
    assert "| down |" in text
    assert "- kernel up: no memory" in text
    assert "## TensorRT\n\n- built\n- as fast" in text
    assert capsys.readouterr().out == ""


def test_bytes_of_a_step_are_those_of_the_shape(tiny: RandomModel) -> None:
    bytes_ = step_bytes(tiny, 10)
    assert bytes_.kv_read == 10 * 2 * 2 * 16 * 2
    assert bytes_.useful == bytes_.weights + bytes_.kv_read + bytes_.kv_write
    assert slots_for(CONTEXT) > CONTEXT


def test_the_baseline_makes_the_same_step_each_time(tiny: RandomModel) -> None:
    decoder = TorchDecoder(tiny.model, 7, int4=False)
    tokens = []
    for _ in range(2):
        decoder.token.fill_(3)
        decoder.step()
        tokens.append(int(decoder.token))
    assert tokens[0] == tokens[1]
    assert can_int4(shape("qwen2.5-7b"))
    assert not can_int4(shape("smollm2-135m"))


def test_agreement_counts_equal_tokens(tiny_package: Path) -> None:
    found = measure_agreement(tiny_package, tokens=3)
    assert (found.tokens, found.equal) == (3, 3)
    assert 0 <= found.kl < 1e-3
    assert "3 of 3 greedy tokens as onnx has them" in str(found)


def test_a_plan_is_compared_with_the_cuda_engine_and_timed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """TensorRT builds it here; ONNX Runtime runs the graph in its place."""
    pytest.importorskip("tensorrt_rtx")
    monkeypatch.setitem(shapes.SHAPES, "worded", plain_model(layers=1, vocabulary=300))
    from edgemem.compiler.tensorrt_build import build_plan
    from edgemem.runtime.tensorrt_library import library_for

    def opened(package: Package, name: str, *, keys: Path | None = None, capacity: int | None = None) -> Engine:
        if name == "cuda":
            return CudaEngine(package, capacity=capacity)
        assert keys is not None
        assert [path.suffix for path in sorted((package.path / "engines").glob("*.plan"))] == [".plan"]
        graphs = tmp_path / "graphs"
        graphs.mkdir()
        return plan_engine(package, graphs, capacity=64)

    for name, value in {
        "runtime.open.open_engine": opened,
        "runtime.tensorrt_library.library_for": lambda target: library_for("sm89"),
        "compiler.tensorrt_build.build_plan": lambda *given, **named: build_plan(*given, **{**named, "target": "sm89"}),
        "tools.gpu_tensorrt.TENSORRT_MODEL": "worded",
        "tools.gpu_tensorrt.CAPACITY": 64,
        "tools.gpu_tensorrt._COMPARED_TOKENS": 3,
        "tools.gpu_tensorrt._ROUNDS": 1,
        "tools.gpu_tensorrt._WARM_STEPS": 1,
        "tools.gpu_tensorrt._BLOCK_STEPS": 2,
    }.items():
        monkeypatch.setattr(f"edgemem.{name}", value)
    notes: list[str] = []
    built, agreement, *times = gpu_tensorrt.measure_tensorrt(1e9, notes.append)
    assert notes == [built]
    assert "MB for sm89 by tensorrt_rtx" in built
    assert "3 of 3 greedy tokens as cuda has them" in agreement
    assert [line.partition(":")[0] for line in times] == ["tensorrt", "cuda"]


def test_a_sweep_reads_every_word_once() -> None:
    sweep = DeviceSweep(3 << 17)
    assert sweep.bytes == 3 << 17
    assert sweep.read_once() == sweep.bytes
    assert sweep.checksum == int(np.bitwise_xor.reduce(sweep._words.cpu().numpy()))
    assert len(sweep.read(1)) == len(sweep.copy(1)) == 1
    with pytest.raises(ValueError, match="smaller"):
        DeviceSweep(1000)
    assert sweep_bytes(1 << 40) >= 2 << 30
    assert sweep_bytes(4 << 20) == 1 << 20
