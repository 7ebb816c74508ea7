"""The lock by which one process at a time writes a folder. The system drops it when the process ends in any way."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from edgemem.runtime.errors import FileError

LOCK_FILE = "lock"
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NOCTTY


def lock_folder(folder: Path, what: str) -> int:
    """A descriptor that holds the folder's lock until it is closed. what: is written there, for the message.

    Raises FileError, naming the process that was here first; OSError where the lock file cannot be made.
    """
    lock = os.open(folder / LOCK_FILE, _FLAGS, 0o600)
    try:
        take_lock(lock, folder, what)
    except BaseException:
        os.close(lock)
        raise
    return lock


def take_lock(lock: int, folder: Path, what: str, error: type[FileError] = FileError) -> None:
    """The same with an open lock file, which stays open. Raises `error`, naming the process that was here first."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as problem:
        holder = os.pread(lock, 32, 0).decode("ascii", "replace").strip() or "unknown"
        raise error(
            f"another process is writing {what}",
            where=folder,
            got=f"process {holder if holder.isalnum() else ascii(holder)}",
            do="end that process, or use another folder",
        ) from problem
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
