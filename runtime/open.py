"""Engines by name. Each is imported only when it is asked for: one engine's library is no other's burden."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from edgemem.kernels.native import native
from edgemem.runtime.engine import Engine
from edgemem.runtime.errors import SettingsError
from edgemem.runtime.package import Package

ENGINES = ("native", "onnx")


def default_engine() -> str:
    """The fastest engine that is there: "native" where its kernels were built, else "onnx"."""
    return "native" if native() is not None else "onnx"


def open_engine(package: Package, name: str | None = None, **settings: Any) -> Engine:
    """The engine `name` over `package`; by default the fastest, or "onnx" where `providers` are asked for.

    settings: arguments of the engine's class; None leaves its default.
    Raises SettingsError for another name or setting, and what the engine raises.
    """
    given = {key: value for key, value in settings.items() if value is not None}
    if name is None:
        name = "onnx" if "providers" in given else default_engine()
    open_it = _engine_class(name)
    known = list(inspect.signature(open_it).parameters)[1:]
    for setting in given:
        if setting not in known:
            raise SettingsError(f"the {name} engine takes no such setting", got=setting, wanted=", ".join(known))
    return open_it(package, **given)


def _engine_class(name: str) -> Callable[..., Engine]:
    if name == "native":
        from edgemem.runtime.native_engine import NativeEngine

        return NativeEngine
    if name == "onnx":
        from edgemem.runtime.onnx_engine import OnnxEngine

        return OnnxEngine
    raise SettingsError("there is no such engine", got=repr(name), wanted=", ".join(ENGINES))
