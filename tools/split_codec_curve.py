"""Measure what the codec does to the hidden states of PACKAGE: bytes a token against KL, for each of its parts.

example: edgemem split codec smollm2-135m --text book.txt --at 5,15,25 --out codec
At each split it is calibrated on windows from all over the text, and measured on others between them. It writes
record.json, table.md and report.html.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from contextlib import closing
from typing import TYPE_CHECKING

from edgemem.tools.options import add_model, file_path, model_name, names, positive

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgemem.runtime.package import Package
    from edgemem.tools.split_codec_record import Record, SplitCurve

_CONTEXT = 256
_TOKENS_HELP = "calibrated on, and as many measured on (1024); each needs four bytes for every token of the vocabulary"


def configure(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument("--text", type=file_path, required=True, metavar="FILE", help="UTF-8 text")
    parser.add_argument("--at", type=_splits, metavar="LIST", help="splits (five, evenly through the model)")
    parser.add_argument("--tokens", type=positive, default=1024, metavar="N", help=_TOKENS_HELP)
    parser.add_argument("--limit", type=float, default=0.01, metavar="NATS", help="KL a token, on the mean (0.01)")
    parser.add_argument("--out", type=file_path, metavar="DIR", help="write record, tables and report here")
    parser.add_argument("-t", "--threads", type=positive, metavar="N", help="default: the physical cores")
    parser.add_argument("--json", action="store_true", help="print one object")


def run(args: argparse.Namespace) -> int:
    from edgemem.profiles.plain import to_plain
    from edgemem.runtime.package import Package
    from edgemem.tools.console import print_json, print_table
    from edgemem.tools.source import locate_package
    from edgemem.tools.split_codec_report import html, markdown, tables_of
    from edgemem.tools.split_report import write_report

    with Package.open(locate_package(model_name(args))) as package:
        record = _measure(package, args)
    if args.json:
        print_json(to_plain(record))
    else:
        for table in tables_of(record):
            print_table(table.title, table.headers, table.rows)
            print(f"  {table.note}\n")
    if args.out is not None:
        write_report(args.out, record, markdown(record), lambda: html(record))
    return 0


def _measure(package: Package, args: argparse.Namespace) -> Record:
    from edgemem.runtime.tokenizer import Tokenizer
    from edgemem.tools.console import progress_bar
    from edgemem.tools.split_codec_record import FORMAT, Record
    from edgemem.tools.split_states import spread_windows

    layers = package.model.layers
    splits = args.at or tuple(sorted({max(1, round(layers * part / 6)) for part in range(1, 6)}))
    context = min(_CONTEXT, package.manifest.max_context, args.tokens)
    windows = spread_windows(args.text, Tokenizer.open(package), tokens=2 * args.tokens, context=context)
    if len(windows) < 2:
        args.usage_error(f"the text is too short: two windows of {context} tokens are needed")
    curves = []
    with progress_bar(quiet=args.json) as progress:
        for split in splits:
            curves.append(_curve(package, split, windows, args, _stage(progress, split)))
    return Record(FORMAT, _subject(package, args, windows), _conditions(package, args), args.limit, tuple(curves))


def _curve(
    package: Package,
    split: int,
    windows: list[NDArray[np.int32]],
    args: argparse.Namespace,
    progress: Callable[[float], None],
) -> SplitCurve:
    from edgemem.runtime.native_engine import NativeEngine
    from edgemem.tools.split_codec_measure import CodecBench
    from edgemem.tools.split_states import SplitDivergence, states_at

    states = states_at(package, split, windows, args.threads)
    calibration_states, other_states = states[::2], states[1::2]
    layers, capacity = (split, package.model.layers), max(map(len, windows))
    with closing(NativeEngine(package, layers=layers, capacity=capacity, threads=args.threads)) as back:
        calibration, held_out = ((part, SplitDivergence(back, part)) for part in (calibration_states, other_states))
        return CodecBench(calibration, held_out, args.limit, time.perf_counter).curve(split, progress)


def _subject(package: Package, args: argparse.Namespace, windows: list[NDArray[np.int32]]) -> dict[str, str]:
    from edgemem.profiles.plain import printable
    from edgemem.runtime.safe_files import sha256_of

    with args.text.open("rb") as file:
        text_hash = sha256_of(file.fileno())
    return {
        "package": printable(package.manifest.name),
        "weights sha256": package.manifest.model_hash,
        "text": printable(args.text.name),
        "text sha256": text_hash,
        "tokens calibrated on": str(sum(map(len, windows[::2]))),
        "tokens measured on": str(sum(map(len, windows[1::2]))),
    }


def _conditions(package: Package, args: argparse.Namespace) -> dict[str, str]:
    from edgemem.runtime.machine import usable_cores
    from edgemem.tools.split_report import stated_conditions

    engine = f"native, fp16 keys and values, {args.threads or usable_cores()} threads"
    return stated_conditions(package, _CONTEXT, engine)


def _stage(progress: Callable[[str, float], None], split: int) -> Callable[[float], None]:
    return lambda share: progress(f"split {split}", share)


def _splits(text: str) -> tuple[int, ...]:
    return tuple(positive(part) for part in names(text))
