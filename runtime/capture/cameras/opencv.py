"""The one adapter over OpenCV: images decoded and encoded, devices and video files read. Pixels are RGB here.

It checks sizes before anything is decoded, and turns OpenCV's refusals into errors. When to open what is not its job.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemem.runtime.capture.cameras.image_header import image_size
from edgemem.runtime.errors import DeviceError, EngineError, FileError

MAX_PIXELS = 50_000_000  # of one picture: 150 MB

Pixels = NDArray[np.uint8]


def check_installed() -> None:
    """Raises EngineError if there is no OpenCV."""
    _cv2()


def decode_image(data: bytes, where: object) -> Pixels:
    """(height, width, 3) of a JPEG or PNG, turned upright as its EXIF says. Raises FileError, naming `where`."""
    try:
        width, height = image_size(data)
    except ValueError as problem:
        raise FileError("this is no image", where=where, got=problem, wanted="a JPEG or PNG file") from problem
    _check_size(width, height, where)
    cv2 = _cv2()
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as problem:
        raise FileError("an image could not be decoded", where=where, got=problem) from problem
    if pixels is None:
        raise FileError("an image could not be decoded", where=where, got="damaged data", do="replace the file")
    return _rgb(pixels)


def encode_jpeg(pixels: Pixels, quality: int) -> bytes:
    """pixels: (height, width, 3). quality: 1 to 100. Raises FileError for what JPEG cannot hold."""
    cv2 = _cv2()
    try:
        done, data = cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), (cv2.IMWRITE_JPEG_QUALITY, quality))
    except cv2.error as problem:
        raise FileError("a picture could not be encoded as JPEG", got=f"pixels of shape {pixels.shape}") from problem
    if not done:
        raise FileError("a picture could not be encoded as JPEG", got=f"pixels of shape {pixels.shape}")
    return bytes(data)


class VideoStream:
    """An open device or video file. Not for two threads at once."""

    def __init__(self, capture: Any, where: object) -> None:
        """capture: an open cv2.VideoCapture, which is now this stream's."""
        self._capture, self._where = capture, where

    @property
    def frames_per_s(self) -> float:
        """As the container says; may be anything."""
        return float(self._capture.get(_cv2().CAP_PROP_FPS))

    @property
    def frames(self) -> float:
        """As the container says or estimates; may be anything."""
        return float(self._capture.get(_cv2().CAP_PROP_FRAME_COUNT))

    def seek(self, frame: int) -> bool:
        """The next to be read is this one, counted from 0. False if that cannot be."""
        place = _cv2().CAP_PROP_POS_FRAMES
        # It says that it is done even where damage has stopped it halfway.
        return bool(self._capture.set(place, frame)) and self._capture.get(place) == frame

    def skip(self, frames: int) -> bool:
        """Let so many go by. False if there were not as many."""
        return all(self._capture.grab() for _ in range(frames))

    def read(self) -> Pixels | None:
        """The next picture, or None if none came. Raises FileError for an oversized one."""
        done, pixels = self._capture.read()
        if not done or pixels is None or pixels.ndim != 3:
            return None
        _check_size(pixels.shape[1], pixels.shape[0], self._where)
        return _rgb(pixels)

    def close(self) -> None:
        self._capture.release()


def open_device(device: int | str) -> VideoStream:
    """device: its number, or its path. Raises DeviceError, saying whether it is missing, forbidden or in use."""
    path = Path(f"/dev/video{device}") if isinstance(device, int) else Path(device)
    cv2 = _cv2()
    if Path("/dev").is_dir() and not path.exists():
        there = ", ".join(sorted(str(other) for other in Path("/dev").glob("video*"))) or "no camera"
        raise DeviceError("there is no such camera", where=path, got=there, do="plug it in, or name another")
    if path.exists() and not os.access(path, os.R_OK | os.W_OK):
        raise DeviceError("no permission for the camera", where=path, do="add this user to the group 'video'")
    # Not left to choose on Linux, it would try to read the device like a file of video first.
    capture = cv2.VideoCapture(device, cv2.CAP_V4L2 if sys.platform == "linux" else cv2.CAP_ANY)
    if not capture.isOpened():
        capture.release()
        raise DeviceError(
            "the camera cannot be opened",
            where=path,
            got="it is in use, or gives no pictures",
            do="close the program that uses it, or name another camera",
        )
    capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)  # a hint that some drivers take: fewer old pictures
    return VideoStream(capture, path)


def open_video(path: Path) -> VideoStream:
    """Raises FileError for what is no video, or has oversized pictures."""
    cv2 = _cv2()
    # Absolute, so that no name is taken for a URL, and without "%", which OpenCV reads as a series of images.
    if "%" in str(path):
        raise FileError("a video's path must not contain '%'", where=path)
    capture = cv2.VideoCapture(str(path.absolute()), cv2.CAP_FFMPEG)
    if not capture.isOpened():
        capture.release()
        raise FileError("this is no video that can be read", where=path, wanted="MP4, MKV, AVI or the like")
    stream = VideoStream(capture, path)
    try:
        _check_size(capture.get(cv2.CAP_PROP_FRAME_WIDTH), capture.get(cv2.CAP_PROP_FRAME_HEIGHT), path)
    except FileError:
        stream.close()
        raise
    return stream


def _check_size(width: float, height: float, where: object) -> None:
    if not (width > 0 and height > 0 and width * height <= MAX_PIXELS):
        raise FileError(
            "a picture has no size that can be held",
            where=where,
            got=f"{width:.0f}x{height:.0f}",
            wanted=f"at most {MAX_PIXELS} pixels",
        )


def _rgb(pixels: Any) -> Pixels:
    cv2 = _cv2()
    return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB), np.uint8)


def _cv2() -> Any:
    try:
        import cv2
    except ImportError as missing:
        raise EngineError(
            "cameras and JPEG files need OpenCV, which is not installed",
            got=missing,
            do='pip install "edgemem-runtime[capture]"',
        ) from missing
    return cv2
