"""The HTML report: needs nothing but itself, escapes what strangers wrote, and shows what the record has."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser

from profile_records import DEVICE, GB, KEY, cell, record, session, target, unmeasured

from edgemem.profiles.html_report import html_report
from edgemem.profiles.paper_points import paper_points
from edgemem.profiles.record import Cell, CellKey, Record

HOSTILE = '</title><script>alert(1)</script><img src=x onerror=alert(1)>" onload="x() ]]> <!--'


class Page(HTMLParser):
    """Tags and attributes as a browser would see them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.data: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.data.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.data).split())


def timed(key: CellKey, step_ms: float) -> Cell:
    return cell(key, [session(number, (0.99 * step_ms, step_ms, 1.01 * step_ms)) for number in range(3)])


def example() -> Record:
    """Two engines at two contexts; one cell failed."""
    longer = replace(KEY, context=64)
    return record(
        timed(KEY, 1.0),
        timed(replace(KEY, engine="onnx"), 1.5),
        timed(longer, 1.2),
        unmeasured(replace(longer, engine="onnx"), "failed", "12 GB are wanted, 8 are left"),
    )


def hostile() -> Record:
    """Every text that a stranger could have written."""
    small = target(name=HOSTILE, source=HOSTILE, quality=None, quality_note=HOSTILE)
    key = replace(KEY, target=HOSTILE, engine=HOSTILE, arm=HOSTILE, kv=HOSTILE)
    texts = dict.fromkeys(("name", "reported", "datasheet_note", "cpu_model", "governor", "kernel"), HOSTILE)
    board = replace(DEVICE, **texts, telemetry={HOSTILE: HOSTILE}, telemetry_missing={HOSTILE: HOSTILE})
    cells = (
        timed(key, 1.0),
        timed(replace(key, context=32), 1.2),
        unmeasured(replace(key, context=64), "failed", HOSTILE),
    )
    return record(*cells, targets=(small,), device=board, date=HOSTILE, versions={HOSTILE: HOSTILE})


def test_a_report_needs_no_network_and_no_scripts() -> None:
    text = html_report(example())
    page = Page(text)
    assert not {"script", "link", "img", "iframe", "object", "base"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name in ("src", "href") or name.startswith("on")]
    targets = [value for name, value in page.attributes if name == "xlink:href"]
    assert targets
    assert all(value is not None and value.startswith("#") for value in targets)
    assert "@import" not in text
    assert set(re.findall(r"https?://[^\"]*", text)) == {"http://www.w3.org/1999/xlink", "http://www.w3.org/2000/svg"}


def test_the_same_record_gives_the_same_report() -> None:
    assert html_report(example()) == html_report(example())


def test_ids_are_unique_and_all_that_is_pointed_to_is_there() -> None:
    page = Page(html_report(example()))
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(set(ids)) == len(ids)
    assert {value for name, value in page.attributes if name == "xlink:href"} <= {f"#{name}" for name in ids}


def test_a_report_shows_the_answer_the_cells_and_five_plots() -> None:
    page = Page(html_report(example()))
    assert page.tags.count("svg") == 5
    for text in (
        "native decodes tiny at 1000 tok/s",
        "failed: 12 GB are wanted, 8 are left",
        "streamed floor",
        "residual",
    ):
        assert text in page.text
    for text in (
        "H100 SXM5",
        "arXiv 2605.30571",
        "ours measured",
        "some board",
        "perplexity 20.5",
        "MB streamed",
    ):
        assert text in page.text


def test_without_two_contexts_there_is_no_growth() -> None:
    assert Page(html_report(record(timed(KEY, 1.0)))).tags.count("svg") == 3


def test_where_nothing_was_measured_the_report_says_why() -> None:
    page = Page(html_report(record(unmeasured(KEY, "failed", "no memory is left"))))
    assert "nothing was measured: no memory is left" in page.text
    assert "svg" not in page.tags


def test_a_record_without_cells_has_a_report() -> None:
    assert "There was no cell to measure" in html_report(replace(example(), cells=()))


def test_with_a_datasheet_the_figure_is_against_it() -> None:
    text = Page(html_report(replace(example(), device=replace(DEVICE, datasheet_bytes_per_s=25.0 * GB)))).text
    assert "peak bandwidth, GB/s (datasheet)" in text
    assert "ours measured" not in text


def test_doubts_and_interruption_are_said_above_the_table() -> None:
    found = replace(example(), interrupted=True, device=replace(DEVICE, llc_bytes=1 << 30))
    text = html_report(found)
    above = text[: text.index("<h2>Cells</h2>")]
    assert "interrupted" in above
    assert "may serve a part of the step" in above


def test_launch_is_a_part_of_the_waterfall_where_it_was_measured() -> None:
    arms = [timed(replace(KEY, arm=arm), step_ms) for arm, step_ms in (("eager", 1.5), ("graph", 1.0))]
    assert "launch" in re.findall(r">([^<>]*)</text>", html_report(record(*arms)))
    assert "launch" not in re.findall(r">([^<>]*)</text>", html_report(example()))


def test_what_strangers_wrote_stays_text() -> None:
    text = html_report(hostile())
    page = Page(text)
    assert not {"script", "img"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert "<script" not in text
    assert page.tags.count("svg") == 5
    assert HOSTILE.partition("<!--")[0].strip() in page.text


def test_the_paper_has_thirteen_points() -> None:
    published = paper_points()
    assert len(published.points) == 13
    assert "2605.30571" in published.source
    fractions = {(point.device, point.context): point.fraction for point in published.points}
    assert fractions["L4", 2048] == 0.810
    assert fractions["H100 SXM5", 16384] == 0.235
    assert all(0 < point.fraction < 1 for point in published.points)
