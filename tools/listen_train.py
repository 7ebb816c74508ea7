"""Train a head of your own: what hands at work sound like in your rooms, for `edgemem listen --head FILE`.

example: edgemem listen train CLIPS/ -o hands.safetensors
CLIPS holds hoi/ (hands at work) and bg/ (all else), sound files of 0.1 to 60 s; files that were recorded together go
into a folder of their own below either. Or it holds a metadata.csv with the columns file, label (hoi or bg) and group,
and, where known, cls, source and tier. Groups are never split: figures are of recordings that the head never heard.
Some ten recordings of either are a start, hundreds are better. A card with the figures is written beside the weights.
"""

from __future__ import annotations

import argparse
import shlex
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from edgemem.tools.options import file_path, positive, whole

if TYPE_CHECKING:
    from edgemem.tools.hands.clip_scores import ClipFigures
    from edgemem.tools.hands.settings import TrainSettings

_SEED = 7


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("clips", type=file_path, metavar="CLIPS", help="a folder of sound files")
    default = Path("hands.safetensors")
    parser.add_argument("-o", "--out", type=file_path, default=default, metavar="FILE", help=f"weights ({default})")
    parser.add_argument("--seed", type=whole, default=_SEED, metavar="N", help=f"of folds and takes ({_SEED})")
    parser.add_argument("--folds", type=positive, default=5, metavar="N", help="of the cross-validation (5)")
    parser.add_argument(
        "--without-tier", default="", metavar="NAME", help="judge clips whose tier begins so, but train on none of them"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object")


def run(args: argparse.Namespace) -> int:
    import numpy as np

    from edgemem.runtime.capture.yamnet import Ear
    from edgemem.tools.console import progress_bar
    from edgemem.tools.hands.card import head_card
    from edgemem.tools.hands.clip_scores import clip_level, fold_heads
    from edgemem.tools.hands.dataset import read_dataset
    from edgemem.tools.hands.head_file import head_bytes, write_bytes
    from edgemem.tools.hands.lessons import hear_lessons
    from edgemem.tools.hands.settings import TrainSettings
    from edgemem.tools.hands.training import check_installed

    check_installed()
    card_path = _card_path(args.out)
    settings = TrainSettings(seed=args.seed, folds=args.folds, without_tier=args.without_tier)
    dataset = read_dataset(args.clips)
    ear = Ear.open()
    with progress_bar(quiet=args.json) as progress:
        lessons = hear_lessons(dataset, ear, settings, progress)
        figures = clip_level(lessons, fold_heads(lessons, settings, progress), settings)
        progress("train", 0.0)
        head = lessons.train(np.ones(len(dataset.clips), dtype=bool), settings)
    command = _command(args)
    content = head_bytes(head, {"trained": command})
    digest = sha256(content).hexdigest()
    card = head_card(dataset, settings, figures, file=args.out.name, sha256=digest, command=command)
    write_bytes(args.out, content)
    write_bytes(card_path, card.encode())
    _show(args, settings, figures, digest)
    return 0


def _card_path(out: Path) -> Path:
    """Beside the weights. Known to be good before a minute is spent on training."""
    from edgemem.runtime.errors import SettingsError

    if out.suffix == ".md" or not out.name or out.is_dir():
        raise SettingsError("the weights need a name of their own", got=out, wanted="FILE.safetensors")
    if not out.parent.is_dir():
        raise SettingsError("there is no such folder", where=out.parent, do="make it, or choose another for -o")
    return out.with_suffix(".md")


def _command(args: argparse.Namespace) -> str:
    """As it could be typed elsewhere: folders by their last names."""
    words = ["edgemem", "listen", "train", f"{args.clips.resolve().name}/", "-o", args.out.name]
    words += ["--seed", str(args.seed), "--folds", str(args.folds)]
    return shlex.join([*words, *(["--without-tier", args.without_tier] if args.without_tier else [])])


def _show(args: argparse.Namespace, settings: TrainSettings, figures: ClipFigures, digest: str) -> None:
    from dataclasses import asdict

    from edgemem.tools.console import note, print_json, print_table
    from edgemem.tools.hands.card import HEADERS, figure_rows

    if args.json:
        print_json({"head": str(args.out), "sha256": digest, "settings": asdict(settings), "figures": asdict(figures)})
        return
    print_table("out of fold, 95 % intervals by the bootstrap over groups", HEADERS, figure_rows(figures))
    print(f"at 0.5: {figures.recall:.1%} of clips with hands, {figures.false_alarms:.1%} of the others")
    note(f"written: {args.out} and {args.out.with_suffix('.md').name}")
    note(f"use it:  edgemem listen --head {shlex.quote(str(args.out))}")
