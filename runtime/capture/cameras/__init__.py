"""Cameras: a device that sleeps, a folder of images, a video file, a user's function; and a ring that looks back."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from edgemem.runtime.capture.cameras.device import DeviceCamera
from edgemem.runtime.capture.cameras.folder import FolderCamera
from edgemem.runtime.capture.cameras.video_file import VideoFileCamera
from edgemem.runtime.capture.picture import Camera
from edgemem.runtime.errors import DeviceError, FileError, shown

_WANTED = "a camera's number or device, a folder of images, or a video file"
_MOST_DEVICES = 1000


def open_camera(spec: str) -> Camera:
    """spec: "0" for the first camera of the machine, or a path; what lies there decides.

    A device is not opened yet. Raises FileError or DeviceError for what is none of those.
    """
    if spec.isascii() and spec.isdigit():
        if len(spec) > 3:
            raise DeviceError("there is no such camera", got=shown(spec), wanted=f"a number under {_MOST_DEVICES}")
        return DeviceCamera(int(spec))
    try:
        mode = os.stat(spec).st_mode
    except (OSError, ValueError) as problem:
        raise FileError("there is no such camera", got=shown(spec), wanted=_WANTED) from problem
    path = Path(spec)
    if stat.S_ISDIR(mode):
        return FolderCamera(path)
    if stat.S_ISREG(mode):
        return VideoFileCamera(path)
    if stat.S_ISCHR(mode):
        return DeviceCamera(str(path))
    raise FileError("this is no camera", where=path, got=stat.filemode(mode), wanted=_WANTED)
