"""The processor's name as the system gives it. Needs nothing but the standard library."""

from __future__ import annotations

import platform
from pathlib import Path

from edgemem.profiles.sysfs import read_text

_NAMES = ("model name", "Model", "Hardware")
# Linux names ARM cores by number only. Source: arch/arm64/include/asm/cputype.h of the Linux kernel.
_ARM_CORES = {
    ("0x41", "0xd03"): "Cortex-A53",
    ("0x41", "0xd05"): "Cortex-A55",
    ("0x41", "0xd07"): "Cortex-A57",
    ("0x41", "0xd08"): "Cortex-A72",
    ("0x41", "0xd0b"): "Cortex-A76",
    ("0x41", "0xd0c"): "Neoverse-N1",
    ("0x41", "0xd40"): "Neoverse-V1",
    ("0x41", "0xd41"): "Cortex-A78",
    ("0x41", "0xd42"): "Cortex-A78AE",
    ("0x41", "0xd49"): "Neoverse-N2",
    ("0x41", "0xd4f"): "Neoverse-V2",
    ("0x41", "0xd85"): "Cortex-X925",
    ("0x41", "0xd87"): "Cortex-A725",
    ("0x4e", "0x004"): "NVIDIA Carmel",
}


def cpu_model(cpuinfo: Path = Path("/proc/cpuinfo"), device_tree: Path = Path("/proc/device-tree")) -> str:
    """x86 gives its model name; an ARM board its own name, or else the kinds of its cores."""
    lines = [line.partition(":") for line in (read_text(cpuinfo) or "").splitlines()]
    pairs = [(key.strip(), value.strip()) for key, _, value in lines]
    for key, value in pairs:
        # Tegra kernels add a model name that says no more than the architecture.
        if key in _NAMES and value and not value.startswith("ARMv"):
            return value
    board = read_text(device_tree / "model")
    return board or _arm_cores(pairs) or platform.processor() or platform.machine()


def _arm_cores(pairs: list[tuple[str, str]]) -> str:
    """Each kind of core once, in the order of the processors: "Cortex-X925, Cortex-A725"."""
    implementers = [value for key, value in pairs if key == "CPU implementer"]
    parts = [value for key, value in pairs if key == "CPU part"]
    names = [
        _ARM_CORES.get((implementer, part), f"ARM implementer {implementer} part {part}")
        for implementer, part in zip(implementers, parts, strict=False)
    ]
    return ", ".join(dict.fromkeys(names))
