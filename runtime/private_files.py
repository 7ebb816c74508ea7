"""A folder for keys, and for whom we trust: its owner's alone, written atomically, by one process at a time."""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgemem.runtime.errors import FileError
from edgemem.runtime.safe_files import SafeFolder, read_at_most

_LOCK = "lock"
_NEW = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW


@contextmanager
def _failures_of(path: Path, what: str) -> Iterator[None]:
    try:
        yield
    except OSError as problem:
        raise FileError(f"{what} failed", where=path, got=problem.strerror or problem) from problem


def make_private(folder: Path) -> None:
    """Make the folder if there is none. Raises FileError where others may enter it."""
    with _failures_of(folder, "making the folder for keys"):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        _check(folder.stat(), folder)


def read_private(folder: Path, name: str, limit: int) -> bytes | None:
    """All of a file, None where there is none. Raises FileError where it is longer than `limit` bytes, others may read
    or write it, or it is no regular file of this user."""
    with _failures_of(folder / name, "reading"):
        try:
            with SafeFolder(folder) as held:
                descriptor = held.open(name)
        except FileNotFoundError:
            return None
        try:
            _check(os.fstat(descriptor), folder / name)
            data = read_at_most(descriptor, limit + 1)
        finally:
            os.close(descriptor)
    if len(data) > limit:
        raise FileError("a file is too long", where=folder / name, wanted=f"at most {limit} bytes")
    return data


def write_private(folder: Path, name: str, data: bytes) -> None:
    """Write the whole file or leave what was there. Call it under `one_writer`. Raises FileError."""
    partial = folder / f".{name}.partial"
    with _failures_of(folder / name, "writing"):
        descriptor = os.open(partial, _NEW, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, folder / name)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        holder = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(holder)
        finally:
            os.close(holder)


@contextmanager
def one_writer(folder: Path) -> Iterator[None]:
    """Makes the folder, and waits until no other process writes there."""
    make_private(folder)
    with _failures_of(folder / _LOCK, "locking"):
        lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        with _failures_of(folder / _LOCK, "locking"):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _check(status: os.stat_result, path: Path) -> None:
    if status.st_uid != os.geteuid():
        raise FileError("a private file belongs to another user", where=path, got=f"user {status.st_uid}")
    if status.st_mode & 0o077:
        raise FileError(
            "a private file is open to others",
            where=path,
            got=stat.filemode(status.st_mode),
            do=f"chmod go= {path}",
        )
