"""The door to the native kernels. Where they were not built it says so once and offers a slower stand-in."""

from __future__ import annotations

import time
import warnings
from functools import cache
from types import ModuleType

import numpy as np


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


def read_bandwidth(bytes_: int = 1 << 29, threads: int = 1, repeats: int = 10) -> float:
    """Bytes a second of the best of `repeats` read-only sweeps over a fresh buffer, cut over `threads`.

    Without native kernels it is NumPy's sum on one thread, which understates the memory.
    Raises ValueError for a buffer under 512 bytes a thread, MemoryError where it cannot be had.
    """
    module = native()
    if module is not None:
        return bytes_ / float(min(module.read_sweep(bytes_, threads, repeats)))
    data = np.arange(1, bytes_ // 8 + 1, dtype=np.uint64)
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        data.sum()
        seconds.append(time.perf_counter() - start)
    return data.nbytes / min(seconds)
