"""openvino-genai, which opens the GGUF file itself. A step lies between two tokens reaching the streamer.

The pipeline is the default one on a CPU, paged attention, but without the prefix cache, which would skip a prompt it
has seen before. Its KV is int8 and its arithmetic what the processor does best, as a user gets them.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import openvino  # type: ignore[import-not-found]  # only in its own environment
import openvino_genai  # type: ignore[import-not-found]


class Clock(openvino_genai.StreamerBase):  # type: ignore[misc]
    """Notes when each token came."""

    def __init__(self) -> None:
        super().__init__()
        self.readings: list[float] = []
        self.ids: list[int] = []

    def write(self, token: Any) -> Any:
        self.readings.append(time.perf_counter())
        self.ids += token if isinstance(token, list) else [token]
        return openvino_genai.StreamingStatus.RUNNING

    def end(self) -> None:
        pass


class OpenVino:
    def __init__(self, job: dict[str, Any]) -> None:
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.enable_prefix_caching = False
        scheduler.max_num_batched_tokens = job["context"]
        self._pipeline = openvino_genai.LLMPipeline(
            job["gguf"], "CPU", scheduler_config=scheduler, INFERENCE_NUM_THREADS=job["threads"]
        )
        self.about = {"kv_element_bytes": 1, "openvino": openvino.__version__}

    def prefill(self, ids: list[int]) -> float:
        started = time.perf_counter()
        return self._generate(ids, 1).readings[0] - started

    def decode(self, prompt: list[int], steps: int) -> tuple[list[float], list[int]]:
        clock = self._generate(prompt, steps + 1)
        return clock.readings, clock.ids

    def _generate(self, ids: list[int], count: int) -> Clock:
        settings = openvino_genai.GenerationConfig()
        settings.max_new_tokens = count
        settings.ignore_eos = True
        settings.do_sample = False
        clock = Clock()
        self._pipeline.generate(openvino.Tensor(np.array([ids], dtype=np.int64)), settings, clock)
        return clock


def open_runtime(job: dict[str, Any]) -> OpenVino:
    return OpenVino(job)
