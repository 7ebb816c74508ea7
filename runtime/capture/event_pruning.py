"""What leaves an event log: what is too old, what is too much, and frames and rows that have lost each other.

Rows first, committed, then files: a crash between leaves a file without a row, which goes when the log is next opened.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass

from edgemem.runtime.capture.event_database import transaction
from edgemem.runtime.capture.frame_folder import FrameFolder, checked_frame

FRAME_PRUNED = "frame removed to make room"
FRAME_MISSING = "frame missing"
_WITHOUT_FRAME = "UPDATE events SET frame = NULL, reason = ifnull(reason || '; ', '') || ? WHERE frame = ?"


@dataclass(frozen=True)
class Pruned:
    """How many events and frames are gone, and the bytes of the frames."""

    events: int = 0
    frames: int = 0
    frame_bytes: int = 0

    def __add__(self, other: Pruned) -> Pruned:
        sums = (self.events + other.events, self.frames + other.frames, self.frame_bytes + other.frame_bytes)
        return Pruned(*sums)


def reconcile(connection: sqlite3.Connection, frames: FrameFolder) -> int:
    """Rows whose frame is missing or empty say so, frames without a row are removed; the bytes of those that stay.

    Only while nobody writes frames. Raises ValueError for a row whose frame is no path of one.
    """
    known, on_disk = (
        set(_paths(connection, "SELECT DISTINCT frame FROM events WHERE frame IS NOT NULL")),
        frames.sizes(),
    )
    missing = [(FRAME_MISSING, frame) for frame in known if not on_disk.get(frame)]
    with transaction(connection):
        connection.executemany(_WITHOUT_FRAME, missing)
    kept = {frame: size for frame, size in on_disk.items() if size and frame in known}
    for frame in on_disk.keys() - kept.keys():
        frames.remove(frame)
    frames.remove_empty_folders()
    return sum(kept.values())


def prune_older(connection: sqlite3.Connection, frames: FrameFolder, cutoff: float) -> Pruned:
    """Events from before `cutoff` go, and the frames that no later event has."""
    doomed = _paths(
        connection,
        "SELECT DISTINCT frame FROM events WHERE frame IS NOT NULL AND at < ?1 "
        "AND frame NOT IN (SELECT frame FROM events WHERE frame IS NOT NULL AND at >= ?1)",
        (cutoff,),
    )
    with transaction(connection):
        events = connection.execute("DELETE FROM events WHERE at < ?", (cutoff,)).rowcount
    return Pruned(events) + _remove(frames, doomed)


def prune_frames(connection: sqlite3.Connection, frames: FrameFolder, excess_bytes: int) -> Pruned:
    """The oldest frames go until so many bytes are free; their events stay and say so."""
    oldest = "SELECT frame FROM events WHERE frame IS NOT NULL GROUP BY frame ORDER BY max(id)"
    doomed = []
    for frame in _paths(connection, oldest):
        if excess_bytes <= 0:
            break
        doomed.append(frame)
        excess_bytes -= frames.size(frame)
    with transaction(connection):
        connection.executemany(_WITHOUT_FRAME, [(FRAME_PRUNED, frame) for frame in doomed])
    return _remove(frames, doomed)


def prune_rows(connection: sqlite3.Connection, most_bytes: int) -> Pruned:
    """The oldest events without a frame go, a tenth at a time, until the database has no more than `most_bytes`."""
    oldest = "SELECT id FROM events WHERE frame IS NULL ORDER BY id LIMIT ?"
    events = 0
    while database_bytes(connection) > most_bytes:
        count = connection.execute("SELECT count(*) FROM events WHERE frame IS NULL").fetchone()[0]
        if not count:
            break
        with transaction(connection):
            gone = connection.execute(f"DELETE FROM events WHERE id IN ({oldest})", (-(-count // 10),))
        events += gone.rowcount
        give_back(connection)
    return Pruned(events)


def database_bytes(connection: sqlite3.Connection) -> int:
    pages: int = connection.execute("PRAGMA page_count").fetchone()[0]
    size: int = connection.execute("PRAGMA page_size").fetchone()[0]
    return pages * size


def give_back(connection: sqlite3.Connection) -> None:
    """Free pages to the disk, and what the write-ahead log still holds of removed rows with them."""
    # As a script: `execute` would take the first step, of one page, and be done.
    connection.executescript("PRAGMA incremental_vacuum; PRAGMA wal_checkpoint(TRUNCATE);")


def _paths(connection: sqlite3.Connection, query: str, values: tuple[float, ...] = ()) -> list[str]:
    return [checked_frame(frame) for (frame,) in connection.execute(query, values).fetchall()]


def _remove(frames: FrameFolder, doomed: Iterable[str]) -> Pruned:
    gone = Pruned()
    for frame in doomed:
        size = frames.size(frame)
        if frames.remove(frame):
            gone += Pruned(frames=1, frame_bytes=size)
    return gone
