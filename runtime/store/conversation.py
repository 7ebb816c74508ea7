"""Conversation: what a journal's entries add up to. Which tokens the slots hold, what was said, where the turn stands.

Pure: it is fed entries, and can be written down and read back as a checkpoint at any of them.
"""

from __future__ import annotations

import hashlib
from array import array
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgemem.runtime.store.entries import SLOTS, Entry, Keep, Tokens, TurnBegin, TurnEnd
from edgemem.runtime.store.payload import Message, PayloadReader, flag_bytes, messages_bytes, text_size

# One held slot. score: surprisal, nan where unknown. turn: 1 for the conversation's first, 0 before it. place: which
# of all the tokens of the conversation it is. pinned: 0 or 1.
HELD = np.dtype([("id", "<i4"), ("role", "u1"), ("score", "<f4"), ("turn", "<u4"), ("place", "<u8"), ("pinned", "u1")])
MESSAGES_BYTES = 1 << 20
_WAITING = 256
_MOST_TOKENS, _MOST_TURNS = 1 << 62, 1 << 31


@dataclass(frozen=True)
class Unfinished:
    """A turn that had begun and not ended. messages and whole: as TurnBegin has them. generated: its answer so far."""

    messages: tuple[Message, ...]
    whole: bool
    generated: tuple[int, ...]


