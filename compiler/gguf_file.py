"""The strict GGUF container reader (versions 2 and 3, little endian): metadata, and tensors as mapped bytes.

Every count, length and extent is checked against the file before it is used; string arrays are decoded only on
request. It knows the format alone: what keys and tensors mean is gguf_reader.py's matter.
"""

from __future__ import annotations

import mmap
import os
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemem.runtime.errors import CheckpointError, UnsupportedModel
from edgemem.runtime.limits import LIMITS, checked_product

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_SMALLEST_PAIR = 8 + 1 + 4 + 1  # length, one letter, type, one byte
_SMALLEST_TENSOR = 8 + 1 + 4 + 8 + 4 + 8
_DIMENSIONS = 4
_KEY_BYTES = (1 << 16) - 1
_STRINGS = 4 * LIMITS.vocabulary  # merges outnumber tokens


class StringArray:
    """An array of strings in the file, checked but not yet decoded."""

    def __init__(self, file: GgufFile, key: str, start: int, count: int) -> None:
        self._file, self._key, self._start, self._count = file, key, start, count

    def __len__(self) -> int:
        return self._count

    def decode(self) -> list[str]:
        """All strings. CheckpointError for invalid UTF-8 or more strings than any vocabulary needs."""
        if self._count > _STRINGS:
            raise self._file.error(f"{self._key} is too long", got=self._count, wanted=f"at most {_STRINGS} strings")
        cursor = _Cursor(self._file, self._start)
        return [cursor.string(self._key) for _ in range(self._count)]


Value = bool | int | float | str | StringArray | NDArray[Any]


@dataclass(frozen=True)
class GgufTensor:
    """`type_id` as ggml numbers types; shape with rows first, as NumPy has it; file bytes [start, stop)."""

    type_id: int
    shape: tuple[int, ...]
    start: int
    stop: int


class GgufFile:
    """An open, checked GGUF file: `metadata` by key, `tensors` by name in file order."""

    def __init__(self, path: Path) -> None:
        """Map and check the file. Raises CheckpointError for anything that is not as the format wants it."""
        self.path = Path(path)
        self._mapping: mmap.mmap | None = _map(self.path)
        self.size = len(self._mapping)
        cursor = _Cursor(self, 0)
        if bytes(cursor.take(4, "magic")) != _MAGIC:
            raise self.error("no GGUF file", got=bytes(self._mapping[:4]), wanted=_MAGIC)
        version = cursor.scalar(4, "version")
        if version not in _VERSIONS:
            raise self.error("this GGUF version is not supported", got=version, wanted=f"one of {_VERSIONS}")
        tensor_count, pair_count = cursor.scalar(10, "tensor count"), cursor.scalar(10, "key count")
        self.metadata: dict[str, Value] = {}
        for key, value in self._pairs(cursor, pair_count):
            if key in self.metadata:
                raise self.error(f"duplicate key {ascii(key)[:80]}")
            self.metadata[key] = value
        self.tensors = self._read_tensors(cursor, tensor_count)

    def error(self, what: str, **details: Any) -> CheckpointError:
        return CheckpointError(what, where=self.path, **details)

    def bytes_of(self, name: str) -> NDArray[np.uint8]:
        """A tensor's raw bytes, a read-only view of the file, (rows, bytes a row); a vector is one row."""
        tensor = self.tensors[name]
        rows = tensor.shape[0] if len(tensor.shape) > 1 else 1
        return self.view(tensor.start, tensor.stop).reshape(rows, -1)

    def view(self, start: int, stop: int) -> NDArray[np.uint8]:
        """File bytes [start, stop) as a read-only view; CheckpointError if the file ends before."""
        if self._mapping is None:
            raise self.error("the file was closed")
        if not 0 <= start <= stop <= self.size:
            raise self.error("the file ends early", got=f"{self.size} bytes", wanted=f"{stop} bytes or more")
        return np.frombuffer(self._mapping, dtype=np.uint8, count=stop - start, offset=start)

    def close(self) -> None:
        """Let go of the file. Arrays handed out stay valid; the mapping ends with the last of them."""
        self._mapping = None

    def _pairs(self, cursor: _Cursor, count: int) -> Iterator[tuple[str, Value]]:
        self._check_count("keys", count, cursor, _SMALLEST_PAIR, LIMITS.tensors)
        for _ in range(count):
            key = cursor.string("a metadata key", _KEY_BYTES)
            shown = ascii(key)[:80]
            type_id = cursor.scalar(4, f"the type of {shown}")
            if type_id == _STRING:
                yield key, cursor.string(shown)
            elif type_id == _ARRAY:
                yield key, self._array(cursor, shown)
            else:
                yield key, cursor.scalar(type_id, shown)

    def _array(self, cursor: _Cursor, key: str) -> Value:
        type_id, count = cursor.scalar(4, f"the type of {key}"), cursor.scalar(10, f"the length of {key}")
        if type_id == _STRING:
            self._check_count(f"strings in {key}", count, cursor, 8, self.size)
            start = cursor.offset
            for _ in range(count):
                cursor.skip_string(key)
            return StringArray(self, key, start, count)
        if type_id not in _SCALARS:
            raise self.error(f"the array {key} has elements of an unknown type", got=type_id)
        dtype = np.dtype("<" + _SCALARS[type_id])
        self._check_count(f"elements in {key}", count, cursor, dtype.itemsize, self.size)
        return cursor.take(count * dtype.itemsize, key).view(np.uint8 if dtype.kind == "b" else dtype)

    def _check_count(self, what: str, count: int, cursor: _Cursor, smallest: int, limit: int) -> None:
        most = min((self.size - cursor.offset) // smallest, limit)
        if count > most:
            raise self.error(f"too many {what}, or the file is truncated", got=count, wanted=f"at most {most}")

    def _read_tensors(self, cursor: _Cursor, count: int) -> dict[str, GgufTensor]:
        self._check_count("tensors", count, cursor, _SMALLEST_TENSOR, LIMITS.tensors)
        headers = [self._tensor_header(cursor) for _ in range(count)]
        alignment = self.metadata.get("general.alignment", 32)
        if type(alignment) is not int or alignment <= 0 or alignment & (alignment - 1) or alignment > self.size:
            raise self.error(
                "general.alignment is impossible", got=alignment, wanted="a power of two below the file's size"
            )
        base = _padded(cursor.offset, alignment)
        tensors: dict[str, GgufTensor] = {}
        expected = 0
        for name, type_id, shape, offset in headers:
            if name in tensors:
                raise self.error(f"duplicate tensor {name!a}")
            if offset != expected:
                raise self.error(
                    f"tensor {name!a} is out of place", got=f"offset {offset}", wanted=f"offset {expected}"
                )
            length = self._bytes_needed(name, type_id, shape)
            tensors[name] = GgufTensor(type_id, shape, base + offset, base + offset + length)
            expected = _padded(offset + length, alignment)
            if base + expected > self.size:
                raise self.error(
                    f"tensor {name!a} goes beyond the file: it is truncated",
                    got=f"{self.size} bytes",
                    wanted=f"{base + expected} bytes or more",
                )
        if tensors and base + expected != self.size:
            raise self.error(
                "bytes behind the last tensor", got=f"{self.size} bytes", wanted=f"{base + expected} bytes"
            )
        return tensors

    def _tensor_header(self, cursor: _Cursor) -> tuple[str, int, tuple[int, ...], int]:
        name = cursor.string("a tensor's name", LIMITS.name_bytes)
        dimensions = cursor.scalar(4, f"the dimensions of {name!a}")
        if not 1 <= dimensions <= _DIMENSIONS:
            raise self.error(
                f"tensor {name!a} is malformed", got=f"{dimensions} dimensions", wanted=f"1 to {_DIMENSIONS}"
            )
        sizes = [cursor.scalar(10, f"the shape of {name!a}") for _ in range(dimensions)]
        type_id, offset = cursor.scalar(4, f"the type of {name!a}"), cursor.scalar(10, f"the offset of {name!a}")
        return name, type_id, tuple(reversed(sizes)), offset

    def _bytes_needed(self, name: str, type_id: int, shape: tuple[int, ...]) -> int:
        import gguf

        try:
            block, block_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(type_id)]
        except (ValueError, KeyError) as problem:
            raise UnsupportedModel(f"tensor {name!a} is of an unknown type", where=self.path, got=type_id) from problem
        try:
            if max(shape) > LIMITS.dimension:
                raise ValueError(f"dimension {max(shape)} is over {LIMITS.dimension}")
            elements = checked_product(shape)
        except ValueError as problem:
            raise self.error(f"tensor {name!a} has an impossible shape", got=problem) from problem
        if shape[-1] % block:
            raise self.error(
                f"tensor {name!a} has broken rows", got=f"{shape[-1]} columns", wanted=f"a multiple of {block}"
            )
        return elements // block * block_bytes


