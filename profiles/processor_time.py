"""How much of the processors others took while something was measured: other processes, and a hypervisor's guests."""

from __future__ import annotations

from dataclasses import dataclass

import psutil

_BUSY = ("user", "nice", "system", "irq", "softirq", "steal")


@dataclass(frozen=True)
class ProcessorTime:
    """Seconds since some start. whole: of all processors, idle or not; busy: of those, not idle, with what a hypervisor
    took away; own: of this process, all its threads."""

    whole_s: float
    busy_s: float
    own_s: float


def processor_time() -> ProcessorTime:
    """As the system counts it, to about 10 ms a processor."""
    times, own = psutil.cpu_times(), psutil.Process().cpu_times()
    busy_s = sum(getattr(times, name, 0.0) for name in _BUSY)
    idle_s = times.idle + getattr(times, "iowait", 0.0)
    return ProcessorTime(busy_s + idle_s, busy_s, own.user + own.system)


def share_of_others(before: ProcessorTime, after: ProcessorTime) -> float | None:
    """Of all processor time between the two, from 0 to 1; None if none has passed."""
    whole_s = after.whole_s - before.whole_s
    if whole_s <= 0:
        return None
    others_s = (after.busy_s - before.busy_s) - (after.own_s - before.own_s)
    return min(1.0, max(0.0, others_s / whole_s))
