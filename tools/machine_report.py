"""What this machine and this Python have: processor, memory, GPUs, libraries. Reads, and changes nothing."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from edgemem.profiles.cpu_model import cpu_model
from edgemem.runtime.cuda_support import CudaSupport, cuda_support
from edgemem.tools.source import cache_folder
from edgemem.tools.versions import version_of

_PROVIDER_SUFFIX = "ExecutionProvider"


@dataclass(frozen=True)
class Library:
    """A library: the module to look for, the distributions that may hold it, what needs it, how to add it."""

    module: str
    distributions: tuple[str, ...]
    needed_for: str
    add: str

    @property
    def required(self) -> bool:
        return self.needed_for == "run"


_REINSTALL = "pip install edgemem-runtime"
_GPU = 'pip install "edgemem-runtime[gpu]"'
_COMPILE = 'pip install "edgemem-runtime[compile]"'
LIBRARIES = (
    Library("numpy", ("numpy",), "run", _REINSTALL),
    Library("onnxruntime", ("onnxruntime", "onnxruntime-gpu"), "run", _REINSTALL),
    Library("tokenizers", ("tokenizers",), "run", _REINSTALL),
    Library("jinja2", ("jinja2",), "run", _REINSTALL),
    Library("yaml", ("pyyaml",), "run", _REINSTALL),
    Library("psutil", ("psutil",), "run", _REINSTALL),
    Library("huggingface_hub", ("huggingface_hub",), "pull", _REINSTALL),
    Library("onnx", ("onnx",), "compile", _COMPILE),
    Library("gguf", ("gguf",), "compile", _COMPILE),
    Library("onnxruntime_genai", ("onnxruntime-genai",), "bench, to compare with", "pip install onnxruntime-genai"),
    Library("torch", ("torch",), "cuda engine", _GPU),
    Library("triton", ("triton",), "cuda engine", _GPU),
    Library(
        "tensorrt",
        ("tensorrt", "tensorrt-cu13", "tensorrt-cu12"),
        "tensorrt engine, on its own GPU",
        "pip install tensorrt",
    ),
    Library("tensorrt_rtx", ("tensorrt_rtx",), "tensorrt engine", 'pip install "edgemem-runtime[tensorrt]"'),
)


def machine_report() -> dict[str, Any]:
    """Plain values for JSON; `missing` lists {what, needed_for, add}, `ready` says whether `edgemem run` can work."""
    libraries = {
        library.module: version_of(*library.distributions) or "installed" if find_spec(library.module) else None
        for library in LIBRARIES
    }
    gpus, support = nvidia_gpus(), cuda_support()
    report: dict[str, Any] = {
        "edgemem": version_of("edgemem-runtime"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": {"model": cpu_model(), "logical": os.cpu_count(), "features": _features()},
        "gpus": gpus,
        "libraries": libraries,
        "providers": _providers() if libraries["onnxruntime"] else [],
        "engines": _engines(libraries, support),
        "native_kernels": find_spec("edgemem.kernels._native") is not None,
        "cache": {"path": str(cache_folder()), "free_bytes": _free_bytes(cache_folder())},
    }
    if libraries["psutil"]:
        from edgemem.runtime.machine import available_memory, usable_cores

        report["cpu"]["usable_cores"] = usable_cores()
        report["memory_available_bytes"] = available_memory()
    report["missing"] = _missing(report, support)
    report["ready"] = all(libraries[library.module] for library in LIBRARIES if library.required)
    return report


def nvidia_gpus() -> list[dict[str, str]]:
    """Name, memory and driver of each GPU that nvidia-smi lists; none where there is no nvidia-smi."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    fields = ("name", "memory.total", "driver_version", "compute_cap")
    try:
        result = subprocess.run(
            [program, f"--query-gpu={','.join(fields)}", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):  # a driver that does not answer offers no GPU
        return []
    rows = [line.split(", ") for line in result.stdout.splitlines()]
    return [dict(zip(fields, row, strict=True)) for row in rows if len(row) == len(fields)]


def _missing(report: dict[str, Any], support: CudaSupport) -> list[dict[str, str]]:
    missing = [
        {"what": library.module, "needed_for": library.needed_for, "add": library.add}
        for library in LIBRARIES
        if report["libraries"][library.module] is None and library.needed_for in ("run", "pull", "compile")
    ]
    if not report["native_kernels"]:
        add = "install a C++ compiler, then pip install --force-reinstall --no-binary :all: --no-deps edgemem-runtime"
        missing.append({"what": "native kernels", "needed_for": "native engine, exact bandwidth", "add": add})
    if support.obstacle is not None:
        what, add = support.obstacle
        missing.append({"what": what, "needed_for": "cuda engine", "add": add})
    if report["gpus"] and f"CUDA{_PROVIDER_SUFFIX}" not in report["providers"]:
        add = "pip uninstall onnxruntime, then pip install onnxruntime-gpu"
        missing.append({"what": "onnxruntime's CUDA provider", "needed_for": "run on the GPU", "add": add})
    return missing


def _providers() -> list[str]:
    from edgemem.runtime.errors import EngineError
    from edgemem.runtime.onnx_session import import_onnxruntime

    try:
        return list(import_onnxruntime().get_available_providers())
    except EngineError:  # installed, but for another system or Python: it offers nothing
        return []


def _engines(libraries: dict[str, str | None], support: CudaSupport) -> dict[str, str | None]:
    """Each engine with what it runs on: the native one's fastest instruction set, a version, a GPU; None where it
    cannot run."""
    built = find_spec("edgemem.kernels._native") is not None
    gpu = support.gpu.name if support.gpu is not None and support.usable else None
    tensorrt = libraries["tensorrt"] or libraries["tensorrt_rtx"]
    return {
        "native": _native_path() if built else None,
        "onnx": libraries["onnxruntime"],
        "cuda": gpu,
        "tensorrt": tensorrt if gpu else None,
    }


def _native_path() -> str | None:
    from edgemem.kernels.native import native

    module = native()
    return None if module is None else str(module.paths()[0])


def _features() -> list[str]:
    from edgemem.kernels.native import cpu_features

    if find_spec("edgemem.kernels._native") is None:
        return []
    return sorted(name for name, there in cpu_features().items() if there)


def _free_bytes(folder: Path) -> int:
    """Free space where the folder is, or will be made."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
