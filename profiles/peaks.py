"""What memory gave while steps were timed: each block of steps against the sweeps right before and after it.

A shared machine's memory may be slow for seconds at a time: only a sweep of the same moment tells what it could give.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from statistics import median

import numpy as np
from numpy.typing import NDArray

from edgemem.profiles.bootstrap import medians_of_drawn, resampled_medians
from edgemem.profiles.record import Block, Session, Sweep


def best(sweeps: Iterable[Sweep]) -> float:
    """Bytes a second of the fastest."""
    return max(sweep.bytes_per_s for sweep in sweeps)


def block_shares(step_bytes: int, session: Session) -> list[float]:
    """For each block, the bandwidth of its median step over the peak beside it."""
    return [step_bytes / median(block.step_ms) * 1e3 / peak for block, peak in peaks_beside(session)]


def resampled_shares(step_bytes: int, session: Session) -> NDArray[np.float64]:
    """(resamples,): bootstrapped medians of block_shares, over blocks, then the steps of each."""
    beside = peaks_beside(session)
    step_ms = resampled_medians([block.step_ms for block, _ in beside])
    return medians_of_drawn(step_bytes / step_ms * 1e3 / np.array([[peak] for _, peak in beside]), 2)


def session_peak(session: Session) -> float:
    """Bytes a second: the median over blocks of the peak beside them."""
    return median(peak for _, peak in peaks_beside(session))


def peaks_beside(session: Session) -> list[tuple[Block, float]]:
    """Each block, in the order of time, and the best of the sweeps right before and after it, in bytes a second.

    The best of the session counts where there is none beside a block.
    """
    samples: list[Block | Sweep] = [*session.blocks, *session.sweeps, *session.copies]
    timeline = sorted(samples, key=lambda sample: sample.order)
    reads = {sweep.order for sweep in session.sweeps}
    before, after = _best_since_block(timeline, reads), _best_since_block(timeline[::-1], reads)[::-1]
    blocks = [sample for sample in timeline if isinstance(sample, Block)]
    whole = best(session.sweeps)
    return [(block, max(rates) or whole) for block, *rates in zip(blocks, before, after, strict=True)]


def _best_since_block(timeline: Sequence[Block | Sweep], reads: Container[int]) -> list[float]:
    """For each block, the best of the sweeps on its way here from the block passed before; 0 without one."""
    found, rate, last = [], 0.0, timeline[0].order
    for sample in timeline:
        if abs(sample.order - last) > 1:  # another arm's block lies between
            rate = 0.0
        last = sample.order
        if isinstance(sample, Block):
            found.append(rate)
            rate = 0.0
        elif sample.order in reads:
            rate = max(rate, sample.bytes_per_s)
    return found
