"""Predicts the time of a decode step from two numbers: the share of the peak bandwidth that streaming reaches, and what
each phase of a step costs beside it. Both are fitted to measured steps; what comes out is never called a measurement.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from edgemem.kernels.cost import StepCost
from edgemem.profiles.floors import kv_format, model_step
from edgemem.profiles.record import Record
from edgemem.profiles.statistics import figures
from edgemem.runtime.errors import SettingsError
from edgemem.runtime.precision_table import expand

_LEAST_SPREAD = 1e-6  # of the squared sine between streaming and waiting: below, one cannot be told from the other


@dataclass(frozen=True)
class Measurement:
    """One measured step. peak: bytes a second that the share is of. phases: StepCost.phases."""

    name: str
    streamed_bytes: float
    phases: int
    step_ms: float
    peak: float

    def __post_init__(self) -> None:
        for name in ("streamed_bytes", "phases", "step_ms", "peak"):
            value = getattr(self, name)
            if isinstance(value, bool) or not (math.isfinite(value) and value > 0):
                raise SettingsError(f"{name} of a measured step is out of range", where=self.name, got=value)

    @property
    def floor_ms(self) -> float:
        return 1e3 * self.streamed_bytes / self.peak


@dataclass(frozen=True)
class Fit:
    """efficiency: share of the peak, above 0 and at most 1. phase_ms: of one phase, at least 0.

    residuals: (name, predicted time over measured, less 1) of each step that it was fitted to. origin: where from.
    """

    efficiency: float
    phase_ms: float
    residuals: tuple[tuple[str, float], ...]
    origin: str

    @property
    def worst(self) -> float:
        """The largest residual, without its sign."""
        return max(abs(residual) for _, residual in self.residuals)

    def milliseconds(self, streamed_bytes: float, phases: int, peak: float) -> tuple[float, float]:
        """Of streaming, and of all phases; the step takes their sum."""
        return 1e3 * streamed_bytes / (self.efficiency * peak), phases * self.phase_ms


@dataclass(frozen=True)
class Input:
    """One number that a prediction was made from."""

    name: str
    value: float
    unit: str
    origin: str


@dataclass(frozen=True)
class Prediction:
    """An estimate: step_ms = streaming_ms + phases_ms. error: the worst residual of the fit, 0.02 for two per cent."""

    streaming_ms: float
    phases_ms: float
    error: float
    inputs: tuple[Input, ...]
    label: str = field(default="prediction", init=False)

    @property
    def step_ms(self) -> float:
        return self.streaming_ms + self.phases_ms

    @property
    def tokens_per_s(self) -> float:
        return 1e3 / self.step_ms

    def line(self) -> str:
        """One line for people."""
        parts = f"{self.streaming_ms:.2f} ms streaming, {self.phases_ms:.2f} ms in phases"
        figure = f"{self.step_ms:.2f} ms a step = {self.tokens_per_s:.1f} tokens/s"
        return f"{self.label}: {figure} ({parts}); the fit misses its own steps by up to {self.error:.1%}"

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "label": self.label,
            "step_ms": self.step_ms,
            "tokens_per_s": self.tokens_per_s,
            "streaming_ms": self.streaming_ms,
            "phases_ms": self.phases_ms,
            "error": self.error,
            "inputs": [vars(given) for given in self.inputs],
        }


def predict(fitted: Fit, step: StepCost, step_name: str, peak: float, peak_origin: str) -> Prediction:
    """The time of `step` on a memory of `peak` bytes a second.

    step_name: model, weights, slots and their type, for people. Raises SettingsError for a peak that is none.
    """
    if not (math.isfinite(peak) and peak > 0):
        raise SettingsError("nothing can be predicted for this peak", got=peak, wanted="more than 0 bytes/s")
    streaming_ms, phases_ms = fitted.milliseconds(step.streamed_bytes, step.phases, peak)
    inputs = (
        Input("streamed bytes", step.streamed_bytes, "bytes a step", f"cost model of {step_name}"),
        Input("phases", step.phases, "a step", f"cost model of {step_name}: five a layer and the head"),
        Input("peak bandwidth", peak, "bytes/s", peak_origin),
        Input("efficiency", fitted.efficiency, "of the peak", fitted.origin),
        Input("phase cost", fitted.phase_ms, "ms", fitted.origin),
    )
    return Prediction(streaming_ms, phases_ms, fitted.worst, inputs)


def fit(steps: Sequence[Measurement], origin: str) -> Fit:
    """Least squares of the relative errors, within the bounds that Fit states.

    Raises SettingsError where streaming and phases cannot be told apart: it takes two steps that differ in their bytes
    for a phase.
    """
    # With share = 1 / efficiency, each step should give share * x + phase_ms * z = 1.
    rows = [(step.floor_ms / step.step_ms, step.phases / step.step_ms) for step in steps]
    xx, zz = math.fsum(x * x for x, _ in rows), math.fsum(z * z for _, z in rows)
    xz = math.fsum(x * z for x, z in rows)
    spread = xx * zz - xz * xz
    if spread <= _LEAST_SPREAD * xx * zz:
        raise SettingsError(
            "these steps do not tell streaming from waiting",
            where=origin,
            got=f"{len(rows)} steps",
            wanted="two or more that differ in their bytes for a phase",
            do="measure a second shape, or another precision of the same",
        )
    x_sum, z_sum = math.fsum(x for x, _ in rows), math.fsum(z for _, z in rows)
    share, phase_ms = (zz * x_sum - xz * z_sum) / spread, (xx * z_sum - xz * x_sum) / spread
    if share < 1 or phase_ms < 0:  # then the best within bounds lies on one of them
        edges = [(1.0, max(0.0, (z_sum - xz) / zz)), (max(1.0, x_sum / xx), 0.0)]
        share, phase_ms = min(edges, key=lambda edge: math.fsum((edge[0] * x + edge[1] * z - 1) ** 2 for x, z in rows))
    residuals = [(step.name, share * x + phase_ms * z - 1) for step, (x, z) in zip(steps, rows, strict=True)]
    return Fit(1 / share, phase_ms, tuple(residuals), origin)


def measurements(record: Record, engine: str, arm: str = "default") -> Iterator[Measurement]:
    """The measured cells of one engine's arm, over the datasheet's peak, or the measured one where there is none."""
    targets = {target.name: target for target in record.targets}
    for cell in record.cells:
        found = figures(record, cell)
        key = cell.key
        if found is None or cell.bytes is None or (key.engine, key.arm) != (engine, arm):
            continue
        target = targets[key.target]
        precision = expand(target.model, target.precision)
        step = model_step(target.model, precision.__getitem__, key.context, kv_format(engine, key.kv))
        peak = record.device.datasheet_bytes_per_s or found.peak_bytes_per_s
        name = f"{key.target}, {key.context} slots"
        yield Measurement(name, cell.bytes.useful, step.phases, found.step_ms, peak)
