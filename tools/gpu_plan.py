"""What a check of a GPU measures within its time, in which order. Pure: it knows no GPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from edgemem.kernels.cost import kv_slot_bytes
from edgemem.kernels.formats import Precision
from edgemem.profiles.shapes import shape
from edgemem.runtime.precision_table import LAYER_MATRICES

CONTEXT = 512
MODELS = ("qwen2.5-7b", "llama-3.2-1b", "qwen2.5-0.5b", "smollm2-135m")
WEIGHTS = ("bf16", "int4-g128")
KERNEL_MODEL = "qwen2.5-7b"
_SLACK = 1.3  # over the weights: embedding and head drawn apart, activations, graphs


@dataclass(frozen=True)
class Timing:
    """One model to be timed."""

    name: str
    weights: str

    @property
    def label(self) -> str:
        return f"{self.name}-{self.weights}"

    @property
    def bytes(self) -> int:
        """On the GPU, about."""
        model, kind = shape(self.name), Precision.parse(self.weights)
        head = Precision("int8", kind.group) if kind.kind == "int4" else kind
        stored = sum(
            (kind if name.rpartition(".")[2] in LAYER_MATRICES else head).bytes_for(*size)
            for name, size in model.matrices()
        )
        return round(_SLACK * stored) + 2 * CONTEXT * kv_slot_bytes(model, 2) + (1 << 30)


def timings(free: int) -> tuple[list[Timing], list[Timing]]:
    """Those that fit into `free` bytes, each model's int4 after its bf16, and those that do not."""
    asked = [Timing(name, weights) for name in MODELS for weights in WEIGHTS]
    fitting = [timing for timing in asked if timing.bytes <= free]
    return fitting, [timing for timing in asked if timing not in fitting]


class Deadline:
    """Seconds of a whole run. clock: seconds."""

    def __init__(self, seconds: float, clock: Callable[[], float]) -> None:
        self._clock, self._end = clock, clock() + seconds

    def left(self, share: float = 1.0) -> float:
        """Of what is left."""
        return max(0.0, share * (self._end - self._clock()))
