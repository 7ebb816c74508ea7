"""An evaluation as markdown and as one HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from edgemem.tools.capture_eval.cost import Energy
from edgemem.tools.capture_eval.figures import GroupFigures
from edgemem.tools.capture_eval.pictures import pictures
from edgemem.tools.capture_eval.record import Record
from edgemem.tools.capture_eval.stream import EVENT_LEVEL
from edgemem.tools.capture_eval.tables import tables_of
from edgemem.tools.report_page import bullets, figure, page, table_html, warning

_TITLE = "How well the camera is woken by hands at work"
_METHOD = (
    "Streams are composed from clips that the head never heard, with seeds. An event is clips of one kind, one after "
    "the other, 3 to 20 s long; it begins where its sound does, in the first 20 ms within 20 dB of the loud ones.",
    f"Events and passing sounds have the same level over the frames in which they are active (rms {EVENT_LEVEL:g} of "
    "full scale); the background's is lower by the signal-to-noise ratio. A clip brings its own recording's noise.",
    "Backgrounds are steady background clips, looped, each for 45 to 120 s and faded into the next; other background "
    "clips pass 30 times an hour.",
    "The scores come from the listener's own windows, ear and head, the frames from its own trigger, in simulated "
    "time; a frame's time is the end of the window that caused it and what a hop was measured to take.",
)
FEW = "The clips are too few for a claim: the figures show that the evaluation works, not how well the camera is woken."


def markdown(record: Record, found: Sequence[GroupFigures], energy: Energy | None) -> str:
    parts = [f"# {_TITLE}", *([FEW] if record.few else [])]
    parts += [table.markdown().rstrip() for table in tables_of(record, found, energy)]
    parts += ["## Method", *(f"- {line}" for line in _METHOD)]
    parts += ["## Conditions", *(f"- {line}" for line in _conditions(record))]
    return "\n\n".join(parts).replace("\n\n- ", "\n- ") + "\n"


def html(record: Record, found: Sequence[GroupFigures], energy: Energy | None) -> str:
    """Raises SettingsError where matplotlib is not installed."""
    plots = [figure(svg, caption) for svg, caption in pictures(record)]
    aims, *tables = (table_html(table) for table in tables_of(record, found, energy))
    few = [warning(FEW)] if record.few else []
    method = ["<h2>Method</h2>", bullets(_METHOD), "<h2>Conditions</h2>", bullets(_conditions(record))]
    eyebrow = f"edgemem eval capture, {record.conditions['measured']}"
    return page(_TITLE, eyebrow, [*few, aims, *plots, *tables, *method])


def _conditions(record: Record) -> list[str]:
    settings = ", ".join(f"{name} {value:g}" for name, value in asdict(record.settings).items())
    return [
        *(f"{name}: {text}" for name, text in {**record.subject, **record.conditions}.items()),
        f"trigger: {settings}",
        f"draws of periodic and random capture: {record.draws} a stream",
    ]
