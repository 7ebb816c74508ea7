"""What the two sides of a split say to each other, and how it lies in bytes.

A frame is one byte for the kind, then the fields in order. Every value is checked when a message is made, from the wire
or by us, so that a message that exists is within its limits; whether it fits the session is for others to say.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from edgemem.runtime.errors import ProtocolError, shown
from edgemem.runtime.limits import LIMITS
from edgemem.split.fields import (
    Array,
    Blob,
    Exactly,
    Field,
    FlatJson,
    Maybe,
    Reader,
    Real,
    Settings,
    Text,
    Whole,
    pack_fields,
    take_fields,
)

PROTOCOL = 1
SESSION_BYTES = 16
CHUNK_TOKENS = 128  # states of one Extend
PAYLOAD_BYTES = CHUNK_TOKENS * 16384 * 4 + (64 << 10)
RANGES = 1 << 20
FRAME_BYTES = PAYLOAD_BYTES + 4096  # no frame is longer
TEXT_BYTES = 4000  # of what went wrong


@dataclass(frozen=True, eq=False)
class Hello:
    """The first message: a new session, or one that goes on.

    protocol: PROTOCOL. version: of edgemem. session: 16 random bytes. model: sha256 of the weights, 64 hex digits.
    split: the first layer of the back stage. layers: of the whole model. capacity: slots that are wanted.
    codec: CodecSettings.to_dict().
    """

    protocol: int
    version: str
    session: bytes
    model: str
    split: int
    layers: int
    capacity: int
    codec: Settings

    def __post_init__(self) -> None:
        if len(self.model) != 64 or not set(self.model) <= set("0123456789abcdef"):
            raise ProtocolError("a model's hash is none", got=shown(self.model), wanted="64 hex digits")
        if not self.split < self.layers:
            raise ProtocolError("a split without layers behind it", got=f"{self.split} of {self.layers}")


@dataclass(frozen=True, eq=False)
class Stranger:
    """The Hello of another protocol, of which only the beginning is known."""

    protocol: int
    version: str


@dataclass(frozen=True, eq=False)
class Welcome:
    """op: the last operation that was done, 0 for a new session. length: slots in use. capacity: slots there are.
    chunk: states that one Extend may bring. version: the server's edgemem."""

    op: int
    length: int
    capacity: int
    chunk: int
    version: str


@dataclass(frozen=True, eq=False)
class Refused:
    """In place of Welcome. code: protocol, model, split, codec, capacity, session or busy.
    text: both sides' values, and what to do."""

    code: str
    text: str


@dataclass(frozen=True, eq=False)
class Extend:
    """start: the slots that must be in use before. payload: `count` states, as the codec encoded them. logits: how many
    of the highest are wanted. tokens: (count,) int32 whose surprisal is wanted. Answered follows."""

    op: int
    start: int
    count: int
    payload: bytes
    logits: int = 1
    tokens: NDArray[np.int32] | None = None

    def __post_init__(self) -> None:
        if not self.count:
            raise ProtocolError("an operation without states")
        if self.tokens is not None:
            if len(self.tokens) != self.count:
                raise ProtocolError("tokens that are not those of the states", got=len(self.tokens), wanted=self.count)
            _check_ids(self.tokens)


@dataclass(frozen=True, eq=False)
class Logits:
    """More of the highest logits after the last state. It changes nothing: op is that of the last operation done."""

    op: int
    count: int


@dataclass(frozen=True, eq=False)
class Answered:
    """The op it answers, the slots in use after it, and the fields of an Answer."""

    op: int
    length: int
    ids: NDArray[np.int32]
    values: NDArray[np.float32]
    log_sum: float
    surprisal: NDArray[np.float32] | None = None
    compute_ms: float = 0.0

    def __post_init__(self) -> None:
        _check_ids(self.ids)
        if len(self.ids) != len(self.values) or not (np.diff(self.ids) > 0).all():
            raise ProtocolError("logits that are not one for each rising id")
        if not np.isfinite(self.values).all() or self.compute_ms < 0:
            raise ProtocolError("an answer with numbers that cannot be")
        if self.surprisal is not None and not _is_surprisal(self.surprisal):
            raise ProtocolError("a surprisal that is no number", got=shown(self.surprisal[:4].tolist()))


@dataclass(frozen=True, eq=False)
class Keep:
    """ranges: (n, 2) int32, the slots [start, stop) that stay, rising and apart. Done follows."""

    op: int
    ranges: NDArray[np.int32]

    def __post_init__(self) -> None:
        edges = self.ranges.ravel().astype(np.int64)
        if len(edges) and (edges[0] < 0 or edges[-1] > LIMITS.context or not (np.diff(edges) > 0).all()):
            raise ProtocolError("ranges of slots that are not rising and apart")


@dataclass(frozen=True, eq=False)
class Truncate:
    """length: the slots that stay. Done follows."""

    op: int
    length: int


@dataclass(frozen=True, eq=False)
class Done:
    """length: slots in use after the operation."""

    op: int
    length: int


@dataclass(frozen=True, eq=False)
class Failed:
    """The operation was not done, and the session is as it was before. code: memory, context, numeric, settings, engine
    or failed; or protocol, after which the link is closed."""

    op: int
    code: str
    text: str


@dataclass(frozen=True, eq=False)
class Ping:
    nonce: int


@dataclass(frozen=True, eq=False)
class Pong:
    nonce: int


