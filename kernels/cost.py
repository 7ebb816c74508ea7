"""Bytes and operations of one decode step, op by op: pure arithmetic over dimensions and precisions.

Counts what must cross the memory bus once: each matrix as stored, the KV slots really attended to. Activations, a few
kilobytes a layer, are left out. It measures nothing and knows no hardware.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

_VECTOR_BYTES = 4  # norms and biases are float32
# Products that read the same input wait for each other no more than for themselves: one phase.
_BESIDE = {"key": "query", "value": "query", "up": "gate"}
_INLINE = ("vectors", "norm", "embedding")  # done on the way from one phase to the next


class Stored(Protocol):
    """How one matrix is stored: a Precision, or anything else that knows its bytes."""

    def bytes_for(self, rows: int, columns: int) -> int: ...


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

    @property
    def phases(self) -> int:
        """Parts that must wait for one another: five a layer (query, key and value; attention; output; gate and up;
        down) and the head. Norms, biases and the embedding's row belong to the phase that they prepare."""
        parts = (op.name.rpartition(".")[::2] for op in self.ops)
        return len({(layer, _BESIDE.get(kind, kind)) for layer, kind in parts if kind not in _INLINE})


def step_cost(
    model: Decoder,
    precision: Callable[[str], Stored],
    slots: int,
    *,
    kv_element_bytes: int,
    kv_scale_bytes: int = 0,
    layers: tuple[int, int] | None = None,
) -> StepCost:
    """The decode step that finds `slots` KV slots in use, over layers [first, last) or all.

    precision: of each matrix of the range, by name. kv_scale_bytes: beside each key and each value of a head. A tied
    head is one matrix: streamed whole as the head, and one row more of it as the embedding. An untied embedding is
    streamed one row. The new token's own key and value are written, not read back. Raises ValueError for a negative or
    wrong number.
    """
    first, last = layers or (0, model.layers)
    if slots < 0 or kv_element_bytes < 1 or kv_scale_bytes < 0 or not 0 <= first < last <= model.layers:
        got = f"KV element bytes {kv_element_bytes}, KV scale bytes {kv_scale_bytes}, layers [{first}, {last})"
        raise ValueError(f"slots {slots}, {got}")
    shapes = dict(model.matrices(first, last))
    vectors = dict(model.vectors(first, last))
    head = "embedding" if model.tied_head else "head"
    slot_bytes = kv_slot_bytes(model, kv_element_bytes, (0, 1), kv_scale_bytes)
    ops: list[OpCost] = []
    if first == 0:
        ops.append(OpCost("embedding", precision("embedding").bytes_for(1, shapes["embedding"][1])))
    for layer in range(first, last):
        at = f"layers.{layer}."
        ops += [_product(name, shape, precision) for name, shape in shapes.items() if name.startswith(at)]
        ops.append(_attention(model, layer, slots, slot_bytes))
        ops.append(_vectors(f"{at}vectors", [size for name, size in vectors.items() if name.startswith(at)]))
    if last == model.layers:
        ops.append(_vectors("norm", [vectors["norm"]]))
        product = _product(head, shapes[head], precision)
        ops.append(OpCost("head", product.weight_bytes, operations=product.operations))
    held = sum(precision(name).bytes_for(*shape) for name, shape in shapes.items())
    return StepCost(tuple(ops), held + _VECTOR_BYTES * sum(vectors.values()))


def kv_slot_bytes(
    model: Decoder, element_bytes: int, layers: tuple[int, int] | None = None, scale_bytes: int = 0
) -> int:
    """Bytes of one KV slot, keys and values of layers [first, last) or all, each with a scale a head if it has one."""
    first, last = layers or (0, model.layers)
    return (last - first) * 2 * model.kv_heads * (model.head_dim * element_bytes + scale_bytes)


def _product(name: str, shape: tuple[int, int], precision: Callable[[str], Stored]) -> OpCost:
    rows, columns = shape
    return OpCost(name, precision(name).bytes_for(rows, columns), operations=rows * columns)


def _attention(model: Decoder, layer: int, slots: int, slot_bytes: int) -> OpCost:
    window = model.windows[layer]
    earlier = min(slots, window - 1) if window else slots  # a window counts the new token too
    multiplied = 2 * model.heads * model.head_dim * (earlier + 1)  # scores, and the sum of values
    return OpCost(f"layers.{layer}.attention", 0, earlier * slot_bytes, slot_bytes, multiplied)


def _vectors(name: str, sizes: Sequence[int]) -> OpCost:
    return OpCost(name, _VECTOR_BYTES * sum(sizes), operations=sum(sizes))
