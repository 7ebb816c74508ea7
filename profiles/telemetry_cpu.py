"""A CPU's power (RAPL), temperature (hwmon, or a thermal zone), clock (cpufreq) and thermal throttling."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from edgemem.profiles.rapl import Rapl
from edgemem.profiles.sysfs import read_number, read_text
from edgemem.profiles.telemetry import Sample

_SENSORS = ("coretemp", "k10temp", "zenpower", "cpu_thermal")
_ZONES = ("x86_pkg_temp", "cpu-thermal", "cpu_thermal")


class CpuReader:
    """Finds its files once; `processors` are those whose clocks and throttling count, this process's own if not given.

    The clock is that of the fastest processor: the others may be idle.
    """

    def __init__(self, root: Path = Path("/"), processors: Iterable[int] | None = None) -> None:
        self._rapl = Rapl(root)
        self._temperatures = cpu_temperatures(root)
        folders = [root / f"sys/devices/system/cpu/cpu{number}" for number in processors or usable_processors()]
        self._clocks = _there(folder / "cpufreq/scaling_cur_freq" for folder in folders)
        self._counters = _there(
            folder / "thermal_throttle" / name
            for folder in folders
            for name in ("core_throttle_count", "package_throttle_count")
        )
        there = {"thermal sensors": self._temperatures, "cpufreq": self._clocks, "throttle counts": self._counters}
        names = [self._rapl.source, *(name for name, paths in there.items() if paths)]
        self.source = ", ".join(name for name in names if name) or "nothing readable"

    def read(self) -> Sample:
        clock_mhz = highest(self._clocks, 1e3)
        return Sample(
            energy_j=self._rapl.energy_j(),
            temperature_c=highest(self._temperatures, 1e3),
            clocks_mhz={} if clock_mhz is None else {"cpu": clock_mhz},
            throttle_reasons=frozenset() if self._counters else None,
            throttle_counts={"cpu thermal": total(self._counters)} if self._counters else {},
        )


def usable_processors() -> Iterable[int]:
    """Numbers of the processors that this process may run on."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)


def cpu_temperatures(root: Path) -> list[Path]:
    """Files of the processor's sensors, in thousandths of a degree."""
    sensors = [
        path
        for folder in sorted((root / "sys/class/hwmon").glob("hwmon*"))
        if read_text(folder / "name") in _SENSORS
        for path in sorted(folder.glob("temp*_input"))
    ]
    return sensors or thermal_zones(root, _ZONES)


def thermal_zones(root: Path, kinds: tuple[str, ...]) -> list[Path]:
    """Temperature files, in thousandths of a degree, of the zones whose type is one of `kinds`."""
    folders = sorted((root / "sys/class/thermal").glob("thermal_zone*"))
    return [folder / "temp" for folder in folders if read_text(folder / "type") in kinds]


def highest(paths: Iterable[Path], units: float) -> float | None:
    """The highest value, divided by `units`; None where none can be read."""
    values = [value for path in paths if (value := read_number(path)) is not None]
    return max(values) / units if values else None


def total(paths: Iterable[Path]) -> int:
    """The sum of the counters that can be read."""
    return sum(read_number(path) or 0 for path in paths)


def _there(paths: Iterable[Path]) -> list[Path]:
    return [path for path in paths if read_number(path) is not None]
