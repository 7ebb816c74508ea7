"""A Jetson's power (INA monitors on its rails), temperature, clocks (devfreq, cpufreq) and throttling, from sysfs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from edgemem.profiles.sysfs import read_number, read_text
from edgemem.profiles.telemetry import Sample
from edgemem.profiles.telemetry_cpu import highest, thermal_zones, total, usable_processors

# The rail that feeds everything, under the name that the module gives it.
_WHOLE = ("VDD_IN", "VIN", "POM_5V_IN")
# AGX Orin has no such rail: these three feed it. Its VDDQ rail hangs on the last of them and would count twice.
_PARTS = ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0")
_ZONES = ("cpu-thermal", "gpu-thermal", "tj-thermal", "soc0-thermal", "soc1-thermal", "soc2-thermal")
_GPU_CLOCK = re.compile(r"([0-9a-f]+\.)?(gpu|ga10b|gpu-gpc-[0-9]+)")


class JetsonReader:
    """Finds its files once. Temperature is the hottest zone's, the cpu clock the fastest processor's."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._rails = _Rails(root)
        self._temperatures = thermal_zones(root, _ZONES)
        cpu = root / "sys/devices/system/cpu"
        self._cpu_clocks = [cpu / f"cpu{number}/cpufreq/scaling_cur_freq" for number in usable_processors()]
        self._clocks = _clock_files(root)
        self._brakes = _brakes(root)
        self._events = sorted((root / "sys/class/hwmon").glob("hwmon*/oc*_event_cnt"))
        self.source = f"sysfs, power of {self._rails.what}"

    def read(self) -> Sample:
        clocks = {name: read_number(path) for name, path in self._clocks.items()}
        clocks_mhz = {name: hertz / 1e6 for name, hertz in clocks.items() if hertz is not None}
        cpu_mhz = highest(self._cpu_clocks, 1e3)
        return Sample(
            power_w=self._rails.power_w(),
            temperature_c=highest(self._temperatures, 1e3),
            clocks_mhz=clocks_mhz if cpu_mhz is None else {**clocks_mhz, "cpu": cpu_mhz},
            throttle_reasons=self._throttle_reasons(),
            throttle_counts={"over-current": total(self._events)} if self._events else {},
        )

    def _throttle_reasons(self) -> frozenset[str] | None:
        if not self._brakes and not self._events:
            return None
        return frozenset(name for path, name in self._brakes.items() if (read_number(path) or 0) > 0)


class _Rails:
    """The module's input power. None where the rails that make it up are not all there: a part is not the whole."""

    def __init__(self, root: Path) -> None:
        rails: dict[str, tuple[Path, Path]] = {}
        self._direct: Path | None = None  # a monitor that multiplies by itself, in microwatts
        for folder in sorted((root / "sys/class/hwmon").glob("hwmon*")):
            kind = read_text(folder / "name")
            if kind == "ina238":
                self._direct = folder / "power1_input"
            elif kind == "ina3221":
                for number in "123":
                    label = read_text(folder / f"in{number}_label")
                    if label:
                        rails[label] = (folder / f"in{number}_input", folder / f"curr{number}_input")
        whole = next((name for name in _WHOLE if name in rails), None)
        names = (whole,) if whole else _PARTS if all(name in rails for name in _PARTS) else ()
        self._chosen = [rails[name] for name in names]
        self.what = "VIN" if self._direct else " + ".join(names) or "no rail"

    def power_w(self) -> float | None:
        if self._direct is not None:
            microwatts = read_number(self._direct)
            return None if microwatts is None else microwatts / 1e6
        total_uw = 0
        for voltage, current in self._chosen:
            millivolts, milliamperes = read_number(voltage), read_number(current)
            if millivolts is None or milliamperes is None:
                return None
            total_uw += millivolts * milliamperes
        return total_uw / 1e6 if self._chosen else None


def _clock_files(root: Path) -> Mapping[str, Path]:
    """Clocks in Hz: the GPU's, and the memory's where this user may see it."""
    files = {}
    for folder in sorted((root / "sys/class/devfreq").glob("*")):
        if _GPU_CLOCK.fullmatch(folder.name):
            files["gpu"] = folder / "cur_freq"
    for memory in ("sys/class/devfreq/bwmgr/cur_freq", "sys/kernel/debug/bpmp/debug/clk/emc/rate"):
        if read_number(root / memory) is not None:
            files["memory"] = root / memory
    return files


def _brakes(root: Path) -> Mapping[Path, str]:
    """State files of the cooling devices that slow something down; above 0 they do so now."""
    folders = sorted((root / "sys/class/thermal").glob("cooling_device*"))
    kinds = {folder: read_text(folder / "type") or "" for folder in folders}
    return {folder / "cur_state": kind for folder, kind in kinds.items() if "throttle" in kind}
