"""Cameras: images and videos made here, devices and functions that fail in every way, and the ring."""

from __future__ import annotations

import os
import re
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgemem.runtime.capture.cameras import open_camera
from edgemem.runtime.capture.cameras.callable import CallableCamera
from edgemem.runtime.capture.cameras.device import DeviceCamera, DeviceSettings
from edgemem.runtime.capture.cameras.folder import FolderCamera
from edgemem.runtime.capture.cameras.image_header import image_size
from edgemem.runtime.capture.cameras.opencv import decode_image, encode_jpeg
from edgemem.runtime.capture.cameras.ring import Kept, Ring, RingCamera, RingSettings
from edgemem.runtime.capture.cameras.video_file import VideoFileCamera
from edgemem.runtime.capture.picture import Picture
from edgemem.runtime.errors import DeviceError, FileError, SettingsError

Pixels = NDArray[np.uint8]
GREYS = range(0, 250, 10)  # one for each frame of the video
VIDEO_RATE = 10


def grey(value: int, height: int = 32, width: int = 48) -> Pixels:
    return np.full((height, width, 3), value, np.uint8)


def shade(picture: Picture) -> float:
    return float(picture.pixels.mean())


def png(pixels: Pixels) -> bytes:
    """pixels in OpenCV's order."""
    return bytes(cv2.imencode(".png", pixels)[1])


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2.5 seconds, 10 pictures a second, each 10 brighter than the one before."""
    path = tmp_path_factory.mktemp("video") / "greys.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), VIDEO_RATE, (48, 32))
    for value in GREYS:
        writer.write(grey(value))
    writer.release()
    return path


# Images


@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from([".png", ".jpg"]))
def test_the_size_in_the_header_is_the_images(width: int, height: int, ending: str) -> None:
    data = bytes(cv2.imencode(ending, grey(7, height, width))[1])
    assert image_size(data) == (width, height)
    assert decode_image(data, "here").shape == (height, width, 3)


@given(st.one_of(st.binary(max_size=40), st.binary(max_size=60).map(lambda rest: b"\xff\xd8\xff" + rest)))
def test_any_bytes_are_an_image_or_a_clear_error(data: bytes) -> None:
    try:
        width, height = image_size(data)
    except ValueError:
        with pytest.raises(FileError, match="this is no image"):
            decode_image(data, "here")
    else:
        assert width > 0
        assert height > 0


@pytest.mark.parametrize("ending", [".png", ".jpg"])
def test_an_image_cut_within_its_header_is_refused(ending: str) -> None:
    data = bytes(cv2.imencode(ending, grey(7))[1])
    for length in range(24 if ending == ".png" else 150):
        with pytest.raises(FileError, match="this is no image"):
            decode_image(data[:length], "here")


def test_an_image_without_its_content_is_refused() -> None:
    with pytest.raises(FileError, match="could not be decoded"):
        decode_image(png(grey(7))[:40], "here")


def test_a_huge_image_is_refused_before_it_is_decoded() -> None:
    header = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sIIBBBBB", 13, b"IHDR", 100_000, 100_000, 8, 2, 0, 0, 0)
    with pytest.raises(FileError, match="100000x100000"):
        decode_image(header + bytes(100), "here")


def test_pixels_are_red_green_blue() -> None:
    blue_first = grey(0)
    blue_first[...] = (200, 100, 50)
    assert decode_image(png(blue_first), "here")[0, 0].tolist() == [50, 100, 200]
    assert decode_image(encode_jpeg(blue_first, 95), "here")[0, 0] == pytest.approx([200, 100, 50], abs=4)


# A folder


def test_a_folder_gives_its_images_by_name_and_again(tmp_path: Path) -> None:
    for name, value in (("b.png", 20), ("a.JPG", 10), ("c.jpeg", 30)):
        (tmp_path / name).write_bytes(bytes(cv2.imencode(Path(name).suffix.lower(), grey(value))[1]))
    (tmp_path / "LICENSE.txt").write_text("not an image")
    camera = open_camera(str(tmp_path))
    pictures = [camera.take(at_s) for at_s in (1.0, 2.0, 5.0, 6.0)]
    assert [round(shade(picture)) for picture in pictures] == [10, 20, 30, 10]
    assert [picture.at_s for picture in pictures] == [1.0, 2.0, 5.0, 6.0]
    camera.sleep()
    camera.close()


def test_a_bad_image_is_an_error_once_and_the_next_one_comes(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no image")
    (tmp_path / "b.png").write_bytes(png(grey(20)))
    (tmp_path / "c.png").write_bytes(b"")
    os.mkfifo(tmp_path / "d.png")
    (tmp_path / "e.png").mkdir()
    (tmp_path / "f.png").symlink_to(tmp_path / "missing")
    camera = FolderCamera(tmp_path)
    told = []
    for _ in range(7):
        try:
            told.append(str(round(shade(camera.take(0.0)))))
        except FileError as problem:
            told.append(problem.what)
    assert told == ["this is no image", "20", *["an image cannot be read"] * 4, "this is no image"]


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing to see")
    with pytest.raises(FileError, match="no images"):
        FolderCamera(tmp_path)
    with pytest.raises(FileError, match="No such file"):
        FolderCamera(tmp_path / "missing")


# A video


def test_a_video_shows_what_it_showed_at_that_time(video: Path) -> None:
    camera = open_camera(str(video))
    for at_s, frame in ((0.0, 0), (0.1, 1), (0.19, 1), (1.55, 15), (0.7, 7), (0.7, 7), (2.49, 24)):
        picture = camera.take(at_s)
        assert shade(picture) == pytest.approx(GREYS[frame], abs=3)
        assert picture.at_s == at_s
    camera.sleep()
    assert shade(camera.take(-0.5)) == pytest.approx(GREYS[0], abs=3)
    camera.close()


@pytest.mark.parametrize("at_s", [2.5, 3.0, 1e9])
def test_beyond_its_end_a_video_shows_nothing(video: Path, at_s: float) -> None:
    camera = VideoFileCamera(video)
    with pytest.raises(FileError, match=r"the video ends at 2.50 s"):
        camera.take(at_s)
    assert shade(camera.take(1.0)) == pytest.approx(GREYS[10], abs=3)
    camera.close()


def test_what_is_no_video_is_refused(tmp_path: Path, video: Path) -> None:
    for name, content in (
        ("text.mp4", b"no video at all" * 100),
        ("empty.avi", b""),
        ("cut.avi", video.read_bytes()[:200]),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(FileError, match=r"no video|how long"):
            VideoFileCamera(tmp_path / name)
    with pytest.raises(FileError, match="must not contain"):
        VideoFileCamera(tmp_path / "images%02d.png")


def test_a_damaged_video_never_shows_a_picture_of_another_time(tmp_path: Path, video: Path) -> None:
    data = bytearray(video.read_bytes())
    fifth = [match.start() for match in re.finditer(rb"00dc....\xff\xd8", data, re.DOTALL)][4]
    length = int.from_bytes(data[fifth + 4 : fifth + 8], "little")
    data[fifth + 8 : fifth + 8 + length] = bytes(length)
    (tmp_path / "damaged.avi").write_bytes(bytes(data))
    camera = VideoFileCamera(tmp_path / "damaged.avi")
    shown = []
    for frame, value in enumerate(GREYS):
        try:
            picture = camera.take(frame / VIDEO_RATE)
        except FileError:
            continue
        assert shade(picture) == pytest.approx(value, abs=3)
        shown.append(frame)
    assert 4 not in shown
    assert {0, 1, 2, 3, 24} <= set(shown)  # seeking begins some frames ahead, so a few behind are lost too
    camera.close()


# A device


class FakeStream:
    """Frames that count up, from an open device."""

    def __init__(self, device: FakeDevice) -> None:
        self.device = device

    def skip(self, frames: int) -> bool:
        self.device.shown += frames
        return not self.device.unplugged

    def read(self) -> Pixels | None:
        self.device.shown += not self.device.frozen
        return None if self.device.unplugged else grey(self.device.shown % 256)

    def close(self) -> None:
        self.device.opened -= 1


class FakeDevice:
    """opened: streams that are open now. shown: the frame shown last. refusal: why it cannot be opened."""

    def __init__(self) -> None:
        self.opened, self.openings, self.shown = 0, 0, 0
        self.unplugged = self.frozen = False
        self.refusal: DeviceError | None = None

    def open(self, device: int | str) -> FakeStream:
        assert device == 7
        if self.refusal is not None:
            raise self.refusal
        self.opened += 1
        self.openings += 1
        return FakeStream(self)

    def camera(self, **settings: int) -> DeviceCamera:
        return DeviceCamera(7, DeviceSettings(**settings), self.open)


def test_a_device_sleeps_until_a_picture_is_wanted_and_warms_up() -> None:
    device = FakeDevice()
    camera = device.camera(warm_up_frames=8, stale_frames=4)
    assert device.opened == 0
    assert shade(camera.take(0.0)) == 9  # after eight that were discarded
    assert shade(camera.take(1.0)) == 14  # after four that had been waiting
    assert device.opened == 1
    camera.sleep()
    assert device.opened == 0
    assert shade(camera.take(2.0)) == 23
    assert device.openings == 2
    camera.close()
    camera.close()
    assert device.opened == 0


def test_an_unplugged_device_is_closed_and_opened_again_when_it_is_back() -> None:
    device = FakeDevice()
    camera = device.camera()
    camera.take(0.0)
    for _ in range(1000):
        device.unplugged = True
        with pytest.raises(DeviceError, match="gives no picture"):
            camera.take(1.0)
        assert device.opened == 0
        device.unplugged = False
        camera.take(2.0)
        assert device.opened == 1


def test_a_device_that_cannot_be_opened_says_why() -> None:
    device = FakeDevice()
    device.refusal = DeviceError("the camera cannot be opened", got="it is in use")
    camera = device.camera()
    with pytest.raises(DeviceError, match="it is in use"):
        camera.take(0.0)
    device.refusal = None
    camera.take(1.0)


def test_a_frozen_device_is_a_fault_until_its_picture_changes() -> None:
    device = FakeDevice()
    camera = device.camera(warm_up_frames=0, stale_frames=0, frozen_frames=3)
    camera.take(0.0)
    device.frozen = True
    camera.take(1.0)  # equal to the first: the second in a row
    for _ in range(3):
        with pytest.raises(DeviceError, match="frozen, or its lens is covered"):
            camera.take(2.0)
        assert device.opened == 0
    device.frozen = False
    camera.take(3.0)


def test_equal_pictures_are_no_fault_when_that_is_switched_off() -> None:
    device = FakeDevice()
    device.frozen = True
    camera = device.camera(warm_up_frames=0, stale_frames=0, frozen_frames=0)
    assert [shade(camera.take(at_s)) for at_s in range(20)] == [0] * 20


@pytest.mark.parametrize("change", [{"warm_up_frames": -1}, {"stale_frames": 1.0}, {"frozen_frames": 1}])
def test_device_settings_out_of_range_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match=next(iter(change))):
        DeviceSettings(**change)


def test_a_missing_device_is_told_at_the_first_picture() -> None:
    with pytest.raises(DeviceError, match="there is no such camera"):
        open_camera("987").take(0.0)


def test_a_device_that_is_no_camera_cannot_be_opened() -> None:
    camera = open_camera("/dev/null")
    with pytest.raises(DeviceError, match="the camera cannot be opened"):
        camera.take(0.0)


@pytest.mark.parametrize("spec", ["", "missing.mp4", "1000", "²", "-1", "a\0b", "http://host/video"])
def test_what_names_no_camera_is_refused(spec: str) -> None:
    with pytest.raises((FileError, DeviceError), match="there is no such camera"):
        open_camera(spec).take(0.0)


def test_a_pipe_is_no_camera(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileError, match="this is no camera"):
        open_camera(str(tmp_path / "pipe"))


# A function


def test_a_function_is_a_camera() -> None:
    buffer = grey(0)

    def look(at_s: float) -> Pixels:
        buffer[...] = int(at_s)
        return buffer

    camera = CallableCamera(look, "mine")
    first, second = camera.take(3.0), camera.take(4.0)
    assert (shade(first), shade(second)) == (3, 4)  # each its own, though the buffer is used again
    assert (first.at_s, camera.name) == (3.0, "mine")


@pytest.mark.parametrize(
    "returned",
    [
        None,
        [[0]],
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.broadcast_to(np.uint8(0), (10_000, 10_000, 3)),
    ],
)
def test_a_function_that_returns_no_picture_is_a_device_error(returned: Any) -> None:
    with pytest.raises(DeviceError, match="returned no picture"):
        CallableCamera(lambda _: returned).take(0.0)


def test_what_a_function_raises_is_a_device_error() -> None:
    def broken(_: float) -> Pixels:
        raise RuntimeError("no light")

    def ours(_: float) -> Pixels:
        raise FileError("no such scene")

    with pytest.raises(DeviceError, match="no light"):
        CallableCamera(broken).take(0.0)
    with pytest.raises(FileError, match="no such scene"):
        CallableCamera(ours).take(0.0)


# The ring


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(1, 400)), max_size=60), st.integers(0, 600))
def test_a_ring_is_bounded_and_gives_the_nearest(added: list[tuple[int, int]], wanted: int) -> None:
    settings = RingSettings(seconds=5, per_s=2, most_bytes=1500)
    ring, all_kept, at = Ring(settings), [], 0
    for step, size in added:
        at += step
        all_kept.append(Kept(at / 10, bytes(size)))
        ring.add(all_kept[-1])
        kept = all_kept[-len(ring) :]
        assert ring.held_bytes == sum(len(each.jpeg) for each in kept) <= 1500
        assert 1 <= len(ring) <= settings.slots == 11
        if len(ring) < min(len(all_kept), 11):  # it let go of one more only for its bytes
            assert ring.held_bytes + len(all_kept[-len(ring) - 1].jpeg) > 1500
    found = ring.nearest(wanted / 10)
    if not added or wanted / 10 - at / 10 > 1:
        assert found is None
    else:
        assert found is not None
        assert found in kept
        assert abs(found.at_s - wanted / 10) == min(abs(each.at_s - wanted / 10) for each in kept)


@pytest.mark.parametrize("change", [{"seconds": 0}, {"per_s": float("nan")}, {"most_bytes": True}])
def test_ring_settings_out_of_range_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match=next(iter(change))):
        RingSettings(**change)


class Scene:
    """A camera and a clock for a ring: each picture is taken 0.01 s after the one before, as bright as its number.
    `wait` blocks until so many were taken."""

    name = "scene"

    def __init__(self) -> None:
        self.taken, self.closed = 0, False
        self.problem: Exception | None = None
        self._more = threading.Condition()

    def now_s(self) -> float:
        return self.taken / 100

    def take(self, at_s: float) -> Picture:
        with self._more:
            self.taken += 1
            self._more.notify_all()
            if self.problem is not None:
                raise self.problem
        return Picture(grey(round(at_s * 100) % 256), at_s)

    def sleep(self) -> None:
        raise AssertionError("a ring never lets its camera sleep")

    def close(self) -> None:
        self.closed = True

    def wait(self, taken: int) -> None:
        with self._more:
            assert self._more.wait_for(lambda: self.taken >= taken, 10)


@pytest.fixture
def started() -> Iterator[Callable[[Scene, RingSettings], RingCamera]]:
    cameras: list[RingCamera] = []

    def start(scene: Scene, settings: RingSettings) -> RingCamera:
        cameras.append(RingCamera(scene, scene.now_s, settings))
        return cameras[-1]

    yield start
    for camera in cameras:
        camera.close()


def test_a_ring_gives_pictures_of_before(started: Callable[[Scene, RingSettings], RingCamera]) -> None:
    scene = Scene()
    camera = started(scene, RingSettings(seconds=10, per_s=100))
    scene.wait(12)  # that of 0.10 s is kept by now
    assert [round(shade(camera.take(at_s))) for at_s in (0.1, 0.072, 0.03)] == [10, 7, 3]
    assert camera.take(0.072).at_s == 0.07
    camera.sleep()
    camera.close()
    assert scene.closed
    assert all(thread.name != "edgemem-ring" for thread in threading.enumerate())


@pytest.mark.parametrize("problem", [DeviceError("unplugged"), RuntimeError("unplugged")])
def test_a_ring_whose_camera_is_lost_says_so_until_it_is_back(
    started: Callable[[Scene, RingSettings], RingCamera], problem: Exception
) -> None:
    scene = Scene()
    camera = started(scene, RingSettings(seconds=10, per_s=100))
    scene.wait(3)
    scene.problem = problem
    scene.wait(scene.taken + 2)
    with pytest.raises(DeviceError, match="unplugged"):
        camera.take(scene.now_s() + 5)
    scene.problem = None
    scene.wait(scene.taken + 2)
    assert camera.take(scene.now_s() - 0.02).at_s > 0.03  # one of those that came after the loss
