"""The heads that streams are heard with, each trained without the clips of its fold, and how they tell clips apart."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256

import numpy as np

from edgemem.runtime.capture.head import Head
from edgemem.tools.hands.clip_scores import (
    HAND_CLASSES,
    SubsetFigures,
    clip_level,
    fold_heads,
    out_of_fold,
    without_head,
)
from edgemem.tools.hands.dataset import Dataset
from edgemem.tools.hands.hearing import Listener
from edgemem.tools.hands.lessons import Progress, hear_lessons
from edgemem.tools.hands.settings import TrainSettings


@dataclass(frozen=True)
class FoldHead:
    """groups: of clips that the head never heard. weights: (1024,)."""

    groups: tuple[str, ...]
    weights: tuple[float, ...]
    bias: float

    @property
    def head(self) -> Head:
        return Head(np.array(self.weights, dtype=np.float32), self.bias)

    @property
    def sha256(self) -> str:
        return sha256(np.array((*self.weights, self.bias), dtype=np.float64).tobytes()).hexdigest()


@dataclass(frozen=True)
class ClipScores:
    """Of each clip, over its windows. head: of one that never heard its group. hand_classes, any_class: of the highest
    of the ear's classes, those of hands or all, which need no head."""

    hands: tuple[bool, ...]
    head: tuple[float, ...]
    hand_classes: tuple[float, ...]
    any_class: tuple[float, ...]


@dataclass(frozen=True)
class Heads:
    subsets: tuple[SubsetFigures, ...]
    scores: ClipScores
    folds: tuple[FoldHead, ...]


def train_heads(dataset: Dataset, ear: Listener, settings: TrainSettings, progress: Progress) -> Heads:
    lessons = hear_lessons(dataset, ear, settings, progress)
    folds = fold_heads(lessons, settings, progress)
    heads = (FoldHead(tuple(sorted(fold.groups)), tuple(fold.head.weights.tolist()), fold.head.bias) for fold in folds)
    columns = out_of_fold(lessons, folds), without_head(lessons, HAND_CLASSES), without_head(lessons)
    scores = ClipScores(tuple(lessons.hands.tolist()), *(tuple(column.tolist()) for column in columns))
    return Heads(clip_level(lessons, folds, settings).subsets, scores, tuple(heads))
