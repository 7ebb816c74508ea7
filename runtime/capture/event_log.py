"""EventLog: what was heard, taken and lost, in one SQLite file beside the frames. Nothing of it leaves that folder.

An event is safe from the end of the process, even SIGKILL, once `add` has returned; a power loss may take the last half
minute, never the log. It keeps itself small, by LogSettings, as events are added.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from os import close
from pathlib import Path
from typing import Any

from edgemem.runtime.capture.event import Event, Kind, Outcome
from edgemem.runtime.capture.event_database import in_our_words, make_database, open_database
from edgemem.runtime.capture.event_pruning import (
    FRAME_MISSING,
    Pruned,
    database_bytes,
    give_back,
    prune_frames,
    prune_older,
    prune_rows,
    reconcile,
)
from edgemem.runtime.capture.event_row import (
    COLUMNS,
    KINDS,
    LARGEST_ID,
    OUTCOMES,
    event_of,
    kept,
    row_of,
)
from edgemem.runtime.capture.frame_folder import FrameFolder
from edgemem.runtime.capture.log_settings import LogSettings
from edgemem.runtime.errors import FileError, SettingsError, shown
from edgemem.runtime.folder_lock import lock_folder

_DAY_S = 86_400.0
_PRUNED_EVERY_S = 3600.0
_PAGE = 256
_INSERT = f"INSERT INTO events ({COLUMNS.removeprefix('id, ')}) VALUES ({', '.join('?' * 11)})"


@dataclass(frozen=True)
class LogSizes:
    frames: int
    frame_bytes: int
    database_bytes: int


class EventLog:
    """Use as a context manager. Any thread may call any method; they take turns.

    Every method raises FileError where the disk or the database refuses: nothing was changed then by that call, or, by
    `prune`, in part; the log goes on to be usable, and the same call may succeed later.
    """

    def __init__(
        self,
        folder: Path,
        connection: sqlite3.Connection,
        frames: FrameFolder,
        settings: LogSettings,
        *,
        read_only: bool,
        now: Callable[[], float],
        held: ExitStack,
    ) -> None:
        """Use open. held: what close is to release."""
        self.folder, self.settings, self.read_only = folder, settings, read_only
        self._connection, self._frames, self._now, self._held = connection, frames, now, held
        self._turns = threading.RLock()
        self._frame_bytes = 0
        self._pruned_at: float | None = None

    @classmethod
    def open(
        cls,
        folder: Path,
        settings: LogSettings | None = None,
        *,
        read_only: bool = False,
        now: Callable[[], float] = time.time,
    ) -> EventLog:
        """The log in a folder, which is made, as the log is, unless `read_only`.

        One process at a time may have it open for writing, while others read. now: the wall clock, in seconds since
        1970, by which events grow old. Opening it for writing removes frames that no event has, and lets events whose
        frame is missing say so. Raises FileError for a log in use, of another version, damaged, or not ours.
        """
        with ExitStack() as held:
            if not read_only:
                _make_folder(folder, held)
            connection = open_database(folder, read_only=read_only)
            held.callback(connection.close)
            with in_our_words("the frames of the event log cannot be opened", folder):
                frames = FrameFolder(folder, make=not read_only)
            held.callback(frames.close)
            log = cls(
                folder,
                connection,
                frames,
                settings or LogSettings(),
                read_only=read_only,
                now=now,
                held=held.pop_all(),
            )
        try:
            if not read_only:
                with log._turn("the event log cannot be opened"):
                    log._frame_bytes = reconcile(connection, frames)
        except BaseException:
            log.close()
            raise
        return log

    def add(self, event: Event) -> Event:
        """Log an event; the same with its id, as the log has it.

        Its frame must be `frames/NAME.jpg`, with at most two folders between, written before; where it is not there the
        event is logged without, and says so. Long reasons and captions are cut. Makes room first where the settings
        ask for it. Raises SettingsError for an event with bad values; FileError where it could not be logged.
        """
        try:
            event = kept(event)
        except ValueError as problem:
            raise SettingsError("this event cannot be logged", got=problem) from problem
        with self._turn("the event cannot be logged", writes=True):
            shared = event.frame is not None and self._has_frame(event.frame)
            size = 0 if event.frame is None or shared else self._frames.size(event.frame)
            self._make_room(size)  # which may take a frame that is shared with an old event
            if event.frame is not None and not self._frames.size(event.frame):
                reason = "; ".join(filter(None, (event.reason, FRAME_MISSING)))
                event = replace(event, frame=None, reason=reason)
            number = self._connection.execute(_INSERT, row_of(event)).lastrowid
            self._frame_bytes += size
            return replace(event, id=number or 0)

    def find(self, number: int) -> Event | None:
        """The event of that id; None where there is none, or none any more."""
        query = f"SELECT {COLUMNS} FROM events WHERE id = ?"
        with self._turn("the event cannot be read"):
            row = self._connection.execute(query, (_checked_id(number),)).fetchone()
            return None if row is None else event_of(row)

    def events(
        self,
        since: float | None = None,
        until: float | None = None,
        kinds: Sequence[Kind] = (),
        outcomes: Sequence[Outcome] = (),
        *,
        newest_first: bool = False,
        limit: int | None = None,
    ) -> Iterator[Event]:
        """Events in the order in which they were logged, at most `limit`.

        since, until: from the one to before the other, in seconds since 1970. kinds, outcomes: only these; all where
        empty. What is logged meanwhile may be among them. Raises SettingsError for bad values.
        """
        if limit is not None and (type(limit) is not int or limit < 0):
            raise SettingsError("limit is out of range", got=shown(limit), wanted="a whole number from 0")
        conditions: list[str] = ["true"]
        values: list[Any] = []
        for name, chosen, known in (("kind", kinds, KINDS), ("outcome", outcomes, OUTCOMES)):
            if unknown := set(chosen) - set(known):
                raise SettingsError(f"unknown {name}", got=shown(sorted(unknown)[0]), wanted=", ".join(known))
            if chosen:
                conditions.append(f"{name} IN ({', '.join('?' * len(set(chosen)))})")
                values += sorted(set(chosen))
        for sign, bound in ((">=", since), ("<", until)):
            if bound is not None:
                conditions.append(f"at {sign} ?")
                values.append(float(bound))
        return self._pages(" AND ".join(conditions), values, newest_first, limit)

    def counts(self) -> dict[tuple[Kind, Outcome | None], int]:
        """How many events the log holds of each kind and outcome."""
        query = "SELECT kind, outcome, count(*) FROM events GROUP BY kind, outcome"
        with self._turn("the events cannot be counted"):
            rows = self._connection.execute(query).fetchall()
            if any(kind not in KINDS or outcome not in (None, *OUTCOMES) for kind, outcome, _ in rows):
                raise ValueError("an event of an unknown kind or outcome")
            return {(kind, outcome): count for kind, outcome, count in rows}

    def sizes(self) -> LogSizes:
        """How much of the disk it takes."""
        with self._turn("the event log cannot be measured"):
            found = self._frames.sizes()
            return LogSizes(len(found), sum(found.values()), database_bytes(self._connection))

    def prune(self) -> Pruned:
        """Let go of what the settings do not keep. `add` does so too, hourly and where the cap is reached."""
        with self._turn("the event log cannot be pruned", writes=True):
            return self._prune(0)

    def close(self) -> None:
        """Let go of the folder. Calling it again does nothing."""
        with self._turns:
            self._held.close()

    def __enter__(self) -> EventLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _has_frame(self, frame: str) -> bool:
        return self._connection.execute("SELECT 1 FROM events WHERE frame = ?", (frame,)).fetchone() is not None

    def _pages(self, condition: str, values: list[Any], newest_first: bool, limit: int | None) -> Iterator[Event]:
        sign, order, last = ("<", "DESC", LARGEST_ID) if newest_first else (">", "ASC", 0)
        query = f"SELECT {COLUMNS} FROM events WHERE {condition} AND id {sign} ? ORDER BY id {order} LIMIT ?"
        left = LARGEST_ID if limit is None else limit
        while left:
            count = min(_PAGE, left)
            with self._turn("the events cannot be read"):
                rows = self._connection.execute(query, (*values, last, count)).fetchall()
                found = [event_of(row) for row in rows]
            yield from found
            if len(found) < count:
                return
            last, left = found[-1].id, left - count

    def _make_room(self, more: int) -> None:
        """For an event whose frame has so many bytes."""
        cap, now = self.settings.size_cap_bytes, self._now()
        full = cap and self._frame_bytes + database_bytes(self._connection) + more > cap
        # A clock that was set back has no hour to wait for.
        rested = self._pruned_at is not None and 0 <= now - self._pruned_at < _PRUNED_EVERY_S
        if full or not rested:
            self._prune(more)

    def _prune(self, more: int) -> Pruned:
        """Down to 95 % of the cap where it is reached, so that it is not at every event."""
        connection, frames, cap = self._connection, self._frames, self.settings.size_cap_bytes
        gone, self._pruned_at = Pruned(), self._now()
        if self.settings.retention_days:
            gone = prune_older(connection, frames, self._pruned_at - self.settings.retention_days * _DAY_S)
        if gone.events:
            give_back(connection)
        # Measured and not only counted: frames may have been removed by hand. The new event's is there already.
        measured = sum(frames.sizes().values())
        self._frame_bytes = measured - more
        excess = measured + database_bytes(connection) - cap
        if cap and excess > 0:
            spare = cap // 20
            freed = prune_frames(connection, frames, excess + spare)
            self._frame_bytes -= freed.frame_bytes
            gone += freed + prune_rows(connection, cap - spare)
            give_back(connection)
        return gone

    @contextmanager
    def _turn(self, what: str, *, writes: bool = False) -> Iterator[None]:
        """Alone with the connection, with errors in our words; ValueError is a row that is none."""
        if writes and self.read_only:
            raise SettingsError("the event log was opened for reading only", where=self.folder)
        with self._turns, in_our_words(what, self.folder):
            try:
                yield
            except ValueError as problem:
                do = "move the folder away, and a new log is begun; or give another"
                raise FileError("the event log is damaged", where=self.folder, got=problem, do=do) from problem


def _checked_id(number: int) -> int:
    if type(number) is not int or not 0 < number <= LARGEST_ID:
        raise SettingsError("this is no event's id", got=shown(number), wanted="a whole number from 1")
    return number


def _make_folder(folder: Path, held: ExitStack) -> None:
    """The folder and an empty log, where they are not there yet; `held` is to release the folder's lock."""
    with in_our_words("the event log's folder cannot be made", folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        held.callback(close, lock_folder(folder, "this event log"))
    make_database(folder)
