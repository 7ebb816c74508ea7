"""The one adapter to TensorRT: finds `tensorrt` or `tensorrt_rtx`, says what is missing, and loads a verified plan.

Both have one API; of the differences that matter here, each is asked for by `Library.rtx`. Nothing is built here.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from edgemem.runtime.errors import EngineError, SettingsError

TARGETS = ("sm75", "sm80", "sm86", "sm89", "sm120", "sm121")  # TensorRT-RTX builds for these on any machine
_NAMES = ("tensorrt", "tensorrt_rtx")
_INSTALL = 'pip install "edgemem-runtime[tensorrt]"'


@dataclass(frozen=True)
class Library:
    """name: "tensorrt" or "tensorrt_rtx". module: it, imported."""

    name: str
    version: str
    module: Any

    @property
    def rtx(self) -> bool:
        return self.name == "tensorrt_rtx"


def open_library(name: str | None = None) -> Library:
    """The library `name`, by default the first that is installed. Raises EngineError, saying what mends it."""
    if name is not None and name not in _NAMES:
        raise SettingsError("there is no such library", got=repr(name), wanted=" or ".join(_NAMES))
    problems = []
    for candidate in _NAMES if name is None else (name,):
        try:
            module = importlib.import_module(candidate)
            return Library(candidate, str(module.__version__), module)
        except (ImportError, OSError, AttributeError) as problem:  # OSError: a shared library of it does not load
            problems.append(f"{candidate}: {problem}")
    raise EngineError("TensorRT cannot be imported", got="; ".join(problems), do=_advice(name))


def library_for(target: str | None) -> Library:
    """The library that builds for `target`, or for this machine's own GPU where it is None.

    Raises SettingsError for a target that is none, EngineError where the library or the GPU is missing.
    """
    if target is not None:
        if target not in TARGETS:
            raise SettingsError("there is no such target", got=repr(target), wanted=", ".join(TARGETS))
        return open_library("tensorrt_rtx")
    if own_target() is None:
        raise EngineError(
            "there is no GPU here to build for", do=f"name the one to build for: --target {'|'.join(TARGETS)}"
        )
    return open_library()


def own_target() -> str | None:
    """This machine's GPU as a target, such as "sm89"; None without one, or without torch."""
    try:
        import torch
    except ImportError:
        return None
    if not torch.cuda.is_available():
        return None
    major, minor = torch.cuda.get_device_capability()
    return f"sm{major}{minor}"


def what_is_missing() -> str | None:
    """What keeps the tensorrt engine from running here, and the command that mends it; None where nothing does."""
    try:
        open_library()
    except EngineError as error:
        return f"{error.what}: {error.do}"
    try:
        import torch
    except ImportError:
        return f"torch is not installed: {_INSTALL}"
    if not torch.cuda.is_available():
        return "torch finds no NVIDIA GPU: install the driver, and a torch built for CUDA"
    return None


def new_logger(library: Library) -> Any:
    """An ILogger that prints nothing; its `said` lists warnings and errors as texts."""
    base: Any = library.module.ILogger

    class Listening(base):  # type: ignore[misc]
        def __init__(self) -> None:
            base.__init__(self)
            self.said: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (base.INTERNAL_ERROR, base.ERROR, base.WARNING):
                self.said.append(f"{str(severity).rpartition('.')[2].lower()}: {message}")

    return Listening()


def load_plan(library: Library, plan: bytes | memoryview) -> Any:
    """The ICudaEngine of a plan, which is a program: give only what engine_plan has verified. Raises EngineError."""
    logger = new_logger(library)
    runtime = library.module.Runtime(logger)
    engine = runtime.deserialize_cuda_engine(plan) if runtime is not None else None
    if engine is None:
        raise EngineError(
            "TensorRT cannot load the plan",
            got="; ".join(logger.said[-3:]) or "no reason given",
            do="check the driver (nvidia-smi), then build again: edgemem compile PACKAGE --engine tensorrt",
        )
    return engine


def _advice(name: str | None) -> str:
    if name == "tensorrt":
        return "pip install tensorrt, or on a Jetson use the python3-libnvinfer that came with JetPack"
    return f"{_INSTALL} on x86-64; on a Jetson use the python3-libnvinfer that came with JetPack"
