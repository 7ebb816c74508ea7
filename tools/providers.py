"""The names a user may give for ONNX Runtime's execution providers. Whether one is there, the engine says."""

from __future__ import annotations

from collections.abc import Sequence

from edgemem.runtime.errors import SettingsError

_SUFFIX = "ExecutionProvider"
SHORT_NAMES = {
    "cpu": f"CPU{_SUFFIX}",
    "cuda": f"CUDA{_SUFFIX}",
    "tensorrt": f"Tensorrt{_SUFFIX}",
    "nvtensorrtrtx": f"NvTensorRTRTX{_SUFFIX}",
}


def provider_names(given: Sequence[str] | None) -> list[str] | None:
    """ONNX Runtime's names for short names or its own, in any case; None, the engine's own choice, for None.

    Raises SettingsError for a name that is neither.
    """
    if given is None:
        return None
    from edgemem.runtime.onnx_session import import_onnxruntime

    own = sorted({*import_onnxruntime().get_all_providers(), *SHORT_NAMES.values()})
    known = {**SHORT_NAMES, **{name.lower(): name for name in own}}
    for name in given:
        if name.lower() not in known:
            raise SettingsError(
                "there is no such execution provider",
                got=repr(name),
                wanted=f"{', '.join(SHORT_NAMES)}, or ONNX Runtime's {', '.join(own)}",
            )
    return [known[name.lower()] for name in given]
