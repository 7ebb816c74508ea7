"""Which device this is: a Jetson by its device tree, a GPU by NVML, otherwise the CPU by /proc/cpuinfo.

A device that is not in the table is no error: the record says so, and only its measured peak counts.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgemem.profiles.cpu_model import cpu_model
from edgemem.profiles.devices import Device, DeviceTable, Kind
from edgemem.profiles.nvml import GpuIdentity, gpu_identity
from edgemem.profiles.sysfs import read_number, read_text
from edgemem.profiles.unavailable import Unavailable

Processor = Literal["cpu", "gpu"]

_MODULE = re.compile(r"p(?:3701|3767|3834)-[0-9]{4}")  # Orin AGX, Orin NX and Nano, Thor
_RELEASE = re.compile(r"R([0-9]+) .*?REVISION: ([0-9.]+)")
# Memory clock limits in Hz that any user may read, by JetPack 6 and JetPack 5.
_MEMORY_CLOCK_LIMITS = ("sys/kernel/nvpmodel_clk_cap/emc", "sys/kernel/nvpmodel_emc_cap/emc_iso_cap")
# Between the two speeds of the one board: 2133 MHz, and 3199 MHz as the Super.
_SUPER_CLOCK_HZ = 2_666_000_000
_NANO, _SUPER = "orin-nano-8gb", "orin-nano-super"


@dataclass(frozen=True)
class Recognised:
    """What a record says of the machine. `reasons`: why no datasheet peak is known, and what could not be asked."""

    device: Device | None
    kind: Kind
    reported_name: str
    cpu_model: str
    memory_bytes: int | None = None
    driver: str | None = None
    compute_capability: str | None = None
    reasons: tuple[str, ...] = ()


def recognise(
    table: DeviceTable,
    root: Path = Path("/"),
    gpu: Callable[[], GpuIdentity | Unavailable] = gpu_identity,
    processor: Processor | None = None,
) -> Recognised:
    """The device whose memory `processor` reads; without it, the GPU's if there is one, else the CPU's.

    A Jetson is one device whichever processor runs, as both read the same memory. For "gpu" where there is none, the
    record is the CPU's, with the reason.
    """
    cpu = cpu_model(root / "proc/cpuinfo", root / "proc/device-tree")
    compatible = read_text(root / "proc/device-tree/compatible") or ""
    if "nvidia,tegra" in compatible:
        return _jetson(table, root, compatible, cpu)
    if processor == "cpu":
        return _cpu(table, root, cpu, ())
    found = gpu()
    if isinstance(found, Unavailable):
        return _cpu(table, root, cpu, (found.reason,))
    return _gpu(table, found, cpu)


def _gpu(table: DeviceTable, found: GpuIdentity, cpu: str) -> Recognised:
    candidates = table.candidates(found.name, found.memory_bytes)
    return Recognised(
        device=candidates[0] if len(candidates) == 1 else None,
        kind="gpu",
        reported_name=found.name,
        cpu_model=cpu,
        memory_bytes=found.memory_bytes,
        driver=found.driver,
        compute_capability=found.compute_capability,
        reasons=_doubt(candidates, found.name, found.memory_bytes),
    )


def _jetson(table: DeviceTable, root: Path, compatible: str, cpu: str) -> Recognised:
    model = read_text(root / "proc/device-tree/model") or compatible.partition("\0")[0]
    # The module's number decides: the model is the carrier board's, and the same for modules of several sizes.
    names = _MODULE.findall(compatible) or [model]
    found = {device.name: device for name in names for device in table.candidates(name, None)}
    candidates = tuple(found.values())
    if set(found) == {_NANO, _SUPER}:
        candidates = _nano_or_super(root, found)
    device = candidates[0] if len(candidates) == 1 else None
    release = _RELEASE.search(read_text(root / "etc/nv_tegra_release") or "")
    return Recognised(
        device=device,
        kind="jetson",
        reported_name=model,
        cpu_model=cpu,
        memory_bytes=_memory_bytes(root),
        driver=f"L4T {release[1]}.{release[2]}" if release else None,
        compute_capability=None if device is None else device.compute_capability,
        reasons=_doubt(candidates, model, None),
    )


def _nano_or_super(root: Path, found: dict[str, Device]) -> tuple[Device, ...]:
    """One board, two speeds: the memory clock's limit tells which; both where nobody says."""
    limits = [limit for name in _MEMORY_CLOCK_LIMITS if (limit := read_number(root / name)) is not None and limit > 0]
    if not limits:
        return tuple(found.values())
    return (found[_SUPER if min(limits) > _SUPER_CLOCK_HZ else _NANO],)


def _cpu(table: DeviceTable, root: Path, cpu: str, reasons: tuple[str, ...]) -> Recognised:
    device = table.match(cpu) or table.named("cpu")  # a user may have described this very processor
    if device.datasheet_bandwidth is None:
        reasons = (*reasons, device.source)
    return Recognised(device, "cpu", cpu, cpu, memory_bytes=_memory_bytes(root), reasons=reasons)


def _doubt(candidates: tuple[Device, ...], name: str, memory_bytes: int | None) -> tuple[str, ...]:
    """Why there is not exactly one device."""
    if len(candidates) == 1:
        return ()
    size = "" if memory_bytes is None else f" with {memory_bytes / 2**30:.1f} GiB"
    if not candidates:
        return (f"{name}{size} is not in the device table: measured peak only",)
    names = " or ".join(device.name for device in candidates)
    return (f"{name}{size} may be {names}: measured peak only; --device names one of them",)


def _memory_bytes(root: Path) -> int | None:
    for line in (read_text(root / "proc/meminfo") or "").splitlines():
        key, _, value = line.partition(":")
        amount = value.split()
        if key == "MemTotal" and len(amount) == 2 and amount[0].isdecimal() and len(amount[0]) < 16:
            return int(amount[0]) << 10
    return None
