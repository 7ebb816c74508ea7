"""The size of a JPEG or PNG from its header, so that an image's memory is known before it is decoded."""

from __future__ import annotations

import struct

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8"
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # markers of a frame header: SOF0 to SOF15
_ALONE = frozenset({0x01, *range(0xD0, 0xD9)})  # markers without a length: TEM, RST0 to RST7, SOI


def image_size(data: bytes) -> tuple[int, int]:
    """Width and height in pixels. Raises ValueError, saying what there is instead."""
    if data.startswith(_PNG):
        if len(data) < 24 or data[12:16] != b"IHDR":
            raise ValueError("a PNG without a header")
        width, height = struct.unpack_from(">II", data, 16)
    elif data.startswith(_JPEG):
        width, height = _jpeg_size(data)
    else:
        raise ValueError(f"{len(data)} bytes that begin with {data[:8]!r}")
    if not width or not height:
        raise ValueError(f"a size of {width}x{height}")
    return width, height


def _jpeg_size(data: bytes) -> tuple[int, int]:
    """From the first frame header; the segments before it are stepped over by their lengths."""
    place = len(_JPEG)
    while place + 9 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        if marker in _FRAMES:
            height, width = struct.unpack_from(">HH", data, place + 5)
            return width, height
        if marker == 0xFF:  # padding
            place += 1
        elif marker in _ALONE:
            place += 2
        else:
            place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    raise ValueError("a JPEG without a frame header")
