"""Quality of an engine on a text: cut into windows that each start from an empty memory, compared one by one.

The comparison itself is in the compiler, which runs it on every package that it makes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgemem.compiler.compare import compare
from edgemem.compiler.quality import Comparison
from edgemem.runtime.engine import Engine
from edgemem.runtime.errors import SettingsError
from edgemem.runtime.tokenizer import Tokenizer
from edgemem.runtime.weights import WeightSource

# Far more than any text needs, and than anyone waits for: bounds what is read of a huge file.
_TEXT_BYTES_PER_TOKEN, _MOST_TEXT_BYTES = 64, 64 << 20


def evaluate(
    engine: Engine,
    reference: WeightSource,
    windows: Sequence[NDArray[np.int32]],
    progress: Callable[[float], None] = lambda share: None,
) -> Comparison:
    """The engine against the reference weights in float32, over all windows of (n,) tokens, n of at least 2.

    Raises SettingsError where the two have different vocabularies, and what compare raises.
    """
    if reference.model.vocabulary != engine.model.vocabulary:
        raise SettingsError(
            "the reference is of another model",
            got=f"a vocabulary of {reference.model.vocabulary}",
            wanted=engine.model.vocabulary,
        )
    total = sum(len(window) for window in windows)
    parts, done = [], 0
    for window in windows:
        parts.append(compare(engine, reference, window, _within(progress, done / total, len(window) / total)))
        done += len(window)
    return pooled(parts)


def pooled(parts: Sequence[Comparison]) -> Comparison:
    """One comparison over the positions of all parts; of a part's tokens, all but the first are predicted."""
    tokens = [part.tokens for part in parts]
    predicted = [count - 1 for count in tokens]

    def mean(values: list[float], weights: list[int]) -> float:
        return math.fsum(value * weight for value, weight in zip(values, weights, strict=True)) / sum(weights)

    return Comparison(
        tokens=sum(tokens),
        perplexity=math.exp(mean([math.log(part.perplexity) for part in parts], predicted)),
        reference_perplexity=math.exp(mean([math.log(part.reference_perplexity) for part in parts], predicted)),
        kl_mean=mean([part.kl_mean for part in parts], tokens),
        top1_agreement=mean([part.top1_agreement for part in parts], tokens),
    )


def text_windows(path: Path, tokenizer: Tokenizer, *, tokens: int, context: int) -> list[NDArray[np.int32]]:
    """The first `tokens` tokens of a text file in windows of at most `context`, each begun as the model's texts are.

    Raises SettingsError for a file that cannot be read or is too short.
    """
    try:
        with path.open("rb") as file:
            text = file.read(min(tokens * _TEXT_BYTES_PER_TOKEN, _MOST_TEXT_BYTES)).decode("utf-8", errors="replace")
    except OSError as error:
        raise SettingsError("the text cannot be read", where=path, got=error.strerror) from error
    ids = tokenizer.encode(text)[:tokens]
    start = tokenizer.encode_text("")
    size = context - len(start)
    windows = [np.array([*start, *ids[at : at + size]], dtype=np.int32) for at in range(0, len(ids), max(1, size))]
    windows = [window for window in windows if len(window) >= 2]
    if not windows or size < 1:
        raise SettingsError(
            "the text is too short", where=path, got=f"{len(ids)} tokens", wanted="at least 2, and a context for them"
        )
    return windows


def _within(progress: Callable[[float], None], start: float, share: float) -> Callable[[float], None]:
    return lambda fraction: progress(start + share * fraction)
