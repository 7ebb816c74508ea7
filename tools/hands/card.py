"""The card of a head: what it was trained on, how well it does on recordings it never heard, and what to mind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from edgemem.profiles.plain import printable
from edgemem.profiles.table import markdown_table
from edgemem.tools.hands.clip_scores import HAND_CLASSES, ClipFigures, Ranking, SubsetFigures
from edgemem.tools.hands.dataset import Clip, Dataset
from edgemem.tools.hands.settings import TrainSettings
from edgemem.tools.memory_eval.statistics import Estimate

_LIMITS = (
    "- It knows the kinds of sound above and little else; other rooms and tools need clips of their own.",
    "- 16 kHz mono. A score says how likely it is that hands handle something, not what, nor whose.",
    "- Probabilities hold where both labels are as frequent; in a quiet day most of what scores 0.5 is background.",
)
HEADERS = ("clips", "scored by", "area under ROC", "average precision")


def figure_rows(figures: ClipFigures) -> list[tuple[str, str, str, str]]:
    """Under HEADERS: for each subset the head and, beside it, what needs none."""
    return [row for subset in figures.subsets for row in _subset_rows(subset)]


def head_card(
    dataset: Dataset, settings: TrainSettings, figures: ClipFigures, *, file: str, sha256: str, command: str
) -> str:
    """Markdown. command: that trained it."""
    sources = {clip.source for clip in dataset.clips}
    lines = [
        "# Hands at work, by ear",
        "",
        f"`{file}`, sha256 `{sha256}`: logistic regression on YAMNet's embedding of 0.975 s, trained by",
        f"`{command}`.",
        "",
        "## Data",
        "",
        *_table(("label", "kind", "clips", "groups", "score 0.5 or more"), _kind_rows(dataset.clips, figures)),
        "",
        *_tier_lines(dataset.clips, settings),
        "",
        "## Figures",
        "",
        f"Grouped {figures.folds}-fold cross-validation, seed {figures.seed}: each clip is scored by a head that heard "
        "nothing of its group.",
        "In brackets 95 % intervals, by the bootstrap over groups. A clip's score is the mean over its windows.",
        *(
            ["Hands and background from different sources are told apart by the source too."]
            if len(sources) > 1
            else []
        ),
        "",
        *_table(HEADERS, figure_rows(figures)),
        "",
        f"Hand classes: the highest of {', '.join(HAND_CLASSES)}.",
        f"At 0.5: {figures.recall:.1%} of clips with hands and {figures.false_alarms:.1%} of the others. "
        f"Calibration of windows, augmented ones included: slope {figures.calibration.slope:.2f}, "
        f"shift {figures.calibration.shift:+.2f} (1 and 0 are perfect).",
        "",
        "## Limits",
        "",
        *_LIMITS,
    ]
    return "\n".join(lines) + "\n"


def interval_text(found: Estimate) -> str:
    return f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"


def _subset_rows(subset: SubsetFigures) -> Iterator[tuple[str, str, str, str]]:
    name = f"{subset.name}: {subset.hands} of {subset.clips}, {subset.groups} groups"
    scored: tuple[tuple[str, Ranking], ...] = (
        ("head", subset.head),
        ("hand classes", subset.hand_classes),
        ("all classes", subset.any_class),
    )
    for by, ranking in scored:
        yield name, by, interval_text(ranking.auc), interval_text(ranking.average_precision)


def _kind_rows(clips: Sequence[Clip], figures: ClipFigures) -> list[tuple[str, ...]]:
    kinds = sorted({(not clip.hands, clip.kind) for clip in clips})
    rows: list[tuple[str, ...]] = []
    for background, kind in kinds:
        chosen = [clip for clip in clips if clip.kind == kind and clip.hands != background]
        groups = len({clip.group for clip in chosen})
        share = f"{figures.by_kind[kind]:.0%}"
        rows.append(("background" if background else "hands", kind, str(len(chosen)), str(groups), share))
    return rows


def _tier_lines(clips: Sequence[Clip], settings: TrainSettings) -> list[str]:
    tiers = Counter(clip.tier for clip in clips if clip.tier)
    lines = (
        [f"Licence tiers: {', '.join(f'{tier} {count}' for tier, count in sorted(tiers.items()))}."] if tiers else []
    )
    if settings.without_tier:
        lines.append(f"Trained without the clips of tier {settings.without_tier}; the figures are of all clips.")
    return lines or ["Licence tiers: none were given."]


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return markdown_table(headers, [[printable(cell) for cell in row] for row in rows]).splitlines()
