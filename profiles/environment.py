"""Where and when a run is made, as its record has it: put together from what others recognise and read."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from edgemem.profiles.bandwidth import last_level_cache_bytes
from edgemem.profiles.nvml import open_gpu
from edgemem.profiles.perf_counters import MemoryCounter, find_counter
from edgemem.profiles.plain import printable
from edgemem.profiles.recognition import Recognised
from edgemem.profiles.record import DeviceRecord
from edgemem.profiles.sysfs import read_text
from edgemem.profiles.telemetry import Reader, Sample
from edgemem.profiles.telemetry_cpu import CpuReader
from edgemem.profiles.telemetry_jetson import JetsonReader
from edgemem.profiles.unavailable import Unavailable
from edgemem.runtime.machine import usable_cores

_GOVERNOR = "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"
_NO_DATASHEET = "no datasheet is known for it"


@dataclass(frozen=True)
class Environment:
    """date: ISO 8601, UTC. versions: of edgemem and the libraries that a speed depends on."""

    date: str
    versions: Mapping[str, str | None]
    device: DeviceRecord


def processor_reader(root: Path = Path("/")) -> Reader:
    """What reads power, heat and clocks while an engine runs on the processor."""
    compatible = read_text(root / "proc/device-tree/compatible") or ""
    return JetsonReader(root) if "nvidia,tegra" in compatible else CpuReader(root)


@contextmanager
def engine_reader(engine: str, root: Path = Path("/")) -> Iterator[Reader]:
    """The same of what the engine of this name runs on."""
    processor = processor_reader(root)
    if engine != "cuda" or isinstance(processor, JetsonReader):
        yield processor
        return
    with open_gpu() as gpu:
        yield _Silent(gpu.reason) if isinstance(gpu, Unavailable) else gpu


def engine_counter(engine: str) -> MemoryCounter | Unavailable:
    """What counts the bytes that the engine of this name reads from memory."""
    return Unavailable("a GPU's memory counters need its profiler (ncu)") if engine == "cuda" else find_counter()


@dataclass(frozen=True)
class _Silent:
    """A reader of nothing. source: why."""

    source: str

    def read(self) -> Sample:
        return Sample()


def device_record(
    recognised: Recognised,
    reader: Reader,
    root: Path = Path("/"),
    counter: MemoryCounter | Unavailable | None = None,
) -> DeviceRecord:
    """Reads once from `reader`, and tries the memory's counters, to learn which quantities there are."""
    device, sample, counter = recognised.device, reader.read(), counter or find_counter(root)
    quantities = {
        "power": sample.power_w is not None or sample.energy_j is not None,
        "temperature": sample.temperature_c is not None,
        "clocks": bool(sample.clocks_mhz),
        "throttling": sample.throttle_reasons is not None,
    }
    peak = None if device is None else device.datasheet_bandwidth
    known = "; ".join(recognised.reasons)
    if device is not None and peak is not None:
        known = f"{device.source}; {device.note}" if device.note else device.source
    source = printable(reader.source)
    there = {name: source for name, found in quantities.items() if found}
    missing = {name: f"not readable: {source}" for name, found in quantities.items() if not found}
    if isinstance(counter, Unavailable):
        missing["memory counter"] = printable(counter.reason)
    else:
        there["memory counter"] = printable(f"perf stat {', '.join(counter.events)}")
    return DeviceRecord(
        name=None if device is None else device.name,
        reported=printable(recognised.reported_name),
        datasheet_bytes_per_s=peak,
        datasheet_note=printable(known) or _NO_DATASHEET,
        cpu_model=printable(recognised.cpu_model),
        cores=usable_cores(),
        governor=printable(read_text(root / _GOVERNOR) or "") or None,
        kernel=printable(platform.release()),
        memory_bytes=recognised.memory_bytes or psutil.virtual_memory().total,
        l2_bytes=None if device is None else device.l2_bytes,
        llc_bytes=last_level_cache_bytes() or None,
        telemetry=there,
        telemetry_missing=missing,
    )
