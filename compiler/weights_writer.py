"""Writes weights.safetensors of a package: the header first, from the model and its precisions alone, then each block
of rows at its final offset. Every block is checked against what was declared; none is kept.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemem.kernels.formats import Precision, QuantizedMatrix
from edgemem.runtime.errors import NumericError, PackageError
from edgemem.runtime.finite import find_not_finite
from edgemem.runtime.model import ModelSpec
from edgemem.runtime.tensor_file import TensorEntry
from edgemem.runtime.weight_layout import ITEM_BYTES, tensor_specs

Block = QuantizedMatrix | NDArray[Any]
_ALIGNMENT = 64


class WeightsPlan:
    """The file before anything is written: `entries` by tensor name, the `header` bytes, `file_bytes` in all.

    Of layers [first, last) of the model. Raises ValueError where a precision's group does not divide the rows.
    """

    def __init__(
        self, model: ModelSpec, precision: Mapping[str, Precision], first: int = 0, last: int | None = None
    ) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {name: (length,) for name, length in model.vectors(first, last)}
        self.shapes.update(model.matrices(first, last))
        self.precision = precision
        specs = list(tensor_specs(model, precision, first, last))
        sizes = [math.prod(spec.shape) * ITEM_BYTES[spec.dtype] for spec in specs]
        spans = list(pairwise(accumulate(sizes, initial=0)))
        plain = {
            spec.name: {"dtype": spec.dtype, "shape": spec.shape, "data_offsets": span}
            for spec, span in zip(specs, spans, strict=True)
        }
        text = json.dumps(plain, separators=(",", ":")).encode()
        text += b" " * (-(len(text) + 8) % _ALIGNMENT)
        self.header = len(text).to_bytes(8, "little") + text
        base = len(self.header)
        self.file_bytes = base + sum(sizes)
        self.entries = {
            spec.name: TensorEntry(spec.dtype, spec.shape, base + begin, base + end)
            for spec, (begin, end) in zip(specs, spans, strict=True)
        }


class WeightsWriter:
    """An open weights file. Errors name the tensor; OSError passes through. Close it, whatever happens."""

    def __init__(self, path: Path, plan: WeightsPlan) -> None:
        self.path, self.plan = path, plan
        self._rows_done = dict.fromkeys(plan.shapes, 0)
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            os.posix_fallocate(self._descriptor, 0, plan.file_bytes)  # a full disk is known now, not at the end
            self._write_at(0, plan.header)
        except BaseException:
            self.close()
            raise

    def write(self, name: str, block: Block) -> None:
        """The next rows of `name`, or a whole vector."""
        if name not in self.plan.shapes:
            raise self._bad(name, "a tensor that the model has not")
        shape, first = self.plan.shapes[name], self._rows_done[name]
        count, parts = self._parts(name, block)
        if block.shape[1:] != shape[1:] or not 0 < count <= shape[0] - first:
            raise self._bad(name, f"a block of {block.shape} behind {first} rows", f"rows of {shape}")
        for tensor, values in parts.items():
            found = find_not_finite(values) if values.dtype != np.uint8 else None
            if found is not None:
                raise NumericError(f"tensor {tensor} holds NaN or Inf", got=f"{found}, counted from row {first}")
            entry = self.plan.entries[tensor]
            row_bytes = (entry.stop - entry.start) // shape[0]
            self._write_at(entry.start + first * row_bytes, np.ascontiguousarray(values).data.cast("B"))
        self._rows_done[name] = first + count

    def check_complete(self) -> None:
        for name, shape in self.plan.shapes.items():
            if self._rows_done[name] != shape[0]:
                raise self._bad(name, f"{self._rows_done[name]} rows", f"{shape[0]} rows")

    def close(self) -> None:
        os.close(self._descriptor)

    def _parts(self, name: str, block: Block) -> tuple[int, dict[str, NDArray[Any]]]:
        """(rows, tensors) of a block, in the stored types."""
        if name not in self.plan.precision:  # a vector
            if not isinstance(block, np.ndarray) or block.dtype != np.float32:
                raise self._bad(name, _described(block), "float32")
            return len(block), {name: block}
        precision = self.plan.precision[name]
        if isinstance(block, QuantizedMatrix):
            if block.precision != precision:
                raise self._bad(name, str(block.precision), str(precision))
            parts: dict[str, NDArray[Any]] = {f"{name}.codes": block.codes, f"{name}.scales": block.scales}
            if block.minima is not None:
                parts[f"{name}.minima"] = block.minima
            return block.shape[0], parts
        if precision.quantized or block.dtype != np.float32:
            raise self._bad(name, _described(block), f"{precision}" if precision.quantized else "float32 rows")
        return len(block), {f"{name}.weight": _as_stored(name, block, precision)}

    def _write_at(self, offset: int, data: bytes | memoryview) -> None:
        view = memoryview(data)
        while view:
            written = os.pwrite(self._descriptor, view, offset)
            view, offset = view[written:], offset + written

    def _bad(self, name: str, got: str, wanted: str | None = None) -> PackageError:
        return PackageError(f"tensor {name!a} is not delivered as declared", where=self.path, got=got, wanted=wanted)


def _as_stored(name: str, rows: NDArray[np.float32], precision: Precision) -> NDArray[Any]:
    if precision.kind == "fp32":
        return rows
    if precision.kind == "fp16":
        with np.errstate(over="ignore"):  # what overflows is Inf, and found as such
            halves = rows.astype(np.float16)
        if np.isfinite(rows).all() and not np.isfinite(halves).all():
            raise NumericError(
                f"tensor {name} cannot be stored as fp16",
                got=float(np.abs(rows).max()),
                wanted="weights within 65504",
                do="check the source weights, or keep this matrix as fp32 or int8",
            )
        return halves
    bits = np.ascontiguousarray(rows).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)  # to nearest, ties to even


def _described(block: Block) -> str:
    return str(block.precision) if isinstance(block, QuantizedMatrix) else f"{block.dtype}{list(block.shape)}"
