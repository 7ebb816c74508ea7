"""The converter, part by part on small files of its own, and whole where EDGEMEM_YAMNET_TFLITE names the real one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tiny_tflite import BIAS, INPUT, OUTPUT, WEIGHTS, TinyConvolution

from edgemem.compiler import yamnet
from edgemem.compiler.onnx_graph import FLOAT, OnnxGraph
from edgemem.compiler.quantised_nodes import QuantisedNodes, same_padding
from edgemem.compiler.tflite_graph import Convolution, TfliteGraph
from edgemem.compiler.yamnet_front_end import add_log_mel
from edgemem.runtime.capture.yamnet import MODEL_SHA256
from edgemem.runtime.errors import CheckpointError
from edgemem.runtime.safe_files import SafeFolder, sha256_of


def _opened(graph: OnnxGraph, folder: Path) -> Any:
    path = folder / "graph.onnx"
    graph.write(path, producer="test")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


@st.composite
def tiny_convolutions(draw: st.DrawFn) -> TinyConvolution:
    depthwise, kernel, stride = draw(st.booleans()), draw(st.sampled_from([1, 3])), draw(st.sampled_from([1, 2]))
    height, width, channels = draw(st.integers(1, 7)), draw(st.integers(1, 7)), draw(st.sampled_from([1, 3, 16, 40]))
    outputs = channels if depthwise else draw(st.sampled_from([2, 16]))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    shape = (1, kernel, kernel, outputs) if depthwise else (outputs, kernel, kernel, channels)
    lowest = draw(st.sampled_from([-127, 100]))  # the second is where 16-bit sums of two products saturate
    weights = random.integers(lowest, 128, shape).astype(np.int8)
    return TinyConvolution(
        (height, width, channels),
        weights,
        scales=random.uniform(0.001, 0.01, outputs).astype(np.float32) / np.float32(kernel * kernel),
        bias=random.integers(-4000, 4000, outputs).astype(np.int32),
        depthwise=depthwise,
        stride=stride,
    )


@settings(max_examples=60)
@given(convolution=tiny_convolutions(), seed=st.integers(0, 2**32), loud=st.booleans())
def test_a_convolution_from_tflite_equals_integer_arithmetic(
    tmp_path_factory: pytest.TempPathFactory, convolution: TinyConvolution, seed: int, loud: bool
) -> None:
    tflite, graph = TfliteGraph(convolution.file()), OnnxGraph({})
    nodes = QuantisedNodes(graph, tflite)
    (found,) = tflite.convolutions()
    height, width, channels = convolution.input_shape
    value = nodes.quantised(graph.input("value", FLOAT, [1, channels, height, width]), INPUT)
    nodes.real(nodes.convolved(value, found), OUTPUT, "result")
    graph.output("result", FLOAT, [1, len(convolution.bias), *convolution.output_shape[:2]])
    session = _opened(graph, tmp_path_factory.mktemp("convolution"))

    values = np.random.default_rng(seed).integers(100 if loud else -128, 128, convolution.input_shape).astype(np.int8)
    scale, zero = convolution.input_range
    real = (values.astype(np.float32) - zero) * np.float32(scale)
    (result,) = session.run(["result"], {"value": real.transpose(2, 0, 1)[None]})
    scale, zero = convolution.output_range
    steps = np.rint(result[0].transpose(1, 2, 0) / np.float32(scale)) + zero
    expected = convolution.expected(values)
    assert np.abs(steps - expected).max() <= 1  # a product that lies between two steps may be rounded either way
    assert np.mean(steps != expected) < 0.02


def test_a_tflite_file_is_read_as_it_was_written() -> None:
    random = np.random.default_rng(4)
    written = TinyConvolution(
        (5, 4, 6),
        weights=random.integers(-127, 128, (1, 3, 3, 6)).astype(np.int8),
        scales=random.uniform(0.1, 1, 6).astype(np.float32),
        bias=random.integers(-9, 9, 6).astype(np.int32),
        depthwise=True,
        stride=2,
    )
    graph = TfliteGraph(written.file())
    assert list(graph.convolutions()) == [Convolution(INPUT, WEIGHTS, BIAS, OUTPUT, depthwise=True, stride=2)]
    weights, activations = graph.tensor(WEIGHTS), graph.tensor(INPUT)
    assert weights.values is not None
    np.testing.assert_array_equal(weights.values, written.weights, strict=True)
    np.testing.assert_array_equal(weights.scales, written.scales, strict=True)
    np.testing.assert_array_equal(graph.constant(BIAS), written.bias, strict=True)
    assert (activations.shape, activations.zero_point, activations.values) == ((1, 5, 4, 6), -128, None)
    assert activations.scales.tolist() == [np.float32(0.0235)]
    with pytest.raises(ValueError, match="tensor 0 is no constant"):
        graph.constant(INPUT)


@given(size=st.integers(1, 100), kernel=st.integers(1, 7), stride=st.integers(1, 4))
def test_same_padding_gives_one_output_for_every_stride(size: int, kernel: int, stride: int) -> None:
    before, after = same_padding(size, kernel, stride)
    assert after - before in (0, 1)
    if before + after:  # no more than is missing
        assert (size + before + after - kernel) / stride + 1 == -(-size // stride)
    else:
        assert (size - kernel) // stride + 1 >= -(-size // stride)


def _log_mel(wave: NDArray[np.float32], window: NDArray[np.float32], mel: NDArray[np.float32]) -> NDArray[np.float64]:
    frames = np.stack([wave[start : start + 400] for start in range(0, 96 * 160, 160)]).astype(np.float64)
    return np.log(np.abs(np.fft.rfft(frames * window, 512)) @ mel.T.astype(np.float64) + 0.001)


@pytest.mark.parametrize("loudness", [1.0, 0.01, 0.0])
def test_front_end_equals_the_fourier_transform(tmp_path: Path, loudness: float) -> None:
    random = np.random.default_rng(7)
    window = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)).astype(np.float32)
    mel = np.zeros((64, 257), np.float32)
    mel[:, 5:240] = random.uniform(0, 0.1, (64, 235))
    graph = OnnxGraph({})
    value = add_log_mel(graph, graph.input("wave", FLOAT, [15_600]), window, mel, np.full(64, 0.001, np.float32))
    graph.output(value, FLOAT, [96, 64])
    wave = (random.uniform(-1, 1, 15_600) * loudness).astype(np.float32)
    (found,) = _opened(graph, tmp_path).run(None, {"wave": wave})
    np.testing.assert_allclose(found, _log_mel(wave, window, mel), atol=2e-3)  # the model's own step is 0.048


@pytest.mark.parametrize(
    "content", [b"", b"TFL3" * 100, bytes(yamnet.SOURCE_BYTES + 5)], ids=["empty", "other", "long"]
)
def test_another_file_is_refused(tmp_path: Path, content: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = tmp_path / "other.tflite", tmp_path / "out.onnx"
    source.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"(?s)not the TFLite file.*wanted: sha256 10c95ea3"):
        yamnet.convert(source, target)
    with pytest.raises(SystemExit) as exit_:
        yamnet.main([str(source), "-o", str(target)])
    assert exit_.value.code == 1
    assert "not the TFLite file" in capsys.readouterr().err
    assert not target.exists()


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot read the TFLite file"):
        yamnet.convert(tmp_path / "absent.tflite", tmp_path / "out.onnx")


@pytest.mark.skipif("EDGEMEM_YAMNET_TFLITE" not in os.environ, reason="EDGEMEM_YAMNET_TFLITE names no TFLite file")
def test_the_real_file_becomes_the_shipped_model(tmp_path: Path) -> None:
    yamnet.convert(Path(os.environ["EDGEMEM_YAMNET_TFLITE"]), tmp_path / "yamnet.onnx")
    with SafeFolder(tmp_path) as folder:
        descriptor = folder.open("yamnet.onnx")
    try:
        assert sha256_of(descriptor) == MODEL_SHA256
    finally:
        os.close(descriptor)
