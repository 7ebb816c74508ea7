"""Capture: the hook. It listens, and while hands are heard at work the camera takes pictures; all of it is logged.

Every 0.48 s a window of sound is listened to on the thread that runs; the shutter's threads take the pictures and tell
of them. Nothing leaves the device, and no sound is stored unless the settings ask for it.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from edgemem.runtime.capture.audio import RATE_HZ, AudioSource, Block, Gap, Lost, Piece
from edgemem.runtime.capture.audio_clips import AudioClips
from edgemem.runtime.capture.cameras import open_camera
from edgemem.runtime.capture.cameras.ring import RingCamera, RingSettings
from edgemem.runtime.capture.event import Event
from edgemem.runtime.capture.event_log import EventLog
from edgemem.runtime.capture.head import Head
from edgemem.runtime.capture.jpeg import FrameWriter
from edgemem.runtime.capture.ledger import Ledger
from edgemem.runtime.capture.listener import Decision, Listener
from edgemem.runtime.capture.outcomes import Asked, Outcomes
from edgemem.runtime.capture.pause import CoveredCamera, PauseSwitch
from edgemem.runtime.capture.pending_takes import Ended
from edgemem.runtime.capture.picture import Camera, Picture
from edgemem.runtime.capture.reports import Captured, Hop, Statistics
from edgemem.runtime.capture.settings import CaptureSettings
from edgemem.runtime.capture.shutter import Shutter
from edgemem.runtime.capture.sources.opening import open_source
from edgemem.runtime.capture.sources.pcm_stream import PcmFormat
from edgemem.runtime.capture.yamnet import Ear
from edgemem.runtime.errors import FileError, SettingsError

_PAUSED = "paused"
_CLOSING_S = 10.0


class Capture:
    """Use as a context manager. Hops are told by the thread that runs, pictures and what became of them by another, so
    those may take their time: pictures that nobody has time for are dropped, and logged as such.

    statistics: so far. pausing: while it is on, nothing is heard or taken.
    """

    def __init__(
        self,
        source: AudioSource,
        ear: Ear,
        head: Head,
        settings: CaptureSettings | None = None,
        *,
        camera: Camera | None = None,
        log: EventLog | None = None,
        caption: Callable[[Picture], str] | None = None,
        when: Callable[[float], float] = lambda position_s: time.time(),
        waits: bool = False,
    ) -> None:
        """All that is given is the capture's, which closes it.

        camera: without one, triggers are logged as dropped. log: without one, nothing is stored. caption: what a
        picture shows; it may be slow, as callbacks may. when: the wall clock's seconds since 1970 at a position in
        seconds of the audio, which is now. waits: for every picture, as where sound is played faster than it was.
        """
        self.settings = settings or CaptureSettings()
        self.statistics = Statistics()
        self.pausing = PauseSwitch(None if log is None else log.folder)
        self._source, self._ear, self._head, self._camera, self._log = source, ear, head, camera, log
        self._when, self._waits = when, waits
        self._ledger = Ledger(log, self.statistics, when)
        self._outcomes = Outcomes(self._ledger, None if log is None else FrameWriter(log.folder), caption)
        self._clips: AudioClips | None = None
        if log is not None and self.settings.store_audio:
            days = log.settings.retention_days
            self._clips = AudioClips(log.folder, self.settings.audio_cap_bytes, days=days)
        trigger = self.settings.trigger
        if camera is None:  # a heartbeat is for its picture
            trigger = replace(trigger, heartbeat_s=0.0)
        self._listener = Listener(ear, head, trigger, self.statistics, self._heard)
        self._shutter: Shutter | None = None
        self._microphone_lost = False
        self._position = 0, 0.0  # up to where the audio is known, and since when
        self._on_hop: list[Callable[[Hop], object]] = []
        self._stopping, self._began, self._ended = threading.Event(), threading.Event(), threading.Event()
        self._cpu_began_s = 0.0

    @classmethod
    def open(
        cls,
        audio: str = "mic",
        camera: str | None = "0",
        log: Path | str | None = None,
        settings: CaptureSettings | None = None,
        *,
        speed: float | None = 1.0,
        head: Path | None = None,
        pcm: PcmFormat | None = None,
        caption: Callable[[Picture], str] | None = None,
        now: Callable[[], float] = time.time,
    ) -> Capture:
        """audio: as open_source has it, with speed and pcm. camera: as open_camera has it, or None. log: a folder.
        head: weights of one's own. now: seconds since 1970. Raises what opening each of these raises."""
        settings = settings or CaptureSettings()
        with ExitStack() as opened:
            source = open_source(audio, speed=speed, pcm=pcm)
            opened.callback(source.close)
            ear = Ear.open()
            opened.callback(ear.close)
            sees = None if camera is None else open_camera(camera)
            if sees is not None:
                opened.callback(sees.close)
            kept = None if log is None else opened.enter_context(EventLog.open(Path(log), settings.log, now=now))
            began = now()
            recorded = audio not in ("-", "mic") and not audio.startswith("mic:")
            capture = cls(
                source,
                ear,
                Head.open(head),
                settings,
                camera=sees,
                log=kept,
                caption=caption,
                when=(lambda position_s: began + position_s) if recorded else (lambda position_s: now()),
                waits=speed != 1.0,
            )
            opened.pop_all()
        return capture

    def on_capture(self, callback: Callable[[Captured], object]) -> None:
        """Tell `callback` every picture before its event is logged: what it raises is logged as the event's reason."""
        self._outcomes.on_capture.append(callback)

    def on_event(self, callback: Callable[[Event], object]) -> None:
        """Tell `callback` every event once it is logged, or could not be: then its id is 0, and `log_problem` why."""
        self._ledger.tell(callback)

    def on_hop(self, callback: Callable[[Hop], object]) -> None:
        """Tell `callback` every window that was heard."""
        self._on_hop.append(callback)

    @property
    def log_problem(self) -> FileError | None:
        """Why the last event, frame or recording was not stored; None where each was. Listening goes on."""
        return self._ledger.problem

    def run(self) -> None:
        """Listen until the source ends or `stop` is called; once. Raises what the source raises, when all is told."""
        if self._began.is_set():
            raise SettingsError("a capture runs once", do="open another")
        self._began.set()
        self._cpu_began_s = time.process_time()
        try:
            with ExitStack() as ending:
                if self._camera is not None:
                    self._shutter = self._open_shutter(self._camera)
                    ending.callback(self._shutter.close)
                ending.callback(self._source.close)
                for piece in self._unless_paused(self._source.pieces()):
                    self._tell_of(piece)
                    for decision in self._listener.take_in(piece):
                        self._ask(decision)
                for decision in () if self._stopping.is_set() else self._listener.finish():
                    self._ask(decision)
                if self._clips is not None:
                    self._ledger.try_to("recording", self._clips.finish)
        finally:
            self._stopping.set()
            self._ended.set()

    async def captures(self, waiting: int = 16) -> AsyncIterator[Captured]:
        """Run in a thread of its own, and give every capture, logged. Of those that nobody has asked for yet only the
        newest `waiting` are kept; the next says how many it `missed`. Leaving the loop stops the capture. Raises what
        `run` raises."""
        loop, queue = asyncio.get_running_loop(), asyncio.Queue[Captured | None | Exception]()
        missed = 0

        def offer(captured: Captured) -> None:
            nonlocal missed
            if queue.qsize() >= waiting:
                queue.get_nowait()
                missed += 1
            queue.put_nowait(captured)

        def run() -> None:
            ended: Exception | None = None
            try:
                self.run()
            except Exception as problem:  # noqa: BLE001 - raised again where it is awaited
                ended = problem
            loop.call_soon_threadsafe(queue.put_nowait, ended)

        self._outcomes.deliver = lambda captured: loop.call_soon_threadsafe(offer, captured)
        thread = threading.Thread(target=run, name="edgemem-capture", daemon=True)
        thread.start()
        try:
            while isinstance(captured := await queue.get(), Captured):
                before, missed = missed, 0
                yield replace(captured, missed=before)
            if captured is not None:
                raise captured
        finally:
            self.stop()
            await asyncio.shield(asyncio.to_thread(thread.join))

    def stop(self) -> None:
        """End `run`, from any thread."""
        self._stopping.set()
        self._source.close()

    def close(self) -> None:
        """Stop, wait until all is told, and let go of the log and the ear. Not to be called by a callback."""
        self.stop()
        if self._began.is_set():
            self._ended.wait(_CLOSING_S)
        elif self._camera is not None:
            self._camera.close()
        if self._log is not None:
            self._log.close()
        self._ear.close()

    def __enter__(self) -> Capture:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open_shutter(self, camera: Camera) -> Shutter:
        told = self._outcomes
        camera = CoveredCamera(camera, self.pausing)
        if pre_roll_s := self.settings.trigger.pre_roll_s:
            camera = RingCamera(camera, self._now_s, RingSettings(seconds=pre_roll_s + 2.0))
        return Shutter(camera, told.write, self.settings.shutter, on_outcome=told.tell, on_change=told.tell_change)

    def _now_s(self) -> float:
        """Where the audio is now."""
        position, since = self._position
        return position / RATE_HZ + (0.0 if self._waits else time.monotonic() - since)

    def _unless_paused(self, pieces: Iterable[Piece]) -> Iterator[Piece]:
        """While paused, what is heard is let go, unseen, as one gap in many pieces."""
        since: int | None = None
        end = 0
        for piece in pieces:
            if self._stopping.is_set():
                break
            end = piece.start if isinstance(piece, Lost) else piece.end
            if not self.pausing.is_on:
                if since is not None:
                    self._ledger.enter_gap(since, piece.start, _PAUSED)
                    since = None
                yield piece
                continue
            if since is None:
                since = piece.start
                yield Lost(since, _PAUSED)
            yield Gap(piece.start, len(piece.samples), _PAUSED) if isinstance(piece, Block) else piece
        if since is not None:
            self._ledger.enter_gap(since, end, _PAUSED)

    def _tell_of(self, piece: Piece) -> None:
        """Count a piece, and log it if it is one that was lost."""
        self.statistics.cpu_s = time.process_time() - self._cpu_began_s
        if self._clips is not None and not isinstance(piece, Block):
            self._ledger.try_to("recording", self._clips.interrupt)
        if isinstance(piece, Block):
            self._position = piece.end, time.monotonic()
            if self._clips is not None:
                self._ledger.try_to("recording", self._clips.hear, piece)
        elif isinstance(piece, Gap):
            self._position = piece.end, time.monotonic()
            if piece.reason == _PAUSED:
                self.statistics.paused_s += piece.samples / RATE_HZ
                return
            self.statistics.gaps_s += piece.samples / RATE_HZ
            self._ledger.enter_gap(piece.start, piece.end, piece.reason, "back" if self._microphone_lost else "gap")
            self._microphone_lost = False
        elif piece.reason != _PAUSED:
            self._microphone_lost = True
            self._ledger.enter_change("lost", piece.start / RATE_HZ, f"{self._source.name}: {piece.reason}")

    def _heard(self, hop: Hop) -> None:
        for callback in self._on_hop:
            self._ledger.guard(callback, hop)

    def _ask(self, decision: Decision) -> None:
        """Have a picture taken. How that ends is for the outcomes."""
        take, position_s = decision.take, decision.position_s
        at = self._when(position_s) - (position_s - take.at_s)
        asked = Asked(take.at_s, take.cause, take.score, at, decision.classes)
        if self._clips is not None and take.cause == "open":
            self._clips.want(round(position_s * RATE_HZ))
        if self._shutter is None:
            self._outcomes.tell(Ended(asked, "dropped", "no camera"))
            return
        self._shutter.take(asked)
        if self._waits:
            self._shutter.settle(self.settings.shutter.deadline_s)
