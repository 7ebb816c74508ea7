"""Opens an ONNX Runtime session over a package's graph: providers, threads, telemetry off, old kernels worked around.

The only file that imports onnxruntime. It knows no tokens and no cache.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgemem.runtime.errors import EngineError, SettingsError
from edgemem.runtime.onnx_plugins import PLUGINS, plugin_devices

_WHEELS = {
    "CUDAExecutionProvider": "onnxruntime-gpu",
    "TensorrtExecutionProvider": "onnxruntime-gpu",
    "DmlExecutionProvider": "onnxruntime-directml",
    "OpenVINOExecutionProvider": "onnxruntime-openvino",
    "MIGraphXExecutionProvider": "onnxruntime-migraphx",
    "QNNExecutionProvider": "onnxruntime-qnn",
}
_WINDOW = b"\x0a\x11local_window_size"  # AttributeProto.name
_WINDOW_FIXED = (1, 24)  # up to 1.23 GroupQueryAttention did not count the token itself


def open_session(graph: Path, *, providers: Sequence[str], threads: int, content: bytes | None = None) -> Any:
    """An onnxruntime.InferenceSession that runs on the first of `providers`.

    content: of the graph, where it was read and checked already; its data lie in the folder of `graph`.

    Raises EngineError if a provider is missing or does not start, or the graph does not open.
    """
    onnxruntime = import_onnxruntime()
    check_providers(providers, onnxruntime.get_available_providers())
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")
    if content is None and _version(onnxruntime.__version__) < _WINDOW_FIXED:
        old = graph.read_bytes()
        content = shorten_windows(old) if _WINDOW in old else None
    if content is not None:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(graph.parent))
    source: str | bytes = str(graph) if content is None else content
    named: dict[str, Any] = {"providers": list(providers)}
    if providers[0] in PLUGINS:  # what such a one cannot run goes to the CPU
        options.add_provider_for_devices(plugin_devices(onnxruntime, providers[0]), {})
        named = {}
    try:
        # Its fallback would print to stdout and go on with the CPU.
        session = onnxruntime.InferenceSession(source, options, **named, enable_fallback=False)
    except Exception as problem:  # onnxruntime raises classes of its own that share only Exception
        do = "recompile the package; if that does not help, try another provider or version of onnxruntime"
        raise EngineError("ONNX Runtime cannot open the graph", where=graph, got=problem, do=do) from problem
    started = session.get_providers()
    if started[:1] != list(providers[:1]):  # one whose libraries do not load is left out in silence
        raise EngineError(
            "the execution provider did not start",
            where=graph,
            got=", ".join(started),
            wanted=f"{providers[0]} first",
            do="install the driver and libraries that it needs, or choose another provider",
        )
    return session


def run_session(session: Any, binding: Any) -> None:
    """One run over a binding. Raises EngineError."""
    try:
        session.run_with_iobinding(binding)
    except Exception as problem:  # as in open_session
        raise EngineError(
            "ONNX Runtime failed in a step",
            got=problem,
            do="free memory if that ran out; else run the step again on CPUExecutionProvider",
        ) from problem


def import_onnxruntime() -> Any:
    """The onnxruntime module, its telemetry off. Raises EngineError if it is not installed."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    try:
        import onnxruntime
    except ImportError as problem:
        raise EngineError("onnxruntime cannot be imported", got=problem, do="pip install onnxruntime") from problem
    if hasattr(onnxruntime, "disable_telemetry_events"):
        onnxruntime.disable_telemetry_events()
    return onnxruntime


def check_providers(wanted: Sequence[str], available: Sequence[str]) -> None:
    """Raises SettingsError for an empty list or a plugin among others, EngineError naming a missing one's wheel.

    Whether a plugin is there is seen when it is registered.
    """
    if isinstance(wanted, str):
        raise SettingsError("providers are one text", got=repr(wanted)[:80], wanted=f"a list: [{wanted!r}]"[:80])
    if not wanted:
        raise SettingsError("no execution provider was named", wanted=", ".join(available))
    if wanted[0] in PLUGINS and set(wanted[1:]) <= {"CPUExecutionProvider"}:
        return
    for provider in wanted:
        if provider in PLUGINS:
            raise SettingsError(
                "a provider that is a plugin goes with the CPU's alone, and first",
                got=", ".join(wanted),
                wanted=provider,
            )
        if provider not in available:
            raise EngineError(
                "this onnxruntime has no such execution provider",
                got=provider,
                wanted=", ".join(available),
                do=_advice(provider),
            )


def _advice(provider: str) -> str:
    return f"pip install {_WHEELS[provider]}" if provider in _WHEELS else "choose one of those"


def shorten_windows(graph: bytes) -> bytes:
    """The ONNX file with every local_window_size one less, for kernels that do not count the token itself.

    The number is rewritten in its own place and width (a varint may be padded), so no length changes.
    """
    shortened = bytearray(graph)
    position = graph.find(_WINDOW)
    while position >= 0:
        start = position + len(_WINDOW) + 1  # behind the tag of AttributeProto.i
        if graph[start - 1] != 0x18:
            raise EngineError("a local_window_size that is no number", do="recompile the package")
        stop = start
        while graph[stop] & 0x80:
            stop += 1
        stop += 1
        window = sum((byte & 0x7F) << 7 * place for place, byte in enumerate(graph[start:stop])) - 1
        for place in range(start, stop):
            more = 0x80 if place < stop - 1 else 0
            shortened[place] = window & 0x7F | more
            window >>= 7
        position = graph.find(_WINDOW, stop)
    return bytes(shortened)


def _version(text: str) -> tuple[int, int]:
    major, minor = text.split(".")[:2]
    return int(major), int(minor)
