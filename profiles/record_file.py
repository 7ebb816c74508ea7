"""A record as a JSON file. What is read is hostile until it is checked; the figures in it are for other programs, and
are computed anew from the samples, never believed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edgemem.profiles.plain import from_plain, parse_json, to_plain
from edgemem.profiles.record import FORMAT, Record
from edgemem.profiles.statistics import figures
from edgemem.runtime.errors import EdgememError, FileError, shown

_RECORD_BYTES = 256 << 20


def record_to_dict(record: Record) -> dict[str, Any]:
    """Plain values for JSON, each cell with its `figures`, None where it was not measured."""
    plain: dict[str, Any] = to_plain(record)
    for cell, entry in zip(record.cells, plain["cells"], strict=True):
        entry["figures"] = to_plain(figures(record, cell))
    return plain


def record_from_dict(plain: Any) -> Record:
    """record_to_dict's inverse. Raises ValueError saying what is wrong where, or an EdgememError of a part."""
    if not isinstance(plain, dict) or plain.get("format") != FORMAT or isinstance(plain.get("format"), bool):
        got = plain.get("format") if isinstance(plain, dict) else plain
        raise ValueError(f"format: got {shown(got)}, this version reads {FORMAT}")
    cells = plain.get("cells")
    if isinstance(cells, list):
        plain = {**plain, "cells": [_without_figures(cell) for cell in cells]}
    return from_plain(Record, plain)


def write_record(record: Record, path: Path) -> None:
    """Raises OSError."""
    path.write_text(json.dumps(record_to_dict(record), indent=1, allow_nan=False) + "\n", encoding="utf-8")


def read_record(path: Path) -> Record:
    """Raises FileError for a file that is missing, too large, or no record."""
    try:
        with path.open("rb") as file:
            raw = file.read(_RECORD_BYTES + 1)
        if len(raw) > _RECORD_BYTES:
            raise ValueError(f"larger than {_RECORD_BYTES} bytes")
        return record_from_dict(parse_json(raw.decode()))
    except (OSError, ValueError, EdgememError) as problem:
        got = problem.strerror if isinstance(problem, OSError) else problem
        raise FileError("not a profile record", where=path, got=got, wanted="a file of edgemem profile") from problem


def _without_figures(cell: Any) -> Any:
    return {key: value for key, value in cell.items() if key != "figures"} if isinstance(cell, dict) else cell
