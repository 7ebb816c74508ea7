"""What takes long to find out, kept as JSON files, so that the same command goes on where it was stopped."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypeVar

from edgemem.profiles.plain import from_plain, parse_json, to_plain
from edgemem.runtime.errors import EdgememError, FileError
from edgemem.tools.profile_output import write_text

Value = TypeVar("Value")
_FILE_BYTES = 16 << 20


@dataclass(frozen=True)
class Entry:
    """setup: all that the value depends on. seconds: that it took. date: ISO 8601, UTC."""

    setup: str
    seconds: float
    date: str
    value: Any


class Kept:
    """seconds: that all values took, whenever they were found; dates: when."""

    def __init__(self, folder: Path | None, clock: Callable[[], float] = time.perf_counter) -> None:
        self._folder, self._clock = folder, clock
        self.seconds = 0.0
        self.dates: list[str] = []

    def value(self, name: str, setup: str, kind: type[Value], find: Callable[[], Value]) -> Value:
        """What is kept under `name` for this very setup, or else what `find` gives, which is then kept.

        Raises FileError where the file is none of ours or cannot be written, and what `find` raises.
        """
        path = None if self._folder is None else self._folder / f"{name}.json"
        entry = None if path is None or not path.exists() else _read(path)
        if entry is None or entry.setup != setup:
            began = self._clock()
            found = find()
            date = datetime.now(timezone.utc).isoformat(timespec="seconds")
            entry = Entry(setup, round(self._clock() - began, 3), date, to_plain(found))
            if path is not None:
                write_text(path, json.dumps(to_plain(entry), allow_nan=False) + "\n")
        self.seconds += entry.seconds
        self.dates.append(entry.date)
        try:
            return from_plain(kind, entry.value)
        except (ValueError, EdgememError) as problem:
            raise _refused(path, problem) from problem


def setup_text(**values: object) -> str:
    """All that a value depends on."""
    return json.dumps(values, sort_keys=True)


def _read(path: Path) -> Entry:
    try:
        with path.open("rb") as file:
            raw = file.read(_FILE_BYTES + 1)
        if len(raw) > _FILE_BYTES:
            raise ValueError(f"larger than {_FILE_BYTES} bytes")
        return from_plain(Entry, parse_json(raw.decode()))
    except (OSError, ValueError) as problem:
        raise _refused(path, problem) from problem


def _refused(path: Path | None, problem: Exception) -> FileError:
    got = problem.strerror if isinstance(problem, OSError) else problem
    do = "choose another --out, or delete it"
    return FileError("not a file of edgemem eval capture", where=path, got=got, do=do)
