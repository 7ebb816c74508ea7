"""All that the head can learn from: each clip as it is and in augmented takes, heard, with the fold it belongs to.

A take is mixed with a background of its own fold alone, so that what is held apart is nowhere else to be heard.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgemem.runtime.capture.audio import RATE_HZ, Samples
from edgemem.runtime.capture.head import Head
from edgemem.runtime.errors import SettingsError
from edgemem.tools.hands.augment import Take, take
from edgemem.tools.hands.clips import read_clip
from edgemem.tools.hands.dataset import Clip, Dataset
from edgemem.tools.hands.folds import assign_folds
from edgemem.tools.hands.hearing import Heard, Listener, audible, hear_clip
from edgemem.tools.hands.settings import TrainSettings
from edgemem.tools.hands.training import train_head

MOST_S = 3600.0  # of clips together, all held in memory
Progress = Callable[[str, float], None]  # (stage, fraction done of it)


@dataclass(frozen=True, eq=False)
class Lessons:
    """Per clip of the dataset: heard: as it is; fold (clips,): what it is held apart with; teaches (clips,): whether it
    may be trained on. Per window, of all clips and takes, that tells something: embeddings (n, 1024); owner (n,): the
    clip's index; weights (n,): such that the windows of one take together count 1."""

    dataset: Dataset
    class_names: tuple[str, ...]
    heard: tuple[Heard, ...]
    fold: NDArray[np.int64]
    teaches: NDArray[np.bool_]
    embeddings: NDArray[np.float32]
    owner: NDArray[np.int64]
    weights: NDArray[np.float64]

    @property
    def hands(self) -> NDArray[np.bool_]:
        """(clips,)"""
        return np.array([clip.hands for clip in self.dataset.clips])

    def train(self, clips: NDArray[np.bool_], settings: TrainSettings) -> Head:
        """From those of the chosen clips (clips,) that may be trained on. Raises SettingsError without both labels."""
        chosen = (clips & self.teaches)[self.owner]
        hands = self.hands[self.owner][chosen]
        if not hands.any() or hands.all():
            raise SettingsError("no clips of both labels are left to train on", do="give more, or leave out fewer")
        return train_head(self.embeddings[chosen], hands, self.weights[chosen], settings)


def hear_lessons(dataset: Dataset, ear: Listener, settings: TrainSettings, progress: Progress) -> Lessons:
    """Hears every clip 1 + `copies` times. Raises FileError for a broken sound, SettingsError for too few groups or too
    much sound."""
    fold = assign_folds(dataset.clips, settings.folds, settings.seed)
    teaches = np.array([_may_teach(clip, settings) for clip in dataset.clips])
    sounds = list(_sounds(dataset.clips))
    under = _backgrounds(dataset.clips, sounds, fold, teaches)
    heard, embeddings, owner, weights = [], [], list[int](), list[float]()
    for index, (sound, clip) in enumerate(zip(sounds, dataset.clips, strict=True)):
        progress("hear", index / len(sounds))
        random = np.random.default_rng((settings.seed, index))
        takes = _takes(sound, under.get(int(fold[index]), []), settings, random) if teaches[index] else ()
        versions = [(hear_clip(ear, each.samples), each.alone) for each in (Take(sound, sound), *takes)]
        heard.append(versions[0][0])
        for version, alone in versions:
            tells = audible(alone, settings.quiet_db) | (not clip.hands)
            embeddings.append(version.embeddings[tells])
            owner += [index] * int(tells.sum())
            weights += [1 / int(tells.sum())] * int(tells.sum())
    progress("hear", 1.0)
    windows = np.concatenate(embeddings), np.array(owner), np.array(weights)
    return Lessons(dataset, tuple(ear.class_names), tuple(heard), fold, teaches, *windows)


def _backgrounds(
    clips: Sequence[Clip], sounds: Sequence[Samples], fold: NDArray[np.int64], teaches: NDArray[np.bool_]
) -> dict[int, list[Samples]]:
    """By fold: what its takes may be laid over."""
    found: dict[int, list[Samples]] = {}
    for clip, sound, number, may in zip(clips, sounds, fold.tolist(), teaches, strict=True):
        if may and not clip.hands:
            found.setdefault(number, []).append(sound)
    return found


def _may_teach(clip: Clip, settings: TrainSettings) -> bool:
    return not (settings.without_tier and clip.tier.startswith(settings.without_tier))


def _sounds(clips: Sequence[Clip]) -> Iterator[Samples]:
    seconds = 0.0
    for clip in clips:
        sound = read_clip(clip.path)
        seconds += len(sound) / RATE_HZ
        if seconds > MOST_S:
            raise SettingsError("too much sound to train on", wanted=f"at most {MOST_S / 60:g} minutes")
        yield sound


def _takes(
    sound: Samples, under: Sequence[Samples], settings: TrainSettings, random: np.random.Generator
) -> Iterator[Take]:
    for _ in range(settings.copies):
        mixed = random.random() < settings.mixed_share and len(under) > 0
        yield take(sound, under[int(random.integers(len(under)))] if mixed else None, settings, random)
