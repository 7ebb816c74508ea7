"""WeightSource: where matrices and vectors come from, whether a checkpoint or a package. Lazy, row by row."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgemem.kernels.formats import Precision, QuantizedMatrix
from edgemem.runtime.model import ModelSpec


class Matrix(Protocol):
    """A (rows, columns) matrix on disk; nothing is read before it is asked for."""

    @property
    def shape(self) -> tuple[int, int]: ...

    @property
    def stored(self) -> Precision | None:
        """The canonical precision that holds the stored values exactly; None where there is none (e.g. Q6_K)."""
        ...

    def rows(self, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """Rows [start, stop) dequantised, (stop - start, columns) float32."""
        ...

    def quantized(self, start: int = 0, stop: int | None = None) -> QuantizedMatrix | None:
        """Rows [start, stop) in the canonical layout if `stored` is a quantised precision, else None."""
        ...


class WeightSource(Protocol):
    """The tensors of one model under the canonical names of ModelSpec.matrices() and ModelSpec.vectors()."""

    @property
    def model(self) -> ModelSpec: ...

    def matrix(self, name: str) -> Matrix: ...

    def vector(self, name: str) -> NDArray[np.float32]: ...
