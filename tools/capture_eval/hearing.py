"""A composed stream through the listener's own windows, ear and head: the scores that a trigger would be fed."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from edgemem.runtime.capture.audio import HOP_SAMPLES, RATE_HZ, WINDOW_SAMPLES
from edgemem.runtime.capture.head import Head
from edgemem.runtime.capture.windows import Framer
from edgemem.tools.capture_eval.heads import FoldHead, Heads
from edgemem.tools.capture_eval.kept import Kept, setup_text
from edgemem.tools.capture_eval.outcome import Event, HeardStream, StreamKey
from edgemem.tools.capture_eval.plan import Palette, palette, plan_stream
from edgemem.tools.capture_eval.settings import EvalSettings, Mix
from edgemem.tools.capture_eval.sounds import Sound
from edgemem.tools.capture_eval.stream import ComposedStream
from edgemem.tools.hands.clips import read_clip
from edgemem.tools.hands.dataset import Dataset
from edgemem.tools.hands.hearing import Listener
from edgemem.tools.hands.lessons import Progress

COMPOSITION = 1  # of plan.py and stream.py: another number where the same seeds give other streams

Scores = tuple[float | None, ...]


def hear_stream(
    key: StreamKey,
    mix: Mix,
    seconds: float,
    sounds: Palette,
    ear: Listener,
    head: Head,
    advance: Callable[[float], None],
) -> HeardStream:
    """sounds: of clips that the head never heard. The same plan at every signal-to-noise ratio."""
    seed = (key.fold, key.number, *mix.name.encode())
    plan = plan_stream(sounds, seconds, mix.share, np.random.default_rng(seed))
    scores = hear(ComposedStream(plan, sounds, key.snr_db), ear, head, lambda end: advance(end / plan.length))
    events = tuple(Event(one.kind, one.start / RATE_HZ, one.end / RATE_HZ) for one in plan.events)
    return HeardStream(key, seconds, events, scores)


def hear(stream: ComposedStream, ear: Listener, head: Head, advance: Callable[[int], None]) -> Scores:
    """A score for each window, None for one that is not to be believed. advance: is told how far it is, in samples."""
    framer, scores = Framer(), list[float | None]()
    for piece in stream.pieces():
        advance(piece.start)
        for window in framer.push(piece):
            if window.end != WINDOW_SAMPLES + HOP_SAMPLES * len(scores):
                raise ValueError(f"window {len(scores)} ends at {window.end}")
            flawed = window.flaw is not None
            scores.append(None if flawed else round(float(head.score(ear.hear(window.samples).embedding)), 5))
    return tuple(scores)


def hear_streams(
    dataset: Dataset,
    ear: Listener,
    heads: Heads,
    settings: EvalSettings,
    kept: Kept,
    subject: Mapping[str, str],
    progress: Progress,
) -> list[HeardStream]:
    """Every stream, from what is kept or anew. subject: what tells these clips and this ear from others."""
    found = []
    keys = stream_keys(settings)
    for index, (key, mix) in enumerate(keys):

        def advance(share: float, done: int = index) -> None:
            progress("streams", (done + share) / len(keys))

        advance(0.0)
        fold = heads.folds[key.fold]
        setup = setup_text(
            **subject, head=fold.sha256, seconds=settings.seconds, share=mix.share, composition=COMPOSITION
        )

        def find(key: StreamKey = key, mix: Mix = mix, fold: FoldHead = fold) -> HeardStream:
            return hear_stream(key, mix, settings.seconds, _palette(dataset, fold), ear, fold.head, advance)

        found.append(kept.value(f"streams/{key.name}", setup, HeardStream, find))
    return found


def stream_keys(settings: EvalSettings) -> list[tuple[StreamKey, Mix]]:
    """Each fold's streams, mix by mix, all of the same length."""
    return [
        (StreamKey(mix.name, snr_db, fold, number), mix)
        for mix in (settings.usual, settings.rare)
        for snr_db in mix.snrs_db
        for fold in range(settings.folds)
        for number in range(mix.streams)
    ]


def _palette(dataset: Dataset, fold: FoldHead) -> Palette:
    """Of the clips that the fold's head never heard."""
    apart = [clip for clip in dataset.clips if clip.group in fold.groups]
    return palette([Sound(clip.kind, clip.hands, read_clip(clip.path)) for clip in apart])
