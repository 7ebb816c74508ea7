"""How long a person waits for the command line: wall times of fresh processes, Python's own start included."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from edgemem.runtime.errors import SettingsError

_COMMAND_LINE = "import sys; from edgemem.tools.cli import main; sys.exit(main())"
_REPEATS = 5


def import_seconds() -> float:
    """Of `import edgemem.runtime`, the median of five."""
    return median(_seconds("import edgemem.runtime") for _ in range(_REPEATS))


def help_seconds() -> float:
    """Of `edgemem --help`, the median of five."""
    return median(_seconds(_COMMAND_LINE, "--help") for _ in range(_REPEATS))


def compile_seconds(source: Path) -> float:
    """Of `edgemem compile` with its comparison, into a folder that is thrown away; once."""
    with TemporaryDirectory() as folder:
        return _seconds(_COMMAND_LINE, "compile", str(source), "-o", f"{folder}/timed.edgemem")


def _seconds(code: str, *arguments: str) -> float:
    started = time.perf_counter()
    result = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - started
    if result.returncode != 0:
        raise SettingsError(
            "a command to be timed failed", where=" ".join(("edgemem", *arguments)), got=result.stderr.strip()[-2000:]
        )
    return seconds
