"""The Triton kernels of `matvec`: one for integer codes, one for floats, and the steps that they share.

Sixteen bytes of a row are a chunk: what a thread loads at once. A program owns a slice of BLOCKS * LANES chunks and a
range of rows; it prepares its slice of x once, in registers, then goes down its rows tile by tile. The loads of the
first tile go out before it waits for the kernel before, those of the next tile before the last one is summed.
"""

from __future__ import annotations

from edgemem.kernels.cuda.launching import interpreted
from edgemem.kernels.cuda.matvec_input import as_integers, prepared
from edgemem.kernels.cuda.matvec_output import add_partials, deliver

import triton  # isort: skip  # after launching, which sets the environment that it reads
import triton.language as tl  # isort: skip
from triton.language.extra.cuda import gdc_launch_dependents  # isort: skip

EMULATED = tl.constexpr(interpreted())  # the interpreter knows no PTX


@triton.jit
def quantized_matvec(
    body, scales, minima, x, norm, branch, post_norm, stream_out, bias, residual, out, partials, counters,
    outputs, outputs_each, epsilon, softcap,
    COLUMNS: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, MINIMUM: tl.constexpr,
    NORM: tl.constexpr, SANDWICH: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr,
    ACTIVATION: tl.constexpr, SOFTCAP: tl.constexpr,
    TILE: tl.constexpr, BLOCKS: tl.constexpr, LANES: tl.constexpr, SPLITS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """body (rows, COLUMNS * BITS / 32) int32. The sum over a chunk is exact in integers, then scaled.

    x is rounded to 16 bits relative to its chunk's largest value, so that four products are one instruction (dp4a),
    twice: for the high and the low byte. That takes fewer instructions a weight than floats of any width, and is finer
    than float16. With an activation every tile has as many rows of the matrix's second half.
    """
    first = tl.program_id(0) * outputs_each
    last = tl.minimum(first + outputs_each, outputs)
    chunk = tl.program_id(1) * (BLOCKS * LANES) + tl.arange(0, BLOCKS)[:, None] * LANES + tl.arange(0, LANES)[None, :]
    if PDL:
        gdc_launch_dependents()
    words, scale, low = code_tile(body, scales, minima, first, last, 0, chunk, COLUMNS, BITS, GROUP, MINIMUM, TILE)
    words_up, scale_up, low_up = words, scale, low
    if ACTIVATION is not None:
        words_up, scale_up, low_up = code_tile(
            body, scales, minima, first, last, outputs, chunk, COLUMNS, BITS, GROUP, MINIMUM, TILE
        )
    value = prepared(
        x, norm, branch, post_norm, stream_out, chunk, epsilon, COLUMNS, 128 // BITS, NORM, SANDWICH, SPLITS, PDL
    )
    unit, total, high, high_odd, fine, fine_odd = as_integers(value, BITS, BLOCKS, LANES)
    for start in range(first, last, TILE):
        sums = integer_sums(words, scale, low, unit, total, high, high_odd, fine, fine_odd, BITS, MINIMUM)
        words, scale, low = code_tile(
            body, scales, minima, start + TILE, last, 0, chunk, COLUMNS, BITS, GROUP, MINIMUM, TILE
        )
        ups = sums
        if ACTIVATION is not None:
            ups = integer_sums(words_up, scale_up, low_up, unit, total, high, high_odd, fine, fine_odd, BITS, MINIMUM)
            words_up, scale_up, low_up = code_tile(
                body, scales, minima, start + TILE, last, outputs, chunk, COLUMNS, BITS, GROUP, MINIMUM, TILE
            )
        deliver(
            sums, ups, out, partials, bias, residual, start, last, outputs, softcap,
            BIAS, RESIDUAL, ACTIVATION, SOFTCAP, SPLITS, TILE,
        )  # fmt: skip
    if SPLITS > 1:
        add_partials(
            out, partials, counters, bias, residual, first, last, outputs, softcap,
            BIAS, RESIDUAL, ACTIVATION, SOFTCAP, SPLITS,
        )  # fmt: skip


@triton.jit
def float_matvec(
    body, x, norm, branch, post_norm, stream_out, bias, residual, out, partials, counters,
    outputs, outputs_each, epsilon, softcap,
    COLUMNS: tl.constexpr, PER_CHUNK: tl.constexpr,
    NORM: tl.constexpr, SANDWICH: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr,
    ACTIVATION: tl.constexpr, SOFTCAP: tl.constexpr,
    TILE: tl.constexpr, BLOCKS: tl.constexpr, LANES: tl.constexpr, SPLITS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """body (rows, COLUMNS rounded up to chunks) of a float type, zero beyond COLUMNS; all sums in float32."""
    first = tl.program_id(0) * outputs_each
    last = tl.minimum(first + outputs_each, outputs)
    chunk = tl.program_id(1) * (BLOCKS * LANES) + tl.arange(0, BLOCKS)[:, None] * LANES + tl.arange(0, LANES)[None, :]
    if PDL:
        gdc_launch_dependents()
    weights = float_tile(body, first, last, 0, chunk, COLUMNS, PER_CHUNK, TILE)
    weights_up = weights
    if ACTIVATION is not None:
        weights_up = float_tile(body, first, last, outputs, chunk, COLUMNS, PER_CHUNK, TILE)
    value = prepared(
        x, norm, branch, post_norm, stream_out, chunk, epsilon, COLUMNS, PER_CHUNK, NORM, SANDWICH, SPLITS, PDL
    )
    for start in range(first, last, TILE):
        sums = float_sums(weights, value)
        weights = float_tile(body, start + TILE, last, 0, chunk, COLUMNS, PER_CHUNK, TILE)
        ups = sums
        if ACTIVATION is not None:
            ups = float_sums(weights_up, value)
            weights_up = float_tile(body, start + TILE, last, outputs, chunk, COLUMNS, PER_CHUNK, TILE)
        deliver(
            sums, ups, out, partials, bias, residual, start, last, outputs, softcap,
            BIAS, RESIDUAL, ACTIVATION, SOFTCAP, SPLITS, TILE,
        )  # fmt: skip
    if SPLITS > 1:
        add_partials(
            out, partials, counters, bias, residual, first, last, outputs, softcap,
            BIAS, RESIDUAL, ACTIVATION, SOFTCAP, SPLITS,
        )  # fmt: skip


@triton.jit
def code_tile(
    body, scales, minima, start, last, above, chunk,
    COLUMNS: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, MINIMUM: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Rows [start, start + TILE), counted from row `above` of the matrix, zero outside: words (BLOCKS, TILE, LANES, 4),
    scales and minima (BLOCKS, TILE, LANES); without minima the scales stand for them.

    Blocks come first, so that they are a thread's own and warps are spread over lanes and then rows.
    """
    CHUNKS: tl.constexpr = COLUMNS * BITS // 128
    GROUPS: tl.constexpr = COLUMNS // GROUP
    base = tl.cast(above + start, tl.int64)  # a matrix may have more than 2**31 elements, a tile has not
    row, column = tl.arange(0, TILE)[None, :, None], chunk[:, None, :]
    mask = (start + row < last) & (column < CHUNKS)
    at = (row * CHUNKS + column)[:, :, :, None] * 4 + tl.arange(0, 4)[None, None, None, :]
    words = tl.load(body + base * (CHUNKS * 4) + at, mask=mask[:, :, :, None], other=0, eviction_policy="evict_first")
    group = base * GROUPS + (row * GROUPS + column // (CHUNKS // GROUPS))
    scale = tl.load(scales + group, mask=mask, other=0.0)
    low = scale
    if MINIMUM:
        low = tl.load(minima + group, mask=mask, other=0.0)
    return words, scale, low


@triton.jit
def float_tile(body, start, last, above, chunk, COLUMNS: tl.constexpr, PER_CHUNK: tl.constexpr, TILE: tl.constexpr):
    """(BLOCKS, TILE, LANES, PER_CHUNK) of rows as `code_tile` counts them, zero outside."""
    CHUNKS: tl.constexpr = (COLUMNS + PER_CHUNK - 1) // PER_CHUNK
    base = tl.cast(above + start, tl.int64) * (CHUNKS * PER_CHUNK)
    row, column = tl.arange(0, TILE)[None, :, None], chunk[:, None, :]
    mask = (start + row < last) & (column < CHUNKS)
    at = (row * CHUNKS + column)[:, :, :, None] * PER_CHUNK + tl.arange(0, PER_CHUNK)[None, None, None, :]
    return tl.load(body + base + at, mask=mask[:, :, :, None], other=0.0, eviction_policy="evict_first")


@triton.jit
def integer_sums(
    words, scale, low, unit, total, high, high_odd, fine, fine_odd, BITS: tl.constexpr, MINIMUM: tl.constexpr
):
    """(TILE,) sums of a tile of codes, as `device_matrix` packs them, over the slice."""
    none = tl.zeros_like(words)
    if BITS == 4:
        even, odd = words & 0x0F0F0F0F, (words >> 4) & 0x0F0F0F0F
        coarse = dot4(odd, high_odd[:, None], dot4(even, high[:, None], none, True), True)
        dots = dot4(odd, fine_odd[:, None], dot4(even, fine[:, None], coarse << 8, False), False)
    else:
        dots = dot4(words, fine[:, None], dot4(words, high[:, None], none, True) << 8, False)
    dot = tl.sum(dots, axis=3)  # (BLOCKS, TILE, LANES)
    if MINIMUM:
        product = scale.to(tl.float32) * dot.to(tl.float32) + low.to(tl.float32) * total.to(tl.float32)[:, None]
    else:
        product = scale.to(tl.float32) * (dot - (total << (BITS - 1))[:, None]).to(tl.float32)
    return tl.sum(tl.sum(product * unit[:, None], axis=0), axis=1)


@triton.jit
def float_sums(weights, value):
    """(TILE,) sums of a tile of floats over the slice."""
    return tl.sum(tl.sum(tl.sum(weights.to(tl.float32) * value[:, None], axis=3), axis=0), axis=1)


@triton.jit
def dot4(codes, x, add, SIGNED: tl.constexpr):
    """add + the sum of four products of a word's bytes: unsigned ones of codes, those of x signed or not."""
    if EMULATED:
        shift = tl.arange(0, 4) * 8
        bytes_of_x = (x[:, :, :, :, None] >> shift) & 255
        if SIGNED:
            bytes_of_x = (bytes_of_x ^ 128) - 128
        return add + tl.sum(((codes[:, :, :, :, None] >> shift) & 255) * bytes_of_x, axis=4)
    asm: tl.constexpr = "dp4a.u32.s32 $0, $1, $2, $3;" if SIGNED else "dp4a.u32.u32 $0, $1, $2, $3;"
    return tl.inline_asm_elementwise(asm, "=r,r,r,r", [codes, x, add], dtype=tl.int32, is_pure=True, pack=1)
