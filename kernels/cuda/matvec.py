"""Matrix times vector, with what comes before and after it in a decoder layer fused in."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch

from edgemem.kernels.cuda.device_matrix import DeviceMatrix
from edgemem.kernels.cuda.launching import Target, interpreted, launch, processors
from edgemem.kernels.cuda.matvec_kernels import float_matvec, quantized_matvec
from edgemem.kernels.cuda.tile_shapes import REGISTERS, RESIDENT, WARPS, TileShape, chunk_weights, tile_shape
from edgemem.kernels.cuda.workspace import Workspace
from edgemem.kernels.formats import Precision

Activation = Literal["silu", "gelu_tanh"]


def matvec(
    matrix: DeviceMatrix,
    x: torch.Tensor,
    out: torch.Tensor,
    *,
    workspace: Workspace,
    norm: torch.Tensor | None = None,
    epsilon: float = 0.0,
    branch: torch.Tensor | None = None,
    post_norm: torch.Tensor | None = None,
    stream_out: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    activation: Activation | None = None,
    softcap: float = 0.0,
    pdl: bool = False,
) -> None:
    """out = finish(matrix @ prepare(x)); every vector is contiguous float32 on the device.

    x (columns,). out (rows,), or with an activation (rows / 2,): activation(gate) * up of a `paired` matrix. out may be
    a slice of a larger buffer, and may be residual, but none of the other vectors.

    prepare: with branch, post_norm and stream_out (columns,), x becomes x + rms(branch) * post_norm, which is also
    written to stream_out, another buffer than x; then with norm (columns,), x becomes rms(x) * norm.
    finish: + bias (rows,), then softcap * tanh(. / softcap), then the activation, then + residual (as out).

    With pdl it may start while the kernel before it still runs: only the matrix and the norms are read before that one
    has ended. The same call gives the same bits. A NaN in x makes all of out NaN, an infinity NaN or infinities.
    Raises ValueError for sizes that do not fit, and for a workspace that is too small.
    """
    shape = _shape(matrix, activation is not None)
    outputs = matrix.rows // 2 if activation else matrix.rows
    sizes = {"x": x, "norm": norm, "branch": branch, "post_norm": post_norm, "stream_out": stream_out}
    _check({name: (vector, matrix.columns) for name, vector in sizes.items()})
    _check({"out": (out, outputs), "bias": (bias, matrix.rows), "residual": (residual, outputs)})
    if len({branch is None, post_norm is None, stream_out is None}) != 1:
        raise ValueError("branch, post_norm and stream_out come together")
    floats, counters = _needs(matrix)
    if workspace.partials.numel() < floats or workspace.counters.numel() < counters:
        held = f"{workspace.partials.numel()} floats and {workspace.counters.numel()} counters"
        raise ValueError(f"the workspace has {held}, wanted {floats} and {counters}")
    vectors = [_or(vector, x) for vector in (x, norm, branch, post_norm, stream_out, bias, residual)]
    arguments = (*vectors, out, workspace.partials, workspace.counters, outputs, shape.outputs_each, epsilon, softcap)
    tensors = (
        [matrix.body] if matrix.scales is None else [matrix.body, matrix.scales, _or(matrix.minima, matrix.scales)]
    )
    constants = {
        "NORM": norm is not None,
        "SANDWICH": branch is not None,
        "BIAS": bias is not None,
        "RESIDUAL": residual is not None,
        "ACTIVATION": activation,
        "SOFTCAP": softcap != 0.0,
        **_constants(matrix.precision, matrix.columns, shape),
    }
    kernel = float_matvec if matrix.scales is None else quantized_matvec
    grid = (shape.workers, shape.splits)
    launch(kernel, grid, *tensors, *arguments, pdl=pdl, warps=WARPS, registers=REGISTERS, **constants)


def workspace_for(matrices: Iterable[DeviceMatrix]) -> Workspace:
    """Large enough for `matvec` of any of these."""
    needs = [_needs(matrix) for matrix in matrices]
    return Workspace.of(max((need[0] for need in needs), default=0), max((need[1] for need in needs), default=0))


def matvec_reference(
    matrix: DeviceMatrix,
    x: torch.Tensor,
    *,
    norm: torch.Tensor | None = None,
    epsilon: float = 0.0,
    branch: torch.Tensor | None = None,
    post_norm: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    activation: Activation | None = None,
    softcap: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The truth of `matvec`, in float64: (out, stream)."""

    def normed(values: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return values * torch.rsqrt((values * values).mean() + epsilon) * weight.double()

    stream = x.double()
    if branch is not None and post_norm is not None:
        stream = stream + normed(branch.double(), post_norm)
    out = matrix.dense().double() @ (stream if norm is None else normed(stream, norm))
    if bias is not None:
        out = out + bias.double()
    if softcap:
        out = softcap * torch.tanh(out / softcap)
    if activation is not None:
        gate, up = out.chunk(2)
        if activation == "silu":
            out = torch.nn.functional.silu(gate) * up
        else:
            out = torch.nn.functional.gelu(gate, approximate="tanh") * up
    return out if residual is None else out + residual.double(), stream


def targets() -> list[Target]:
    """The kernels as a model of 7B parameters on an H200 would launch them, and each epilogue once."""
    return [
        _target("int4-g128", 37888, 3584, NORM=True, ACTIVATION="silu"),
        _target("bf16", 37888, 3584, NORM=True, ACTIVATION="gelu_tanh", SANDWICH=True),
        _target("int4-g32-min", 4608, 3584, NORM=True, BIAS=True, SANDWICH=True),
        _target("int4-g128", 3584, 18944, RESIDUAL=True),
        _target("int8-g32-min", 152064, 3584, NORM=True, SOFTCAP=True),
        _target("bf16", 3584, 18944, RESIDUAL=True),
        _target("fp16", 1152, 896, NORM=True, BIAS=True),
    ]


def _target(precision: str, rows: int, columns: int, **features: Any) -> Target:
    stored = Precision.parse(precision)
    shape = tile_shape(stored, rows, columns, "ACTIVATION" in features, slots=132 * RESIDENT)
    names = ("NORM", "SANDWICH", "BIAS", "RESIDUAL", "SOFTCAP")
    flags = {**dict.fromkeys(names, False), "ACTIVATION": None, **features}
    pointers = ("x", "norm", "branch", "post_norm", "stream_out", "bias", "residual", "out", "partials")
    signature = {**dict.fromkeys(pointers, "*fp32"), "counters": "*i32", "outputs": "i32", "outputs_each": "i32"}
    signature |= {"epsilon": "fp32", "softcap": "fp32"}
    if stored.quantized:
        signature |= {"body": "*i32", "scales": "*fp16", "minima": "*fp16"}
    else:
        signature["body"] = f"*{stored.kind}"
    kernel = quantized_matvec if stored.quantized else float_matvec
    return Target(kernel, signature, {**flags, **_constants(stored, columns, shape)}, WARPS, REGISTERS)


def _constants(precision: Precision, columns: int, shape: TileShape) -> dict[str, Any]:
    """What of the matrix is compiled into its kernel."""
    if precision.quantized:
        own: dict[str, Any] = {"BITS": precision.bits, "GROUP": precision.group, "MINIMUM": precision.minimum}
    else:
        own = {"PER_CHUNK": chunk_weights(precision)}
    sizes = {"TILE": shape.tile, "BLOCKS": shape.blocks, "LANES": shape.lanes, "SPLITS": shape.splits}
    return {"COLUMNS": columns, **own, **sizes}


def _or(vector: torch.Tensor | None, other: torch.Tensor) -> torch.Tensor:
    """Where there is none the kernel takes any pointer, which it does not follow."""
    return other if vector is None else vector


def _shape(matrix: DeviceMatrix, paired: bool) -> TileShape:
    slots = 1 if interpreted() else processors() * RESIDENT  # the interpreter's time goes by programs, not by bytes
    return tile_shape(matrix.precision, matrix.rows, matrix.columns, paired, slots)


def _needs(matrix: DeviceMatrix) -> tuple[int, int]:
    """Partial sums and counters of `matvec`, whether the matrix is taken as paired or not."""
    shapes = [_shape(matrix, paired) for paired in (False, True)]
    return max(shape.splits * matrix.rows for shape in shapes), max(shape.workers for shape in shapes)


def _check(vectors: dict[str, tuple[torch.Tensor | None, int]]) -> None:
    for name, (vector, length) in vectors.items():
        if vector is not None and (vector.shape != (length,) or vector.dtype != torch.float32):
            raise ValueError(f"{name} is {vector.dtype}{tuple(vector.shape)}, wanted float32({length},)")
