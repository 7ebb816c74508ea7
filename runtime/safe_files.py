"""Opening files beneath one folder, and nothing outside it: no `..`, no links, no pipes, no devices.

The folder is held by descriptor and every step goes from there without following links, so that what was checked is
what is read, whatever happens to the path meanwhile. The folder itself may be reached through a link.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from pathlib import Path

from edgemem.runtime.errors import UnsafePathError

_LEAF = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
_PARENT = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_DIRECTORY
_BUFFER_BYTES = 1 << 18


class SafeFolder:
    """A folder held open. Use as a context manager."""

    def __init__(self, path: Path) -> None:
        """Raises OSError where `path` is no folder or cannot be opened."""
        self.path = path
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)

    def names(self) -> set[str]:
        """Every entry of the folder."""
        return set(os.listdir(self._descriptor))

    def open(self, name: str) -> int:
        """A descriptor, the caller's to close, of the regular file `name` (`a.bin` or `sub/a.bin`).

        Raises UnsafePathError for a name that leaves the folder, passes a link, or is anything but a regular file with
        exactly one link; FileNotFoundError where there is no such file.
        """
        parts = _parts(name, self.path)
        folder = os.dup(self._descriptor)
        try:
            for part in parts[:-1]:
                parent, folder = folder, self._open_step(part, folder, _PARENT, name)
                os.close(parent)
            # Looked at before it is opened: opening a device can have effects of its own.
            self._check(os.stat(parts[-1], dir_fd=folder, follow_symlinks=False), name)
            descriptor = self._open_step(parts[-1], folder, _LEAF, name)
        finally:
            os.close(folder)
        try:
            self._check(os.fstat(descriptor), name)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def _open_step(self, part: str, folder: int, flags: int, name: str) -> int:
        try:
            return os.open(part, flags, dir_fd=folder)
        except OSError as problem:
            if problem.errno in (errno.ELOOP, errno.ENOTDIR, errno.ENXIO):
                raise _unsafe(name, self.path, f"{part!a} is a link or no folder") from problem
            raise

    def _check(self, status: os.stat_result, name: str) -> None:
        if not stat.S_ISREG(status.st_mode):
            raise _unsafe(name, self.path, f"a {_KINDS.get(stat.S_IFMT(status.st_mode), 'special file')}")
        if status.st_nlink != 1:
            raise _unsafe(name, self.path, f"a file with {status.st_nlink} links")

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> SafeFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


_KINDS = {
    stat.S_IFLNK: "symbolic link",
    stat.S_IFDIR: "folder",
    stat.S_IFIFO: "named pipe",
    stat.S_IFCHR: "device",
    stat.S_IFBLK: "device",
    stat.S_IFSOCK: "socket",
}


def sha256_of(descriptor: int) -> str:
    """SHA-256 of an open file from its beginning, 64 hex digits; the file position is left alone."""
    digest = hashlib.sha256()
    buffer = bytearray(_BUFFER_BYTES)
    view, offset = memoryview(buffer), 0
    while count := os.preadv(descriptor, [buffer], offset):
        digest.update(view[:count])
        offset += count
    return digest.hexdigest()


def read_at_most(descriptor: int, limit: int) -> bytes:
    """The first `limit` bytes of an open file, or all of a shorter one."""
    parts: list[bytes] = []
    offset = 0
    while offset < limit and (part := os.pread(descriptor, limit - offset, offset)):
        parts.append(part)
        offset += len(part)
    return b"".join(parts)


def _parts(name: str, folder: Path) -> list[str]:
    parts = name.split("/")
    if any(part in ("", ".", "..") or "\0" in part or "\\" in part for part in parts):
        raise _unsafe(name, folder, "a path that is empty, absolute, or leaves the folder")
    return parts


def _unsafe(name: str, folder: Path, got: str) -> UnsafePathError:
    return UnsafePathError(
        f"file {name[:200]!a} is unsafe to open",
        where=folder,
        got=got,
        wanted="a regular file inside the folder, with one link",
    )
