"""What plain torch makes of the same decode step: F.linear and SDPA in bfloat16, or torch's own int4 product.

Random weights of the model's exact shape, a static cache, launched one by one and as a CUDA graph. Its tokens mean
nothing; it is here for its time.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from torch.nn.functional import linear, rms_norm, scaled_dot_product_attention

from edgemem.kernels.cuda.launching import device
from edgemem.profiles.record import Block, Cell, Session, StepBytes, Sweep
from edgemem.runtime.model import ModelSpec
from edgemem.tools.gpu_decode import cell_key

Product = Callable[[torch.Tensor], torch.Tensor]
_INT4_GROUP = 128
_WARM_STEPS, _STEPS = 5, 64


@dataclass(frozen=True)
class BaselineLayer:
    qkv: Product
    output: Product
    gate_up: Product
    down: Product


class TorchDecoder:
    """One decode step over `context` slots in use; token and logits are static tensors."""

    def __init__(self, model: ModelSpec, context: int, *, int4: bool) -> None:
        make = _int4_product if int4 else _product
        self.model, self.context = model, context
        queries, keys = model.heads * model.head_dim, model.kv_heads * model.head_dim
        self.layers = [
            BaselineLayer(
                make(queries + 2 * keys, model.hidden),
                make(model.hidden, queries),
                make(2 * model.intermediate, model.hidden),
                make(model.hidden, model.intermediate),
            )
            for _ in range(model.layers)
        ]
        self.embedding = _weights(model.vocabulary, model.hidden)
        self.head = self.embedding if model.tied_head else _weights(model.vocabulary, model.hidden)
        self.norm = torch.ones(model.hidden, dtype=torch.bfloat16, device=device())
        shape = (model.layers, 2, 1, model.kv_heads, context + 1, model.head_dim)
        self.cache = torch.randn(shape, dtype=torch.bfloat16, device=device())
        angles = context * torch.tensor(model.ropes[0].inverse_frequencies, device=device())
        self.cos, self.sin = (part.repeat(2).to(torch.bfloat16) for part in (angles.cos(), angles.sin()))
        self.token = torch.zeros(1, dtype=torch.int64, device=device())

    def step(self) -> None:
        """Token to token."""
        model = self.model
        state = self.embedding[self.token]
        for layer, cache in zip(self.layers, self.cache, strict=True):
            state = state + layer.output(self._attend(layer.qkv(self._normed(state)), cache))
            gate, up = layer.gate_up(self._normed(state)).chunk(2, dim=-1)
            state = state + layer.down(torch.nn.functional.silu(gate) * up)
        logits = linear(self._normed(state), self.head)
        self.token.copy_(logits.view(model.vocabulary).argmax())

    def _normed(self, state: torch.Tensor) -> torch.Tensor:
        return rms_norm(state, (self.model.hidden,), self.norm, self.model.norm_epsilon)

    def _attend(self, qkv: torch.Tensor, cache: torch.Tensor) -> torch.Tensor:
        model = self.model
        heads = qkv.view(1, -1, 1, model.head_dim)
        query, key, value = torch.split(heads, [model.heads, model.kv_heads, model.kv_heads], dim=1)
        cache[0, :, :, self.context :].copy_(self._turned(key))
        cache[1, :, :, self.context :].copy_(value)
        mixed = scaled_dot_product_attention(
            self._turned(query), cache[0], cache[1], scale=model.attention_scale, enable_gqa=True
        )
        return mixed.view(1, -1)

    def _turned(self, heads: torch.Tensor) -> torch.Tensor:
        first, second = heads.chunk(2, dim=-1)
        return heads * self.cos + torch.cat((-second, first), dim=-1) * self.sin


def measure_baseline(
    model: ModelSpec, label: str, context: int, bytes_: StepBytes, reads: list[float], *, int4: bool
) -> list[Cell]:
    """Two cells of the engine "torch": eager and graph. bytes_: what the same step must stream. reads: the memory's."""
    sweeps = tuple(Sweep(order, rate) for order, rate in enumerate(reads))
    with torch.inference_mode():
        decoder = TorchDecoder(model, context, int4=int4)
        graph = _captured(decoder.step)
        arms = {"eager": decoder.step, "graph": graph.replay}
        cells = []
        for arm, step in arms.items():
            block = _timed(step, len(sweeps))
            session = Session(0, 0.0, (block,), 1, sweeps, (), (), None)
            cells.append(Cell(cell_key(label, "torch", arm, context, "bf16"), "measured", None, bytes_, (session,), ()))
    return cells


def _timed(step: Callable[[], None], order: int) -> Block:
    """Steps one after the other, the host waiting for each as it would for its token."""
    readings = []
    for _ in range(_WARM_STEPS + _STEPS + 1):
        readings.append(time.perf_counter())
        step()
        torch.cuda.synchronize()
    readings = readings[_WARM_STEPS:]
    step_ms = tuple(1e3 * (after - before) for before, after in pairwise(readings))
    return Block(order, 1e3 * (readings[-1] - readings[0]), step_ms)


def _captured(step: Callable[[], None]) -> torch.cuda.CUDAGraph:
    for _ in range(_WARM_STEPS):
        step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph


def _product(rows: int, columns: int) -> Product:
    weights = _weights(rows, columns)
    return partial(linear, weight=weights)


def _int4_product(rows: int, columns: int) -> Product:
    """torch's int4 product for a batch of one, with its own packing."""
    codes = torch.randint(0, 256, (rows, columns // 2), dtype=torch.uint8, device=device())
    packed = torch.ops.aten._convert_weight_to_int4pack(codes, 8)
    scales = torch.full((columns // _INT4_GROUP, rows, 2), columns**-0.5 / 4, dtype=torch.bfloat16, device=device())
    return partial(torch.ops.aten._weight_int4pack_mm, mat2=packed, qGroupSize=_INT4_GROUP, qScaleAndZeros=scales)


def _weights(rows: int, columns: int) -> torch.Tensor:
    return torch.randn(rows, columns, dtype=torch.bfloat16, device=device()) / math.sqrt(columns)


def can_int4(model: ModelSpec) -> bool:
    """Whether torch's int4 product takes all of the model's matrices."""
    widths = (model.hidden, model.intermediate, model.heads * model.head_dim)
    return all(width % _INT4_GROUP == 0 for width in widths)
