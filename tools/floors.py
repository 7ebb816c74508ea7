"""The two floors of a decode step: the least time in which a memory of some bandwidth can serve it.

The streamed floor counts what the step reads and writes. The footprint floor counts the whole weights file and the KV
cache of the context, as arXiv 2605.30571 ("Memory-Bound but Not Bandwidth-Limited") does. They are not to be mixed.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgemem.kernels.cost import StepCost, kv_slot_bytes, step_cost
from edgemem.runtime.kv_cache import KV_ELEMENT_BYTES
from edgemem.runtime.manifest import WEIGHTS_FILE, Manifest

_KV_ELEMENT_BYTES = {"native": 2, "onnx": KV_ELEMENT_BYTES}


@dataclass(frozen=True)
class Floors:
    """streamed_bytes: of one step. footprint_bytes: held while it runs. Both may be the mean of several steps."""

    streamed_bytes: float
    footprint_bytes: float

    def milliseconds(self, bandwidth: float | None) -> dict[str, float | None]:
        """Both floors by their JSON names, at `bandwidth` bytes a second; None where that was not measured."""
        scale = None if bandwidth is None else 1e3 / bandwidth
        return {
            "streamed_floor_ms": None if scale is None else scale * self.streamed_bytes,
            "footprint_floor_ms": None if scale is None else scale * self.footprint_bytes,
        }


def engine_step(manifest: Manifest, slots: int, engine: str) -> StepCost:
    """What the step that finds `slots` KV slots in use streams, by the engine's name."""
    return step_cost(manifest.model, manifest.precision_of, slots, kv_element_bytes=_KV_ELEMENT_BYTES[engine])


def floors_at(manifest: Manifest, slots: int, engine: str) -> Floors:
    """Of the step that finds `slots` KV slots in use."""
    return Floors(engine_step(manifest, slots, engine).streamed_bytes, footprint_bytes(manifest, slots, engine))


def footprint_bytes(manifest: Manifest, slots: float, engine: str) -> float:
    """Of the whole weights file and the keys and values of `slots` slots, as the engine of that name keeps them."""
    return manifest.files[WEIGHTS_FILE].bytes + slots * kv_slot_bytes(manifest.model, _KV_ELEMENT_BYTES[engine])
