"""One record as one HTML page that needs nothing else: no network, no scripts. All texts of the record are escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from edgemem.profiles.conditions import conditions
from edgemem.profiles.html_page import html_page
from edgemem.profiles.record import Record
from edgemem.profiles.report_plots import bytes_plot, fraction_plot, growth_plot, latency_plot, waterfall_plot
from edgemem.profiles.statistics import Figures
from edgemem.profiles.table import Row, answer, best_row, brief, flag_text, ratios, rows, speed_sentence
from edgemem.profiles.units import number_text, share_text

_READING = """The streamed floor is the least time in which the memory can serve the bytes that a step reads and writes;
the footprint floor counts every weight held, as arXiv 2605.30571 does. The two are never mixed. Intervals hold 95 % of
bootstrapped medians, over fresh processes, blocks of steps in them, and steps. "Of measured" sets each block of steps
against the sweeps of the memory right before and after it, "of best sweep" a process's steps against the best of its
sweeps: they differ where the memory's speed changes meanwhile, as on a shared machine."""
_FRACTION = "Numbers beside the points are contexts. Hollow points are the paper's own, on other hardware."
_WATERFALL = """The floor is at the measured read bandwidth. Launch is what CUDA graphs save, where arms with and
without them ran; the residual is the rest."""
_GROWTH = "Keys and values are counted at the length in use. The band is the 95 % interval."


def html_report(record: Record) -> str:
    """The page. Raises SettingsError where matplotlib is not installed."""
    found = rows(record)
    title = f"edgemem profile of {', '.join(target.name for target in record.targets)}"
    parts = [
        f'<p class="eyebrow">edgemem profile, {escape(record.date)}, {escape(record.device.reported)}</p>',
        *_headline(record, best_row(found)),
        _warnings(record, found),
        "<h2>Cells</h2>",
        _cells(found) if found else "<p>There was no cell to measure.</p>",
        "".join(f"<p>{escape(sentence)}.</p>" for sentence in ratios(found)),
        f"<p>{_READING}</p>",
        _figures(record),
        "<h2>Conditions</h2>",
        _facts(conditions(record).items()),
    ]
    return html_page(title, "\n".join(part for part in parts if part))


def _headline(record: Record, best: Row | None) -> list[str]:
    """What makes the figures doubtful has a place of its own, under them."""
    if best is None or best.figures is None:
        return [f"<h1>{escape(answer(record))}</h1>"]
    return [f"<h1>{escape(speed_sentence(best.key, best.figures))}</h1>", _cards(best.figures)]


def _cards(found: Figures) -> str:
    """The figures of one cell, large."""
    low, high = found.step_interval_ms
    cards = [
        ("step", f"{number_text(found.step_ms)} ms", f"95 %: {number_text(low)} to {number_text(high)} ms"),
        ("rate", f"{number_text(found.tokens_per_s)} tok/s", f"99 % of steps within {number_text(found.p99_ms)} ms"),
        (
            "of the measured bandwidth",
            share_text(found.of_measured),
            f"{number_text(found.bytes_per_s / 1e9)} of {number_text(found.peak_bytes_per_s / 1e9)} GB/s swept beside; "
            f"{share_text(found.of_best_sweep)} of the best sweep",
        ),
        ("streamed floor", f"{number_text(found.floor_ms)} ms", f"residual {number_text(found.residual_ms)} ms"),
    ]
    if found.joules_per_token is not None and found.watts is not None:
        cards.append(("energy", f"{number_text(found.joules_per_token)} J/token", f"{number_text(found.watts)} W"))
    items = (
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}<small>{escape(detail)}</small></dd></div>"
        for name, value, detail in cards
    )
    return f'<dl class="cards">{"".join(items)}</dl>'


def _warnings(record: Record, found: Sequence[Row]) -> str:
    flags = dict.fromkeys(flag for row in found if row.figures is not None for flag in row.figures.flags)
    texts = ["The run was interrupted before all sessions had run"] if record.interrupted else []
    texts += [f"In some cells {flag_text(flag)}" for flag in flags]
    return "".join(f'<p class="warning">{escape(text)}.</p>' for text in texts)


def _cells(found: Sequence[Row]) -> str:
    table = brief(found)
    numbers = [
        index for index, header in enumerate(table.headers) if header not in ("model", "engine", "arm", "remarks")
    ]
    head = "".join(_cell("th", header, index in numbers) for index, header in enumerate(table.headers))
    body = []
    for texts in table.texts:
        line = "".join(_cell("td", text, index in numbers) for index, text in enumerate(texts))
        body.append(f"<tr>{line}</tr>")
    caption = ". ".join(text for text in (table.shared, table.missing) if text)
    return (
        f'<div class="scroll"><table><caption>{escape(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def _cell(tag: str, text: str, number: bool) -> str:
    attribute = ' class="number"' if number else ""
    return f"<{tag}{attribute}>{escape(text)}</{tag}>"


def _figures(record: Record) -> str:
    """Each plot with what it shows; those that the record has nothing for are left out."""
    together = max((row.figures.steps_together for row in rows(record) if row.figures is not None), default=1)
    even = f" The engine hands out {together} steps at once: they share their time evenly." if together > 1 else ""
    sections = [
        (fraction_plot(record), _FRACTION),
        (waterfall_plot(record), _WATERFALL),
        (latency_plot(record), f"The axis ends beyond the 99th percentile of the slowest cell.{even}"),
    ]
    figures = [_figure(plot, caption) for plot, caption in sections if plot is not None]
    growth = [plot for plot in (growth_plot(record), bytes_plot(record)) if plot is not None]
    if growth:
        figures.append(_figure(f'<div class="pair"><div>{"</div><div>".join(growth)}</div></div>', _GROWTH))
    return "".join(["<h2>Figures</h2>", *figures]) if figures else ""


def _figure(plot: str, caption: str) -> str:
    return f"<figure>{plot}<figcaption>{escape(caption)}</figcaption></figure>"


def _facts(facts: Iterable[tuple[str, str]]) -> str:
    lines = (f"<tr><th>{escape(name)}</th><td>{escape(text)}</td></tr>" for name, text in facts)
    return f'<table class="facts"><tbody>{"".join(lines)}</tbody></table>'
