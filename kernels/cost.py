"""Bytes and operations of one decode step, op by op: pure arithmetic over dimensions and precisions.

Counts what must cross the memory bus once: each matrix as stored, the KV slots really attended to. Activations, a few
kilobytes a layer, are left out. It measures nothing and knows no hardware.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from edgemem.kernels.formats import Precision

_VECTOR_BYTES = 4  # norms and biases are float32


class Decoder(Protocol):
    """What is asked of a model description; runtime's ModelSpec has it all."""

    @property
    def layers(self) -> int: ...
    @property
    def heads(self) -> int: ...
    @property
    def kv_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def tied_head(self) -> bool: ...
    @property
    def windows(self) -> tuple[int, ...]: ...
    def matrices(self, first: int = 0, last: int | None = None) -> Iterator[tuple[str, tuple[int, int]]]: ...
    def vectors(self, first: int = 0, last: int | None = None) -> Iterator[tuple[str, int]]: ...


@dataclass(frozen=True)
class OpCost:
    """One op of a step. Bytes from and to memory; operations are multiply-accumulates."""

    name: str
    weight_bytes: int = 0
    kv_read_bytes: int = 0
    kv_write_bytes: int = 0
    operations: int = 0

    @property
    def bytes(self) -> int:
        return self.weight_bytes + self.kv_read_bytes + self.kv_write_bytes


@dataclass(frozen=True)
class StepCost:
    """One decode step. `footprint_bytes` is all weights held, streamed or not; the rest is what the step moves."""

    ops: tuple[OpCost, ...]
    footprint_bytes: int

    @property
    def weight_bytes(self) -> int:
        return sum(op.weight_bytes for op in self.ops)

    @property
    def kv_read_bytes(self) -> int:
        return sum(op.kv_read_bytes for op in self.ops)

    @property
    def kv_write_bytes(self) -> int:
        return sum(op.kv_write_bytes for op in self.ops)

    @property
    def operations(self) -> int:
        return sum(op.operations for op in self.ops)

    @property
    def streamed_bytes(self) -> int:
        return sum(op.bytes for op in self.ops)

    def floor_ms(self, bandwidth_bytes_per_s: float) -> float:
        """The streamed floor: the least milliseconds in which a memory of this bandwidth can serve the step."""
        return _milliseconds(self.streamed_bytes, bandwidth_bytes_per_s)

    def footprint_floor_ms(self, bandwidth_bytes_per_s: float) -> float:
        """The footprint floor: as if every weight held were streamed, and nothing else."""
        return _milliseconds(self.footprint_bytes, bandwidth_bytes_per_s)


def step_cost(
    model: Decoder,
    precision: Callable[[str], Precision],
    slots: int,
    *,
    kv_element_bytes: int,
    layers: tuple[int, int] | None = None,
) -> StepCost:
    """The decode step that finds `slots` KV slots in use, over layers [first, last) or all.

    precision: of each matrix of the range, by name. A tied head is one matrix: streamed whole as the head, and one row
    more of it as the embedding. An untied embedding is streamed one row. The new token's own key and value are
    written, not read back. Raises ValueError for a negative or wrong number.
    """
    first, last = layers or (0, model.layers)
    if slots < 0 or kv_element_bytes < 1 or not 0 <= first < last <= model.layers:
        raise ValueError(f"slots {slots}, KV element bytes {kv_element_bytes}, layers [{first}, {last})")
    shapes = dict(model.matrices(first, last))
    vectors = dict(model.vectors(first, last))
    head = "embedding" if model.tied_head else "head"
    ops: list[OpCost] = []
    if first == 0:
        ops.append(OpCost("embedding", precision("embedding").bytes_for(1, shapes["embedding"][1])))
    for layer in range(first, last):
        at = f"layers.{layer}."
        ops += [_product(name, shape, precision) for name, shape in shapes.items() if name.startswith(at)]
        ops.append(_attention(model, layer, slots, kv_element_bytes))
        ops.append(_vectors(f"{at}vectors", [size for name, size in vectors.items() if name.startswith(at)]))
    if last == model.layers:
        ops.append(_vectors("norm", [vectors["norm"]]))
        product = _product(head, shapes[head], precision)
        ops.append(OpCost("head", product.weight_bytes, operations=product.operations))
    held = sum(precision(name).bytes_for(*shape) for name, shape in shapes.items())
    return StepCost(tuple(ops), held + _VECTOR_BYTES * sum(vectors.values()))


def kv_slot_bytes(model: Decoder, element_bytes: int, layers: tuple[int, int] | None = None) -> int:
    """Bytes of one KV slot, keys and values of layers [first, last) or all."""
    first, last = layers or (0, model.layers)
    return (last - first) * 2 * model.kv_heads * model.head_dim * element_bytes


def _product(name: str, shape: tuple[int, int], precision: Callable[[str], Precision]) -> OpCost:
    rows, columns = shape
    return OpCost(name, precision(name).bytes_for(rows, columns), operations=rows * columns)


def _attention(model: Decoder, layer: int, slots: int, element_bytes: int) -> OpCost:
    window = model.windows[layer]
    earlier = min(slots, window - 1) if window else slots  # a window counts the new token too
    slot = kv_slot_bytes(model, element_bytes, (layer, layer + 1))
    multiplied = 2 * model.heads * model.head_dim * (earlier + 1)  # scores, and the sum of values
    return OpCost(f"layers.{layer}.attention", 0, earlier * slot, slot, multiplied)


def _vectors(name: str, sizes: Sequence[int]) -> OpCost:
    return OpCost(name, _VECTOR_BYTES * sum(sizes), operations=sum(sizes))


def _milliseconds(count: int, bandwidth_bytes_per_s: float) -> float:
    if not bandwidth_bytes_per_s > 0:
        raise ValueError(f"bandwidth is {bandwidth_bytes_per_s} bytes per second, wanted more than 0")
    return count / bandwidth_bytes_per_s * 1e3
