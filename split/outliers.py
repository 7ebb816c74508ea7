"""Threshold splitting (TS): the few large values of a hidden state, sent apart, so that the rest has a small range.

The format is our reconstruction: arXiv 2511.04002 names the method, but not its form. Here a row has its number of
outliers, in a byte, and for each a 16-bit column and an fp16 value.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgemem.runtime.errors import ProtocolError
from edgemem.split.payload import PayloadReader

OUTLIER_BYTES = 4
MOST_OUTLIERS = 255  # of a row
_MOST_HALF = 65504.0


@dataclass(frozen=True, eq=False)
class Outliers:
    """counts: (n,) of each row. columns, values: row after row."""

    counts: NDArray[np.uint8]
    columns: NDArray[np.uint16]
    values: NDArray[np.float16]

    def encode(self) -> bytes:
        parts = (self.counts, self.columns.astype("<u2"), self.values.astype("<f2"))
        return b"".join(part.tobytes() for part in parts)

    def place(self, dense: NDArray[np.float32]) -> None:
        """Put the outliers into the (n, hidden) rows that they were taken from."""
        rows = np.repeat(np.arange(len(self.counts)), self.counts)
        dense[rows, self.columns] = self.values


def find_outliers(states: NDArray[np.float32], tau: float) -> NDArray[np.bool_]:
    """(n, hidden): where |x| >= tau."""
    mask: NDArray[np.bool_] = np.abs(states) >= tau
    return mask


def representable(states: NDArray[np.float32], mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(n,): whose outliers a payload can hold, by number and size."""
    fits: NDArray[np.bool_] = np.count_nonzero(mask, axis=1) <= MOST_OUTLIERS
    fits &= np.abs(states).max(axis=1, initial=0.0) <= _MOST_HALF
    return fits


def take_outliers(states: NDArray[np.float32], mask: NDArray[np.bool_]) -> Outliers:
    """The values at `mask`, of rows that are representable."""
    rows, columns = np.nonzero(mask)
    counts = np.bincount(rows, minlength=len(states)).astype(np.uint8)
    return Outliers(counts, columns.astype(np.uint16), states[rows, columns].astype(np.float16))


def decode_outliers(reader: PayloadReader, count: int, hidden: int) -> Outliers:
    """Of `count` rows. Raises ProtocolError."""
    counts = reader.array("<u1", count)
    total = int(counts.sum(dtype=np.int64))
    columns, values = reader.array("<u2", total), reader.array("<f2", total)
    if (columns >= hidden).any():
        raise ProtocolError("an outlier beyond the hidden size", got=int(columns.max()), wanted=f"under {hidden}")
    return Outliers(counts, columns, values)
