"""What a figure shows, as plain data: axes, curves, points and bars, checked. How it is drawn is in plots.py."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from edgemem.runtime.errors import NumericError, SettingsError

_CURVE_POINTS = 256


@dataclass(frozen=True)
class Axis:
    """share: values are fractions, written as per cent. low, high: ends of the axis; None leaves them to the data."""

    label: str
    log: bool = False
    share: bool = False
    low: float | None = None
    high: float | None = None

    def check(self, where: str, values: Sequence[float]) -> None:
        """Raises NumericError for a value that this axis cannot show."""
        for value in values:
            if not math.isfinite(value) or (self.log and value <= 0):
                wanted = "a number over 0" if self.log else "a finite number"
                raise NumericError("a plot cannot show this value", where=where, got=value, wanted=wanted)


@dataclass(frozen=True)
class Frame:
    """What every plot has. Sizes in inches."""

    title: str
    x: Axis
    y: Axis
    width: float = 7.2
    height: float = 3.6


@dataclass(frozen=True)
class Line:
    """A curve through (x, y), with a band from low to high where those are given. muted: a reference, in grey."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    markers: bool = False
    muted: bool = False

    def __post_init__(self) -> None:
        _check_lengths(self.label, len(self.x), y=self.y)
        _check_lengths(self.label, len(self.x) if self.low or self.high else 0, low=self.low, high=self.high)

    def check(self, frame: Frame) -> None:
        frame.x.check(self.label, self.x)
        frame.y.check(self.label, (*self.y, *self.low, *self.high))


@dataclass(frozen=True)
class Points:
    """Single points, each with a name beside it and an upright interval where those are given. muted: in grey."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    names: Sequence[str] = ()
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    muted: bool = False

    def __post_init__(self) -> None:
        _check_lengths(self.label, len(self.x), y=self.y)
        _check_lengths(self.label, len(self.x) if self.names else 0, names=self.names)
        _check_lengths(self.label, len(self.x) if self.low or self.high else 0, low=self.low, high=self.high)

    def check(self, frame: Frame) -> None:
        frame.x.check(self.label, self.x)
        frame.y.check(self.label, (*self.y, *self.low, *self.high))


@dataclass(frozen=True)
class Bars:
    """One part of every bar, or one bar of every group: a value for each category."""

    label: str
    values: Sequence[float]

    def check(self, frame: Frame, categories: Sequence[str]) -> None:
        frame.x.check(self.label, self.values)
        _check_lengths(self.label, len(categories), values=self.values)


def distribution(label: str, samples: Sequence[float]) -> Line:
    """The share of `samples` that is at most x, as a curve of at most 256 points. Raises SettingsError for none."""
    ordered = sorted(samples)
    count = len(ordered)
    if count == 0:
        raise SettingsError("a distribution needs samples", where=label)
    kept = min(count, _CURVE_POINTS)
    ranks = sorted({round(i * (count - 1) / max(kept - 1, 1)) for i in range(kept)})
    return Line(label, [ordered[rank] for rank in ranks], [(rank + 1) / count for rank in ranks])


def histogram(samples: Sequence[float], bins: int) -> tuple[list[str], Bars]:
    """The categories and the counts of `bins` even steps from the least sample to the greatest, for draw_bars.

    Raises SettingsError for no samples or no bins.
    """
    if not samples or bins < 1:
        raise SettingsError("a histogram needs samples and bins", got=f"{len(samples)} samples, {bins} bins")
    least, most = min(samples), max(samples)
    step = (most - least) / bins
    counts = [0] * bins
    for sample in samples:
        counts[min(int((sample - least) / step), bins - 1) if step > 0 else 0] += 1
    edges = [f"{least + index * step:.3g} to {least + (index + 1) * step:.3g}" for index in range(bins)]
    return edges, Bars("count", counts)


def _check_lengths(where: str, wanted: int, **sequences: Sequence[object]) -> None:
    for name, values in sequences.items():
        if len(values) != wanted:
            raise SettingsError(
                f"a plot needs as many of {name} as there are places", where=where, got=len(values), wanted=wanted
            )
