"""Steps that others measured and published, to fit a prediction to where there is no record of one's own.

One YAML file a device and kind of weights. They tell of somebody else's engine, which a prediction from them says.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgemem.kernels.formats import Precision
from edgemem.profiles.floors import KvFormat, model_step
from edgemem.profiles.plain import from_plain
from edgemem.profiles.prediction import Fit, Measurement, fit
from edgemem.profiles.shapes import shape
from edgemem.runtime.strict_yaml import parse_yaml

_HALF_KV = KvFormat(2)


@dataclass(frozen=True)
class PublishedStep:
    """slots: KV slots in use before it."""

    shape: str
    slots: int
    tokens_per_s: float


@dataclass(frozen=True)
class PublishedSteps:
    """bandwidth_gb_s: of the device's datasheet. weights: of the layers; head: of embedding and head. Keys and values
    are in 16 bits."""

    source: str
    engine: str
    device: str
    bandwidth_gb_s: float
    weights: str
    head: str
    steps: tuple[PublishedStep, ...]

    @property
    def bits(self) -> int:
        return Precision.parse(self.weights).bits

    def fit(self) -> Fit:
        """The two numbers that they come to, with the residual of each step."""
        origin = (
            f"{len(self.steps)} published steps of another engine, {self.engine}, on {self.device}, "
            f"{self.weights} with head in {self.head}: {self.source}"
        )
        return fit([self._measurement(step) for step in self.steps], origin)

    def _measurement(self, step: PublishedStep) -> Measurement:
        layers, head = Precision.parse(self.weights), Precision.parse(self.head)
        cost = model_step(
            shape(step.shape), lambda name: head if name in ("embedding", "head") else layers, step.slots, _HALF_KV
        )
        name = f"{step.shape}, {step.slots} slots"
        return Measurement(name, cost.streamed_bytes, cost.phases, 1e3 / step.tokens_per_s, self.bandwidth_gb_s * 1e9)


def published_steps() -> list[PublishedSteps]:
    """All that are shipped, by file name."""
    files = sorted(Path(__file__).parent.glob("*.yaml"))
    return [from_plain(PublishedSteps, parse_yaml(file.read_text(encoding="utf-8")), file.name) for file in files]


def nearest(known: Sequence[PublishedSteps], bits: int, peak: float) -> PublishedSteps:
    """Those of weights nearest to `bits` bits; of these, on the memory nearest to `peak` bytes a second."""

    def distance(steps: PublishedSteps) -> tuple[float, float]:
        return abs(math.log2(bits / steps.bits)), abs(math.log(peak / (steps.bandwidth_gb_s * 1e9)))

    return min(known, key=distance)
