"""Execution providers that come as a plugin library beside onnxruntime, each in a wheel of its own.

A plugin is registered once in a process and then offers devices; a session is given those in place of a name.
"""

from __future__ import annotations

import importlib
from typing import Any

from edgemem.runtime.errors import EngineError

# By provider: the module that knows where the library lies, and the wheel that brings it.
PLUGINS = {
    "NvTensorRTRTXExecutionProvider": ("onnxruntime_ep_nv_tensorrt_rtx", "onnxruntime-ep-nv-tensorrt-rtx-cu13"),
}
_REGISTERED: set[str] = set()  # onnxruntime keeps one list for the process, and refuses a name twice


def plugin_devices(onnxruntime: Any, provider: str) -> list[Any]:
    """The devices of a plugin provider, at least one: what SessionOptions.add_provider_for_devices takes.

    Raises EngineError where the wheel is missing, onnxruntime takes no plugins, the library does not load, or it finds
    no device.
    """
    module_name, wheel = PLUGINS[provider]
    if not hasattr(onnxruntime, "register_execution_provider_library"):
        do = "pip install -U 'onnxruntime>=1.24'"
        raise EngineError("this onnxruntime takes no plugin libraries", got=onnxruntime.__version__, do=do)
    try:
        module = importlib.import_module(module_name)
    except ImportError as problem:
        do = f"pip install {wheel}"
        raise EngineError(
            "the execution provider's plugin is not installed", where=provider, got=problem, do=do
        ) from problem
    if provider not in _REGISTERED:
        try:
            onnxruntime.register_execution_provider_library(provider, module.get_library_path())
        except Exception as problem:  # onnxruntime raises classes of its own that share only Exception
            raise EngineError(
                "the execution provider's plugin does not load",
                where=provider,
                got=problem,
                do="install the NVIDIA driver (nvidia-smi shows it), or choose another provider",
            ) from problem
        _REGISTERED.add(provider)
    devices = [device for device in onnxruntime.get_ep_devices() if device.ep_name == provider]
    if not devices:
        raise EngineError(
            "the execution provider finds no device",
            where=provider,
            do="see what nvidia-smi says, or choose another provider",
        )
    return devices
