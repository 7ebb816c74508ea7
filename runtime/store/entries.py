"""Entries: what happens in a conversation, one value for each kind of event, and their bytes.

Played in order through an engine they give its slots again. What they add up to is conversation.py's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from edgemem.runtime.limits import LIMITS
from edgemem.runtime.store.payload import (
    Message,
    PayloadReader,
    check_messages,
    flag_bytes,
    messages_bytes,
    text_bytes,
)

SLOTS = 1 << 20  # more than any cache has; bounds what a hostile journal can make a reader hold

NOTE = "note"  # the role of a message that asks nothing: a turn that ends with one has no answer

_GENERATED, _SCORED, _PINNED = 1, 2, 4


class Role(IntEnum):
    """Who wrote a token. TEXT: a prompt that is no conversation."""

    TEXT = 0
    SYSTEM = 1
    USER = 2
    ASSISTANT = 3
    TOOL = 4


@dataclass(frozen=True, eq=False)
class Tokens:
    """Tokens that went into the next slots, in order.

    ids: (n,) int32. scores: (n,) float32 surprisal, nan where unknown, or None where none was computed. generated: by
    the model, one step each; else read, all in one `extend`. pinned: they are to stay in their slots. Raises
    ValueError for bad values.
    """

    ids: NDArray[np.int32]
    role: Role
    generated: bool
    scores: NDArray[np.float32] | None = None
    pinned: bool = False

    def __post_init__(self) -> None:
        ids, scores = self.ids, self.scores
        if ids.ndim != 1 or ids.dtype != np.int32 or not 0 < ids.size <= SLOTS:
            raise ValueError(f"token ids of {ids.dtype}{ids.shape}, wanted int32 (1 to {SLOTS},)")
        if ids.view(np.uint32).max() >= LIMITS.vocabulary:  # a negative one is large, then
            raise ValueError(f"token ids from {ids.min()} to {ids.max()}, wanted 0 to {LIMITS.vocabulary - 1}")
        if scores is not None:
            if scores.dtype != np.float32 or scores.shape != ids.shape:
                raise ValueError(f"scores of {scores.dtype}{scores.shape}, wanted float32 {ids.shape}")
            if np.isinf(scores).any():
                raise ValueError("an infinite score")


@dataclass(frozen=True, eq=False)
class Keep:
    """Of the slots in use, only these stayed, in order. ranges: (n, 2) uint32 of [start, stop), rising, apart.

    Raises ValueError for bad values; whether so many slots were in use is not known here.
    """

    ranges: NDArray[np.uint32]

    def __post_init__(self) -> None:
        ranges = self.ranges
        if ranges.dtype != np.uint32 or ranges.ndim != 2 or ranges.shape[1] != 2 or len(ranges) > SLOTS:
            raise ValueError(f"ranges of {ranges.dtype}{ranges.shape}, wanted uint32 (at most {SLOTS}, 2)")
        starts, stops = ranges[:, 0], ranges[:, 1]
        if np.any(starts >= stops) or np.any(stops[:-1] >= starts[1:]) or np.any(stops > SLOTS):
            raise ValueError("ranges that do not rise, overlap or touch")

    @classmethod
    def of_slots(cls, slots: NDArray[np.int64]) -> Keep:
        """From the numbers of the slots, strictly rising; ValueError for others."""
        if slots.ndim != 1 or not np.issubdtype(slots.dtype, np.integer):
            raise ValueError(f"slots of {slots.dtype}{slots.shape}, wanted (n,) int64")
        if slots.size and (slots[0] < 0 or slots[-1] >= SLOTS or np.any(np.diff(slots) <= 0)):
            raise ValueError(f"slots that do not rise from 0 to {SLOTS - 1}")
        gaps = np.flatnonzero(np.diff(slots) != 1)
        starts = slots[np.concatenate(([0], gaps + 1))] if slots.size else slots
        stops = slots[np.concatenate((gaps, [slots.size - 1]))] + 1 if slots.size else slots
        return cls(np.stack((starts, stops), axis=1).astype(np.uint32))

    @property
    def slots(self) -> NDArray[np.int64]:
        parts = [np.arange(start, stop, dtype=np.int64) for start, stop in self.ranges.tolist()]
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)


@dataclass(frozen=True)
class TurnBegin:
    """A turn begins. messages: what it asks, none where its prompt is no conversation; `whole`: they are the whole
    conversation, in place of the one so far. They count as said once the turn has an answer."""

    messages: tuple[Message, ...]
    whole: bool = False

    def __post_init__(self) -> None:
        check_messages(self.messages)

    def said(self, answer: str) -> list[dict[str, str]]:
        """What the conversation has gained when the turn ends with this answer; a note's is empty."""
        said = [*map(dict, self.messages)]
        if said and said[-1]["role"] == NOTE:
            return said
        return [*said, {"role": "assistant", "content": answer}]


