"""The two floors of a decode step: the least time in which a memory of some bandwidth can serve it.

The streamed floor counts what the step reads and writes. The footprint floor counts all weights and the KV cache of
the context, as arXiv 2605.30571 ("Memory-Bound but Not Bandwidth-Limited") does. They are not to be mixed. Both count
each byte once, however the engine arranges them: what it really moves is in moved.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from edgemem.kernels.cost import StepCost, Stored, kv_slot_bytes, step_cost
from edgemem.runtime.errors import SettingsError
from edgemem.runtime.manifest import WEIGHTS_FILE, Manifest
from edgemem.runtime.model import ModelSpec


@dataclass(frozen=True)
class Floors:
    """streamed_bytes: of one step. footprint_bytes: held while it runs. Both may be the mean of several steps."""

    streamed_bytes: float
    footprint_bytes: float

    def milliseconds(self, bandwidth: float | None) -> dict[str, float | None]:
        """Both floors by their JSON names, at `bandwidth` bytes a second; None where that was not measured.

        Raises SettingsError for a bandwidth that is none.
        """
        if bandwidth is not None and not bandwidth > 0:
            raise SettingsError("there is no floor at this bandwidth", got=bandwidth, wanted="more than 0 bytes/s")
        scale = None if bandwidth is None else 1e3 / bandwidth
        return {
            "streamed_floor_ms": None if scale is None else scale * self.streamed_bytes,
            "footprint_floor_ms": None if scale is None else scale * self.footprint_bytes,
        }


@dataclass(frozen=True)
class KvFormat:
    """How an engine keeps keys and values: bytes of an element, and of a scale beside each key and value of a head."""

    element_bytes: int
    scale_bytes: int = 0


# By engine and by the kind of cache that it is opened with, the default first.
KV_FORMATS: dict[str, dict[str, KvFormat]] = {
    "native": {"fp16": KvFormat(2), "int8": KvFormat(1, 4)},
    "onnx": {"fp32": KvFormat(4)},
    "cuda": {"fp16": KvFormat(2), "bf16": KvFormat(2), "int8": KvFormat(1, 4), "fp8": KvFormat(1)},
}


def kv_format(engine: str, kv: str | None = None) -> KvFormat:
    """Of the cache kind `kv`, or the engine's default. Raises SettingsError for another engine or kind."""
    kinds = KV_FORMATS.get(engine, {})
    kind = next(iter(kinds), None) if kv is None else kv
    if kind not in kinds:
        known = ", ".join(f"{name} {kind}" for name, all_kinds in KV_FORMATS.items() for kind in all_kinds)
        raise SettingsError("no engine keeps keys and values so", got=f"{engine} {kv or ''}".strip(), wanted=known)
    return kinds[kind]


def model_step(
    model: ModelSpec,
    stored: Callable[[str], Stored],
    slots: int,
    kv: KvFormat,
    layers: tuple[int, int] | None = None,
) -> StepCost:
    """The step that finds `slots` KV slots in use, over `layers` or all; `stored`: each matrix's, by its name."""
    return step_cost(
        model, stored, slots, kv_element_bytes=kv.element_bytes, kv_scale_bytes=kv.scale_bytes, layers=layers
    )


def model_floors(model: ModelSpec, stored: Callable[[str], Stored], slots: int, kv: KvFormat) -> Floors:
    """Of the step that finds `slots` KV slots in use. Raises ValueError for a negative number of slots."""
    cost = model_step(model, stored, slots, kv)
    cache = slots * kv_slot_bytes(model, kv.element_bytes, scale_bytes=kv.scale_bytes)
    return Floors(cost.streamed_bytes, cost.footprint_bytes + cache)


def engine_step(manifest: Manifest, slots: int, engine: str, kv: str | None = None) -> StepCost:
    """What the step that finds `slots` KV slots in use streams, by the engine's name."""
    return model_step(manifest.model, manifest.precision_of, slots, kv_format(engine, kv), manifest.layers)


def floors_at(manifest: Manifest, slots: int, engine: str, kv: str | None = None) -> Floors:
    """Of the step that finds `slots` KV slots in use."""
    streamed = engine_step(manifest, slots, engine, kv).streamed_bytes
    return Floors(streamed, footprint_bytes(manifest, slots, engine, kv))


def footprint_bytes(manifest: Manifest, slots: float, engine: str, kv: str | None = None) -> float:
    """Of the whole weights file and the keys and values of `slots` slots, as the engine of that name keeps them."""
    kept = kv_format(engine, kv)
    slot = kv_slot_bytes(manifest.model, kept.element_bytes, manifest.layers, scale_bytes=kept.scale_bytes)
    return manifest.files[WEIGHTS_FILE].bytes + slots * slot
