"""The kernel table: each kernel of a decode step by itself on cold weights, beside the memory's read ceiling.

Every launch of a row takes the next of several copies, so that none is left in the cache from the launch before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from edgemem.compiler.random_model import random_block
from edgemem.kernels.cuda.attention import attention_workspace, decode_attention
from edgemem.kernels.cuda.device_cache import DeviceCache
from edgemem.kernels.cuda.device_matrix import DeviceMatrix
from edgemem.kernels.cuda.launching import device
from edgemem.kernels.cuda.matvec import matvec, workspace_for
from edgemem.kernels.formats import Precision, QuantizedMatrix
from edgemem.profiles.shapes import shape
from edgemem.runtime.model import ModelSpec
from edgemem.tools.gpu_models import random_bfloat16

_LEAST_BYTES = 1 << 30  # in the copies of a row, well beyond any cache
_LAUNCHES = 20  # in a graph, at least
_ATTENTION_SLOTS = (1024, 4096, 16384)
_PRECISIONS = ("bf16", "int8-g128", "int4-g128")


@dataclass(frozen=True)
class KernelRow:
    """bytes: that one launch must read. microseconds: of a launch among others like it in a CUDA graph."""

    name: str
    precision: str
    shape: str
    bytes: int
    microseconds: float

    @property
    def bytes_per_s(self) -> float:
        return self.bytes / self.microseconds * 1e6


@dataclass(frozen=True)
class KernelCase:
    """A row to be measured: (rows, columns) of a matrix, in each of several precisions; activation pairs two halves."""

    name: str
    rows: int
    columns: int
    activation: bool = False


def kernel_cases(model: ModelSpec) -> list[KernelCase]:
    """The matrices of a layer as the engine stacks them, and the head."""
    queries, keys = model.heads * model.head_dim, model.kv_heads * model.head_dim
    return [
        KernelCase("query, key, value", queries + 2 * keys, model.hidden),
        KernelCase("output", model.hidden, queries),
        KernelCase("gate, up", 2 * model.intermediate, model.hidden, activation=True),
        KernelCase("down", model.hidden, model.intermediate),
        KernelCase("head", model.vocabulary, model.hidden),
    ]


def kernel_jobs(name: str) -> Iterator[tuple[str, Callable[[], KernelRow]]]:
    """What to measure of the model of this name: products first, then attention."""
    model = shape(name)
    for case in kernel_cases(model):
        for precision in _PRECISIONS:
            yield f"{case.name}, {precision}", partial(_product_row, case, Precision.parse(precision), model)
        yield f"{case.name}, torch", partial(_torch_row, case)
    for slots in _ATTENTION_SLOTS:
        yield f"attention, {slots} slots", partial(_attention_row, model, slots)


def _product_row(case: KernelCase, precision: Precision, model: ModelSpec) -> KernelRow:
    random = np.random.Generator(np.random.SFC64(0))
    part = _part(random, case.rows, case.columns, precision)
    size = precision.bytes_for(case.rows, case.columns)
    copies = [DeviceMatrix.of([part]) for _ in range(_copies(size))]
    workspace = workspace_for(copies)
    norm, x = _vector(case.columns), _vector(case.columns)
    out = torch.zeros(case.rows // 2 if case.activation else case.rows, device=device())
    activation = model.activation if case.activation else None
    product = partial(matvec, x=x, out=out, workspace=workspace, norm=norm, epsilon=1e-6, activation=activation)
    launches = [partial(product, matrix) for matrix in copies]
    return KernelRow(case.name, str(precision), f"{case.rows} x {case.columns}", size, microseconds(launches))


def _torch_row(case: KernelCase) -> KernelRow:
    """What torch's own product (cuBLAS) takes for the same matrix in bfloat16."""
    size = case.rows * case.columns * 2
    copies = [torch.randn(case.rows, case.columns, dtype=torch.bfloat16, device=device()) for _ in range(_copies(size))]
    x = torch.randn(1, case.columns, dtype=torch.bfloat16, device=device())
    launches = [partial(torch.nn.functional.linear, x, matrix) for matrix in copies]
    return KernelRow(case.name, "bf16, torch", f"{case.rows} x {case.columns}", size, microseconds(launches))


def _attention_row(model: ModelSpec, slots: int) -> KernelRow:
    width = model.kv_heads * model.head_dim
    size = 2 * slots * width * 2
    layers = min(_copies(size), 64)
    cache = DeviceCache(layers, model.kv_heads, model.head_dim, slots, "fp16", device())
    for part in (cache.keys, cache.values):
        part.normal_()
    workspace = attention_workspace(model.heads, model.kv_heads, model.head_dim, slots)
    qkv = _vector(model.heads * model.head_dim + 2 * width)
    out = torch.zeros(model.heads * model.head_dim, device=device())
    position = torch.full((1,), slots - 1, dtype=torch.int32, device=device())
    rope = model.ropes[0]
    frequencies = torch.tensor(rope.inverse_frequencies, device=device())

    def launch(layer: int) -> None:
        decode_attention(
            qkv,
            cache,
            layer,
            position,
            out,
            frequencies=frequencies,
            amplitude=rope.amplitude,
            epsilon=model.norm_epsilon,
            scale=model.attention_scale,
            workspace=workspace,
        )

    launches = [partial(launch, layer) for layer in range(layers)]
    return KernelRow("attention", "fp16", f"{slots} slots", size, microseconds(launches))


def microseconds(launches: Sequence[Callable[[], Any]]) -> float:
    """Of one of them, replayed one after another in a CUDA graph: the quickest of five replays."""
    rounds = -(-_LAUNCHES // len(launches))
    for launch in launches[:2]:
        launch()  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(rounds):
            for launch in launches:
                launch()
    times = []
    for _ in range(6):
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        before.record()
        graph.replay()
        after.record()
        after.synchronize()
        times.append(before.elapsed_time(after))
    return float(min(times[1:])) * 1e3 / (rounds * len(launches))


def _copies(size: int) -> int:
    return max(2, -(-_LEAST_BYTES // size))


def _part(random: np.random.Generator, rows: int, columns: int, precision: Precision) -> QuantizedMatrix | Any:
    if precision.quantized:
        return random_block(random, rows, columns, precision)
    return random_bfloat16(random, rows, columns)


def _vector(size: int) -> torch.Tensor:
    return torch.randn(size, dtype=torch.float32, device=device())
