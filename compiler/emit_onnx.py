"""Writes the ONNX graph of a decoder, whole or a stage of it, over the weights file it points into.

What derives from weights and constants alone (fp32 scales, centred minima, cos and sin tables) is written as nodes
over initializers: ONNX Runtime folds them when a session opens, so the file stays small and nothing is stored twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from edgemem.compiler.onnx_graph import CONTRIB, DOUBLE, FLOAT, INT32, INT64, OnnxGraph
from edgemem.compiler.onnx_linear import OnnxLinear
from edgemem.kernels.formats import Precision
from edgemem.runtime.model import ModelSpec, Rope
from edgemem.runtime.tensor_file import TensorEntry

_END = int(np.iinfo(np.int64).max)


def emit_graph(
    path: Path,
    model: ModelSpec,
    precision: Callable[[str], Precision],
    weights: Mapping[str, TensorEntry],
    max_context: int,
    layers: tuple[int, int] | None = None,
) -> None:
    """Write the graph over layers [first, last) to `path`, which must lie beside weights.safetensors.

    Inputs: `input_ids` (1, n) int64, or from layer 1 on `hidden_states` (1, n, hidden) float32; `attention_mask`
    (1, slots in use + n) int64, of which only the length counts; `past_key_values.{i}.key|value`
    (1, kv_heads, capacity, head_dim) float32, the same buffer as `present.{i}.key|value`; with the head also
    `logits_rows` (1,) int64, how many last rows reach it, 1 if left out.
    Outputs: `hidden_states_out` (1, n, hidden), or with the head `logits` (1, 1, vocabulary) of the last row; the
    whole model also gives `surprisal` (1, logits_rows - 1) of the last logits_rows - 1 tokens.
    Raises EngineError for a tensor that `weights` lacks.
    """
    first, last = (0, model.layers) if layers is None else layers
    graph = OnnxGraph(weights)
    stage = _Stage(graph, OnnxLinear(graph, precision), model, max_context)
    tokens, hidden = stage.tokens() if first == 0 else (None, stage.states())
    logits_rows = stage.logits_rows() if last == model.layers else None
    stage.positions()
    delta: str | None = None
    for layer in range(first, last):
        hidden, delta = stage.layer(layer, hidden, delta, logits_rows if layer == last - 1 else None)
    if logits_rows is None:
        stage.states_out(hidden, delta)
    else:
        logits = stage.logits(hidden, delta)
        if tokens is not None:
            stage.surprisal(logits, tokens, logits_rows)
    graph.write(path, producer="edgemem")


class _Stage:
    """The parts of a decoder, each appended to the graph when called.

    Activations are (rows, width): two-dimensional, so that one Gemm adds a product to what is there. The residual
    stream is `hidden + delta`, two values until the next norm adds them in the same node.
    """

    def __init__(self, graph: OnnxGraph, linear: OnnxLinear, model: ModelSpec, max_context: int) -> None:
        self.graph, self.linear, self.model, self.max_context = graph, linear, model, max_context

    def tokens(self) -> tuple[str, str]:
        """The token ids (n,) and their embeddings."""
        graph, scale = self.graph, self.model.embedding_scale
        tokens = graph.node("Reshape", [graph.input("input_ids", INT64, [1, "tokens"]), graph.integers(-1)])
        hidden = self.linear.lookup(tokens, "embedding")
        if scale != 1.0:
            hidden = graph.node("Mul", [hidden, self._number(scale)])
        return tokens, hidden

    def states(self) -> str:
        states = self.graph.input("hidden_states", FLOAT, [1, "tokens", self.model.hidden])
        return self.graph.node("Reshape", [states, self.graph.integers(-1, self.model.hidden)])

    def states_out(self, hidden: str, delta: str | None) -> None:
        graph, width = self.graph, self.model.hidden
        if delta is not None:
            hidden = graph.node("Add", [hidden, delta])
        graph.node("Reshape", [hidden, graph.integers(1, -1, width)], ["hidden_states_out"])
        graph.output("hidden_states_out", FLOAT, [1, "tokens", width])

    def logits_rows(self) -> str:
        return self.graph.default_input("logits_rows", np.array([1], dtype=np.int64))

    def positions(self) -> None:
        """Where the tokens stand, from the mask's length alone: a batch of one is never padded."""
        graph = self.graph
        length = graph.node("Shape", [graph.input("attention_mask", INT64, [1, "total"])], start=1, end=2)
        self.total_length = graph.node("Cast", [length], to=INT32)
        self.last_slot = graph.node("Sub", [self.total_length, graph.constant(np.array([1], dtype=np.int32))])

    def layer(self, layer: int, hidden: str, delta: str | None, rows: str | None) -> tuple[str, str]:
        """One layer; behind its attention only the last `rows` rows go on, if given."""
        model, name = self.model, f"layers.{layer}"
        normed, hidden = self._norm(hidden, delta, f"{name}.attention_norm")
        attended = self._attention(layer, normed)
        if rows is not None:
            attended, hidden = self._last_rows(attended, rows), self._last_rows(hidden, rows)
        delta = self.linear.product(attended, [f"{name}.output"], [f"{name}.output_bias"] if model.output_bias else [])
        if model.sandwich_norms:
            delta, _ = self._norm(delta, None, f"{name}.attention_post_norm")
        normed, hidden = self._norm(hidden, delta, f"{name}.mlp_norm")
        delta = self.linear.product(self._gated(layer, normed), [f"{name}.down"])
        if model.sandwich_norms:
            delta, _ = self._norm(delta, None, f"{name}.mlp_post_norm")
        return hidden, delta

    def logits(self, hidden: str, delta: str | None) -> str:
        """Logits of every row that is left, (rows, vocabulary); those of the last are the graph's output."""
        graph, model = self.graph, self.model
        normed, _ = self._norm(hidden, delta, "norm")
        logits = self.linear.product(normed, ["embedding" if model.tied_head else "head"])
        if model.logit_softcap:
            cap = self._number(model.logit_softcap)
            logits = graph.node("Mul", [graph.node("Tanh", [graph.node("Div", [logits, cap])]), cap])
        last = self._rows(logits, graph.integers(-1), _END)
        graph.node("Reshape", [last, graph.integers(1, 1, model.vocabulary)], ["logits"])
        graph.output("logits", FLOAT, [1, 1, model.vocabulary])
        return logits

    def surprisal(self, logits: str, tokens: str, rows: str) -> None:
        """log(sum(exp(logits))) - logits[next token] of all rows but the last; on empty tensors when rows is 1."""
        graph = self.graph
        before = self._rows(logits, graph.integers(0), -1)
        after = self._rows(self._last_rows(tokens, rows), graph.integers(1), _END)
        chosen = graph.node("GatherElements", [before, graph.node("Unsqueeze", [after, graph.integers(1)])], axis=1)
        total = graph.node("ReduceLogSumExp", [before, graph.integers(1)], keepdims=1)
        graph.node("Reshape", [graph.node("Sub", [total, chosen]), graph.integers(1, -1)], ["surprisal"])
        graph.output("surprisal", FLOAT, [1, "scored"])

    def _attention(self, layer: int, normed: str) -> str:
        graph, model = self.graph, self.model
        values = self._query_key_value(layer, normed)
        cache: list[int | str] = [1, model.kv_heads, "capacity", model.head_dim]
        past = [graph.input(f"past_key_values.{layer}.{part}", FLOAT, cache) for part in ("key", "value")]
        present = [f"present.{layer}.{part}" for part in ("key", "value")]
        for name in present:
            graph.output(name, FLOAT, cache)
        attributes: dict[str, int | float] = {}
        if 0 < model.windows[layer] < self.max_context:
            attributes["local_window_size"] = model.windows[layer]
        if model.attention_softcap:
            attributes["softcap"] = model.attention_softcap
        rotation = self._rotation(model.ropes[model.layer_ropes[layer]])
        attended = graph.node(
            "GroupQueryAttention",
            [*values, *past, self.last_slot, self.total_length, *rotation],
            [f"attended.{layer}", *present],
            domain=CONTRIB,
            num_heads=model.heads,
            kv_num_heads=model.kv_heads,
            do_rotary=1,
            scale=model.attention_scale,
            **attributes,
        )
        return graph.node("Reshape", [attended, graph.integers(-1, model.heads * model.head_dim)])

    def _query_key_value(self, layer: int, normed: str) -> list[str]:
        """Query, key and value (1, n, width), or all three packed in the first."""
        graph, model = self.graph, self.model
        parts = ("query", "key", "value")
        names = [f"layers.{layer}.{part}" for part in parts]
        biases = [f"{name}_bias" for name in names] if model.qkv_bias else []
        widths = [model.heads * model.head_dim, *[model.kv_heads * model.head_dim] * 2]
        if self.linear.fused(names) and not model.qk_norm:
            packed = self.linear.product(normed, names, biases)
            return [graph.node("Reshape", [packed, graph.integers(1, -1, sum(widths))]), "", ""]
        values = self._products(normed, names, widths, biases)
        if model.qk_norm:
            values[0] = self._head_norm(values[0], f"layers.{layer}.query_norm")
            values[1] = self._head_norm(values[1], f"layers.{layer}.key_norm")
        return [
            graph.node("Reshape", [value, graph.integers(1, -1, width)])
            for value, width in zip(values, widths, strict=True)
        ]

    def _gated(self, layer: int, normed: str) -> str:
        graph, model = self.graph, self.model
        names = [f"layers.{layer}.gate", f"layers.{layer}.up"]
        gate, up = self._products(normed, names, [model.intermediate] * 2, [])
        if model.activation == "silu":
            gate = graph.node("QuickGelu", [gate], domain=CONTRIB, alpha=1.0)
        else:
            gate = graph.node("Gelu", [gate], approximate="tanh")
        return graph.node("Mul", [gate, up])

    def _products(self, x: str, names: list[str], widths: list[int], biases: list[str]) -> list[str]:
        """One value a matrix, by one product where the file allows it."""
        if not self.linear.fused(names):
            return [self.linear.product(x, [name], biases[i : i + 1]) for i, name in enumerate(names)]
        packed = self.linear.product(x, names, biases)
        outputs = [f"{packed}.{i}" for i in range(len(names))]
        self.graph.node("Split", [packed, self.graph.integers(*widths)], outputs, axis=1)
        return outputs

    def _norm(self, hidden: str, delta: str | None, weight: str) -> tuple[str, str]:
        """RMS norm of hidden + delta, and that sum."""
        graph, epsilon = self.graph, self.model.norm_epsilon
        if delta is None:
            normed = graph.node(
                "SimplifiedLayerNormalization", [hidden, graph.weight([weight])], axis=-1, epsilon=epsilon
            )
            return normed, hidden
        outputs = [f"{weight}.normed", "", "", f"{weight}.sum"]
        graph.node(
            "SkipSimplifiedLayerNormalization",
            [hidden, delta, graph.weight([weight])],
            outputs,
            domain=CONTRIB,
            epsilon=epsilon,
        )
        return outputs[0], outputs[3]

    def _head_norm(self, value: str, weight: str) -> str:
        """RMS norm of each head, (n * heads, head_dim)."""
        heads = self.graph.node("Reshape", [value, self.graph.integers(-1, self.model.head_dim)])
        return self._norm(heads, None, weight)[0]

    def _last_rows(self, value: str, rows: str) -> str:
        return self._rows(value, self.graph.derived("Neg", [rows]), _END)

    def _rows(self, value: str, start: str, stop: int) -> str:
        graph = self.graph
        return graph.node("Slice", [value, start, graph.integers(stop), graph.integers(0)])

    def _rotation(self, rope: Rope) -> list[str]:
        """cos and sin (max_context, rotary_dim / 2), computed in float64 by the session when it opens."""
        graph = self.graph
        zero, one, end = (graph.constant(np.array(value, dtype=np.int64)) for value in (0, 1, self.max_context))
        positions = graph.derived("Cast", [graph.derived("Range", [zero, end, one])], to=DOUBLE)
        positions = graph.derived("Unsqueeze", [positions, graph.integers(1)])
        angles = graph.derived("Mul", [positions, graph.constant(np.array([rope.inverse_frequencies]))])
        quarter, amplitude = (graph.constant(np.array(value)) for value in (math.pi / 2, rope.amplitude))
        # cos x = sin(x + pi/2): ONNX Runtime 1.23 has no Cos in float64.
        shifted = graph.derived("Add", [angles, quarter])
        waves = [graph.derived("Sin", [value]) for value in (shifted, angles)]
        return [graph.derived("Cast", [graph.derived("Mul", [wave, amplitude])], to=FLOAT) for wave in waves]

    def _number(self, value: float) -> str:
        return self.graph.constant(np.array(value, dtype=np.float32))
