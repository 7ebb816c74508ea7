"""The door to the native kernels. Where they were not built it says so once and offers a slower stand-in."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from functools import cache
from types import ModuleType

import numpy as np

_LEAST_BYTES = 512  # swept by a thread


@cache
def native() -> ModuleType | None:
    """The compiled module, or None, with one warning, where no C++ compiler was found at install time."""
    try:
        from edgemem.kernels import _native
    except ImportError as error:
        warnings.warn(
            f"edgemem runs without its native kernels ({error}); install a C++ compiler and reinstall edgemem-runtime",
            RuntimeWarning,
            stacklevel=2,
        )
        return None
    return _native


def cpu_features() -> dict[str, bool]:
    """Instruction sets of this processor, by Linux's names; empty where unknown or without native kernels."""
    module = native()
    return dict(module.cpu_features()) if module else {}


class MemorySweep:
    """A buffer, filled once with other values than zero, that threads read or copy as often as asked.

    Between two calls it takes memory and no processor. Without native kernels NumPy does it on one thread, which
    understates the memory.
    """

    def __init__(self, bytes_: int, threads: int = 1) -> None:
        """Raises ValueError for a buffer under 512 bytes a thread, MemoryError and RuntimeError where memory or
        threads cannot be had."""
        module = native()
        self._sweep = _NumpySweep(bytes_) if module is None else module.Sweep(bytes_, threads)
        self.bytes: int = self._sweep.bytes

    def read(self, passes: int = 10) -> list[float]:
        """Bytes a second of each of `passes` passes that read the whole buffer."""
        return [self.bytes / seconds for seconds in self._sweep.read(passes)]

    def copy(self, passes: int = 10) -> list[float]:
        """Bytes a second, those read and those written together, of each of `passes` passes that copy one half of the
        buffer to the other. On x86-64 the native one writes past the caches, so that no line is read to be written."""
        return [self.bytes / seconds for seconds in self._sweep.copy(passes)]


class _NumpySweep:
    """What the native module's Sweep does, on one thread: seconds of each pass."""

    def __init__(self, bytes_: int) -> None:
        if bytes_ < _LEAST_BYTES:
            raise ValueError(f"the buffer is smaller than {_LEAST_BYTES} bytes")
        self._halves = np.arange(1, bytes_ // 16 * 2 + 1, dtype=np.uint64).reshape(2, -1)
        self.bytes = self._halves.nbytes

    def read(self, passes: int) -> list[float]:
        return [_seconds(self._halves.sum) for _ in range(passes)]

    def copy(self, passes: int) -> list[float]:
        source, target = self._halves
        return [_seconds(lambda: np.copyto(target, source)) for _ in range(passes)]


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
