"""All that is measured, in order: heads, cost, streams heard, settings swept on some folds and judged on the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256

from edgemem.profiles.plain import to_plain
from edgemem.runtime.capture.trigger import TriggerSettings
from edgemem.runtime.safe_files import sha256_of
from edgemem.tools.capture_eval.cost import Cost
from edgemem.tools.capture_eval.curve import curve
from edgemem.tools.capture_eval.excerpt import excerpt_of
from edgemem.tools.capture_eval.heads import Heads, train_heads
from edgemem.tools.capture_eval.hearing import hear_streams
from edgemem.tools.capture_eval.kept import Kept, setup_text
from edgemem.tools.capture_eval.outcome import HeardStream, capture
from edgemem.tools.capture_eval.record import FORMAT, Record
from edgemem.tools.capture_eval.settings import CLAIM_DB, EvalSettings
from edgemem.tools.capture_eval.sweep import GRID, Sweep, swept
from edgemem.tools.hands.dataset import Dataset
from edgemem.tools.hands.hearing import Listener
from edgemem.tools.hands.lessons import Progress
from edgemem.tools.hands.settings import TrainSettings

ENOUGH_CLIPS = 100


@dataclass(frozen=True)
class Subject:
    """What is evaluated. ear_name: what tells this ear from others. cost: measures what so many seconds of listening
    cost."""

    dataset: Dataset
    ear: Listener
    ear_name: str
    trigger: TriggerSettings
    cost: Callable[[float], Cost]


def evaluate(
    subject: Subject, settings: EvalSettings, kept: Kept, conditions: Mapping[str, str], progress: Progress
) -> Record:
    """Raises what the parts raise; what was found until then is kept."""
    settings = fitting(settings, subject.dataset)
    about = {"clips": _clips_sha256(subject.dataset), "ear": subject.ear_name}
    heads = _heads(subject, settings, kept, about, progress)
    cost = _cost(subject, settings, kept, progress)
    heard = hear_streams(subject.dataset, subject.ear, heads, settings, kept, about, progress)
    delay_s, trigger = cost.hop_ms / 1000, subject.trigger
    sweep = _sweep(
        [one for one in heard if one.key.fold < settings.development_folds], trigger, delay_s, kept, progress
    )
    progress("figures", 0.0)
    judged_on = [one for one in heard if one.key.fold >= settings.development_folds]
    return Record(
        format=FORMAT,
        subject={"clips": f"{len(subject.dataset.clips)}", "clips sha256": about["clips"], "ear": about["ear"]},
        conditions={**conditions, **_plan_texts(settings), "measured": _measured(kept)},
        few=len(subject.dataset.clips) < ENOUGH_CLIPS,
        subsets=heads.subsets,
        clip_scores=heads.scores,
        settings=trigger,
        shares={mix.name: mix.share for mix in (settings.usual, settings.rare)},
        captured=tuple(capture(one, trigger, delay_s) for one in judged_on),
        draws=settings.draws,
        curve=tuple(curve(_claimed(judged_on), trigger, delay_s)),
        sweep=sweep,
        excerpt=excerpt_of(_claimed(judged_on)[0], trigger, delay_s),
        cost=cost,
    )


def fitting(settings: EvalSettings, dataset: Dataset) -> EvalSettings:
    """With no more folds than there are groups of either label; two at least are needed, and are asked for."""
    groups = [len({clip.group for clip in dataset.clips if clip.hands == hands}) for hands in (True, False)]
    folds = max(2, min(settings.folds, *groups))
    return replace(settings, folds=folds, development_folds=min(settings.development_folds, folds - 1))


def _heads(subject: Subject, settings: EvalSettings, kept: Kept, about: Mapping[str, str], progress: Progress) -> Heads:
    training = TrainSettings(folds=settings.folds)
    setup = setup_text(**about, training=to_plain(training))
    return kept.value("heads", setup, Heads, lambda: train_heads(subject.dataset, subject.ear, training, progress))


def _cost(subject: Subject, settings: EvalSettings, kept: Kept, progress: Progress) -> Cost:
    progress("cost", 0.0)
    setup = setup_text(ear=subject.ear_name, seconds=settings.cost_seconds)
    return kept.value("cost", setup, Cost, lambda: subject.cost(settings.cost_seconds))


def _sweep(
    chosen_on: Sequence[HeardStream], trigger: TriggerSettings, delay_s: float, kept: Kept, progress: Progress
) -> Sweep:
    streams = _claimed(chosen_on)
    scores = sha256(repr([(one.key, one.events, one.scores) for one in streams]).encode()).hexdigest()
    setup = setup_text(scores=scores, start=to_plain(trigger), delay_s=delay_s, grid=GRID)
    return kept.value(
        "sweep", setup, Sweep, lambda: swept(streams, trigger, delay_s, lambda share: progress("settings", share))
    )


def _claimed(streams: Sequence[HeardStream]) -> list[HeardStream]:
    """Those at the signal-to-noise ratio of the aims."""
    return [one for one in streams if one.key.snr_db == CLAIM_DB]


def _clips_sha256(dataset: Dataset) -> str:
    digest = sha256()
    for clip in dataset.clips:
        with clip.path.open("rb") as file:
            digest.update(f"{clip.hands} {clip.group!a} {clip.kind!a} {sha256_of(file.fileno())}\n".encode())
    return digest.hexdigest()


def _plan_texts(settings: EvalSettings) -> dict[str, str]:
    streams = "; ".join(
        f"{mix.name}: hands at work {100 * mix.share:g} % of the time, at {_list(mix.snrs_db)} dB, {mix.streams} a fold"
        for mix in (settings.usual, settings.rare)
    )
    judged = settings.folds - settings.development_folds
    folds = f"{settings.folds}; settings are chosen on {settings.development_folds}, figures are of the other {judged}"
    return {"streams": f"{settings.seconds / 60:g} minutes each; {streams}", "folds": folds}


def _list(numbers: Sequence[float]) -> str:
    return ", ".join(f"{number:g}" for number in numbers)


def _measured(kept: Kept) -> str:
    dates = sorted(kept.dates)
    return f"{dates[0]} to {dates[-1]}, {kept.seconds / 60:.1f} minutes in all"
