"""Sampling on the device: from logits to a token by the rules of runtime/sampling.py, without a word to the host.

Every number that changes from answer to answer lies in device memory, so that one captured graph serves them all; which
kernels run depends on `structure` alone.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from edgemem.kernels.cuda.launching import Target, interpreted, launch
from edgemem.kernels.cuda.sampling_kernels import BINS, LEVELS, draw, narrow, survey_logits

_TILE = 128 if interpreted() else 1024  # tokens a program


class Structure(NamedTuple):
    """What decides which kernels `sample` launches."""

    draws: bool = False
    top_k: bool = False
    top_p: bool = False
    penalty: bool = False


class DeviceSampler:
    """One per engine. `set` begins an answer; `sample` is captured in a graph and replayed for every token."""

    def __init__(self, vocabulary: int, device: torch.device) -> None:
        """Raises ValueError for more than 2**20 tokens."""
        if not 0 < vocabulary <= 1 << 20:
            raise ValueError(f"a vocabulary of {vocabulary}, wanted 1 to {1 << 20}")
        self._vocabulary = vocabulary
        self._tiles = -(-vocabulary // _TILE)
        self._tiles_wide = wide = 1 << (self._tiles - 1).bit_length()
        self._structure = Structure()

        def zeros(shape: int, dtype: torch.dtype) -> torch.Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        self._settings, self._state = zeros(4, torch.float64), zeros(8, torch.int64)
        self._survey, self._results = zeros(3, torch.float32), zeros(5 * wide, torch.float32)
        self._seen, self._bins = zeros(vocabulary, torch.uint8), zeros(BINS.value, torch.int64)
        self._weights, self._ties = zeros(wide, torch.int64), zeros(wide, torch.int32)
        self._counter = zeros(1, torch.int32)

    def set(
        self,
        *,
        temperature: float,
        top_k: int,
        top_p: float,
        log_min_p: float,
        repetition_penalty: float,
        seed: int,
        draws: int,
        seen: NDArray[np.int32],
    ) -> None:
        """Take over an answer's settings, number of the next draw and penalised tokens, as kernels/cpu's Sampler does.

        log_min_p: -inf for none. The values go into tensors that a captured graph reads: no capture is needed anew
        unless `structure` changed.
        """
        is_drawing = temperature > 0
        self._structure = Structure(
            is_drawing,
            is_drawing and 0 < top_k < self._vocabulary,
            is_drawing and top_p < 1,
            repetition_penalty != 1,
        )
        few = [min(top_k, self._vocabulary), seed - (seed >> 63 << 64), draws, 0, 0, 0, 0, 0]
        self._state.copy_(torch.tensor(few, dtype=torch.int64))
        self._settings.copy_(torch.tensor([temperature, top_p, log_min_p, repetition_penalty], dtype=torch.float64))
        self._seen.zero_()
        self._seen[torch.from_numpy(seen.astype(np.int64)).to(self._seen.device)] = 1

    @property
    def structure(self) -> Structure:
        """Which kernels `sample` launches. A graph captured under one serves all settings of that structure."""
        return self._structure

    def sample(
        self,
        logits: torch.Tensor,
        token: torch.Tensor,
        drawn: torch.Tensor,
        *,
        surprisal: torch.Tensor | None = None,
        position: torch.Tensor | None = None,
        pdl: bool = False,
    ) -> None:
        """Draw from (vocabulary,) float32 logits, which stay as they are. All outputs are tensors in device memory.

        token: int32 (1,), the token for the next step, 0 where the logits are not finite. drawn: int32 (1,), the same,
        but -1 where the logits are not finite; after that the draws and seen tokens no longer count. surprisal: float32
        (1,), -log p of the token by the logits as they are (no penalty, no temperature). position: int32 (1,), raised
        by one: it held the last slot in use and now holds the slot for this token.
        """
        if logits.numel() != self._vocabulary:
            raise ValueError(f"{logits.numel()} logits, wanted {self._vocabulary}")
        common: dict[str, Any] = {"TILE": _TILE, "PENALISED": self._structure.penalty, "pdl": pdl}
        ends: dict[str, Any] = {
            "TILES_WIDE": self._tiles_wide,
            "SURPRISAL": surprisal is not None,
            "POSITION": position is not None,
        }
        grid = (self._tiles,)
        source = (logits, self._seen, self._settings, self._state, self._survey)
        outputs = (
            self._counter,
            token,
            drawn,
            logits if surprisal is None else surprisal,
            token if position is None else position,
            self._vocabulary,
        )
        launch(survey_logits, grid, *source, self._results, *outputs, DRAWING=self._structure.draws, **ends, **common)
        for is_wanted, is_weighed in ((self._structure.top_k, False), (self._structure.top_p, True)):
            for level in range(LEVELS if is_wanted else 0):
                bins = (self._bins, self._counter, self._vocabulary)
                launch(narrow, grid, *source, *bins, LEVEL=level, WEIGHED=is_weighed, **common)
        if self._structure.draws:
            launch(draw, grid, *source, self._weights, self._ties, *outputs, **ends, **common)


def targets() -> list[Target]:
    """The variants that an engine uses, the first one of each kernel fit for every GPU."""
    types = {"logits": "*fp32", "seen": "*u8", "settings": "*fp64", "state": "*i64", "survey": "*fp32"}
    types |= {"tiles": "*fp32", "bins": "*i64", "weights": "*i64", "ties": "*i32", "vocabulary": "i32"}
    types |= {"surprisal": "*fp32", **dict.fromkeys(("counter", "token", "drawn", "position"), "*i32")}
    ends = {"TILE": 1024, "TILES_WIDE": 256, "SURPRISAL": True, "POSITION": True}
    return [
        Target(survey_logits, types, {**ends, "PENALISED": True, "DRAWING": False}),
        Target(survey_logits, types, {**ends, "PENALISED": False, "DRAWING": True}),
        Target(narrow, types, {"TILE": 1024, "PENALISED": False, "LEVEL": 3, "WEIGHED": True}),
        Target(narrow, types, {"TILE": 1024, "PENALISED": True, "LEVEL": 0, "WEIGHED": False}),
        Target(draw, types, {**ends, "PENALISED": False}),
        Target(draw, types, {**ends, "PENALISED": True}),
    ]