class _Cursor:
    """Reads forward through the header of a GgufFile and never past its end."""

    def __init__(self, file: GgufFile, offset: int) -> None:
        self._file, self.offset = file, offset
        self._bytes = file.view(0, min(file.size, LIMITS.tensor_header_bytes)).data

    def _advance(self, count: int, what: str) -> int:
        start = self.offset
        if count > len(self._bytes) - start:
            raise self._file.error(
                f"{what} goes beyond the file or the header's limit: truncated or damaged",
                got=f"{count} bytes at offset {start}",
                wanted=f"at most {len(self._bytes) - start}",
            )
        self.offset = start + count
        return start

    def take(self, count: int, what: str) -> NDArray[np.uint8]:
        start = self._advance(count, what)
        return self._file.view(start, start + count)

    def scalar(self, type_id: int, what: str) -> Any:
        letter = _SCALARS.get(type_id)
        if letter is None:
            raise self._file.error(f"{what} has an unknown type", got=type_id)
        start = self._advance(struct.calcsize("<" + letter), what)
        return struct.unpack_from("<" + letter, self._bytes, start)[0]

    def string(self, what: str, limit: int = LIMITS.tensor_header_bytes) -> str:
        length = self.scalar(10, what)
        if length > limit:
            raise self._file.error(f"{what} is too long", got=f"{length} bytes", wanted=f"at most {limit}")
        start = self._advance(length, what)
        try:
            return str(self._bytes[start : self.offset], "utf-8")
        except ValueError as problem:
            raise self._file.error(f"{what} is no UTF-8", got=problem) from problem

    def skip_string(self, what: str) -> None:
        self._advance(self.scalar(10, what), what)


def _padded(offset: int, alignment: int) -> int:
    return -(-offset // alignment) * alignment


def _map(path: Path) -> mmap.mmap:
    # Without O_NONBLOCK, opening a named pipe would wait for a writer for ever.
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as problem:
        raise CheckpointError("cannot open the file", where=path, got=problem) from problem
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size == 0:
            raise CheckpointError("an empty file, or no regular one", where=path, wanted="a GGUF file")
        return mmap.mmap(descriptor, status.st_size, access=mmap.ACCESS_READ)
    except OSError as problem:
        raise CheckpointError("cannot map the file", where=path, got=problem) from problem
    finally:
        os.close(descriptor)
