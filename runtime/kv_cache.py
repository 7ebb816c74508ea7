"""HostCache: keys and values of an engine in CPU memory, allocated once, and what may be done to them between steps.

It moves slots and copies them out and in; it does not count how many are in use and computes no attention.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from edgemem.kernels.rotary import move_keys
from edgemem.runtime.engine import KVState
from edgemem.runtime.engine_inputs import checked_slots
from edgemem.runtime.errors import PackageError
from edgemem.runtime.model import ModelSpec

KV_ELEMENT_BYTES = 4  # keys and values are float32; other engines keep their own: see kv_element_bytes
_HUGE_PAGE = 2 << 20


class HostCache:
    """float32 (layers, 2, kv_heads, capacity, head_dim) over layers [first, last): keys at 0, values at 1.

    Memory is taken from the system as slots are first written, at most its full size.
    """

    def __init__(self, model: ModelSpec, layers: tuple[int, int], capacity: int) -> None:
        self.capacity = capacity
        self._frequencies = [model.ropes[rope].inverse_frequencies for rope in model.layer_ropes[slice(*layers)]]
        shape = (len(self._frequencies), 2, model.kv_heads, capacity, model.head_dim)
        self.buffer = aligned_zeros(shape)

    def move(self, slots: NDArray[np.int64], length: int) -> None:
        """Gather `slots` of the `length` in use, strictly rising, into slots 0..m-1, keys rotated to their new place.

        Raises SettingsError for anything else. Slots that stay where they are are not touched.
        """
        slots = checked_slots(slots, length)
        moves = np.arange(len(slots)) - slots
        staying = int(np.count_nonzero(moves == 0))  # rising slots: those that stay come first
        source, target = slots[staying:], slice(staying, len(slots))
        if not source.size:
            return
        for frequencies, (keys, values) in zip(self._frequencies, self.buffer, strict=True):
            keys[:, target] = move_keys(keys[:, source], moves[target], frequencies)
            values[:, target] = values[:, source]

    def save(self, length: int, logits: NDArray[np.float32] | None) -> KVState:
        """A copy of the first `length` slots, and of the logits."""
        used = self.buffer[:, :, :, :length]
        return KVState(used[:, 0].copy(), used[:, 1].copy(), None if logits is None else logits.copy())

    def load(self, state: KVState) -> None:
        """Overwrite the first state.length slots. Raises PackageError if shape or type do not fit."""
        layers, _, kv_heads, _, head_dim = self.buffer.shape
        for name, values in (("keys", state.keys), ("values", state.values)):
            fits = values.dtype == np.float32 and values.shape == (layers, kv_heads, state.length, head_dim)
            if not fits or state.length > self.capacity:
                raise PackageError(
                    "the saved memory is not of this engine",
                    where=name,
                    got=f"{values.dtype}{values.shape}",
                    wanted=f"float32 ({layers}, {kv_heads}, at most {self.capacity}, {head_dim})",
                    do="restore it in an engine of the same model and layers, with slots enough",
                )
        self.buffer[:, 0, :, : state.length] = state.keys
        self.buffer[:, 1, :, : state.length] = state.values


def aligned_zeros(shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Float32 zeros that begin at a 2 MiB boundary."""
    size = math.prod(shape) * 4
    memory = np.zeros(size + _HUGE_PAGE, dtype=np.uint8)
    start = -memory.ctypes.data % _HUGE_PAGE
    return memory[start : start + size].view(np.float32).reshape(shape)
