"""How fast the GPU reads its memory: a kernel that does nothing else, with loads of 16 bytes a thread."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from edgemem.kernels.cuda.launching import Target, device, interpreted, launch, processors

import triton  # isort: skip  # after launching, which sets its environment
import triton.language as tl  # isort: skip

_BLOCK = 4096  # words of 4 bytes that a program reads at once
_PROGRAMS, _WARPS = 8, 8  # a multiprocessor, and a program
_LEAST_BYTES, _TIMES_CACHE = 2 << 30, 8


class DeviceSweep:
    """A buffer on the GPU, filled with other values than zero, that is read or copied as often as asked.

    The same as kernels/native.py's MemorySweep, of the GPU's memory. Rates are by the GPU's own clock.
    """

    def __init__(self, bytes_: int) -> None:
        """bytes_: rounded down to whole blocks of 32 KiB. Raises ValueError for fewer."""
        words = bytes_ // (8 * _BLOCK) * 2 * _BLOCK
        if not words:
            raise ValueError(f"the buffer is smaller than {8 * _BLOCK} bytes")
        self._words = torch.randint(1, 1 << 30, (words,), dtype=torch.int32, device=device())
        self._programs = processors() * _PROGRAMS
        self._sums = torch.zeros(self._programs, dtype=torch.int32, device=device())
        self.bytes: int = self._words.nbytes

    def read(self, passes: int = 10) -> list[float]:
        """Bytes a second of each of `passes` passes that read the whole buffer."""
        return [self.bytes / _seconds(self.read_once) for _ in range(passes)]

    def copy(self, passes: int = 10) -> list[float]:
        """Bytes a second, those read and those written together, of passes that copy one half to the other."""
        source, target = self._words.chunk(2)
        return [self.bytes / _seconds(lambda: target.copy_(source)) for _ in range(passes)]

    def read_once(self) -> int:
        """Queue one pass; afterwards `checksum` is that of all words."""
        launch(read_words, (self._programs,), self._words, self._sums, len(self._words), BLOCK=_BLOCK, warps=_WARPS)
        return self.bytes

    @property
    def checksum(self) -> int:
        """The exclusive or of what the last pass read."""
        total = 0
        for part in self._sums.tolist():
            total ^= part
        return total


def sweep_bytes(free: int) -> int:
    """Enough that no pass meets what the one before left in the cache, or a quarter of the free memory."""
    cache = 0 if interpreted() else torch.cuda.get_device_properties().L2_cache_size
    return min(max(_LEAST_BYTES, _TIMES_CACHE * cache), free // 4)


def targets() -> list[Target]:
    """The one kernel."""
    return [Target(read_words, {"words": "*i32", "sums": "*i32", "count": "i32"}, {"BLOCK": _BLOCK}, _WARPS)]


@triton.jit
def read_words(words, sums, count, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """count: of words, a multiple of BLOCK. PDL is never asked for: a sweep stands alone."""
    program = tl.program_id(0)
    step = tl.num_programs(0).to(tl.int64) * BLOCK
    lanes = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.int32)
    for start in range(program.to(tl.int64) * BLOCK, count, step):
        total ^= tl.load(words + start + lanes)
    tl.store(sums + program, tl.xor_sum(total, 0))


def _seconds(work: Callable[[], Any]) -> float:
    if interpreted():
        start = time.perf_counter()
        work()
        return time.perf_counter() - start
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    before.record()
    work()
    after.record()
    after.synchronize()
    return float(before.elapsed_time(after)) / 1e3
