"""How Triton kernels are launched: on the GPU, or where TRITON_INTERPRET=1 asks for it in Triton's interpreter.

Every other module of this folder imports triton after this one: Triton looks at TRITON_INTERPRET when a kernel is
defined. Without a GPU it must be set, so that nobody waits for the interpreter unaware; 0 serves to compile alone.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch

if "TRITON_INTERPRET" not in os.environ and not torch.cuda.is_available():
    raise ImportError("torch finds no NVIDIA GPU")
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # Triton warns where it is left open

import triton  # after the environment that it reads

_INTERPRETED = bool(triton.knobs.runtime.interpret)
_INTERPRETED_PROCESSORS = 1  # so that small matrices already have more tiles than programs


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on tensors of the CPU."""
    return _INTERPRETED


def device() -> torch.device:
    """Where the tensors of every kernel live."""
    return torch.device("cpu" if _INTERPRETED else "cuda")


@cache
def capability() -> tuple[int, int] | None:
    """Compute capability of the GPU, None in the interpreter."""
    return None if _INTERPRETED else torch.cuda.get_device_capability()


@cache
def processors() -> int:
    """Streaming multiprocessors of the GPU; a few in the interpreter."""
    return _INTERPRETED_PROCESSORS if _INTERPRETED else torch.cuda.get_device_properties().multi_processor_count


def supports_pdl() -> bool:
    """Whether a kernel may be launched while the one before it still runs (programmatic dependent launch)."""
    return (capability() or (0, 0)) >= (9, 0)


def launch(
    kernel: Any,
    grid: tuple[int, ...],
    *arguments: Any,
    pdl: bool = False,
    warps: int = 4,
    stages: int = 1,
    registers: int | None = None,
    **constants: Any,
) -> None:
    """Run `kernel` over `grid`, its constexpr parameters by name. Tensors must be on `device()`.

    The kernel has a constexpr PDL, given here: with pdl on a GPU that can, it is launched as a dependent and must wait
    (gdc_wait) before it touches anything that an earlier kernel writes; elsewhere PDL is False.
    registers: the most that a thread may have, so that enough programs share a processor.
    """
    dependent = pdl and supports_pdl()
    options: dict[str, Any] = {"launch_pdl": True} if dependent else {}
    if registers is not None:
        options["maxnreg"] = registers
    with np.errstate(all="ignore"):  # the interpreter counts in NumPy, which warns of what a GPU takes as it comes
        kernel[grid](*arguments, PDL=dependent, num_warps=warps, num_stages=stages, **constants, **options)


class Target(NamedTuple):
    """A kernel as some launch specialises it, to be compiled where there is no GPU. PDL is added by who compiles.

    signature: of each parameter that is no constant, its Triton type ("*fp32", "i32"); the rest as in `launch`.
    """

    kernel: Any
    signature: Mapping[str, str]
    constants: Mapping[str, Any]
    warps: int = 4
    registers: int | None = None
    stages: int = 1
