"""Adaptive rows: threshold splitting, then adaptive bits, then rANS, each row in whichever form is smallest.

The format is ours: that of arXiv 2511.04002 is not public. A row is coded by itself: its values are the same in
whatever chunk it comes. Bytes, for n rows: n heads; the outliers, where tau is finite; steps of the quantised rows;
zeros of the packed ones; half-float rows; packed rows by width; rANS.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from edgemem.runtime.errors import ProtocolError
from edgemem.split import rans
from edgemem.split.half_rows import decode_half_rows, encode_half_rows, half_row_bytes
from edgemem.split.outliers import (
    OUTLIER_BYTES,
    decode_outliers,
    find_outliers,
    representable,
    take_outliers,
)
from edgemem.split.payload import PayloadReader
from edgemem.split.token_bits import WIDTHS, TokenCodes, pack, packed_bytes, quantise, restore, unpack

# A row's head: under CURVES the rANS curve that it is coded by; CURVES + i packed in WIDTHS[i] bits; then half floats.
_PACKED = rans.CURVES
_HALF = _PACKED + len(WIDTHS)


def encode_adaptive(states: NDArray[np.float32], tau: float, delta: float, use_rans: bool) -> bytes:
    """(n, hidden) finite -> bytes, a row at most two more than in fp16."""
    mask = find_outliers(states, tau)
    codes = quantise(np.where(mask, np.float32(0), states), delta)
    heads = _heads(states, mask, codes, use_rans)
    half, packed = heads == _HALF, (heads >= _PACKED) & (heads < _HALF)
    parts = [heads.astype(np.uint8).tobytes()]
    if math.isfinite(tau):
        parts.append(take_outliers(states, mask & ~half[:, None]).encode())
    parts.append(codes.steps[~half].astype("<u2").tobytes())
    parts.append(codes.zeros[packed].tobytes())
    parts.append(encode_half_rows(states[half]))
    for width, chosen in _packed_groups(heads):
        parts.append(pack(codes.codes[chosen], codes.zeros[chosen], width))
    curved = heads < _PACKED
    parts.append(rans.encode(codes.codes[curved], heads[curved]))
    return b"".join(parts)


def decode_adaptive(payload: bytes, count: int, hidden: int, tau: float) -> NDArray[np.float32]:
    """(count, hidden); not all finite where the bytes were not. Raises ProtocolError."""
    reader = PayloadReader(payload)
    heads = reader.array("<u1", count).astype(np.int64)
    if (heads > _HALF).any():
        raise ProtocolError("a row of a form that there is not", got=int(heads.max()), wanted=f"at most {_HALF}")
    half, packed, curved = heads == _HALF, (heads >= _PACKED) & (heads < _HALF), heads < _PACKED
    outliers = decode_outliers(reader, count, hidden) if math.isfinite(tau) else None
    steps = np.zeros(count, dtype=np.uint16)
    steps[~half] = reader.array("<u2", int(np.count_nonzero(~half)))
    zeros = np.zeros(count, dtype=np.uint8)
    zeros[packed] = reader.array("<u1", int(np.count_nonzero(packed)))
    half_rows = decode_half_rows(reader, int(np.count_nonzero(half)), hidden)
    codes = np.zeros((count, hidden), dtype=np.int16)
    for width, chosen in _packed_groups(heads):
        rows = reader.array("<u1", int(np.count_nonzero(chosen)), packed_bytes(width, hidden))
        codes[chosen] = unpack(rows, zeros[chosen], width, hidden)
    try:
        codes[curved] = rans.decode(reader.rest(), hidden, heads[curved])
    except ValueError as problem:
        raise ProtocolError("hidden states that cannot be decoded", got=problem) from problem
    states = restore(codes, steps)
    states[half] = half_rows
    if outliers is not None:
        outliers.place(states)
    return states


def _packed_groups(heads: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.bool_]]]:
    """The widths that there are, rising, each with its rows."""
    for place, width in enumerate(WIDTHS):
        chosen = heads == _PACKED + place
        if chosen.any():
            yield width, chosen


def _heads(
    states: NDArray[np.float32], mask: NDArray[np.bool_], codes: TokenCodes, use_rans: bool
) -> NDArray[np.int64]:
    """(n,): the smallest form of each row; in half floats also where no other holds it."""
    hidden = states.shape[1]
    packed = np.array([packed_bytes(width, hidden) + 1 for width in (0, 1, *WIDTHS)])[codes.widths]
    heads, sizes = _PACKED + codes.widths - WIDTHS[0], packed
    if use_rans:
        curves, bits = rans.cheapest_curve(codes.codes)
        coded = np.ceil(bits / 8).astype(np.int64) + rans.STATE_BYTES
        heads, sizes = np.where(coded < packed, curves, heads), np.minimum(coded, packed)
    sizes = sizes + 2 + OUTLIER_BYTES * np.count_nonzero(mask, axis=1)
    fits = (codes.widths > 0) & (sizes < half_row_bytes(hidden)) & representable(states, mask)
    return np.where(fits, heads, _HALF)
