"""What an evaluation has measured so far: raw values by cell, in memory and as a JSON file that can be gone on with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from edgemem.profiles.plain import from_plain, parse_json, to_plain
from edgemem.runtime.errors import EdgememError, FileError, SettingsError, shown
from edgemem.tools.memory_eval.cells import Cell
from edgemem.tools.profile_output import write_text

FORMAT = 1
RECORD_FILE = "record.json"
_RECORD_BYTES = 64 << 20


@dataclass(frozen=True)
class Result:
    """values: of Values. missing: why there are none. date: ISO 8601, UTC, when it was done."""

    cell: Cell
    values: Mapping[str, tuple[float, ...]]
    missing: str | None
    seconds: float
    date: str


@dataclass(frozen=True)
class Record:
    """subject: the package and the text, of which all results are. conditions: machine, engine and versions at last."""

    format: int
    subject: Mapping[str, str]
    conditions: Mapping[str, str]
    results: tuple[Result, ...]

    def __post_init__(self) -> None:
        if self.format != FORMAT:
            raise SettingsError("a record of another format", got=self.format, wanted=FORMAT)


class Ledger:
    """The record as it grows. With a folder it is written there after each result, whole or not at all."""

    def __init__(self, subject: Mapping[str, str], conditions: Mapping[str, str], folder: Path | None = None) -> None:
        """Goes on with the record in `folder`, if there is one.

        Raises FileError where that is none, SettingsError where it is of another package or text.
        """
        self._path = None if folder is None else folder / RECORD_FILE
        self.record = Record(FORMAT, subject, conditions, ())
        if self._path is not None and self._path.exists():
            earlier = read_record(self._path)
            if dict(earlier.subject) != dict(subject):
                raise SettingsError(
                    "the folder holds the evaluation of something else",
                    where=self._path,
                    got=shown(dict(earlier.subject)),
                    wanted=shown(dict(subject)),
                    do="choose another --out",
                )
            self.record = replace(self.record, results=earlier.results)

    def find(self, cell: Cell) -> Result | None:
        return next((result for result in self.record.results if result.cell == cell), None)

    def add(self, result: Result) -> None:
        """In the place of one of the same cell by other settings. Raises FileError where it cannot be kept."""
        place = _place(result.cell)
        others = tuple(other for other in self.record.results if _place(other.cell) != place)
        self.record = replace(self.record, results=(*others, result))
        if self._path is not None:
            write_text(self._path, json.dumps(to_plain(self.record), indent=1, allow_nan=False) + "\n")


def read_record(path: Path) -> Record:
    """Raises FileError for a file that is missing, too large, or no record. What it holds is checked, not believed."""
    try:
        with path.open("rb") as file:
            raw = file.read(_RECORD_BYTES + 1)
        if len(raw) > _RECORD_BYTES:
            raise ValueError(f"larger than {_RECORD_BYTES} bytes")
        return from_plain(Record, parse_json(raw.decode()))
    except (OSError, ValueError, EdgememError) as problem:
        got = problem.strerror if isinstance(problem, OSError) else problem
        do = "choose another --out, or delete it"
        raise FileError("not a record of edgemem eval memory", where=path, got=got, do=do) from problem


def _place(cell: Cell) -> tuple[str, str, int, int]:
    return cell.part, cell.policy, cell.budget, cell.seed
