"""PauseSwitch: while it is on, nothing is heard and nothing is taken.

With a folder it is a file there, which whoever may write there can make or remove, and which outlasts the process.
"""

from __future__ import annotations

import threading
from pathlib import Path

from edgemem.runtime.capture.picture import Camera, Picture
from edgemem.runtime.errors import EdgememError, FileError

PAUSED_FILE = "PAUSED"


class PauseSwitch:
    def __init__(self, folder: Path | None = None) -> None:
        self._file = None if folder is None else folder / PAUSED_FILE
        self._flag = threading.Event()

    @property
    def is_on(self) -> bool:
        """Also where it cannot be told: a switch for privacy fails to the safe side."""
        if self._file is None or self._flag.is_set():
            return self._flag.is_set()
        try:
            self._file.lstat()
        except FileNotFoundError:
            return False
        except OSError:
            return True
        return True

    def turn_on(self) -> None:
        """Raises FileError where the file cannot be made; in this process it is on all the same."""
        self._flag.set()
        if self._file is not None:
            try:
                self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._file.touch()
            except OSError as problem:
                raise _error("the pause cannot be kept", self._file, problem) from problem

    def turn_off(self) -> None:
        """Raises FileError where the file cannot be removed; it is still on then."""
        if self._file is not None:
            try:
                self._file.unlink(missing_ok=True)
            except OSError as problem:
                raise _error("the pause cannot be ended", self._file, problem) from problem
        self._flag.clear()


def _error(what: str, path: Path, problem: OSError) -> FileError:
    return FileError(what, where=path, got=problem.strerror, do="check the folder's permissions")


class CoveredCamera:
    """A Camera over another, which takes no picture while the switch is on."""

    def __init__(self, camera: Camera, switch: PauseSwitch) -> None:
        self.name = camera.name
        self._camera, self._switch = camera, switch

    def take(self, at_s: float) -> Picture:
        """Raises EdgememError while the switch is on, and what the camera raises."""
        if self._switch.is_on:
            self._camera.sleep()
            raise EdgememError("capture is paused", where=self.name)
        return self._camera.take(at_s)

    def sleep(self) -> None:
        self._camera.sleep()

    def close(self) -> None:
        self._camera.close()
