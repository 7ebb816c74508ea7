"""Events as JSON lines or CSV, and copies of their frames."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TextIO

from edgemem.runtime.capture.event import Event
from edgemem.runtime.errors import FileError
from edgemem.runtime.safe_files import SafeFolder
from edgemem.tools.moments import local_text
from edgemem.tools.whole_file import whole_file

_HEADER = ["id", "time", *(field.name for field in fields(Event) if field.name != "id")]
_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # a cell of a spreadsheet that begins so is run


def event_facts(event: Event) -> dict[str, Any]:
    """All of an event for JSON, with `time` as people read it."""
    facts = asdict(event)
    return {"id": facts.pop("id"), "time": local_text(event.at), **facts}


def json_lines(events: Iterable[Event]) -> Iterator[str]:
    for event in events:
        yield json.dumps(event_facts(event), ensure_ascii=False, allow_nan=False) + "\n"


def comma_separated(events: Iterable[Event]) -> Iterator[str]:
    """A header and a line for each; a text that a spreadsheet would run has a ' before it."""
    yield _line(_HEADER)
    for event in events:
        facts = event_facts(event)
        facts["classes"] = class_text(event, digits=4)
        yield _line([_cell(facts[name]) for name in _HEADER])


def class_text(event: Event, *, digits: int = 2, most: int | None = None) -> str:
    """`Dishes, pots, and pans 0.81; Drawer open or close 0.34`."""
    return "; ".join(f"{name} {score:.{digits}f}" for name, score in event.classes[:most])


def copy_frame(folder: SafeFolder, event: Event, target: Path) -> bool:
    """Copy an event's frame beneath `target`, by its path in the log; False where the file is not there any more.

    Raises FileError where it cannot be read or written, UnsafePathError for a frame that is a link.
    """
    if event.frame is None:
        return False
    try:
        source = folder.open(event.frame)
    except FileNotFoundError:
        return False
    except OSError as problem:
        raise FileError("a frame cannot be read", where=folder.path / event.frame, got=problem.strerror) from problem
    path = target / event.frame
    try:
        with os.fdopen(source, "rb") as reading:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as writing:
                shutil.copyfileobj(reading, writing)
    except OSError as problem:
        raise FileError("a frame cannot be written", where=path, got=problem.strerror) from problem
    return True


@contextmanager
def writing(path: Path) -> Iterator[TextIO]:
    """A file that is there whole once all is written into it, or as it was before. Raises FileError."""
    with whole_file(path, "the events cannot be written") as partial:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("w", encoding="utf-8", newline="") as file:
            yield file


def _cell(value: object) -> object:
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def _line(cells: list[Any]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()
