"""llama.cpp through the C functions of llama-cpp-python. A step is llama_decode of one token and an arg-max of its
logits by NumPy, which is cheaper than a sampler chain.

Batch, micro-batch, fp16 KV and flash attention are the library's defaults, as in llama-bench.
"""

from __future__ import annotations

import ctypes
import time
from typing import Any

import llama_cpp  # type: ignore[import-not-found]  # only in its own environment
import numpy as np


class LlamaCpp:
    def __init__(self, job: dict[str, Any]) -> None:
        llama_cpp.llama_backend_init()
        self._model = _there(
            llama_cpp.llama_model_load_from_file(job["gguf"].encode(), llama_cpp.llama_model_default_params()),
            "the model was not loaded",
        )
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx = job["context"]
        settings.n_threads = settings.n_threads_batch = job["threads"]
        self._context = _there(llama_cpp.llama_init_from_model(self._model, settings), "no context was made")
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self._batch = llama_cpp.llama_n_batch(self._context)
        self._held: list[int] = []
        self.about = {
            "kv_element_bytes": 2,
            "batch": self._batch,
            "micro_batch": llama_cpp.llama_n_ubatch(self._context),
            "system": llama_cpp.llama_print_system_info().decode(),
        }

    def prefill(self, ids: list[int]) -> float:
        self._keep(0)
        self._held = ids
        tokens = (ctypes.c_int32 * len(ids))(*ids)
        started = time.perf_counter()
        for first in range(0, len(ids), self._batch):
            count = min(self._batch, len(ids) - first)
            self._consume((ctypes.c_int32 * count).from_buffer(tokens, 4 * first), count)
        self._logits()
        return time.perf_counter() - started

    def decode(self, prompt: list[int], steps: int) -> tuple[list[float], list[int]]:
        if self._held[: len(prompt) - 1] != prompt[:-1]:
            self.prefill(prompt[:-1])
        self._keep(len(prompt) - 1)
        self._held = prompt[:-1]
        token, ids = (ctypes.c_int32 * 1)(prompt[-1]), []
        readings = [time.perf_counter()]
        for _ in range(steps):
            self._consume(token, 1)
            token[0] = int(self._logits().argmax())
            ids.append(token[0])
            readings.append(time.perf_counter())
        return readings, ids

    def _keep(self, length: int) -> None:
        if not llama_cpp.llama_memory_seq_rm(self._memory, 0, length, -1):
            raise RuntimeError(f"llama_memory_seq_rm to {length} failed")

    def _consume(self, tokens: Any, count: int) -> None:
        status = llama_cpp.llama_decode(self._context, llama_cpp.llama_batch_get_one(tokens, count))
        if status != 0:
            raise RuntimeError(f"llama_decode gave {status}")

    def _logits(self) -> Any:
        return np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(self._context, -1), (self._vocabulary,))


def _there(handle: Any, problem: str) -> Any:
    if not handle:
        raise RuntimeError(problem)
    return handle


def open_runtime(job: dict[str, Any]) -> LlamaCpp:
    return LlamaCpp(job)
