"""Engines by name. Each is imported only when it is asked for: one engine's library is no other's burden."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from edgemem.kernels.native import native
from edgemem.runtime.cuda_support import cuda_support, require_cuda
from edgemem.runtime.engine import Engine
from edgemem.runtime.errors import EngineError, SettingsError
from edgemem.runtime.package import Package

ENGINES = ("native", "onnx", "cuda", "tensorrt")
STANDARD_PROVIDERS = ("TensorrtExecutionProvider", "NvTensorRTRTXExecutionProvider")  # they know no contrib operators


def default_engine() -> str:
    """The fastest engine that is there: "cuda" on an NVIDIA GPU that it can use, "native" where its kernels were built,
    else "onnx". A GPU that cannot be used is named once, in a warning of one line."""
    if _gpu_is_usable():
        return "cuda"
    return "native" if native() is not None else "onnx"


def open_engine(package: Package, name: str | None = None, **settings: Any) -> Engine:
    """The engine `name` over `package`; by default the fastest, or "onnx" where `providers` are asked for.

    settings: arguments of the engine's class; None leaves its default.
    Raises SettingsError for another name or setting, and what the engine raises.
    """
    given = {key: value for key, value in settings.items() if value is not None}
    if name is None:
        name = "onnx" if "providers" in given else default_engine()
    open_it = _engine_class(name, given.get("providers"))
    known = list(inspect.signature(open_it).parameters)[1:]
    for setting in given:
        if setting not in known:
            raise SettingsError(f"the {name} engine takes no such setting", got=setting, wanted=", ".join(known))
    return open_it(package, **given)


@cache
def _gpu_is_usable() -> bool:
    support = cuda_support()
    if support.obstacle is not None:
        what, do = support.obstacle
        warnings.warn(f"the GPU is not used: {what} (do: {do})", RuntimeWarning, stacklevel=3)
    return support.usable


def _engine_class(name: str, providers: Sequence[str] | None = None) -> Callable[..., Engine]:
    if name == "native":
        from edgemem.runtime.native_engine import NativeEngine

        return NativeEngine
    if name == "onnx" and providers and providers[0] in STANDARD_PROVIDERS:
        from edgemem.runtime.onnx_plan import open_onnx_plan

        return open_onnx_plan
    if name == "onnx":
        from edgemem.runtime.onnx_engine import OnnxEngine

        return OnnxEngine
    if name == "cuda":
        return _cuda_engine()
    if name == "tensorrt":
        from edgemem.runtime.tensorrt_engine import open_tensorrt

        return open_tensorrt
    raise SettingsError("there is no such engine", got=repr(name), wanted=", ".join(ENGINES))


def _cuda_engine() -> Callable[..., Engine]:
    require_cuda()
    try:
        from edgemem.runtime.cuda_engine import CudaEngine
    except (ImportError, OSError) as problem:  # torch or Triton are there, but cannot be loaded
        do = 'pip install --force-reinstall "edgemem-runtime[gpu]", or use --engine native'
        raise EngineError("the libraries of the cuda engine cannot be loaded", got=problem, do=do) from problem
    return CudaEngine
