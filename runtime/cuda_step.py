"""CudaStep: layers of a package on the GPU, and one token through them as a row of kernel launches over static buffers.

Five launches a layer. What changes from step to step, token and position, lies in device memory, so that the row can be
captured in a graph. Chunks of a prompt go through the same weights by large products.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from edgemem.kernels.cuda.attention import attention_workspace, decode_attention
from edgemem.kernels.cuda.chunk import DeviceLayer, chunk_layer, chunk_surprisal
from edgemem.kernels.cuda.device_cache import DeviceCache
from edgemem.kernels.cuda.device_matrix import DeviceMatrix, Part
from edgemem.kernels.cuda.embedding import embed
from edgemem.kernels.cuda.launching import device
from edgemem.kernels.cuda.matvec import matvec, workspace_for
from edgemem.runtime.package import Package


class CudaStep:
    """token, position: int32 (1,), what the next launch consumes and the slot that it fills. logits: float32
    (vocabulary,), of a step with the head. stream: float32 (hidden,), where a step without the embedding begins."""

    def __init__(self, package: Package, layers: tuple[int, int], cache: DeviceCache) -> None:
        """Copies the weights to the device. Raises ValueError for a model that the kernels do not run."""
        model, (first, last) = package.model, layers
        self._model, self._cache = model, cache
        self.pdl = False  # whether kernels are launched before the one before them has ended
        self.layers = [_layer(package, index) for index in range(first, last)]
        self.embedding = _matrix(package, ["embedding"]) if first == 0 else None
        self.head = self.norm = None
        if last == model.layers:
            tied = self.embedding if model.tied_head else None
            self.head = tied or _matrix(package, ["embedding" if model.tied_head else "head"])
            self.norm = _vector(package, "norm")
        self.token, self.position = (torch.zeros(1, dtype=torch.int32, device=device()) for _ in range(2))
        queries, keys = model.heads * model.head_dim, model.kv_heads * model.head_dim
        self._streams = [_floats(model.hidden) for _ in range(2)]
        self._branch, self._qkv = _floats(model.hidden), _floats(queries + 2 * keys)
        self._attended, self._gated = _floats(queries), _floats(model.intermediate)
        self.logits = _floats(model.vocabulary if self.head is not None else 0)
        self._workspace = workspace_for(self._matrices())
        self._attention = attention_workspace(model.heads, model.kv_heads, model.head_dim, cache.capacity)
        self._at = 0  # which of the streams holds the state
        self._joining: torch.Tensor | None = None  # post norm of a branch that is not yet in the stream

    @property
    def stream(self) -> torch.Tensor:
        return self._streams[0]

    @property
    def nbytes(self) -> int:
        """Of the weight matrices on the device."""
        return sum(matrix.nbytes for matrix in self._matrices())

    def launch(self) -> None:
        """Queue one step: `token`, or what is in `stream`, at slot `position`."""
        self._at, self._joining = 0, None
        if self.embedding is not None:
            embed(self.embedding, self.token, self.stream, self._model.embedding_scale, pdl=self.pdl)
        for index, layer in enumerate(self.layers):
            self._launch_layer(index, layer)
        if self.head is not None:
            self._read(self.head, self.logits, self.norm, softcap=self._model.logit_softcap)

    def hidden(self) -> torch.Tensor:
        """What left the last layer in the last launch, (1, hidden), new."""
        state = self._streams[self._at]
        if self._joining is not None:
            state = state + _rms(self._branch, self._model.norm_epsilon) * self._joining
        return state[None].clone()

    def embedded(self, tokens: torch.Tensor) -> torch.Tensor:
        """(n,) int64 tokens to (n, hidden) float32 states."""
        table = self.embedding
        if table is None:
            raise ValueError("a stage without the embedding takes no tokens")
        scales, minima = (None if part is None else part[tokens] for part in (table.scales, table.minima))
        rows = replace(table, rows=len(tokens), body=table.body[tokens], scales=scales, minima=minima)
        return rows.dense() * self._model.embedding_scale

    def chunk(self, states: torch.Tensor, first: int) -> torch.Tensor:
        """(n, hidden) states into slots first..first+n-1, through all layers; a new (n, hidden)."""
        for index, layer in enumerate(self.layers):
            states = chunk_layer(layer, index, self._cache, first, states)
        return states

    def score(self, state: torch.Tensor) -> None:
        """Logits of one (hidden,) state that left the last layer."""
        self._at, self._joining = 0, None
        self.stream.copy_(state)
        if self.head is not None:
            self._read(self.head, self.logits, self.norm, softcap=self._model.logit_softcap)

    def surprisals(self, states: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """(n,) of the tokens that follow (n, hidden) states."""
        if self.head is None or self.norm is None:
            raise ValueError("a stage without the head gives no surprisal")
        return chunk_surprisal(
            self.head, self.norm, self._model.norm_epsilon, self._model.logit_softcap, states, tokens
        )

    def _launch_layer(self, index: int, layer: DeviceLayer) -> None:
        self._read(layer.qkv, self._qkv, layer.attention_norm, bias=layer.qkv_bias)
        decode_attention(
            self._qkv,
            self._cache,
            index,
            self.position,
            self._attended,
            frequencies=layer.frequencies,
            amplitude=layer.amplitude,
            query_norm=layer.query_norm,
            key_norm=layer.key_norm,
            epsilon=layer.epsilon,
            scale=layer.scale,
            window=layer.window,
            softcap=layer.softcap,
            workspace=self._attention,
            pdl=self.pdl,
        )
        self._write(layer.output, self._attended, layer.attention_post_norm, bias=layer.output_bias)
        self._read(layer.gate_up, self._gated, layer.mlp_norm, activation=layer.activation)
        self._write(layer.down, self._gated, layer.mlp_post_norm)

    def _read(self, matrix: DeviceMatrix, out: torch.Tensor, norm: torch.Tensor | None, **finish: Any) -> None:
        """out = matrix @ the normed stream, into which a branch that waits is taken first."""
        stream, joining = self._streams[self._at], {}
        if self._joining is not None:
            self._at = 1 - self._at
            joining = {"branch": self._branch, "post_norm": self._joining, "stream_out": self._streams[self._at]}
            self._joining = None
        self._product(matrix, stream, out, norm=norm, epsilon=self._model.norm_epsilon, **joining, **finish)

    def _write(self, matrix: DeviceMatrix, x: torch.Tensor, post_norm: torch.Tensor | None, **finish: Any) -> None:
        """Into the stream, or where a norm comes between, into the branch."""
        stream = self._streams[self._at]
        if post_norm is None:
            self._product(matrix, x, stream, residual=stream, **finish)
        else:
            self._product(matrix, x, self._branch, epsilon=self._model.norm_epsilon, **finish)
            self._joining = post_norm

    def _product(self, matrix: DeviceMatrix, x: torch.Tensor, out: torch.Tensor, **parts: Any) -> None:
        matvec(matrix, x, out, workspace=self._workspace, pdl=self.pdl, **parts)

    def _matrices(self) -> list[DeviceMatrix]:
        of_layers = [m for layer in self.layers for m in (layer.qkv, layer.output, layer.gate_up, layer.down)]
        ends = {id(matrix): matrix for matrix in (self.embedding, self.head) if matrix is not None}
        return [*of_layers, *ends.values()]


def _layer(package: Package, index: int) -> DeviceLayer:
    model, at = package.model, f"layers.{index}."
    there = {name for name, _ in model.vectors(index, index + 1)}

    def vector(*names: str) -> torch.Tensor | None:
        found = [_vector(package, at + name) for name in names if at + name in there]
        return torch.cat(found) if found else None

    rope = model.ropes[model.layer_ropes[index]]
    return DeviceLayer(
        qkv=_matrix(package, [at + "query", at + "key", at + "value"]),
        output=_matrix(package, [at + "output"]),
        gate_up=DeviceMatrix.paired(_part(package, at + "gate"), _part(package, at + "up")),
        down=_matrix(package, [at + "down"]),
        attention_norm=_vector(package, at + "attention_norm"),
        mlp_norm=_vector(package, at + "mlp_norm"),
        attention_post_norm=vector("attention_post_norm"),
        mlp_post_norm=vector("mlp_post_norm"),
        query_norm=vector("query_norm"),
        key_norm=vector("key_norm"),
        qkv_bias=vector("query_bias", "key_bias", "value_bias"),
        output_bias=vector("output_bias"),
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


def _matrix(package: Package, names: Sequence[str]) -> DeviceMatrix:
    return DeviceMatrix.of([_part(package, name) for name in names])


def _part(package: Package, name: str) -> Part:
    """The matrix as it lies in the mapped file."""
    matrix = package.matrix(name)
    quantized = matrix.quantized()
    return matrix.parts[0] if quantized is None else quantized


def _vector(package: Package, name: str) -> torch.Tensor:
    return torch.tensor(package.vector(name), dtype=torch.float32, device=device())


def _floats(count: int) -> torch.Tensor:
    return torch.zeros(count, dtype=torch.float32, device=device())


def _rms(values: torch.Tensor, epsilon: float) -> torch.Tensor:
    return values * torch.rsqrt(values.square().mean() + epsilon)
