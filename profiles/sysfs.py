"""Small files of /proc and /sys: their text or number, or None where they cannot be read."""

from __future__ import annotations

import re
from pathlib import Path

_LIMIT_BYTES = 1 << 20
_NUMBER = re.compile(r"-?[0-9]{1,19}")


def read_text(path: Path) -> str | None:
    """The file without surrounding blanks and NULs; None where it is missing, forbidden or answers with an error."""
    try:
        with path.open("rb") as file:
            return file.read(_LIMIT_BYTES).decode("utf-8", "replace").strip("\0 \t\n")
    except OSError:
        return None


def read_number(path: Path) -> int | None:
    """A whole number; None where there is none."""
    text = read_text(path)
    return int(text) if text is not None and _NUMBER.fullmatch(text) else None
