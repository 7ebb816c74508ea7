"""TFLite's int8 arithmetic as ONNX nodes: quantise, dequantise, convolve, with the numbers of the TFLite tensors."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgemem.compiler.onnx_graph import OnnxGraph
from edgemem.compiler.tflite_graph import Convolution, TfliteGraph


class QuantisedNodes:
    """Every int8 is stored as the uint8 128 above it, which stands for the same number: ONNX Runtime has slow kernels
    for int8 with int8, and those for uint8 with int8 saturate on x86 processors without VNNI."""

    def __init__(self, graph: OnnxGraph, tflite: TfliteGraph) -> None:
        self._graph, self._tflite = graph, tflite

    def quantised(self, value: str, tensor: int) -> str:
        return self._graph.node("QuantizeLinear", [value, *self._range(tensor)])

    def real(self, value: str, tensor: int, name: str | None = None) -> str:
        return self._graph.node("DequantizeLinear", [value, *self._range(tensor)], [name] if name else [])

    def convolved(self, value: str, convolution: Convolution) -> str:
        """value: (1, channels, height, width). Relu6 needs no node: 0 and 6 are the ends of the output's range."""
        _, height, width, channels = self._tflite.tensor(convolution.input).shape
        weights = _unsigned(self._tflite.constant(convolution.weights))
        if weights.ndim == 2:  # of a fully connected layer: (outputs, channels)
            weights = weights[:, None, None, :]
        kernel_height, kernel_width = weights.shape[1:3]
        order = (3, 0, 1, 2) if convolution.depthwise else (0, 3, 1, 2)  # outputs first, then channels
        top, bottom = same_padding(height, kernel_height, convolution.stride)
        left, right = same_padding(width, kernel_width, convolution.stride)
        inputs = [
            value,
            *self._range(convolution.input),
            self._graph.constant(weights.transpose(order)),
            *self._range(convolution.weights),
            *self._range(convolution.output),
            self._graph.constant(self._tflite.constant(convolution.bias)),
        ]
        return self._graph.node(
            "QLinearConv",
            inputs,
            kernel_shape=[kernel_height, kernel_width],
            strides=[convolution.stride, convolution.stride],
            pads=[top, left, bottom, right],
            group=channels if convolution.depthwise else 1,
        )

    def _range(self, number: int) -> tuple[str, str]:
        """Scale and zero point: one of each, or one a channel."""
        tensor = self._tflite.tensor(number)
        scales = tensor.scales if len(tensor.scales) > 1 else tensor.scales.reshape(())
        zero_points = _unsigned(np.full(scales.shape, tensor.zero_point, np.int8))
        return self._graph.constant(scales), self._graph.constant(zero_points)


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """TFLite's SAME along one axis: (before, after), the odd one after."""
    outputs = -(-size // stride)
    missing = max(0, (outputs - 1) * stride + kernel - size)
    return missing // 2, missing - missing // 2


def _unsigned(values: NDArray[np.int8]) -> NDArray[np.uint8]:
    return values.view(np.uint8) ^ np.uint8(128)
