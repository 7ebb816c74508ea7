"""A disk in memory that remembers what was not synced yet, and can crash, fail, and lose, tear or reorder all that.

The idea is that of SQLite's test6.c. Names are unsynced too, until the folder is: a new file, a rename or a removal may
be there after the crash or not, each by itself.
"""

from __future__ import annotations

import os
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Literal

Mode = Literal["drop", "keep", "tear", "reorder"]
MODES: tuple[Mode, ...] = ("drop", "keep", "tear", "reorder")
_SECTOR = 64  # smaller than a real one, so that small writes come apart too


class Crash(BaseException):
    """The power is gone. No code may catch it."""


@dataclass(eq=False)
class _File:
    synced: bytes = b""
    content: bytearray = field(default_factory=bytearray)
    waiting: list[tuple[int, bytes] | int] = field(default_factory=list)  # (offset, data), or a new size

    def change(self, change: tuple[int, bytes] | int) -> None:
        self.waiting.append(change)
        _apply(self.content, change)


@dataclass(frozen=True, eq=False)
class _Name:
    """`name` comes to mean `file`, or nothing; `old` then no more."""

    name: str
    file: _File | None
    old: str | None = None

    def apply(self, names: dict[str, _File]) -> None:
        if self.old is not None:
            names.pop(self.old, None)
        if self.file is None:
            names.pop(self.name, None)
        else:
            names[self.name] = self.file


class SimulatedDisk:
    """A Disk. steps: the operations so far that change anything. crash_at: the step in which the power goes.
    failures: the error numbers that steps fail with. log: (operation, name) of each step."""

    folder = Path("/simulated")

    def __init__(self, files: Mapping[str, bytes] | None = None) -> None:
        self.steps, self.crash_at = 0, 0
        self.failures: dict[int, int] = {}
        self.log: list[tuple[str, str]] = []
        self._names = {name: _File(data, bytearray(data)) for name, data in (files or {}).items()}
        self._synced_names = dict(self._names)
        self._waiting: list[_Name] = []
        self._open: list[tuple[str, _File]] = []
        self._dead = False

    @property
    def files(self) -> dict[str, bytes]:
        """What a process sees."""
        return {name: bytes(file.content) for name, file in self._names.items()}

    def after_crash(self, mode: Mode, seed: int = 0) -> SimulatedDisk:
        """What is found when the power is back."""
        source = random.Random(seed)
        names = dict(self._synced_names)
        for change in _surviving(self._waiting, mode, source):
            change.apply(names)
        return SimulatedDisk({name: _content_after(file, mode, source) for name, file in names.items()})

    def after_kill(self) -> SimulatedDisk:
        """The same disk for the next process: nothing is lost, and nothing is more certain than it was."""
        self.steps, self.crash_at, self._dead, self._open = 0, 0, False, []
        return self

    def names(self) -> set[str]:
        self._alive()
        return set(self._names)

    def open(self, name: str) -> int:
        self._alive()
        if name not in self._names:
            raise FileNotFoundError(2, "no such file", name)
        descriptor = os.memfd_create("simulated")
        os.write(descriptor, self._names[name].content)
        return descriptor

    def create(self, name: str) -> int:
        if name in self._names:
            raise FileExistsError(17, "the file is there", name)
        self._step("create", name, names=_Name(name, _File()))
        return self.extend(name)

    def extend(self, name: str) -> int:
        self._alive()
        self._open.append((name, self._names[name]))
        return len(self._open) - 1

    def write(self, file: int, data: bytes | bytearray | memoryview) -> None:
        name, opened = self._open[file]
        end, plain = len(opened.content), bytes(data)
        try:
            self._step("write", name)
        except Crash:
            opened.change((end, plain))
            raise
        except OSError:
            opened.change((end, plain[: len(plain) // 2]))
            raise
        opened.change((end, plain))

    def truncate(self, file: int, size: int) -> None:
        name, opened = self._open[file]
        self._step("truncate", name)
        opened.change(size)

    def sync(self, file: int) -> None:
        name, opened = self._open[file]
        try:
            self._step("sync", name)
        except OSError:
            opened.waiting.clear()  # as Linux does: the data is gone, and the next sync will say that all is well
            raise
        opened.synced, opened.waiting = bytes(opened.content), []

    def close_file(self, file: int) -> None:
        self._alive()

    def rename(self, old: str, new: str) -> None:
        self._step("rename", new, names=_Name(new, self._names[old], old))

    def remove(self, name: str) -> None:
        if name not in self._names:
            raise FileNotFoundError(2, "no such file", name)
        self._step("remove", name, names=_Name(name, None))

    def sync_folder(self) -> None:
        self._step("sync_folder", "")
        self._synced_names, self._waiting = dict(self._names), []

    def lock(self) -> None:
        self._alive()

    def close(self) -> None:
        self._alive()

    def _step(self, operation: str, name: str, names: _Name | None = None) -> None:
        """One step; a crash in it leaves a change of names as uncertain as any other."""
        self._alive()
        self.steps += 1
        self.log.append((operation, name))
        if self.steps in self.failures:
            raise OSError(self.failures[self.steps], "simulated", name)
        if names is not None:
            self._waiting.append(names)
            names.apply(self._names)
        if self.steps == self.crash_at:
            self._dead = True
            raise Crash

    def _alive(self) -> None:
        if self._dead:
            raise Crash


def _apply(content: bytearray, change: tuple[int, bytes] | int) -> None:
    if isinstance(change, int):
        del content[change:]
        return
    offset, data = change
    content.extend(bytes(max(0, offset - len(content))))  # a hole
    content[offset : offset + len(data)] = data


def _surviving(waiting: list[_Name], mode: Mode, source: random.Random) -> list[_Name]:
    if mode == "reorder":
        return [change for change in waiting if source.random() < 0.5]
    count = {"drop": 0, "keep": len(waiting), "tear": source.randint(0, len(waiting))}[mode]
    return waiting[:count]


def _content_after(file: _File, mode: Mode, source: random.Random) -> bytes:
    content = bytearray(file.synced)
    if mode == "keep":
        return bytes(file.content)
    if mode == "tear" and file.waiting:
        whole = source.randrange(len(file.waiting))
        for change in file.waiting[:whole]:
            _apply(content, change)
        torn = file.waiting[whole]
        if not isinstance(torn, int):
            _apply(content, (torn[0], torn[1][: source.randint(0, len(torn[1]))]))
    if mode == "reorder":
        for change in file.waiting:
            for part in [change] if isinstance(change, int) else _sectors(*change):
                if source.random() < 0.5:
                    _apply(content, part)
    return bytes(content)


def _sectors(offset: int, data: bytes) -> list[tuple[int, bytes]]:
    """The parts of a write that reach the disk each by itself."""
    cuts = [0, *range(_SECTOR - offset % _SECTOR, len(data), _SECTOR), len(data)]
    return [(offset + start, data[start:stop]) for start, stop in pairwise(cuts) if start < stop]
