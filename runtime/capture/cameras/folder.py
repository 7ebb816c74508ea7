"""FolderCamera: the JPEG and PNG images of a folder, one after the other by name, and again from the first."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from edgemem.runtime.capture.cameras.opencv import decode_image
from edgemem.runtime.capture.picture import Picture
from edgemem.runtime.errors import FileError
from edgemem.runtime.safe_files import read_at_most

_ENDINGS = (".jpg", ".jpeg", ".png")
_IMAGE_BYTES = 64 << 20
_IMAGES = 1_000_000


class FolderCamera:
    """A Camera. The folder is listed once, at the beginning; other files in it do not count."""

    def __init__(self, folder: Path) -> None:
        """Raises FileError for a folder without images."""
        self.name = str(folder)
        try:
            names = sorted(name for name in os.listdir(folder) if name.lower().endswith(_ENDINGS))
        except OSError as problem:
            raise FileError("the folder of images cannot be read", where=folder, got=problem.strerror) from problem
        if not 0 < len(names) <= _IMAGES:
            wanted = f"1 to {_IMAGES} files that end in {', '.join(_ENDINGS)}"
            raise FileError("the folder has no images that can be shown", where=folder, got=len(names), wanted=wanted)
        self._paths = [folder / name for name in names]
        self._next = 0

    def take(self, at_s: float) -> Picture:
        """The next image. Raises FileError for one that cannot be read; the one after it comes next all the same."""
        path = self._paths[self._next]
        self._next = (self._next + 1) % len(self._paths)
        return Picture(decode_image(_content(path), path), at_s)

    def sleep(self) -> None:
        pass

    def close(self) -> None:
        pass


def _content(path: Path) -> bytes:
    """Raises FileError for what is no regular file, or too large."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe would wait for a writer
        try:
            status = os.fstat(descriptor)
            data = read_at_most(descriptor, _IMAGE_BYTES + 1) if stat.S_ISREG(status.st_mode) else b""
        finally:
            os.close(descriptor)
    except OSError as problem:
        raise FileError("an image cannot be read", where=path, got=problem.strerror) from problem
    if not 0 < len(data) <= _IMAGE_BYTES:
        wanted = f"a regular file of 1 to {_IMAGE_BYTES} bytes"
        raise FileError("an image cannot be read", where=path, got=f"{status.st_size} bytes", wanted=wanted)
    return data
