"""How fast this machine reads memory: the buffer of the sweep is chosen here, the sweep itself is in the kernels.

A sweep may be kept open beside a running engine: it takes memory all the time, but processors only while it sweeps.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

from edgemem.kernels.native import MemorySweep
from edgemem.runtime.errors import BudgetError
from edgemem.runtime.machine import available_memory

_CPUS = Path("/sys/devices/system/cpu")
_TIMES_CACHE = 8  # a sweep over this many times the last-level cache hardly meets what the one before left there
_LEAST_BYTES = 64 << 20
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


class Sweeping(Protocol):
    """A buffer that is read or copied as often as asked: bytes a second of each pass."""

    def read(self, passes: int) -> list[float]: ...
    def copy(self, passes: int) -> list[float]: ...


def open_engine_sweep(engine: str, threads: int) -> Sweeping:
    """Over the memory that the engine of this name reads. Raises BudgetError where there is no room for the buffer."""
    if engine != "cuda":
        return open_sweep(threads)
    from edgemem.kernels.cuda.sweep import DeviceSweep, sweep_bytes
    from edgemem.runtime.cuda_budget import available_gpu_memory

    free = available_gpu_memory()
    try:
        return DeviceSweep(sweep_bytes(free))
    except (ValueError, RuntimeError) as error:
        raise BudgetError(
            "the GPU's bandwidth cannot be measured", got=error, wanted=f"room in {free:,} bytes"
        ) from error


def open_sweep(threads: int) -> MemorySweep:
    """A buffer of at least 8 times the last-level cache, or of a quarter of the free memory where that is less.

    Raises BudgetError where there is no memory for it, or not so many threads.
    """
    buffer = min(max(_TIMES_CACHE * last_level_cache_bytes(), _LEAST_BYTES), available_memory() // 4)
    try:
        return MemorySweep(buffer, threads)
    except (MemoryError, ValueError, RuntimeError) as error:
        wanted = f"{buffer:,} bytes of memory, {threads} threads"
        raise BudgetError("the memory bandwidth cannot be measured", got=error, wanted=wanted) from error


def measured_bandwidth(threads: int, engine: str = "native") -> float:
    """Bytes a second of the best of ten read-only sweeps, by `threads` threads, of the memory that the engine of this
    name reads; takes a fraction of a second.

    Raises BudgetError where there is no memory for the sweep.
    """
    return max(open_engine_sweep(engine, threads).read(10))


def last_level_cache_bytes(cpus: Path = _CPUS) -> int:
    """All last-level caches that the CPUs of this process share, added up; 0 where the system does not tell."""
    caches: dict[int, dict[str, int]] = {}  # level -> CPUs that share it -> bytes
    for cpu in os.sched_getaffinity(0):
        for entry in (cpus / f"cpu{cpu}" / "cache").glob("index*"):
            try:
                level = int((entry / "level").read_text())
                shared = (entry / "shared_cpu_list").read_text().strip()
                caches.setdefault(level, {})[shared] = _bytes((entry / "size").read_text().strip())
            except (OSError, ValueError):  # a cache that the kernel only half describes counts as none
                continue
    return sum(caches[max(caches)].values()) if caches else 0


def _bytes(text: str) -> int:
    """`32768K` as the kernel writes it."""
    return int(text[:-1]) * _UNITS[text[-1]] if text[-1:] in _UNITS else int(text)
