"""The head: its arithmetic, the file it comes from, and all that is no such file. And the head that is shipped."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemem import tools
from edgemem.runtime.capture.head import EMBEDDING, FORMAT, SHIPPED, Head
from edgemem.runtime.capture.yamnet import Ear
from edgemem.runtime.errors import FileError, NumericError, SettingsError
from edgemem.tools.hands.clip_scores import clip_score
from edgemem.tools.hands.clips import read_clip
from edgemem.tools.hands.dataset import read_dataset
from edgemem.tools.hands.head_file import head_bytes, write_bytes
from edgemem.tools.hands.hearing import hear_clip
from edgemem.tools.hands.ranking import roc_auc

SOUNDS = Path(tools.__path__[0]) / "demo_data" / "sounds"


def some_head(seed: int = 0) -> Head:
    random = np.random.default_rng(seed)
    return Head(random.normal(size=EMBEDDING).astype(np.float32), 0.25)


def raw_file(**changes: Any) -> bytes:
    """A head's file, with parts of its header replaced."""
    header: dict[str, Any] = {
        "__metadata__": {"format": FORMAT},
        "weights": {"dtype": "F32", "shape": [EMBEDDING], "data_offsets": [0, 4 * EMBEDDING]},
        "bias": {"dtype": "F32", "shape": [1], "data_offsets": [4 * EMBEDDING, 4 * EMBEDDING + 4]},
    }
    raw = json.dumps({**header, **changes}).encode()
    return len(raw).to_bytes(8, "little") + raw + bytes(4 * EMBEDDING + 4)


def refused(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(FileError) as caught:
        Head.open(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_the_score_is_the_logistic_function() -> None:
    head = some_head()
    embeddings = np.abs(np.random.default_rng(1).normal(scale=0.1, size=(5, EMBEDDING))).astype(np.float32)
    scores = head.scores(embeddings)
    assert scores.dtype == np.float32
    for embedding, score in zip(embeddings, scores, strict=True):
        logit = float(embedding.astype(np.float64) @ head.weights.astype(np.float64)) + 0.25
        assert math.isclose(score, 1 / (1 + math.exp(-logit)), rel_tol=1e-4)
        assert math.isclose(head.score(embedding), score, rel_tol=1e-5)
    assert head.scores(embeddings[:0]).shape == (0,)


@given(st.integers(0, 1000), st.floats(0, 1e4, width=32))
def test_scores_stay_within_0_and_1(seed: int, size: float) -> None:
    embeddings = np.random.default_rng(seed).uniform(-size, size, (3, EMBEDDING)).astype(np.float32)
    scores = some_head(seed).scores(embeddings)
    assert ((scores >= 0) & (scores <= 1)).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_embedding_that_is_not_finite_is_refused(value: float) -> None:
    embedding = np.zeros(EMBEDDING, np.float32)
    embedding[7] = value
    with pytest.raises(NumericError):
        some_head().score(embedding)


@pytest.mark.parametrize("shape", [(EMBEDDING - 1,), (2, 3), (0,)])
def test_another_shape_is_no_embedding(shape: tuple[int, ...]) -> None:
    with pytest.raises(SettingsError, match="no embeddings"):
        some_head().score(np.zeros(shape, np.float32))


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e5])
def test_weights_out_of_range_are_refused(value: float) -> None:
    weights = np.zeros(EMBEDDING, np.float32)
    weights[-1] = value
    with pytest.raises(SettingsError, match="out of range"):
        Head(weights, 0.0)
    with pytest.raises(SettingsError, match="out of range"):
        Head(np.zeros(EMBEDDING, np.float32), value)
    with pytest.raises(SettingsError, match="no weights"):
        Head(np.zeros(EMBEDDING), 0.0)  # type: ignore[arg-type]


def test_a_head_comes_back_from_its_file(tmp_path: Path) -> None:
    head, path = some_head(), tmp_path / "x.safetensors"
    write_bytes(path, head_bytes(head, {"trained": "by a test"}))
    again = Head.open(path)
    assert (again.weights == head.weights).all()
    assert again.bias == head.bias
    assert os.listdir(tmp_path) == ["x.safetensors"]
    assert head_bytes(head, {"trained": "by a test"}) == path.read_bytes()


