"""Chunks of a prompt through layers on the device, against the reference decoder, and against decode attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import interpreted_cuda  # noqa: F401  # before torch
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from runnable_packages import plain_model, random_weights, rich_model, same_precision

from edgemem.compiler.reference import ReferenceDecoder
from edgemem.kernels.cuda import chunk
from edgemem.kernels.cuda.attention import attention_workspace, decode_attention
from edgemem.kernels.cuda.chunk import DeviceLayer, chunk_layer, chunk_surprisal, normed, product
from edgemem.kernels.cuda.device_cache import DeviceCache
from edgemem.kernels.cuda.device_matrix import DeviceMatrix
from edgemem.kernels.cuda.launching import device
from edgemem.kernels.formats import QuantizedMatrix
from edgemem.runtime.model import ModelSpec

TOLERANCE = 2e-3  # relative to the greatest value: keys and values are fp16


@dataclass(frozen=True)
class StoredMatrix:
    """A matrix in memory, as the reference decoder reads one."""

    weights: NDArray[np.float32]

    @property
    def shape(self) -> tuple[int, int]:
        return self.weights.shape[0], self.weights.shape[1]

    def rows(self, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        return self.weights[start:stop]


class Weights:
    """A model of random weights, for the reference and for the device."""

    def __init__(self, model: ModelSpec, precision: str) -> None:
        self.model = model
        self.blocks: dict[str, Any] = dict(random_weights(model, same_precision(model, precision)))

    def matrix(self, name: str) -> Any:
        block = self.blocks[name]
        return StoredMatrix(block.dequantize() if isinstance(block, QuantizedMatrix) else block)

    def vector(self, name: str) -> NDArray[np.float32]:
        vector: NDArray[np.float32] = self.blocks[name]
        return vector

    def layer(self, index: int) -> DeviceLayer:
        model, at = self.model, f"layers.{index}."
        rope = model.ropes[model.layer_ropes[index]]

        def vector(*names: str) -> Any:
            parts = [self.blocks[at + name] for name in names if at + name in self.blocks]
            return torch.from_numpy(np.concatenate(parts)).to(device()) if parts else None

        return DeviceLayer(
            qkv=DeviceMatrix.of([self.blocks[at + name] for name in ("query", "key", "value")]),
            output=DeviceMatrix.of([self.blocks[at + "output"]]),
            gate_up=DeviceMatrix.paired(self.blocks[at + "gate"], self.blocks[at + "up"]),
            down=DeviceMatrix.of([self.blocks[at + "down"]]),
            **{
                name: vector(name)
                for name in ("attention_norm", "mlp_norm", "attention_post_norm", "mlp_post_norm", "output_bias")
            },
            query_norm=vector("query_norm"),
            key_norm=vector("key_norm"),
            qkv_bias=vector("query_bias", "key_bias", "value_bias"),
            frequencies=torch.tensor(rope.inverse_frequencies, dtype=torch.float64, device=device()),
            amplitude=rope.amplitude,
            window=model.windows[index],
            heads=model.heads,
            kv_heads=model.kv_heads,
            head_dim=model.head_dim,
            epsilon=model.norm_epsilon,
            scale=model.attention_scale,
            softcap=model.attention_softcap,
            activation=model.activation,
        )

    def cache(self, capacity: int = 48) -> DeviceCache:
        model = self.model
        return DeviceCache(model.layers, model.kv_heads, model.head_dim, capacity, "fp16", device())


@pytest.fixture(params=["plain", "rich", "mixed"])
def weights(request: pytest.FixtureRequest) -> Weights:
    made = {
        "plain": lambda: Weights(plain_model(), "fp32"),
        "rich": lambda: Weights(rich_model(), "int4-g32-min"),
        "mixed": lambda: Weights(rich_model(kv_heads=2, activation="silu", sandwich_norms=False), "int8-g32"),
    }
    return made[request.param]()


def through(weights: Weights, states: NDArray[np.float32], cuts: list[int], cache: DeviceCache) -> NDArray[np.float32]:
    """(n, hidden) through all layers, chunk by chunk."""
    layers, parts, first = [weights.layer(index) for index in range(weights.model.layers)], [], 0
    for piece in np.split(states, cuts):
        part = torch.from_numpy(piece).to(device())
        for index, layer in enumerate(layers):
            part = chunk_layer(layer, index, cache, first, part)
        first += len(piece)
        parts.append(part.cpu().numpy())
    return np.concatenate(parts)


def expected(weights: Weights, count: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """States before the first layer and after the last, by the reference."""
    reference = ReferenceDecoder(weights)
    states = reference.embed(np.random.default_rng(0).integers(0, 97, count))
    result = states
    for index in range(weights.model.layers):
        result = reference.layer(index, result)
    return states[0], result[0]


@pytest.mark.parametrize("cuts", [[], [1], [7, 8, 30]])
def test_chunks_are_the_reference_decoder(weights: Weights, cuts: list[int]) -> None:
    states, wanted = expected(weights, 40)
    before = states.copy()
    got = through(weights, states, cuts, weights.cache())
    np.testing.assert_allclose(got, wanted, rtol=0, atol=TOLERANCE * np.abs(wanted).max())
    np.testing.assert_array_equal(states, before)


def test_a_small_bound_changes_nothing(weights: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    states, _ = expected(weights, 40)
    wanted = through(weights, states, [9], weights.cache())
    monkeypatch.setattr(chunk, "_HELD_FLOATS", 3000)
    got = through(weights, states, [9], weights.cache())
    np.testing.assert_allclose(got, wanted, rtol=0, atol=TOLERANCE / 10 * np.abs(wanted).max())


def test_the_step_after_a_chunk_attends_as_the_chunk_does(weights: Weights) -> None:
    """The last token's keys, values and attention by the decode kernel, from the same products."""
    model = weights.model
    states, _ = expected(weights, 30)
    layer, cache, other = weights.layer(1), weights.cache(), weights.cache()
    rows = torch.from_numpy(states).to(device())
    wanted = chunk_layer(layer, 1, cache, 0, rows)[29:]
    chunk_layer(layer, 1, other, 0, rows[:29])
    qkv = product(layer.qkv, normed(rows[29:], layer.attention_norm, layer.epsilon))[0]
    out = torch.zeros(model.heads * model.head_dim, device=device())
    decode_attention(
        qkv if layer.qkv_bias is None else qkv + layer.qkv_bias,
        other,
        1,
        torch.tensor([29], dtype=torch.int32, device=device()),
        out,
        frequencies=layer.frequencies,
        amplitude=layer.amplitude,
        query_norm=layer.query_norm,
        key_norm=layer.key_norm,
        epsilon=layer.epsilon,
        scale=layer.scale,
        window=layer.window,
        softcap=layer.softcap,
        workspace=attention_workspace(model.heads, model.kv_heads, model.head_dim, 48),
    )
    for ours, theirs in zip(cache.read(1, 0, 30), other.read(1, 0, 30), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=float(2**-9 * theirs.abs().max()))
    changed = product(layer.output, out[None])
    changed = changed if layer.output_bias is None else changed + layer.output_bias
    if layer.attention_post_norm is not None:
        changed = normed(changed, layer.attention_post_norm, layer.epsilon)
    state = rows[29:] + changed
    mlp = chunk._mlp(layer, normed(state, layer.mlp_norm, layer.epsilon))
    mlp = mlp if layer.mlp_post_norm is None else normed(mlp, layer.mlp_post_norm, layer.epsilon)
    torch.testing.assert_close(state + mlp, wanted, rtol=0, atol=float(TOLERANCE * wanted.abs().max()))


@pytest.mark.parametrize("held", [chunk._HELD_FLOATS, 1500])
def test_surprisal_is_minus_the_log_probability(weights: Weights, held: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunk, "_HELD_FLOATS", held)
    model = weights.model
    reference, random = ReferenceDecoder(weights), np.random.default_rng(1)
    states = random.standard_normal((20, model.hidden)).astype(np.float32)
    tokens = random.integers(0, 97, 20)
    logits = reference.head(reference.normed(states, "norm")).astype(np.float64)
    wanted = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(20), tokens]
    got = chunk_surprisal(
        DeviceMatrix.of([weights.blocks["embedding" if model.tied_head else "head"]]),
        torch.from_numpy(weights.vector("norm")).to(device()),
        model.norm_epsilon,
        model.logit_softcap,
        torch.from_numpy(states).to(device()),
        torch.from_numpy(tokens).to(device()),
    )
    np.testing.assert_allclose(got.cpu().numpy(), wanted, atol=TOLERANCE)
