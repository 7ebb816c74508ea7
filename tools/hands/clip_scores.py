"""How well clips are told apart by a head that never heard their recordings, and by the ear's classes without a head.

hear_lessons -> fold_heads -> clip_level. What it means for a stream is measured elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgemem.runtime.capture.head import Head
from edgemem.runtime.errors import SettingsError
from edgemem.tools.hands.lessons import Lessons, Progress
from edgemem.tools.hands.ranking import average_precision, roc_auc, with_interval
from edgemem.tools.hands.settings import TrainSettings
from edgemem.tools.hands.training import Calibration, calibration
from edgemem.tools.memory_eval.statistics import Estimate

HAND_CLASSES = (  # of AudioSet's domestic sounds, those that hands make with things
    "Cupboard open or close",
    "Drawer open or close",
    "Dishes, pots, and pans",
    "Cutlery, silverware",
    "Chopping (food)",
    "Sink (filling or washing)",
    "Door",
    "Sliding door",
    "Zipper (clothing)",
    "Keys jangling",
    "Scissors",
    "Shuffling cards",
    "Writing",
)
ALL = "all"


class Fold(NamedTuple):
    """A head, and the groups that it never heard."""

    groups: frozenset[str]
    head: Head


@dataclass(frozen=True)
class Ranking:
    """Over clips; intervals by the bootstrap over groups."""

    auc: Estimate
    average_precision: Estimate


@dataclass(frozen=True)
class SubsetFigures:
    """name: "all", or a source of the metadata that has both labels. head: out of fold. hand_classes: the highest of
    HAND_CLASSES, any_class: of all classes, window by window, which need no head."""

    name: str
    clips: int
    hands: int
    groups: int
    head: Ranking
    hand_classes: Ranking
    any_class: Ranking


@dataclass(frozen=True)
class ClipFigures:
    """subsets: "all" first. Of out-of-fold heads, the shares of clips with hands (recall) and without (false_alarms)
    that score at least 0.5; by_kind: the share for each kind of clip. calibration: of windows, takes included."""

    subsets: tuple[SubsetFigures, ...]
    recall: float
    false_alarms: float
    by_kind: dict[str, float]
    calibration: Calibration
    folds: int
    seed: int


def fold_heads(lessons: Lessons, settings: TrainSettings, progress: Progress = lambda stage, done: None) -> list[Fold]:
    """For each fold a head trained on all others."""
    found = []
    for number in range(settings.folds):
        progress("cross-validate", number / settings.folds)
        held = lessons.fold == number
        groups = frozenset(clip.group for clip, out in zip(lessons.dataset.clips, held, strict=True) if out)
        found.append(Fold(groups, lessons.train(~held, settings)))
    progress("cross-validate", 1.0)
    return found


def clip_score(window_scores: NDArray[np.float32]) -> float:
    """Of a clip: the mean of its windows' scores (windows,). By cross-validation it tells clips apart better than the
    highest of them, or the mean of the three highest."""
    return float(window_scores.mean())


def out_of_fold(lessons: Lessons, folds: Sequence[Fold]) -> NDArray[np.float64]:
    """(clips,): each scored by the head that never heard its group."""
    heads = _head_of(folds)
    pairs = zip(lessons.dataset.clips, lessons.heard, strict=True)
    return np.array([clip_score(heads[clip.group].scores(heard.embeddings)) for clip, heard in pairs])


def without_head(lessons: Lessons, classes: Sequence[str] | None = None) -> NDArray[np.float64]:
    """(clips,): each scored by the highest of `classes`, or of all. Raises SettingsError for an ear that lacks
    one of them."""
    wanted = lessons.class_names if classes is None else classes
    missing = [name for name in wanted if name not in lessons.class_names]
    if missing:
        raise SettingsError("the ear does not know a class", got=missing[0], wanted="the classes of AudioSet")
    places = [lessons.class_names.index(name) for name in wanted]
    return np.array([clip_score(heard.scores[:, places].max(axis=1)) for heard in lessons.heard])


def clip_level(lessons: Lessons, folds: Sequence[Fold], settings: TrainSettings) -> ClipFigures:
    """All figures. Raises SettingsError where the ear lacks a class of HAND_CLASSES."""
    clips, hands = lessons.dataset.clips, lessons.hands
    scores = out_of_fold(lessons, folds)
    columns = scores, without_head(lessons, HAND_CLASSES), without_head(lessons)
    masks = {ALL: np.ones(len(clips), dtype=bool)}
    for source in sorted({clip.source for clip in clips if clip.source}):
        masks[source] = np.array([clip.source == source for clip in clips])
    opened = scores >= 0.5
    kinds = np.array([clip.kind for clip in clips])
    return ClipFigures(
        subsets=tuple(
            _subset(name, mask, lessons, columns)
            for name, mask in masks.items()
            if hands[mask].any() and not hands[mask].all()
        ),
        recall=float(opened[hands].mean()),
        false_alarms=float(opened[~hands].mean()),
        by_kind={str(kind): float(opened[kinds == kind].mean()) for kind in np.unique(kinds)},
        calibration=_calibration(lessons, folds),
        folds=len(folds),
        seed=settings.seed,
    )


def _subset(
    name: str, mask: NDArray[np.bool_], lessons: Lessons, columns: Sequence[NDArray[np.float64]]
) -> SubsetFigures:
    groups = [clip.group for clip, chosen in zip(lessons.dataset.clips, mask, strict=True) if chosen]
    truth = lessons.hands[mask]
    rankings = (_ranking(column[mask], truth, groups) for column in columns)
    return SubsetFigures(name, int(mask.sum()), int(truth.sum()), len(set(groups)), *rankings)


def _calibration(lessons: Lessons, folds: Sequence[Fold]) -> Calibration:
    heads = _head_of(folds)
    logits = np.empty(len(lessons.owner), np.float32)
    for index, clip in enumerate(lessons.dataset.clips):
        its = lessons.owner == index
        logits[its] = heads[clip.group].logits(lessons.embeddings[its])
    return calibration(logits, lessons.hands[lessons.owner], lessons.weights)


def _head_of(folds: Sequence[Fold]) -> dict[str, Head]:
    return {group: fold.head for fold in folds for group in fold.groups}


def _ranking(scores: NDArray[np.float64], truth: NDArray[np.bool_], groups: Sequence[str]) -> Ranking:
    figures = (with_interval(figure, scores, truth, groups) for figure in (roc_auc, average_precision))
    return Ranking(*figures)
