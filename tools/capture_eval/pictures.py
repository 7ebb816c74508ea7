"""The plots of an evaluation as SVG: coverage against frames saved, waits, ROC of clips, two minutes as heard."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgemem.profiles.chart import Axis, Frame, Line, Points, distribution
from edgemem.profiles.plots import draw
from edgemem.runtime.capture.trigger import TriggerSettings
from edgemem.tools.capture_eval.excerpt import Excerpt
from edgemem.tools.capture_eval.figures import PERIODIC, RANDOM, TRIGGER
from edgemem.tools.capture_eval.heads import ClipScores
from edgemem.tools.capture_eval.outcome import Captured, Event, waits
from edgemem.tools.capture_eval.record import Record
from edgemem.tools.capture_eval.settings import CLAIM_DB, USUAL

_LONGEST_WAIT_S = 5.0


def pictures(record: Record) -> list[tuple[str, str]]:
    """(SVG, caption) of every plot. Raises SettingsError where matplotlib is missing."""
    mixes = dict.fromkeys(point.mix for point in record.curve)
    curves = [
        (_curve(record, mix), f"Over thresholds, at {CLAIM_DB:g} dB. The others take as many frames.") for mix in mixes
    ]
    return [
        *curves,
        (_waits(record.captured), "Events that were never covered keep a curve below 100 %."),
        (_roc(record.clip_scores), "Of clips, each by a head that heard no clip of its group."),
        (_excerpt(record.excerpt, record.settings), f"Stream {record.excerpt.stream}. Dots: frames, heartbeats too."),
    ]


def _curve(record: Record, mix: str) -> str:
    points = [point for point in record.curve if point.mix == mix]
    saved = [point.saved for point in points]
    lines = [
        Line(TRIGGER, saved, [point.covered for point in points], markers=True),
        Line(PERIODIC, saved, [point.periodic for point in points], markers=True),
        Line(RANDOM, saved, [point.random for point in points], markers=True),
    ]
    share = record.shares[mix]
    frame = Frame(
        f"Hands at work {100 * share:g} % of the time",
        Axis("frames saved", share=True, low=0.0, high=1.0),
        Axis("events covered", share=True, low=0.0, high=1.02),
    )
    return draw(frame, lines)


def _waits(captured: Sequence[Captured]) -> str:
    lines = []
    for snr_db in sorted({one.key.snr_db for one in captured if one.key.mix == USUAL}):
        alike = [one for one in captured if one.key.mix == USUAL and one.key.snr_db == snr_db]
        found = np.concatenate([waits(one.frames_s, one.events) for one in alike])
        # A wait that never ends stands beyond the axis, so that shares are of all events.
        lines.append(distribution(f"{snr_db:g} dB", np.minimum(found, 10 * _LONGEST_WAIT_S).tolist()))
    frame = Frame(
        "From the beginning of an event to its first frame",
        Axis("seconds", low=0.0, high=_LONGEST_WAIT_S),
        Axis("share of events", share=True, low=0.0, high=1.02),
    )
    return draw(frame, lines)


def _roc(scores: ClipScores) -> str:
    hands = np.array(scores.hands)
    lines = [
        _roc_line(label, np.array(values), hands)
        for label, values in (
            ("head", scores.head),
            ("highest class of hands at work", scores.hand_classes),
            ("highest class of all", scores.any_class),
        )
    ]
    frame = Frame(
        "Clips told apart",
        Axis("background taken for hands at work", share=True, low=0.0, high=1.0),
        Axis("hands at work found", share=True, low=0.0, high=1.02),
    )
    return draw(frame, [*lines, Line("chance", [0.0, 1.0], [0.0, 1.0], muted=True)])


def _roc_line(label: str, scores: NDArray[np.float64], hands: NDArray[np.bool_]) -> Line:
    thresholds = np.unique(scores)[::-1]
    false = [0.0, *((scores[~hands] >= level).mean() for level in thresholds)]
    true = [0.0, *((scores[hands] >= level).mean() for level in thresholds)]
    return Line(label, false, true)


def _excerpt(excerpt: Excerpt, settings: TriggerSettings) -> str:
    first_s, last_s = excerpt.at_s[0], excerpt.at_s[-1]
    x, y = _steps(excerpt.events, first_s, last_s)
    ends = [first_s, last_s]
    marks: list[Line | Points] = [
        Line("hands at work", x, y, [0.0] * len(y), y),
        Line("score", excerpt.at_s, excerpt.scores),
        Line("smoothed", excerpt.at_s, excerpt.smoothed),
        Points("frames", excerpt.frames_s, [1.06] * len(excerpt.frames_s)),
        Line("opens", ends, [settings.open_at] * 2, muted=True),
        Line("closes", ends, [settings.close_at] * 2, muted=True),
    ]
    frame = Frame("Two minutes", Axis("seconds of the stream"), Axis("score", low=0.0, high=1.12), width=9.0)
    return draw(frame, marks)


def _steps(events: Sequence[Event], first_s: float, last_s: float) -> tuple[list[float], list[float]]:
    """1 during events, 0 between."""
    x, y = [first_s], [0.0]
    for event in events:
        start_s, end_s = max(event.start_s, first_s), min(event.end_s, last_s)
        x += [start_s, start_s, end_s, end_s]
        y += [0.0, 1.0, 1.0, 0.0]
    return [*x, last_s], [*y, 0.0]
