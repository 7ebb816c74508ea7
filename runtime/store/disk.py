"""Disk: every operation by which a store touches its folder, and RealDisk, which does them.

Nothing here knows what the files mean. Names are flat; files are 0600 in a folder of 0700.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from edgemem.runtime.errors import StoreError
from edgemem.runtime.folder_lock import LOCK_FILE, take_lock
from edgemem.runtime.safe_files import SafeFolder

TEMPORARY = ".tmp"
_FLAGS = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NOCTTY
_PRIVATE_FILE, _PRIVATE_FOLDER = 0o600, 0o700
_FULL = (errno.ENOSPC, errno.EDQUOT)

Bytes = bytes | bytearray | memoryview


class Disk(Protocol):
    """One folder. All but `lock` raise OSError for what the system refuses; a write or sync that did is not repeated.

    What was written is certain to outlast a power loss only after `sync` of the file; that a name is there, or is gone,
    only after `sync_folder`.
    """

    folder: Path

    def names(self) -> set[str]: ...

    def open(self, name: str) -> int:
        """A descriptor for reading, the caller's to close with os.close."""
        ...

    def create(self, name: str) -> int:
        """A new, empty file for writing; FileExistsError if the name is taken. The caller closes it with `close_file`,
        as one from `extend`."""
        ...

    def extend(self, name: str) -> int:
        """An existing file for writing at its end."""
        ...

    def write(self, file: int, data: Bytes) -> None: ...

    def truncate(self, file: int, size: int) -> None: ...

    def sync(self, file: int) -> None: ...

    def close_file(self, file: int) -> None: ...

    def rename(self, old: str, new: str) -> None: ...

    def remove(self, name: str) -> None: ...

    def sync_folder(self) -> None: ...

    def lock(self) -> None:
        """Keep other writers out until `close`; StoreError naming the process that was here first."""
        ...

    def close(self) -> None: ...


class RealDisk:
    """A Disk over a folder of the file system. The folder is made if it is not there; OSError if it cannot be."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        made = not self.folder.exists()
        if made:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            self.folder.mkdir(mode=_PRIVATE_FOLDER, exist_ok=True)
        self._reading = SafeFolder(self.folder)
        self._descriptor = os.open(self.folder, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
        self._lock = -1
        if made:
            _sync_path(self.folder.parent)

    def names(self) -> set[str]:
        return self._reading.names()

    def open(self, name: str) -> int:
        return self._reading.open(name)

    def create(self, name: str) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FLAGS
        return os.open(name, flags, _PRIVATE_FILE, dir_fd=self._descriptor)

    def extend(self, name: str) -> int:
        return os.open(name, os.O_WRONLY | os.O_APPEND | _FLAGS, dir_fd=self._descriptor)

    def write(self, file: int, data: Bytes) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(file, rest) :]

    def truncate(self, file: int, size: int) -> None:
        os.ftruncate(file, size)

    def sync(self, file: int) -> None:
        os.fsync(file)

    def close_file(self, file: int) -> None:
        os.close(file)

    def rename(self, old: str, new: str) -> None:
        os.rename(old, new, src_dir_fd=self._descriptor, dst_dir_fd=self._descriptor)

    def remove(self, name: str) -> None:
        os.unlink(name, dir_fd=self._descriptor)

    def sync_folder(self) -> None:
        os.fsync(self._descriptor)

    def lock(self) -> None:
        lock = os.open(LOCK_FILE, os.O_RDWR | os.O_CREAT | _FLAGS, _PRIVATE_FILE, dir_fd=self._descriptor)
        try:
            take_lock(lock, self.folder, "this conversation", StoreError)
        except BaseException:
            os.close(lock)
            raise
        self._lock = lock

    def close(self) -> None:
        self._reading.close()
        for descriptor in (self._descriptor, self._lock):
            if descriptor >= 0:
                os.close(descriptor)
        self._descriptor = self._lock = -1


def write_whole(disk: Disk, name: str, parts: Iterable[Bytes]) -> None:
    """The file `name` with this content, or as it was before, whatever happens: temporary file, sync, rename, sync."""
    temporary = name + TEMPORARY
    with suppress(FileNotFoundError):
        disk.remove(temporary)
    file = disk.create(temporary)
    try:
        try:
            for part in parts:
                disk.write(file, part)
            disk.sync(file)
        finally:
            disk.close_file(file)
        disk.rename(temporary, name)
    except BaseException:
        with suppress(OSError):
            disk.remove(temporary)
        raise
    disk.sync_folder()


def disk_error(problem: OSError, what: str, folder: Path) -> StoreError:
    """What the system refused, in the project's words."""
    if problem.errno in _FULL:
        return StoreError(what, where=folder, got="a full disk", do="make room, then begin the session again")
    return StoreError(what, where=folder, got=problem, do="check the disk and the folder's permissions")


def _sync_path(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
