"""Compares a running engine with the float32 reference on a text, position by position."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from edgemem.compiler.quality import NO_NEXT, Comparison, QualityMeter
from edgemem.compiler.reference import ReferenceDecoder
from edgemem.runtime.engine import Engine
from edgemem.runtime.weights import WeightSource

_CHUNK_BYTES = 32 << 20  # of float64 logits, several of which are held at once


def compare(
    engine: Engine,
    reference: WeightSource,
    tokens: NDArray[np.int32],
    progress: Callable[[float], None] = lambda share: None,
) -> Comparison:
    """The engine against the reference weights in float32, over (n,) tokens read from an empty memory.

    The engine takes the tokens one by one, as it does when it decodes. Raises ContextError if they do not fit into its
    slots, SettingsError for fewer than two.
    """
    engine.truncate(0)
    meter = QualityMeter()
    following = np.append(tokens[1:], NO_NEXT)
    start = 0
    rows_at_a_time = max(1, _CHUNK_BYTES // (8 * reference.model.vocabulary))
    for expected in ReferenceDecoder(reference).logit_chunks(tokens, rows_at_a_time):
        stop = start + len(expected)
        got = np.empty_like(expected)
        for row, position in enumerate(range(start, stop)):
            logits = engine.extend(tokens[position : position + 1]).logits
            got[row] = np.nan if logits is None else logits
            progress((position + 1) / len(tokens))
        meter.update(expected, got, following[start:stop])
        start = stop
    return meter.result()
