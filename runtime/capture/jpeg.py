"""FrameWriter: pictures become JPEG files beneath a log's folder, whole or not there. It keeps no count of them."""

from __future__ import annotations

import errno
import itertools
import secrets
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from edgemem.runtime.capture.cameras.opencv import check_installed, encode_jpeg
from edgemem.runtime.capture.frame_folder import FRAMES
from edgemem.runtime.capture.picture import Picture
from edgemem.runtime.errors import FileError, SettingsError, shown
from edgemem.runtime.store.disk import Disk, RealDisk, write_whole

_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class Frame:
    """A picture on disk. path: relative to the log's folder, with "/"."""

    path: str
    size_bytes: int


class FrameWriter:
    """Writes `frames/2026-01-31/235959.123-1a2b3c4d-1.jpg`: date and time in UTC, this writer, and a running number.

    So no two files share a name, whatever the wall clock does and however many write.
    """

    def __init__(
        self,
        log_folder: Path,
        *,
        quality: int = 85,
        now: Callable[[], float] = time.time,
        open_disk: Callable[[Path], Disk] = RealDisk,
    ) -> None:
        """quality: of the JPEG, 1 to 100. now: seconds since 1970. Raises SettingsError, and EngineError if there is
        nothing to encode with."""
        check_installed()
        if type(quality) is not int or not 1 <= quality <= 100:
            raise SettingsError("the JPEG quality is out of range", got=shown(quality), wanted="1 to 100")
        self._folder = log_folder / FRAMES
        self._quality, self._now, self._open_disk = quality, now, open_disk
        self._writer, self._numbers = secrets.token_hex(4), itertools.count(1)

    def write(self, picture: Picture) -> Frame:
        """The picture as a file that outlasts a power loss. Raises FileError; nothing is left of it then."""
        data = encode_jpeg(picture.pixels, self._quality)
        now = self._now()
        when = time.gmtime(now)
        day = time.strftime("%Y-%m-%d", when)
        name = f"{time.strftime('%H%M%S', when)}.{int(now % 1 * 1000):03d}-{self._writer}-{next(self._numbers)}.jpg"
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with closing(self._open_disk(self._folder / day)) as disk:
                write_whole(disk, name, [data])
        except OSError as problem:
            raise self._error(problem) from problem
        return Frame(f"{FRAMES}/{day}/{name}", len(data))

    def _error(self, problem: OSError) -> FileError:
        if problem.errno in _FULL:
            return FileError("a picture cannot be written", where=self._folder, got="a full disk", do="make room")
        return FileError(
            "a picture cannot be written",
            where=self._folder,
            got=problem.strerror or problem,
            do="check the disk and the folder's permissions",
        )
