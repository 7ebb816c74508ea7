"""Frames: the journal's unit on disk, each written and synced before the next, so that it is there whole or not.

A frame is: length of the payload, CRC-32 of all the rest, sequence number, payload. It knows no kinds of entries.
"""

from __future__ import annotations

import struct
import zlib
from array import array
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

FRAME_BYTES = 32 << 20
_HEADER = struct.Struct("<IIQ")
_CHECKED = struct.Struct("<IQ")
_WINDOW_BYTES = 1 << 20
_SEARCH_BYTES, _CANDIDATE_BYTES = 256 << 20, 4096


class Frame(NamedTuple):
    """A sound frame. [start, stop): its bytes in the file."""

    sequence: int
    start: int
    stop: int
    payload: memoryview


class Frames:
    """The sound frames of a file, numbered from `first` on; `stop` is the offset behind the last."""

    def __init__(self, data: bytes, first: int, bounds: array[int]) -> None:
        """bounds: where each frame starts, and where the last one stops."""
        self.first, self.stop = first, bounds[-1]
        self._view, self._bounds = memoryview(data), bounds

    def __len__(self) -> int:
        return len(self._bounds) - 1

    def __iter__(self) -> Iterator[Frame]:
        for index in range(len(self)):
            start, stop = self._bounds[index], self._bounds[index + 1]
            yield Frame(self.first + index, start, stop, self._view[start + _HEADER.size : stop])


class Damage(NamedTuple):
    """The first thing that is no sound frame. later: the offset of a sound frame behind it, if there is one.

    A frame is written only after the one before it was synced. So with a later frame acknowledged data was damaged;
    without one this is the end of a write that a crash cut short.
    """

    offset: int
    got: str
    wanted: str
    later: int | None


def frame(sequence: int, payload: bytes) -> bytes:
    """The bytes of one frame. Raises ValueError for an oversized payload."""
    if len(payload) > FRAME_BYTES:
        raise ValueError(f"{len(payload)} bytes in one frame, at most {FRAME_BYTES} fit")
    return _HEADER.pack(len(payload), _crc(len(payload), sequence, payload), sequence) + payload


def read_frames(data: bytes, start: int, first: int) -> tuple[Frames, Damage | None]:
    """The sound frames of `data` from offset `start`, numbered from `first`, up to the first damage."""
    view, bounds, damage = memoryview(data), array("q", [start]), None
    sequence = first
    while start < len(data) and damage is None:
        found = _sound(view, start)
        if found == sequence:
            start += _HEADER.size + int.from_bytes(view[start : start + 4], "little")
            sequence += 1
            bounds.append(start)
        elif isinstance(found, str):
            damage = Damage(start, found, f"frame {sequence}", _later_frame(view, start + 1, sequence))
        else:
            later = start if found > sequence else _later_frame(view, start + 1, sequence)
            damage = Damage(start, f"frame {found}", f"frame {sequence}", later)
    return Frames(data, first, bounds), damage


def _sound(view: memoryview, start: int) -> int | str:
    """The number of the frame at `start`, or what is wrong with it."""
    begin = start + _HEADER.size
    if begin > len(view):
        return f"{len(view) - start} bytes"
    length, crc, sequence = _HEADER.unpack_from(view, start)
    if length > FRAME_BYTES or begin + length > len(view):
        return f"a length of {length} with {len(view) - begin} bytes left"
    content = _crc(length, sequence, view[begin : begin + length])
    return int(sequence) if content == crc else f"CRC-32 {crc:#010x} over content of {content:#010x}"


def _later_frame(view: memoryview, start: int, sequence: int) -> int | None:
    """The first offset from `start` on with a sound frame numbered `sequence` or above; a bounded search.

    Where crafted data would take for ever, the first candidate counts as a frame: better to refuse than to cut.
    """
    budget, first = _SEARCH_BYTES, None
    for offset in _candidates(view, start, sequence):
        first = offset if first is None else first
        if isinstance(_sound(view, offset), int):
            return offset
        length = int.from_bytes(view[offset : offset + 4], "little")
        budget -= _CANDIDATE_BYTES + (length if length < len(view) - offset else 0)
        if budget < 0:
            return first
    return None


def _candidates(view: memoryview, start: int, sequence: int) -> Iterator[int]:
    """Offsets, rising, where the eight bytes of a sequence number are one that can still come."""
    place = _HEADER.size - 8
    highest = np.uint64(sequence + len(view) // _HEADER.size)
    for begin in range(start, len(view) - _HEADER.size + 1, _WINDOW_BYTES):
        window = view[begin + place : begin + place + _WINDOW_BYTES + 7]
        hits = []
        for shift in range(8):
            words = np.frombuffer(window, "<u8", count=max(0, len(window) - shift) // 8, offset=min(shift, len(window)))
            hits.append(begin + shift + 8 * np.flatnonzero((words >= np.uint64(sequence)) & (words <= highest)))
        yield from np.sort(np.concatenate(hits)).tolist()


def _crc(length: int, sequence: int, payload: bytes | memoryview) -> int:
    return zlib.crc32(payload, zlib.crc32(_CHECKED.pack(length, sequence)))
