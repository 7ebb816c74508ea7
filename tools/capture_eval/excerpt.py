"""Two minutes of a stream as they were heard and taken, to be looked at."""

from __future__ import annotations

from dataclasses import dataclass

from edgemem.runtime.capture.trigger import Trigger, TriggerSettings
from edgemem.tools.capture_eval.outcome import Event, HeardStream, capture, window_end_s

_EXCERPT_S = 120.0


@dataclass(frozen=True)
class Excerpt:
    """A piece of a stream as it was heard. at_s: when each score was known; smoothed: as the trigger had them."""

    stream: str
    at_s: tuple[float, ...]
    scores: tuple[float, ...]
    smoothed: tuple[float, ...]
    events: tuple[Event, ...]
    frames_s: tuple[float, ...]


def excerpt_of(heard: HeardStream, settings: TriggerSettings, delay_s: float) -> Excerpt:
    """The two minutes with the most events."""
    starts = [max(0.0, event.start_s - 5.0) for event in heard.events]
    first_s = max(starts, key=lambda at_s: sum(at_s <= event.start_s < at_s + _EXCERPT_S for event in heard.events))
    last_s = first_s + _EXCERPT_S
    trigger, known = Trigger(settings), []
    for index, score in enumerate(heard.scores):
        trigger.step(window_end_s(index), score)
        known.append((window_end_s(index), score or 0.0, round(trigger.smoothed, 4)))
    at_s, scores, smoothed = zip(*(one for one in known if first_s <= one[0] <= last_s), strict=True)
    frames_s = capture(heard, settings, delay_s).frames_s
    return Excerpt(
        stream=heard.key.name,
        at_s=at_s,
        scores=scores,
        smoothed=smoothed,
        events=tuple(event for event in heard.events if first_s <= event.end_s and event.start_s <= last_s),
        frames_s=tuple(frame_s for frame_s in frames_s if first_s <= frame_s <= last_s),
    )
