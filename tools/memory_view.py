"""What a conversation holds, as text to look at: in the terminal or as a page, its surprisal shaded, its gaps marked.

Everything shown comes from strangers: control characters and those that turn the direction of text are made visible.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from rich.text import Text

    from edgemem.runtime.tokenizer import Tokenizer

_MOST_NATS = 12.0  # shaded fully: less likely than one in 160,000
_FAINT, _FULL = (38, 38, 38), (255, 122, 0)
_DANGEROUS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]")
_STYLE = """
body { font: 15px/1.7 system-ui, sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em; color: #1a1a1a;
  background: #fff; }
main { white-space: pre-wrap; overflow-wrap: anywhere; }
.token { background: rgba(255, 122, 0, var(--shade)); border-radius: 2px; }
.sink { font-weight: bold; } .pinned { border-bottom: 2px solid #06c; } .control { color: #777; font-size: 85%; }
.gap { color: #777; font-size: 80%; padding: 0 .4em; }
"""


@dataclass(frozen=True)
class Cell:
    """A held token. text: may be empty, as a character's first bytes have none. control: the text is its spelling.

    surprisal: in nats, nan where unknown. gap: how many tokens before it are not held any more.
    """

    text: str
    control: bool
    surprisal: float
    pinned: bool
    sink: bool
    turn: int
    place: int
    gap: int

    @property
    def shade(self) -> float:
        """From 0 to 1."""
        return 0.0 if math.isnan(self.surprisal) else min(max(self.surprisal, 0.0) / _MOST_NATS, 1.0)


def held_cells(held: NDArray[np.void], sinks: int, tokenizer: Tokenizer) -> Iterator[Cell]:
    """A cell for each of (n,) HELD."""
    from edgemem.runtime.text_stream import TextStream

    spellings = {number: text for text, number in tokenizer.controls.items()}
    stream, expected = TextStream(tokenizer), 0
    for slot, row in enumerate(held.tolist()):
        token, _, score, turn, place, pinned = row
        gap = place - expected
        if gap:
            stream = TextStream(tokenizer)  # what follows a gap does not go on with what was before
        spelling = spellings.get(token)
        text = stream.push(token) if spelling is None else spelling
        expected = place + 1
        yield Cell(visible(text), spelling is not None, score, bool(pinned), slot < sinks, turn, place, gap)


def visible(text: str) -> str:
    """The text with what a terminal or a browser would obey made visible."""
    return _DANGEROUS.sub(lambda match: _symbol(ord(match[0])), text)


def terminal_text(cells: Iterator[Cell]) -> Text:
    """For rich: surprisal is the background, sinks are bold, pins underlined."""
    from rich.text import Text

    text = Text()
    for cell in cells:
        if cell.gap:
            text.append(f" ⟨{cell.gap} gone⟩ ", "dim")
        red, green, blue = (round(low + cell.shade * (high - low)) for low, high in zip(_FAINT, _FULL, strict=True))
        front = "black" if cell.shade > 0.6 else "grey58" if cell.control else "white"
        marks = " bold" * cell.sink + " underline" * cell.pinned
        text.append(cell.text, f"{front} on rgb({red},{green},{blue}){marks}")
    return text


def page(cells: Iterator[Cell], title: str, facts: str) -> str:
    """A self-contained HTML page."""
    body = "".join(map(_span, cells))
    return (
        f"<!doctype html>\n<html lang=en><meta charset=utf-8><title>{html.escape(title)}</title>\n"
        f"<style>{_STYLE}</style>\n<h1>{html.escape(title)}</h1>\n<p>{html.escape(facts)}</p>\n"
        "<p>The stronger the colour, the more surprising the token was. <b>Bold</b>: sinks. "
        '<span class="pinned">Underlined</span>: pinned. Point at a token for its number.</p>\n'
        f"<main>{body}</main>\n</html>\n"
    )


def _span(cell: Cell) -> str:
    gap = f'<span class="gap">⟨{cell.gap} gone⟩</span>' if cell.gap else ""
    marks = "".join(f" {name}" for name in ("sink", "pinned", "control") if getattr(cell, name))
    surprisal = "unknown" if math.isnan(cell.surprisal) else f"{cell.surprisal:.2f}"
    title = f"surprisal {surprisal}, turn {cell.turn}, token {cell.place}"
    shade = f"--shade:{0.85 * cell.shade:.2f}"
    return f'{gap}<span class="token{marks}" style="{shade}" title="{title}">{html.escape(cell.text)}</span>'


def _symbol(code: int) -> str:
    if code < 0x20:
        return chr(0x2400 + code)
    return "␡" if code == 0x7F else f"<U+{code:04X}>"


def facts_of(held: NDArray[Any], sinks: int, tokens: int) -> str:
    """One line about the slots."""
    pinned = int(np.count_nonzero(held["pinned"]))
    return f"{len(held)} tokens held of {tokens} so far; {min(sinks, len(held))} sinks, {pinned} pinned"
