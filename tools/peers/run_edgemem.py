"""edgemem itself, either engine. A step is `Engine.decode`'s: one forward pass and the greedy choice."""

from __future__ import annotations

import time
from itertools import accumulate
from typing import Any

import numpy as np

from edgemem.profiles.stepping import step_times
from edgemem.runtime.open import open_engine
from edgemem.runtime.package import Package
from edgemem.runtime.sampling import Sampler, Sampling


class Edgemem:
    def __init__(self, job: dict[str, Any]) -> None:
        package = Package.open(job["package"])
        self._engine = open_engine(package, job["engine"], capacity=job["context"], threads=job["threads"])
        self._held: list[int] = []
        slot = self._engine.traffic().kv_write
        model = package.model
        self.about = {"kv_element_bytes": slot / (2 * model.layers * model.kv_heads * model.head_dim)}

    def prefill(self, ids: list[int]) -> float:
        self._engine.truncate(0)
        self._held = ids
        tokens = np.array(ids, dtype=np.int32)
        started = time.perf_counter()
        self._engine.extend(tokens)
        return time.perf_counter() - started

    def decode(self, prompt: list[int], steps: int) -> tuple[list[float], list[int]]:
        if self._held[: len(prompt) - 1] != prompt[:-1]:
            self.prefill(prompt[:-1])
        self._engine.truncate(len(prompt) - 1)
        self._held = prompt[:-1]
        last, sampler, ids = np.array(prompt[-1:], dtype=np.int32), Sampler(Sampling()), []
        readings = [time.perf_counter()]
        self._engine.extend(last)
        for token in self._engine.decode(sampler, steps):
            readings.append(time.perf_counter())
            ids.append(token.id)
        # Tokens that one native call made come at once; each of its steps took an even share, as far as can be told.
        taken = [ms / 1e3 for ms in step_times(readings)[0]]
        return list(accumulate(taken, initial=readings[0])), ids


def open_runtime(job: dict[str, Any]) -> Edgemem:
    return Edgemem(job)
