"""Perplexity over a long text under each policy: nats a token, in steps of a thousand tokens.

The text is consumed in blocks; room is made before a block, and within it attention is exact and causal.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from edgemem.runtime.retention.settings import RetentionSettings
from edgemem.tools.memory_eval.cells import Bench, Cell, Job, Progress, setup_text
from edgemem.tools.memory_eval.feed import Feed
from edgemem.tools.memory_eval.settings import ENTROPY, NO_SINKS, RESTART, WINDOW, EvalSettings, retention

STEP, LAST = 1000, 10_000  # tokens
_DECAY = 0.9


def stream_jobs(settings: EvalSettings) -> Iterator[Job]:
    for budget in settings.stream_budgets:
        for policy in (WINDOW, ENTROPY, NO_SINKS, RESTART):
            kept = retention(WINDOW if policy == RESTART else policy, budget, decay=_DECAY, turns=False)
            sizes = {"tokens": settings.text_tokens, "block": settings.block, "turn": settings.turn}
            cell = Cell("stream", policy, budget, 0, setup_text(kept, **sizes))
            yield Job(cell, partial(_run, settings, kept, policy == RESTART))


def _run(
    settings: EvalSettings, kept: RetentionSettings, restarts: bool, bench: Bench, progress: Progress
) -> dict[str, tuple[float, ...]]:
    feed = Feed(bench.engine, kept, bench.clock)
    tokens = bench.text[: settings.text_tokens]
    nats = np.empty(len(tokens), dtype=np.float32)
    for start in range(0, len(tokens), settings.block):
        block = tokens[start : start + settings.block]
        if restarts and feed.table.length + len(block) > kept.budget:
            feed = Feed(bench.engine, kept, bench.clock)
            feed.consume(tokens[start - 1 : start])  # so that every token of the text is predicted from something
        nats[start : start + len(block)] = feed.consume(block).surprisal
        if start // settings.turn != (start + len(block)) // settings.turn:
            feed.end_turn()
        progress((start + len(block)) / len(tokens))
    known = nats[1:].astype(np.float64)  # before the first there is nothing
    whole = known[: len(known) // STEP * STEP] if len(known) >= STEP else known
    steps = [float(part.mean()) for part in np.split(whole, max(1, len(whole) // STEP))]
    return {
        "nats": tuple(steps),
        "last nats": tuple(steps[-LAST // STEP :]),
        "evictions": (float(feed.evictions),),
        "evicted": (float(feed.evicted),),
    }
