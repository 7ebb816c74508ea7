"""What a matrix-vector kernel does with its sums: adds those of other splits, then bias, activation and residual."""

from __future__ import annotations

from edgemem.kernels.cuda import launching  # noqa: F401  # sets the environment that triton reads

import triton  # isort: skip
import triton.language as tl  # isort: skip

SUM_TILE = tl.constexpr(256)  # rows whose partial sums are added at once


@triton.jit
def deliver(
    sums, ups, out, partials, bias, residual, start, last, outputs, softcap,
    BIAS: tl.constexpr, RESIDUAL: tl.constexpr, ACTIVATION: tl.constexpr, SOFTCAP: tl.constexpr,
    SPLITS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """A tile's sums (TILE,): to `out` when they are whole, else to this split's partials."""
    if SPLITS > 1:
        place, split = start + tl.arange(0, TILE), tl.program_id(1)
        tl.store(partials + split * outputs + place, sums, mask=place < last)
        if ACTIVATION is not None:
            tl.store(partials + (SPLITS + split) * outputs + place, ups, mask=place < last)
    else:
        finish(sums, ups, out, bias, residual, start, last, outputs, softcap, BIAS, RESIDUAL, ACTIVATION, SOFTCAP, TILE)


@triton.jit
def finish(
    sums, ups, out, bias, residual, start, last, outputs, softcap,
    BIAS: tl.constexpr, RESIDUAL: tl.constexpr, ACTIVATION: tl.constexpr, SOFTCAP: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Bias, softcap, activation and residual of whole sums (TILE,), stored."""
    place = start + tl.arange(0, TILE)
    mask = place < last
    if BIAS:
        sums += tl.load(bias + place, mask=mask, other=0.0)
    if SOFTCAP:
        sums = softcap * tanh(sums / softcap)
    if ACTIVATION is not None:
        if BIAS:
            ups += tl.load(bias + outputs + place, mask=mask, other=0.0)
        if ACTIVATION == "silu":
            sums = sums * sigmoid(sums) * ups
        else:
            sums = 0.5 * sums * (1.0 + tanh(0.7978845608028654 * (sums + 0.044715 * sums * sums * sums))) * ups
    if RESIDUAL:
        sums += tl.load(residual + place, mask=mask, other=0.0)
    tl.store(out + place, sums, mask=mask)


@triton.jit
def add_partials(
    out, partials, counters, bias, residual, first, last, outputs, softcap,
    BIAS: tl.constexpr, RESIDUAL: tl.constexpr, ACTIVATION: tl.constexpr, SOFTCAP: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """The last program of a range of rows adds the splits' sums, always in the same order, and finishes them."""
    counter = counters + tl.program_id(0)
    tl.debug_barrier()  # all threads' partials are written before the counter says so
    if tl.atomic_add(counter, 1, sem="acq_rel") == SPLITS - 1:
        for start in range(first, last, SUM_TILE):
            sums = partial_sum(partials, start, last, outputs, SPLITS)
            ups = sums
            if ACTIVATION is not None:
                ups = partial_sum(partials + SPLITS * outputs, start, last, outputs, SPLITS)
            finish(
                sums, ups, out, bias, residual, start, last, outputs, softcap,
                BIAS, RESIDUAL, ACTIVATION, SOFTCAP, SUM_TILE,
            )  # fmt: skip
        tl.store(counter, 0)


@triton.jit
def partial_sum(partials, start, last, outputs, SPLITS: tl.constexpr):
    """(SUM_TILE,): read past the first cache, which may hold what another program has since overwritten."""
    place = start + tl.arange(0, SUM_TILE)
    sums = tl.zeros((SUM_TILE,), dtype=tl.float32)
    for split in tl.static_range(SPLITS):
        sums += tl.load(partials + split * outputs + place, mask=place < last, other=0.0, cache_modifier=".cg")
    return sums


@triton.jit
def sigmoid(value):
    """Without an exponential that overflows."""
    small = tl.exp(-tl.abs(value))
    return tl.where(value >= 0, 1.0, small) / (1.0 + small)


@triton.jit
def tanh(value):
    small = tl.exp(-2.0 * tl.abs(value))
    size = (1.0 - small) / (1.0 + small)
    return tl.where(value >= 0, size, -size)
