"""Any bytes are an event log or a FileError, read, added to and pruned; and nothing outside its folder is touched.

An input is the database's bytes and those of its write-ahead log behind a mark.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict
from pathlib import Path

import driver

from edgemem.runtime.capture.event import Event
from edgemem.runtime.capture.event_database import DATABASE
from edgemem.runtime.capture.event_log import EventLog
from edgemem.runtime.capture.frame_folder import checked_frame
from edgemem.runtime.capture.log_settings import LogSettings
from edgemem.runtime.errors import FileError

_MARK = b"<write-ahead log>"
_MEMORY = "/dev/shm"
_HOLDER = tempfile.TemporaryDirectory(dir=_MEMORY if Path(_MEMORY).is_dir() else None)
_FOLDER = Path(_HOLDER.name) / "log"
_OUTSIDE = Path(_HOLDER.name) / "victim.jpg"
_FRAMES = [f"frames/{name}.jpg" for name in ("day/1", "day/2")]
_NOW = 1.8e9
_EVENT = Event(_NOW, 2.0, "s", "trigger", "taken", score=0.75, classes=(("Dishes", 0.5),), frame=_FRAMES[0])
_GAP = Event(_NOW - 5e6, 3.0, "s", "gap", reason="overflow", lost_s=0.25, caption="c" * 300)


def _write_frames() -> None:
    (_FOLDER / "frames" / "day").mkdir(parents=True, exist_ok=True)
    for frame in _FRAMES:
        with (_FOLDER / frame).open("wb") as file:
            file.truncate(600_000)


def _seeds() -> list[bytes]:
    """A log that was closed, one that is open, and an empty one."""
    with EventLog.open(_FOLDER, LogSettings(0, 0)):
        pass
    empty = (_FOLDER / DATABASE).read_bytes()
    _write_frames()
    with EventLog.open(_FOLDER, LogSettings(0, 0)) as log:
        _write_frames()
        for frame in (*_FRAMES, None):
            log.add(Event(_NOW, 2.0, "s", "heartbeat", "taken", frame=frame))
            log.add(_GAP)
        files = [(_FOLDER / f"{DATABASE}{end}").read_bytes() for end in ("", "-wal")]
    return [(_FOLDER / DATABASE).read_bytes(), _MARK.join(files), empty]


SEEDS = _seeds()
_OUTSIDE.write_bytes(b"precious")


def fuzz_one_input(data: bytes) -> bool:
    database, _, write_ahead = data.partition(_MARK)
    for end, content in (("", database), ("-wal", write_ahead)):
        (_FOLDER / f"{DATABASE}{end}").write_bytes(content)
    (_FOLDER / f"{DATABASE}-shm").unlink(missing_ok=True)
    _write_frames()
    read, written = _read(), _write()
    if _OUTSIDE.read_bytes() != b"precious":
        raise AssertionError("a file outside the folder was altered")
    return read and written


def _read() -> bool:
    try:
        with EventLog.open(_FOLDER, read_only=True) as log:
            for event in log.events():
                json.dumps(asdict(event), allow_nan=False)
                if event.frame is not None and event.frame != checked_frame(event.frame):
                    raise AssertionError(f"a frame at {event.frame}")
            if not all(type(count) is int for count in log.counts().values()):
                raise AssertionError("counts that are no numbers")
    except FileError:
        return False
    return True


def _write() -> bool:
    """With too little room for both frames, and an event that is too old."""
    try:
        with EventLog.open(_FOLDER, LogSettings(30, 1_000_000), now=lambda: _NOW) as log:
            _write_frames()
            added = log.add(_EVENT)
            if log.find(added.id) != added:
                raise AssertionError("an event is not there that was added")
    except FileError:
        return False
    return True


if __name__ == "__main__":
    driver.main(fuzz_one_input, SEEDS)
