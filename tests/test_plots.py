"""Plots: what a chart refuses, and SVG that is whole, safe inside a page, and the same each time."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemem.profiles.chart import Axis, Bars, Frame, Line, Points, distribution, histogram
from edgemem.profiles.label_places import Box, label_places
from edgemem.profiles.plots import draw, draw_bars
from edgemem.runtime.errors import NumericError, SettingsError

FRAME = Frame("a title", Axis("x"), Axis("y"))
LINE = Line("line", [1.0, 2.0, 3.0], [1.0, 4.0, 9.0], [0.5, 3.0, 8.0], [1.5, 5.0, 10.0], markers=True)
POINTS = Points("points", [1.0, 2.0], [2.0, 3.0], ["first", "second"], [1.5, 2.5], [2.5, 3.5], muted=True)
HOSTILE = '</text></svg><script>alert(\'1\')</script>" onload="x() & $\\frac{$ id="a" style="font-family: b'
SVG = "{http://www.w3.org/2000/svg}"


def texts(svg: str) -> list[str]:
    """The texts that are drawn; fails for SVG that is not well-formed."""
    return [element.text or "" for element in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def test_a_plot_is_one_element_whose_text_is_text() -> None:
    svg = draw(FRAME, [LINE, POINTS])
    assert svg.startswith("<svg ")
    assert {"a title", "x", "y", "line", "points", "first", "second"} <= set(texts(svg))
    assert "<image" not in svg
    assert "<style" not in svg


def test_bars_are_named_and_numbered() -> None:
    parts = [Bars("floor", [1.5, 2.0]), Bars("rest", [0.5, 1.0])]
    for stacked, numbers in ((True, {"1.50", "0.500"}), (False, {"1.5", "0.5"})):
        found = set(texts(draw_bars(FRAME, ["one", "two"], parts, stacked=stacked)))
        assert {"one", "two", "floor", "rest", *numbers} <= found


def test_a_stacked_part_below_zero_grows_to_the_left() -> None:
    svg = draw_bars(Frame("", Axis("ms"), Axis("")), ["one"], [Bars("floor", [2.0]), Bars("rest", [-1.0])])
    ticks = [float(text.replace("−", "-")) for text in texts(svg) if re.fullmatch(r"[−-]?\d+(\.\d+)?", text)]
    assert min(ticks) <= -1.0
    assert max(ticks) <= 2.5


def test_the_same_chart_gives_the_same_bytes() -> None:
    assert draw(FRAME, [LINE, POINTS]) == draw(FRAME, [LINE, POINTS])
    assert draw_bars(FRAME, ["a"], [Bars("b", [1.0])]) == draw_bars(FRAME, ["a"], [Bars("b", [1.0])])


def test_no_two_plots_of_a_page_share_an_id() -> None:
    ids = [set(re.findall(r' id="([^"]*)"', draw(Frame(title, Axis("x"), Axis("y")), [LINE]))) for title in "ab"]
    assert ids[0]
    assert not ids[0] & ids[1]


def test_text_and_axes_take_the_colour_of_the_page() -> None:
    svg = draw(FRAME, [LINE])
    assert "currentColor" in svg
    assert "#0b0c0d" not in svg
    assert "fill: #ffffff" not in svg  # no background either


@pytest.mark.parametrize("name", [HOSTILE, "_hidden", "a\x00\x1b[31m\nb", "汉字", "\ud800", "x" * 5000, ""])
def test_any_name_is_drawn_as_text(name: str) -> None:
    frame = Frame(name, Axis(name), Axis(name))
    marks = [Line(name, [1.0, 2.0], [1.0, 2.0]), Points(name, [1.0], [1.0], [name])]
    for svg in (draw(frame, marks), draw_bars(frame, [name], [Bars(name, [1.0])])):
        svg.encode()
        root = ElementTree.fromstring(svg)
        assert not [element.tag for element in root.iter() if "script" in element.tag]
        assert not [element for element in root.iter() if "onload" in element.attrib]
        assert max(map(len, texts(svg))) <= 64


def test_a_hidden_name_is_in_the_legend() -> None:
    assert " _hidden" in texts(draw(FRAME, [Line("_hidden", [1.0], [1.0])]))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_no_numbers_are_refused(value: float) -> None:
    for mark in (Line("name", [1.0], [value]), Points("name", [value], [1.0])):
        with pytest.raises(NumericError, match="name"):
            draw(FRAME, [mark])
    with pytest.raises(NumericError, match="name"):
        draw_bars(FRAME, ["a"], [Bars("name", [value])])


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_a_logarithmic_axis_shows_positive_numbers_only(value: float) -> None:
    with pytest.raises(NumericError, match="over 0"):
        draw(Frame("", Axis("x", log=True), Axis("y")), [Line("name", [value], [1.0])])


def test_a_logarithmic_axis_has_plain_numbers() -> None:
    svg = draw(
        Frame("", Axis("x", log=True, low=15, high=3000), Axis("y", share=True)),
        [Line("n", [20.0, 2000.0], [0.1, 0.9])],
    )
    assert {"20", "50", "100", "200", "500", "1000", "2000"} <= set(texts(svg))
    assert any(text.endswith("%") for text in texts(svg))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Line("name", [1.0], [1.0, 2.0]),
        lambda: Line("name", [1.0], [1.0], low=[0.5]),
        lambda: Points("name", [1.0], [1.0], names=["a", "b"]),
        lambda: Points("name", [1.0], [1.0], low=[0.5], high=[1.5, 2.0]),
        lambda: draw_bars(FRAME, ["a"], [Bars("name", [1.0, 2.0])]),
    ],
)
def test_what_does_not_fit_together_is_refused(make: Any) -> None:
    with pytest.raises(SettingsError, match="name"):
        make()


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=600))
def test_a_distribution_rises_to_one_and_keeps_both_ends(samples: list[float]) -> None:
    line = distribution("name", samples)
    assert len(line.x) <= 256
    assert (line.x[0], line.x[-1], line.y[-1]) == (min(samples), max(samples), 1.0)
    assert list(line.x) == sorted(line.x)
    assert list(line.y) == sorted(line.y)
    for x, y in zip(line.x, line.y, strict=True):
        assert sum(sample < x for sample in samples) < y * len(samples) * (1 + 1e-12)
        assert sum(sample <= x for sample in samples) >= y * len(samples) * (1 - 1e-12)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1), st.integers(1, 20))
def test_a_histogram_counts_every_sample_once(samples: list[float], bins: int) -> None:
    names, bars = histogram(samples, bins)
    assert len(names) == bins
    assert sum(bars.values) == len(samples)


@pytest.mark.parametrize(
    "make", [lambda: distribution("name", []), lambda: histogram([], 3), lambda: histogram([1.0], 0)]
)
def test_nothing_has_no_distribution(make: Any) -> None:
    with pytest.raises(SettingsError):
        make()


@given(st.lists(st.tuples(st.floats(100, 900), st.floats(100, 900)), max_size=4, unique=True))
def test_few_names_find_free_places(points: list[tuple[float, float]]) -> None:
    """24 places are tried around each point; a name and the three other points cannot block them all."""
    frame = Box(0, 0, 1000, 1000)
    dots = [Box(x - 3, y - 3, 6, 6) for x, y in points]
    placed = [Box(left, bottom, 30, 8) for left, bottom in label_places(points, [(30, 8)] * len(points), dots, frame)]
    for index, box in enumerate(placed):
        assert box.outside(frame) == 0
        assert not [dot for dot in dots if box.overlap(dot) > 1e-6]
        assert not [other for other in placed[:index] if box.overlap(other) > 1e-6]


def test_a_name_at_the_right_edge_stays_inside() -> None:
    frame = Box(0, 0, 100, 100)
    ((left, _),) = label_places([(95, 50)], [(30, 8)], [], frame)
    assert left + 30 <= 95


def test_without_matplotlib_the_error_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from edgemem.profiles.chart import Axis, Frame, Line\n"
        "from edgemem.profiles.plots import draw\n"
        "from edgemem.runtime.errors import SettingsError\n"
        "try: draw(Frame('', Axis('x'), Axis('y')), [Line('a', [1.0], [1.0])])\n"
        "except SettingsError as error: print(error)\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert 'do: pip install "edgemem-runtime[report]"' in out


def test_matplotlib_is_loaded_only_to_draw() -> None:
    code = "import sys, edgemem.profiles.plots, edgemem.profiles.html_report; print('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
