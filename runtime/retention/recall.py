"""RecallTier: evicted slots in blocks, found again by representative keys; and how a block enters the cache anew.

After InfLLM (Xiao et al., 2024): blocks, representatives, keys turned back to position 0, inner products. How they are
matched is ours, as engines give neither queries nor attention: see match. Arrays in, arrays out: storage is the
caller's array, in host memory or mapped from a file, and nothing in it is read when a tier opens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from edgemem.kernels.rotary import move_keys
from edgemem.runtime.engine import KVState
from edgemem.runtime.errors import BudgetError, SettingsError
from edgemem.runtime.limits import LIMITS
from edgemem.runtime.model import ModelSpec
from edgemem.runtime.retention.policies import highest
from edgemem.runtime.retention.slots import SLOT, Rows

Array = NDArray[np.generic]


@dataclass(frozen=True)
class RecallSettings:
    """How evicted slots are put away. Raises SettingsError for a value out of range.

    budget_bytes: of keys, values, representatives and rows together. block: slots, put away and brought back as one.
    representatives: slots of a block, of highest score, whose keys stand for it. top: blocks brought back at once.
    InfLLM has blocks of 128 with 4 representatives and brings back 16, beside a local memory of 4096 slots.
    """

    budget_bytes: int = 64 << 20
    block: int = 32
    representatives: int = 6
    top: int = 4

    def __post_init__(self) -> None:
        limits = {"budget_bytes": 1 << 50, "block": LIMITS.context, "representatives": self.block, "top": 1 << 20}
        for name, limit in limits.items():
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= limit:
                raise SettingsError(f"recall's {name} is out of range", got=repr(value), wanted=f"1 to {limit}")


class Recalled(NamedTuple):
    """Slots taken back: rows of SLOT (n,); keys, rotated to position 0, and values (layers, kv_heads, n, head_dim)."""

    rows: Rows
    keys: Array
    values: Array


def storage_shape(settings: RecallSettings, model: ModelSpec, dtype: DTypeLike) -> tuple[int, ...]:
    """(blocks, 2, layers, kv_heads, block, head_dim), as many blocks as the budget holds: keys at 0, values at 1.

    Raises BudgetError if it holds fewer than two: one is always being filled.
    """
    head_values = model.kv_heads * model.head_dim
    slot_bytes = 2 * model.layers * head_values * np.dtype(dtype).itemsize + SLOT.itemsize
    block_bytes = settings.block * slot_bytes + settings.representatives * len(_match_layers(model)) * head_values * 4
    blocks = settings.budget_bytes // block_bytes
    if blocks < 2:
        wanted = f"at least {2 * block_bytes} bytes, two blocks"
        raise BudgetError("recall's budget holds too few blocks", got=f"{settings.budget_bytes} bytes", wanted=wanted)
    return blocks, 2, model.layers, model.kv_heads, settings.block, model.head_dim


class RecallTier:
    """Blocks of evicted slots, at most what `storage` holds; beyond that the block put away longest ago is dropped.

    A block is found once it is full. Taken back, it leaves: if its slots are evicted again they are put away anew, so
    that what is used stays (LRU).
    """

    def __init__(self, settings: RecallSettings, model: ModelSpec, storage: Array) -> None:
        """storage: of storage_shape(settings, model, storage.dtype), float16 or float32; its contents are overwritten.

        Raises SettingsError for another shape.
        """
        shape = storage_shape(settings, model, storage.dtype)
        if storage.shape != shape:
            raise SettingsError("storage does not fit the recall settings", got=storage.shape, wanted=str(shape))
        self.settings = settings
        self._model, self._storage = model, storage
        self._rows = np.zeros((len(storage), settings.block), dtype=SLOT)
        features = len(_match_layers(model)) * model.kv_heads * model.head_dim
        self._representatives = np.zeros((len(storage), settings.representatives, features), dtype=np.float32)
        self._full: list[int] = []  # blocks in use, the one put away longest ago first
        self._free = list(range(len(storage)))
        self._open, self._filled = self._free.pop(), 0  # the block that is being filled

    def __len__(self) -> int:
        """Full blocks."""
        return len(self._full)

    def add(self, rows: Rows, keys: Array, values: Array, slots: NDArray[np.int64]) -> None:
        """Put away evicted slots: (n,) rows of SLOT, and (layers, kv_heads, n, head_dim) keys, rotated to (n,) slots,
        and values. Raises SettingsError if the shapes do not fit."""
        _check(self._model, keys, values)
        if rows.dtype != SLOT or not rows.shape == slots.shape == keys.shape[2:3]:
            raise SettingsError("rows, keys and slots do not fit", got=f"{rows.shape}, {keys.shape}, {slots.shape}")
        plain = _moved(keys, -slots, self._model.layer_ropes, self._model)
        start, block = 0, self.settings.block
        while start < len(rows):
            count = min(block - self._filled, len(rows) - start)
            source, target = slice(start, start + count), slice(self._filled, self._filled + count)
            self._rows[self._open, target] = rows[source]
            self._storage[self._open, 0, :, :, target] = plain[:, :, source]
            self._storage[self._open, 1, :, :, target] = values[:, :, source]
            self._filled += count
            start += count
            if self._filled == block:
                self._finish()

    def match(self, query: NDArray[np.float32], top: int | None = None) -> list[int]:
        """The best blocks for a query, the match_vectors (n, features) of a turn's tokens: `top`, or settings.top, or
        fewer; best first, of equal ones the newer.

        A block's score is the highest inner product of any of its representatives with any token of the query, both
        less the mean of all representatives and at unit length. Ours: InfLLM multiplies mean query and mean key. With
        keys in place of queries that finds nothing, as what all keys have in common outweighs what sets them apart.
        """
        if not self._full:
            return []
        if query.ndim != 2 or query.shape[1] != self._representatives.shape[2]:
            wanted = f"(n, {self._representatives.shape[2]})"
            raise SettingsError("a query of another shape", got=query.shape, wanted=wanted)
        if not len(query):
            return []
        candidates = self._representatives[self._full]
        common = candidates.mean(axis=(0, 1))
        likeness = _unit(candidates - common) @ _unit(query - common).T  # (blocks, representatives, n)
        newest_first = likeness.max(axis=(1, 2))[::-1]
        best = np.argsort(-newest_first, kind="stable")[: self.settings.top if top is None else top]
        return [self._full[len(self._full) - 1 - int(place)] for place in best]

    def take(self, blocks: list[int]) -> Recalled:
        """Remove these blocks and give their slots, in the order of the conversation. SettingsError for others."""
        recalled = self.copy(blocks)
        for block in blocks:
            self._full.remove(block)
            self._free.append(block)
        return recalled

    def copy(self, blocks: list[int]) -> Recalled:
        """What `take` gives; they stay."""
        if len(set(blocks)) != len(blocks) or not set(blocks) <= set(self._full):
            raise SettingsError("no such blocks to recall", got=blocks, wanted="blocks that match gave, once each")
        rows = self._rows[blocks].reshape(-1)
        order = np.argsort(rows["position"], kind="stable")
        both = np.moveaxis(self._storage[blocks], 0, 3)  # (2, layers, kv_heads, blocks, block, head_dim)
        keys, values = both.reshape(*both.shape[:3], len(rows), both.shape[5])[:, :, :, order]
        return Recalled(rows[order], keys, values)

    def _finish(self) -> None:
        """The open block is full: it gets its representatives. Open another, dropping the oldest if none is free."""
        scores = self._rows[self._open]["score"].astype(np.float64)
        chosen = np.flatnonzero(highest(scores, self.settings.representatives))
        keys = self._storage[self._open, 0][:, :, chosen]
        self._representatives[self._open] = match_vectors(keys, np.zeros_like(chosen), self._model)
        self._full.append(self._open)
        self._open, self._filled = (self._free.pop() if self._free else self._full.pop(0)), 0


def match_vectors(keys: Array, slots: NDArray[np.int64], model: ModelSpec) -> NDArray[np.float32]:
    """What tokens are matched by, (n, features): of keys (layers, kv_heads, n, head_dim), rotated to (n,) slots, those
    of some layers, turned back to position 0.

    For a query give the keys of a turn's own words: those of the chat template are in every turn.
    """
    chosen = _match_layers(model)
    plain = _moved(keys[chosen], -slots, [model.layer_ropes[layer] for layer in chosen], model)
    return np.moveaxis(plain, 2, 0).reshape(len(slots), len(chosen) * model.kv_heads * model.head_dim)


def splice(state: KVState, at: int, recalled: Recalled, model: ModelSpec) -> KVState:
    """A new state with the recalled slots before slot `at`, e.g. behind the sinks; what was there moves up.

    Keys are rotated to their new slots. The logits stay those after the last token, computed without what came in.
    Raises SettingsError if the shapes do not fit.
    """
    _check(model, recalled.keys, recalled.values)
    _check(model, state.keys, state.values)
    if not 0 <= at <= state.length:
        raise SettingsError("no such place to recall to", got=at, wanted=f"0 to {state.length}")
    count = recalled.keys.shape[2]
    entering = _moved(recalled.keys, np.arange(at, at + count), model.layer_ropes, model)
    behind = _moved(state.keys[:, :, at:], np.full(state.length - at, count), model.layer_ropes, model)
    dtype = state.keys.dtype
    keys = np.concatenate([state.keys[:, :, :at], entering.astype(dtype), behind.astype(dtype)], axis=2)
    values = np.concatenate([state.values[:, :, :at], recalled.values.astype(dtype), state.values[:, :, at:]], axis=2)
    return KVState(keys, values, state.logits)


def _match_layers(model: ModelSpec) -> list[int]:
    """At most eight layers, evenly spread: they find as well as all, and representatives stay small beside a block."""
    count = min(8, model.layers)
    return [(2 * place + 1) * model.layers // (2 * count) for place in range(count)]


def _moved(keys: Array, moves: NDArray[np.int64], layer_ropes: Sequence[int], model: ModelSpec) -> NDArray[np.float32]:
    """Keys (layers, kv_heads, n, head_dim) moved by (n,) positions; float32, a new array."""
    frequencies = [model.ropes[rope].inverse_frequencies for rope in layer_ropes]
    return np.stack([move_keys(layer.astype(np.float32), moves, f) for layer, f in zip(keys, frequencies, strict=True)])


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, np.finfo(np.float32).tiny), dtype=np.float32)


def _check(model: ModelSpec, keys: Array, values: Array) -> None:
    wanted = (model.layers, model.kv_heads, keys.shape[2] if keys.ndim == 4 else 0, model.head_dim)
    if not keys.shape == values.shape == wanted:
        raise SettingsError(
            "keys and values are not of this model", got=f"{keys.shape} and {values.shape}", wanted=str(wanted)
        )
