"""The one adapter over matplotlib: a chart in, SVG text out that can stand inside HTML.

The same chart gives the same bytes: no dates, no random ids. Text stays text and takes the colour of the page around
it, so that light and dark pages both work. Which figures a report has is not decided here.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from edgemem.profiles.chart import Axis, Bars, Frame, Line, Points
from edgemem.profiles.label_places import Box, label_places
from edgemem.profiles.units import number_text
from edgemem.runtime.errors import SettingsError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation

# Okabe and Ito's colours, told apart by colour-blind eyes; their yellow is left out, as it fades on white paper.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9")
_MUTED = "#8a8a8a"
_MARKERS = ("o", "s", "^", "D", "v", "P")
_DASHES = ("solid", "dashed", "dotted", "dashdot")
_INK = "#0b0c0d"  # stands for the page's own text colour until the SVG is written
_FONT_POINTS = 9.0
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]+")
_SETTINGS: dict[str, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a "$" in a name is a "$"
    "font.size": _FONT_POINTS,
    "axes.titlesize": _FONT_POINTS + 1,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.15,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 5.0,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), _INK),
    "grid.color": _INK,
}


def draw(frame: Frame, marks: Sequence[Line | Points]) -> str:
    """Curves and points over one pair of axes, as SVG. Raises NumericError for a value that the axes cannot show."""
    for mark in marks:
        mark.check(frame)
    with _figure(frame, marks) as (figure, axes):
        colours = iter(range(len(marks)))
        for mark in marks:
            style = _style(None if mark.muted else next(colours))
            if isinstance(mark, Line):
                _draw_line(axes, mark, style)
            else:
                _draw_points(axes, mark, style)
        _finish_axis(axes, "x", frame.x)
        _finish_axis(axes, "y", frame.y)
        _add_legend(figure, axes)
        _name_points(figure, axes, marks)
        return _svg(figure, frame.title)


def draw_bars(frame: Frame, categories: Sequence[str], parts: Sequence[Bars], *, stacked: bool = True) -> str:
    """Horizontal bars, the first category on top, with `parts` end to end or side by side. frame.x is the value axis.

    Stacked parts below 0 grow to the left of 0. Raises NumericError for a value that the axis cannot show.
    """
    for part in parts:
        part.check(frame, categories)
    with _figure(frame, (categories, parts, stacked)) as (figure, axes):
        if stacked:
            _draw_stacks(axes, parts)
        else:
            _draw_groups(axes, parts)
        axes.set_yticks(range(len(categories)), [_clean(name, 36) for name in categories])
        axes.set_ylabel(_clean(frame.y.label))
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        _finish_axis(axes, "x", frame.x)
        _add_legend(figure, axes)
        return _svg(figure, frame.title)


def _draw_stacks(axes: Axes, parts: Sequence[Bars]) -> None:
    """Numbers are written into the parts that are long enough to hold them."""
    rows = range(len(parts[0].values)) if parts else range(0)
    longest = max((sum(abs(part.values[row]) for part in parts) for row in rows), default=0.0)
    above, below = [0.0 for _ in rows], [0.0 for _ in rows]
    for index, part in enumerate(parts):
        starts = []
        for row, value in enumerate(part.values):
            side = above if value >= 0 else below
            starts.append(side[row])
            side[row] += value
        colour = COLOURS[index % len(COLOURS)]
        bars = axes.barh(rows, part.values, 0.62, left=starts, color=colour, label=_clean(part.label))
        texts = [number_text(value) if abs(value) > 0.06 * longest else "" for value in part.values]
        axes.bar_label(bars, texts, label_type="center", color=_ink_on(colour), fontsize=_FONT_POINTS - 1)


def _draw_groups(axes: Axes, parts: Sequence[Bars]) -> None:
    thickness = 0.8 / max(len(parts), 1)
    for index, part in enumerate(parts):
        shift = (index - (len(parts) - 1) / 2) * thickness
        places = [row + shift for row in range(len(part.values))]
        colour = COLOURS[index % len(COLOURS)]
        bars = axes.barh(places, part.values, 0.9 * thickness, color=colour, label=_clean(part.label))
        axes.bar_label(bars, [f"{value:.3g}" for value in part.values], padding=3, fontsize=_FONT_POINTS - 1)


def _draw_line(axes: Axes, line: Line, style: dict[str, Any]) -> None:
    marker = style["marker"] if line.markers else ""
    if line.low:
        axes.fill_between(line.x, line.low, line.high, color=style["color"], alpha=0.18, linewidth=0)
    axes.plot(line.x, line.y, label=_clean(line.label), **{**style, "marker": marker})


def _draw_points(axes: Axes, points: Points, style: dict[str, Any]) -> None:
    if points.low:
        below = [value - low for value, low in zip(points.y, points.low, strict=True)]
        above = [high - value for value, high in zip(points.y, points.high, strict=True)]
        axes.errorbar(points.x, points.y, (below, above), fmt="none", ecolor=style["color"], capsize=2.5)
    axes.plot(points.x, points.y, label=_clean(points.label), **{**style, "linestyle": "none"})


def _style(index: int | None) -> dict[str, Any]:
    """Colour, marker and dashes of the mark of this index; None is a muted one."""
    if index is None:
        return {"color": _MUTED, "marker": "o", "linestyle": "dashed", "fillstyle": "none"}
    again = index // len(COLOURS)
    return {
        "color": COLOURS[index % len(COLOURS)],
        "marker": _MARKERS[(index + again) % len(_MARKERS)],
        "linestyle": _DASHES[again % len(_DASHES)],
    }


def _finish_axis(axes: Axes, which: str, axis: Axis) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator, PercentFormatter

    drawn = axes.xaxis if which == "x" else axes.yaxis
    drawn.set_label_text(_clean(axis.label))
    if axis.log:
        (axes.set_xscale if which == "x" else axes.set_yscale)("log")
        drawn.set_major_locator(LogLocator(subs=(1, 2, 5)))
        drawn.set_minor_locator(NullLocator())
        drawn.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    if axis.share:
        drawn.set_major_formatter(PercentFormatter(1.0, decimals=None))
    (axes.set_xlim if which == "x" else axes.set_ylim)(axis.low, axis.high)


def _add_legend(figure: Figure, axes: Axes) -> None:
    """Below the axes, in as many columns as the longest name leaves room for."""
    handles, labels = axes.get_legend_handles_labels()
    if labels:
        column = 0.6 * _FONT_POINTS * (max(map(len, labels)) + 6)
        columns = max(1, min(len(labels), int(72 * figure.get_figwidth() / column)))
        figure.legend(handles, labels, loc="outside lower left", ncols=columns, fontsize=_FONT_POINTS - 0.5)


def _name_points(figure: Figure, axes: Axes, marks: Sequence[Line | Points]) -> None:
    """Write the names of the points where they cover least. Works in the figure's points, 1/72 inch."""
    figure.draw_without_rendering()  # settles the layout, without which no place in the figure is known
    dots = []
    names: list[tuple[tuple[float, float], Annotation]] = []
    for mark in marks:
        texts = mark.names if isinstance(mark, Points) else ()
        places = [tuple(axes.transData.transform(place)) for place in zip(mark.x, mark.y, strict=True)]
        dots += [Box(x - 3.0, y - 3.0, 6.0, 6.0) for x, y in places]
        for text, place, at in zip(texts, places, zip(mark.x, mark.y, strict=True), strict=False):
            if text:
                name = axes.annotate(
                    _clean(text), at, (0, 0), textcoords="offset points", fontsize=_FONT_POINTS - 1.5, in_layout=False
                )
                names.append((place, name))
    extents = [name.get_window_extent() for _, name in names]
    inner = axes.get_window_extent()
    corners = label_places(
        [place for place, _ in names],
        [(extent.width, extent.height) for extent in extents],
        dots,
        Box(inner.x0, inner.y0, inner.width, inner.height),
    )
    for ((x, y), name), (left, bottom) in zip(names, corners, strict=True):
        name.set_position((left - x, bottom - y))


