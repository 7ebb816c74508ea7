"""The tensorrt engine beside the cuda engine, on this GPU: builds a plan of random weights, runs both, compares them.

The plan, its package and the key that seals it lie in a folder that is gone at the end.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgemem.profiles.stepping import decode_steps, step_times
from edgemem.runtime.engine import Engine
from edgemem.tools.gpu_agreement import PROMPT_TOKENS, Agreement, agreement_of

TENSORRT_MODEL, TENSORRT_WEIGHTS = "smollm2-135m", "int4-g32"
CAPACITY = 512  # slots
_COMPARED_TOKENS = 64
_WARM_STEPS, _ROUNDS, _BLOCK_STEPS = 12, 4, 32


@dataclass(frozen=True)
class Timed:
    """Milliseconds of a decode step: the median, and the floor, which is what it must read at the read ceiling."""

    engine: str
    step_ms: float
    floor_ms: float

    def __str__(self) -> str:
        return (
            f"{self.engine}: {self.step_ms:.3f} ms a step, {self.step_ms / self.floor_ms:.2f} times its floor "
            f"of {self.floor_ms:.3f} ms"
        )


@dataclass(frozen=True)
class Compared:
    agreement: Agreement
    timed: tuple[Timed, ...]


def measure_tensorrt(ceiling: float, note: Callable[[str], None]) -> list[str]:
    """Lines for a report. ceiling: bytes/s.

    Raises EngineError where TensorRT is missing, or cannot build or run for this GPU, and what opening engines raises.
    """
    from edgemem.compiler.random_model import write_random_package
    from edgemem.compiler.tensorrt_build import build_plan
    from edgemem.kernels.formats import Precision
    from edgemem.profiles.shapes import shape
    from edgemem.runtime.open import open_engine
    from edgemem.runtime.package import Package
    from edgemem.runtime.plan_shape import plan_shape
    from edgemem.runtime.tensorrt_library import library_for

    library, began, weights = library_for(None), time.monotonic(), Precision.parse(TENSORRT_WEIGHTS)
    with tempfile.TemporaryDirectory() as folder:
        path, keys = Path(folder) / f"{TENSORRT_MODEL}.edgemem", Path(folder) / "keys"
        write_random_package(path, shape(TENSORRT_MODEL), weights=weights, max_context=CAPACITY)
        with Package.open(path) as package:
            layers = (0, package.model.layers)
            _, record, _ = build_plan(
                package, plan_shape(package.model, layers, CAPACITY), library, target=None, keys=keys
            )
            built = (
                f"{TENSORRT_MODEL}-{TENSORRT_WEIGHTS}: {record.plan_bytes / 1e6:.0f} MB for {record.target} by "
                f"{record.library} {record.version}, built in {time.monotonic() - began:.0f} s"
            )
            note(built)
            with (
                closing(open_engine(package, "tensorrt", keys=keys)) as tensorrt,
                closing(open_engine(package, "cuda", capacity=tensorrt.capacity)) as cuda,
            ):
                found = compare_engines(tensorrt, cuda, ceiling)
    return [built, str(found.agreement), *map(str, found.timed)]


def compare_engines(ours: Engine, truth: Engine, ceiling: float) -> Compared:
    """Two engines of one package, both new: what they say, then their steps in blocks that take turns."""
    agreement = agreement_of(ours, truth, _COMPARED_TOKENS)
    prompt = np.random.default_rng(1).integers(0, ours.model.vocabulary, PROMPT_TOKENS, dtype=np.int32)
    engines = (ours, truth)
    times: dict[str, list[float]] = {engine.name: [] for engine in engines}
    floors: dict[str, float] = {}
    for turn in range(_ROUNDS + 1):
        for engine in engines if turn % 2 == 0 else reversed(engines):
            engine.truncate(0)
            engine.extend(prompt)
            steps = decode_steps(engine, _BLOCK_STEPS if turn else _WARM_STEPS, time.perf_counter)
            floors[engine.name] = 1e3 * engine.traffic().total / ceiling
            if turn:  # the first compiles and captures
                times[engine.name] += step_times(steps.readings)[0]
    return Compared(
        agreement, tuple(Timed(name, float(np.median(step_ms)), floors[name]) for name, step_ms in times.items())
    )