def test_a_good_file_is_read_and_each_altered_one_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(raw_file())
    assert Head.open(path).score(np.ones(EMBEDDING, np.float32)) == 0.5
    double = {"dtype": "F64", "shape": [EMBEDDING // 2], "data_offsets": [0, 4 * EMBEDDING]}
    folded = {"dtype": "F32", "shape": [32, 32], "data_offsets": [0, 4 * EMBEDDING]}
    short = {"dtype": "F32", "shape": [EMBEDDING - 1], "data_offsets": [0, 4 * EMBEDDING - 4]}
    assert "no head of ours" in refused(path, raw_file(__metadata__={}))
    assert "no head of ours" in refused(path, raw_file(__metadata__={"format": "edgemem-hands-2"}))
    for weights in (double, folded):
        assert "not those of a head" in refused(path, raw_file(weights=weights))
    refused(path, raw_file(weights=short))
    refused(path, raw_file(extra={"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}))
    refused(path, raw_file()[:-1])
    refused(path, raw_file() + b"\0")
    refused(path, b"")
    assert "too large" in refused(path, bytes(1 << 17))


SIGNALLING_NAN = bytes.fromhex("0000817f")  # to widen one is an invalid operation


@pytest.mark.parametrize("value", [*(np.array([x], "<f4").tobytes() for x in (np.nan, np.inf, -1e30)), SIGNALLING_NAN])
def test_a_file_with_wild_values_is_refused(tmp_path: Path, value: bytes) -> None:
    content = raw_file()
    for at in (len(content) - 4, len(content) - 8):  # the bias, and the last weight
        wild = content[:at] + value + content[at + 4 :]
        assert "out of range" in refused(tmp_path / "x.safetensors", wild)


@given(st.binary(min_size=1, max_size=64), st.integers(0, 4400))
def test_a_damaged_file_is_refused_or_is_a_head(
    tmp_path_factory: pytest.TempPathFactory, damage: bytes, at: int
) -> None:
    content = bytearray(head_bytes(some_head(), {}))
    content[at : at + len(damage)] = damage
    path = tmp_path_factory.getbasetemp() / "damaged.safetensors"
    path.write_bytes(content)
    try:
        head = Head.open(path)
    except FileError:
        return
    assert 0 <= head.score(np.ones(EMBEDDING, np.float32)) <= 1


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe"])
def test_what_is_no_file_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x"
    if kind == "folder":
        path.mkdir()
    if kind == "pipe":
        os.mkfifo(path)
    with pytest.raises(FileError):
        Head.open(path)


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "x" / "y.safetensors"
    with pytest.raises(FileError, match="cannot write"):
        write_bytes(path, b"new")
    (tmp_path / "x").mkdir()
    path.write_bytes(b"old")
    (tmp_path / "x" / ".y.safetensors.partial").mkdir()  # in the way
    with pytest.raises(FileError, match="cannot write"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"


def test_the_shipped_head_is_the_one_of_its_card() -> None:
    card = SHIPPED.with_name("HANDS.md").read_text(encoding="utf-8")
    assert hashlib.sha256(SHIPPED.read_bytes()).hexdigest() in card
    trained = re.search(r"edgemem listen train [^`]*", card)
    assert trained is not None
    assert json.dumps(trained.group())[1:-1].encode() in SHIPPED.read_bytes()


def test_the_shipped_head_tells_the_demo_sounds_apart() -> None:
    """It was trained on most of them: this shows that ear, head and file fit together, and nothing more."""
    head, ear, clips = Head.open(), Ear.open(), read_dataset(SOUNDS).clips
    scores = [clip_score(head.scores(hear_clip(ear, read_clip(clip.path)).embeddings)) for clip in clips]
    hands = [clip.hands for clip in clips]
    assert roc_auc(np.array(scores), np.array(hands)) == 1.0
