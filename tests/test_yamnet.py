"""The ear on four golden windows, and what it refuses. How the windows were made: data/yamnet_golden.md."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import numpy_helper

from edgemem.runtime.capture.audio import WINDOW_SAMPLES
from edgemem.runtime.capture.yamnet import CLASSES, EMBEDDING, LOUDEST, MODEL_BYTES, MODEL_SHA256, Ear
from edgemem.runtime.errors import EngineError, FileError, NumericError, SettingsError

GOLDEN = Path(__file__).with_name("data") / "yamnet_golden.npz"
STEP = 0.0223284  # of the embedding
LOGIT_STEP = 0.347177


@pytest.fixture(scope="module")
def ear() -> Ear:
    return Ear.open()


@pytest.fixture(scope="module")
def golden() -> dict[str, NDArray[Any]]:
    with np.load(GOLDEN) as file:
        return dict(file)


@pytest.fixture(scope="module")
def model() -> bytes:
    return files("edgemem.runtime.capture").joinpath("data", "yamnet.onnx").read_bytes()


@pytest.fixture(scope="module")
def graph(model: bytes) -> Any:
    parsed = onnx.load_from_string(model)
    onnx.checker.check_model(parsed, full_check=True)
    return parsed


@pytest.mark.parametrize("place", range(4))
def test_hears_what_the_tflite_model_hears(ear: Ear, golden: dict[str, NDArray[Any]], place: int) -> None:
    """The network is integer arithmetic; rounding in the front end may move a few of its features by one step."""
    heard = ear.hear(golden["wave"][place].astype(np.float32) / 32768)
    steps = np.rint(heard.embedding / STEP).astype(int) - golden["embedding_steps"][place]
    assert np.abs(steps).max() <= 6
    assert np.mean(steps == 0) >= 0.95
    scores = golden["score_steps"][place] / 256
    assert np.abs(heard.scores - scores).max() <= 2 * LOGIT_STEP / 4  # two steps where a sigmoid is steepest
    assert np.mean(heard.scores == scores) >= 0.95


@pytest.mark.parametrize(("name", "best"), [("dog", "Dog"), ("speech", "Speech")])
def test_names_what_it_hears(ear: Ear, golden: dict[str, NDArray[Any]], name: str, best: str) -> None:
    (place,) = np.flatnonzero(golden["name"] == name)
    scores = ear.hear(golden["wave"][place].astype(np.float32) / 32768).scores
    highest = [ear.class_names[number] for number in np.argsort(scores)[::-1][:5]]
    assert best in highest


def test_silence_is_called_silence(ear: Ear) -> None:
    heard = ear.hear(np.zeros(WINDOW_SAMPLES, np.float32))
    assert ear.class_names[int(heard.scores.argmax())] == "Silence"


def test_class_names_are_those_of_audioset(ear: Ear) -> None:
    assert len(set(ear.class_names)) == CLASSES
    assert ear.class_names[:3] == ("Speech", "Child speech, kid speaking", "Conversation")
    assert ear.class_names[-1] == "Field recording"
    assert all(name == name.strip() and name for name in ear.class_names)


@given(seed=st.integers(0, 2**32), exponent=st.integers(-40, 4), offset=st.floats(-1, 1, width=32))
def test_any_sound_gives_scores(ear: Ear, seed: int, exponent: int, offset: float) -> None:
    noise = np.random.default_rng(seed).uniform(-1, 1, WINDOW_SAMPLES) * 2.0**exponent
    samples = np.clip(noise + offset, -LOUDEST, LOUDEST).astype(np.float32)
    heard, again = ear.hear(samples), ear.hear(samples)
    assert (heard.embedding.shape, heard.embedding.dtype) == ((EMBEDDING,), np.float32)
    assert (heard.scores.shape, heard.scores.dtype) == ((CLASSES,), np.float32)
    assert heard.embedding.min() >= 0
    assert heard.scores.min() >= 0
    assert heard.scores.max() <= 1
    np.testing.assert_array_equal(heard.embedding, again.embedding)
    np.testing.assert_array_equal(heard.scores, again.scores)


def test_samples_need_not_lie_side_by_side(ear: Ear, golden: dict[str, NDArray[Any]]) -> None:
    samples = golden["wave"][1].astype(np.float32) / 32768
    apart = np.stack([samples, samples * 0], axis=1)[:, 0]
    np.testing.assert_array_equal(ear.hear(apart).scores, ear.hear(samples).scores)


def test_threads_hear_the_same(ear: Ear, golden: dict[str, NDArray[Any]]) -> None:
    waves = list(golden["wave"].astype(np.float32) / 32768) * 8
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(ear.hear, waves))
    for wave, heard in zip(waves, together, strict=True):
        np.testing.assert_array_equal(heard.embedding, ear.hear(wave).embedding)


@pytest.mark.parametrize(
    "samples",
    [
        np.zeros(WINDOW_SAMPLES),
        np.zeros(WINDOW_SAMPLES, np.int16),
        np.zeros(WINDOW_SAMPLES, ">f4"),
        np.zeros(WINDOW_SAMPLES - 1, np.float32),
        np.zeros((1, WINDOW_SAMPLES), np.float32),
        np.zeros((), np.float32),
        [0.0] * WINDOW_SAMPLES,
        None,
    ],
    ids=["float64", "int16", "big endian", "short", "two axes", "number", "list", "None"],
)
def test_other_shapes_and_types_are_refused(ear: Ear, samples: Any) -> None:
    with pytest.raises(SettingsError, match=r"(?s)cannot hear this.*wanted: float32 \(15600,\), 16 kHz mono"):
        ear.hear(samples)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, WINDOW_SAMPLES - 1])
def test_what_is_not_finite_is_refused(ear: Ear, value: float, place: int) -> None:
    samples = np.zeros(WINDOW_SAMPLES, np.float32)
    samples[place] = value
    with pytest.raises(NumericError, match=rf"(?s)NaN or infinite.*1 of its values, the first at \[{place}\]"):
        ear.hear(samples)


@pytest.mark.parametrize("value", [-32768.0, LOUDEST * 1.01, 3e38])
def test_what_is_not_scaled_is_refused(ear: Ear, value: float) -> None:
    samples = np.zeros(WINDOW_SAMPLES, np.float32)
    samples[77] = value
    with pytest.raises(NumericError, match=r"(?s)far too loud.*divide 16-bit samples by 32768"):
        ear.hear(samples)


def test_a_closed_ear_hears_nothing() -> None:
    ear = Ear.open()
    ear.close()
    ear.close()
    with pytest.raises(EngineError, match="the ear is closed"):
        ear.hear(np.zeros(WINDOW_SAMPLES, np.float32))


def test_a_copy_of_the_model_opens(tmp_path: Path, model: bytes, ear: Ear) -> None:
    (tmp_path / "copy.onnx").write_bytes(model)
    wave = np.random.default_rng(1).normal(0, 0.1, WINDOW_SAMPLES).astype(np.float32)
    np.testing.assert_array_equal(Ear.open(tmp_path / "copy.onnx").hear(wave).scores, ear.hear(wave).scores)


@pytest.mark.parametrize("damage", ["one bit", "cut", "longer", "empty"])
def test_an_altered_model_is_refused(tmp_path: Path, model: bytes, damage: str) -> None:
    flipped = bytearray(model)
    flipped[2_000_000] ^= 1
    damaged = {"one bit": bytes(flipped), "cut": model[:-1], "longer": model + b"\0", "empty": b""}[damage]
    (tmp_path / "yamnet.onnx").write_bytes(damaged)
    with pytest.raises(FileError, match=f"(?s)model was altered.*wanted: sha256 {MODEL_SHA256}"):
        Ear.open(tmp_path / "yamnet.onnx")


def test_a_missing_model_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.onnx", tmp_path):
        with pytest.raises(FileError, match="cannot read the ear's model"):
            Ear.open(path)


def test_the_shipped_model_is_standard_and_self_contained(model: bytes, graph: Any) -> None:
    assert len(model) == MODEL_BYTES
    assert MODEL_BYTES < 4_500_000
    assert {node.domain for node in graph.graph.node} == {""}
    assert max(entry.version for entry in graph.opset_import if not entry.domain) <= 21
    assert not any(tensor.external_data for tensor in graph.graph.initializer)
    assert [(value.name, value.type.tensor_type.shape.dim[0].dim_value) for value in graph.graph.input] == [
        ("wave", WINDOW_SAMPLES)
    ]


def test_the_network_stays_in_8_bits(graph: Any) -> None:
    """27 convolutions, scaled by channel, and the classifier; unsigned, for kernels that never saturate."""
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}
    convolutions = [node for node in graph.graph.node if node.op_type == "QLinearConv"]
    assert len(convolutions) == 28
    for node in convolutions[:-1]:
        weights, scales, zeros = (tensors[name] for name in node.input[3:6])
        assert weights.dtype == zeros.dtype == np.uint8
        assert scales.shape == zeros.shape == (len(weights),)
        assert (zeros == 128).all()
    assert not {"Conv", "ConvInteger"} & {node.op_type for node in graph.graph.node}
    real = sum(tensor.nbytes for tensor in tensors.values() if tensor.dtype == np.float32)
    assert real < 0.15 * MODEL_BYTES
