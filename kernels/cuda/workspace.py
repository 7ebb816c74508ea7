"""Workspace: memory that kernels share for what their programs tell one another."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from edgemem.kernels.cuda.launching import device


@dataclass(frozen=True)
class Workspace:
    """partials (floats,) float32, of no meaning between kernels; counters (n,) int32, zero between kernels.

    One will do for all kernels of a stream, which come one after the other.
    """

    partials: torch.Tensor
    counters: torch.Tensor

    @classmethod
    def of(cls, floats: int, counters: int) -> Workspace:
        """Room for so many partial results and counters, at least one of each."""
        return cls(
            torch.zeros(max(1, floats), dtype=torch.float32, device=device()),
            torch.zeros(max(1, counters), dtype=torch.int32, device=device()),
        )

    @property
    def nbytes(self) -> int:
        return self.partials.nbytes + self.counters.nbytes
