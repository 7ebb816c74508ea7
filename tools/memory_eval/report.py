"""An evaluation as text, as markdown and as one HTML page that needs nothing else. All texts are escaped."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape

from edgemem.profiles.html_page import html_page
from edgemem.tools.memory_eval.figures import plots
from edgemem.tools.memory_eval.measures import defaults, verdicts
from edgemem.tools.memory_eval.record import Record, Result
from edgemem.tools.memory_eval.settings import POLICIES
from edgemem.tools.memory_eval.speed_table import speed_table
from edgemem.tools.memory_eval.tables import Table, part_tables, verdict_table

_TITLE = "What a bounded memory keeps, and what that is worth"


def tables_of(results: Sequence[Result]) -> list[Table]:
    """Every table that the results have something for."""
    judged, speed = verdicts(results), speed_table(results)
    return [
        *part_tables(results),
        *([speed] if speed is not None else []),
        *([verdict_table(judged)] if judged else []),
    ]


def conclusions(results: Sequence[Result]) -> list[str]:
    """Which default the evidence is for, a sentence for each use."""
    return defaults(verdicts(results))


def markdown(record: Record, planned: int) -> str:
    """record: with the results to be shown. planned: how many there are when all is done."""
    parts = [f"# {_TITLE}", *_state(record, planned)]
    parts += [table.markdown().rstrip() for table in tables_of(record.results)]
    parts += ["## Defaults that the evidence supports", *(f"- {line}" for line in conclusions(record.results))]
    parts += ["## Policies", *(f"- {name}: {what}" for name, what in _policies(record))]
    parts += ["## Conditions", *(f"- {name}: {text}" for name, text in _conditions(record))]
    return "\n\n".join(parts).replace("\n\n- ", "\n- ") + "\n"


def html(record: Record, planned: int) -> str:
    """The page. Raises SettingsError where matplotlib is not installed."""
    figures = "".join(
        f"<figure>{svg}<figcaption>{escape(text)}</figcaption></figure>" for svg, text in plots(record.results)
    )
    body = [
        f'<p class="eyebrow">edgemem eval memory, {escape(_date(record))}</p>',
        f"<h1>{escape(_TITLE)}</h1>",
        *(f'<p class="warning">{escape(line)}</p>' for line in _state(record, planned)),
        _list(conclusions(record.results)),
        figures,
        *(_table(table) for table in tables_of(record.results)),
        "<h2>Policies</h2>",
        _list([f"{name}: {what}" for name, what in _policies(record)]),
        "<h2>Conditions</h2>",
        _list([f"{name}: {text}" for name, text in _conditions(record)]),
    ]
    return html_page(_TITLE, "\n".join(body))


def _state(record: Record, planned: int) -> list[str]:
    """Nothing where all is done."""
    done = len(record.results)
    return [] if done == planned else [f"Not finished: {done} of {planned} cells. The same command goes on."]


def _policies(record: Record) -> list[tuple[str, str]]:
    used = {result.cell.policy for result in record.results}
    return [(name, what) for name, what in POLICIES.items() if name in used]


def _conditions(record: Record) -> list[tuple[str, str]]:
    """Of all results: what they are of, how much was asked, where, when, and how long that took."""
    seconds = sum(result.seconds for result in record.results)
    measured = f"{_date(record)}, {seconds / 60:.1f} minutes in all"
    return [*record.subject.items(), *_sizes(record), *record.conditions.items(), ("measured", measured)]


def _sizes(record: Record) -> list[tuple[str, str]]:
    """How much each part asks, as its cells have it, and with which seeds."""
    found: dict[str, dict[str, str]] = {}
    for result in record.results:
        sizes = {name: str(value) for name, value in json.loads(result.cell.setup).items() if name != "retention"}
        found.setdefault(result.cell.part, {}).update(sizes)
    seeds = {part: {one.cell.seed for one in record.results if one.cell.part == part} for part in found}
    return [
        (part, ", ".join(f"{name} {value}" for name, value in {**sizes, "seeds": len(seeds[part])}.items()))
        for part, sizes in found.items()
    ]


def _date(record: Record) -> str:
    dates = sorted(result.date for result in record.results)
    return "–" if not dates else dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"


def _list(lines: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>"


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in table.headers)
    rows = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in table.rows)
    return (
        f'<h2>{escape(table.title)}</h2><div class="scroll"><table><caption>{escape(table.note)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )
