"""Bytes of GPU memory that the cuda engine will take, computed from the package before anything is allocated."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from edgemem.kernels.cuda.chunk import CHUNK, SCRATCH_BYTES
from edgemem.kernels.cuda.device_cache import DeviceCache, Kind
from edgemem.kernels.cuda.device_matrix import common_precision
from edgemem.kernels.cuda.launching import interpreted
from edgemem.kernels.cuda.tile_shapes import chunk_weights
from edgemem.kernels.formats import Precision
from edgemem.runtime.budget import Budget
from edgemem.runtime.machine import available_memory
from edgemem.runtime.package import Package

_FLOAT = 4
_REORDERING = 128 << 20  # while codes of int4 are put in order, some at a time
_WIDENING = 4  # times a matrix as widened: itself, and what it is computed from
_LOGITS = 6  # held at once: those of now, of before, and what sampling makes of them
_STATES = 8  # of a chunk, between two products
_WORKSPACES, _CODE_AND_GRAPHS = 32 << 20, 96 << 20  # bounds: both grow with kernels, not with the model


def cuda_budget(package: Package, capacity: int, layers: tuple[int, int], kv: Kind) -> Budget:
    """What the engine holds on the GPU for `capacity` slots of layers [first, last)."""
    model, (first, last) = package.model, layers
    vectors = sum(length for _, length in model.vectors(first, last))
    wide = max(model.hidden, model.intermediate, (model.heads + 2 * model.kv_heads) * model.head_dim)
    return Budget(
        (
            ("weights", weight_bytes(package, layers) + vectors * _FLOAT),
            ("KV cache", DeviceCache.bytes_for(last - first, model.kv_heads, model.head_dim, capacity, kv)),
            ("logits", _LOGITS * model.vocabulary * _FLOAT if last == model.layers else 0),
            # Not at the same time: nothing is computed before all is loaded.
            (
                "a matrix loading, or a chunk",
                max(_loading_bytes(package, layers), _STATES * CHUNK * wide * _FLOAT + SCRATCH_BYTES),
            ),
            ("workspaces", _WORKSPACES),
            ("code and graphs", _CODE_AND_GRAPHS),
        )
    )


def weight_bytes(package: Package, layers: tuple[int, int]) -> int:
    """Of the matrices as they lie on the GPU: those that are read together have one precision."""
    return sum(_group_bytes(package, names, layers) for names in _together(package, layers))


def available_gpu_memory() -> int:
    """Bytes that can be allocated on the GPU now; of a GPU that shares the processor's memory, what the system has."""
    if interpreted() or torch.cuda.get_device_properties().is_integrated:
        return available_memory()
    free, _ = torch.cuda.mem_get_info()
    return free + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()


def _loading_bytes(package: Package, layers: tuple[int, int]) -> int:
    """Held at most beside the matrices themselves: parts that are not yet one, rows that are not yet whole loads."""
    most = 0
    for names in _together(package, layers):
        unlike = len({package.precision(name) for name in names}) > 1
        most = max(most, (1 + unlike * _WIDENING) * _group_bytes(package, names, layers))
    return most + _REORDERING


def _group_bytes(package: Package, names: Sequence[str], layers: tuple[int, int]) -> int:
    shapes = dict(package.model.matrices(*layers))
    precision = common_precision([package.precision(name) for name in names])
    return sum(_held(precision, *shapes[name]) for name in names)


def _together(package: Package, layers: tuple[int, int]) -> list[Sequence[str]]:
    groups: list[Sequence[str]] = []
    for layer in range(*layers):
        parts = (("query", "key", "value"), ("output",), ("gate", "up"), ("down",))
        groups += [[f"layers.{layer}.{name}" for name in names] for names in parts]
    ends = [name for name, _ in package.model.matrices(*layers) if not name.startswith("layers.")]
    return [*groups, *([name] for name in ends)]


def _held(precision: Precision, rows: int, columns: int) -> int:
    """Rows of a float matrix are whole loads of 16 bytes."""
    lanes = chunk_weights(precision)
    return precision.bytes_for(rows, columns if precision.quantized else -(-columns // lanes) * lanes)