@dataclass(frozen=True, eq=False)
class Bye:
    """The session is over and may be freed. Done follows, of the last operation and with length 0."""


Opening = Hello | Stranger | Welcome | Refused
Operation = Extend | Logits | Keep | Truncate | Ping | Bye
Reply = Answered | Done | Failed | Pong
Message = Opening | Operation | Reply

_OP = Whole(8, (1 << 63) - 1)
_SLOTS = Whole(4, LIMITS.context)
_WIDTH = Whole(4, LIMITS.vocabulary)
_COUNT = Whole(4, CHUNK_TOKENS)
_LAYER = Whole(2, LIMITS.layers)
_NONCE = Whole(8, (1 << 64) - 1)
_CODE = Text(32)
_TEXT = Text(TEXT_BYTES)
_IDS = Array("<i4", LIMITS.vocabulary)
_VALUES = Array("<f4", LIMITS.vocabulary)
_TOKENS = Maybe(Array("<i4", CHUNK_TOKENS))
_SURPRISAL = Maybe(Array("<f4", CHUNK_TOKENS))
# These two begin the Hello of every protocol, and Refused lies the same way in each.
_PROTOCOL = Whole(2, (1 << 16) - 1)
_VERSION = Text(64)

_HELLO = 1
_LAYOUT: dict[type, tuple[int, tuple[Field, ...]]] = {  # the kind, and the fields in the order of the class
    Hello: (
        _HELLO,
        (_PROTOCOL, _VERSION, Exactly(SESSION_BYTES), Text(64), _LAYER, _LAYER, _SLOTS, FlatJson(4096)),
    ),
    Refused: (2, (_CODE, _TEXT)),
    Welcome: (3, (_OP, _SLOTS, _SLOTS, _COUNT, _VERSION)),
    Extend: (4, (_OP, _SLOTS, _COUNT, Blob(PAYLOAD_BYTES), _WIDTH, _TOKENS)),
    Logits: (5, (_OP, _WIDTH)),
    Answered: (6, (_OP, _SLOTS, _IDS, _VALUES, Real(), _SURPRISAL, Real())),
    Keep: (7, (_OP, Array("<i4", RANGES, columns=2))),
    Truncate: (8, (_OP, _SLOTS)),
    Done: (9, (_OP, _SLOTS)),
    Failed: (10, (_OP, _CODE, _TEXT)),
    Ping: (11, (_NONCE,)),
    Pong: (12, (_NONCE,)),
    Bye: (13, ()),
}
_KINDS = {kind: (message, layout) for message, (kind, layout) in _LAYOUT.items()}


def encode(message: Message) -> bytes:
    """The frame of a message. Raises ProtocolError where a value is beyond its limit."""
    if type(message) not in _LAYOUT:
        raise ProtocolError("a message that is only ever read", got=shown(message))
    kind, layout = _LAYOUT[type(message)]
    return bytes([kind]) + pack_fields(layout, [getattr(message, field.name) for field in fields(message)])


def decode(frame: bytes) -> Message:
    """The message of a frame. Raises ProtocolError for anything else than a whole message within its limits."""
    if len(frame) > FRAME_BYTES:
        raise ProtocolError("a frame is too long", got=len(frame), wanted=f"at most {FRAME_BYTES} bytes")
    reader = Reader(frame)
    kind = reader.take(1)[0]
    if kind not in _KINDS:
        raise ProtocolError("a frame of an unknown kind", got=kind)
    if kind == _HELLO and (stranger := _stranger(Reader(frame[1:]))) is not None:
        return stranger
    message, layout = _KINDS[kind]
    made: Message = message(*take_fields(layout, reader))
    return made


def ranges_of(slots: NDArray[np.int64]) -> NDArray[np.int32]:
    """Slots, strictly rising, as the (n, 2) ranges of a Keep."""
    if not len(slots):
        return np.empty((0, 2), np.int32)
    breaks = np.flatnonzero(np.diff(slots) != 1)
    starts, stops = slots[np.r_[0, breaks + 1]], slots[np.r_[breaks, len(slots) - 1]] + 1
    return np.stack([starts, stops], axis=1).astype(np.int32)


def slots_of(ranges: NDArray[np.int32], length: int) -> NDArray[np.int64]:
    """The slots of a Keep. Raises ProtocolError where one is not among the first `length`."""
    if len(ranges) and ranges[-1, 1] > length:
        raise ProtocolError("slots to keep that are not in use", got=int(ranges[-1, 1]), wanted=f"at most {length}")
    starts, counts = ranges[:, 0].astype(np.int64), np.diff(ranges, axis=1)[:, 0]
    ends = np.cumsum(counts, dtype=np.int64)
    return np.arange(counts.sum(), dtype=np.int64) + np.repeat(starts - (ends - counts), counts)


def _stranger(reader: Reader) -> Stranger | None:
    protocol = _PROTOCOL.take(reader)
    return None if protocol == PROTOCOL else Stranger(protocol, _VERSION.take(reader))


def _check_ids(ids: NDArray[np.int32]) -> None:
    if len(ids) and (ids.min() < 0 or ids.max() >= LIMITS.vocabulary):
        raise ProtocolError("a token that is in no vocabulary", got=f"{ids.min()} to {ids.max()}")


def _is_surprisal(surprisal: NDArray[np.float32]) -> bool:
    """nan only of the first token, which may have followed nothing."""
    return bool(np.isfinite(surprisal[1:]).all() and not np.isinf(surprisal[:1]).any())
