"""Reads tensors and convolutions out of a TFLite file.

For files whose hash is known to the caller: the container itself is not checked against a stranger's tricks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemem.runtime.errors import EngineError


@dataclass(frozen=True, eq=False)
class TfliteTensor:
    """values: None unless it is a constant. scales: (1,) or (channels,) float32, empty where not quantised;
    real = scale * (stored - zero_point)."""

    shape: tuple[int, ...]
    values: NDArray[Any] | None
    scales: NDArray[np.float32]
    zero_point: int


@dataclass(frozen=True)
class Convolution:
    """Numbers of its tensors. The padding is TFLite's SAME; an activation function is in the output's range."""

    input: int
    weights: int
    bias: int
    output: int
    depthwise: bool = False
    stride: int = 1


class TfliteGraph:
    """The first graph of the file. Raises EngineError where the `tflite` package is missing."""

    def __init__(self, content: bytes) -> None:
        try:
            import tflite
        except ImportError as problem:
            do = 'pip install "edgemem-runtime[compile]"'
            raise EngineError("the tflite package cannot be imported", got=problem, do=do) from problem
        self._tflite = tflite
        self._model = tflite.Model.GetRootAs(content, 0)
        self._graph = self._model.Subgraphs(0)
        types = tflite.TensorType
        self._dtypes = {types.FLOAT32: np.float32, types.INT32: np.int32, types.INT8: np.int8}

    def tensor(self, number: int) -> TfliteTensor:
        tensor = self._graph.Tensors(number)
        shape = tuple(int(size) for size in tensor.ShapeAsNumpy())
        stored = self._model.Buffers(tensor.Buffer())
        values = None
        if stored.DataLength():
            values = stored.DataAsNumpy().view(self._dtypes[tensor.Type()]).reshape(shape)
        quantised = tensor.Quantization()
        if quantised is None or not quantised.ScaleLength():
            return TfliteTensor(shape, values, np.empty(0, np.float32), 0)
        return TfliteTensor(shape, values, quantised.ScaleAsNumpy(), int(quantised.ZeroPoint(0)))

    def constant(self, number: int) -> NDArray[Any]:
        """Values of a tensor that is a constant."""
        values = self.tensor(number).values
        if values is None:
            raise ValueError(f"tensor {number} is no constant")
        return values

    def convolutions(self) -> Iterator[Convolution]:
        """Convolutions and depthwise convolutions, in the order of the graph."""
        options_of = {
            self._tflite.BuiltinOperator.CONV_2D: self._tflite.Conv2DOptions,
            self._tflite.BuiltinOperator.DEPTHWISE_CONV_2D: self._tflite.DepthwiseConv2DOptions,
        }
        for place in range(self._graph.OperatorsLength()):
            operator = self._graph.Operators(place)
            code = self._code(operator.OpcodeIndex())
            if code not in options_of:
                continue
            options, table = options_of[code](), operator.BuiltinOptions()
            options.Init(table.Bytes, table.Pos)
            yield Convolution(
                input=int(operator.Inputs(0)),
                weights=int(operator.Inputs(1)),
                bias=int(operator.Inputs(2)),
                output=int(operator.Outputs(0)),
                depthwise=code == self._tflite.BuiltinOperator.DEPTHWISE_CONV_2D,
                stride=int(options.StrideH()),
            )

    def _code(self, number: int) -> int:
        code = self._model.OperatorCodes(number)
        return int(max(code.BuiltinCode(), code.DeprecatedBuiltinCode()))  # old files know only the second
