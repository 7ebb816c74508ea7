"""A timeline as an HTML page that needs nothing else: level, score and thresholds as curves, pictures inside it."""

from __future__ import annotations

import time
from base64 import b64encode
from collections.abc import Callable, Sequence
from html import escape

from edgemem.runtime.capture.audio import HOP_SAMPLES, RATE_HZ
from edgemem.runtime.capture.event import Event
from edgemem.tools.capture_timeline import QUIETEST_DB, Timeline, time_axis
from edgemem.tools.report_page import bullets, page

_WIDTH, _LEFT = 1000, 70
_HOP_S = HOP_SAMPLES / RATE_HZ
_STYLE = """<style>
svg.timeline { width: 100%; height: auto; font: 12px system-ui, sans-serif; }
svg.timeline text { fill: var(--soft); }
.level { fill: var(--line); } .score { fill: none; stroke: var(--accent); stroke-width: 1.5; }
.threshold { stroke: var(--warn); stroke-dasharray: 4 4; } .axis { stroke: var(--line); }
.hands { fill: var(--accent); } .other { fill: var(--soft); opacity: .4; } .open { fill: var(--accent); opacity: .14; }
.frame { stroke: var(--ink); stroke-width: 1.5; }
.frames { display: grid; grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); gap: 1rem; padding: 0; }
.frames li { list-style: none; font-size: .8rem; } .frames img { width: 100%; border-radius: .4rem; }
main { max-width: 76rem; }
</style>"""


def timeline_page(
    timeline: Timeline, title: str, lines: Sequence[str], jpeg_of: Callable[[Event], bytes | None]
) -> str:
    """lines: said under the title. jpeg_of: the picture of an event that was taken; None where it is not there."""
    figures = "".join(_figure(event, jpeg_of(event)) for event in timeline.taken)
    parts = [_STYLE, bullets(lines), _plot(timeline), f'<h2>Pictures</h2><ul class="frames">{figures}</ul>']
    return page(title, "edgemem listen", parts)


def _plot(timeline: Timeline) -> str:
    """Rows from top to bottom: what is known, level, score with thresholds, pictures."""
    scale = (_WIDTH - _LEFT) / max(timeline.seconds, 1e-9)

    def x(seconds: float) -> float:
        return round(_LEFT + seconds * scale, 1)

    score_top, score_height = 190, 120

    def y(score: float) -> float:
        return round(score_top + score_height * (1 - score), 1)

    drawn = [*_known(timeline, x), *_level(timeline, x)]
    awake = [(hop.end_s - _HOP_S, hop.end_s) for hop in timeline.hops if hop.is_open]
    drawn += [
        f'<rect class="open" x="{x(start)}" y="{score_top}" width="{x(end) - x(start):.1f}" height="{score_height}"/>'
        for start, end in awake
    ]
    points = " ".join(f"{x(hop.end_s)},{y(hop.smoothed)}" for hop in timeline.hops)
    drawn.append(f'<polyline class="score" points="{points}"/>')
    for name, threshold in (("open", timeline.open_at), ("close", timeline.close_at)):
        at = y(threshold)
        drawn.append(f'<line class="threshold" x1="{_LEFT}" x2="{_WIDTH}" y1="{at}" y2="{at}"/>')
        drawn.append(f'<text x="{_LEFT - 6}" y="{at + 4}" text-anchor="end">{name} {threshold:g}</text>')
    bottom = score_top + score_height
    for event in timeline.taken:
        at = x(event.position_s)
        drawn.append(f'<line class="frame" x1="{at}" x2="{at}" y1="{bottom + 8}" y2="{bottom + 26}"/>')
    drawn += [
        _label("hands", score_top + 10),
        _label("pictures", bottom + 22),
        *_axis(timeline.seconds, x, bottom + 40),
    ]
    return f'<svg class="timeline" viewBox="0 0 {_WIDTH} {bottom + 60}" role="img">{"".join(drawn)}</svg>'


def _known(timeline: Timeline, x: Callable[[float], float]) -> list[str]:
    drawn = [_label("heard", 34)] if timeline.known else []
    for span in timeline.known:
        left, kind = x(span.start_s), "hands" if span.hands else "other"
        drawn.append(f'<rect class="{kind}" x="{left}" y="24" width="{x(span.end_s) - left:.1f}" height="12"/>')
        drawn.append(f'<text x="{left}" y="18">{escape(span.name)}</text>')
    return drawn


def _level(timeline: Timeline, x: Callable[[float], float]) -> list[str]:
    top, height = 60, 100
    drawn = [_label("level", top + 10), _label("0 dB", top + 26), _label(f"{QUIETEST_DB:g} dB", top + height)]
    for hop in timeline.hops:
        share = min(max(1 - hop.level_db / QUIETEST_DB, 0.0), 1.0)
        left, tall = x(hop.end_s - _HOP_S), round(height * share, 1)
        width = max(1.0, x(hop.end_s) - left)
        drawn.append(f'<rect class="level" x="{left}" y="{top + height - tall}" width="{width:.1f}" height="{tall}"/>')
    return drawn


def _axis(seconds: float, x: Callable[[float], float], y: int) -> list[str]:
    columns = 120
    text = time_axis(seconds, columns)
    drawn = [f'<line class="axis" x1="{_LEFT}" x2="{_WIDTH}" y1="{y - 10}" y2="{y - 10}"/>']
    return drawn + [
        f'<text x="{x(index / columns * seconds)}" y="{y + 6}">{mark}</text>' for index, mark in _words(text)
    ]


def _words(text: str) -> list[tuple[int, str]]:
    """The words of a line with the columns where they begin."""
    found, at = [], 0
    for word in text.split():
        at = text.index(word, at)
        found.append((at, word))
        at += len(word)
    return found


def _label(text: str, y: int) -> str:
    return f'<text x="{_LEFT - 6}" y="{y}" text-anchor="end">{escape(text)}</text>'


def _figure(event: Event, jpeg: bytes | None) -> str:
    when = time.strftime("%H:%M:%S", time.localtime(event.at))
    heard = ", ".join(f"{name} {score:.2f}" for name, score in event.classes)
    image = "" if jpeg is None else f'<img alt="" src="data:image/jpeg;base64,{b64encode(jpeg).decode()}">'
    score = "" if event.score is None else f", score {event.score:.2f}"
    return (
        f"<li>{image}<b>{when}</b> {escape(event.kind)}{score}<br>{escape(event.caption or '')}"
        f"<br><small>{escape(heard)}</small></li>"
    )
