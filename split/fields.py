"""The parts that a frame is made of: whole numbers, texts, bytes, arrays; little-endian, each with a limit.

A part knows how to be written and how to be read, and refuses the same values both ways. Lengths are compared with the
limit and with what is left of the frame before anything is allocated.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgemem.runtime.errors import ProtocolError, shown

Settings = Mapping[str, str | int | float | bool | None]


class Reader:
    """A frame being read from its beginning."""

    def __init__(self, frame: bytes) -> None:
        self._frame, self._at = memoryview(frame), 0

    @property
    def left(self) -> int:
        return len(self._frame) - self._at

    def take(self, size: int) -> memoryview:
        if size > self.left:
            raise ProtocolError("a frame is cut short", got=f"{self.left} bytes", wanted=f"{size} bytes")
        self._at += size
        return self._frame[self._at - size : self._at]


class Field(Protocol):
    """pack and take raise ProtocolError for what is beyond the field's limits."""

    def pack(self, value: Any) -> bytes: ...

    def take(self, reader: Reader) -> Any: ...


@dataclass(frozen=True)
class Whole:
    """0 to limit, in `size` bytes."""

    size: int
    limit: int

    def pack(self, value: Any) -> bytes:
        if type(value) is not int or not 0 <= value <= self.limit:
            raise ProtocolError("a number is out of range", got=shown(value), wanted=f"0 to {self.limit}")
        return value.to_bytes(self.size, "little")

    def take(self, reader: Reader) -> int:
        value = int.from_bytes(reader.take(self.size), "little")
        if value > self.limit:
            raise ProtocolError("a number is out of range", got=value, wanted=f"0 to {self.limit}")
        return value


@dataclass(frozen=True)
class Real:
    """A finite float64."""

    def pack(self, value: Any) -> bytes:
        if not math.isfinite(value):
            raise ProtocolError("a number is not finite", got=value)
        return struct.pack("<d", value)

    def take(self, reader: Reader) -> float:
        value: float = struct.unpack("<d", reader.take(8))[0]
        if not math.isfinite(value):
            raise ProtocolError("a number is not finite", got=value)
        return value


@dataclass(frozen=True)
class Exactly:
    """Bytes of one length."""

    size: int

    def pack(self, value: Any) -> bytes:
        if not isinstance(value, bytes) or len(value) != self.size:
            raise ProtocolError("a value of a wrong length", got=shown(value), wanted=f"{self.size} bytes")
        return value

    def take(self, reader: Reader) -> bytes:
        return bytes(reader.take(self.size))


@dataclass(frozen=True)
class Blob:
    """Bytes, at most `limit`, behind their length."""

    limit: int

    def pack(self, value: Any) -> bytes:
        return struct.pack("<I", _within(len(value), self.limit)) + bytes(value)

    def take(self, reader: Reader) -> bytes:
        return bytes(reader.take(_length(reader, self.limit)))


@dataclass(frozen=True)
class Text:
    """UTF-8, at most `limit` bytes, of printable characters and line ends: it may be shown on a terminal."""

    limit: int

    def pack(self, value: Any) -> bytes:
        return Blob(self.limit).pack(_printable(value).encode())

    def take(self, reader: Reader) -> str:
        try:
            return _printable(str(Blob(self.limit).take(reader), "utf-8"))
        except UnicodeDecodeError as problem:
            raise ProtocolError("a text is not UTF-8", got=shown(problem.reason)) from problem


@dataclass(frozen=True)
class FlatJson:
    """A JSON object of plain values, at most `limit` bytes."""

    limit: int

    def pack(self, value: Any) -> bytes:
        return Blob(self.limit).pack(json.dumps(_flat(dict(value)), sort_keys=True, allow_nan=False).encode())

    def take(self, reader: Reader) -> Settings:
        try:
            return _flat(json.loads(Blob(self.limit).take(reader)))
        except (ValueError, RecursionError) as problem:
            raise ProtocolError("settings are no JSON", got=shown(problem)) from problem


@dataclass(frozen=True)
class Array:
    """A row of at most `limit` numbers of `kind`, or with `columns` a table of so many rows."""

    kind: str
    limit: int
    columns: int | None = None

    def pack(self, value: Any) -> bytes:
        if value.ndim != (1 if self.columns is None else 2) or (self.columns and value.shape[1] != self.columns):
            raise ProtocolError("an array of a wrong shape", got=value.shape)
        data: bytes = value.astype(self.kind, copy=False).tobytes()
        return struct.pack("<I", _within(len(value), self.limit)) + data

    def take(self, reader: Reader) -> NDArray[Any]:
        count = _within(int.from_bytes(reader.take(4), "little"), self.limit) * (self.columns or 1)
        data = reader.take(count * np.dtype(self.kind).itemsize)
        array = np.array(np.frombuffer(data, self.kind) if count else [], self.kind)  # a copy: aligned, and its own
        return array if self.columns is None else array.reshape(-1, self.columns)


@dataclass(frozen=True)
class Maybe:
    """A field, or None."""

    field: Field

    def pack(self, value: Any) -> bytes:
        return b"\0" if value is None else b"\1" + self.field.pack(value)

    def take(self, reader: Reader) -> Any:
        return self.field.take(reader) if Whole(1, 1).take(reader) else None


def pack_fields(fields: Sequence[Field], values: Sequence[Any]) -> bytes:
    return b"".join(field.pack(value) for field, value in zip(fields, values, strict=True))


def take_fields(fields: Sequence[Field], reader: Reader) -> list[Any]:
    """The values of `fields`, which must be all that is left."""
    values = [field.take(reader) for field in fields]
    if reader.left:
        raise ProtocolError("a frame goes on behind its end", got=f"{reader.left} bytes more")
    return values


def printable(text: str, limit: int) -> str:
    """`text` as a Text of `limit` bytes takes it: what cannot be shown as ?, and what is too long cut off."""
    shown_text = "".join(char if char.isprintable() or char == "\n" else "?" for char in text)
    return shown_text.encode("utf-8", "replace")[:limit].decode("utf-8", "ignore")


def _within(length: int, limit: int) -> int:
    if length > limit:
        raise ProtocolError("a part of a frame is too long", got=length, wanted=f"at most {limit}")
    return length


def _length(reader: Reader, limit: int) -> int:
    return _within(int.from_bytes(reader.take(4), "little"), limit)


def _printable(text: str) -> str:
    if not all(char.isprintable() or char == "\n" for char in text):
        raise ProtocolError("a text cannot be shown", got=shown(text))
    return text


def _flat(value: Any) -> Settings:
    if not isinstance(value, dict) or not all(
        item is None or isinstance(item, (str, bool, int)) or (isinstance(item, float) and math.isfinite(item))
        for item in value.values()
    ):
        raise ProtocolError("settings are no flat object", got=shown(value))
    return value