@dataclass(frozen=True)
class TurnEnd:
    """The turn ends. answer: the assistant's text, "" for a note; None where there is none, and then its messages are
    forgotten."""

    answer: str | None

    def __post_init__(self) -> None:
        check_messages([{"role": "assistant", "content": "" if self.answer is None else self.answer}])


Entry = Tokens | Keep | TurnBegin | TurnEnd


def merged(entries: Sequence[Entry]) -> Iterator[Entry]:
    """The same entries, with generated tokens that follow each other as one."""
    run: list[Tokens] = []
    for entry in entries:
        if run and not (isinstance(entry, Tokens) and _joins(run[-1], entry)):
            yield _joined(run)
            run = []
        if isinstance(entry, Tokens) and entry.generated:
            run.append(entry)
        else:
            yield entry
    if run:
        yield _joined(run)


def encode(entry: Entry) -> bytes:
    if isinstance(entry, Tokens):
        return packed(_TOKENS, _tokens_bytes(entry))
    if isinstance(entry, Keep):
        return packed(_KEEP, entry.ranges.astype("<u4").tobytes())
    if isinstance(entry, TurnBegin):
        return packed(_TURN_BEGIN, flag_bytes(entry.whole) + messages_bytes(entry.messages))
    answer = b"" if entry.answer is None else text_bytes(entry.answer)
    return packed(_TURN_END, flag_bytes(entry.answer is not None) + answer)


def decode(payload: bytes | memoryview) -> Iterator[Entry]:
    """The entries of a frame's payload. Raises ValueError for anything that encode does not write."""
    for kind, body in unpacked(payload):
        if kind not in _READERS:
            raise ValueError(f"an entry of kind {kind}")
        reader = PayloadReader(body)
        yield _READERS[kind](reader)
        reader.done()


def packed(kind: int, body: bytes) -> bytes:
    """An entry's kind and length before its body."""
    return kind.to_bytes(1, "little") + len(body).to_bytes(4, "little") + body


def unpacked(payload: bytes | memoryview) -> Iterator[tuple[int, memoryview]]:
    """Kind and body of each entry of a payload, one at least."""
    reader = PayloadReader(payload)
    while True:
        kind, length = reader.numbers("<BI")
        yield kind, reader.take(length)
        if not reader.left:
            return


def _tokens_bytes(entry: Tokens) -> bytes:
    flags = _GENERATED * entry.generated | _SCORED * (entry.scores is not None) | _PINNED * entry.pinned
    scores = b"" if entry.scores is None else entry.scores.astype("<f4").tobytes()
    return bytes((entry.role, flags)) + entry.ids.astype("<i4").tobytes() + scores


def _read_tokens(reader: PayloadReader) -> Tokens:
    role, flags = reader.numbers("<BB")
    body = reader.rest()
    parts = 2 if flags & _SCORED else 1
    if flags > _GENERATED | _SCORED | _PINNED or len(body) % (4 * parts):
        raise ValueError(f"{len(body)} bytes of tokens with flags {flags}")
    cut = len(body) // parts
    ids = np.frombuffer(body[:cut], dtype="<i4").astype(np.int32)
    scores = np.frombuffer(body[cut:], dtype="<f4").astype(np.float32) if parts == 2 else None
    return Tokens(ids, Role(role), bool(flags & _GENERATED), scores, bool(flags & _PINNED))


def _read_keep(reader: PayloadReader) -> Keep:
    body = reader.rest()
    if len(body) % 8:
        raise ValueError(f"{len(body)} bytes of ranges")
    return Keep(np.frombuffer(body, dtype="<u4").astype(np.uint32).reshape(-1, 2))


def _read_turn_begin(reader: PayloadReader) -> TurnBegin:
    whole = reader.flag()
    return TurnBegin(tuple(reader.messages()), whole)


def _read_turn_end(reader: PayloadReader) -> TurnEnd:
    return TurnEnd(reader.text() if reader.flag() else None)


def _joins(left: Tokens, right: Tokens) -> bool:
    alike = (left.role, left.pinned) == (right.role, right.pinned) and (left.scores is None) == (right.scores is None)
    return left.generated and right.generated and alike


def _joined(run: list[Tokens]) -> Tokens:
    if len(run) == 1:
        return run[0]
    scores = [entry.scores for entry in run if entry.scores is not None]
    ids = np.concatenate([entry.ids for entry in run])
    return Tokens(ids, run[0].role, True, np.concatenate(scores) if scores else None, run[0].pinned)


# 1 and 2 open a segment: see segments.py.
_TOKENS, _KEEP, _TURN_BEGIN, _TURN_END = 3, 4, 5, 6
_READERS: dict[int, Callable[[PayloadReader], Entry]] = {
    _TOKENS: _read_tokens,
    _KEEP: _read_keep,
    _TURN_BEGIN: _read_turn_begin,
    _TURN_END: _read_turn_end,
}
