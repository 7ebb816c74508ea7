"""Journal: the writing end. Frames go to the newest segment, one write and one sync each; full segments are followed
by new ones. What the disk refuses is an OSError, after which the journal must not be written again.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

from edgemem.runtime.store.disk import TEMPORARY, Disk, write_whole
from edgemem.runtime.store.frames import frame
from edgemem.runtime.store.segments import Header, Segment, opening, segment_name, segment_numbers
from edgemem.runtime.store.snapshot import snapshot_name, snapshot_numbers

CUT_FILE = "journal.cut"  # the last torn end that was cut off: whatever it was, it is not thrown away unseen


class Journal:
    """sequence: the last frame that is safe on the disk. size: bytes in the newest segment behind its first frame."""

    def __init__(self, disk: Disk, header: Header, *, sequence: int = 0) -> None:
        """`header`: for segments that will be begun. `begin`, or `stand_behind` and `resume`, come next."""
        self.header, self.sequence, self.size = header, sequence, 0
        self._disk, self._file = disk, -1

    def begin(self, checkpoint: bytes) -> None:
        """Begin the next segment: there whole with its name, or not at all."""
        self.close()
        content = opening(self.sequence + 1, self.header, checkpoint)
        write_whole(self._disk, segment_name(self.sequence + 1), [content])
        self._file = self._disk.extend(segment_name(self.sequence + 1))
        self.sequence, self.size = self.sequence + 1, 0

    def begin_anew(self, checkpoint: bytes) -> None:
        """The same, and nothing that was before belongs to the conversation any more: its files are removed."""
        self.header = replace(self.header, begins=self.sequence + 1)
        self.begin(checkpoint)
        self._remove_leftovers()

    def stand_behind(self, segment: Segment) -> None:
        """The next frame comes behind a segment that was read. Nothing is written."""
        self.sequence, self.size = segment.last, segment.entry_bytes
        self.header = replace(self.header, begins=segment.header.begins, created=segment.header.created)

    def resume(self, segment: Segment) -> None:
        """Make ready to write behind the segment that it stands behind. Its torn end is set aside and cut off, and all
        that was read is synced: a process that was killed may have left it in the system's memory alone."""
        if segment.torn:
            write_whole(self._disk, CUT_FILE, [segment.torn])
        self._file = self._disk.extend(segment_name(segment.first))
        if segment.torn:
            self._disk.truncate(self._file, segment.frames.stop)
        self._disk.sync(self._file)
        self._disk.sync_folder()
        self._remove_leftovers()

    def append(self, payload: bytes) -> None:
        """One more frame, safe on the disk when this returns."""
        content = frame(self.sequence + 1, payload)
        self._disk.write(self._file, content)
        self._disk.sync(self._file)
        self.sequence += 1
        self.size += len(content)

    def close(self) -> None:
        if self._file >= 0:
            with suppress(OSError):  # nothing unsynced is of worth
                self._disk.close_file(self._file)
        self._file = -1

    def _remove_leftovers(self) -> None:
        """What a crash left half done, all of a conversation that was forgotten, and snapshots of frames that are not
        there any more."""
        names, begins = self._disk.names(), self.header.begins
        old = [name for name in names if name.endswith(TEMPORARY) and name.startswith(("journal", "snapshot"))]
        old += [snapshot_name(number) for number in snapshot_numbers(names) if not begins <= number <= self.sequence]
        segments = [segment_name(number) for number in segment_numbers(names) if number < begins]
        if segments and CUT_FILE in names:
            old.append(CUT_FILE)
        for name in (*old, *segments):
            self._disk.remove(name)
        if old or segments:
            self._disk.sync_folder()
