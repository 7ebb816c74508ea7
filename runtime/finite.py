"""Finding NaN and Inf by their bits: several times quicker than np.isfinite on half floats, and it knows bfloat16."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_STEP = 4 << 20  # values looked at in one go: bounds the memory of a scan
_EXPONENTS = {"<f4": (np.uint32, 0x7F800000), "<f2": (np.uint16, 0x7C00), "<u2": (np.uint16, 0x7F80)}


class NotFinite(NamedTuple):
    """How many values are NaN or Inf, and the index of the first."""

    total: int
    first: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.total} of its values, the first at {list(self.first)}"


def find_not_finite(values: NDArray[np.generic]) -> NotFinite | None:
    """None if all of `values` (float32, float16, or bfloat16 as uint16) are finite. Reads a bounded part at a time."""
    bits, exponent = _EXPONENTS[values.dtype.newbyteorder("<").str]
    flat = values.reshape(-1).view(bits)
    count, first = 0, -1
    for start in range(0, flat.size, _STEP):
        bad = (flat[start : start + _STEP] & exponent) == exponent
        if bad.any():
            count += int(bad.sum())
            first = start + int(bad.argmax()) if first < 0 else first
    if not count:
        return None
    return NotFinite(count, tuple(int(index) for index in np.unravel_index(first, values.shape)))
