"""Measure what bounded memories keep of a long conversation, and what that is worth, on a real model.

example: edgemem eval memory -m smollm2-135m --text book.txt --out memory
         edgemem eval memory -m smollm2-135m --tasks facts --budgets 256 --out memory
Policies at equal budgets: sinks + recent against retention by surprisal, with chance and full memory beside them.
The same command with the same --out goes on where it was stopped; it writes record.json, table.md and report.html.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgemem.tools.options import add_engine, add_model, file_path, model_name, names, positive

if TYPE_CHECKING:
    from edgemem.runtime.engine import Engine
    from edgemem.runtime.package import Package
    from edgemem.tools.memory_eval.cells import Bench, Job
    from edgemem.tools.memory_eval.record import Ledger, Record
    from edgemem.tools.memory_eval.settings import EvalSettings

_USUAL_CONTEXT = 4096


def configure(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument("--text", type=file_path, metavar="FILE", help="UTF-8 text to read (made-up sentences)")
    parser.add_argument(
        "--tasks", type=names, metavar="LIST", help="of stream, grocery, dialogue, facts, speed, rps (default: all)"
    )
    parser.add_argument("--budgets", type=_numbers, metavar="LIST", help="KV slots (128,256,512,1024)")
    parser.add_argument("--seeds", type=positive, metavar="N", help="of the generated tasks (3)")
    parser.add_argument("--text-tokens", type=positive, metavar="N", help="of the perplexity stream (61000)")
    parser.add_argument("--stream-tokens", type=positive, metavar="N", help="of the speed stream (200000)")
    parser.add_argument("--quick", action="store_true", help="little of everything, to see that it works")
    parser.add_argument(
        "--out", type=file_path, metavar="DIR", help="write record, tables and report; go on from there"
    )
    parser.add_argument("--json", action="store_true", help="print one object")
    add_engine(parser, context="slots for the policy that keeps everything (4096)")


def run(args: argparse.Namespace) -> int:
    from edgemem.runtime.errors import EdgememError
    from edgemem.runtime.package import Package
    from edgemem.tools.console import progress_bar
    from edgemem.tools.memory_eval.evaluation import evaluate
    from edgemem.tools.memory_eval.record import Ledger
    from edgemem.tools.source import locate_package

    settings = _settings(args)
    with Package.open(locate_package(model_name(args))) as package, _engine(args, package) as engine:
        bench, jobs = _bench(args, settings, package, engine), _jobs(args, settings, engine)
        ledger = Ledger(_subject(args, package), _conditions(package, engine, args), args.out)
        problem: EdgememError | KeyboardInterrupt | None = None
        try:
            with progress_bar(quiet=args.json) as progress:
                evaluate(jobs, bench, ledger, progress)
        except (EdgememError, KeyboardInterrupt) as stopped:
            problem = stopped
    _report(args, ledger, jobs)
    if problem is not None:
        raise problem
    return 0


def _settings(args: argparse.Namespace) -> EvalSettings:
    from edgemem.tools.memory_eval.settings import QUICK, EvalSettings

    flags = ("budgets", "seeds", "text_tokens", "stream_tokens")
    given = {name: getattr(args, name) for name in flags if getattr(args, name) is not None}
    return replace(QUICK if args.quick else EvalSettings(), **given)


@contextmanager
def _engine(args: argparse.Namespace, package: Package) -> Iterator[Engine]:
    from edgemem.runtime.open import open_engine
    from edgemem.tools.providers import provider_names

    slots = args.ctx_size or min(package.manifest.max_context, _USUAL_CONTEXT)
    settings = {"threads": args.threads, "providers": provider_names(args.providers), "kv": args.kv}
    engine = open_engine(package, args.engine, capacity=slots, **settings)
    try:
        yield engine
    finally:
        engine.close()


def _bench(args: argparse.Namespace, settings: EvalSettings, package: Package, engine: Engine) -> Bench:
    import time

    from edgemem.runtime.tokenizer import Tokenizer
    from edgemem.tools.memory_eval.cells import Bench
    from edgemem.tools.memory_eval.filler import text_tokens
    from edgemem.tools.memory_eval.frame import TurnFrame

    tokenizer = Tokenizer.open(package)
    wanted = max(settings.text_tokens, 20 * settings.filler_tokens)
    text = text_tokens(args.text, tokenizer, wanted)
    return Bench(engine, tokenizer, TurnFrame.of(tokenizer), text, time.perf_counter)


def _jobs(args: argparse.Namespace, settings: EvalSettings, engine: Engine) -> list[Job]:
    from edgemem.runtime.errors import SettingsError
    from edgemem.tools.memory_eval.cells import SPARE
    from edgemem.tools.memory_eval.evaluation import plan
    from edgemem.tools.memory_eval.settings import PARTS

    parts = args.tasks or list(PARTS)
    for part in parts:
        if part not in PARTS:
            args.usage_error(f"--tasks: there is no {part!r}, only {', '.join(PARTS)}")
    most = engine.capacity - SPARE
    if max(settings.budgets) > most:
        raise SettingsError(
            "a budget is more than the engine has slots for",
            got=max(settings.budgets),
            wanted=f"at most {most}, as {SPARE} are for questions asked aside",
            do="choose smaller --budgets, or a larger -c",
        )
    return plan(tuple(dict.fromkeys(parts)), settings, most)


def _subject(args: argparse.Namespace, package: Package) -> dict[str, str]:
    """What all results are of."""
    from edgemem.profiles.plain import printable
    from edgemem.runtime.manifest import WEIGHTS_FILE

    return {
        "package": printable(package.manifest.name),
        "weights sha256": package.manifest.files[WEIGHTS_FILE].sha256,
        "text": "made-up sentences" if args.text is None else printable(args.text.name),
        "text sha256": "–" if args.text is None else _sha256(args.text),
    }


def _conditions(package: Package, engine: Engine, args: argparse.Namespace) -> dict[str, str]:
    from edgemem.profiles.plain import printable
    from edgemem.runtime.machine import usable_cores
    from edgemem.tools.conditions import conditions

    found = conditions(package, engine.capacity)
    return {
        "machine": printable(found["device"]),
        "threads": str(args.threads or usable_cores()),
        "engine": f"{engine.name}, {args.kv or 'fp16'} keys and values, {engine.capacity} slots",
        "precision": printable(json.dumps(found["precision"])),
        "quality": printable(json.dumps(found["quality"])),
        "versions": printable(json.dumps(found["versions"])),
    }


def _report(args: argparse.Namespace, ledger: Ledger, jobs: list[Job]) -> None:
    """Of what was asked for; the folder may hold more."""
    from edgemem.profiles.plain import to_plain
    from edgemem.tools.console import note, print_json, print_table
    from edgemem.tools.memory_eval.measures import verdicts
    from edgemem.tools.memory_eval.report import conclusions, tables_of

    found = [result for job in jobs if (result := ledger.find(job.cell)) is not None]
    record = replace(ledger.record, results=tuple(found))
    if args.json:
        judged = [asdict(verdict) for verdict in verdicts(found)]
        print_json({**to_plain(record), "planned": len(jobs), "verdicts": judged, "conclusions": conclusions(found)})
    else:
        for table in tables_of(found):
            print_table(table.title, table.headers, table.rows)
            print(f"  {table.note}\n")
        print("\n".join(conclusions(found)))
    if len(found) < len(jobs):
        resume = "with --out DIR it could be resumed" if args.out is None else "the same command goes on from here"
        note(f"stopped after {len(found)} of {len(jobs)} cells; {resume}")
    if args.out is not None:
        _write(args.out, record, len(jobs))


def _write(folder: Path, record: Record, planned: int) -> None:
    from edgemem.runtime.errors import SettingsError
    from edgemem.tools.console import note
    from edgemem.tools.memory_eval.report import html, markdown
    from edgemem.tools.profile_output import write_text

    write_text(folder / "table.md", markdown(record, planned))
    try:
        write_text(folder / "report.html", html(record, planned))
        note(f"written to {folder}")
    except SettingsError as missing:
        note(f"written to {folder} but for the report: {missing}")


def _sha256(path: Path) -> str:
    from edgemem.runtime.safe_files import sha256_of

    with path.open("rb") as file:
        return sha256_of(file.fileno())


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(positive(part) for part in names(text))
