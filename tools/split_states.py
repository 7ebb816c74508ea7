"""A text's hidden states at a split, and how far what is made of coded states diverges from what is made of fp16 ones.

The layers behind the split take one state at a time, as they do in decoding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgemem.runtime.engine import Engine
from edgemem.runtime.errors import EngineError
from edgemem.runtime.native_engine import NativeEngine
from edgemem.runtime.package import Package
from edgemem.runtime.tokenizer import Tokenizer
from edgemem.split.codec import Codec, CodecSettings
from edgemem.tools.evaluate import text_windows

_MOST_TEXT_TOKENS = 400_000  # of a text, from whose beginning the windows are spread
States = Sequence[NDArray[np.float32]]  # each (n, hidden), of one window of text


def spread_windows(path: Path, tokenizer: Tokenizer, *, tokens: int, context: int) -> list[NDArray[np.int32]]:
    """Windows of at most `context` tokens, `tokens` in all, evenly from all over a text: one place in it is not like
    another. Raises SettingsError for a file that cannot be read or is too short.
    """
    windows = text_windows(path, tokenizer, tokens=_MOST_TEXT_TOKENS, context=context)
    wanted = min(len(windows), max(1, tokens // context))
    return [windows[place * len(windows) // wanted] for place in range(wanted)]


def states_at(package: Package, split: int, windows: Sequence[NDArray[np.int32]], threads: int | None) -> States:
    """What leaves layer split - 1, of each window of tokens read from an empty memory.

    Raises SettingsError for a split that the model has not, and what NativeEngine does.
    """
    front = NativeEngine(package, layers=(0, split), capacity=max(map(len, windows)), threads=threads)
    try:
        return [_hidden(front, window) for window in windows]
    finally:
        front.close()


class SplitDivergence:
    """KL(fp16 || coded) in nats of every token: what the layers behind the split make of states that a codec gave.

    Keeps a float32 for each token of the vocabulary and each state; `back` is used, not owned.
    """

    def __init__(self, back: Engine, windows: States) -> None:
        self._back, self._windows = back, windows
        reference = Codec(CodecSettings("fp16"), back.model.hidden)
        self._expected = np.array([_log_softmax(logits) for logits in self._logits(reference)])

    def __call__(self, codec: Codec) -> NDArray[np.float64]:
        nats = [
            float(np.exp(expected) @ (expected - _log_softmax(logits)))
            for expected, logits in zip(self._expected, self._logits(codec), strict=True)
        ]
        return np.array(nats)

    def _logits(self, codec: Codec) -> Iterator[NDArray[np.float32]]:
        """(vocabulary,) after each state; the engine's own buffer."""
        for window in self._windows:
            self._back.truncate(0)
            for row in codec.decode(codec.encode(window), len(window)):
                logits = self._back.extend(row[None]).logits
                if logits is None:
                    raise EngineError("the layers behind a split give no logits", got=self._back.layers)
                yield logits


def _hidden(front: Engine, window: NDArray[np.int32]) -> NDArray[np.float32]:
    front.truncate(0)
    hidden = front.extend(window).hidden
    if hidden is None:
        raise EngineError("the layers before a split give no hidden states", got=front.layers)
    return hidden.copy()


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    shifted = logits - logits.max()
    result: NDArray[np.float32] = shifted - np.log(np.exp(shifted).sum())
    return result
