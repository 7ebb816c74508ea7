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
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    except BlockingIOError as problem:
        holder = os.pread(lock, 32, 0).decode("ascii", "replace").strip() or "unknown"
        os.close(lock)
        raise FileError(
            f"another process is writing {what}",
            where=folder,
            got=f"process {holder!a}",
            do="end that process, or use another folder",
        ) from problem
    except BaseException:
        os.close(lock)
        raise
    return lock
