"""YAMNet's front end as ONNX nodes: wave to log-mel, with the window and the mel bands given.

A Fourier transform written as matrix products. Only magnitudes are wanted, so time may be counted from the middle of
a frame; the window is symmetric about it, so the frame is folded there first: sums meet cosines, differences sines.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgemem.compiler.onnx_graph import OnnxGraph

FRAMES, BANDS = 96, 64
_FRAME, _MIDDLE, _STEP, _FFT = 400, 200, 160, 512  # samples
_BLOCK = 80  # samples; frames start and end between blocks
_BLOCKS = 195


def add_log_mel(
    graph: OnnxGraph, wave: str, window: NDArray[np.float32], mel: NDArray[np.float32], floor: NDArray[np.float32]
) -> str:
    """The value log(mel of magnitudes + floor), (FRAMES, BANDS), of `wave` (15600,) float32.

    window: (400,) periodic Hann. mel: (BANDS, 257). floor: (BANDS,).
    """
    heard = np.flatnonzero(mel.any(axis=0))
    bins = np.arange(heard[0], heard[-1] + 1)
    cosines, sines = _tables(window[_MIDDLE:], bins)
    right, left = _halves(graph, wave)
    even = graph.node("MatMul", [graph.node("Add", [right, left]), graph.constant(cosines)])
    odd = graph.node("MatMul", [graph.node("Sub", [right, left]), graph.constant(sines)])
    power = graph.node("Add", [graph.node("Mul", [even, even]), graph.node("Mul", [odd, odd])])
    bands = graph.constant(mel[:, bins].T)
    energy = graph.node("MatMul", [graph.node("Sqrt", [power]), bands])
    return graph.node("Log", [graph.node("Add", [energy, graph.constant(floor)])])


def _halves(graph: OnnxGraph, wave: str) -> tuple[str, str]:
    """Every frame's samples from its middle on, and from its middle back, both (FRAMES, 200).

    The frame's very first sample is left out: the window is zero there.
    """
    blocks = graph.node("Reshape", [wave, graph.integers(_BLOCKS, _BLOCK)])
    numbers = np.arange(FRAMES)[:, None] * (_STEP // _BLOCK) + np.arange(_FRAME // _BLOCK)
    frames = graph.node("Gather", [blocks, graph.constant(numbers.astype(np.int64))], axis=0)
    frames = graph.node("Reshape", [frames, graph.integers(FRAMES, _FRAME)])
    axis = graph.integers(1)
    right = graph.node("Slice", [frames, graph.integers(_MIDDLE), graph.integers(_FRAME), axis, graph.integers(1)])
    left = graph.node("Slice", [frames, graph.integers(_MIDDLE), graph.integers(0), axis, graph.integers(-1)])
    return right, left


def _tables(half_window: NDArray[np.float32], bins: NDArray[np.int64]) -> tuple[NDArray[np.float32], ...]:
    """Windowed cosines and sines, (200, bins): by distance from the middle and by frequency."""
    turns = np.outer(np.arange(_MIDDLE), bins) % _FFT * (2 * np.pi / _FFT)
    weights = half_window.astype(np.float64)[:, None]
    cosines, sines = weights * np.cos(turns), weights * np.sin(turns)
    cosines[0] /= 2  # the middle is in both halves
    return cosines.astype(np.float32), sines.astype(np.float32)
