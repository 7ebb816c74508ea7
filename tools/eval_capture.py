"""Measure how well the camera is woken by hands at work: on clips, on composed streams, and what listening costs.

example: edgemem eval capture --clips CLIPS/ --out capture
         edgemem eval capture --clips CLIPS/ --energy audio_mw=12,frame_mj=180,camera_idle_mw=30
CLIPS has a metadata.csv (file, label hoi or bg, group, cls), or folders hoi/ and bg/. Without it the few clips of the
demo are used, which show that it works and prove nothing. Streams are simulated: half an hour takes seconds.
The same command with the same --out goes on where it was stopped; it writes record.json, table.md and report.html.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgemem.tools.options import file_path, names

if TYPE_CHECKING:
    from edgemem.tools.capture_eval.cost import Energy
    from edgemem.tools.capture_eval.figures import GroupFigures
    from edgemem.tools.capture_eval.record import Record

DEMO_CLIPS = Path(__file__).with_name("demo_data") / "sounds"
_ENERGY_HELP = "costs of yours, for an estimate: audio_mw=X,frame_mj=X,camera_idle_mw=X"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--clips", type=file_path, metavar="DIR", help="labelled clips (default: the demo's few)")
    parser.add_argument("--energy", metavar="LIST", help=_ENERGY_HELP)
    parser.add_argument("--quick", action="store_true", help="little of everything, to see that it works")
    parser.add_argument(
        "--out", type=file_path, metavar="DIR", help="write record, tables and report; go on from there"
    )
    parser.add_argument("--json", action="store_true", help="print one object")


def run(args: argparse.Namespace) -> int:
    from edgemem.runtime.capture.trigger import TriggerSettings
    from edgemem.runtime.capture.yamnet import MODEL_SHA256, Ear
    from edgemem.tools.capture_eval.cost import measure_cost
    from edgemem.tools.capture_eval.evaluation import Subject, evaluate
    from edgemem.tools.capture_eval.figures import groups
    from edgemem.tools.capture_eval.kept import Kept
    from edgemem.tools.capture_eval.settings import QUICK, EvalSettings
    from edgemem.tools.console import note, progress_bar
    from edgemem.tools.hands.dataset import read_dataset

    energy = _energy(args)
    settings = QUICK if args.quick else EvalSettings()
    kept = Kept(None if args.out is None else args.out / "kept")
    ear = Ear.open()
    try:
        dataset = read_dataset(DEMO_CLIPS if args.clips is None else args.clips)
        subject = Subject(dataset, ear, f"YAMNet, sha256 {MODEL_SHA256}", TriggerSettings(), measure_cost)
        with progress_bar(quiet=args.json) as progress:
            record = evaluate(subject, settings, kept, _conditions(), progress)
    except KeyboardInterrupt:
        if args.out is not None:
            note("stopped; the same command goes on from here")
        raise
    finally:
        ear.close()
    found = groups(record.captured, record.settings.interval_s, record.draws)
    _print(args, record, found, energy)
    if args.out is not None:
        _write(args.out, record, found, energy)
    return 0


def _energy(args: argparse.Namespace) -> Energy | None:
    from dataclasses import fields

    from edgemem.tools.capture_eval.cost import Energy

    if args.energy is None:
        return None
    given = dict(part.partition("=")[::2] for part in names(args.energy))
    wanted = [field.name for field in fields(Energy)]
    try:
        if sorted(given) != sorted(wanted):
            raise ValueError
        return Energy(**{name: float(text) for name, text in given.items()})
    except ValueError:
        args.usage_error(f"--energy: give a number for each of {', '.join(wanted)}")
        raise


def _conditions() -> dict[str, str]:
    from edgemem.profiles.cpu_model import cpu_model
    from edgemem.profiles.plain import printable
    from edgemem.tools.versions import run_versions

    versions = ", ".join(f"{name} {version}" for name, version in run_versions().items())
    return {"machine": printable(cpu_model()), "threads": "1", "versions": printable(versions)}


def _print(args: argparse.Namespace, record: Record, found: Sequence[GroupFigures], energy: Energy | None) -> None:
    from edgemem.profiles.plain import to_plain
    from edgemem.tools.capture_eval.report import FEW
    from edgemem.tools.capture_eval.tables import tables_of
    from edgemem.tools.console import note, print_json, print_table

    if args.json:
        print_json({**to_plain(record), "figures": to_plain(found)})
    else:
        for table in tables_of(record, found, energy):
            print_table(table.title, table.headers, table.rows)
            print(f"  {table.note}\n")
    if record.few:
        note(FEW)


def _write(folder: Path, record: Record, found: Sequence[GroupFigures], energy: Energy | None) -> None:
    from edgemem.runtime.errors import SettingsError
    from edgemem.tools.capture_eval.record import write_record
    from edgemem.tools.capture_eval.report import html, markdown
    from edgemem.tools.console import note
    from edgemem.tools.profile_output import write_text

    write_record(record, folder)
    write_text(folder / "table.md", markdown(record, found, energy))
    try:
        write_text(folder / "report.html", html(record, found, energy))
        note(f"written to {folder}")
    except SettingsError as missing:
        note(f"written to {folder} but for the report: {missing}")
