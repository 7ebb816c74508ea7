"""The record of an evaluation: what was captured of each stream, raw, and what the figures need beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edgemem.profiles.plain import to_plain
from edgemem.runtime.capture.trigger import TriggerSettings
from edgemem.tools.capture_eval.cost import Cost
from edgemem.tools.capture_eval.curve import CurvePoint
from edgemem.tools.capture_eval.excerpt import Excerpt
from edgemem.tools.capture_eval.heads import ClipScores
from edgemem.tools.capture_eval.outcome import Captured
from edgemem.tools.capture_eval.sweep import Sweep
from edgemem.tools.hands.clip_scores import SubsetFigures
from edgemem.tools.profile_output import write_text

FORMAT = 1
RECORD_FILE = "record.json"


@dataclass(frozen=True)
class Record:
    """subject: the clips and the ear. conditions: machine, versions, streams, when, how long. few: whether the clips
    are too few for any claim. subsets: of clips, told apart. settings: of the trigger that was judged. shares: of the
    time that hands are at work, by mix. captured: streams of the folds it was judged on; draws: of periodic and random
    capture of each. curve: over thresholds, on the same streams, at the signal-to-noise ratio of the aims. sweep: of
    settings, on the streams that they are chosen on.
    """

    format: int
    subject: Mapping[str, str]
    conditions: Mapping[str, str]
    few: bool
    subsets: tuple[SubsetFigures, ...]
    clip_scores: ClipScores
    settings: TriggerSettings
    shares: Mapping[str, float]
    captured: tuple[Captured, ...]
    draws: int
    curve: tuple[CurvePoint, ...]
    sweep: Sweep
    excerpt: Excerpt
    cost: Cost


def write_record(record: Record, folder: Path) -> None:
    """Raises FileError where it cannot be written."""
    write_text(folder / RECORD_FILE, json.dumps(to_plain(record), indent=1, allow_nan=False) + "\n")
