"""Tables of an evaluation, as headers and rows of text: one for each part, and the verdicts. Speed has its own file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from edgemem.profiles.table import markdown_table
from edgemem.profiles.units import number_text
from edgemem.tools.memory_eval.measures import MEASURES, Arm, Kind, Measure, Verdict, arms_of
from edgemem.tools.memory_eval.record import Result
from edgemem.tools.memory_eval.statistics import Estimate

_TITLES = {
    "stream": "Perplexity over a long text",
    "grocery": "Grocery: one thing named, twenty questions, then the thing is asked for",
    "dialogue": "Dialogue: eight details told, then come back to",
    "facts": "Facts planted in long filler",
    "rps": "Rock, paper, scissors against a person who prefers one move",
}
_NOTES = {
    "stream": "Intervals over steps of 1,000 tokens, of one text. Every token but the first is predicted.",
    "grocery": "A unit is a conversation. By letter: as SirLLM scores. By words: no choices shown.",
    "dialogue": "A unit is a dialogue. Near: the detail is in the turn itself. Far: it was told turns ago.",
    "facts": "A unit is a trial. Held: of the facts' slots at the end. Near miss: a fact that differs in one word.",
    "rps": "A unit is 100 rounds. -log p(move): of the person's move, before it is told; at best 1.03.",
}


@dataclass(frozen=True)
class Table:
    title: str
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""

    def markdown(self) -> str:
        note = f"\n{self.note}\n" if self.note else ""
        return f"## {self.title}\n\n{markdown_table(self.headers, self.rows)}{note}"


def part_tables(results: Sequence[Result]) -> list[Table]:
    """One for each part that has results, speed apart."""
    tables = []
    for part, title in _TITLES.items():
        measures = [measure for measure in MEASURES if measure.part == part]
        arms = arms_of(part, results)
        if arms:
            headers = ("policy", "budget", *(measure.label for measure in measures), "evictions", "units")
            tables.append(Table(title, headers, tuple(_row(arm, measures) for arm in arms), _NOTES[part]))
    return tables


def verdict_table(found: Sequence[Verdict]) -> Table:
    """A row for each measure and policy, a column for each budget."""
    budgets = sorted({one.budget for one in found})
    by_row: dict[tuple[str, str], dict[int, str]] = {}
    for one in found:
        row = by_row.setdefault((f"{one.measure.part}, {one.measure.label}", one.policy), {})
        row[one.budget] = f"{one.word}: {_change_text(one.change, one.measure.kind)}"
    rows = tuple((*name, *(row.get(budget, "–") for budget in budgets)) for name, row in by_row.items())
    note = (
        "The policy less window, which is sinks + recent, at the same budget; with recall, less the same without it. "
        "Paired by unit, with 95 % bootstrap intervals, each by itself. A word is given where the interval leaves out "
        "0, and 5 units or more were measured."
    )
    return Table("Verdicts", ("measure", "policy", *map(str, budgets)), rows, note)


def _row(arm: Arm, measures: Sequence[Measure]) -> tuple[str, ...]:
    cells = []
    for measure in measures:
        found = arm.estimate(measure)
        cells.append("–" if found is None else estimate_text(found, measure.kind))
    evictions = arm.units("evictions")
    units = max(len(arm.units(measure.series)) for measure in measures)
    return (
        arm.policy,
        str(arm.budget or "–"),
        *cells,
        number_text(fmean(evictions)) if evictions else ("does not fit" if arm.missing else "–"),
        str(units),
    )


def estimate_text(found: Estimate, kind: Kind) -> str:
    """`23.1 [22.8, 23.5]`; shares in per cent."""
    if kind == "share":
        return f"{100 * found.value:.0f} % [{100 * found.low:.0f}, {100 * found.high:.0f}]"
    return f"{number_text(found.value)} [{number_text(found.low)}, {number_text(found.high)}]"


def _change_text(found: Estimate, kind: Kind) -> str:
    """Shares in points of a hundred, perplexity in per cent, else nats."""
    if kind == "nats":
        return f"{found.value:+.2f} nats [{found.low:+.2f}, {found.high:+.2f}]"
    unit = "%" if kind == "perplexity" else "points"
    return f"{100 * found.value:+.1f} {unit} [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"
