"""ReferenceDecoder against transformers on a tiny random model of every family, and its own promises."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from tiny_models import FAMILIES, VOCABULARY, hf_logits, tiny_config, tiny_folder, tiny_hf_model, write_folder

from edgemem.compiler import reference
from edgemem.compiler.checkpoint import open_checkpoint
from edgemem.compiler.reference import ReferenceDecoder
from edgemem.runtime.errors import NumericError, SettingsError
from edgemem.runtime.model import ModelSpec
from edgemem.runtime.weights import Matrix


class Source(NamedTuple):
    """A WeightSource put together from another's parts."""

    model: ModelSpec
    matrix: Callable[[str], Matrix]
    vector: Callable[[str], np.ndarray]


def tokens_of(*shape: int, seed: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, VOCABULARY, shape)


def largest_relative_error(got: np.ndarray, wanted: np.ndarray) -> float:
    assert got.shape == wanted.shape
    return float(np.abs(got - wanted).max() / np.abs(wanted).max())


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_those_of_transformers(tmp_path: Path, family: str, tied: bool) -> None:
    folder = tiny_folder(tmp_path, family, tied=tied, seed=3)
    tokens = tokens_of(50)
    with open_checkpoint(folder) as checkpoint:
        got = ReferenceDecoder(checkpoint).logits(tokens)
    assert largest_relative_error(got, hf_logits(tiny_hf_model(folder), tokens)) < 1e-4


def test_long_factors_serve_a_context_beyond_the_original(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path, "phi3", tied=False, seed=3)
    tokens = tokens_of(140)  # the tiny model's original context is 128
    with open_checkpoint(folder, max_context=512) as checkpoint:
        got = ReferenceDecoder(checkpoint).logits(tokens)
    assert largest_relative_error(got, hf_logits(tiny_hf_model(folder), tokens)) < 1e-4


def test_attention_softcap_is_that_of_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.gemma3 import modeling_gemma3

    cap = 1.5  # low enough to bend every score
    folder = tiny_folder(tmp_path, "gemma3_text", tied=True, seed=3)
    tokens = tokens_of(30)
    # transformers has the formula for Gemma 3 but never passes the configured cap to it, so both sides are told here.
    capped = partial(modeling_gemma3.eager_attention_forward, softcap=cap)
    monkeypatch.setattr(modeling_gemma3, "eager_attention_forward", capped)
    wanted = hf_logits(tiny_hf_model(folder), tokens)
    with open_checkpoint(folder) as checkpoint:
        model = replace(checkpoint.model, attention_softcap=cap)
        got = ReferenceDecoder(Source(model, checkpoint.matrix, checkpoint.vector)).logits(tokens)
    assert largest_relative_error(got, wanted) < 1e-4


def test_output_bias_is_that_of_transformers(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    folder = write_folder(tmp_path / "biased", {**tiny_config("llama", tied=False), "attention_bias": True}, seed=3)
    tensors = load_file(folder / "model.safetensors")
    random = np.random.default_rng(0)
    for name in [name for name in tensors if "self_attn" in name]:
        bias = random.standard_normal(len(tensors[name])).astype(np.float32)
        tensors[name.replace(".weight", ".bias")] = bias
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    tokens = tokens_of(30)
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.model.output_bias
        got = ReferenceDecoder(checkpoint).logits(tokens)
    assert largest_relative_error(got, hf_logits(tiny_hf_model(folder), tokens)) < 1e-4


@pytest.mark.parametrize("family", ["mistral", "gemma3_text"])
def test_blocks_and_batches_change_nothing(tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = tokens_of(2, 40)
    with open_checkpoint(tiny_folder(tmp_path, family, tied=False)) as checkpoint:
        decoder = ReferenceDecoder(checkpoint)
        whole = decoder.logits(tokens)
        assert whole.shape == (2, 40, VOCABULARY)
        monkeypatch.setattr(reference, "_BLOCK_BYTES", 5000)  # a few rows of weights at a time
        monkeypatch.setattr(reference, "_SCORE_BYTES", 3000)  # a few queries at a time
        apart = np.stack([decoder.logits(row) for row in tokens])
        chunks = list(decoder.logit_chunks(tokens, chunk_rows=7))
    assert largest_relative_error(apart, whole) < 1e-5
    assert [len(chunk) for chunk in chunks] == [7] * 11 + [3]
    assert largest_relative_error(np.concatenate(chunks), whole.reshape(80, VOCABULARY)) < 1e-5


def test_a_later_token_changes_no_earlier_logits(tmp_path: Path) -> None:
    tokens = tokens_of(20)
    with open_checkpoint(tiny_folder(tmp_path, "qwen3", tied=True)) as checkpoint:
        decoder = ReferenceDecoder(checkpoint)
        short, long = decoder.logits(tokens[:12]), decoder.logits(tokens)
    assert largest_relative_error(short, long[:12]) < 1e-5


def test_the_hook_sees_what_each_matrix_multiplies(tmp_path: Path) -> None:
    tokens = tokens_of(2, 9)
    seen: dict[tuple[str, ...], np.ndarray] = {}
    with open_checkpoint(tiny_folder(tmp_path, "llama", tied=True)) as checkpoint:
        decoder = ReferenceDecoder(checkpoint)
        states = decoder.embed(tokens)
        after = decoder.layer(0, states, lambda names, inputs: seen.update({names: inputs.copy()}))
        assert [names[0].rpartition(".")[2] for names in seen] == ["query", "output", "gate", "down"]
        assert all(len(inputs) == tokens.size for inputs in seen.values())
        for names in seen:
            for name in names:
                assert checkpoint.matrix(name).shape[1] == seen[names].shape[1]
        products = [
            seen[(f"layers.0.{name}",)] @ checkpoint.matrix(f"layers.0.{name}").rows().T for name in ("output", "down")
        ]
    assert np.allclose(after.reshape(18, -1), states.reshape(18, -1) + sum(products), atol=1e-5)


def test_nan_is_reported_with_its_layer(tmp_path: Path) -> None:
    with open_checkpoint(tiny_folder(tmp_path, "llama", tied=True)) as checkpoint:
        damaged = Source(checkpoint.model, checkpoint.matrix, lambda name: checkpoint.vector(name) * np.float32(np.nan))
        with pytest.raises(NumericError, match="layer 0"):
            ReferenceDecoder(damaged).hidden(tokens_of(4))


@pytest.mark.parametrize("tokens", [[], [-1], [VOCABULARY], [0.5], [[[1]]]])
def test_bad_tokens_are_refused(tmp_path: Path, tokens: list[object]) -> None:
    with open_checkpoint(tiny_folder(tmp_path, "llama", tied=True)) as checkpoint, pytest.raises(SettingsError):
        ReferenceDecoder(checkpoint).hidden(np.array(tokens))


def test_memory_does_not_grow_with_layers(tmp_path: Path) -> None:
    peaks = []
    for layers in (2, 12):
        config = {**tiny_config("llama", tied=True), "num_hidden_layers": layers, "intermediate_size": 2048}
        with open_checkpoint(write_folder(tmp_path / str(layers), config, seed=0)) as checkpoint:
            decoder = ReferenceDecoder(checkpoint)
            tracemalloc.start()
            decoder.hidden(tokens_of(8))
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    one_layer = 3 * 2048 * 64 * 4
    assert peaks[1] < peaks[0] + one_layer
