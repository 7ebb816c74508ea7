"""Bytes read from DRAM while something runs, by the memory controllers' counters through `perf stat`.

They count the whole machine, other processes included. Only counters whose unit is certain are used.
"""

from __future__ import annotations

import os
import re
import select
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from edgemem.profiles.unavailable import Unavailable

Result = TypeVar("Result")

_LINE_BYTES = 64
_UNITS = {"Bytes": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
# Intel: servers have the first, clients the others; only one kind is used, as the free-running ones count the same.
_INTEL_EVENTS = ("cas_count_read", "data_reads", "data_read")
# AMD, Zen 4 and later: column reads of 64 bytes. Source: amdzen4/memory-controller.json of the Linux kernel.
_AMD_EVENT = "event=0x0a,rdwrmask=0x1"
_PATIENCE_S = 10


@dataclass(frozen=True)
class MemoryCounter:
    """perf's events, which add up to the bytes read. `line_bytes`: of one count where perf gives no unit."""

    perf: str
    events: tuple[str, ...]
    line_bytes: int = _LINE_BYTES

    def measure(self, work: Callable[[], Result]) -> tuple[Result, float | Unavailable]:
        """What `work` gives, and the bytes read from DRAM meanwhile."""
        try:
            process = _PerfStat(self)
        except OSError as problem:
            return work(), Unavailable(f"{self.perf} does not start: {problem.strerror}")
        with process:
            process.order("enable")
            result = work()
            process.order("disable")
        return result, read_bytes(process.output, self.line_bytes)


def find_counter(root: Path = Path("/"), perf: str | None = None) -> MemoryCounter | Unavailable:
    """A counter that was tried and works, or why there is none. perf: the program, looked for where not given."""
    events = memory_events(root)
    if isinstance(events, Unavailable):
        return events
    program = perf or shutil.which("perf")
    if program is None:
        return Unavailable("the memory controllers have counters, but there is no perf program: install linux-perf")
    counter = MemoryCounter(program, events)
    _, counted = counter.measure(lambda: None)
    return counted if isinstance(counted, Unavailable) else counter


def memory_events(root: Path) -> tuple[str, ...] | Unavailable:
    """Names for `perf stat -e` of the events that count reads from memory."""
    folder = root / "sys/bus/event_source/devices"
    names = sorted(path.name for path in folder.glob("*"))
    for event in _INTEL_EVENTS:
        having = (path.parents[1].name for path in folder.glob(f"uncore_imc*/events/{event}"))
        if found := sorted(having):
            return tuple(f"{name}/{event}/" for name in found)
    found = [name for name in names if re.fullmatch(r"amd_umc_[0-9]+", name)]
    if found:
        return tuple(f"{name}/{_AMD_EVENT}/" for name in found)
    if "amd_df" in names:
        return Unavailable(
            "only amd_df counts here, by events that differ from processor to processor; amd_umc needs Zen 4 or later"
        )
    return Unavailable("no memory controller shows its counters here, as in most virtual machines")


def read_bytes(text: str, line_bytes: int = _LINE_BYTES) -> float | Unavailable:
    """The sum of `perf stat -x ;`: value;unit;event;... in each line. A counter that did not count spoils it."""
    total = 0.0
    seen = False
    for line in text.splitlines():
        value, unit, event, *_ = [*line.split(";"), "", ""]
        if not event:
            continue
        if not re.fullmatch(r"[0-9]+(\.[0-9]+)?", value):
            return Unavailable(f"perf did not count {event}: {value.strip('<>') or 'no value'}")
        if unit and unit not in _UNITS:
            return Unavailable(f"perf counted {event} in {unit}, which is no unit of bytes")
        total += float(value) * (_UNITS[unit] if unit else line_bytes)
        seen = True
    return total if seen else Unavailable(f"perf counted nothing: {' '.join(text.split())[:200] or 'no output'}")


class _PerfStat:
    """`perf stat` beside this process, until it is left. It starts disabled and answers each order, so that its own
    start and end are not counted. Where it fails, `output` says why.

    It watches `cat`, which ends when our end of its pipe is closed: so perf does not outlive this process, not even a
    killed one."""

    def __init__(self, counter: MemoryCounter) -> None:
        """Raises OSError where the program cannot be started."""
        orders, self._orders = os.pipe()
        self._answers, answers = os.pipe()
        command = [counter.perf, "stat", "-a", "-x", ";", "-D", "-1", "--control", f"fd:{orders},{answers}"]
        try:
            self._process = subprocess.Popen(
                [*command, "-e", ",".join(counter.events), "--", "cat"],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=(orders, answers),
                env={**os.environ, "LC_ALL": "C"},
                text=True,
            )
        except OSError:
            os.close(self._orders)
            os.close(self._answers)
            raise
        finally:
            os.close(orders)
            os.close(answers)
        self.output = ""

    def order(self, word: str) -> None:
        """Returns when it is done, or when perf has ended."""
        try:
            os.write(self._orders, f"{word}\n".encode())
        except BrokenPipeError:
            return
        ready, _, _ = select.select([self._answers], [], [], _PATIENCE_S)
        if not ready or not os.read(self._answers, 64):
            self._process.kill()  # without an answer nobody knows what it counted

    def __enter__(self) -> _PerfStat:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.output = self._process.communicate(timeout=_PATIENCE_S)[1]  # closes the pipe first
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
        finally:
            os.close(self._orders)
            os.close(self._answers)
