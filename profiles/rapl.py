"""Energy used by the processor packages and their memory, from RAPL's counters in /sys/class/powercap."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgemem.profiles.sysfs import read_number, read_text


class Rapl:
    """Counts up from where it stood when this was made. Cores and the like are inside a package, so they are left out;
    so is the platform's own zone, which holds everything. Memory is counted only where it has a zone: see `source`."""

    def __init__(self, root: Path = Path("/")) -> None:
        folders = sorted((root / "sys/class/powercap").glob("intel-rapl:*"))
        names = {folder: read_text(folder / "name") or "" for folder in folders}
        counted = {folder: name for folder, name in names.items() if name.startswith("package") or name == "dram"}
        zones = [_Zone.found(folder) for folder in counted]
        self._zones = [zone for zone in zones if zone is not None]
        if len(self._zones) < len(zones):  # a part is not the whole
            self._zones = []
        # None where it is missing or not permitted
        self.source = f"RAPL {', '.join(counted.values())}" if self._zones else None

    def energy_j(self) -> float | None:
        """Since this was made; None where a counter cannot be read. To be asked at least once a turn of a counter,
        which takes minutes."""
        read = [zone.advance() for zone in self._zones]
        if not read or not all(read):
            return None
        return sum(zone.used_uj for zone in self._zones) / 1e6


@dataclass
class _Zone:
    path: Path
    most_uj: int  # the counter starts again from 0 after this
    last_uj: int
    used_uj: int = 0

    @classmethod
    def found(cls, folder: Path) -> _Zone | None:
        path, most_uj = folder / "energy_uj", read_number(folder / "max_energy_range_uj")
        now_uj = read_number(path)
        return None if now_uj is None or most_uj is None or most_uj <= 0 else cls(path, most_uj, now_uj)

    def advance(self) -> bool:
        """Whether the counter could be read."""
        now_uj = read_number(self.path)
        if now_uj is None:
            return False
        step_uj = now_uj - self.last_uj
        self.used_uj += step_uj if step_uj >= 0 else step_uj + self.most_uj
        self.last_uj = now_uj
        return True
