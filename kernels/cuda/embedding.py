"""The embedding of a token that lies in the device's memory."""

from __future__ import annotations

import torch

from edgemem.kernels.cuda.device_matrix import DeviceMatrix
from edgemem.kernels.cuda.launching import Target, launch

import triton  # isort: skip  # after launching, which sets the environment that it reads
import triton.language as tl  # isort: skip
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait  # isort: skip

_TILE = 256


def embed(
    matrix: DeviceMatrix, token: torch.Tensor, out: torch.Tensor, scale: float = 1.0, *, pdl: bool = False
) -> None:
    """out (columns,) float32 = scale * row `token` of the matrix; token (1,) int32 on the device, in range.

    With pdl it may start while the kernel before it still runs. Raises ValueError for sizes that do not fit.
    """
    if out.shape != (matrix.columns,) or token.shape != (1,) or token.dtype != torch.int32:
        raise ValueError(
            f"token {token.dtype}{tuple(token.shape)}, out {tuple(out.shape)} for {matrix.columns} columns"
        )
    scales = out if matrix.scales is None else matrix.scales
    minima = out if matrix.minima is None else matrix.minima
    launch(
        embed_row,
        (-(-matrix.columns // _TILE),),
        matrix.body,
        scales,
        minima,
        token,
        out,
        scale,
        pdl=pdl,
        COLUMNS=matrix.columns,
        STRIDE=matrix.body.shape[1],
        BITS=matrix.precision.bits,
        GROUP=matrix.precision.group,
        MINIMUM=matrix.precision.minimum,
        TILE=_TILE,
    )


def targets() -> list[Target]:
    """An embedding in int8 and one in bfloat16."""
    names = {"token": "*i32", "out": "*fp32", "scale": "fp32", "scales": "*fp16", "minima": "*fp16"}
    sizes = {"COLUMNS": 3584, "TILE": _TILE}
    int8 = {"STRIDE": 3584 // 4, "BITS": 8, "GROUP": 32, "MINIMUM": True, **sizes}
    bf16 = {"STRIDE": 3584, "BITS": 16, "GROUP": 0, "MINIMUM": False, **sizes}
    return [Target(embed_row, {"body": "*i32", **names}, int8), Target(embed_row, {"body": "*bf16", **names}, bf16)]


@triton.jit
def embed_row(
    body, scales, minima, token, out, scale,
    COLUMNS: tl.constexpr, STRIDE: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, MINIMUM: tl.constexpr,
    TILE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """GROUP 0 for floats; else body holds 32 / BITS codes a word, as `device_matrix` packs them."""
    column = tl.program_id(0) * TILE + tl.arange(0, TILE)
    mask = column < COLUMNS
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    row = tl.load(token).to(tl.int64)
    if GROUP:
        PER_WORD: tl.constexpr = 32 // BITS
        place = column % PER_WORD
        shift = (place % 4) * 8 + (place // 4) * 4
        word = tl.load(body + row * STRIDE + column // PER_WORD, mask=mask, other=0)
        code = ((word >> shift) & ((1 << BITS) - 1)).to(tl.float32)
        at = row * (COLUMNS // GROUP) + column // GROUP
        size = tl.load(scales + at, mask=mask, other=0.0).to(tl.float32)
        if MINIMUM:
            value = code * size + tl.load(minima + at, mask=mask, other=0.0).to(tl.float32)
        else:
            value = (code - (1 << (BITS - 1))) * size
    else:
        value = tl.load(body + row * STRIDE + column, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + column, value * scale, mask=mask)
