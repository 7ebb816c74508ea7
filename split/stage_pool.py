"""StagePool: one set of back layers in memory, and many conversations that take turns in it.

Whoever uses it does so from one thread. It knows slots and bytes, not sessions or who may have one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from edgemem.runtime.budget import Budget, native_budget
from edgemem.runtime.engine_inputs import layer_range
from edgemem.runtime.machine import available_memory, usable_cores
from edgemem.runtime.native_engine import NativeEngine
from edgemem.runtime.package import Package

if TYPE_CHECKING:
    from edgemem.kernels._native import Conversation


class StagePool:
    """Layers [split, L) of a package by the native engine, which it closes."""

    def __init__(self, package: Package, split: int, *, capacity: int, threads: int | None = None) -> None:
        """capacity: slots of the largest conversation. Raises what NativeEngine raises."""
        self.model, self.split, self.capacity = package.model, split, capacity
        self.engine = NativeEngine(package, layers=(split, package.model.layers), capacity=capacity, threads=threads)

    def slots_bytes(self, capacity: int) -> int:
        """What a conversation of so many slots takes, of keys, values and logits."""
        model = self.model
        kept = 2 * (model.layers - self.split) * model.kv_heads * model.head_dim * self.engine.kv_element_bytes
        return capacity * kept + 4 * model.vocabulary

    def conversation(self, capacity: int) -> Conversation:
        """An empty one. Raises BudgetError where its memory is not to be had."""
        return self.engine.conversation(capacity)

    @contextmanager
    def taking_up(self, conversation: Conversation) -> Iterator[NativeEngine]:
        """The engine with this conversation in it, until the block ends."""
        self.engine.exchange(conversation)
        try:
            yield self.engine
        finally:
            self.engine.exchange(conversation)

    def close(self) -> None:
        self.engine.close()


def open_pools(
    package: Package, splits: Collection[int], *, capacity: int, threads: int | None = None
) -> dict[int, StagePool]:
    """A pool for each split, with weights of its own. Raises what StagePool raises, BudgetError also where there is too
    little memory for all of them together; then none is open."""
    lines: list[tuple[str, int]] = []
    for split in splits:
        layers = layer_range((split, package.model.layers), package)
        budget = native_budget(package, capacity, layers, threads or usable_cores())
        lines += [(f"{name}, from {split}", size) for name, size in budget.lines]
    Budget(tuple(lines)).check(available_memory())
    with ExitStack() as opened:
        pools = {}
        for split in splits:
            pools[split] = StagePool(package, split, capacity=capacity, threads=threads)
            opened.callback(pools[split].close)
        opened.pop_all()
    return pools
