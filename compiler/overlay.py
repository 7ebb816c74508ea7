"""A WeightSource with some of its matrices replaced: what calibration and measurements run the reference decoder on."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgemem.compiler.quantize import quantize
from edgemem.kernels.formats import Precision, QuantizedMatrix
from edgemem.runtime.model import ModelSpec
from edgemem.runtime.weights import Matrix, WeightSource


class Overlay:
    """Gives the matrices that were put, and the source's for all others. Vectors are the source's."""

    def __init__(self, source: WeightSource) -> None:
        self._source = source
        self._replaced: dict[str, Matrix] = {}

    @property
    def model(self) -> ModelSpec:
        return self._source.model

    def put(self, name: str, matrix: Matrix) -> None:
        self._replaced[name] = matrix

    def clear(self) -> None:
        self._replaced.clear()

    def matrix(self, name: str) -> Matrix:
        return self._replaced[name] if name in self._replaced else self._source.matrix(name)

    def vector(self, name: str) -> NDArray[np.float32]:
        return self._source.vector(name)


class WholeMatrix:
    """A quantised matrix held in memory."""

    def __init__(self, values: QuantizedMatrix) -> None:
        self._values = values
        self.shape, self.stored = values.shape, values.precision

    def rows(self, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        return self.quantized(start, stop).dequantize()

    def quantized(self, start: int = 0, stop: int | None = None) -> QuantizedMatrix:
        values = self._values
        minima = None if values.minima is None else values.minima[start:stop]
        return QuantizedMatrix(values.codes[start:stop], values.scales[start:stop], minima, values.bits)


class QuantizedOnRead:
    """A matrix quantised each time rows are asked for: the same values as if it had been stored, and no memory."""

    def __init__(self, matrix: Matrix, precision: Precision, *, search: bool | None = None) -> None:
        self._matrix, self._search = matrix, search
        self.shape, self.stored = matrix.shape, precision

    def rows(self, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        values = self.quantized(start, stop)
        return self._matrix.rows(start, stop) if values is None else values.dequantize()

    def quantized(self, start: int = 0, stop: int | None = None) -> QuantizedMatrix | None:
        if not self.stored.quantized:
            return None
        if self._matrix.stored == self.stored:
            return self._matrix.quantized(start, stop)
        return quantize(self._matrix.rows(start, stop), self.stored, search=self._search, first_row=start)
