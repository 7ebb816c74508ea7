"""TFLite files of one quantised convolution, and what integer arithmetic makes of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import flatbuffers
import numpy as np
import tflite
from numpy.typing import NDArray

INPUT, WEIGHTS, BIAS, OUTPUT = range(4)


@dataclass(frozen=True, eq=False)
class TinyConvolution:
    """weights as TFLite has them: (outputs, height, width, inputs), depthwise (1, height, width, channels)."""

    input_shape: tuple[int, int, int]
    weights: NDArray[np.int8]
    scales: NDArray[np.float32]
    bias: NDArray[np.int32]
    depthwise: bool
    stride: int
    input_range: tuple[float, int] = (0.0235, -128)  # scale, zero point
    output_range: tuple[float, int] = (0.0471, -100)

    @property
    def output_shape(self) -> tuple[int, int, int]:
        height, width, _ = self.input_shape
        return -(-height // self.stride), -(-width // self.stride), len(self.bias)

    def expected(self, values: NDArray[np.int8]) -> NDArray[np.int64]:
        """values: (height, width, channels). Every output by its own sum, positions outside counted as zero."""
        kernel_height, kernel_width = self.weights.shape[1:3]
        height, width, _ = self.output_shape
        centred = values.astype(np.int64) - self.input_range[1]
        sums = np.tile(self.bias.astype(np.int64), (height, width, 1))
        for row, column, y, x in np.ndindex(height, width, kernel_height, kernel_width):
            down = row * self.stride + y - self._before(self.input_shape[0], height, kernel_height)
            across = column * self.stride + x - self._before(self.input_shape[1], width, kernel_width)
            if 0 <= down < self.input_shape[0] and 0 <= across < self.input_shape[1]:
                weights = self.weights[:, y, x].astype(np.int64)
                here = centred[down, across]
                sums[row, column] += weights[0] * here if self.depthwise else weights @ here
        scales = np.float32(self.input_range[0]) * self.scales / np.float32(self.output_range[0])
        rounded = np.rint(sums.astype(np.float32) * scales).astype(np.int64) + self.output_range[1]
        return np.clip(rounded, -128, 127)

    def _before(self, size: int, outputs: int, kernel: int) -> int:
        return max(0, (outputs - 1) * self.stride + kernel - size) // 2

    def file(self) -> bytes:
        """The TFLite file. Tensors: INPUT, WEIGHTS, BIAS, OUTPUT."""
        builder = flatbuffers.Builder(4096)
        buffers = [_buffer(builder, raw) for raw in (b"", self.weights.tobytes(), self.bias.tobytes())]
        int8, int32, channels = tflite.TensorType.INT8, tflite.TensorType.INT32, 3 if self.depthwise else 0
        zeros = [0] * len(self.bias)
        tensors = [
            _tensor(builder, (1, *self.input_shape), int8, 0, [self.input_range[0]], [self.input_range[1]], 0),
            _tensor(builder, self.weights.shape, int8, 1, list(self.scales), zeros, channels),
            _tensor(builder, self.bias.shape, int32, 2, list(self.scales * self.input_range[0]), zeros, 0),
            _tensor(builder, (1, *self.output_shape), int8, 0, [self.output_range[0]], [self.output_range[1]], 0),
        ]
        graph = _graph(builder, tensors, _operator(builder, self.depthwise, self.stride))
        buffer_list, graphs = _offsets(builder, buffers), _offsets(builder, [graph])
        codes = _offsets(builder, [_code(builder, self.depthwise)])
        tflite.ModelStart(builder)
        tflite.ModelAddVersion(builder, 3)
        tflite.ModelAddOperatorCodes(builder, codes)
        tflite.ModelAddSubgraphs(builder, graphs)
        tflite.ModelAddBuffers(builder, buffer_list)
        builder.Finish(tflite.ModelEnd(builder))
        return bytes(builder.Output())


def _offsets(builder: Any, offsets: list[int]) -> int:
    builder.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        builder.PrependUOffsetTRelative(offset)
    return builder.EndVector()


def _buffer(builder: Any, raw: bytes) -> int:
    data = builder.CreateNumpyVector(np.frombuffer(raw, np.uint8)) if raw else None
    tflite.BufferStart(builder)
    if data is not None:
        tflite.BufferAddData(builder, data)
    return tflite.BufferEnd(builder)


def _tensor(
    builder: Any,
    shape: tuple[int, ...],
    dtype: int,
    buffer: int,
    scales: list[float],
    zero_points: list[int],
    axis: int,
) -> int:
    sizes = builder.CreateNumpyVector(np.array(shape, np.int32))
    scale = builder.CreateNumpyVector(np.array(scales, np.float32))
    zero_point = builder.CreateNumpyVector(np.array(zero_points, np.int64))
    tflite.QuantizationParametersStart(builder)
    tflite.QuantizationParametersAddScale(builder, scale)
    tflite.QuantizationParametersAddZeroPoint(builder, zero_point)
    tflite.QuantizationParametersAddQuantizedDimension(builder, axis)
    quantisation = tflite.QuantizationParametersEnd(builder)
    tflite.TensorStart(builder)
    tflite.TensorAddShape(builder, sizes)
    tflite.TensorAddType(builder, dtype)
    tflite.TensorAddBuffer(builder, buffer)
    tflite.TensorAddQuantization(builder, quantisation)
    return tflite.TensorEnd(builder)


def _operator(builder: Any, depthwise: bool, stride: int) -> int:
    kind = "DepthwiseConv2DOptions" if depthwise else "Conv2DOptions"
    getattr(tflite, f"{kind}Start")(builder)
    getattr(tflite, f"{kind}AddPadding")(builder, tflite.Padding.SAME)
    getattr(tflite, f"{kind}AddStrideH")(builder, stride)
    getattr(tflite, f"{kind}AddStrideW")(builder, stride)
    options = getattr(tflite, f"{kind}End")(builder)
    inputs = builder.CreateNumpyVector(np.array([INPUT, WEIGHTS, BIAS], np.int32))
    outputs = builder.CreateNumpyVector(np.array([OUTPUT], np.int32))
    tflite.OperatorStart(builder)
    tflite.OperatorAddOpcodeIndex(builder, 0)
    tflite.OperatorAddInputs(builder, inputs)
    tflite.OperatorAddOutputs(builder, outputs)
    tflite.OperatorAddBuiltinOptionsType(builder, getattr(tflite.BuiltinOptions, kind))
    tflite.OperatorAddBuiltinOptions(builder, options)
    return tflite.OperatorEnd(builder)


def _code(builder: Any, depthwise: bool) -> int:
    code = tflite.BuiltinOperator.DEPTHWISE_CONV_2D if depthwise else tflite.BuiltinOperator.CONV_2D
    tflite.OperatorCodeStart(builder)
    tflite.OperatorCodeAddDeprecatedBuiltinCode(builder, code)
    tflite.OperatorCodeAddBuiltinCode(builder, code)
    return tflite.OperatorCodeEnd(builder)


def _graph(builder: Any, tensors: list[int], operator: int) -> int:
    tensor_list, operators = _offsets(builder, tensors), _offsets(builder, [operator])
    inputs = builder.CreateNumpyVector(np.array([INPUT], np.int32))
    outputs = builder.CreateNumpyVector(np.array([OUTPUT], np.int32))
    tflite.SubGraphStart(builder)
    tflite.SubGraphAddTensors(builder, tensor_list)
    tflite.SubGraphAddInputs(builder, inputs)
    tflite.SubGraphAddOutputs(builder, outputs)
    tflite.SubGraphAddOperators(builder, operators)
    return tflite.SubGraphEnd(builder)
