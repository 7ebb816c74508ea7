"""One NVIDIA GPU through NVML: who it is, and its power, heat, clocks and throttling now.

The only file that knows pynvml (the `gpu` extra). What the driver does not tell is None.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from edgemem.profiles.telemetry import Sample
from edgemem.profiles.unavailable import Unavailable

# Bits of nvmlClocksEventReasons (nvml.h). Idle clocks are no throttling, so bit 0 is left out.
_REASONS = {
    0x002: "application clocks setting",
    0x004: "software power cap",
    0x008: "hardware slowdown",
    0x010: "sync boost",
    0x020: "software thermal slowdown",
    0x040: "hardware thermal slowdown",
    0x080: "hardware power brake",
    0x100: "display clock setting",
}


@dataclass(frozen=True)
class GpuIdentity:
    name: str
    memory_bytes: int | None
    driver: str | None
    compute_capability: str | None


class NvmlGpu:
    """A telemetry reader of one GPU, from `open_gpu`."""

    source = "NVML"

    def __init__(self, library: Any, handle: Any) -> None:
        self._library, self._handle = library, handle

    def identity(self) -> GpuIdentity:
        library = self._library
        memory = self._ask(library.nvmlDeviceGetMemoryInfo)
        capability = self._ask(library.nvmlDeviceGetCudaComputeCapability)
        return GpuIdentity(
            name=self._ask(library.nvmlDeviceGetName) or "unnamed NVIDIA GPU",
            memory_bytes=None if memory is None else int(memory.total),
            driver=self._try(library.nvmlSystemGetDriverVersion),
            compute_capability=None if capability is None else ".".join(map(str, capability)),
        )

    def read(self) -> Sample:
        library = self._library
        power_mw = self._ask(library.nvmlDeviceGetPowerUsage)
        energy_mj = self._ask(library.nvmlDeviceGetTotalEnergyConsumption)
        clocks = {
            "sm": self._ask(library.nvmlDeviceGetClockInfo, library.NVML_CLOCK_SM),
            "memory": self._ask(library.nvmlDeviceGetClockInfo, library.NVML_CLOCK_MEM),
        }
        return Sample(
            power_w=None if power_mw is None else power_mw / 1e3,
            energy_j=None if energy_mj is None else energy_mj / 1e3,
            temperature_c=self._ask(library.nvmlDeviceGetTemperature, library.NVML_TEMPERATURE_GPU),
            clocks_mhz={name: float(clock) for name, clock in clocks.items() if clock is not None},
            throttle_reasons=self._throttle_reasons(),
        )

    def _throttle_reasons(self) -> frozenset[str] | None:
        bits = self._ask(self._library.nvmlDeviceGetCurrentClocksEventReasons)
        if bits is None:  # the name in drivers before 535
            bits = self._ask(self._library.nvmlDeviceGetCurrentClocksThrottleReasons)
        return None if bits is None else frozenset(name for bit, name in _REASONS.items() if bits & bit)

    def _ask(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return self._try(function, self._handle, *arguments)

    def _try(self, function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except self._library.NVMLError:  # not supported by this GPU or driver, or not permitted
            return None


@contextmanager
def open_gpu(index: int = 0) -> Iterator[NvmlGpu | Unavailable]:
    """GPU number `index` as NVML counts them, by PCI address; or why there is none."""
    try:
        import pynvml
    except ImportError:
        yield Unavailable('NVML cannot be asked: pip install "edgemem-runtime[gpu]"')
        return
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as problem:
        yield Unavailable(f"NVML does not answer: {problem}")
        return
    try:
        gpu: NvmlGpu | Unavailable = NvmlGpu(pynvml, pynvml.nvmlDeviceGetHandleByIndex(index))
    except pynvml.NVMLError as problem:
        gpu = Unavailable(f"NVML has no GPU {index}: {problem}")
    try:
        yield gpu
    finally:
        pynvml.nvmlShutdown()


def gpu_identity() -> GpuIdentity | Unavailable:
    """The first GPU, or why there is none."""
    with open_gpu() as gpu:
        return gpu if isinstance(gpu, Unavailable) else gpu.identity()
