"""Text from tokens, one token at a time: UTF-8 is never split, and a stop string never shows.

What is given out, joined, is exactly what decoding all tokens at once gives, up to the stop string. It keeps a few
tokens of context, because decoders drop or add a space by what stands before.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from edgemem.runtime.errors import SettingsError

MAX_STOPS = 64
MAX_STOP_CHARACTERS = 1024
_REPLACEMENT = "\ufffd"


class Decoder(Protocol):
    """What a stream needs of a Tokenizer."""

    def decode(self, ids: Iterable[int]) -> str: ...

    def is_silent(self, token: int) -> bool: ...

    def is_raw_byte(self, token: int) -> bool: ...


class TextStream:
    """One answer's text. `push` every token, then `finish`; once `stopped`, nothing more comes."""

    def __init__(self, decoder: Decoder, stops: str | Sequence[str] = ()) -> None:
        """`stops`: strings that end the answer. Raises SettingsError for an empty, overlong or non-text one."""
        self._detokenizer = _Detokenizer(decoder)
        self._stops = _checked_stops(stops)
        self._held = ""  # the start of a stop string, perhaps
        self.stopped = False

    def push(self, token: int) -> str:
        """The text that is certain now; often that of this token, "" while something is held back."""
        return self._release(self._detokenizer.push(token))

    def finish(self) -> str:
        """The text still held back, with U+FFFD for an unfinished character."""
        text = self._release(self._detokenizer.finish())
        if self.stopped:
            return text
        text, self._held = text + self._held, ""
        return text

    def _release(self, new: str) -> str:
        if self.stopped or not self._stops:
            return "" if self.stopped else new
        text = self._held + new
        # The match that ends first counts, of those the longest: so the text does not depend on how tokens cut it.
        found = [(start + len(stop), start) for stop in self._stops if (start := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)[1]]
        keep = max(_overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


class _Detokenizer:
    """Bytes to text across tokens.

    `_window` holds the tokens of the last text given out, as context, and those after it; `_given` is how many of the
    characters that the window decodes to have been given out.
    """

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._window: list[int] = []
        self._context = 0
        self._given = 0

    def push(self, token: int) -> str:
        if self._decoder.is_silent(token):
            return ""
        self._window.append(token)
        if self._decoder.is_raw_byte(token):
            return ""  # a run of raw bytes is text or not as a whole: wait for its end
        text = self._decoder.decode(self._window)
        # Only the last replacement character can still become something else, by bytes to come.
        unfinished = text.endswith(_REPLACEMENT)
        new = text[self._given : len(text) - unfinished]
        self._given += len(new)
        if new and not unfinished:
            self._window = self._window[self._context :]
            self._context = len(self._window)
            self._given = len(self._decoder.decode(self._window))
        return new

    def finish(self) -> str:
        text = self._decoder.decode(self._window)[self._given :]
        self._given += len(text)
        return text


def _checked_stops(stops: str | Sequence[str]) -> tuple[str, ...]:
    if not isinstance(stops, (str, list, tuple)):
        raise SettingsError("stop is no text and no list of texts", got=repr(stops)[:80], wanted="() for none")
    listed = (stops,) if isinstance(stops, str) else tuple(stops)
    if len(listed) > MAX_STOPS:
        raise SettingsError("too many stop strings", got=len(listed), wanted=f"at most {MAX_STOPS}")
    for stop in listed:
        if not isinstance(stop, str) or not 0 < len(stop) <= MAX_STOP_CHARACTERS:
            wanted = f"a text of 1 to {MAX_STOP_CHARACTERS} characters"
            raise SettingsError("a stop string is empty, too long, or no text", got=repr(stop)[:80], wanted=wanted)
    return listed


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that begins `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((length for length in range(longest, 0, -1) if stop.startswith(text[-length:])), 0)
