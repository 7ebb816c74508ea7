"""Matrix-vector products and embeddings of the cuda engine, in Triton's interpreter where there is no GPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from runnable_packages import random_matrix

from edgemem.kernels.cuda import matvec as module
from edgemem.kernels.cuda.device_matrix import DeviceMatrix, Part, common_precision
from edgemem.kernels.cuda.embedding import embed
from edgemem.kernels.cuda.launching import device
from edgemem.kernels.cuda.matvec import matvec, matvec_reference, workspace_for
from edgemem.kernels.cuda.tile_shapes import WARPS, TileShape, chunk_weights, tile_shape
from edgemem.kernels.cuda.workspace import Workspace
from edgemem.kernels.formats import Precision, QuantizedMatrix

FLOATS = ["fp16", "bf16", "fp32"]
QUANTIZED = [f"{kind}-g{group}{low}" for kind in ("int4", "int8") for group in (32, 64, 128) for low in ("", "-min")]
TOLERANCE = {"int4": 1e-4, "int8": 1e-4, "fp16": 1e-6, "bf16": 1e-6, "fp32": 1e-6}  # of the largest output


def part(rows: int, columns: int, precision: str, seed: int = 0) -> Part:
    """A random matrix as a package stores it."""
    stored = Precision.parse(precision)
    block = random_matrix(np.random.default_rng(seed), rows, columns, stored, columns**-0.5)
    if isinstance(block, QuantizedMatrix):
        return block
    if precision == "bf16":
        return (block.view(np.uint32) >> 16).astype(np.uint16)
    return block.astype(np.float16 if precision == "fp16" else np.float32)


def weights(stored: Part) -> torch.Tensor:
    """Its exact weights, by NumPy."""
    if isinstance(stored, QuantizedMatrix):
        return torch.from_numpy(stored.dequantize()).to(device())
    if stored.dtype == np.uint16:
        stored = (stored.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return torch.from_numpy(stored.astype(np.float32)).to(device())


def vector(length: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(length, generator=torch.Generator().manual_seed(seed)).to(device())


def check(matrix: DeviceMatrix, x: torch.Tensor, out: torch.Tensor | None = None, **parts: Any) -> torch.Tensor:
    """`matvec` against its truth; the result."""
    if out is None:
        out = torch.full((matrix.rows // (2 if "activation" in parts else 1),), 7.0, device=device())
    workspace = workspace_for([matrix])
    stream = parts.pop("stream_out", None)
    wanted, wanted_stream = matvec_reference(matrix, x, **parts)
    matvec(matrix, x, out, workspace=workspace, stream_out=stream, **parts)
    assert not workspace.counters.any()
    error = (out.double() - wanted).abs().max() / wanted.abs().max()
    assert error < TOLERANCE[matrix.precision.kind], f"{error:.1e} of the largest output"
    if stream is not None:
        torch.testing.assert_close(stream.double(), wanted_stream, rtol=1e-6, atol=1e-6)
    return out


@pytest.mark.parametrize("precision", QUANTIZED + FLOATS)
def test_a_matrix_keeps_its_weights_exactly(precision: str) -> None:
    columns = 100 if precision in FLOATS else 384
    parts = [part(5, columns, precision, seed=seed) for seed in range(2)]
    matrix = DeviceMatrix.of(parts)
    assert (matrix.rows, matrix.columns, str(matrix.precision)) == (10, columns, precision)
    assert torch.equal(matrix.dense(), torch.cat([weights(stored) for stored in parts]))
    assert torch.equal(matrix.dense(torch.bfloat16, 3, 8), matrix.dense()[3:8].to(torch.bfloat16))
    if columns == 384:
        assert matrix.nbytes == matrix.precision.bytes_for(10, columns)


@pytest.mark.parametrize(
    ("kinds", "common"),
    [
        (("int4-g64", "int4-g32-min"), "int4-g32-min"),
        (("int4-g64-min", "int8-g128-min"), "int8-g64-min"),
        (("int4-g64", "int8-g32"), "int8-g32"),
        (("int8-g64", "int4-g64-min"), "int8-g64-min"),
        (("int4-g128", "bf16"), "fp32"),
        (("fp16", "bf16"), "fp32"),
    ],
)
def test_parts_of_unlike_precision_become_one_matrix_without_rounding(kinds: tuple[str, str], common: str) -> None:
    parts = [part(3, 128, kind) for kind in kinds]
    matrix = DeviceMatrix.of(parts)
    assert str(matrix.precision) == common == str(common_precision([Precision.parse(kind) for kind in kinds]))
    assert torch.equal(matrix.dense(), torch.cat([weights(stored) for stored in parts]))


def test_parts_that_are_no_matrix_are_refused() -> None:
    for parts in ([], [part(2, 32, "fp32"), part(2, 64, "fp32")], [np.zeros((2, 3), dtype=np.float64)]):
        with pytest.raises(ValueError, match="part"):
            DeviceMatrix.of(parts)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="one shape"):
        DeviceMatrix.paired(part(2, 32, "fp32"), part(4, 32, "fp32"))


@pytest.mark.parametrize("precision", ["int4-g32", "int4-g64-min", "int8-g32", "int8-g128-min", *FLOATS])
def test_an_embedding_is_a_row(precision: str) -> None:
    matrix = DeviceMatrix.of([part(9, 384, precision)])
    out = torch.empty(384, device=device())
    embed(matrix, torch.tensor([7], dtype=torch.int32, device=device()), out, 2.5)
    assert torch.equal(out, matrix.dense()[7] * 2.5)


@pytest.mark.parametrize("precision", QUANTIZED)
def test_a_quantized_product(precision: str) -> None:
    check(DeviceMatrix.of([part(37, 384, precision)]), vector(384))


@pytest.mark.parametrize("precision", FLOATS)
@pytest.mark.parametrize("columns", [100, 384])
def test_a_float_product(precision: str, columns: int) -> None:
    check(DeviceMatrix.of([part(37, columns, precision)]), vector(columns))


def test_an_odd_number_of_groups_and_values_of_very_unlike_size() -> None:
    x = vector(160) * torch.logspace(-12, 12, 5, device=device()).repeat_interleave(32)
    x[32:64] = 0
    check(DeviceMatrix.of([part(3, 160, "int4-g32-min")]), x)


@pytest.mark.parametrize("precision", ["int4-g32", "int8-g64-min", "bf16"])
def test_norm_bias_and_residual_in_place(precision: str) -> None:
    matrix, residual = DeviceMatrix.of([part(21, 192, precision)]), vector(21, 4)
    check(matrix, vector(192), norm=vector(192, 2), epsilon=1e-3, bias=vector(21, 3), residual=residual.clone())
    wanted, _ = matvec_reference(matrix, vector(192), residual=residual)
    matvec(matrix, vector(192), residual, workspace=workspace_for([matrix]), residual=residual)
    torch.testing.assert_close(residual.double(), wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
@pytest.mark.parametrize("precision", ["int4-g64-min", "fp16"])
def test_an_activation_over_a_pair(precision: str, activation: str) -> None:
    pair = DeviceMatrix.paired(part(21, 128, precision), part(21, 128, precision, seed=1))
    check(pair, 5 * vector(128), norm=vector(128, 2), epsilon=1e-5, bias=vector(42, 3), activation=activation)


@pytest.mark.parametrize("precision", ["int4-g32", "fp32"])
def test_the_norm_after_a_branch_gives_the_stream_too(precision: str) -> None:
    names = {"norm": vector(96, 2), "branch": 3 * vector(96, 3), "post_norm": vector(96, 4)}
    matrix = DeviceMatrix.of([part(5, 96, precision)])
    check(matrix, vector(96), epsilon=1e-2, stream_out=torch.zeros(96, device=device()), **names)


def test_softcap_and_a_slice_of_a_larger_buffer() -> None:
    buffer = torch.full((30,), 7.0, device=device())
    check(DeviceMatrix.of([part(11, 64, "bf16")]), 9 * vector(64), out=buffer[3:14], softcap=2.0)
    assert (buffer[:3] == 7).all()
    assert (buffer[14:] == 7).all()


@pytest.mark.parametrize("precision", ["int4-g32", "int8-g32-min", "fp32"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.filterwarnings("ignore:invalid value encountered")  # NumPy's, of the interpreter
def test_what_is_no_number_is_not_hidden(precision: str, bad: float) -> None:
    matrix, x, out = DeviceMatrix.of([part(5, 96, precision)]), vector(96), torch.zeros(5, device=device())
    x[40] = bad
    for norm in (None, vector(96, 2)):
        matvec(matrix, x, out, workspace=workspace_for([matrix]), norm=norm)
        assert not torch.isfinite(out).any()


def forced(monkeypatch: pytest.MonkeyPatch, shape: TileShape) -> None:
    monkeypatch.setattr(module, "tile_shape", lambda *_: shape)


@pytest.mark.parametrize("precision", ["int4-g32-min", "fp32"])
def test_splits_add_up_the_same_each_time(monkeypatch: pytest.MonkeyPatch, precision: str) -> None:
    chunk = chunk_weights(Precision.parse(precision))
    columns = 32 * -(-70 * chunk // 32)
    forced(monkeypatch, TileShape(tile=8, blocks=1, lanes=32, splits=3, workers=2, outputs_each=11))
    names = {"norm": vector(columns, 2), "branch": vector(columns, 3), "post_norm": vector(columns, 4)}
    matrix = DeviceMatrix.of([part(21, columns, precision)])
    stream = torch.zeros(columns, device=device())
    first, second = (
        check(
            matrix, vector(columns), epsilon=1e-5, stream_out=stream, bias=vector(21), residual=vector(21, 5), **names
        )
        for _ in range(2)
    )
    assert torch.equal(first, second)


def test_splits_of_a_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    forced(monkeypatch, TileShape(tile=8, blocks=1, lanes=32, splits=2, workers=1, outputs_each=9))
    pair = DeviceMatrix.paired(part(9, 400, "fp16"), part(9, 400, "fp16", seed=1))
    check(pair, vector(400), bias=vector(18), activation="silu")


def test_several_blocks_and_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    forced(monkeypatch, TileShape(tile=4, blocks=2, lanes=64, splits=1, workers=2, outputs_each=6))
    check(DeviceMatrix.of([part(11, 3584, "int4-g128")]), vector(3584), norm=vector(3584, 2), epsilon=1e-5)


def test_what_does_not_fit_is_refused() -> None:
    matrix, x, out = DeviceMatrix.of([part(5, 96, "fp32")]), vector(96), torch.zeros(5, device=device())
    workspace = workspace_for([matrix])
    for wrong in ({"x": vector(95)}, {"out": out[:4]}, {"bias": vector(6)}, {"norm": vector(96).half()}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            matvec(**{"matrix": matrix, "x": x, "out": out, "workspace": workspace, **wrong})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="together"):
        matvec(matrix, x, out, workspace=workspace, branch=x)
    with pytest.raises(ValueError, match="workspace"):
        matvec(matrix, x, out, workspace=Workspace.of(1, 1))


# Rows and columns of whole models: 7B, 1B, 0.5B and 135M.
SHAPES = [(4608, 3584), (37888, 3584), (3584, 18944), (152064, 3584), (3072, 2048), (2048, 8192), (128256, 2048)]
SHAPES += [(1152, 896), (896, 4864), (960, 576), (576, 1536), (49152, 576), (1, 32)]


@pytest.mark.parametrize("precision", ["int4-g32", "int8-g32", "bf16", "fp32"])
@pytest.mark.parametrize("slots", [1, 32, 264])
def test_shapes_cover_the_matrix_and_fit_the_gpu(precision: str, slots: int) -> None:
    stored = Precision.parse(precision)
    for rows, columns in SHAPES:
        for paired in (False, True)[: 1 + (rows % 2 == 0)]:
            shape = tile_shape(stored, rows, columns, paired, slots)
            outputs = rows // (1 + paired)
            assert (shape.workers - 1) * shape.outputs_each < outputs <= shape.workers * shape.outputs_each
            chunks = -(-columns // chunk_weights(stored))
            covered = shape.splits * shape.blocks * shape.lanes
            assert chunks <= covered < chunks + shape.blocks * shape.lanes
            assert shape.workers * shape.splits <= max(slots, shape.splits)
            held = shape.tile * shape.blocks * shape.lanes * (1 + paired)
            assert held // (32 * WARPS) <= 8  # chunks of a thread: 32 registers