@contextmanager
def _figure(frame: Frame, data: object) -> Iterator[tuple[Figure, Axes]]:
    """A figure and its axes in our settings alone, whatever the user's own say.

    Raises SettingsError where matplotlib is not installed.
    """
    try:
        from matplotlib import style
        from matplotlib.figure import Figure
    except ImportError as missing:
        raise SettingsError(
            "plots need matplotlib, which is not installed",
            got=missing,
            do='pip install "edgemem-runtime[report]"',
        ) from missing
    own = sha256(repr((frame, data)).encode("utf-8", "replace")).hexdigest()  # no two figures of a page share an id
    with warnings.catch_warnings(), style.context({**_SETTINGS, "svg.hashsalt": own}, after_reset=True):
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # the browser has more fonts
        figure = Figure(figsize=(frame.width, frame.height), dpi=72, layout="constrained")
        axes = figure.add_subplot()
        axes.set_title(_clean(frame.title))
        yield figure, axes


def _svg(figure: Figure, title: str) -> str:
    """The figure as one svg element, without what is meant for a file of its own."""
    out = io.StringIO()
    metadata = {"Title": _clean(title), **dict.fromkeys(("Date", "Creator", "Format", "Type"))}
    figure.savefig(out, format="svg", transparent=True, metadata=metadata)
    text = out.getvalue()
    text = text[text.index("<svg ") :].replace("<svg ", '<svg role="img" class="plot" ', 1)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, count=1, flags=re.DOTALL)
    text = re.sub(r"<style type=.text/css.>.*?</style>", "", text, count=1)  # it would style the whole page
    text = re.sub(r"font-family: [^;\"<>]*", "font-family: system-ui, sans-serif", text)
    text = re.sub(r' id="([^"<>]*)"', lambda found: found[0] if f"#{found[1]}" in text else "", text)
    return text.replace(_INK, "currentColor")


def _clean(text: str, characters: int = 64) -> str:
    """On one line, of a length that leaves room for the plot, and never taken for matplotlib's private `_name`."""
    line = " ".join(_UNPRINTABLE.sub(" ", text).split())
    short = line if len(line) <= characters else f"{line[: characters - 1]}…"
    return f" {short}" if short.startswith("_") else short


def _ink_on(colour: str) -> str:
    """Black or white, whichever is read more easily on this colour (relative luminance of ITU-R BT.709)."""
    red, green, blue = (int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))
    return "#000000" if 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.45 else "#ffffff"
