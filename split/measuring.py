"""Measures what the planner asks for: how fast a link is, and how long stages of a model take for one token.

It times what it is given, and fits a line in the number of layers; it opens neither links nor engines.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgemem.runtime.engine import Engine
from edgemem.runtime.errors import ProtocolError
from edgemem.runtime.model import ModelSpec
from edgemem.split.codec import Codec
from edgemem.split.frames import CHUNK_TOKENS, Answered, Done, Extend, Truncate
from edgemem.split.planner import Activation
from edgemem.split.remote_session import Wire
from edgemem.split.sides import LinkSpeed, StageTimes

OpenStage = Callable[[int, int], Engine]  # over layers [first, last)
_ASKED, _TRIES, _WARM_STEPS, _STEPS = 9, 3, 4, 24
_LONG_ENOUGH_MS = 30.0  # a transfer that says what the rate is
_DEADLINE_S = 60.0
_SEED = 7
_FASTEST = 1e11  # bits a second: what is measured where a transfer takes no time


@dataclass(frozen=True)
class StageTime:
    """One stage that was timed: layers [first, last), and the median of a token."""

    first: int
    last: int
    token_ms: float


@dataclass(frozen=True)
class WireTimes:
    """compute_ms: the server's median for one token in the layers behind the split."""

    link: LinkSpeed
    compute_ms: float


def measure_wire(
    wire: Wire,
    codec: Codec,
    *,
    asked: int = _ASKED,
    longest: int = CHUNK_TOKENS,
    clock: Callable[[], float] = time.perf_counter,
) -> WireTimes:
    """Of a session that is new, at a split from 1, with this codec. asked: single tokens. longest: chunk, in tokens.
    clock: seconds.

    Only what a token really does is timed: states sent and answered, less what the server says it computed. The rate is
    that by which a chunk takes longer than one token, of longer chunks until it takes long enough; the round trip is
    what is left of one token, and has in it what both ends do to a message. Raises what Wire.call raises.
    """
    talk, most = _Talk(wire, codec, clock), min(longest, wire.welcome.chunk, wire.welcome.capacity)
    talk.extend(1)
    single = [talk.extend(1) for _ in range(asked)]
    least_ms = min(one.wire_ms for one in single)
    count, rate, longer_ms = 1, _FASTEST, 0.0
    while count < most and longer_ms < _LONG_ENOUGH_MS:
        count = min(most, 4 * count)
        best = min((talk.extend(count) for _ in range(_TRIES)), key=lambda one: one.wire_ms)
        longer_ms = best.wire_ms - least_ms
        if longer_ms > 0:
            rate = min(_FASTEST, 8e3 * (best.payload_bytes - single[0].payload_bytes) / longer_ms)
    round_trip_ms = median(one.wire_ms - 8e3 * one.payload_bytes / rate for one in single)
    link = LinkSpeed(max(rate, 1.0), max(round_trip_ms, 0.0))
    return WireTimes(link, median(one.compute_ms for one in single))


class _Exchange(NamedTuple):
    """wire_ms: from asking to answer, without compute_ms, the server's."""

    payload_bytes: int
    wire_ms: float
    compute_ms: float


class _Talk:
    """Chunks of made-up states into a session, which is emptied when it is full."""

    def __init__(self, wire: Wire, codec: Codec, clock: Callable[[], float]) -> None:
        self._wire, self._codec, self._clock = wire, codec, clock
        self._op = self._length = 0
        self._random = np.random.default_rng(_SEED)

    def extend(self, count: int) -> _Exchange:
        if self._length + count > self._wire.welcome.capacity:
            self.empty()
        payload = self._codec.encode(made_up_states(self._random, count, self._codec.hidden))
        begin = self._clock()
        answer = self._wire.call(Extend(self._next(), self._length, count, payload), deadline_s=_DEADLINE_S)
        elapsed_ms = 1e3 * (self._clock() - begin)
        if not isinstance(answer, Answered):
            raise ProtocolError("an answer to Extend that is none", got=type(answer).__name__)
        self._length += count
        return _Exchange(len(payload), elapsed_ms - answer.compute_ms, answer.compute_ms)

    def empty(self) -> None:
        if not isinstance(self._wire.call(Truncate(self._next(), 0), deadline_s=_DEADLINE_S), Done):
            raise ProtocolError("an answer to Truncate that is none")
        self._length = 0

    def _next(self) -> int:
        self._op += 1
        return self._op


def measure_stages(
    open_stage: OpenStage, model: ModelSpec, *, clock: Callable[[], float] = time.perf_counter
) -> StageTimes:
    """Of an engine's stages on this machine: fronts and backs at two splits, and the whole. clock: seconds.

    A model of one layer has no such split: its embedding and head count as parts of the layer.
    """
    last = model.layers
    splits = sorted({max(1, last // 4), max(1, (3 * last) // 4)} - {last})
    ranges = [(0, last), *((0, split) for split in splits), *((split, last) for split in splits)]
    return fit_stages([_time_stage(open_stage, stage, clock) for stage in ranges], last)


def fit_stages(times: Sequence[StageTime], layers: int) -> StageTimes:
    """The line nearest to these times, by least squares; what comes out below 0 is 0."""
    rows = [(time.last - time.first, time.first == 0, time.last == layers) for time in times]
    found, *_ = np.linalg.lstsq(np.array(rows, float), np.array([time.token_ms for time in times]), rcond=None)
    layer_ms, entry_ms, exit_ms = (max(0.0, float(value)) for value in found)
    return StageTimes(layer_ms, entry_ms, exit_ms)


def measure_activation(
    codec: Codec, token_bytes: float, *, clock: Callable[[], float] = time.perf_counter
) -> Activation:
    """token_bytes: as calibrated. Its time is that of made-up states, one token at a time. clock: seconds."""
    random, times = np.random.default_rng(_SEED), []
    for _ in range(_STEPS):
        states = made_up_states(random, 1, codec.hidden)
        begin = clock()
        codec.decode(codec.encode(states), 1)
        times.append(1e3 * (clock() - begin))
    return Activation(token_bytes, median(times))


def made_up_states(random: np.random.Generator, count: int, hidden: int) -> NDArray[np.float32]:
    """(count, hidden), as no model would give them, and as fast to compute with."""
    return random.standard_normal((count, hidden), dtype=np.float32)


def _time_stage(open_stage: OpenStage, stage: tuple[int, int], clock: Callable[[], float]) -> StageTime:
    first, last = stage
    random, times = np.random.default_rng(_SEED), []
    with closing(open_stage(first, last)) as engine:
        for step in range(_WARM_STEPS + _STEPS):
            inputs: NDArray[np.generic] = (
                made_up_states(random, 1, engine.model.hidden)
                if first
                else random.integers(0, engine.model.vocabulary, 1, dtype=np.int32)
            )
            begin = clock()
            engine.extend(inputs)
            if step >= _WARM_STEPS:
                times.append(1e3 * (clock() - begin))
    return StageTime(first, last, median(times))
