"""Opens the tensorrt engine: finds the package's plan for this machine, verifies it, loads it, and binds its memory."""

from __future__ import annotations

from pathlib import Path

from edgemem.kernels.cost import kv_slot_bytes
from edgemem.runtime.budget import Budget
from edgemem.runtime.engine_inputs import context_slots, layer_range
from edgemem.runtime.engine_plan import PlanRecord, check_record, plan_name, read_plan, read_record
from edgemem.runtime.errors import EngineError
from edgemem.runtime.model import ModelSpec
from edgemem.runtime.package import ENGINES_FOLDER, Package
from edgemem.runtime.plan_buffers import PlanBuffers
from edgemem.runtime.plan_cache import KV_ELEMENT_BYTES, import_torch
from edgemem.runtime.plan_engine import PlanEngine
from edgemem.runtime.plan_seal import default_keys
from edgemem.runtime.tensorrt_library import Library, load_plan, open_library, own_target, what_is_missing
from edgemem.runtime.tensorrt_runner import TensorRtRunner


def open_tensorrt(
    package: Package,
    *,
    capacity: int | None = None,
    layers: tuple[int, int] | None = None,
    keys: Path | None = None,
) -> PlanEngine:
    """The tensorrt engine. capacity: KV slots, at most and by default those of the plan. keys: the folder of the keys
    by which plans are known, by default this user's.

    Raises SettingsError for a value out of range, EngineError where TensorRT, a GPU or a plan for it is missing, or the
    plan is not one that this device trusts; BudgetError if the GPU has too little free memory.
    """
    layers = layer_range(layers, package)
    if capacity is not None:
        context_slots(capacity, package)
    missing, target = what_is_missing(), own_target()
    if missing is not None or target is None:
        raise EngineError("the tensorrt engine cannot run here", got=missing, do="choose another --engine")
    library, name = _plan_here(package, target, layers)
    record = read_record(package, name, default_keys() if keys is None else keys)
    check_record(package, record, library=library.name, version=library.version, target=target)
    _budget(package.model, record).check(import_torch().cuda.mem_get_info()[0])
    engine = load_plan(library, read_plan(package, record))
    buffers = PlanBuffers(package.model, record, "cuda")
    return PlanEngine(package, TensorRtRunner(library, engine, buffers), name="tensorrt", capacity=capacity)


def _plan_here(package: Package, target: str, layers: tuple[int, int]) -> tuple[Library, str]:
    """The plan for this GPU and the library that is to run it: native TensorRT's where there are two and it is here."""
    tried, missing = [], None
    for candidate in ("tensorrt", "tensorrt_rtx"):
        name = plan_name(candidate, target, layers)
        if (package.path / ENGINES_FOLDER / f"{name}.json").exists():
            try:
                return open_library(candidate), name
            except EngineError as problem:
                missing = missing or problem
        tried.append(f"{name}.plan")
    if missing is not None:
        raise missing
    raise EngineError(
        "the package has no plan for this GPU and these layers",
        where=package.path / ENGINES_FOLDER,
        wanted=" or ".join(tried),
        do="edgemem compile PACKAGE --engine tensorrt",
    )


def _budget(model: ModelSpec, record: PlanRecord) -> Budget:
    """Of the GPU's memory, without the scratch memory that the plan itself asks for."""
    return Budget(
        (
            ("plan, its weights in it", record.plan_bytes),
            ("KV cache", record.capacity * kv_slot_bytes(model, KV_ELEMENT_BYTES, record.layers)),
            ("logits or hidden states", 4 * max(record.rows * model.vocabulary, record.chunk * model.hidden)),
        )
    )
