"""StandardAttention: rotation, cache and attention of one layer in ONNX's own operators, keys and values in float16.

The new keys are written into the whole cache in place; what is looked at is its first `bucket` slots, so that a short
context need not read what is empty.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgemem.compiler.graph_data import GraphData
from edgemem.compiler.onnx_graph import FLOAT, FLOAT16, INT64, OnnxGraph
from edgemem.runtime.model import ModelSpec, Rope

_UNSEEN = float(np.finfo(np.float16).min)  # finite: a padded row that sees nothing must not give nan


class StandardAttention:
    """Attention over a cache of `capacity` slots. Adds the inputs `position_ids` and `slots` to the graph."""

    def __init__(self, graph: OnnxGraph, data: GraphData, model: ModelSpec, capacity: int) -> None:
        self._graph, self._data, self._model, self._capacity = graph, data, model, capacity
        self._positions = graph.input("position_ids", INT64, [1, "tokens"])
        self._slots = graph.input("slots", INT64, ["bucket"])

    def attended(self, layer: int, query: str, key: str, value: str) -> str:
        """Query (n, heads * head_dim), key and value (n, kv_heads * head_dim), or per head (n * heads, head_dim), all
        float32 and not rotated, to (n, heads * head_dim) float32. Adds the layer's cache to the graph."""
        graph, model = self._graph, self._model
        rope = model.ropes[model.layer_ropes[layer]]
        query = self._rotated(self._split(query, model.heads), rope)
        scaled = graph.node("Mul", [query, graph.constant(np.array(model.attention_scale, dtype=np.float32))])
        query = graph.node("Cast", [scaled], to=FLOAT16)
        key = graph.node("Cast", [self._rotated(self._split(key, model.kv_heads), rope)], to=FLOAT16)
        value = graph.node("Cast", [self._split(value, model.kv_heads)], to=FLOAT16)
        keys, values = self._cached(layer, "key", key), self._cached(layer, "value", value)
        attend = self._capped if model.attention_softcap else self._fused
        mixed = graph.node("Transpose", [attend(query, keys, values, model.windows[layer])], perm=[0, 2, 1, 3])
        mixed = graph.node("Reshape", [mixed, graph.integers(-1, model.heads * model.head_dim)])
        return graph.node("Cast", [mixed], to=FLOAT)

    def _fused(self, query: str, keys: str, values: str, window: int) -> str:
        graph = self._graph
        hidden, seen = (graph.constant(np.array(number, dtype=np.float16)) for number in (_UNSEEN, 0))
        bias = graph.derived("Where", [self._visible(window), seen, hidden])
        return graph.node("Attention", [query, keys, values, bias], scale=1.0)

    def _capped(self, query: str, keys: str, values: str, window: int) -> str:
        """cap * tanh(score / cap) before the softmax: TensorRT's Attention has no such thing."""
        graph, model = self._graph, self._model
        cap, unseen = (
            graph.constant(np.array(number, dtype=np.float32)) for number in (model.attention_softcap, _UNSEEN)
        )
        sharing = graph.integers(1, model.kv_heads, model.heads // model.kv_heads, -1, model.head_dim)
        query = graph.node("Reshape", [query, sharing])
        keys, values = (graph.node("Unsqueeze", [cached, graph.integers(2)]) for cached in (keys, values))
        scores = graph.node("MatMul", [query, graph.node("Transpose", [keys], perm=[0, 1, 2, 4, 3])])
        scores = graph.node("Cast", [scores], to=FLOAT)
        scores = graph.node("Mul", [graph.node("Tanh", [graph.node("Div", [scores, cap])]), cap])
        scores = graph.node("Where", [self._visible(window), scores, unseen])
        weights = graph.node("Cast", [graph.node("Softmax", [scores], axis=-1)], to=FLOAT16)
        mixed = graph.node("MatMul", [weights, values])
        return graph.node("Reshape", [mixed, graph.integers(1, model.heads, -1, model.head_dim)])

    def _split(self, values: str, heads: int) -> str:
        """(n, heads * head_dim) or (n * heads, head_dim) to (1, heads, n, head_dim)."""
        graph = self._graph
        apart = graph.node("Reshape", [values, graph.integers(1, -1, heads, self._model.head_dim)])
        return graph.node("Transpose", [apart], perm=[0, 2, 1, 3])

    def _rotated(self, values: str, rope: Rope) -> str:
        waves = self._waves(rope)
        return self._graph.node(
            "RotaryEmbedding", [values, *waves, self._positions], rotary_embedding_dim=rope.rotary_dim
        )

    def _waves(self, rope: Rope) -> Sequence[str]:
        """cos and sin (capacity, rotary_dim / 2), of angles in float64."""
        angles = np.arange(self._capacity)[:, None] * np.array(rope.inverse_frequencies)
        number, shape = self._model.ropes.index(rope), angles.shape
        return [
            self._data.tensor(f"ropes.{number}.{name}", FLOAT, shape, [(wave(angles) * rope.amplitude).astype("<f4")])
            for name, wave in (("cos", np.cos), ("sin", np.sin))
        ]

    def _cached(self, layer: int, part: str, update: str) -> str:
        """Write (1, kv_heads, n, head_dim) at the first position; gives the first `bucket` slots."""
        graph, model = self._graph, self._model
        cache = [1, model.kv_heads, self._capacity, model.head_dim]
        past, present = f"past_key_values.{layer}.{part}", f"present.{layer}.{part}"
        zero, axis = graph.integers(0), graph.integers(2)
        positions = graph.derived("Reshape", [self._positions, graph.integers(-1)])
        place = graph.derived("Gather", [positions, zero], axis=0)
        graph.node("TensorScatter", [graph.input(past, FLOAT16, cache), update, place], [present], axis=2)
        graph.output(present, FLOAT16, cache)
        return graph.node("Slice", [present, zero, graph.derived("Shape", [self._slots]), axis])

    def _visible(self, window: int) -> str:
        """Which slots a token may see, (n, bucket): its own and those before it, inside its window."""
        graph = self._graph
        positions = graph.derived("Reshape", [self._positions, graph.integers(-1, 1)])
        visible = graph.derived("LessOrEqual", [self._slots, positions])
        if not 0 < window < self._capacity:
            return visible
        before = graph.derived("Sub", [positions, graph.integers(window)])
        return graph.derived("And", [visible, graph.derived("Greater", [self._slots, before])])
