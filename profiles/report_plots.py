"""The figures of a profile report as SVG: fraction against peak, waterfall, latency, growth with the context.

Each takes the record and gives one figure, or None where the record has nothing to show in it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edgemem.profiles.chart import Axis, Bars, Frame, Line, Points, distribution
from edgemem.profiles.paper_points import paper_points
from edgemem.profiles.plots import draw, draw_bars
from edgemem.profiles.record import Cell, Record, StepBytes
from edgemem.profiles.statistics import Figures, figures

_BAR_INCHES = 0.42
_WIDE_RATIO = 4.0  # steps this far apart share an axis only if it is a logarithmic one


@dataclass(frozen=True)
class _Measured:
    cell: Cell
    bytes: StepBytes
    figures: Figures
    series: str  # all of its name but the context

    @property
    def name(self) -> str:
        return f"{self.series} at {self.cell.key.context}"


def fraction_plot(record: Record) -> str | None:
    """The footprint floor's share of the step against the peak bandwidth, ours beside the published ones."""
    found = _measured(record)
    if not found:
        return None
    datasheet = record.device.datasheet_bytes_per_s
    marks = [_published()]
    for series, cells in _by_series(found):
        marks.append(
            Points(
                series,
                [(datasheet or cell.figures.peak_bytes_per_s) / 1e9 for cell in cells],
                [cell.figures.footprint_floor_ms / cell.figures.step_ms for cell in cells],
                [str(cell.cell.key.context) for cell in cells],
                [cell.figures.footprint_floor_ms / cell.figures.step_interval_ms[1] for cell in cells],
                [cell.figures.footprint_floor_ms / cell.figures.step_interval_ms[0] for cell in cells],
            )
        )
    kind = "ours measured, the paper's datasheet" if datasheet is None else "datasheet"
    ends = [value for mark in marks for value in mark.x]
    highest = max(value for mark in marks for value in (*mark.y, *mark.high))
    frame = Frame(
        "How much of the footprint floor's speed is reached",
        Axis(f"peak bandwidth, GB/s ({kind})", log=True, low=0.6 * min(ends), high=2.2 * max(ends)),
        Axis("footprint floor / step", share=True, low=0.0, high=max(1.0, 1.05 * highest)),
    )
    return draw(frame, marks)


def waterfall_plot(record: Record) -> str | None:
    """Each cell's step as streamed floor, launch where it was measured, and residual, in milliseconds."""
    found = _measured(record)
    if not found:
        return None
    parts = [Bars("streamed floor", [cell.figures.floor_ms for cell in found])]
    if any(cell.figures.launch_ms is not None for cell in found):
        parts.append(Bars("launch", [cell.figures.launch_ms or 0.0 for cell in found]))
    parts.append(Bars("residual", [cell.figures.residual_ms for cell in found]))
    height = 1.4 + _BAR_INCHES * len(found)
    frame = Frame("Where a step's time goes", Axis("milliseconds a step"), Axis(""), height=height)
    return draw_bars(frame, [cell.name for cell in found], parts)


def latency_plot(record: Record) -> str | None:
    """The distribution of each cell's steps, up to the slowest cell's 99th percentile."""
    found = _measured(record)
    if not found:
        return None
    lines = [
        distribution(cell.name, [step for session in cell.cell.sessions for step in session.step_ms]) for cell in found
    ]
    medians = [cell.figures.p50_ms for cell in found]
    far_apart = max(medians) > _WIDE_RATIO * min(medians)
    low = 0.95 * min(min(line.x) for line in lines)
    high = 1.1 * max(cell.figures.p99_ms for cell in found)
    frame = Frame(
        "How evenly the tokens come",
        Axis("milliseconds a step", log=far_apart, low=low, high=high),
        Axis("steps at most this long", share=True, low=0.0, high=1.0),
    )
    return draw(frame, lines)


def growth_plot(record: Record) -> str | None:
    """Milliseconds a step against the context; None without two contexts of one engine and arm."""
    title = "A step grows with the context: time"
    axis = Axis("milliseconds a step", low=0.0)
    return _against_context(
        record, title, axis, lambda cell: cell.figures.step_ms, lambda cell: cell.figures.step_interval_ms
    )


def bytes_plot(record: Record) -> str | None:
    """Streamed megabytes a step against the context; None without two contexts of one engine and arm."""
    title = "A step grows with the context: bytes"
    return _against_context(record, title, Axis("MB streamed a step", low=0.0), lambda cell: cell.bytes.useful / 1e6)


def _against_context(
    record: Record,
    title: str,
    axis: Axis,
    value: Callable[[_Measured], float],
    band: Callable[[_Measured], tuple[float, float]] | None = None,
) -> str | None:
    series = [(name, sorted(cells, key=_context)) for name, cells in _by_series(_measured(record)) if len(cells) > 1]
    if not series:
        return None
    lines = [
        Line(
            name,
            [_context(cell) for cell in cells],
            [value(cell) for cell in cells],
            [] if band is None else [band(cell)[0] for cell in cells],
            [] if band is None else [band(cell)[1] for cell in cells],
            markers=True,
        )
        for name, cells in series
    ]
    return draw(Frame(title, Axis("context, slots", low=0.0), axis, width=5.2, height=3.4), lines)


def _published() -> Points:
    """Each device is named once, at its highest point."""
    published = paper_points()
    highest = {point.device: point for point in sorted(published.points, key=lambda point: point.fraction)}
    return Points(
        f"{published.model} {published.precision}, {published.source.rpartition(', ')[2]}",
        [point.datasheet_gb_per_s for point in published.points],
        [point.fraction for point in published.points],
        [point.device if highest[point.device] is point else "" for point in published.points],
        muted=True,
    )


def _measured(record: Record) -> list[_Measured]:
    several = {
        "target": len({cell.key.target for cell in record.cells}) > 1,
        "arm": len({(cell.key.engine, cell.key.arm) for cell in record.cells})
        > len({cell.key.engine for cell in record.cells}),
    }
    found = []
    for cell in record.cells:
        of_cell = figures(record, cell)
        if of_cell is not None and cell.bytes is not None:
            key = cell.key
            names = [key.target if several["target"] else "", key.engine, key.arm if several["arm"] else ""]
            found.append(_Measured(cell, cell.bytes, of_cell, " ".join(filter(None, names))))
    return found


def _by_series(found: Sequence[_Measured]) -> list[tuple[str, list[_Measured]]]:
    series: dict[str, list[_Measured]] = {}
    for cell in found:
        series.setdefault(cell.series, []).append(cell)
    return list(series.items())


def _context(cell: _Measured) -> int:
    return cell.cell.key.context
