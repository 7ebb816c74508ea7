"""OnnxLinear: y = x W^T + b and the embedding lookup as ONNX nodes, for every way a matrix can be stored.

A quantised matrix is a MatMulNBits on its own bytes with the default zero point 2**(bits-1), which is the fast path.
With a minimum, w = scale * code + minimum = scale * (code - 2**(bits-1)) + centred, centred = minimum +
2**(bits-1) * scale: a second product, of the group sums of x, in float32 and so exact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from edgemem.compiler.onnx_graph import CONTRIB, FLOAT, OnnxGraph
from edgemem.kernels.formats import Precision

_INT8_ACTIVATIONS = 4  # MatMulNBits accuracy_level: x is rounded to int8 in blocks, twice as fast as float


class OnnxLinear:
    """Matrices by canonical name. x is (rows, K) float32 and y (rows, N) float32."""

    def __init__(self, graph: OnnxGraph, precision: Callable[[str], Precision]) -> None:
        self._graph, self._precision = graph, precision

    def product(self, x: str, names: Sequence[str], biases: Sequence[str] = ()) -> str:
        """x times matrices that lie one behind the other in the file and share a precision, results side by side."""
        graph, stored = self._graph, self._precision(names[0])
        bias = ""
        if biases:
            vectors = [graph.weight([name]) for name in biases]
            bias = vectors[0] if len(vectors) == 1 else graph.derived("Concat", vectors, axis=0)
        if not stored.quantized:
            weight = self._float(graph.weight([f"{name}.weight" for name in names]), stored)
            return graph.node("Gemm", [x, weight, bias] if bias else [x, weight], transB=1)
        scales, centred = self._scales(names)
        outputs, columns = self._shape(names, stored)
        y = graph.node(
            "MatMulNBits",
            [x, graph.weight([f"{name}.codes" for name in names]), scales, *(["", "", bias] if bias else [])],
            domain=CONTRIB,
            N=outputs,
            K=columns,
            bits=stored.bits,
            block_size=stored.group,
            accuracy_level=_INT8_ACTIVATIONS,
        )
        if not centred:
            return y
        groups = graph.derived("Reshape", [x, graph.integers(-1, columns // stored.group, stored.group)])
        sums = graph.derived("ReduceSum", [groups, graph.integers(2)], keepdims=0)
        return graph.node("Gemm", [sums, centred, y], transB=1)

    def fused(self, names: Sequence[str]) -> bool:
        """Whether product() can take these matrices at once."""
        stored = self._precision(names[0])
        if any(self._precision(name) != stored for name in names):
            return False
        parts = ["codes", "scales"] if stored.quantized else ["weight"]
        if stored.minimum:
            parts.append("minima")
        return all(self._graph.adjacent([f"{name}.{part}" for name in names]) for part in parts)

    def lookup(self, tokens: str, name: str) -> str:
        """The rows `tokens` (n,) of a matrix, (n, K) float32."""
        graph, stored = self._graph, self._precision(name)
        if not stored.quantized:
            return self._float(graph.node("Gather", [graph.weight([f"{name}.weight"]), tokens], axis=0), stored)
        rows, columns = self._shape([name], stored)
        scales, centred = self._scales([name])
        values = graph.node(
            "GatherBlockQuantized",
            [graph.weight([f"{name}.codes"], (rows, columns * stored.bits // 8)), tokens, scales],
            domain=CONTRIB,
            bits=stored.bits,
            block_size=stored.group,
            gather_axis=0,
            quantize_axis=1,
        )
        if not centred:
            return values
        groups = graph.node("Reshape", [values, graph.integers(-1, columns // stored.group, stored.group)])
        minima = graph.node("Unsqueeze", [graph.node("Gather", [centred, tokens], axis=0), graph.integers(2)])
        return graph.node("Reshape", [graph.node("Add", [groups, minima]), graph.integers(-1, columns)])

    def _scales(self, names: Sequence[str]) -> tuple[str, str | None]:
        """Scales (N, K/group) in float32, and the centred minima of the same shape if there are minima."""
        graph, stored = self._graph, self._precision(names[0])
        scales = graph.derived("Cast", [graph.weight([f"{name}.scales" for name in names])], to=FLOAT)
        if not stored.minimum:
            return scales, None
        minima = graph.derived("Cast", [graph.weight([f"{name}.minima" for name in names])], to=FLOAT)
        zero_point = graph.constant(np.array(1 << (stored.bits - 1), dtype=np.float32))
        return scales, graph.derived("Add", [minima, graph.derived("Mul", [scales, zero_point])])

    def _float(self, value: str, stored: Precision) -> str:
        return value if stored.kind == "fp32" else self._graph.derived("Cast", [value], to=FLOAT)

    def _shape(self, names: Sequence[str], stored: Precision) -> tuple[int, int]:
        """(N, K) of quantised matrices stacked."""
        shapes = [self._graph.weight_shape(f"{name}.codes") for name in names]
        return sum(shape[0] for shape in shapes), shapes[0][1] * stored.group
