"""Outcomes: what becomes of every picture that was asked for: stored, described, told and logged, once.

The shutter's threads call it; whatever a user's function raises becomes the event's reason.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import cast

from edgemem.runtime.capture.event import Event
from edgemem.runtime.capture.jpeg import Frame, FrameWriter
from edgemem.runtime.capture.ledger import Ledger
from edgemem.runtime.capture.pending_takes import CameraChange, Ended
from edgemem.runtime.capture.picture import Picture
from edgemem.runtime.capture.reports import Captured
from edgemem.runtime.capture.trigger import Take

_UNSTORED = Frame("", 0)


@dataclass(frozen=True)
class Asked(Take):
    """at: of the picture, by the wall clock. classes: as Event has them."""

    at: float
    classes: tuple[tuple[str, float], ...]


class Outcomes:
    """on_capture: told every picture before its event is logged. deliver: told it afterwards."""

    def __init__(self, ledger: Ledger, writer: FrameWriter | None, caption: Callable[[Picture], str] | None) -> None:
        """writer: without one, pictures stay in memory. caption: what a picture shows."""
        self.on_capture: list[Callable[[Captured], object]] = []
        self.deliver: Callable[[Captured], object] = lambda captured: None
        self._ledger, self._writer, self._caption = ledger, writer, caption

    def write(self, picture: Picture) -> Frame:
        """A disk that refuses does not end a capture: it then is in memory alone."""
        if self._writer is None:
            return _UNSTORED
        return self._ledger.try_to("frame", self._writer.write, picture) or _UNSTORED

    def tell(self, ended: Ended) -> None:
        """Of a take that is an Asked."""
        take, frame = cast(Asked, ended.take), ended.frame
        self._ledger.count(ended.outcome)
        event = Event(take.at, take.at_s, self._ledger.session, take.kind, ended.outcome, ended.reason, take.score)
        event = replace(event, classes=take.classes, frame=frame.path if frame and frame.path else None)
        if ended.outcome != "taken" or ended.picture is None:
            self._ledger.enter(event)
            return
        event, reasons = self._described(event, ended.picture)
        if frame is _UNSTORED and self._writer is not None:
            reasons.append("the picture could not be stored")
        for callback in self.on_capture:
            if failed := self._ledger.guard(callback, Captured(event, ended.picture)):
                reasons.append(f"a callback failed: {failed}")
        event = self._ledger.enter(replace(event, reason="; ".join(reasons) or None))
        self._ledger.guard(self.deliver, Captured(event, ended.picture))

    def tell_change(self, change: CameraChange) -> None:
        self._ledger.enter_change(change.kind, change.at_s, f"camera: {change.reason}" if change.reason else "camera")

    def _described(self, event: Event, picture: Picture) -> tuple[Event, list[str]]:
        """With the caption, or the reason why it has none."""
        if self._caption is None:
            return event, []
        captions: list[object] = []
        describe = self._caption
        failed = self._ledger.guard(lambda shown: captions.append(describe(shown)), picture)
        caption = captions[0] if captions else None
        if isinstance(caption, str):
            return replace(event, caption=caption), []
        return event, [f"no caption: {failed or type(caption).__name__}"]
