"""PlanBuffers: the memory that a plan is bound to, allocated once: inputs, outputs, keys and values, by their names.

Nothing moves after that, so a runner may capture what it does. It runs nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemem.runtime.model import ModelSpec
from edgemem.runtime.plan_cache import PlanCache, import_torch
from edgemem.runtime.plan_shape import PlanShape

Tensors = dict[str, Any]  # torch tensors, contiguous, by the graph's names


class PlanBuffers:
    """device: torch's name, "cuda" or "cpu"."""

    def __init__(self, model: ModelSpec, shape: PlanShape, device: str) -> None:
        torch = import_torch()
        first, last = shape.layers
        self.shape, self.device = shape, device
        self.has_embedding, self.has_head = first == 0, last == model.layers
        self.cache = PlanCache(model, shape.layers, shape.capacity, device)
        self._past, self._present = (self._cache(prefix, first) for prefix in ("past_key_values", "present"))

        def zeros(*sizes: int, dtype: Any) -> Any:
            return torch.zeros(sizes, dtype=dtype, device=device)

        if self.has_embedding:
            self._inputs = zeros(shape.chunk, dtype=torch.int64)
        else:
            self._inputs = zeros(shape.chunk, model.hidden, dtype=torch.float32)
        self._positions = zeros(shape.chunk, dtype=torch.int64)
        self._slots = torch.arange(shape.capacity, dtype=torch.int64, device=device)
        self._rows = zeros(shape.rows, dtype=torch.int64)
        self._outputs = (
            zeros(shape.rows, model.vocabulary, dtype=torch.float32)
            if self.has_head
            else zeros(shape.chunk, model.hidden, dtype=torch.float32)
        )

    def fill(self, inputs: NDArray[Any], start: int, rows: int) -> None:
        """Set what is computed next: (n,) tokens or (n, hidden) states for slots from `start` on, logits of the last
        `rows` of them."""
        count = len(inputs)
        if count == 1 and self.has_embedding:
            self._inputs[:1].fill_(int(inputs[0]))  # no copy from the host, which would wait for the device
        else:
            self._inputs[:count] = import_torch().from_numpy(np.ascontiguousarray(inputs))
        self._positions[:count] = self._slots[start : start + count]
        self._rows[:rows] = self._slots[count - rows : count]

    def inputs(self, count: int, bucket: int, rows: int) -> Tensors:
        """Views of a run's inputs, in the shapes that it has."""
        named = {
            "input_ids" if self.has_embedding else "hidden_states": self._inputs[None, :count],
            "position_ids": self._positions[None, :count],
            "slots": self._slots[:bucket],
            **self._past,
        }
        return {**named, "logits_rows": self._rows[:rows]} if self.has_head else named

    def outputs(self, count: int, rows: int) -> Tensors:
        """Views of a run's outputs; the cache is that of the inputs."""
        if self.has_head:
            return {"logits": self.logits(rows), **self._present}
        return {"hidden_states_out": self.hidden(count)[None], **self._present}

    def logits(self, rows: int) -> Any:
        """(rows, vocabulary) float32 of the last run."""
        return self._outputs[:rows]

    def hidden(self, count: int) -> Any:
        """(count, hidden) float32 of the last run."""
        return self._outputs[:count]

    def _cache(self, prefix: str, first: int) -> Tensors:
        return {
            f"{prefix}.{first + layer}.{part}": parts[index][None]
            for layer, parts in enumerate(self.cache.buffer)
            for index, part in enumerate(("key", "value"))
        }
