"""What goes wrong on a GPU, as the project's own errors, and whether the process can go on.

A CUDA error is often sticky: after it every call of the process to that GPU fails, and only a new process helps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from subprocess import SubprocessError

import torch
from triton.errors import TritonError

from edgemem.kernels.cuda.launching import interpreted
from edgemem.runtime.errors import EngineError

_RESTART = "restart the process: the driver refuses it all further work on this GPU; a stored conversation is whole"


@contextmanager
def gpu_faults(end: Callable[[str], None]) -> Iterator[None]:
    """Errors of torch, Triton and the driver become EngineError, after `end` has been told why the engine is over."""
    try:
        yield
    except torch.OutOfMemoryError as problem:
        end("the GPU's memory ran out")
        raise EngineError(
            "the GPU's memory ran out, and the engine ended",
            got=_first_line(problem),
            do="open another engine with a smaller context; the process need not be restarted",
        ) from problem
    except (RuntimeError, TritonError, SubprocessError, OSError) as problem:  # Triton runs compilers, and keeps files
        lost = context_is_lost()
        end("the GPU failed")
        raise EngineError(
            "the GPU failed, and the engine ended",
            got=_first_line(problem),
            do=_RESTART if lost else "open another engine; the process need not be restarted",
        ) from problem


def context_is_lost() -> bool:
    """Whether the GPU refuses this process even the least work."""
    if interpreted():
        return False
    try:
        torch.zeros(1, device="cuda").add_(1).item()
    except RuntimeError:
        return True
    return False


def _first_line(problem: BaseException) -> str:
    return (str(problem) or type(problem).__name__).partition("\n")[0]
