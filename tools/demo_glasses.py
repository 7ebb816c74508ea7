"""Glasses in a kitchen: a composed recording is listened to, pictures are taken while hands are at work, and a question
is answered from what was heard and seen.

The sounds are clips by others, see LICENSES in tools/demo_data; the head was trained on them too, so this shows how it
works and not how well: for that there is edgemem eval capture. Captions are the images' file names.
"""

from __future__ import annotations

import argparse
import shutil
import time
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from edgemem.tools.options import file_path, whole

if TYPE_CHECKING:
    from edgemem.runtime.capture.event import Event
    from edgemem.tools.capture_timeline import Timeline
    from edgemem.tools.demo_kitchen import Kitchen

_QUESTION = "Which animal did I see?"
_COLUMNS = 110
_ANSWER_TOKENS = 60


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-m", "--model", metavar="PACKAGE", help="who answers (default: the first compiled package)")
    parser.add_argument("-q", "--question", default=_QUESTION, metavar="TEXT", help=f"(default: {_QUESTION})")
    parser.add_argument("--html", type=file_path, metavar="FILE", help="write the timeline, pictures inside, as a page")
    parser.add_argument("--log", type=file_path, metavar="DIR", help="keep events and frames here (default: nowhere)")
    parser.add_argument("--speed", choices=("1", "max"), default="max", help="1 plays it for about three minutes (max)")
    parser.add_argument("--head", type=file_path, metavar="FILE", help="weights from edgemem listen train")
    parser.add_argument("--seed", type=whole, default=0, metavar="N", help="of the pauses between sounds (0)")


def run(args: argparse.Namespace) -> int:
    from edgemem.tools.demo_kitchen import Kitchen

    kitchen = Kitchen(args.seed, speed=None if args.speed == "max" else 1.0)
    with TemporaryDirectory() as scratch:
        folder = args.log or Path(scratch, "log")
        timeline = _listen(kitchen, folder, args)
        print()
        _show(timeline)
        if args.html is not None:
            _write_page(args.html, timeline, folder)
    _answer(args, timeline.taken)
    return 0


def _listen(kitchen: Kitchen, folder: Path, args: argparse.Namespace) -> Timeline:
    """Play the kitchen to a capture, showing the events as they come."""
    from edgemem.runtime.capture.capture import Capture
    from edgemem.runtime.capture.event_log import EventLog
    from edgemem.runtime.capture.head import Head
    from edgemem.runtime.capture.settings import CaptureSettings
    from edgemem.runtime.capture.yamnet import Ear
    from edgemem.tools.capture_timeline import Timeline
    from edgemem.tools.console import print_facts
    from edgemem.tools.listen_view import StatusLine, event_text, summary_facts

    settings, began = CaptureSettings(), time.time()
    trigger = settings.trigger
    timeline = Timeline(kitchen.seconds, trigger.open_at, trigger.close_at, kitchen.happenings)
    print(f"listening to {kitchen.seconds:.0f} s of {kitchen.name}, of clips that the head was trained on;")
    print("captions are the names of the images, which have nothing to do with the sounds")
    with (
        Capture(
            kitchen,
            Ear.open(),
            Head.open(args.head),
            settings,
            camera=kitchen.camera(),
            log=EventLog.open(folder, settings.log),
            caption=kitchen.caption,
            when=lambda position_s: began + position_s,
            waits=args.speed == "max",
        ) as capture,
        StatusLine(capture.statistics, trigger.interval_s, lambda: capture.pausing.is_on) as status,
    ):
        capture.on_hop(status.hear)
        capture.on_hop(timeline.hops.append)
        capture.on_event(timeline.events.append)
        capture.on_event(lambda event: status.write(event_text(event)))
        capture.run()
    print()
    print_facts(summary_facts(capture.statistics, trigger.interval_s))
    return timeline


def _show(timeline: Timeline) -> None:
    from edgemem.tools.capture_timeline import time_axis, timeline_rows

    columns = max(40, min(_COLUMNS, shutil.get_terminal_size((_COLUMNS + 16, 24)).columns - 16))
    for name, row in timeline_rows(timeline, columns):
        print(f"{name:<15} {row}".rstrip())
    print(f"{'':<15} {time_axis(timeline.seconds, columns)}")
    covered = timeline.covered
    with_frames = sum(1 for _, count in covered if count)
    print(f"\nhands were at work {len(covered)} times; {with_frames} of them have a picture")


def _write_page(path: Path, timeline: Timeline, folder: Path) -> None:
    from edgemem.tools.profile_output import write_text
    from edgemem.tools.timeline_page import timeline_page

    def jpeg_of(event: Event) -> bytes | None:
        return None if event.frame is None else (folder / event.frame).read_bytes()

    lines = ["A composed recording; the head was trained on these very clips.", "Captions are the images' file names."]
    write_text(path, timeline_page(timeline, "Glasses in a kitchen", lines, jpeg_of))
    print(f"wrote {path}")


def _answer(args: argparse.Namespace, events: list[Event]) -> None:
    """The notes that the question is about, and what a model makes of them, if there is one."""
    from edgemem.runtime.capture.notes import question_about
    from edgemem.runtime.session import Session
    from edgemem.tools.source import cache_folder, locate_package

    prompt = question_about(events, args.question)
    print(f"\nwhat the events say about it:\n\n{prompt}\n")
    compiled = sorted((cache_folder() / "packages").glob("*.edgemem"))
    package = locate_package(args.model) if args.model else next(iter(compiled), None)
    if package is None:
        print("no model is compiled yet, so nobody answers: edgemem pull smollm2-135m && edgemem compile smollm2-135m")
        return
    print(f"{package.stem}: ", end="", flush=True)
    with Session.open(package) as session:
        options: dict[str, Any] = {"max_tokens": _ANSWER_TOKENS, "stop": (". ", "\n")}
        with closing(session.stream(prompt, **options)) as answer:
            for chunk in answer:
                print(chunk.text, end="", flush=True)
    print("\n(its first sentence; a small model may well be wrong: the notes above are all that it was given)")
