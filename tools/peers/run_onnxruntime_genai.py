"""onnxruntime-genai over the compiled package's own graph. A step is append_tokens or generate_next_token, greedy."""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np
import onnxruntime_genai


class Genai:
    def __init__(self, job: dict[str, Any]) -> None:
        config = onnxruntime_genai.Config(job["package"])
        threads = {"intra_op_num_threads": job["threads"]}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": threads}}}))
        self._model = onnxruntime_genai.Model(config)
        settings = onnxruntime_genai.GeneratorParams(self._model)
        # A least length keeps the end-of-text token from ending a run early.
        settings.set_search_options(max_length=job["context"], min_length=job["context"], do_sample=False)
        self._generator = onnxruntime_genai.Generator(self._model, settings)
        self._held: list[int] = []
        self.about = {"kv_element_bytes": job["graph_kv_element_bytes"]}

    def prefill(self, ids: list[int]) -> float:
        self._generator.rewind_to(0)
        self._held = ids
        tokens = np.array(ids, dtype=np.int32)
        started = time.perf_counter()
        self._generator.append_tokens(tokens)
        return time.perf_counter() - started

    def decode(self, prompt: list[int], steps: int) -> tuple[list[float], list[int]]:
        if self._held[: len(prompt) - 1] != prompt[:-1]:
            self.prefill(prompt[:-1])
        self._generator.rewind_to(len(prompt) - 1)
        self._held = prompt[:-1]
        last, ids = np.array(prompt[-1:], dtype=np.int32), []
        readings = [time.perf_counter()]
        self._generator.append_tokens(last)
        for _ in range(steps):
            self._generator.generate_next_token()
            ids.append(int(self._generator.get_next_tokens()[0]))
            readings.append(time.perf_counter())
        return readings, ids


def open_runtime(job: dict[str, Any]) -> Genai:
    return Genai(job)
