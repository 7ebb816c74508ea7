"""What is to be measured: the settings of one profile run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from edgemem.runtime.errors import SettingsError
from edgemem.runtime.limits import LIMITS
from edgemem.runtime.native_engine import KV_KINDS

Graphs = Literal["ab", "on", "off"]
ENGINE_NAMES = ("native", "onnx", "cuda", "tensorrt")  # one that is not there becomes rows that say so


@dataclass(frozen=True)
class ProfileSettings:
    """Raises SettingsError for a value out of range.

    engines: of ENGINE_NAMES. contexts: KV slots filled before the timed steps. sessions: fresh processes a cell.
    steps: timed steps a session and arm. graphs: which arms of an engine that has CUDA graphs: with and without, or
    one alone. threads: None for the usable cores. kv: "fp16" or "int8", of engines that have a choice; None for their
    default. seed: of the prompt and of every order.
    """

    engines: tuple[str, ...] = ("native", "onnx")
    contexts: tuple[int, ...] = (512, 2048, 4096, 8192, 16384)
    sessions: int = 10
    steps: int = 64
    graphs: Graphs = "ab"
    threads: int | None = None
    kv: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("engines", "contexts"):
            values = getattr(self, name)
            _require(name, values, bool(values) and len(set(values)) == len(values), "at least one, each once")
        for engine in self.engines:
            _require("engines", engine, engine in ENGINE_NAMES, ", ".join(ENGINE_NAMES))
        for context in self.contexts:
            _require("contexts", context, _whole(context, 1, LIMITS.context), f"1 to {LIMITS.context} slots")
        _require("sessions", self.sessions, _whole(self.sessions, 1, 1000), "1 to 1000")
        _require("steps", self.steps, _whole(self.steps, 8, 100_000), "8 to 100000")
        _require("graphs", self.graphs, self.graphs in get_args(Graphs), ", ".join(get_args(Graphs)))
        _require("threads", self.threads, self.threads is None or _whole(self.threads, 1, 1024), "1 to 1024")
        _require("kv", self.kv, self.kv in (None, *KV_KINDS), " or ".join(KV_KINDS))
        _require("seed", self.seed, _whole(self.seed, 0, (1 << 32) - 1), "0 to 2**32 - 1")


def _whole(value: object, low: int, high: int) -> bool:
    return type(value) is int and low <= value <= high


def _require(name: str, value: object, holds: bool, wanted: str) -> None:
    if not holds:
        raise SettingsError(f"the profile setting {name} is out of range", got=repr(value), wanted=wanted)
