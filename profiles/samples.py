"""The samples of a run as they come, one line a process, so that a run that was stopped goes on where it was.

The first line says which run it is; a folder that holds another run's samples is refused.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgemem.profiles.job import ArmResult
from edgemem.profiles.plain import from_plain, parse_json, to_plain
from edgemem.runtime.errors import FileError, SettingsError

SAMPLES_FILE = "samples.jsonl"
_SAMPLES_BYTES = 1 << 30


@dataclass(frozen=True)
class ProcessResults:
    """What one process gave, arm by arm."""

    results: tuple[ArmResult, ...]


class SampleFile:
    """`samples.jsonl` of a folder, held open and locked. Use as a context manager.

    found: what earlier runs of the same identity finished, in the order of the file.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        """Makes the folder where there is none. identity: plain JSON values that make two runs one.

        Raises SettingsError for a folder of another run or in use, FileError for one that cannot be used or whose
        samples are none.
        """
        self.path = folder / SAMPLES_FILE
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        except OSError as problem:
            raise self._unusable(problem) from problem
        try:
            self._lock()
            self.found = self._resume(dict(identity))
        except BaseException:
            self.close()
            raise

    def append(self, results: ProcessResults) -> None:
        """On disk when it returns. Raises FileError where it cannot be kept."""
        self._write(to_plain(results))

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> SampleFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as problem:
            if problem.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise self._unusable(problem) from problem
            raise SettingsError("another profile run is writing there", where=self.path) from problem

    def _resume(self, identity: dict[str, Any]) -> list[ProcessResults]:
        """Reads the whole lines and cuts off a torn one; writes the first where there is none."""
        try:
            with os.fdopen(os.dup(self._descriptor), "rb") as file:
                raw = file.read(_SAMPLES_BYTES + 1)
            whole = raw[: raw.rfind(b"\n") + 1]
            os.ftruncate(self._descriptor, len(whole))
            os.lseek(self._descriptor, 0, os.SEEK_END)
        except OSError as problem:
            raise self._unusable(problem) from problem
        if not whole:
            self._write(identity)
            return []
        try:
            if len(raw) > _SAMPLES_BYTES:
                raise ValueError(f"more than {_SAMPLES_BYTES} bytes")
            first, *lines = whole.decode().splitlines()
            before = parse_json(first)
            if before == identity:
                return [from_plain(ProcessResults, parse_json(line)) for line in lines]
        except ValueError as problem:
            do = "remove the file, or choose another folder"
            raise FileError("the samples there are malformed", where=self.path, got=problem, do=do) from problem
        raise SettingsError(
            "the folder holds the samples of another run",
            where=self.path,
            got=f"another {', '.join(_differences(before, identity))}",
            do="choose another folder, or remove the file to begin anew",
        )

    def _write(self, line: Any) -> None:
        data = (json.dumps(line, allow_nan=False) + "\n").encode()
        try:
            while data:
                data = data[os.write(self._descriptor, data) :]
            os.fsync(self._descriptor)
        except OSError as problem:
            raise self._unusable(problem) from problem

    def _unusable(self, problem: OSError) -> FileError:
        return FileError(
            "the samples cannot be kept",
            where=self.path,
            got=problem.strerror or problem,
            do="make room, or choose another folder",
        )


def _differences(before: Any, identity: Mapping[str, Any]) -> list[str]:
    if not isinstance(before, dict):
        return ["kind of file"]
    return [key for key in {**before, **identity} if before.get(key) != identity.get(key)]
