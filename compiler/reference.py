"""The float32 NumPy decoder that every engine and quantiser is measured against.

It reads its weights from any WeightSource, a few rows at a time, so memory does not grow with layers or vocabulary.
It has no KV cache and no speed to speak of: whole sequences in, hidden states or logits out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from edgemem.runtime.errors import NumericError, SettingsError
from edgemem.runtime.model import Activation, Rope
from edgemem.runtime.weights import WeightSource

Array = NDArray[np.float32]
OnInput = Callable[[tuple[str, ...], Array], None]
"""Called with the matrices about to be read and the (tokens, columns) input that they share."""

_BLOCK_BYTES = 32 << 20  # of weights as float32 held at once
_SCORE_BYTES = 2 << 20  # of attention scores held at once: they should stay in the cache


class ReferenceDecoder:
    """A decoder over sequences that all start at position 0.

    Tokens are (n,) or (sequences, n); each layer's weights are read once for all of them.
    """

    def __init__(self, weights: WeightSource) -> None:
        self.model, self._weights = weights.model, weights

    def hidden(self, tokens: NDArray[np.integer]) -> Array:
        """(..., n) token ids to (..., n, hidden) after the final norm. SettingsError for a bad id or shape."""
        states = self.embed(tokens)
        for layer in range(self.model.layers):
            states = self.layer(layer, states)
        return self.normed(states, "norm").reshape(*np.shape(tokens), self.model.hidden)

    def logits(self, tokens: NDArray[np.integer]) -> Array:
        """(..., n) token ids to (..., n, vocabulary), all held at once."""
        states = self.hidden(tokens)
        return self.head(states.reshape(-1, self.model.hidden)).reshape(*states.shape[:-1], self.model.vocabulary)

    def logit_chunks(self, tokens: NDArray[np.integer], chunk_rows: int = 256) -> Iterator[Array]:
        """The logits of all positions in order, (at most chunk_rows, vocabulary) at a time."""
        states = self.hidden(tokens).reshape(-1, self.model.hidden)
        for start in range(0, len(states), chunk_rows):
            yield self.head(states[start : start + chunk_rows])

    def embed(self, tokens: NDArray[np.integer]) -> Array:
        """(n,) or (sequences, n) token ids to the (sequences, n, hidden) input of layer 0."""
        tokens = np.asarray(tokens)
        if tokens.ndim not in (1, 2) or tokens.size == 0 or not np.issubdtype(tokens.dtype, np.integer):
            raise SettingsError("no token ids", got=f"{tokens.dtype}{tokens.shape}", wanted="(n,) or (sequences, n)")
        vocabulary = self.model.vocabulary
        if tokens.min() < 0 or tokens.max() >= vocabulary:
            raise SettingsError(
                "token id out of range", got=f"{tokens.min()} to {tokens.max()}", wanted=f"0 to {vocabulary - 1}"
            )
        matrix = self._weights.matrix("embedding")
        unique, places = np.unique(tokens, return_inverse=True)
        table = np.concatenate([matrix.rows(int(token), int(token) + 1) for token in unique])
        states = table[places.reshape(np.atleast_2d(tokens).shape)]
        return np.asarray(states * np.float32(self.model.embedding_scale))

    def layer(self, index: int, states: Array, on_input: OnInput | None = None) -> Array:
        """One layer over (sequences, n, hidden). Raises NumericError if the result is not finite."""
        at = f"layers.{index}."
        with np.errstate(over="ignore", invalid="ignore"):
            attended = self._attention(index, self.normed(states, at + "attention_norm"), on_input)
            if self.model.sandwich_norms:
                attended = self.normed(attended, at + "attention_post_norm")
            states = states + attended
            changed = self._mlp(at, self.normed(states, at + "mlp_norm"), on_input)
            if self.model.sandwich_norms:
                changed = self.normed(changed, at + "mlp_post_norm")
            states = states + changed
        if not np.isfinite(states).all():
            raise NumericError(
                "the reference decoder gave NaN or Inf", where=f"layer {index}", do="check the source weights"
            )
        return states

    def normed(self, states: Array, name: str) -> Array:
        """RMS norm over the last axis by vector `name`."""
        mean_square = np.mean(np.square(states), axis=-1, keepdims=True)
        return np.asarray(
            states / np.sqrt(mean_square + np.float32(self.model.norm_epsilon)) * self._weights.vector(name)
        )

    def head(self, states: Array) -> Array:
        """(n, hidden) after the final norm to (n, vocabulary) logits."""
        logits = self._project("embedding" if self.model.tied_head else "head", states)
        return _capped(logits, self.model.logit_softcap)

    def _attention(self, index: int, states: Array, on_input: OnInput | None) -> Array:
        model, at = self.model, f"layers.{index}."
        sequences, length, _ = states.shape
        names = (at + "query", at + "key", at + "value")
        if on_input is not None:
            on_input(names, states.reshape(-1, model.hidden))
        projected = []
        for name, heads in zip(names, (model.heads, model.kv_heads, model.kv_heads), strict=True):
            values = self._project(name, states)
            if model.qkv_bias:
                values += self._weights.vector(name + "_bias")
            projected.append(values.reshape(sequences, length, heads, model.head_dim))
        query, key, value = projected
        if model.qk_norm:
            query, key = self.normed(query, at + "query_norm"), self.normed(key, at + "key_norm")
        rope = model.ropes[model.layer_ropes[index]]
        query, key = rotated(query, rope), rotated(key, rope)
        mixed = np.empty((sequences, length, model.heads * model.head_dim), dtype=np.float32)
        for sequence in range(sequences):
            self._attend(query[sequence], key[sequence], value[sequence], model.windows[index], mixed[sequence])
        if on_input is not None:
            on_input((at + "output",), mixed.reshape(-1, mixed.shape[-1]))
        result = self._project(at + "output", mixed)
        return result + self._weights.vector(at + "output_bias") if model.output_bias else result

    def _attend(self, query: Array, key: Array, value: Array, window: int, mixed: Array) -> None:
        """Causal attention of one sequence: (n, heads, head_dim) in, (n, heads * head_dim) into `mixed`."""
        length, heads, head_dim = query.shape
        sharing = heads // key.shape[1]
        block = max(1, _SCORE_BYTES // (4 * length * sharing))
        for start in range(0, length, block):
            stop = min(start + block, length)
            first = max(0, start - window + 1) if window else 0
            distance = np.arange(start, stop)[:, None] - np.arange(first, stop)
            unseen = (distance < 0) | (distance >= window) if window else distance < 0
            bias = np.where(unseen, np.float32(-np.inf), np.float32(0))
            for group in range(key.shape[1]):
                own = slice(group * sharing, (group + 1) * sharing)
                scores = query[start:stop, own].transpose(1, 0, 2) @ key[first:stop, group].T
                scores = _capped(scores * np.float32(self.model.attention_scale), self.model.attention_softcap)
                scores += bias
                scores -= scores.max(axis=-1, keepdims=True)
                np.exp(scores, out=scores)
                result = scores @ value[first:stop, group]  # (sharing, stop - start, head_dim)
                result /= scores.sum(axis=-1, keepdims=True)
                columns = slice(own.start * head_dim, own.stop * head_dim)
                mixed[start:stop, columns] = result.transpose(1, 0, 2).reshape(stop - start, -1)

    def _mlp(self, at: str, states: Array, on_input: OnInput | None) -> Array:
        model = self.model
        if on_input is not None:
            on_input((at + "gate", at + "up"), states.reshape(-1, model.hidden))
        gate, up = self._weights.matrix(at + "gate"), self._weights.matrix(at + "up")
        product = np.empty((*states.shape[:-1], model.intermediate), dtype=np.float32)
        for start, stop in _row_blocks(gate.shape):
            activated = _activated(states @ gate.rows(start, stop).T, model.activation)
            product[..., start:stop] = activated * (states @ up.rows(start, stop).T)
        if on_input is not None:
            on_input((at + "down",), product.reshape(-1, model.intermediate))
        return self._project(at + "down", product)

    def _project(self, name: str, states: Array) -> Array:
        """(..., columns) by the (rows, columns) matrix `name` to (..., rows)."""
        matrix = self._weights.matrix(name)
        flat = states.reshape(-1, states.shape[-1])
        result = np.empty((len(flat), matrix.shape[0]), dtype=np.float32)
        for start, stop in _row_blocks(matrix.shape):
            result[:, start:stop] = flat @ matrix.rows(start, stop).T
        return result.reshape(*states.shape[:-1], -1)


def rotated(values: Array, rope: Rope) -> Array:
    """(..., n, heads, head_dim) with the n positions 0..n-1 rotated by `rope`, in the rotate-half layout."""
    half = rope.rotary_dim // 2
    positions = np.arange(values.shape[-3], dtype=np.float32)
    angles = positions[:, None, None] * np.array(rope.inverse_frequencies, dtype=np.float32)  # (n, 1, half)
    cosine, sine = (function(angles) * np.float32(rope.amplitude) for function in (np.cos, np.sin))
    first, second = values[..., :half], values[..., half : 2 * half]
    turned = (first * cosine - second * sine, second * cosine + first * sine, values[..., 2 * half :])
    return np.concatenate(turned, axis=-1)


def _row_blocks(shape: tuple[int, int]) -> Iterator[tuple[int, int]]:
    rows, columns = shape
    block = max(1, _BLOCK_BYTES // (4 * columns))
    for start in range(0, rows, block):
        yield start, min(start + block, rows)


def _activated(values: Array, activation: Activation) -> Array:
    if activation == "silu":
        return np.asarray(values / (np.float32(1) + np.exp(-values)))
    cubic = np.float32(0.7978845608) * (values + np.float32(0.044715) * values**3)  # sqrt(2 / pi)
    return np.asarray(np.float32(0.5) * values * (np.float32(1) + np.tanh(cubic)))


def _capped(values: Array, cap: float) -> Array:
    return np.float32(cap) * np.tanh(values / np.float32(cap)) if cap else values
