"""Versions of installed distributions, without importing them."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version


def version_of(*names: str) -> str | None:
    """The version of the first of these distributions that is installed."""
    for name in names:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None


def run_versions(*, gpu: bool = False) -> dict[str, str | None]:
    """What a reported speed depends on. gpu: with what the cuda engine is made of."""
    libraries = ("torch", "triton") if gpu else ()
    return {
        "edgemem": version_of("edgemem-runtime"),
        "onnxruntime": version_of("onnxruntime", "onnxruntime-gpu"),
        "numpy": version_of("numpy"),
        "python": platform.python_version(),
        **{name: version_of(name) for name in libraries},
    }
