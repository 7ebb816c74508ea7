"""Scores of tokens from logits: SirLLM's surprisal, and what its released code computes in its place.

An engine gives the first itself, and faster (Step.surprisal, Token.surprisal). The second needs logits.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgemem.runtime.errors import SettingsError
from edgemem.runtime.retention.settings import Score


def surprisal_of(logits: NDArray[np.floating], tokens: NDArray[np.integer]) -> NDArray[np.float32]:
    """-log softmax(logits[i])[tokens[i]], computed in float64: (n, vocabulary) and (n,) give (n,) float32.

    Raises SettingsError if the shapes do not fit.
    """
    if logits.ndim != 2 or tokens.shape != logits.shape[:1]:
        raise SettingsError(
            "logits and tokens do not fit", got=f"{logits.shape} and {tokens.shape}", wanted="(n, vocabulary) and (n,)"
        )
    rows = logits.astype(np.float64)
    rows -= rows.max(axis=1, keepdims=True)
    taken = np.take_along_axis(rows, tokens[:, None], axis=1)[:, 0]
    return np.asarray(np.log(np.exp(rows).sum(axis=1)) - taken, dtype=np.float32)


def chunk_scores(
    logits: NDArray[np.floating], tokens: NDArray[np.integer], score: Score = "paper"
) -> NDArray[np.float32]:
    """The score of each token of a chunk, (n,) float32; the first is nan, for which SlotTable.append has a rule.

    logits: (n, vocabulary), row i for the token after tokens[i].
    "paper": token i gets -log p(x_i | x_0..x_{i-1}): row i-1 at x_i.
    "as_released": token i gets -log p(next = x_{i-1} | x_0..x_{i-1}): row i-1 at x_{i-1}, the surprisal of the token
    before it coming once more. It says nothing of token i.
    """
    if not len(tokens):
        raise SettingsError("a chunk has no tokens", wanted="at least one")
    targets = tokens[1:] if score == "paper" else tokens[:-1]
    return np.concatenate([np.full(1, np.nan, dtype=np.float32), surprisal_of(logits[:-1], targets)])
