"""StandardLinear: y = x W^T + b and the embedding lookup in ONNX's own operators, for every way a matrix is stored.

A quantised matrix is a DequantizeLinear of signed codes, which the runtime fuses into the product: the package's
codes with their top bit turned. With a minimum, w = scale * code + centred, centred = minimum + 2**(bits-1) * scale: a
second product, of the group sums of x, in float32 and so exact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemem.compiler.graph_data import GraphData
from edgemem.compiler.onnx_graph import FLOAT, FLOAT16, INT4, INT8, OnnxGraph
from edgemem.runtime.errors import EngineError
from edgemem.runtime.package import Package
from edgemem.runtime.stored_matrix import StoredMatrix

_BLOCK_BYTES = 8 << 20  # of weights held at once


class StandardLinear:
    """Matrices by canonical name. x is (rows, K) float32 and y (rows, N) float32; the product is float16 x float16
    with a float16 result, or all float32 where the matrix is stored so."""

    def __init__(self, graph: OnnxGraph, data: GraphData, package: Package) -> None:
        self._graph, self._data, self._package = graph, data, package

    def product(self, x: str, names: Sequence[str], biases: Sequence[str] = ()) -> str:
        """x times matrices that share a precision, results side by side."""
        graph, stored = self._graph, self._package.precision(names[0])
        weight = graph.derived("Transpose", [self._weight(names)], perm=[1, 0])
        if stored.kind == "fp32":
            y = graph.node("MatMul", [x, weight])
        else:
            half = graph.derived("Cast", [x], to=FLOAT16)
            y = graph.node("Cast", [graph.node("MatMul", [half, weight])], to=FLOAT)
        if stored.minimum:
            _, columns = self._shape(names)
            groups = graph.derived("Reshape", [x, graph.integers(-1, columns // stored.group, stored.group)])
            sums = graph.derived("ReduceSum", [groups, graph.integers(2)], keepdims=0)
            minima = graph.derived("Transpose", [self._centred(names)], perm=[1, 0])
            y = graph.node("Add", [y, graph.node("MatMul", [sums, minima])])
        return graph.node("Add", [y, self.vector(biases)]) if biases else y

    def fused(self, names: Sequence[str]) -> bool:
        """Whether product() can take these matrices at once."""
        return len({self._package.precision(name) for name in names}) == 1

    def lookup(self, tokens: str, name: str) -> str:
        """The rows `tokens` (n,) of a matrix, (n, K) float32. No runtime need dequantise the others."""
        graph, stored = self._graph, self._package.precision(name)
        rows = graph.node("Gather", [self._weight([name]), tokens], axis=0)
        values = rows if stored.kind == "fp32" else graph.node("Cast", [rows], to=FLOAT)
        if not stored.minimum:
            return values
        _, columns = self._shape([name])
        groups = graph.node("Reshape", [values, graph.integers(-1, columns // stored.group, stored.group)])
        minima = graph.node("Gather", [self._centred([name]), tokens], axis=0)
        minima = graph.node("Unsqueeze", [minima, graph.integers(2)])
        return graph.node("Reshape", [graph.node("Add", [groups, minima]), graph.integers(-1, columns)])

    def vector(self, names: Sequence[str]) -> str:
        """Vectors one behind the other, float32."""
        vectors = [self._package.vector(name) for name in names]
        return self._data.tensor("+".join(names), FLOAT, [sum(map(len, vectors))], vectors)

    def _weight(self, names: Sequence[str]) -> str:
        """Matrices stacked, (N, K), float16 or as stored in float32."""
        stored, name, shape = self._package.precision(names[0]), "+".join(names), self._shape(names)
        if not stored.quantized:
            if stored.kind == "fp32":
                return self._data.tensor(name, FLOAT, shape, self._blocks(names, _first_part))
            return self._data.tensor(name, FLOAT16, shape, self._blocks(names, partial(_halves, name)))
        top_bit = np.uint8(0x88 if stored.bits == 4 else 0x80)
        codes = self._data.tensor(
            f"{name}.codes",
            INT4 if stored.bits == 4 else INT8,
            shape,
            self._blocks(names, lambda matrix, rows: matrix.parts[0][rows] ^ top_bit),
        )
        scales = self._data.tensor(
            f"{name}.scales",
            FLOAT16,
            [shape[0], shape[1] // stored.group],
            self._blocks(names, lambda matrix, rows: matrix.parts[1][rows]),
        )
        return self._graph.derived("DequantizeLinear", [codes, scales], axis=1, block_size=stored.group)

    def _centred(self, names: Sequence[str]) -> str:
        """minima + 2**(bits-1) * scales, (N, K/group) float32."""
        stored, (rows, columns) = self._package.precision(names[0]), self._shape(names)
        middle = np.float32(1 << (stored.bits - 1))
        return self._data.tensor(
            f"{'+'.join(names)}.centred",
            FLOAT,
            [rows, columns // stored.group],
            self._blocks(
                names,
                lambda matrix, rows: (
                    matrix.parts[2][rows].astype(np.float32) + middle * matrix.parts[1][rows].astype(np.float32)
                ),
            ),
        )

    def _blocks(
        self, names: Sequence[str], part: Callable[[StoredMatrix, slice], NDArray[Any]]
    ) -> Iterator[NDArray[Any]]:
        """What `part` makes of a matrix and some of its rows, for all rows of all matrices in order."""
        for name in names:
            matrix = self._package.matrix(name)
            height = max(1, _BLOCK_BYTES // (4 * matrix.shape[1]))
            for start in range(0, matrix.shape[0], height):
                yield part(matrix, slice(start, start + height))
            self._package.forget_pages()

    def _shape(self, names: Sequence[str]) -> tuple[int, int]:
        shapes = [self._package.matrix(name).shape for name in names]
        return sum(rows for rows, _ in shapes), shapes[0][1]


def _first_part(matrix: StoredMatrix, rows: slice) -> NDArray[Any]:
    return matrix.parts[0][rows]


def _halves(name: str, matrix: StoredMatrix, rows: slice) -> NDArray[np.float16]:
    """float16 or bfloat16 weights as float16. Raises EngineError where that has no such value."""
    with np.errstate(over="ignore"):
        values = matrix.rows(rows.start, rows.stop).astype(np.float16)
    if not np.isfinite(values).all():
        raise EngineError(
            "a weight is too large for float16",
            where=name,
            wanted=f"at most {np.finfo(np.float16).max}",
            do="recompile the package with another precision for this matrix",
        )
    return values
