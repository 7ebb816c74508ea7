"""The engines that can be profiled, and the arms of each: the ways of running it that are set against each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

from edgemem.kernels.native import native
from edgemem.profiles.floors import KV_FORMATS
from edgemem.profiles.settings import Graphs
from edgemem.runtime.cuda_support import cuda_support


@dataclass(frozen=True)
class Arm:
    """settings: beside capacity, threads and kv, what open_engine is given. graphs: whether it replays CUDA graphs,
    None for an engine that knows none."""

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    graphs: bool | None = None


@dataclass(frozen=True)
class ProfiledEngine:
    """kv_kinds: how it can keep keys and values, its default first; with one alone it takes no such setting."""

    arms: tuple[Arm, ...]
    kv_kinds: tuple[str, ...]

    def kv(self, asked: str | None) -> str:
        """The kind that was asked for where it has it, else its default."""
        return asked if asked in self.kv_kinds else self.kv_kinds[0]

    def arms_for(self, graphs: Graphs) -> list[Arm]:
        """Arms without graphs of their own are always among them."""
        return [arm for arm in self.arms if graphs == "ab" or arm.graphs in (None, graphs == "on")]

    def settings(self, arm: str, kv: str) -> dict[str, Any]:
        """For open_engine. KeyError for an arm that it has not."""
        chosen = {known.name: known for known in self.arms}[arm]
        return {**chosen.settings, "kv": kv if len(self.kv_kinds) > 1 else None}


ENGINES: Mapping[str, ProfiledEngine] = {
    "native": ProfiledEngine((Arm("default"),), tuple(KV_FORMATS["native"])),
    "onnx": ProfiledEngine((Arm("default"),), tuple(KV_FORMATS["onnx"])),
    "cuda": ProfiledEngine(
        (
            Arm("eager", {"mode": "eager"}, graphs=False),
            Arm("graph", {"mode": "graph"}, graphs=True),
            Arm("graph+pdl", {"mode": "graph+pdl"}, graphs=True),
        ),
        tuple(KV_FORMATS["cuda"]),
    ),
}


def missing_reason(engine: str) -> str | None:
    """Why this machine cannot run the engine; None if it can."""
    if engine not in ENGINES:
        return f"this version has no {engine} engine"
    if engine == "native" and native() is None:
        return "the native kernels were not built"
    if engine == "onnx" and find_spec("onnxruntime") is None:
        return "onnxruntime is not installed"
    if engine == "cuda":
        return _missing_gpu()
    return None


def _missing_gpu() -> str | None:
    support = cuda_support()
    if support.usable:
        return None
    return "there is no NVIDIA GPU" if support.obstacle is None else f"the GPU cannot be used: {support.obstacle.what}"
