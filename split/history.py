"""History: what was done to the layers behind the split, so that another back stage can be brought to the same state.

Operations again, with the same rows together, give the same cache bit for bit. Beyond `bound_bytes` only the slots held
are remembered: a stage that begins from there is approximate, as one whose other slots had never been.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgemem.split.coder import Coder
from edgemem.split.frames import CHUNK_TOKENS

_ENTRY_BYTES = 512  # about what an entry takes besides its arrays


@dataclass(frozen=True, eq=False)
class Extended:
    """tokens: those whose surprisal was asked for: a stage may compute in other portions then. ids: as Ask has them."""

    payload: bytes
    count: int
    tokens: NDArray[np.int32] | None = None
    ids: NDArray[np.int32] | None = None


@dataclass(frozen=True, eq=False)
class Kept:
    slots: NDArray[np.int64]


@dataclass(frozen=True)
class Truncated:
    length: int


Operation = Extended | Kept | Truncated


class Place(NamedTuple):
    """How far in a history a back stage is. epoch: how often it had been compacted. number: of the last operation."""

    epoch: int
    number: int


class Work(NamedTuple):
    """What a stage that begins anew has to do: operations, and the rows in them."""

    operations: int
    rows: int


BEGINNING = Place(0, 0)


class _Entry(NamedTuple):
    number: int
    operation: Operation
    length: int  # slots in use after it


class History:
    """length: slots in use after all of it. bytes: what it takes, about."""

    def __init__(self, coder: Coder, *, bound_bytes: int = 64 << 20) -> None:
        """coder: that of the payloads."""
        self._coder, self._bound_bytes = coder, bound_bytes
        self._entries: list[_Entry] = []
        self._last = 0  # the highest number ever given
        self._epoch, self._compacted_at, self._compacted_bytes = 0, 0, 0
        self.length = self.bytes = 0
        self._rows = 0  # in all entries

    @property
    def place(self) -> Place:
        """That of a stage which has done all."""
        return Place(self._epoch, self._entries[-1].number if self._entries else 0)

    @property
    def work(self) -> Work:
        return Work(len(self._entries), self._rows)

    def extend(
        self,
        payload: bytes,
        count: int,
        tokens: NDArray[np.int32] | None = None,
        ids: NDArray[np.int32] | None = None,
    ) -> None:
        self._add(Extended(payload, count, tokens, ids), self.length + count)

    def keep(self, slots: NDArray[np.int64]) -> None:
        """slots: strictly rising, in use."""
        if len(slots) < self.length:
            self._add(Kept(slots.copy()), len(slots))

    def truncate(self, length: int) -> None:
        """What lies wholly beyond `length` is forgotten, unless something else was kept since."""
        while self._entries and (length == 0 or self._last_is_beyond(length)):
            self._forget(self._entries.pop().operation)
        self.length = self._length_after(len(self._entries))
        if self.length > length:
            self._add(Truncated(length), length)

    def next_after(self, place: Place, length: int) -> tuple[Operation, Place] | None:
        """What a stage at `place`, with `length` slots, is to do next, and where it is then; None if it has done all.

        That may be to forget what it did, where that was cut off.
        """
        if place.number and place.epoch != self._epoch:
            if place != Place(self._epoch - 1, self._compacted_at):
                return Truncated(0), Place(self._epoch, 0)
            place = Place(self._epoch, place.number)
        done = bisect_right(self._entries, place.number, key=lambda entry: entry.number)
        common = self._length_after(done)
        if length > common:
            return Truncated(common), Place(self._epoch, self._entries[done - 1].number if done else 0)
        if done == len(self._entries):
            return None
        entry = self._entries[done]
        return entry.operation, Place(self._epoch, entry.number)

    def trim(self) -> None:
        """Compact what is beyond the bound. A stage that has done all loses nothing by it, others begin anew."""
        if self.bytes <= max(self._bound_bytes, 2 * self._compacted_bytes):
            return
        self._compacted_at = self.place.number
        parts = list(self._held_parts())
        known = all(operation.ids is not None for operation, _ in parts)
        ids = list(_chunks(operation.ids[rows] for operation, rows in parts if operation.ids is not None))
        chunks = list(_chunks(self._coder.decode(part.payload, part.count)[rows] for part, rows in parts))
        self._entries, length, first = [], 0, self._compacted_at - len(chunks) + 1
        for place, rows in enumerate(chunks):
            length += len(rows)
            extended = Extended(self._coder.encode(rows), len(rows), None, ids[place] if known else None)
            self._entries.append(_Entry(first + place, extended, length))
        self._epoch += 1
        self._rows = length
        self.bytes = self._compacted_bytes = sum(_size(entry.operation) for entry in self._entries)

    def _add(self, operation: Operation, length: int) -> None:
        self._last += 1
        self._entries.append(_Entry(self._last, operation, length))
        self.bytes += _size(operation)
        self._rows += operation.count if isinstance(operation, Extended) else 0
        self.length = length

    def _forget(self, operation: Operation) -> None:
        self.bytes -= _size(operation)
        self._rows -= operation.count if isinstance(operation, Extended) else 0

    def _length_after(self, count: int) -> int:
        """Slots in use after the first `count` entries."""
        return self._entries[count - 1].length if count else 0

    def _last_is_beyond(self, length: int) -> bool:
        """Whether nothing of what the last entry did is left in the first `length` slots."""
        entry = self._entries[-1]
        if isinstance(entry.operation, Extended):
            return self._length_after(len(self._entries) - 1) >= length
        return isinstance(entry.operation, Truncated) and entry.length > length

    def _held_parts(self) -> Iterator[tuple[Extended, NDArray[np.int64]]]:
        """Each Extended of which rows are in use still, and which those are, in the order of the slots."""
        held = np.empty((0, 2), dtype=np.int64)  # of each slot: the entry, and the row in it
        for index, (_, operation, length) in enumerate(self._entries):
            if isinstance(operation, Extended):
                rows = np.arange(operation.count)
                held = np.concatenate([held, np.stack([np.full_like(rows, index), rows], axis=1)])
            elif isinstance(operation, Kept):
                held = held[operation.slots]
            else:
                held = held[:length]
        for index in np.unique(held[:, 0]):  # slots keep their order, so entries do
            operation = self._entries[index].operation
            if isinstance(operation, Extended):
                yield operation, held[held[:, 0] == index, 1]


def _chunks(parts: Iterator[NDArray[Any]]) -> Iterator[NDArray[Any]]:
    """The same rows, CHUNK_TOKENS at a time."""
    waiting: list[NDArray[Any]] = []
    count = 0
    for part in parts:
        waiting.append(part)
        count += len(part)
        if count >= CHUNK_TOKENS:
            rows = np.concatenate(waiting)
            whole = count - count % CHUNK_TOKENS
            for at in range(0, whole, CHUNK_TOKENS):
                yield rows[at : at + CHUNK_TOKENS]
            waiting, count = [rows[whole:]], count - whole
    if count:
        yield np.concatenate(waiting)


def _size(operation: Operation) -> int:
    if isinstance(operation, Extended):
        known = sum(0 if part is None else part.nbytes for part in (operation.tokens, operation.ids))
        return _ENTRY_BYTES + len(operation.payload) + known
    return _ENTRY_BYTES + (operation.slots.nbytes if isinstance(operation, Kept) else 0)
