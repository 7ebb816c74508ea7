"""How a matrix-vector kernel prepares its vector: the wait for it, the norms, and the integers that codes multiply."""

from __future__ import annotations

from edgemem.kernels.cuda.launching import interpreted

import triton  # isort: skip  # after launching, which sets the environment that it reads
import triton.language as tl  # isort: skip
from triton.language.extra.cuda import gdc_wait  # isort: skip

EMULATED = tl.constexpr(interpreted())
LEVELS = tl.constexpr(32767.0)  # x as 16-bit integers: each chunk's largest value becomes this
ROUNDER = tl.constexpr(12582912.0)  # 1.5 * 2**23: a float32 added to it is rounded to a whole number, in its low bits
ROUNDER_BITS = tl.constexpr(0x4B400000)
NORM_TILE = tl.constexpr(2048)


@triton.jit
def prepared(
    x, norm, branch, post_norm, stream_out, chunk, epsilon,
    COLUMNS: tl.constexpr, PER_CHUNK: tl.constexpr, NORM: tl.constexpr, SANDWICH: tl.constexpr,
    SPLITS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """The slice of x (BLOCKS, LANES, PER_CHUNK) as the matrix takes it: the norms' sums go over all of x.

    It waits here for the kernel before; norms are weights, which no kernel writes.
    """
    column = chunk[:, :, None] * PER_CHUNK + tl.arange(0, PER_CHUNK)[None, None, :]
    mask = column < COLUMNS
    if NORM:
        gain = tl.load(norm + column, mask=mask, other=0.0)
    if SANDWICH:
        post_gain = tl.load(post_norm + column, mask=mask, other=0.0)
    if PDL:
        gdc_wait()
    value = tl.load(x + column, mask=mask, other=0.0)
    factor = 0.0
    if SANDWICH:
        added = tl.load(branch + column, mask=mask, other=0.0)
        if SPLITS == 1:
            squares = tl.sum(added * added)
        else:
            squares = square_sum(branch, branch, post_norm, factor, COLUMNS, False)
        factor = tl.rsqrt(squares / COLUMNS + epsilon)
        value += added * factor * post_gain
        if tl.program_id(0) == 0:
            tl.store(stream_out + column, value, mask=mask)
    if NORM:
        if SPLITS == 1:
            squares = tl.sum(value * value)
        else:
            squares = square_sum(x, branch, post_norm, factor, COLUMNS, SANDWICH)
        value *= tl.rsqrt(squares / COLUMNS + epsilon) * gain
    return value


@triton.jit
def square_sum(x, branch, post_norm, factor, COLUMNS: tl.constexpr, SANDWICH: tl.constexpr):
    """Of all of x, or of x + branch * factor * post_norm."""
    squares = tl.zeros((NORM_TILE,), dtype=tl.float32)
    for start in range(0, COLUMNS, NORM_TILE):
        column = start + tl.arange(0, NORM_TILE)
        mask = column < COLUMNS
        value = tl.load(x + column, mask=mask, other=0.0)
        if SANDWICH:
            added = tl.load(branch + column, mask=mask, other=0.0) * factor
            value += added * tl.load(post_norm + column, mask=mask, other=0.0)
        squares += value * value
    return tl.sum(squares)


@triton.jit
def as_integers(value, BITS: tl.constexpr, BLOCKS: tl.constexpr, LANES: tl.constexpr):
    """value (BLOCKS, LANES, PER_CHUNK) as unit times 16-bit integers: (unit, sum of the integers) (BLOCKS, LANES); then
    their bytes, four in a word, for the codes of a word: (BLOCKS, LANES, 4) high bytes, those for the upper halves of
    int4's bytes, and the low bytes likewise."""
    size = tl.abs(value)
    if EMULATED:
        size = tl.where(size >= 0, size, 0.0)  # a GPU's maximum passes over NaN; NumPy's warns where there is no other
    most = tl.max(size, axis=2)
    inverse = tl.where(most > 1e-30, LEVELS / tl.maximum(most, 1e-30), 0.0)
    integer = (value * inverse[:, :, None] + ROUNDER).to(tl.int32, bitcast=True) - ROUNDER_BITS
    total = tl.sum(integer, axis=2)
    # A NaN's bits make a sum far beyond what 32 integers of 16 bits can: the chunk becomes NaN again.
    unit = tl.where(tl.abs(total) <= 1 << 20, most / LEVELS, float("nan"))
    four = tl.reshape(integer, (BLOCKS, LANES, 32 // BITS, 4))
    shift = (tl.arange(0, 4) * 8)[None, None, None, :]
    high = tl.sum(((four >> 8) & 255) << shift, axis=3)
    fine = tl.sum((four & 255) << shift, axis=3)
    high_odd, fine_odd = high, fine
    if BITS == 4:
        high, high_odd = tl.split(tl.reshape(high, (BLOCKS, LANES, 4, 2)))
        fine, fine_odd = tl.split(tl.reshape(fine, (BLOCKS, LANES, 4, 2)))
    return unit, total, high, high_odd, fine, fine_odd
