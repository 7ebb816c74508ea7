"""A chunk of the prompt through one layer, by large torch products over weights dequantised some rows at a time.

What is held beside weights and cache stays under a bound, whatever the context and the model's dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch

from edgemem.kernels.cuda.device_cache import DeviceCache, rotated, turn
from edgemem.kernels.cuda.device_matrix import DeviceMatrix

CHUNK = 512  # tokens that go through the layers at once
_HELD_FLOATS = 8 << 20  # of weights, of scores, or of keys and values, at once
SCRATCH_BYTES = 8 * 4 * _HELD_FLOATS  # an estimate, not measured: several of these are held by torch at once


@dataclass(frozen=True)
class DeviceLayer:
    """One layer's weights and constants on the device, for decode and prefill alike. Vectors are float32.

    qkv: query, key and value stacked by rows; gate_up: paired. query_norm..key_norm, biases, post norms: None if the
    model has none. frequencies: (pairs,) float64.
    """

    qkv: DeviceMatrix
    output: DeviceMatrix
    gate_up: DeviceMatrix
    down: DeviceMatrix
    attention_norm: torch.Tensor
    mlp_norm: torch.Tensor
    attention_post_norm: torch.Tensor | None
    mlp_post_norm: torch.Tensor | None
    query_norm: torch.Tensor | None
    key_norm: torch.Tensor | None
    qkv_bias: torch.Tensor | None
    output_bias: torch.Tensor | None
    frequencies: torch.Tensor
    amplitude: float
    window: int
    heads: int
    kv_heads: int
    head_dim: int
    epsilon: float
    scale: float
    softcap: float
    activation: Literal["silu", "gelu_tanh"]


def chunk_layer(layer: DeviceLayer, index: int, cache: DeviceCache, first: int, states: torch.Tensor) -> torch.Tensor:
    """(n, hidden) float32 states of slots first..first+n-1 through one layer, their keys and values into the cache.

    index: of the layer in the cache. Gives a new (n, hidden); `states` stays as it is.
    """
    with _tensor_cores():
        attended = _attention(layer, index, cache, first, normed(states, layer.attention_norm, layer.epsilon))
        if layer.attention_post_norm is not None:
            attended = normed(attended, layer.attention_post_norm, layer.epsilon)
        states = states + attended
        changed = _mlp(layer, normed(states, layer.mlp_norm, layer.epsilon))
        if layer.mlp_post_norm is not None:
            changed = normed(changed, layer.mlp_post_norm, layer.epsilon)
        return states + changed


def chunk_surprisal(
    head: DeviceMatrix,
    norm: torch.Tensor,
    epsilon: float,
    softcap: float,
    states: torch.Tensor,
    tokens: torch.Tensor,
) -> torch.Tensor:
    """-log p of tokens (n,) by (n, hidden) states before the final norm, float32 (n,).

    The logits of some rows of the vocabulary are held at once, and only what their exponentials sum to is kept.
    """
    states, tokens = normed(states, norm, epsilon), tokens.long()
    own = torch.empty(len(tokens), device=states.device)
    log_sum = torch.full_like(own, -torch.inf)
    with _tensor_cores():
        for start, block in _product_blocks(head, states, 0, head.rows):
            logits = _capped(block, softcap)
            log_sum = torch.logaddexp(log_sum, logits.logsumexp(dim=1))
            places = tokens - start
            is_here = (places >= 0) & (places < logits.shape[1])
            found = logits.gather(1, places.clamp(0, logits.shape[1] - 1)[:, None])[:, 0]
            own = torch.where(is_here, found, own)
    return log_sum - own


def normed(states: torch.Tensor, norm: torch.Tensor, epsilon: float) -> torch.Tensor:
    """RMS norm over the last axis."""
    return states * torch.rsqrt(states.square().mean(dim=-1, keepdim=True) + epsilon) * norm


def _attention(layer: DeviceLayer, index: int, cache: DeviceCache, first: int, states: torch.Tensor) -> torch.Tensor:
    count, kv_heads, head_dim = len(states), layer.kv_heads, layer.head_dim
    qkv = product(layer.qkv, states)
    if layer.qkv_bias is not None:
        qkv += layer.qkv_bias
    vectors = qkv.view(count, -1, head_dim).transpose(0, 1)
    query, key, value = vectors[: layer.heads], vectors[layer.heads : -kv_heads], vectors[-kv_heads:]
    if layer.query_norm is not None and layer.key_norm is not None:
        query, key = (
            normed(part, norm, layer.epsilon) for part, norm in ((query, layer.query_norm), (key, layer.key_norm))
        )
    positions = torch.arange(first, first + count, device=states.device)
    angles = [part * layer.amplitude for part in turn(positions, layer.frequencies)]
    query, key = rotated(query, *angles), rotated(key, *angles)
    cache.write(index, first, key, value)
    mixed = _attend(layer, index, cache, first, query)
    result = product(layer.output, mixed.transpose(0, 1).reshape(count, -1))
    return result if layer.output_bias is None else result + layer.output_bias


def _attend(layer: DeviceLayer, index: int, cache: DeviceCache, first: int, query: torch.Tensor) -> torch.Tensor:
    """Causal attention of (heads, n, head_dim) queries of slots first.. over what the cache holds; of their shape."""
    count, head_dim = query.shape[1:]
    sharing = layer.heads // layer.kv_heads
    span = first + count
    mixed = torch.empty_like(query)
    together = max(1, min(layer.kv_heads, _HELD_FLOATS // (2 * span * head_dim)))  # KV heads
    rows = max(1, _HELD_FLOATS // (span * sharing * together))
    for head in range(0, layer.kv_heads, together):
        heads = slice(head, min(head + together, layer.kv_heads))
        own = slice(heads.start * sharing, heads.stop * sharing)
        oldest = max(0, first + 1 - layer.window) if layer.window else 0
        keys, values = cache.read(index, oldest, span, heads)
        for start in range(0, count, rows):
            stop = min(start + rows, count)
            slots = torch.arange(oldest, first + stop, device=query.device)
            distance = torch.arange(first + start, first + stop, device=query.device)[:, None] - slots
            unseen = (distance < 0) | (distance >= layer.window) if layer.window else distance < 0
            part = query[own, start:stop].reshape(len(keys), -1, head_dim)  # queries of a KV head are the rows
            scores = _capped(part @ keys[:, : len(slots)].mT * layer.scale, layer.softcap)
            scores = scores.view(-1, stop - start, len(slots)).masked_fill_(unseen, -torch.inf).softmax(dim=-1)
            result = scores.view(len(keys), -1, len(slots)) @ values[:, : len(slots)]
            mixed[own, start:stop] = result.view(-1, stop - start, head_dim)
    return mixed


def _mlp(layer: DeviceLayer, states: torch.Tensor) -> torch.Tensor:
    half = layer.gate_up.rows // 2
    gated = torch.empty((len(states), half), device=states.device)
    for start, gate in _product_blocks(layer.gate_up, states, 0, half):
        gated[:, start : start + gate.shape[1]] = _activated(gate, layer.activation)
    for start, up in _product_blocks(layer.gate_up, states, half, 2 * half):
        gated[:, start - half : start - half + up.shape[1]] *= up
    return product(layer.down, gated)


def product(matrix: DeviceMatrix, states: torch.Tensor) -> torch.Tensor:
    """(n, columns) float32 states by the matrix: (n, rows)."""
    result = torch.empty((len(states), matrix.rows), device=states.device)
    for start, part in _product_blocks(matrix, states, 0, matrix.rows):
        result[:, start : start + part.shape[1]] = part
    return result


def _product_blocks(
    matrix: DeviceMatrix, states: torch.Tensor, start: int, stop: int
) -> Iterator[tuple[int, torch.Tensor]]:
    """(first row, (n, some rows)) of the product with rows [start, stop), a block of them dequantised at a time."""
    block = max(1, _HELD_FLOATS // max(matrix.columns, len(states)))
    for first in range(start, stop, block):
        yield first, states @ matrix.dense(torch.float32, first, min(first + block, stop)).T


def _activated(values: torch.Tensor, activation: Literal["silu", "gelu_tanh"]) -> torch.Tensor:
    if activation == "silu":
        return torch.nn.functional.silu(values)
    return torch.nn.functional.gelu(values, approximate="tanh")


def _capped(values: torch.Tensor, cap: float) -> torch.Tensor:
    return cap * torch.tanh(values / cap) if cap else values


@contextmanager
def _tensor_cores() -> Iterator[None]:
    """Products in TF32, where there are tensor cores: 11 bits of each factor, as of float16, summed in float32."""
    matmul = torch.backends.cuda.matmul
    before, matmul.fp32_precision = matmul.fp32_precision, "tf32"
    try:
        yield
    finally:
        matmul.fp32_precision = before