class Conversation:
    """tokens: how many there ever were. turns: how many began. messages: the last ones, up to 1 MiB of text, and
    messages_before: how many came before those. unfinished: the turn that is under way, if one is."""

    def __init__(self, vocabulary: int) -> None:
        self.tokens = self.turns = self.messages_before = 0
        self.messages: list[dict[str, str]] = []
        self._text_bytes = 0  # of the messages
        self._vocabulary = vocabulary
        self._held = np.empty(0, HELD)
        self._waiting: list[tuple[Tokens, int, int]] = []  # with turn and place; they come behind `_held`
        self._length = 0
        self._begun: TurnBegin | None = None
        self._generated = array("i")  # a turn may run for days: four bytes a token

    @property
    def length(self) -> int:
        """How many slots are in use."""
        return self._length

    @property
    def held(self) -> NDArray[np.void]:
        """(length,) HELD: the slots' tokens."""
        self._settle()
        return self._held

    @property
    def unfinished(self) -> Unfinished | None:
        if self._begun is None:
            return None
        return Unfinished(self._begun.messages, self._begun.whole, tuple(self._generated))

    def apply(self, entry: Entry) -> None:
        """Take the next entry. Raises ValueError, and nothing has changed, if it cannot come here."""
        if isinstance(entry, Tokens):
            self._add(entry)
        elif isinstance(entry, Keep):
            self._keep(entry)
        elif isinstance(entry, TurnBegin):
            if self._begun is not None:
                raise ValueError("a turn begins inside another")
            self._begun, self._generated = entry, array("i")
            self.turns += 1
        else:
            self._end_turn(entry)

    def digest(self) -> str:
        """SHA-256 of what the slots hold, in hex: what a snapshot is bound to."""
        return hashlib.sha256(self.held.tobytes()).hexdigest()

    def checkpoint(self) -> bytes:
        """All of it, so that a reader need not know the entries before."""
        counts = np.array([(self.tokens, self.turns, self.messages_before, self.length)], dtype=_COUNTS)
        parts = [
            counts.tobytes(),
            self.held.tobytes(),
            messages_bytes(self.messages),
            flag_bytes(self._begun is not None),
        ]
        if self._begun is not None:
            generated = np.array(self._generated, dtype="<i4")
            parts += [flag_bytes(self._begun.whole), messages_bytes(self._begun.messages), generated.tobytes()]
        return b"".join(parts)

    @classmethod
    def from_checkpoint(cls, payload: bytes | memoryview, vocabulary: int) -> Conversation:
        """checkpoint's inverse. Raises ValueError for anything that it does not write."""
        made, reader = cls(vocabulary), PayloadReader(payload)
        counts = np.frombuffer(reader.take(_COUNTS.itemsize), dtype=_COUNTS)[0].tolist()
        if counts[0] >= _MOST_TOKENS or max(counts[1:]) >= _MOST_TURNS:
            raise ValueError(f"counts of {counts}")
        made.tokens, made.turns, made.messages_before, made._length = counts
        held = np.frombuffer(reader.take(made._length * HELD.itemsize), dtype=HELD).copy()
        _check_held(held, made.tokens, made.turns, vocabulary)
        made._held, made.messages = held, reader.messages()
        made._text_bytes = sum(map(text_size, made.messages))
        if reader.flag():
            whole = reader.flag()
            made._begun = TurnBegin(tuple(reader.messages()), whole)
            rest = reader.rest()
            generated = np.frombuffer(rest, dtype="<i4").astype(np.int32)
            _check_ids(generated, vocabulary)
            made._generated.extend(generated.tolist())
        reader.done()
        return made

    def _add(self, entry: Tokens) -> None:
        _check_ids(entry.ids, self._vocabulary)
        count = len(entry.ids)
        if self._length + count > SLOTS:
            raise ValueError(f"{self._length + count} slots, wanted at most {SLOTS}")
        self._waiting.append((entry, self.turns, self.tokens))
        self._length += count
        self.tokens += count
        if len(self._waiting) >= _WAITING:
            self._settle()
        if entry.generated and self._begun is not None:
            self._generated.extend(entry.ids.tolist())

    def _settle(self) -> None:
        """Add what waits to `_held`: in one go, as this costs more than a token may."""
        if not self._waiting:
            return
        added = np.empty(sum(len(entry.ids) for entry, _, _ in self._waiting), dtype=HELD)
        stop = 0
        for entry, turn, place in self._waiting:
            start, stop = stop, stop + len(entry.ids)
            part = added[start:stop]
            part["id"], part["role"], part["turn"], part["pinned"] = entry.ids, entry.role, turn, entry.pinned
            part["score"] = np.nan if entry.scores is None else entry.scores
            part["place"] = np.arange(place, place + stop - start)
        self._held, self._waiting = np.concatenate([self._held, added]), []

    def _keep(self, entry: Keep) -> None:
        ranges = entry.ranges.tolist()
        if ranges and ranges[-1][1] > self._length:
            raise ValueError(f"slot {ranges[-1][1] - 1} is kept, with {self._length} in use")
        held = self.held
        self._held = np.concatenate([held[:0], *(held[start:stop] for start, stop in ranges)])
        self._length = len(self._held)

    def _end_turn(self, entry: TurnEnd) -> None:
        if self._begun is None:
            raise ValueError("a turn ends that had not begun")
        begun, self._begun, self._generated = self._begun, None, array("i")
        if entry.answer is None:
            return
        if begun.whole:
            self.messages, self.messages_before, self._text_bytes = [], 0, 0
        added = begun.said(entry.answer)
        self.messages += added
        self._text_bytes += sum(map(text_size, added))
        dropped = 0
        while self._text_bytes > MESSAGES_BYTES and dropped < len(self.messages) - 1:
            self._text_bytes -= text_size(self.messages[dropped])
            dropped += 1
        self.messages_before += dropped
        del self.messages[:dropped]


_COUNTS = np.dtype([("tokens", "<u8"), ("turns", "<u4"), ("before", "<u4"), ("length", "<u4")])


def _check_ids(ids: NDArray[np.int32], vocabulary: int) -> None:
    if ids.size and ids.astype(np.uint32).max() >= vocabulary:  # a negative one is large, then
        raise ValueError(f"token ids from {ids.min()} to {ids.max()}, wanted 0 to {vocabulary - 1}")


def _check_held(held: NDArray[np.void], tokens: int, turns: int, vocabulary: int) -> None:
    if len(held) > SLOTS:
        raise ValueError(f"{len(held)} slots, wanted at most {SLOTS}")
    if not len(held):
        return
    _check_ids(held["id"], vocabulary)
    rising = bool(np.all(np.diff(held["place"].astype(np.int64)) > 0))
    if not rising or int(held["place"].max()) >= tokens or int(held["turn"].max()) > turns:
        raise ValueError("slots that hold tokens in an impossible order")
    if int(held["role"].max()) > 4 or int(held["pinned"].max()) > 1 or np.isinf(held["score"]).any():
        raise ValueError("slots with an impossible role, pin or score")
