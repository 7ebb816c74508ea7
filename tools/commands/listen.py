"""Listen, and let the camera sleep until hands are heard at work; pictures and events go into one folder.

example: edgemem listen --audio mic --camera 0
         edgemem listen --audio kitchen.wav --camera frames/ --speed max
         arecord -f S16_LE -r 16000 -t raw | edgemem listen --audio - --rate 16000 --camera none
         edgemem listen --pause       (from anywhere: nothing is heard or taken until --resume)
         edgemem listen train CLIPS/  (a head of your own, from your own sounds)
Nothing leaves this device, and sound is only stored with --store-audio. Ctrl-C ends it. `edgemem events` shows the log.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from edgemem.tools import listen_train
from edgemem.tools.options import file_path, positive, whole
from edgemem.tools.verbs import Verb, dispatch_verbs

if TYPE_CHECKING:
    from edgemem.runtime.capture.capture import Capture
    from edgemem.runtime.capture.event import Event
    from edgemem.runtime.capture.reports import Statistics
    from edgemem.runtime.capture.settings import CaptureSettings
    from edgemem.runtime.capture.sources.pcm_stream import PcmFormat
    from edgemem.tools.listen_view import StatusLine

_TRIGGER = {
    "open": ("open_at", "the camera wakes at this score of hands at work, 0 to 1 (0.6)"),
    "close": ("close_at", "and sleeps once the score has stayed below this (0.42)"),
    "hold": ("hold_s", "for so many seconds (0.48)"),
    "smoothing": ("smoothing_s", "seconds over which scores are averaged (0)"),
    "habituation": ("habituation_s", "seconds after which what is heard all the time counts by half; 0: never (30)"),
    "interval": ("interval_s", "seconds to the second picture while it is awake (1)"),
    "slowing": ("slowing", "and from each to the next so many times as long (2)"),
    "longest-interval": ("longest_interval_s", "but no longer (8)"),
    "refractory": ("refractory_s", "no two pictures are closer, in seconds (0.5)"),
    "heartbeat": ("heartbeat_s", "a picture after so many seconds without one; 0 for none (60)"),
    "pre-roll": ("pre_roll_s", "seconds to look back at an opening; then the camera never sleeps (0)"),
}


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--audio", default="mic", metavar="SPEC", help="mic, mic:NAME, a sound file, or - (mic)")
    parser.add_argument("--camera", default="0", metavar="SPEC", help="a number, images' folder, video or none (0)")
    where = "where events and frames go (default: $XDG_STATE_HOME/edgemem/listen, else ~/.local/state/edgemem/listen)"
    parser.add_argument("--log", type=file_path, metavar="DIR", help=where)
    parser.add_argument("--speed", type=_speed, default=1.0, metavar="X", help="of a recording: 1, 20 ... or max (1)")
    parser.add_argument("--head", type=file_path, metavar="FILE", help="weights from edgemem listen train")
    parser.add_argument("--days", type=whole, default=30, metavar="N", help="events are kept so long; 0: always (30)")
    parser.add_argument("--store-audio", action="store_true", help="also keep 5 s of sound around each opening")
    parser.add_argument("--json", action="store_true", help="one JSON object for each event, one a line")
    group = parser.add_argument_group("trigger")
    for flag, (name, text) in _TRIGGER.items():
        group.add_argument(f"--{flag}", dest=name, type=float, metavar="X", help=text)
    group = parser.add_argument_group("raw sound, for --audio -")
    group.add_argument("--rate", type=positive, metavar="HZ", help="samples a second")
    group.add_argument("--channels", type=positive, metavar="N", help="interleaved (1)")
    group.add_argument("--encoding", choices=("s16", "s32", "f32"), help="of a sample, little-endian (s16)")
    group = parser.add_argument_group("instead of listening")
    instead = group.add_mutually_exclusive_group()
    instead.add_argument("--list", action="store_true", help="show microphones and cameras")
    instead.add_argument("--pause", action="store_true", help="have whoever listens into --log pause")
    instead.add_argument("--resume", action="store_true", help="and go on")
    dispatch_verbs(parser, {"train": Verb(listen_train.__doc__ or "", listen_train.configure, listen_train.run)})


def run(args: argparse.Namespace) -> int:
    from edgemem.runtime.capture.capture import Capture
    from edgemem.tools.listen_view import StatusLine

    if args.list:
        return _list_devices()
    folder = _log_folder(args)
    if args.pause or args.resume:
        return _switch(folder, on=args.pause)
    settings, pcm = _settings(args), _pcm(args)
    interval_s = settings.trigger.interval_s
    camera = None if args.camera == "none" else args.camera
    with Capture.open(args.audio, camera, folder, settings, speed=args.speed, head=args.head, pcm=pcm) as capture:
        _say_what_is_stored(args, folder)
        live = False if args.json else None
        try:
            with StatusLine(capture.statistics, interval_s, lambda: capture.pausing.is_on, live=live) as status:
                capture.on_hop(status.hear)
                unread: list[BrokenPipeError] = []
                capture.on_event(_unless_unread(_event_lines(status, capture, as_json=args.json), capture, unread))
                capture.run()
            if unread:
                raise unread[0]
        finally:
            if capture.statistics.elapsed_s:
                _print_summary(capture.statistics, interval_s, as_json=args.json)
    return 0


def _event_lines(status: StatusLine, capture: Capture, *, as_json: bool) -> Callable[[Event], None]:
    """Writes each event, and once each time that the log begins to refuse them."""
    import json

    from edgemem.tools.console import note
    from edgemem.tools.event_export import event_facts
    from edgemem.tools.listen_view import event_text

    refused = False

    def show(event: Event) -> None:
        nonlocal refused
        facts = json.dumps(event_facts(event), ensure_ascii=False, allow_nan=False) if as_json else event_text(event)
        status.write(facts)
        problem = capture.log_problem
        if problem is not None and not refused:
            note(f"[{problem}; listening goes on, in memory alone]")
        refused = problem is not None

    return show


def _unless_unread(
    show: Callable[[Event], None], capture: Capture, unread: list[BrokenPipeError]
) -> Callable[[Event], None]:
    """Ends the capture, which outlives what its callbacks raise, once nobody reads what `show` writes."""

    def show_if_read(event: Event) -> None:
        try:
            show(event)
        except BrokenPipeError as problem:
            unread.append(problem)
            capture.stop()

    return show_if_read


def _print_summary(statistics: Statistics, interval_s: float, *, as_json: bool) -> None:
    from edgemem.tools.console import note, print_facts
    from edgemem.tools.listen_view import summary_facts

    facts = summary_facts(statistics, interval_s)
    if as_json:
        note("; ".join(f"{name}: {value}" for name, value in facts))
    else:
        print_facts(facts)


def _say_what_is_stored(args: argparse.Namespace, folder: Path) -> None:
    from edgemem.tools.console import note

    seen = "no camera" if args.camera == "none" else f"camera {args.camera}"
    note(f"listening to {args.audio}, {seen}; events and frames go to {folder}, and nothing leaves this device")
    if args.store_audio:
        note(f"SOUND IS STORED: 5 s around each opening, in {folder / 'audio'}")


def _settings(args: argparse.Namespace) -> CaptureSettings:
    from edgemem.runtime.capture.log_settings import LogSettings
    from edgemem.runtime.capture.settings import CaptureSettings
    from edgemem.runtime.capture.trigger import TriggerSettings

    if args.pre_roll_s and args.speed != 1.0:
        args.usage_error("--pre-roll needs --speed 1: the camera's ring is filled in real time")
    chosen = {name: getattr(args, name) for name, _ in _TRIGGER.values()}
    trigger = TriggerSettings(**{name: value for name, value in chosen.items() if value is not None})
    return CaptureSettings(trigger, log=LogSettings(retention_days=args.days), store_audio=args.store_audio)


def _pcm(args: argparse.Namespace) -> PcmFormat | None:
    from edgemem.runtime.capture.sources.pcm_stream import PcmFormat

    if args.audio != "-":
        for flag in ("rate", "channels", "encoding"):
            if getattr(args, flag) is not None:
                args.usage_error(f"--{flag} is for --audio -: other sources say it themselves")
        return None
    if args.rate is None:
        args.usage_error("--audio - needs --rate: raw samples do not say what they are")
    return PcmFormat(args.rate, args.channels or 1, args.encoding or "s16")


def _log_folder(args: argparse.Namespace) -> Path:
    from edgemem.tools.log_folder import default_log_folder

    return Path(args.log or default_log_folder())


def _switch(folder: Path, *, on: bool) -> int:
    from edgemem.runtime.capture.pause import PauseSwitch

    switch = PauseSwitch(folder)
    if on:
        switch.turn_on()
        print(f"paused: whoever listens into {folder} hears and takes nothing until `edgemem listen --resume`")
    else:
        switch.turn_off()
        print(f"whoever listens into {folder} goes on")
    return 0


def _list_devices() -> int:
    from edgemem.runtime.capture.sources.portaudio import list_microphones
    from edgemem.runtime.errors import DeviceError
    from edgemem.tools.console import note, print_table

    cameras = sorted(str(path) for path in Path("/dev").glob("video*"))
    print_table("cameras", ("device",), [(path,) for path in cameras] or [("none found",)])
    try:
        microphones = list_microphones()
    except DeviceError as problem:
        note(str(problem))
        return 1
    rows = [(each.index, each.name, each.channels, f"{each.rate_hz} Hz", "mic" * each.default) for each in microphones]
    print_table("microphones", ("number", "name", "channels", "rate", ""), rows)
    return 0


def _speed(text: str) -> float | None:
    if text == "max":
        return None
    try:
        speed = float(text)
    except ValueError:
        speed = math.nan
    if not 0 < speed < math.inf:
        raise argparse.ArgumentTypeError(f"{text!a} is neither a number over 0 nor max")
    return speed
