"""The Triton kernel of decode attention: its programs are pieces of the slots before the new one, for each KV head.

All query heads of a KV head are the rows of one tile. The piece that ends last puts all of them together, in the order
of the pieces, so that the same call gives the same bits.
"""

from __future__ import annotations

from edgemem.kernels.cuda.device_cache import FP8_MOST, INT8_LEAST

import triton  # isort: skip  # after launching, which sets the environment that it reads
import triton.language as tl  # isort: skip
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait  # isort: skip

LOG2_E = tl.constexpr(1.4426950408889634)
ROUNDER = tl.constexpr(12582912.0)  # 1.5 * 2**23: a float32 added to it is rounded to a whole number
MOST = tl.constexpr(FP8_MOST)
LEAST = tl.constexpr(INT8_LEAST)
HELD_AT_ONCE = tl.constexpr(8192)  # partial results in the registers of a program


@triton.jit
def attend(
    qkv, keys, values, key_scales, value_scales, position, out, frequencies, query_norm, key_norm, partials, counters,
    capacity, amplitude, epsilon, scale,
    KIND: tl.constexpr, MATH: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr, KV_HEADS: tl.constexpr,
    DIM: tl.constexpr, WIDE: tl.constexpr, PAIRS: tl.constexpr, SLOTS: tl.constexpr, PIECES: tl.constexpr,
    PIECES_WIDE: tl.constexpr, NORMED: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """GROUP query heads a KV head, padded to ROWS; DIM dimensions, padded to WIDE, the first 2 * PAIRS turned."""
    piece, head = tl.program_id(0), tl.program_id(1)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()

    # The slots before the new one are shared out in tiles of SLOTS, among no more pieces than there are tiles.
    now = tl.load(position)
    begin = tl.maximum(now + 1 - WINDOW, 0) if WINDOW > 0 else 0
    first = begin // SLOTS
    last = tl.where(begin < now, tl.cdiv(now, SLOTS), first)
    share = tl.maximum(tl.cdiv(last - first, PIECES), 1)
    active = tl.maximum(tl.cdiv(last - first, share), 1)
    if piece >= active:
        return

    rows = tl.arange(0, ROWS)
    query = turned(
        qkv + (head * GROUP + rows[:, None]) * DIM, rows[:, None] < GROUP, query_norm, frequencies, now, amplitude,
        epsilon, NORMED, DIM, WIDE, PAIRS,
    )  # fmt: skip
    factor = scale if SOFTCAP > 0 else scale * LOG2_E
    start = head.to(tl.int64) * capacity
    top, total, mixed = attend_tiles(
        query, keys, values, key_scales, value_scales, start, begin, now,
        first + piece * share, tl.minimum(first + (piece + 1) * share, last), factor,
        KIND, MATH, ROWS, DIM, WIDE, SLOTS, SOFTCAP,
    )  # fmt: skip
    if piece == active - 1:  # the last piece has the new slot as well
        one = tl.arange(0, 1)[:, None]
        is_held = (one == 0) & (tl.arange(0, WIDE) < DIM)[None, :]
        key = turned(
            qkv + (KV_HEADS * GROUP + head + one) * DIM, one == 0, key_norm, frequencies, now, amplitude,
            epsilon, NORMED, DIM, WIDE, PAIRS,
        )  # fmt: skip
        value = tl.load(qkv + (KV_HEADS * (GROUP + 1) + head + one) * DIM + tl.arange(0, WIDE)[None, :], is_held, 0.0)
        key = stored(keys, key_scales, key, start + now, is_held, KIND, DIM, WIDE)
        value = stored(values, value_scales, value, start + now, is_held, KIND, DIM, WIDE)
        score = capped(tl.sum(query * key, 1) * factor, SOFTCAP)
        above = tl.maximum(top, score)
        shrink, weight = tl.exp2(top - above), tl.exp2(score - above)
        total = total * shrink + weight
        mixed = mixed * shrink[:, None] + weight[:, None] * value
        top = above
    deliver(
        top, total, mixed, out + head * GROUP * DIM, partials + head * PIECES * GROUP * (DIM + 2), counters + head,
        piece, active, GROUP, ROWS, DIM, WIDE, PIECES, PIECES_WIDE,
    )  # fmt: skip


@triton.jit
def attend_tiles(
    query, keys, values, key_scales, value_scales, start, begin, now, first, last, factor,
    KIND: tl.constexpr, MATH: tl.constexpr, ROWS: tl.constexpr, DIM: tl.constexpr, WIDE: tl.constexpr,
    SLOTS: tl.constexpr, SOFTCAP: tl.constexpr,
):  # fmt: skip
    """(tops, totals, mixed) of tiles [first, last): greatest scores, sums of weights under them, weighted values."""
    lanes = tl.arange(0, WIDE)
    # Two halves of queries and weights make up for the precision that one has not.
    query_high = query.to(MATH)
    query_low = (query - query_high.to(tl.float32)).to(MATH)
    top = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    mixed = tl.zeros((ROWS, WIDE), tl.float32)
    for tile in range(first, last):
        slots = tile * SLOTS + tl.arange(0, SLOTS)
        is_seen = (slots >= begin) & (slots < now)
        places = (start + slots)[:, None] * DIM + lanes[None, :]
        is_held = is_seen[:, None] & (lanes < DIM)[None, :]
        key = tl.load(keys + places, is_held, 0.0).to(MATH)
        value = tl.load(values + places, is_held, 0.0).to(MATH)
        scores = tl.dot(query_low, tl.trans(key), tl.dot(query_high, tl.trans(key)))
        if KIND == "int8":
            scores *= tl.load(key_scales + start + slots, is_seen, 0.0)[None, :]
        scores = tl.where(is_seen[None, :], capped(scores * factor, SOFTCAP), float("-inf"))
        above = tl.maximum(top, tl.max(scores, 1))
        shrink = tl.exp2(top - above)
        weights = tl.exp2(scores - above[:, None])
        total = total * shrink + tl.sum(weights, 1)
        greatest = 1.0
        if KIND == "int8":
            scales = tl.load(value_scales + start + slots, is_seen, 0.0)
            greatest = tl.max(scales, 0)
            greatest = tl.where(greatest > 0, greatest, 1.0)
            weights *= (scales / greatest)[None, :]
        high = weights.to(MATH)
        low = (weights - high.to(tl.float32)).to(MATH)
        mixed = mixed * shrink[:, None] + tl.dot(low, value, tl.dot(high, value)) * greatest
        top = above
    return top, total, mixed


@triton.jit
def deliver(
    top, total, mixed, out, partials, counter, piece, active,
    GROUP: tl.constexpr, ROWS: tl.constexpr, DIM: tl.constexpr, WIDE: tl.constexpr, PIECES: tl.constexpr,
    PIECES_WIDE: tl.constexpr,
):  # fmt: skip
    """Into `out` where there is one piece, else into the partial results, all of which the last to come combines."""
    rows, lanes = tl.arange(0, ROWS), tl.arange(0, WIDE)
    places = rows[:, None] * DIM + lanes[None, :]
    is_own = (rows < GROUP)[:, None] & (lanes < DIM)[None, :]
    if active == 1:
        tl.store(out + places, mixed / total[:, None], is_own)
    else:
        tops = partials + PIECES * GROUP * DIM
        totals = tops + PIECES * GROUP
        tl.store(partials + piece * GROUP * DIM + places, mixed, is_own)
        tl.store(tops + piece * GROUP + rows, top, rows < GROUP)
        tl.store(totals + piece * GROUP + rows, total, rows < GROUP)
        tl.debug_barrier()  # all threads' stores come before the one thread's atomic
        if tl.atomic_add(counter, 1, sem="acq_rel") == active - 1:
            tl.store(counter, 0)
            combine(partials, tops, totals, out, active, GROUP, DIM, WIDE, PIECES_WIDE)


@triton.jit
def combine(
    partials, tops, totals, out, active,
    GROUP: tl.constexpr, DIM: tl.constexpr, WIDE: tl.constexpr, PIECES_WIDE: tl.constexpr,
):  # fmt: skip
    """The pieces of one KV head put together: read past the first cache, which may hold what was there before."""
    CHUNK: tl.constexpr = min(WIDE, HELD_AT_ONCE // PIECES_WIDE)  # lanes
    CHUNKS: tl.constexpr = WIDE // CHUNK
    pieces = tl.arange(0, PIECES_WIDE)
    is_active = pieces < active
    for part in tl.range(0, GROUP * CHUNKS, loop_unroll_factor=4):
        row, lanes = part // CHUNKS, part % CHUNKS * CHUNK + tl.arange(0, CHUNK)
        top = tl.load(tops + pieces * GROUP + row, is_active, float("-inf"), cache_modifier=".cg")
        total = tl.load(totals + pieces * GROUP + row, is_active, 0.0, cache_modifier=".cg")
        places = (pieces[:, None] * GROUP + row) * DIM + lanes[None, :]
        mixed = tl.load(partials + places, is_active[:, None] & (lanes < DIM)[None, :], 0.0, cache_modifier=".cg")
        weights = tl.exp2(top - tl.max(top, 0))
        mixed = tl.sum(mixed * weights[:, None], 0) / tl.sum(total * weights, 0)
        tl.store(out + row * DIM + lanes, mixed, lanes < DIM)


@triton.jit
def turned(
    heads, is_head, norm, frequencies, position, amplitude, epsilon,
    NORMED: tl.constexpr, DIM: tl.constexpr, WIDE: tl.constexpr, PAIRS: tl.constexpr,
):  # fmt: skip
    """(n, WIDE) of n heads, pointers (n, 1): normed, and the first 2 * PAIRS turned to the position."""
    lanes = tl.arange(0, WIDE)
    partners = tl.where(lanes < PAIRS, lanes + PAIRS, tl.where(lanes < 2 * PAIRS, lanes - PAIRS, lanes))
    is_held = is_head & (lanes < DIM)[None, :]
    own = tl.load(heads + lanes[None, :], is_held, 0.0)
    other = tl.load(heads + partners[None, :], is_held, 0.0)
    if NORMED:
        shrink = 1 / tl.sqrt(tl.sum(own * own, 1) / DIM + epsilon)[:, None]
        own *= shrink * tl.load(norm + lanes, lanes < DIM, 0.0)[None, :]
        other *= shrink * tl.load(norm + partners, lanes < DIM, 0.0)[None, :]
    # In float64 up to the angle within one turn: at a far position float32 would be some hundredths off.
    turns = position.to(tl.float64) * tl.load(frequencies + lanes % PAIRS) * 0.15915494309189535
    angle = ((turns - tl.floor(turns)) * 6.283185307179586).to(tl.float32)
    cosine = tl.where(lanes < 2 * PAIRS, tl.cos(angle) * amplitude, 1.0)
    sine = tl.where(lanes < PAIRS, -tl.sin(angle), tl.where(lanes < 2 * PAIRS, tl.sin(angle), 0.0)) * amplitude
    return own * cosine[None, :] + other * sine[None, :]


@triton.jit
def capped(scores, SOFTCAP: tl.constexpr):
    """Scores under the cap, times log2(e); without a cap they come with that factor."""
    if SOFTCAP > 0:
        scores = (SOFTCAP * LOG2_E) * (1 - 2 / (tl.exp(scores * (2 / SOFTCAP)) + 1))
    return scores


@triton.jit
def stored(rows, scales, vector, slot, is_held, KIND: tl.constexpr, DIM: tl.constexpr, WIDE: tl.constexpr):
    """Write (1, WIDE) into a slot, by the rules of device_cache.py; gives it as it is read back."""
    places = rows + slot * DIM + tl.arange(0, WIDE)[None, :]
    if KIND == "int8":
        greatest = tl.max(tl.abs(vector), 1)
        bits = (tl.div_rn(greatest, 127.0).to(tl.int32, bitcast=True) + 0x1FFF) & -0x2000
        scale = tl.where(greatest < LEAST, 0.0, bits.to(tl.float32, bitcast=True))
        zeros = tl.sum(vector * 0.0, 1)  # NaN if one is no number, which the greatest may hide
        scale = tl.where(zeros == 0, scale, float("nan"))
        divided = tl.div_rn(vector, tl.where(scale > 0, scale, 1.0)[:, None])
        codes = tl.where((scale > 0)[:, None], (divided + ROUNDER) - ROUNDER, 0.0)
        tl.store(places, codes.to(tl.int8), is_held)
        tl.store(scales + slot + tl.arange(0, 1), scale)
        read = codes * scale[:, None]
    else:
        if KIND == "bf16":
            vector = rounded(vector, 16)
        if KIND == "fp8":  # the comparisons let NaN through
            vector = tl.where(vector > MOST, MOST, tl.where(vector < -MOST, -MOST, vector))
            tiny = (vector + ROUNDER / 512) - ROUNDER / 512  # below its normal numbers e4m3 has steps of 2**-9
            vector = tl.where(tl.abs(vector) < 0.015625, tiny, rounded(vector, 20))
        held = vector.to(rows.dtype.element_ty)
        tl.store(places, held, is_held)
        read = held.to(tl.float32)
    return read


@triton.jit
def rounded(vector, DROPPED: tl.constexpr):
    """To the nearest, even, number without the last bits: the interpreter's own conversions round in other ways."""
    bits = vector.to(tl.int32, bitcast=True)
    bits = (bits + ((1 << (DROPPED - 1)) - 1) + ((bits >> DROPPED) & 1)) & -(1 << DROPPED)
    return tl.where(tl.abs(vector) >= 0, bits.to(tl.float32, bitcast=True), vector)
