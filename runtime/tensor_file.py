"""The strict safetensors reader: every claim of the header is checked against the file before anything is mapped.

Reads the header alone; tensors are read-only views of the mapped file, so a model costs no memory until it is used.
It does not look at values (NaN is the reader's matter above) and follows the path it is given.
"""

from __future__ import annotations

import json
import mmap
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemem.runtime.errors import CheckpointError, FileError, shown
from edgemem.runtime.limits import LIMITS, checked_product

# NumPy has no bfloat16 and no 8-bit floats: their bits are given as unsigned whole numbers.
DTYPES: Mapping[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "F8_E4M3": np.dtype(np.uint8),
    "F8_E5M2": np.dtype(np.uint8),
    "U16": np.dtype("<u2"),
    "I16": np.dtype("<i2"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "U32": np.dtype("<u4"),
    "I32": np.dtype("<i4"),
    "F32": np.dtype("<f4"),
    "U64": np.dtype("<u8"),
    "I64": np.dtype("<i8"),
    "F64": np.dtype("<f8"),
}
_PREFIX = 8
_INTEGER_DIGITS = 64  # tokenizer_config.json likes to say 10**30 for `no limit`


@dataclass(frozen=True)
class TensorEntry:
    """One tensor: safetensors dtype name, shape, and its bytes [start, stop) counted from the start of the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


class TensorFile:
    """An open, checked safetensors file. `tensors` is in file order; `metadata` is the header's free text."""

    def __init__(
        self,
        path: Path,
        tensors: dict[str, TensorEntry],
        metadata: dict[str, str],
        mapping: mmap.mmap,
        error: type[FileError],
    ) -> None:
        self.path, self.tensors, self.metadata = path, tensors, metadata
        self._mapping: mmap.mmap | None = mapping
        self._error = error

    @classmethod
    def open(cls, path: Path, *, error: type[FileError] = CheckpointError, descriptor: int | None = None) -> TensorFile:
        """Check the header and map the file.

        `error` is raised for anything wrong. `descriptor`: an already opened file, for a caller with rules of its
        own about opening (the path is then only its name); it stays the caller's to close.
        """
        path = Path(path)
        opened = _open(path, error) if descriptor is None else descriptor
        try:
            status = os.fstat(opened)
            if not stat.S_ISREG(status.st_mode):
                raise error("no regular file", where=path, wanted="a safetensors file")
            header_stop = _header_stop(opened, status.st_size, path, error)
            raw = _read_exactly(opened, header_stop - _PREFIX, _PREFIX, path, error)
            tensors, metadata = _parse(raw, header_stop, status.st_size, path, error)
            mapping = mmap.mmap(opened, status.st_size, access=mmap.ACCESS_READ)
        except OSError as problem:
            raise error("cannot read the file", where=path, got=problem) from problem
        finally:
            if descriptor is None:
                os.close(opened)
        return cls(path, tensors, metadata, mapping, error)

    def array(self, name: str) -> NDArray[Any]:
        """The tensor as a read-only view of the file; BF16 arrives as uint16. It may be unaligned."""
        if self._mapping is None:
            raise self._error("the file was closed", where=self.path, got=f"a request for tensor {name!r}")
        entry = self.tensors.get(name)
        if entry is None:
            raise self._error(f"no tensor {name!r}", where=self.path, got=f"{len(self.tensors)} other tensors")
        dtype = DTYPES[entry.dtype]
        count = (entry.stop - entry.start) // dtype.itemsize
        return np.frombuffer(self._mapping, dtype=dtype, count=count, offset=entry.start).reshape(entry.shape)

    def forget_pages(self) -> None:
        """Give the memory of pages that were read back to the system; they are read from the file again if need be."""
        if self._mapping is not None and hasattr(mmap, "MADV_DONTNEED"):
            self._mapping.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        """Let go of the file. Arrays handed out stay valid; the mapping ends with the last of them."""
        self._mapping = None

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def widen(values: NDArray[Any]) -> NDArray[np.float32]:
    """F32, F16 or BF16 values as `array` gives them, as float32 in memory of their own."""
    if values.dtype == DTYPES["BF16"]:  # the upper half of a float32
        return (values.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return values.astype(np.float32)


def parse_json_object(raw: bytes) -> dict[str, Any]:
    """JSON from a stranger: an object in UTF-8 without duplicate keys, NaN or giant numbers; else ValueError."""
    try:
        value = json.loads(
            raw.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant, parse_int=_short_integer
        )
    except RecursionError as problem:
        raise ValueError("nested too deeply") from problem
    if not isinstance(value, dict):
        raise ValueError(f"a JSON {type(value).__name__}, no object")
    return value


def _open(path: Path, error: type[FileError]) -> int:
    # Without O_NONBLOCK, opening a named pipe would wait for a writer for ever.
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as problem:
        raise error("cannot open the file", where=path, got=problem) from problem


def _read_exactly(descriptor: int, count: int, offset: int, path: Path, error: type[FileError]) -> bytes:
    parts: list[bytes] = []
    while count:
        part = os.pread(descriptor, count, offset)
        if not part:
            raise error("the file ends early", where=path, wanted=f"{count} more bytes at offset {offset}")
        parts.append(part)
        count -= len(part)
        offset += len(part)
    return b"".join(parts)


def _header_stop(descriptor: int, size: int, path: Path, error: type[FileError]) -> int:
    """The offset at which the tensors' bytes begin, from the length in the first eight bytes."""
    if size < _PREFIX + 2:
        raise error(
            "too short for a safetensors file", where=path, got=f"{size} bytes", wanted=f"{_PREFIX + 2} or more"
        )
    length = int.from_bytes(_read_exactly(descriptor, _PREFIX, 0, path, error), "little")
    cap = min(LIMITS.tensor_header_bytes, size - _PREFIX)
    if not 2 <= length <= cap:
        raise error(
            "the header's length is impossible: truncated, or no safetensors file",
            where=path,
            got=f"{length} bytes in a file of {size}",
            wanted=f"2 to {cap}",
        )
    return _PREFIX + length


def _parse(
    raw: bytes, header_stop: int, size: int, path: Path, error: type[FileError]
) -> tuple[dict[str, TensorEntry], dict[str, str]]:
    # Every JSON value past the first of its container costs a comma, so this bounds what parsing can allocate.
    commas, cap = raw.count(b","), LIMITS.tensors * (LIMITS.dimensions + 4)
    if commas > cap:
        raise error("the header holds too many values", where=path, got=commas, wanted=f"at most {cap}")
    try:
        header = parse_json_object(raw)
    except ValueError as problem:
        raise error("the header is no valid JSON object", where=path, got=problem) from problem
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise error("the header's __metadata__ is malformed", where=path, wanted="an object of texts")
    if len(header) > LIMITS.tensors:
        raise error("too many tensors", where=path, got=len(header), wanted=f"at most {LIMITS.tensors}")
    entries = {}
    for name, plain in header.items():
        try:
            entries[name] = _entry(name, plain, header_stop, size)
        except ValueError as problem:
            raise error(f"tensor {shown(name)} is malformed", where=path, got=problem) from problem
    ordered = dict(sorted(entries.items(), key=lambda item: item[1].start))
    _check_layout(ordered, header_stop, size, path, error)
    return ordered, metadata


def _entry(name: str, plain: Any, header_stop: int, size: int) -> TensorEntry:
    length = len(name.encode("utf-8"))  # a lone surrogate is a ValueError here
    if not 0 < length <= LIMITS.name_bytes:
        raise ValueError(f"name of {length} bytes, wanted 1 to {LIMITS.name_bytes}")
    if not isinstance(plain, dict) or set(plain) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{shown(plain)}, wanted an object with dtype, shape, data_offsets")
    dtype, shape, offsets = plain["dtype"], plain["shape"], plain["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(f"dtype {shown(dtype)}, wanted one of {', '.join(DTYPES)}")
    if not isinstance(shape, list) or len(shape) > LIMITS.dimensions:
        raise ValueError(f"shape {shown(shape)}, wanted a list of at most {LIMITS.dimensions} sizes")
    if not isinstance(offsets, list) or len(offsets) != 2 or any(type(offset) is not int for offset in offsets):
        raise ValueError(f"data_offsets {shown(offsets)}, wanted two whole numbers")
    for dimension in shape:
        if type(dimension) is int and dimension > LIMITS.dimension:
            raise ValueError(f"dimension {dimension}, wanted at most {LIMITS.dimension}")
    begin, end = offsets
    room = size - header_stop
    if not 0 <= begin <= end <= room:
        raise ValueError(f"data_offsets {shown(offsets)} in {room} bytes of tensors: wrong, or the file is truncated")
    wanted = checked_product(shape) * DTYPES[dtype].itemsize
    if end - begin != wanted:
        raise ValueError(f"data_offsets {shown(offsets)} span {end - begin} bytes, wanted {wanted} for {dtype}{shape}")
    return TensorEntry(dtype, tuple(shape), header_stop + begin, header_stop + end)


def _check_layout(
    ordered: dict[str, TensorEntry], header_stop: int, size: int, path: Path, error: type[FileError]
) -> None:
    """Tensors one after another, no overlap, no hole, and nothing behind the last."""
    expected = header_stop
    for name, entry in ordered.items():
        if entry.start != expected:
            kind = "overlaps the tensor before it" if entry.start < expected else "leaves a hole before it"
            raise error(
                f"tensor {shown(name)} {kind}", where=path, got=f"offset {entry.start}", wanted=f"offset {expected}"
            )
        expected = entry.stop
    if expected != size:
        raise error("bytes behind the last tensor", where=path, got=f"{size} bytes", wanted=f"{expected} bytes")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    plain = dict(pairs)
    if len(plain) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"duplicate key {shown(key)}")
            seen.add(key)
    return plain


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is no JSON number")


def _short_integer(text: str) -> int:
    if len(text) > _INTEGER_DIGITS:
        raise ValueError(f"a whole number of {len(text)} digits")
    return int(text)
