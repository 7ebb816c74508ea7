"""What `edgemem listen` shows: a line that changes on a terminal, a line for each event, the sums at the end."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections.abc import Callable
from typing import TextIO

from edgemem.profiles.units import share_text
from edgemem.runtime.capture.event import Event
from edgemem.runtime.capture.reports import Hop, Statistics
from edgemem.tools.console import note

_EVERY_S = 0.25
_BAR, _QUIETEST_DB = 12, -60.0
_MARKS = {"taken": "●", "merged": "◌", "dropped": "✗", "failed": "✗"}


class StatusLine:
    """The state of now at the foot of a terminal, and lines that scroll past above it; elsewhere the lines alone.

    Any thread may call. Use as a context manager.
    """

    def __init__(
        self,
        statistics: Statistics,
        interval_s: float,
        is_paused: Callable[[], bool],
        *,
        out: TextIO | None = None,
        live: bool | None = None,
    ) -> None:
        """interval_s: between pictures of a camera that is always on. out: standard output, unless another is given.
        live: whether both it and standard error are terminals, unless said."""
        self._statistics, self._interval_s, self._is_paused = statistics, interval_s, is_paused
        self._out = sys.stdout if out is None else out
        self._live = (self._out.isatty() and sys.stderr.isatty()) if live is None else live
        self._hop: Hop | None = None
        self._paused = False
        self._lock, self._done = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._refresh, name="edgemem-status", daemon=True)

    def hear(self, hop: Hop) -> None:
        self._hop = hop

    def write(self, line: str) -> None:
        """A line above the status."""
        with self._lock:
            self._clear()
            print(line, file=self._out, flush=True)
            self._draw()

    def __enter__(self) -> StatusLine:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        with self._lock:
            self._clear()

    def _refresh(self) -> None:
        while not self._done.wait(_EVERY_S):
            paused = self._is_paused()
            if paused != self._paused:
                self._paused = paused
                with self._lock:
                    self._clear()
                    note("[paused: nothing is heard or taken]" if paused else "[listening again]")
            with self._lock:
                self._draw()

    def _clear(self) -> None:
        if self._live:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def _draw(self) -> None:
        if self._live and not self._done.is_set():
            text = status_text(self._hop, self._statistics, self._interval_s, paused=self._paused)
            width = shutil.get_terminal_size().columns - 1
            print(f"\r{text[:width]}\x1b[K", end="", file=sys.stderr, flush=True)


def status_text(hop: Hop | None, statistics: Statistics, interval_s: float, *, paused: bool) -> str:
    """`▕████▌   ▏ -38 dB  hands 0.72 open    12 taken, 97 % saved  00:14:03`."""
    elapsed = clock_text(statistics.elapsed_s)
    counts = f"{statistics.taken} taken, {share_text(statistics.saved(interval_s))} saved"
    if paused or hop is None:
        return f"{'paused' if paused else 'no sound yet':<36}  {counts}  {elapsed}"
    share = min(max(1.0 - hop.level_db / _QUIETEST_DB, 0.0), 1.0)
    filled, half = divmod(round(2 * _BAR * share), 2)
    bar = f"{'█' * filled}{'▌' * half}".ljust(_BAR)
    state = hop.flaw or ("open" if hop.is_open else "closed")
    return f"▕{bar}▏{hop.level_db:4.0f} dB  hands {hop.smoothed:.2f} {state:<8}  {counts}  {elapsed}"


def event_text(event: Event) -> str:
    """`14:03:10  ● trigger taken     0.82  dishes, pots, and pans, cutlery  frames/...jpg`."""
    when = time.strftime("%H:%M:%S", time.localtime(event.at))
    what = " ".join(filter(None, (event.kind, event.outcome)))
    score = "" if event.score is None else f"{event.score:.2f}"
    lost = None if event.lost_s is None else f"{event.lost_s:.2f} s"
    heard = ", ".join(name.lower() for name, _ in event.classes[:2])
    details = "; ".join(filter(None, (heard, event.caption, lost, event.reason, event.frame)))
    return f"{when}  {_MARKS.get(event.outcome or '', '·')} {what:<17} {score:>4}  {printable(details)}".rstrip()


def summary_facts(statistics: Statistics, interval_s: float) -> list[tuple[str, object]]:
    """The sums, by name. interval_s: between pictures of a camera that is always on."""
    elapsed_s = statistics.elapsed_s
    lost = [f"{statistics.gaps_s:.1f} s lost in gaps"] if statistics.gaps_s else []
    if statistics.paused_s:
        lost.append(f"{clock_text(statistics.paused_s)} paused")
    ends = [f"{getattr(statistics, name)} {name}" for name in ("taken", "merged", "dropped", "failed")]
    facts: list[tuple[str, object]] = [
        ("audio", "; ".join([f"{clock_text(elapsed_s)}", *lost])),
        ("windows", f"{statistics.hops}, {statistics.flawed} of them not to be believed"),
        ("pictures", ", ".join(ends)),
        (
            "saved",
            f"{share_text(statistics.saved(interval_s))} of the {elapsed_s / interval_s:.0f} pictures of a camera that "
            f"takes one every {interval_s:g} s",
        ),
        (
            "CPU",
            f"{100 * statistics.cpu_s / max(elapsed_s, 1e-9):.2f} % of one core, as seconds of it per second of audio",
        ),
    ]
    if statistics.unlogged:
        facts.append(("not logged", f"{statistics.unlogged} events"))
    if statistics.callback_failures:
        facts.append(("failures", f"{statistics.callback_failures} of functions that were told"))
    return facts


def clock_text(seconds: float) -> str:
    """`1:04:05`."""
    minutes, second = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{second:02}"


def printable(text: str) -> str:
    """One line that a terminal does not obey: captions and reasons come from anywhere."""
    return "".join(letter if letter.isprintable() else " " for letter in text)
