"""Token-wise adaptive bits (TAB-Q): each token's row in whole codes of as few bits as its error allows.

The rule is our reconstruction: arXiv 2511.04002 names the method, but its exact rule is not public. A row's step is
(max - min) / (2^b - 1), its code round(x / step), so that 0 stays 0; b is the smallest of 2..8 whose relative error
||x - x'|| / ||x|| is at most delta.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

WIDTHS = tuple(range(2, 9))  # bits


@dataclass(frozen=True, eq=False)
class TokenCodes:
    """widths: (n,) bits, 0 where no width was good enough. steps: (n,) bfloat16 as uint16. zeros: (n,) the lowest code
    below 0. codes: (n, hidden), from -zero to 2^width - 1 - zero."""

    widths: NDArray[np.int64]
    steps: NDArray[np.uint16]
    zeros: NDArray[np.uint8]
    codes: NDArray[np.int16]


def quantise(rows: NDArray[np.float32], delta: float) -> TokenCodes:
    """(n, hidden) finite rows, each in its fewest bits; where delta is 0, all in the most."""
    count = len(rows)
    widths, codes = np.zeros(count, dtype=np.int64), np.zeros(rows.shape, dtype=np.int16)
    steps, zeros = np.zeros(count, dtype=np.uint16), np.zeros(count, dtype=np.uint8)
    limits = delta * np.linalg.norm(rows.astype(np.float64), axis=1)
    left = np.arange(count)
    for width in WIDTHS if delta else WIDTHS[-1:]:
        found = _quantised(rows[left], width)
        errors = np.linalg.norm(restore(found.codes, found.steps) - rows[left].astype(np.float64), axis=1)
        good = errors <= limits[left] if delta else np.ones(len(left), dtype=bool)
        done, left = left[good], left[~good]
        widths[done], steps[done], zeros[done] = width, found.steps[good], found.zeros[good]
        codes[done] = found.codes[good]
        if not len(left):
            break
    return TokenCodes(widths, steps, zeros, codes)


def restore(codes: NDArray[np.int16], steps: NDArray[np.uint16]) -> NDArray[np.float32]:
    """(n, hidden): codes times their steps, in float32; not finite where a step is not."""
    states: NDArray[np.float32] = codes.astype(np.float32) * _from_bfloat16(steps)[:, None]
    return states


def packed_bytes(width: int, hidden: int) -> int:
    return (width * hidden + 7) // 8


def pack(codes: NDArray[np.int16], zeros: NDArray[np.uint8], width: int) -> bytes:
    """Rows of one width, `packed_bytes` each: code + zero in `width` bits, the highest first."""
    places = np.arange(width - 1, -1, -1)
    bits = ((codes + zeros[:, None])[:, :, None] >> places) & 1
    return np.packbits(bits.astype(np.uint8).reshape(len(codes), width * codes.shape[1]), axis=1).tobytes()


def unpack(packed: NDArray[np.uint8], zeros: NDArray[np.uint8], width: int, hidden: int) -> NDArray[np.int16]:
    """pack's inverse. packed: (n, packed_bytes)."""
    bits = np.unpackbits(packed, axis=1, count=width * hidden).reshape(len(packed), hidden, width)
    codes: NDArray[np.int16] = bits.astype(np.int64) @ (1 << np.arange(width - 1, -1, -1))
    return codes - zeros[:, None]


def _quantised(rows: NDArray[np.float32], width: int) -> TokenCodes:
    """All rows in `width` bits. Zero is always within a row's range."""
    lowest = rows.min(axis=1, initial=0.0).astype(np.float64)
    highest = rows.max(axis=1, initial=0.0).astype(np.float64)
    steps = _to_bfloat16(((highest - lowest) / ((1 << width) - 1)).astype(np.float32))
    exact = _from_bfloat16(steps)
    divisors = np.where(exact == 0, np.float32(1), exact)
    zeros = np.rint(-lowest / divisors).astype(np.int64)
    highest_codes = (1 << width) - 1 - zeros
    codes = np.clip(np.rint(rows / divisors[:, None]), -zeros[:, None], highest_codes[:, None])
    return TokenCodes(np.full(len(rows), width), steps, zeros.astype(np.uint8), codes.astype(np.int16))


def _to_bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Rounded up, so that a row's whole range lies within its steps; values from 0."""
    bits = values.view(np.uint32).astype(np.uint64)
    return ((bits + 0xFFFF) >> 16).astype(np.uint16)


def _from_bfloat16(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    return (bits.astype(np.uint32) << 16).view(np.float32)
