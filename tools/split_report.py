"""What the reports of a split share: the conditions that they state, and the files that they are written to."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from edgemem.profiles.plain import printable, to_plain
from edgemem.runtime.errors import SettingsError
from edgemem.runtime.package import Package
from edgemem.tools.conditions import conditions
from edgemem.tools.console import note
from edgemem.tools.profile_output import write_text


def stated_conditions(package: Package, slots: int, engine: str, **own: str) -> dict[str, str]:
    """slots: of the engine. engine: what of it matters beside the package. own: of this report alone. As of now."""
    found = conditions(package, slots)
    return {
        "machine": printable(found["device"]),
        "engine": engine,
        **own,
        **{name: printable(json.dumps(found[name])) for name in ("precision", "quality", "versions")},
        "measured": datetime.now(timezone.utc).isoformat(timespec="minutes"),
    }


def write_report(folder: Path, record: Any, markdown: str, html: Callable[[], str]) -> None:
    """record.json, table.md and report.html, or a note why not the last. Raises FileError."""
    write_text(folder / "record.json", json.dumps(to_plain(record), indent=1, allow_nan=False) + "\n")
    write_text(folder / "table.md", markdown)
    try:
        write_text(folder / "report.html", html())
        note(f"written to {folder}")
    except SettingsError as missing:
        note(f"written to {folder} but for the report: {missing}")
