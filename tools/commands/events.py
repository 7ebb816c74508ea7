"""Look at what `edgemem listen` logged: events and frames, which lie in one folder and nowhere else.

example: edgemem events list --since 2h --kind trigger --outcome taken
         edgemem events show 17
         edgemem events export --format jsonl --frames album -o events.jsonl
         edgemem events prune --days 7
Nothing is sent anywhere. A log can be read while the listener writes it; to forget all of it, remove the folder.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, get_args

from edgemem.runtime.capture.event import Kind, Outcome
from edgemem.tools.moments import MOMENT_HELP, moment
from edgemem.tools.options import file_path, positive

if TYPE_CHECKING:
    from edgemem.runtime.capture.event import Event
    from edgemem.runtime.capture.event_log import EventLog

_UNITS = {"kB": 1000, "MB": 1000**2, "GB": 1000**3}
_LONGEST_CELL = 72


def configure(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    listing = _verb(verbs, "list", _list, "the newest events, in a table")
    _add_choice(listing)
    listing.add_argument("-n", "--number", type=positive, default=20, metavar="N", help="at most N events (20)")
    listing.add_argument("--json", action="store_true", help="one JSON object")
    show = _verb(verbs, "show", _show, "all that is known of one event")
    show.add_argument("id", type=positive, metavar="ID", help="its number, from the list")
    show.add_argument("--json", action="store_true", help="one JSON object")
    export = _verb(verbs, "export", _export, "write events, oldest first, and their frames")
    _add_choice(export)
    export.add_argument(
        "--format",
        choices=("jsonl", "csv"),
        default="jsonl",
        help="jsonl (default) or csv, where a text that a spreadsheet would run has a ' before it",
    )
    export.add_argument("-o", "--output", type=file_path, metavar="FILE", help="where to (default: standard output)")
    export.add_argument("--frames", type=file_path, metavar="DIR", help="also copy the frames, beneath this folder")
    prune = _verb(verbs, "prune", _prune, "remove what is old, or more than you want to keep")
    prune.add_argument("--days", type=positive, metavar="N", help="remove events older than N days, and their frames")
    prune.add_argument(
        "--size", type=_size, metavar="SIZE", help="remove the oldest frames until 500MB, 2GB ... are left"
    )
    prune.add_argument("-y", "--yes", action="store_true", help="do not ask")
    stats = _verb(verbs, "stats", _stats, "how many events there are of each kind and outcome, and their size")
    stats.add_argument("--json", action="store_true", help="one JSON object")


def run(args: argparse.Namespace) -> int:
    return int(args.verb(args))


def _verb(verbs: Any, name: str, run_verb: Any, summary: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = verbs.add_parser(name, help=summary, description=summary)
    where = "the log's folder (default: $XDG_STATE_HOME/edgemem/listen, else ~/.local/state/edgemem/listen)"
    parser.add_argument("--log", type=file_path, metavar="DIR", help=where)
    parser.set_defaults(verb=run_verb)
    return parser


def _add_choice(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--since", type=moment, metavar="WHEN", help=f"from then on: {MOMENT_HELP}")
    parser.add_argument("--until", type=moment, metavar="WHEN", help="before then")
    kinds, outcomes = get_args(Kind), get_args(Outcome)
    parser.add_argument("--kind", action="append", choices=kinds, default=[], help="only these; may be repeated")
    parser.add_argument("--outcome", action="append", choices=outcomes, default=[], help="likewise")


def _size(text: str) -> int:
    match = re.fullmatch(r"(\d{1,6})(kB|MB|GB)", text, re.ASCII)
    if match is None or not int(match[1]):
        raise argparse.ArgumentTypeError(f"{text!a} is no size such as 500MB or 2GB")
    return int(match[1]) * _UNITS[match[2]]


def _list(args: argparse.Namespace) -> int:
    from edgemem.tools.console import print_json, print_table
    from edgemem.tools.event_export import event_facts

    with _open(args) as log:
        events = list(_chosen(log, args, newest_first=True, limit=args.number))
        if args.json:
            print_json({"log": str(log.folder), "events": [event_facts(event) for event in events]})
        elif events:
            print_table("", ("id", "time", "kind", "outcome", "score", "heard", "what"), [_cells(e) for e in events])
        else:
            empty = next(log.events(limit=1), None) is None
            print(f"{'nothing has been logged yet' if empty else 'no event is of that choice'} in {log.folder}")
    return 0


def _show(args: argparse.Namespace) -> int:
    from edgemem.runtime.errors import SettingsError
    from edgemem.tools.console import print_facts, print_json
    from edgemem.tools.event_export import class_text, event_facts

    with _open(args) as log:
        event = log.find(args.id)
    if event is None:
        raise SettingsError("there is no such event", where=log.folder, got=args.id, do="see: edgemem events list")
    frame = None if event.frame is None else log.folder / event.frame
    facts = event_facts(event)
    if args.json:
        print_json({**facts, "frame_path": None if frame is None else str(frame.absolute())})
        return 0
    shown = {**facts, "classes": class_text(event) or None, "frame": frame}
    if frame is not None and not frame.is_file():
        shown["frame"] = f"{frame} (missing)"
    print_facts([(name, _one_line(str(value))) for name, value in shown.items() if value is not None])
    return 0


def _export(args: argparse.Namespace) -> int:
    from edgemem.runtime.safe_files import SafeFolder
    from edgemem.tools.console import note
    from edgemem.tools.event_export import comma_separated, copy_frame, json_lines, writing

    copied = missing = 0
    with _open(args) as log, SafeFolder(log.folder) as folder:

        def with_frames() -> Iterator[Event]:
            nonlocal copied, missing
            for event in _chosen(log, args):
                if args.frames is not None and event.frame is not None:
                    there = copy_frame(folder, event, args.frames)
                    copied, missing = copied + there, missing + (not there)
                yield event

        lines = (comma_separated if args.format == "csv" else json_lines)(with_frames())
        with nullcontext(sys.stdout) if args.output is None else writing(args.output) as file:
            count = sum(1 for line in lines if file.write(line)) - (args.format == "csv")
    frames = f", {copied} frames copied to {args.frames}" if args.frames is not None else ""
    note(f"{count} events{frames}{f', {missing} frames missing' if missing else ''}")
    return 0


def _prune(args: argparse.Namespace) -> int:
    from edgemem.profiles.units import size_text
    from edgemem.runtime.capture.event_log import EventLog
    from edgemem.runtime.capture.log_settings import LogSettings

    if args.days is None and args.size is None:
        args.usage_error("say what is to go: --days N, --size SIZE or both")
    settings = LogSettings(retention_days=args.days or 0, size_cap_bytes=args.size or 0)
    with _open(args) as log:  # which is to be there already
        folder = log.folder
    what = [f"events older than {args.days} days"] * (args.days is not None)
    what += [f"the oldest frames beyond {size_text(args.size or 0)}"] * (args.size is not None)
    if not args.yes and not _agreed(f"remove {' and '.join(what)} from {folder}? [y/N] ", args):
        print("nothing was removed")
        return 1
    with EventLog.open(folder, settings) as log:
        gone = log.prune()
    print(f"removed: {gone.events} events, {gone.frames} frames of {size_text(gone.frame_bytes)}")
    return 0


def _stats(args: argparse.Namespace) -> int:
    from edgemem.profiles.units import size_text
    from edgemem.tools.console import print_facts, print_json, print_table
    from edgemem.tools.moments import local_text

    with _open(args) as log:
        counts, sizes = log.counts(), log.sizes()
        ends = [next(log.events(newest_first=newest, limit=1), None) for newest in (False, True)]
    total, times = sum(counts.values()), [None if end is None else local_text(end.at) for end in ends]
    rows = sorted(((kind, outcome or "", count) for (kind, outcome), count in counts.items()), key=_by_kind)
    if args.json:
        print_json(
            {
                "log": str(log.folder),
                "events": total,
                "counts": [{"kind": kind, "outcome": outcome or None, "count": count} for kind, outcome, count in rows],
                "first": times[0],
                "last": times[1],
                "frames": sizes.frames,
                "frame_bytes": sizes.frame_bytes,
                "database_bytes": sizes.database_bytes,
            }
        )
        return 0
    print_facts(
        [
            ("log", log.folder),
            ("events", f"{total}, from {times[0]} to {times[1]}" if total else "none yet"),
            ("frames", f"{sizes.frames}, {size_text(sizes.frame_bytes)}"),
            ("database", size_text(sizes.database_bytes)),
        ]
    )
    if rows:
        print_table("", ("kind", "outcome", "events"), rows)
    return 0


def _open(args: argparse.Namespace) -> EventLog:
    from edgemem.runtime.capture.event_log import EventLog
    from edgemem.tools.log_folder import default_log_folder

    return EventLog.open(args.log or default_log_folder(), read_only=True)


def _chosen(log: EventLog, args: argparse.Namespace, **order: Any) -> Iterator[Event]:
    return log.events(args.since, args.until, args.kind, args.outcome, **order)


def _cells(event: Event) -> list[str]:
    from edgemem.tools.event_export import class_text
    from edgemem.tools.moments import local_text

    lost = None if event.lost_s is None else f"{event.lost_s:.2f} s lost"
    what = "; ".join(filter(None, (event.caption, lost, event.reason, event.frame)))
    score = "" if event.score is None else f"{event.score:.2f}"
    texts = (class_text(event, most=2), what)
    times = [str(event.id), local_text(event.at)]
    return [*times, event.kind, event.outcome or "", score, *(_one_line(text, _LONGEST_CELL) for text in texts)]


def _one_line(text: str, most: int | None = None) -> str:
    """A stranger's text, safe to print, on one line of at most so many characters."""
    from edgemem.tools.memory_view import visible

    if most is not None and len(text) > most:
        text = f"{text[: most - 1]}…"
    return visible(text.replace("\n", "⏎").replace("\t", " "))


def _by_kind(row: tuple[str, str, int]) -> tuple[int, str]:
    return get_args(Kind).index(row[0]), row[1]


def _agreed(question: str, args: argparse.Namespace) -> bool:
    if not sys.stdin.isatty():
        args.usage_error("prune asks first: give --yes where nobody can answer")
    return input(question).strip().lower() in ("y", "yes")
