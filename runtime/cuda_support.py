"""Whether the cuda engine can run here, and if not, what mends it. Asks the driver itself; imports no torch.

It allocates nothing on the GPU: the driver is asked for its devices, the libraries only for their versions.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import sys
import sysconfig
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from edgemem.runtime.errors import EngineError

LEAST_CAPABILITY = (8, 0)  # bfloat16 and asynchronous copies, which the kernels are built for
_TORCH, _TRITON = ((2, 9), (3, 0)), ((3, 6), (4, 0))  # at least, and below
_INSTALL = 'pip install "edgemem-runtime[gpu]"'
_DRIVER_LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR


@dataclass(frozen=True)
class Gpu:
    name: str
    capability: tuple[int, int]


class Obstacle(NamedTuple):
    """What is in the way, on one line, and what to do about it."""

    what: str
    do: str


@dataclass(frozen=True)
class Driver:
    """What the driver says. error: its code where it does not start; cuda: the newest CUDA that it runs, (13, 0)."""

    error: int = 0
    cuda: tuple[int, int] = (0, 0)
    gpu: Gpu | None = None


@dataclass(frozen=True)
class Libraries:
    """Versions as installed, None where not; torch_cuda: the CUDA that torch was built for, None for none. headers:
    whether Python's are there, which Triton compiles its launchers with."""

    torch: str | None
    torch_cuda: str | None
    triton: str | None
    compiler: str | None
    headers: bool


@dataclass(frozen=True)
class CudaSupport:
    """gpu: the one that would be used. obstacle: why it is not; None with a GPU that is usable, and where there is no
    trace of a GPU."""

    gpu: Gpu | None
    obstacle: Obstacle | None

    @property
    def usable(self) -> bool:
        return self.gpu is not None and self.obstacle is None


def cuda_support() -> CudaSupport:
    """Of this machine and this Python."""
    driver = read_driver()
    gpu = None if driver is None else driver.gpu
    if driver is None or (driver.error and driver.error != _NO_DEVICE):
        return CudaSupport(None, _driver_obstacle(driver, traces()))
    return CudaSupport(gpu, None if gpu is None else find_obstacle(gpu, driver, read_libraries()))


def require_cuda() -> None:
    """Raises EngineError where the cuda engine cannot run, but for Triton's interpreter, which TRITON_INTERPRET=1 asks
    for: it is for tests, and thousands of times slower than a GPU."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        return
    support = cuda_support()
    if not support.usable:
        what, do = support.obstacle or Obstacle("there is no NVIDIA GPU", "use --engine native")
        raise EngineError("the cuda engine cannot run here", got=what, do=do)


def find_obstacle(gpu: Gpu, driver: Driver, libraries: Libraries) -> Obstacle | None:
    """The first thing in the way of the cuda engine on `gpu`."""
    if gpu.capability < LEAST_CAPABILITY:
        got, wanted = (".".join(map(str, capability)) for capability in (gpu.capability, LEAST_CAPABILITY))
        return Obstacle(f"the {gpu.name} has compute capability {got}, {wanted} is needed", "use --engine native")
    wrong = _wrong_version("torch", libraries.torch, _TORCH) or _wrong_version("triton", libraries.triton, _TRITON)
    return wrong or _wrong_build(libraries, driver)


def _wrong_version(name: str, found: str | None, wanted: tuple[tuple[int, int], tuple[int, int]]) -> Obstacle | None:
    if found is None:
        return Obstacle(f"{name} is not installed", _INSTALL)
    least, below = wanted
    if least <= _numbers(found) < below:
        return None
    asked = f">={least[0]}.{least[1]},<{below[0]}"
    return Obstacle(f"{name} {found} is not of the versions {asked}", f'pip install "{name}{asked}"')


def _wrong_build(libraries: Libraries, driver: Driver) -> Obstacle | None:
    if libraries.torch_cuda is None:
        return Obstacle(f"torch {libraries.torch} was built without CUDA", _reinstall(driver))
    if _numbers(libraries.torch_cuda)[0] > driver.cuda[0]:
        mend = f"update the NVIDIA driver, or {_reinstall(driver)}"
        runs = f"{driver.cuda[0]}.{driver.cuda[1]}"
        return Obstacle(f"the driver runs CUDA {runs}, and torch was built for {libraries.torch_cuda}", mend)
    if libraries.compiler is None:
        return Obstacle("Triton finds no C compiler", "install gcc (apt install gcc), or set CC")
    if not libraries.headers:
        wanted = f"python{sys.version_info.major}.{sys.version_info.minor}-dev"
        return Obstacle("Triton finds no Python.h", f"install Python's headers (apt install {wanted})")
    return None


def read_driver() -> Driver | None:
    """None where the driver's library is not there."""
    try:
        library = ctypes.CDLL(_DRIVER_LIBRARY)
    except OSError:
        return None
    cuda, count = ctypes.c_int(), ctypes.c_int()
    library.cuDriverGetVersion(ctypes.byref(cuda))
    runs = (cuda.value // 1000, cuda.value % 1000 // 10)
    error = library.cuInit(0) or library.cuDeviceGetCount(ctypes.byref(count))
    return Driver(error, runs, _first_gpu(library) if not error and count.value else None)


def _first_gpu(library: Any) -> Gpu:
    device, name, major, minor = ctypes.c_int(), ctypes.create_string_buffer(256), ctypes.c_int(), ctypes.c_int()
    library.cuDeviceGet(ctypes.byref(device), 0)
    library.cuDeviceGetName(name, len(name), device)
    library.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, device)
    library.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, device)
    return Gpu(name.value.decode(errors="replace"), (major.value, minor.value))


