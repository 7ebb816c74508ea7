"""Upkeep: looking at a conversation on disk, repairing a damaged journal, and forgetting it. No engine is needed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edgemem.runtime.errors import StoreError
from edgemem.runtime.store.conversation import Conversation
from edgemem.runtime.store.disk import RealDisk, disk_error, write_whole
from edgemem.runtime.store.entries import Entry
from edgemem.runtime.store.journal import CUT_FILE
from edgemem.runtime.store.recovery import apply_frames, read_newest
from edgemem.runtime.store.segments import (
    Header,
    Segment,
    read_entries,
    read_file,
    segment_name,
    segment_numbers,
    sound_bytes,
)
from edgemem.runtime.store.snapshot import snapshot_name, snapshot_numbers


@dataclass(frozen=True)
class Look:
    """A conversation as it lies on disk. last: its last frame; segments: their first frames; snapshots: the frames
    they were taken at, newest first."""

    header: Header
    conversation: Conversation
    last: int
    segments: list[int]
    snapshots: list[int]


def look(folder: Path | str) -> Look:
    """What is in `folder`, also while a session writes there; nothing is changed. StoreError if it cannot be read."""
    with _opened(folder) as disk:
        segment = _newest(disk)
        apply_frames(disk, segment)
        begins, names = segment.header.begins, disk.names()
        segments = [number for number in segment_numbers(names) if number >= begins]
        snapshots = [number for number in snapshot_numbers(names) if number >= begins]
        return Look(segment.header, segment.conversation, segment.last, segments, snapshots)


def read_history(folder: Path | str) -> Iterator[Entry]:
    """All entries of the conversation in `folder`, read segment by segment; StoreError where one is damaged."""
    with _opened(folder) as disk:
        segment = _newest(disk)
        yield from read_entries(disk, segment.header.begins, segment.header.begins, segment.last)


def repair(folder: Path | str) -> int:
    """Cut the newest segment of the journal off at its first damage; gives how many bytes were set aside, 0 if it is
    sound. They go to the file journal.cut. Where the segment has no sound beginning all of it goes, and the one before
    is the newest. Raises StoreError if that would leave nothing, and while a session writes there."""
    with _opened(folder) as disk:
        disk.lock()
        numbers = segment_numbers(disk.names())
        if not numbers:
            raise StoreError("there is no journal to repair", where=disk.folder)
        name = segment_name(numbers[-1])
        data, sound = read_file(disk, name), sound_bytes(disk, numbers[-1])
        if 0 < sound == len(data):
            return 0
        if not sound and len(numbers) == 1:
            raise StoreError(
                "the journal has no sound beginning", where=disk.folder, do="`edgemem memory forget` begins anew"
            )
        write_whole(disk, CUT_FILE, [data[sound:]])
        if sound:
            file = disk.extend(name)
            disk.truncate(file, sound)
            disk.sync(file)
            disk.close_file(file)
        else:
            disk.remove(name)
            disk.sync_folder()
        return len(data) - sound


def forget(folder: Path | str) -> int:
    """Remove every file of the conversation in `folder`, readable or not, but the lock; gives how many.

    Raises StoreError while a session writes there, and if the disk refuses.
    """
    with _opened(folder) as disk:
        disk.lock()
        names = disk.names()
        files = [snapshot_name(number) for number in snapshot_numbers(names)]
        files += [name for name in names if name == CUT_FILE or name.endswith(".tmp")]
        files += [segment_name(number) for number in segment_numbers(names)]
        for name in files:
            disk.remove(name)
        disk.sync_folder()
        return len(files)


def _newest(disk: RealDisk) -> Segment:
    segment = read_newest(disk)
    if segment is None:
        raise StoreError("there is no conversation", where=disk.folder)
    return segment


@contextmanager
def _opened(folder: Path | str) -> Iterator[RealDisk]:
    if not Path(folder).is_dir():
        raise StoreError("there is no conversation", where=folder, wanted="a folder")
    try:
        disk = RealDisk(folder)
        try:
            yield disk
        finally:
            disk.close()
    except OSError as problem:
        raise disk_error(problem, "cannot work on the conversation", Path(folder)) from problem
