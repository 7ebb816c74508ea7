"""Which groups are held apart together: folds of about equal numbers of clips of either label, no group in two."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgemem.runtime.errors import SettingsError
from edgemem.tools.hands.dataset import Clip


def assign_folds(clips: Sequence[Clip], folds: int, seed: int) -> NDArray[np.int64]:
    """(clips,): the fold of each. The largest groups are placed first, each where its labels are rarest.

    Raises SettingsError where a label has fewer groups than there are folds.
    """
    names = sorted({clip.group for clip in clips})
    numbers = {name: index for index, name in enumerate(names)}
    counts = np.zeros((len(names), 2))
    for clip in clips:
        counts[numbers[clip.group], int(clip.hands)] += 1
    for label, groups in enumerate((counts > 0).sum(axis=0)):
        if groups < folds:
            what = "hands at work" if label else "background"
            do = "record more, or put fewer files into one group"
            raise SettingsError(
                f"too few recordings of {what}", got=int(groups), wanted=f"{folds} groups or more", do=do
            )
    shares = counts / counts.sum(axis=0)
    order = np.random.default_rng(seed).permutation(len(names))
    order = order[np.argsort(-shares[order].max(axis=1), kind="stable")]
    filled = np.zeros((folds, 2))
    fold_of = np.zeros(len(names), dtype=np.int64)
    for group in order:
        uneven = [
            float(np.square(filled[fold] + shares[group]).sum() - np.square(filled[fold]).sum())
            for fold in range(folds)
        ]
        fold_of[group] = int(np.argmin(uneven))
        filled[fold_of[group]] += shares[group]
    return np.array([fold_of[numbers[clip.group]] for clip in clips])