def read_libraries() -> Libraries:
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    return Libraries(_version("torch"), _torch_cuda(), _version("triton"), compiler, _has_headers())


def _has_headers() -> bool:
    """Where Triton looks for them."""
    scheme = sysconfig.get_default_scheme()
    paths = sysconfig.get_paths("posix_prefix" if scheme == "posix_local" else scheme)
    return (Path(paths["include"]) / "Python.h").exists()


def traces(root: Path = Path("/")) -> str | None:
    """What shows that there is an NVIDIA GPU, though no driver answers for it; None where nothing does."""
    if (root / "proc/driver/nvidia/version").exists():
        return "the kernel's NVIDIA driver is loaded"
    if any(_is_display(device) for device in sorted(root.glob("sys/bus/pci/devices/*"))):
        return "an NVIDIA GPU is on the PCI bus"
    return None


def _is_display(device: Path) -> bool:
    try:
        vendor, kind = ((device / name).read_text(encoding="ascii").strip() for name in ("vendor", "class"))
    except OSError:
        return False
    return vendor == "0x10de" and kind.startswith("0x03")


def _driver_obstacle(driver: Driver | None, trace: str | None) -> Obstacle | None:
    if driver is not None:
        do = "nvidia-smi shows whether the driver is sound; reinstall it, or restart the machine after an update"
        return Obstacle(f"the NVIDIA driver does not start (CUDA error {driver.error})", do)
    if trace is None:
        return None
    do = "install the NVIDIA driver, or start the container with --gpus all"
    return Obstacle(f"{trace}, and {_DRIVER_LIBRARY} is missing", do)


def _torch_cuda() -> str | None:
    """As torch/version.py has it: importing torch takes seconds."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    try:
        text = (Path(spec.origin).parent / "version.py").read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(r"^cuda\b[^=\n]*=\s*'(\d+\.\d+)", text, re.MULTILINE)
    return found.group(1) if found else None


def _reinstall(driver: Driver) -> str:
    wheel = "cu130" if driver.cuda >= (13, 0) else "cu126"
    return f"pip install --force-reinstall torch --index-url https://download.pytorch.org/whl/{wheel}"


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _numbers(text: str) -> tuple[int, ...]:
    """2.13.0+cu130 to (2, 13)."""
    return tuple(_leading(part) for part in text.partition("+")[0].split(".")[:2])


def _leading(part: str) -> int:
    digits = re.match(r"\d+", part)
    return int(digits.group()) if digits else 0
