"""Pictures on disk: whole or not there, under a name of their own."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgemem.runtime.capture.cameras.opencv import decode_image
from edgemem.runtime.capture.frame_folder import checked_frame
from edgemem.runtime.capture.jpeg import FrameWriter
from edgemem.runtime.capture.picture import Picture
from edgemem.runtime.errors import FileError, SettingsError
from edgemem.runtime.store.disk import Bytes, Disk, RealDisk

LAST_OF_2026_S = 1798761599.9996  # 2026-12-31 23:59:59, almost the next second


def ramp() -> Picture:
    """Red grows to the right, blue downwards."""
    pixels = np.zeros((48, 64, 3), np.uint8)
    pixels[..., 0] = np.arange(64) * 4
    pixels[..., 2] = np.arange(48)[:, None] * 5
    return Picture(pixels, 1.0)


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_picture_is_written_and_reads_back(tmp_path: Path) -> None:
    frame = FrameWriter(tmp_path / "log", now=lambda: LAST_OF_2026_S).write(ramp())
    path = tmp_path / "log" / frame.path
    assert frame.size_bytes == path.stat().st_size
    assert checked_frame(frame.path).startswith("frames/2026-12-31/235959.999-")
    assert files(tmp_path / "log") == [frame.path]
    read = decode_image(path.read_bytes(), path)
    assert np.abs(read.astype(int) - ramp().pixels).mean() < 4


def test_what_is_written_is_private(tmp_path: Path) -> None:
    frame = FrameWriter(tmp_path / "log").write(ramp())
    modes = [stat.S_IMODE((tmp_path / "log" / part).stat().st_mode) for part in ("frames", Path(frame.path).parent)]
    assert modes == [0o700, 0o700]
    assert stat.S_IMODE((tmp_path / "log" / frame.path).stat().st_mode) == 0o600


def test_quality_changes_the_size(tmp_path: Path) -> None:
    noise = Picture(np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8), 0.0)
    sizes = [FrameWriter(tmp_path, quality=quality).write(noise).size_bytes for quality in (10, 50, 95)]
    assert sizes[0] < sizes[1] < sizes[2]


@pytest.mark.parametrize("quality", [0, 101, 85.0, True])
def test_quality_out_of_range_is_refused(tmp_path: Path, quality: int) -> None:
    with pytest.raises(SettingsError, match="JPEG quality"):
        FrameWriter(tmp_path, quality=quality)


def test_names_never_meet_even_when_the_clock_stands_still(tmp_path: Path) -> None:
    writers = [FrameWriter(tmp_path, now=lambda: LAST_OF_2026_S) for _ in range(3)]
    frames = {writer.write(ramp()).path for writer in writers for _ in range(4)}
    assert files(tmp_path) == sorted(frames)
    assert len(frames) == 12


def test_a_wall_clock_that_is_moved_only_changes_the_folder(tmp_path: Path) -> None:
    times = iter([LAST_OF_2026_S, LAST_OF_2026_S - 86_400, LAST_OF_2026_S + 86_400])
    writer = FrameWriter(tmp_path, now=lambda: next(times))
    days = [writer.write(ramp()).path.split("/")[1] for _ in range(3)]
    assert days == ["2026-12-31", "2026-12-30", "2027-01-01"]


def test_a_day_folder_that_was_removed_is_made_again(tmp_path: Path) -> None:
    writer = FrameWriter(tmp_path, now=lambda: LAST_OF_2026_S)
    first = tmp_path / writer.write(ramp()).path
    first.unlink()
    first.parent.rmdir()
    assert (tmp_path / writer.write(ramp()).path).is_file()


class FailingDisk(RealDisk):
    """Refuses one operation."""

    def __init__(self, folder: Path, operation: str, code: int) -> None:
        super().__init__(folder)
        self._operation, self._code = operation, code

    def _refuse(self, operation: str) -> None:
        if operation == self._operation:
            raise OSError(self._code, os.strerror(self._code))

    def write(self, file: int, data: Bytes) -> None:
        super().write(file, bytes(data)[: len(data) // 2])  # a full disk takes some of it
        self._refuse("write")

    def sync(self, file: int) -> None:
        self._refuse("sync")

    def rename(self, old: str, new: str) -> None:
        self._refuse("rename")


def failing(operation: str, code: int) -> Callable[[Path], Disk]:
    return lambda folder: FailingDisk(folder, operation, code)


@pytest.mark.parametrize("operation", ["write", "sync", "rename"])
def test_a_full_disk_is_a_clear_error_and_leaves_nothing(tmp_path: Path, operation: str) -> None:
    with pytest.raises(FileError, match="a full disk"):
        FrameWriter(tmp_path, open_disk=failing(operation, errno.ENOSPC)).write(ramp())
    assert files(tmp_path) == []


def test_another_refusal_is_told_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="Input/output error"):
        FrameWriter(tmp_path, open_disk=failing("sync", errno.EIO)).write(ramp())


def test_a_file_where_the_folder_should_be_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "frames").write_bytes(b"")
    with pytest.raises(FileError, match="a picture cannot be written"):
        FrameWriter(tmp_path).write(ramp())


def test_a_picture_too_wide_for_jpeg_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="could not be encoded as JPEG"):
        FrameWriter(tmp_path).write(Picture(np.zeros((1, 70_000, 3), np.uint8), 0.0))
    assert files(tmp_path) == []
