"""The tensorrt engine over ONNX Runtime's CPU in TensorRT's place: the same graph and the same control flow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgemem.compiler.emit_standard import GRAPH_FILE, emit_standard
from edgemem.runtime.engine_inputs import context_slots, layer_range, setting
from edgemem.runtime.open import open_engine
from edgemem.runtime.package import Package
from edgemem.runtime.plan_buffers import PlanBuffers
from edgemem.runtime.plan_engine import PlanEngine
from edgemem.runtime.plan_runner import OnnxRunner
from edgemem.runtime.plan_shape import plan_shape

BUCKETS = (4, 16)  # and the capacity: small, so that a test goes from one to the next


def plan_engine(
    package: Package,
    folder: Path,
    *,
    capacity: int | None = None,
    layers: tuple[int, int] | None = None,
    threads: int | None = None,
    **others: Any,
) -> PlanEngine:
    """folder: where graphs are kept for the next call."""
    if others:
        open_engine(package, "tensorrt", **others)  # which knows them no more than this does
    layers, capacity = layer_range(layers, package), context_slots(capacity, package)
    threads = setting("threads", threads, default=1, highest=2)
    there = folder / f"{package.path.stem}-{layers[0]}-{layers[1]}-{capacity}"
    if not there.exists():
        there.mkdir()
        emit_standard(there, package, capacity, layers)
    shape = plan_shape(package.model, layers, capacity, tuple(bucket for bucket in BUCKETS if bucket < capacity))
    buffers = PlanBuffers(package.model, shape, "cpu")
    runner = OnnxRunner(there / GRAPH_FILE, buffers, providers=["CPUExecutionProvider"], threads=threads)
    return PlanEngine(package, runner, name="tensorrt")
