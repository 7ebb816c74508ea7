"""What this process may use of the machine: memory and cores, within the limits of its container."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import psutil

try:
    import resource
except ImportError:  # Windows has no such limits
    resource = None  # type: ignore[assignment]

# Files of a control group: limit, used, statistics, and which statistic counts pages that are given up on demand.
_MEMORY_V2 = ("memory.max", "memory.current", "memory.stat", "inactive_file")
_MEMORY_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat", "total_inactive_file")


def available_memory() -> int:
    """Bytes that can be allocated without swapping: the system's, or what the process's control groups or its limit of
    address space leave if that is less."""
    available = int(psutil.virtual_memory().available)
    for names, controller in ((_MEMORY_V2, ""), (_MEMORY_V1, "memory")):
        limit_file, used_file, statistics_file, reclaimable = names
        for folder in control_groups(controller):
            limit, used = _read(folder / limit_file), _read(folder / used_file)
            if limit.isdigit() and used.isdigit():
                given_up = _statistic(_read(folder / statistics_file), reclaimable)
                available = min(available, max(0, int(limit) - int(used) + given_up))
    if resource is not None:
        limit_bytes, _ = resource.getrlimit(resource.RLIMIT_AS)
        if limit_bytes != resource.RLIM_INFINITY:
            available = min(available, max(0, limit_bytes - psutil.Process().memory_info().vms))
    return available


def usable_cores() -> int:
    """Physical cores that this process may run on, at least 1: a core's second thread adds no memory bandwidth."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cores = min(allowed, psutil.cpu_count(logical=False) or allowed)
    for folder in control_groups(""):
        quota, _, period = _read(folder / "cpu.max").partition(" ")
        if quota.isdigit() and period.isdigit() and int(period):
            cores = min(cores, int(quota) // int(period))
    return max(1, cores)


def core_processors() -> list[int]:
    """One logical processor of each physical core that this process may run on, rising; empty where unknown."""
    if not hasattr(os, "sched_getaffinity"):
        return []
    chosen: dict[str, int] = {}
    for processor in sorted(os.sched_getaffinity(0)):
        siblings = _read(Path(f"/sys/devices/system/cpu/cpu{processor}/topology/thread_siblings_list"))
        chosen.setdefault(siblings or str(processor), processor)
    return list(chosen.values())


def control_groups(controller: str, root: Path = Path("/")) -> Iterator[Path]:
    """Folders of this process's control groups, from its own up to the root; controller "" is version 2."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controller not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / controller
        own = mount / path.lstrip("/")
        yield from (folder for folder in (own, *own.parents) if folder.is_relative_to(mount))


def _statistic(text: str, key: str) -> int:
    for line in text.splitlines():
        found, _, value = line.partition(" ")
        if found == key and value.isdigit():
            return int(value)
    return 0


def _read(path: Path) -> str:
    """A small text file, empty if there is none."""
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""
