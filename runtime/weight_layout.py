"""Where every tensor of a package lies in weights.safetensors: the writer lays it out so, the reader demands it so.

First the float32 vectors (so that they are aligned), then the matrices, both in the order of ModelSpec. Query, key and
value of one layer, and gate and up, lie as one block where they are stored alike: all codes, all scales, all minima,
so that a graph can take them as one fused matrix.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import NamedTuple

from edgemem.kernels.formats import Precision
from edgemem.runtime.model import ModelSpec

ITEM_BYTES = {"U8": 1, "F16": 2, "BF16": 2, "F32": 4}
_FLOAT_DTYPES = {"fp16": "F16", "bf16": "BF16", "fp32": "F32"}
_FUSED = {"query": "query", "key": "query", "value": "query", "gate": "gate", "up": "gate"}


class TensorSpec(NamedTuple):
    """One tensor as it must be in the file; dtype is the safetensors name."""

    name: str
    dtype: str
    shape: tuple[int, ...]


def tensor_specs(
    model: ModelSpec, precision: Mapping[str, Precision], first: int = 0, last: int | None = None
) -> Iterator[TensorSpec]:
    """Every tensor of the weights file of layers [first, last), in file order.

    Raises ValueError where a group does not divide a row.
    """
    for name, length in model.vectors(first, last):
        yield TensorSpec(name, "F32", (length,))
    for _, block in groupby(model.matrices(first, last), key=lambda matrix: _block(matrix[0], precision)):
        parts = [matrix_specs(name, shape, precision[name]) for name, shape in block]
        for same in zip(*parts, strict=True):
            yield from same


def matrix_specs(name: str, shape: tuple[int, int], precision: Precision) -> list[TensorSpec]:
    """The tensors of one (rows, columns) matrix: codes, scales and perhaps minima, or the one float weight."""
    rows, columns = shape
    if not precision.quantized:
        return [TensorSpec(f"{name}.weight", _FLOAT_DTYPES[precision.kind], shape)]
    if columns % precision.group:
        raise ValueError(f"rows of {columns} of matrix {name} cannot be cut into groups of {precision.group}")
    groups = columns // precision.group
    specs = [
        TensorSpec(f"{name}.codes", "U8", (rows, groups, precision.group * precision.bits // 8)),
        TensorSpec(f"{name}.scales", "F16", (rows, groups)),
    ]
    return [*specs, TensorSpec(f"{name}.minima", "F16", (rows, groups))] if precision.minimum else specs


def _block(name: str, precision: Mapping[str, Precision]) -> str:
    """The same text for matrices that lie in one block."""
    layer, _, matrix = name.rpartition(".")
    leader = f"{layer}.{_FUSED.get(matrix, matrix)}"
    fused = layer != "" and all(
        precision[f"{layer}.{other}"] == precision[leader]
        for other, its_leader in _FUSED.items()
        if f"{layer}.{its_leader}" == leader
    )
    return leader if fused else name
