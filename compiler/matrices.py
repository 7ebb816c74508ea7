"""What every checkpoint reader needs of its matrices: finite values, checked row ranges, and the unquantised matrix."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemem.kernels.formats import Kind, Precision, QuantizedMatrix
from edgemem.runtime.errors import NumericError, SettingsError
from edgemem.runtime.finite import find_not_finite
from edgemem.runtime.tensor_file import widen

FLOAT_KINDS: dict[str, Kind] = {"F32": "fp32", "F16": "fp16", "BF16": "bf16"}


def check_finite(name: str, values: NDArray[Any]) -> None:
    """Raise NumericError with the tensor, how many NaN or Inf there are, and where the first is; float32 or float16."""
    found = find_not_finite(values)
    if found is None:
        return
    raise NumericError(
        f"tensor {name} is not finite",
        got=f"{found.total} NaN or Inf of {values.size} values, the first at {found.first}",
        wanted="finite weights",
        do="the file is damaged or the model was not trained soundly: download it again",
    )


def row_range(name: str, rows: int, start: int, stop: int | None) -> tuple[int, int]:
    """(start, stop) with stop filled in; SettingsError unless 0 <= start <= stop <= rows."""
    stop = rows if stop is None else stop
    if not 0 <= start <= stop <= rows:
        raise SettingsError(f"no such rows of {name}", got=f"[{start}, {stop})", wanted=f"within [0, {rows})")
    return start, stop


class FloatMatrix:
    """An unquantised matrix: a (rows, columns) view of a mapped file, of safetensors dtype F32, F16 or BF16."""

    def __init__(self, name: str, values: NDArray[Any], dtype: str) -> None:
        self._name, self._values, self._dtype = name, values, dtype

    @property
    def shape(self) -> tuple[int, int]:
        return int(self._values.shape[0]), int(self._values.shape[1])

    @property
    def stored(self) -> Precision:
        return Precision(FLOAT_KINDS[self._dtype])

    def rows(self, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """Rows [start, stop) as float32. NumericError if one is not finite."""
        start, stop = row_range(self._name, self.shape[0], start, stop)
        values = widen(self._values[start:stop])
        check_finite(self._name, values)
        return values

    def quantized(self, start: int = 0, stop: int | None = None) -> QuantizedMatrix | None:
        return None
