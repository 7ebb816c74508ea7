"""The plots of an evaluation as SVG: perplexity along the text, tasks against budgets, speed along the stream."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgemem.profiles.chart import Axis, Frame, Line
from edgemem.profiles.plots import draw
from edgemem.tools.memory_eval.choice_run import CHANCE
from edgemem.tools.memory_eval.measures import MEASURES, Arm, Measure, arms_of
from edgemem.tools.memory_eval.record import Result
from edgemem.tools.memory_eval.settings import FULL
from edgemem.tools.memory_eval.speed_run import SCORES

_PLOTTED = (
    ("grocery", "recall open"),
    ("dialogue", "far open"),
    ("facts", "answer held"),
    ("facts", "answer nats"),
    ("facts", "over near miss"),
    ("rps", "win"),
)


def plots(results: Sequence[Result]) -> list[tuple[str, str]]:
    """(SVG, caption) of every plot that the results have something for. SettingsError where matplotlib is missing."""
    stream = arms_of("stream", results)
    found = [_running(budget, stream) for budget in dict.fromkeys(arm.budget for arm in stream)]
    for part, series in _PLOTTED:
        (measure,) = (one for one in MEASURES if (one.part, one.series) == (part, series))
        drawn = _against_budget(measure, arms_of(part, results))
        found += [] if drawn is None else [drawn]
    for result in results:
        if result.cell.part == "speed" and result.cell.policy != SCORES and result.values:
            found += _along_the_stream(result)
    return found


def _running(budget: int, arms: Sequence[Arm]) -> tuple[str, str]:
    lines = []
    for arm in arms:
        nats = arm.units("nats")
        if arm.budget == budget and nats:
            places = range(1, len(nats) + 1)
            lines.append(Line(arm.policy, list(places), np.exp(np.cumsum(nats) / np.array(places)).tolist()))
    frame = Frame(f"Perplexity so far, budget {budget}", Axis("thousands of tokens"), Axis("perplexity", log=True))
    return draw(frame, lines), "Of all tokens up to there. A memory that holds is flat to the end."


def _against_budget(measure: Measure, arms: Sequence[Arm]) -> tuple[str, str] | None:
    """A line for each policy with budgets; across them those without."""
    budgets = sorted({arm.budget for arm in arms if arm.budget and arm.units(measure.series)})
    if not budgets:
        return None
    lines = []
    for policy in dict.fromkeys(arm.policy for arm in arms if arm.budget):
        found = [(arm.budget, arm.estimate(measure)) for arm in arms if arm.policy == policy]
        known = [(budget, estimate) for budget, estimate in found if estimate is not None]
        if known:
            values, low, high = zip(*((one.value, one.low, one.high) for _, one in known), strict=True)
            lines.append(Line(policy, [budget for budget, _ in known], values, low, high, markers=True))
    for arm in arms:
        level = arm.estimate(measure)
        if not arm.budget and level is not None:
            muted = arm.policy == CHANCE
            lines.append(Line(arm.policy, [budgets[0], budgets[-1]], [level.value] * 2, muted=muted))
    share = measure.kind == "share"
    axis = Axis(measure.label, share=share, low=0.0 if share else None, high=1.0 if share else None)
    frame = Frame(f"{measure.part}: {measure.label}", Axis("budget, slots", log=True), axis)
    full = " Full: the same model with everything in its memory." if any(arm.policy == FULL for arm in arms) else ""
    return draw(frame, lines), f"Bands are 95 % intervals.{full}"


def _along_the_stream(result: Result) -> list[tuple[str, str]]:
    tokens, found = result.values["tokens"][0], []
    for series, label in (("step ms", "milliseconds a step"), ("resident MiB", "MiB resident")):
        values = result.values[series]
        places = [tokens / 1000 * (index + 1) / len(values) for index in range(len(values))]
        frame = Frame(f"Along the stream: {label}", Axis("thousands of tokens"), Axis(label, low=0.0))
        found.append((draw(frame, [Line(label, places, values)]), "Medians of steps, means of memory, by windows."))
    return found
