"""Measure how near decoding comes to what this device's memory allows, and where the rest of the time goes.

example: edgemem profile smollm2-135m
         edgemem profile qwen2.5-7b --weights int4,int8 --out profile   (random weights: judges the device, no model)
         edgemem profile smollm2-135m --contexts 512,2048,4096,8192,16384 --sessions 10 --out profile   (the full grid)
The same command with the same --out goes on where it was stopped. Other verbs, each with its own --help:
         edgemem profile compare A.json B.json                     two runs side by side
         edgemem profile predict --device NAME --shape NAME        an estimate for a device that is not here
         edgemem profile report RECORD.json                        the HTML report of a record
         edgemem profile devices                                   the devices whose datasheets are known
A package that is called like a verb is given by its path, ./compare.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from edgemem.tools.options import file_path, names, positive
from edgemem.tools.profile_flags import add_device_files, add_formats
from edgemem.tools.profile_verbs import VERBS
from edgemem.tools.verbs import dispatch_verbs

if TYPE_CHECKING:
    from edgemem.profiles.environment import Environment
    from edgemem.profiles.profiler import Outcome, Progress
    from edgemem.profiles.settings import ProfileSettings

_CONTEXTS, _SESSIONS, _STEPS = (512, 2048), 5, 64  # some two minutes for a small model on two cores
_QUICK_CONTEXTS, _QUICK_SESSIONS, _QUICK_STEPS = (512,), 3, 32


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", metavar="PACKAGE|SHAPE", help="a compiled package, or a well-known model's name")
    _add_grid(parser)
    random = parser.add_argument_group("random weights, where SHAPE is not compiled or --weights is given")
    random.add_argument(
        "--weights", type=names, metavar="LIST", help="of int4 (default), int8, bf16, fp16, int4-g128 ..."
    )
    random.add_argument("--cache", type=file_path, metavar="DIR", help="where they are kept (the user's cache)")
    parser.add_argument("--device", metavar="NAME", help="take this device's datasheet: see edgemem profile devices")
    add_device_files(parser)
    parser.add_argument(
        "--out", type=file_path, metavar="DIR", help="write record, tables and report; resume what is there"
    )
    add_formats(parser, "json", "jsonl", "csv", "md")
    dispatch_verbs(parser, VERBS)


def _add_grid(parser: argparse.ArgumentParser) -> None:
    grid = parser.add_argument_group("what is measured")
    grid.add_argument(
        "--engines", type=names, default=["native", "onnx"], metavar="LIST", help="of native,onnx,cuda,tensorrt"
    )
    grid.add_argument("--contexts", type=_numbers, metavar="LIST", help="KV slots filled before timing (512,2048)")
    grid.add_argument("--sessions", type=positive, metavar="N", help=f"fresh processes a cell ({_SESSIONS})")
    grid.add_argument("--steps", type=positive, metavar="N", help=f"timed steps a session ({_STEPS})")
    grid.add_argument(
        "--quick", action="store_true", help="context 512, 3 sessions of 32 steps where not said otherwise"
    )
    grid.add_argument("--graphs", choices=("ab", "on", "off"), default="ab", help="CUDA graphs: both ways (ab), or one")
    threads = os.environ.get("EDGEMEM_THREADS") or None
    grid.add_argument(
        "-t",
        "--threads",
        type=positive,
        default=threads,
        metavar="N",
        help="default: EDGEMEM_THREADS, else the physical cores",
    )
    grid.add_argument("--kv", choices=("fp16", "int8"), help="keys and values of native and cuda (fp16)")
    grid.add_argument("--seed", type=_whole, default=0, metavar="N", help="of prompt, order and random weights (0)")


def run(args: argparse.Namespace) -> int:
    from edgemem.runtime.errors import FileError
    from edgemem.tools.console import note
    from edgemem.tools.profile_output import print_record, write_files

    outcome = _measure(args)
    print_record(outcome.record, args.format)
    problem = outcome.problem
    if problem is not None:
        resume = "the same command goes on from here" if args.out is not None else "with --out DIR it could be resumed"
        note(f"stopped early, and what was measured until then is above; {resume}")
    if args.out is None:
        note("--out DIR keeps the record, and writes tables and an HTML report with plots")
    else:
        try:
            without_report = write_files(outcome.record, args.out)
            note(
                f"written to {args.out}" if without_report is None else f"written but for the report: {without_report}"
            )
        except FileError as unwritten:
            problem = problem or unwritten
    if problem is not None:
        raise problem
    return 0 if any(cell.status == "measured" for cell in outcome.record.cells) else 1


def _measure(args: argparse.Namespace) -> Outcome:
    from dataclasses import replace

    from edgemem.profiles.profiler import run_profile
    from edgemem.tools.console import progress_bar
    from edgemem.tools.profile_targets import contexts_that_fit, find_packages

    environment, settings = _environment(args), _settings(args)  # first: a wrong flag shall not cost writing a package
    with progress_bar() as progress:
        packages = find_packages(args.target, args.weights, args.seed, args.cache, progress)
        if args.contexts is None:
            fitting = contexts_that_fit(packages, settings.contexts, settings.steps)
            settings = replace(settings, contexts=fitting)
        return run_profile(settings, packages, environment, args.out, lambda now: _show(now, progress))


def _settings(args: argparse.Namespace) -> ProfileSettings:
    """As asked; the usual contexts may be longer than a package's."""
    from edgemem.profiles.settings import ProfileSettings

    steps = args.steps or (_QUICK_STEPS if args.quick else _STEPS)
    usual = _QUICK_CONTEXTS if args.quick else _CONTEXTS
    return ProfileSettings(
        engines=tuple(args.engines),
        contexts=usual if args.contexts is None else args.contexts,
        sessions=args.sessions or (_QUICK_SESSIONS if args.quick else _SESSIONS),
        steps=steps,
        graphs=args.graphs,
        threads=args.threads,
        kv=args.kv,
        seed=args.seed,
    )


def _environment(args: argparse.Namespace) -> Environment:
    """Of the GPU for the cuda engine, which is profiled by itself, else of the processor."""
    from dataclasses import replace
    from datetime import datetime, timezone

    from edgemem.profiles.arms import missing_reason
    from edgemem.profiles.devices import DeviceTable
    from edgemem.profiles.environment import Environment, device_record, engine_counter, engine_reader
    from edgemem.profiles.recognition import recognise
    from edgemem.runtime.errors import SettingsError
    from edgemem.tools.versions import run_versions

    there = [engine for engine in args.engines if missing_reason(engine) is None]
    if "cuda" in there and len(there) > 1:
        do = "--engines cuda in a run of its own; edgemem profile compare sets two records side by side"
        raise SettingsError("the engines do not read the same memory", got=", ".join(there), wanted="cuda alone", do=do)
    engine = "cuda" if "cuda" in there else "native"
    table = DeviceTable.load(args.devices)
    recognised = recognise(table, processor="gpu" if engine == "cuda" else "cpu")
    if args.device is not None:
        recognised = replace(recognised, device=table.named(args.device), reasons=())
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    with engine_reader(engine) as reader:
        device = device_record(recognised, reader, counter=engine_counter(engine))
    return Environment(now, run_versions(gpu=engine == "cuda"), device)


def _show(now: Progress, bar: Callable[[str, float], None]) -> None:
    """On a terminal a bar; in a log a line for each process."""
    from edgemem.tools.console import note

    bar("measure", now.done / now.total if now.total else 1.0)
    if now.doing and not sys.stderr.isatty():
        note(f"  {now.done + 1} of {now.total}: {now.doing}")


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(positive(part) for part in names(text))


def _whole(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0")
    return int(text)
