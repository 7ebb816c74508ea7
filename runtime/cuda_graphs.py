"""Decode steps over and over: launched one by one, or captured once as CUDA graphs and replayed.

Tokens come back in batches, copied to pinned memory while the GPU goes on with the next one.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch

from edgemem.kernels.cuda.launching import interpreted, supports_pdl

Mode = Literal["eager", "graph", "graph+pdl"]
STEPS_A_REPLAY = 4  # in the longest graph
BATCHES_AHEAD = 2  # in flight: one whose tokens are awaited, and one behind it, so that the GPU does not wait for us
_LONGEST_BATCH_S = 0.02  # a consumer sees text flow


def known_modes() -> tuple[Mode, ...]:
    """How steps can be launched here, from the slowest to the fastest: one by one, as a graph, and with programmatic
    dependent launch, where each kernel begins to load its weights before the one before it has ended."""
    if interpreted():
        return ("eager",)
    return ("eager", "graph", "graph+pdl") if supports_pdl() else ("eager", "graph")


class Replayed:
    """`body(0), body(1) ... body(n - 1)`: launches over static buffers, nothing else."""

    def __init__(self, body: Callable[[int], None], mode: Mode) -> None:
        self._body, self.mode = body, mode
        self._graphs: dict[int, torch.cuda.CUDAGraph | None] = {}  # None: run once, so that its kernels are compiled

    def run(self, count: int) -> None:
        """Queue `count` of them, at most STEPS_A_REPLAY where there are graphs; it waits for none."""
        graph = self._graphs.get(count)
        if graph is None and count in self._graphs and self.mode != "eager":
            graph = self._graphs[count] = self._capture(count)
        if graph is not None:
            graph.replay()
            return
        self._graphs[count] = None
        for index in range(count):
            self._body(index)

    def _capture(self, count: int) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # other threads may use the GPU meanwhile
            for index in range(count):
                self._body(index)
        return graph


class Batch(NamedTuple):
    """Tokens on their way. ids (n,) int32 and surprisals (n,) float32 are host memory, to be read after `wait`."""

    ids: torch.Tensor
    surprisals: torch.Tensor
    done: torch.cuda.Event | None

    def wait(self) -> tuple[list[int], list[float]]:
        if self.done is not None:
            self.done.synchronize()
        return self.ids.tolist(), self.surprisals.tolist()


class TokenReturn:
    """Copies what a batch drew to the host, behind it in the stream. At most BATCHES_AHEAD may be on their way."""

    def __init__(self, ids: torch.Tensor, surprisals: torch.Tensor) -> None:
        """ids (STEPS_A_REPLAY,) int32 and surprisals, likewise float32: where the steps leave them on the device."""
        self._sources = ids, surprisals
        self._on_gpu = ids.is_cuda
        self._hosts = [
            tuple(torch.empty(part.shape, dtype=part.dtype, pin_memory=self._on_gpu) for part in self._sources)
            for _ in range(BATCHES_AHEAD)
        ]
        self._next = 0

    def send(self, count: int) -> Batch:
        """The first `count` of what the last batch queued leaves."""
        host = self._hosts[self._next]
        self._next = (self._next + 1) % BATCHES_AHEAD
        for target, source in zip(host, self._sources, strict=True):
            target[:count].copy_(source[:count], non_blocking=True)
        done = None
        if self._on_gpu:
            done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            done.record()
        return Batch(host[0][:count], host[1][:count], done)


class StepsAhead:
    """The steps of one answer, queued batch by batch while the tokens of those before are read.

    Without graphs one step at a time, once the token before it has been taken: launching takes longer than reading.
    """

    def __init__(
        self, replayed: Replayed, back: TokenReturn, steps: int, *, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        """The first token, which needs no step, has been drawn. clock: seconds."""
        self.replayed, self._back, self._steps, self._clock = replayed, back, steps, clock
        graphs = replayed.mode != "eager"
        self._longest, self._ahead = (STEPS_A_REPLAY, BATCHES_AHEAD) if graphs else (1, 1)
        self._size = self._longest
        self._batches = deque([back.send(1)])
        self._mark = clock()
        self.queued = 0  # steps

    def take(self) -> list[tuple[int, float]]:
        """Wait for the oldest batch, others being queued behind it: its tokens, each with its surprisal; none when all
        have been given. A batch that takes long is followed by shorter ones."""
        while self.queued < self._steps and len(self._batches) < self._ahead:
            count = self._size if self._steps - self.queued >= self._size else 1
            self.replayed.run(count)
            self._batches.append(self._back.send(count))
            self.queued += count
        if not self._batches:
            return []
        ids, surprisals = self._batches.popleft().wait()
        now = self._clock()
        quick = (now - self._mark) / len(ids) * self._longest < _LONGEST_BATCH_S
        self._size, self._mark = self._longest if quick else 1, now
        return list(zip(ids, surprisals, strict=True))
