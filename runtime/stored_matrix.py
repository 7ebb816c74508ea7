"""A matrix inside a package: views of the mapped weights file. Dequantises only the rows that are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemem.kernels.formats import Precision, QuantizedMatrix
from edgemem.runtime.tensor_file import TensorFile, widen


class StoredMatrix:
    """Implements the Matrix protocol over tensors whose names, dtypes and shapes were checked."""

    def __init__(self, tensors: TensorFile, name: str, shape: tuple[int, int], precision: Precision) -> None:
        self.shape = shape
        self.stored = precision
        parts = ("codes", "scales", "minima")[: 3 if precision.minimum else 2] if precision.quantized else ("weight",)
        self._parts: list[NDArray[Any]] = [tensors.array(f"{name}.{part}") for part in parts]

    @property
    def parts(self) -> Sequence[NDArray[Any]]:
        """The tensors as stored, mapped and perhaps unaligned: codes, scales and perhaps minima, or the one weight."""
        return self._parts

    def rows(self, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """Rows [start, stop) as float32, (stop - start, columns)."""
        quantized = self.quantized(start, stop)
        if quantized is not None:
            return quantized.dequantize()
        return widen(self._parts[0][start:stop])

    def quantized(self, start: int = 0, stop: int | None = None) -> QuantizedMatrix | None:
        """Rows [start, stop) as stored, without a copy; None for a float matrix."""
        if not self.stored.quantized:
            return None
        codes, scales, *minima = (part[start:stop] for part in self._parts)
        return QuantizedMatrix(codes, scales, minima[0] if minima else None, 4 if self.stored.bits == 4 else 8)
