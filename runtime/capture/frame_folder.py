"""FrameFolder: the JPEG files in the folder `frames` beneath a log's. Follows no links, and touches nothing else.

Knows no events: which of the files belong to one is for the log to say.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from contextlib import suppress
from pathlib import Path

FRAMES = "frames"
_PART = r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}"
_FRAME = re.compile(rf"{FRAMES}/(?:{_PART}/){{0,2}}{_PART}\.jpg", re.ASCII)
_FOLDER = os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY | os.O_NOFOLLOW
_OURS = (".jpg", ".tmp")  # a frame, and one that was being written


def checked_frame(path: str) -> str:
    """The path itself, `frames/NAME.jpg` with at most two folders between. Raises ValueError for any other."""
    if not _FRAME.fullmatch(path):
        raise ValueError(f"a frame at {path[:200]!a}, wanted frames/NAME.jpg")
    return path


class FrameFolder:
    """Held open until `close`. Every method raises OSError for what the system refuses."""

    def __init__(self, log_folder: Path, *, make: bool) -> None:
        """make: the folder where it is not there; without, it has no frames then."""
        path = log_folder / FRAMES
        if make:
            path.mkdir(mode=0o700, exist_ok=True)
        try:
            self._descriptor = os.open(path, _FOLDER)
        except FileNotFoundError:
            self._descriptor = -1

    def sizes(self) -> dict[str, int]:
        """Path, as events have it, and size in bytes of every file that is a frame or was to become one."""
        if self._descriptor < 0:
            return {}
        found: dict[str, int] = {}
        for folder, _, names, descriptor in os.fwalk(".", dir_fd=self._descriptor, onerror=_raise):
            for name in names:
                if name.endswith(_OURS):
                    with suppress(FileNotFoundError):  # the listener finishes and removes some meanwhile
                        status = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
                        if stat.S_ISREG(status.st_mode):
                            found[os.path.normpath(f"{FRAMES}/{folder}/{name}")] = status.st_size
        return found

    def size(self, frame: str) -> int:
        """Bytes of one frame; 0 where there is no such file."""
        try:
            parent, name = self._parent(frame)
        except FileNotFoundError:
            return 0
        try:
            status = os.stat(name, dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            return 0
        finally:
            os.close(parent)
        return status.st_size if stat.S_ISREG(status.st_mode) else 0

    def remove(self, frame: str) -> bool:
        """Whether there was such a file."""
        try:
            parent, name = self._parent(frame)
        except FileNotFoundError:
            return False
        try:
            os.unlink(name, dir_fd=parent)
        except FileNotFoundError:
            return False
        finally:
            os.close(parent)
        return True

    def remove_empty_folders(self) -> None:
        """Only while nobody writes frames."""
        if self._descriptor < 0:
            return
        for _, folders, _, descriptor in os.fwalk(".", topdown=False, dir_fd=self._descriptor, onerror=_raise):
            for folder in folders:
                try:
                    os.rmdir(folder, dir_fd=descriptor)
                except OSError as problem:
                    if problem.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):  # the last of a link
                        raise

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _parent(self, frame: str) -> tuple[int, str]:
        """A descriptor of the folder that the frame lies in, the caller's to close, and its name there."""
        if self._descriptor < 0:
            raise FileNotFoundError(frame)
        _, *folders, name = frame.split("/")
        parent = os.dup(self._descriptor)
        for folder in folders:
            above = parent
            try:
                parent = os.open(folder, _FOLDER, dir_fd=above)
            finally:
                os.close(above)
        return parent, name


def _raise(problem: OSError) -> None:
    if not isinstance(problem, FileNotFoundError):  # the listener removes folders meanwhile
        raise problem
