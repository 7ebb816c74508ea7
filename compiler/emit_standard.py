"""Writes the decoder as an ONNX graph of standard operators alone (opset 24), for TensorRT and every runtime like it.

A build input, not a part of the package: TensorRT takes signed codes only, the package holds unsigned ones, so the
weights are rewritten once into a file beside the graph. Both lie in a folder of the caller's, who removes it after
the build. Products are float16 (float32 where a matrix is stored so), everything between them float32.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgemem.compiler.graph_data import GraphData
from edgemem.compiler.onnx_graph import FLOAT, INT64, OnnxGraph
from edgemem.compiler.standard_attention import StandardAttention
from edgemem.compiler.standard_linear import StandardLinear
from edgemem.runtime.model import ModelSpec
from edgemem.runtime.package import Package

_OPSET = 24  # the first with TensorScatter
GRAPH_FILE, DATA_FILE = "decoder.onnx", "decoder.data"


def emit_standard(folder: Path, package: Package, capacity: int, layers: tuple[int, int] | None = None) -> Path:
    """Write GRAPH_FILE over layers [first, last), by default all, and DATA_FILE into `folder`; the graph's path.

    Inputs, where n, bucket and r are the only dynamic dimensions (named "tokens", "bucket", "rows"):
    - `input_ids` (1, n) int64, or from layer 1 on `hidden_states` (1, n, hidden) float32;
    - `position_ids` (1, n) int64, consecutive: token i goes to slot position_ids[0, i], and the first of them is
      where the new keys are written. n rows may be padded at the end, as long as their slots exist: what is
      written there lies behind `length` and is overwritten before it is seen;
    - `slots` (bucket,) int64, always 0, 1, ..., bucket - 1: its length says how many slots of the cache are looked
      at. bucket > the last position that counts. Bind a prefix of one arange(capacity);
    - `past_key_values.{i}.key|value` (1, kv_heads, capacity, head_dim) float16, i in [first, last), bound to the same
      memory as `present.{i}.key|value`: only the new slots are written;
    - with the head also `logits_rows` (r,) int64, the rows of this run whose logits are wanted, [n - 1] to decode.
    Outputs: with the head `logits` (r, vocabulary) float32, else `hidden_states_out` (1, n, hidden) float32.

    There are no shape tensors: a profile sets n, bucket and r (1, 1, 1 for decoding), capacity is fixed in the graph
    (KVCacheUpdate wants it static). TF32 must be off: minima and float32 matrices are float32 products. ONNX Runtime
    dequantises all weights in every run unless the session's `session.disable_quant_qdq` is "1".
    Raises EngineError for a weight that float16 cannot hold, PackageError for layers that are not here.
    """
    first, last = (0, package.model.layers) if layers is None else layers
    package.require(first, last)
    graph = OnnxGraph({}, DATA_FILE)
    with GraphData(folder / DATA_FILE, graph) as data:
        stage = _Stage(graph, StandardLinear(graph, data, package), package.model)
        hidden = stage.tokens() if first == 0 else stage.states()
        attention = StandardAttention(graph, data, package.model, capacity)
        rows = graph.input("logits_rows", INT64, ["rows"]) if last == package.model.layers else None
        for layer in range(first, last):
            hidden = stage.layer(layer, hidden, attention, rows if layer == last - 1 else None)
        if rows is None:
            stage.states_out(hidden)
        else:
            stage.logits(hidden)
    graph.write(folder / GRAPH_FILE, producer="edgemem", opset=_OPSET)
    return folder / GRAPH_FILE


class _Stage:
    """The parts of a decoder, each appended to the graph when called. Activations are (rows, width) float32."""

    def __init__(self, graph: OnnxGraph, linear: StandardLinear, model: ModelSpec) -> None:
        self.graph, self.linear, self.model = graph, linear, model

    def tokens(self) -> str:
        """The embeddings of the token ids."""
        graph, scale = self.graph, self.model.embedding_scale
        tokens = graph.node("Reshape", [graph.input("input_ids", INT64, [1, "tokens"]), graph.integers(-1)])
        hidden = self.linear.lookup(tokens, "embedding")
        return hidden if scale == 1.0 else graph.node("Mul", [hidden, self._number(scale)])

    def states(self) -> str:
        states = self.graph.input("hidden_states", FLOAT, [1, "tokens", self.model.hidden])
        return self.graph.node("Reshape", [states, self.graph.integers(-1, self.model.hidden)])

    def states_out(self, hidden: str) -> None:
        graph, width = self.graph, self.model.hidden
        graph.node("Reshape", [hidden, graph.integers(1, -1, width)], ["hidden_states_out"])
        graph.output("hidden_states_out", FLOAT, [1, "tokens", width])

    def layer(self, layer: int, hidden: str, attention: StandardAttention, rows: str | None) -> str:
        """One layer; behind its attention only these rows go on, if given."""
        graph, model, name = self.graph, self.model, f"layers.{layer}"
        query, key, value = self._query_key_value(layer, self._norm(hidden, f"{name}.attention_norm"))
        attended = attention.attended(layer, query, key, value)
        if rows is not None:
            attended, hidden = (graph.node("Gather", [values, rows], axis=0) for values in (attended, hidden))
        delta = self.linear.product(attended, [f"{name}.output"], [f"{name}.output_bias"] if model.output_bias else [])
        if model.sandwich_norms:
            delta = self._norm(delta, f"{name}.attention_post_norm")
        hidden = graph.node("Add", [hidden, delta])
        delta = self.linear.product(self._gated(layer, self._norm(hidden, f"{name}.mlp_norm")), [f"{name}.down"])
        if model.sandwich_norms:
            delta = self._norm(delta, f"{name}.mlp_post_norm")
        return graph.node("Add", [hidden, delta])

    def logits(self, hidden: str) -> None:
        graph, model = self.graph, self.model
        logits = self.linear.product(self._norm(hidden, "norm"), ["embedding" if model.tied_head else "head"])
        if model.logit_softcap:
            cap = self._number(model.logit_softcap)
            logits = graph.node("Mul", [graph.node("Tanh", [graph.node("Div", [logits, cap])]), cap])
        graph.node("Reshape", [logits, graph.integers(-1, model.vocabulary)], ["logits"])
        graph.output("logits", FLOAT, ["rows", model.vocabulary])

    def _query_key_value(self, layer: int, normed: str) -> list[str]:
        model = self.model
        names = [f"layers.{layer}.{part}" for part in ("query", "key", "value")]
        widths = [model.heads * model.head_dim, *[model.kv_heads * model.head_dim] * 2]
        values = self._products(normed, names, widths, [f"{name}_bias" for name in names] if model.qkv_bias else [])
        if model.qk_norm:
            for i in range(2):
                heads = self.graph.node("Reshape", [values[i], self.graph.integers(-1, model.head_dim)])
                values[i] = self._norm(heads, f"{names[i]}_norm")
        return values

    def _gated(self, layer: int, normed: str) -> str:
        graph, model = self.graph, self.model
        names = [f"layers.{layer}.gate", f"layers.{layer}.up"]
        gate, up = self._products(normed, names, [model.intermediate] * 2, [])
        if model.activation == "silu":
            gate = graph.node("Mul", [gate, graph.node("Sigmoid", [gate])])
        else:
            gate = graph.node("Gelu", [gate], approximate="tanh")
        return graph.node("Mul", [gate, up])

    def _products(self, x: str, names: list[str], widths: list[int], biases: list[str]) -> list[str]:
        """One value a matrix, by one product where they are stored alike."""
        if not self.linear.fused(names):
            return [self.linear.product(x, [name], biases[i : i + 1]) for i, name in enumerate(names)]
        packed = self.linear.product(x, names, biases)
        outputs = [f"{packed}.{i}" for i in range(len(names))]
        self.graph.node("Split", [packed, self.graph.integers(*widths)], outputs, axis=1)
        return outputs

    def _norm(self, values: str, weight: str) -> str:
        return self.graph.node(
            "RMSNormalization", [values, self.linear.vector([weight])], axis=-1, epsilon=self.model.norm_epsilon
        )

    def _number(self, value: float) -> str:
        return self.graph.constant(np.array(value, dtype=np.float32))
