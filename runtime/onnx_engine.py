"""OnnxEngine: a package's own ONNX graph, run by ONNX Runtime over KV buffers that are allocated once.

Past and present of a layer are bound to one buffer, so attention writes new slots in place; a decode step changes one
number and one length. Buffers lie in CPU memory: other providers work, but copy the cache at every step.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemem.kernels.cost import step_cost
from edgemem.runtime.budget import onnx_budget
from edgemem.runtime.engine import KVState, Step, Token, Traffic
from edgemem.runtime.engine_inputs import (
    check_room,
    check_states,
    check_tokens,
    context_slots,
    layer_range,
    not_finite,
    setting,
)
from edgemem.runtime.errors import EngineError, PackageError, SettingsError
from edgemem.runtime.kv_cache import KV_ELEMENT_BYTES, HostCache, aligned_zeros
from edgemem.runtime.machine import available_memory, usable_cores
from edgemem.runtime.onnx_session import open_session, run_session
from edgemem.runtime.package import Package
from edgemem.runtime.sampling import Sampler

_CHUNK, _SCORED_CHUNK = 512, 128
_SCORES = 64 << 20  # attention scores held at once by the kernels that hold those of a whole chunk
_CPU = ("CPUExecutionProvider",)
_LOGITS = 8 << 20  # logits held at once when surprisal is asked for


class OnnxEngine:
    """The Engine protocol over layers [first, last) of a package."""

    name = "onnx"
    kv_element_bytes = KV_ELEMENT_BYTES
    _logits: NDArray[np.float32] | None  # the buffer, while what it holds follows from the slots in use

    def __init__(
        self,
        package: Package,
        *,
        capacity: int | None = None,
        layers: tuple[int, int] | None = None,
        threads: int | None = None,
        providers: Sequence[str] | None = None,
    ) -> None:
        """capacity: KV slots, by default the package's max_context. threads: by default the usable physical cores.
        providers: ONNX Runtime's execution providers in order of preference, by default its CPU.

        Raises SettingsError for a value out of range, PackageError for layers that the package does not hold,
        EngineError for a missing provider or graph, BudgetError if there is too little memory.
        """
        self.model = package.model
        self.layers = layer_range(layers, package)
        self.capacity = context_slots(capacity, package)
        self.length = 0
        threads = setting("threads", threads, default=usable_cores(), highest=1024)
        graph = package.graph(*self.layers)
        # How many tokens one run takes; longer input is cut up, so that memory does not grow with it.
        self.chunk = max(1, min(_CHUNK, self.capacity, _SCORES // (self.model.heads * self.capacity)))
        self._scored_chunk = max(1, min(_SCORED_CHUNK, self.chunk, _LOGITS // self.model.vocabulary))
        budget = onnx_budget(package, self.capacity, self.layers, self.chunk, self._scored_chunk)
        budget.check(available_memory())
        self._package = package
        self._has_embedding, self._has_head = self.layers[0] == 0, self.layers[1] == self.model.layers
        self._session: Any = open_session(graph, providers=providers or _CPU, threads=threads)
        self._allocate()
        self._step, self._chunks, self._scored_chunks = self._bound(), self._bound(), self._bound()
        if self._has_embedding:
            self._bind_input(self._step, "input_ids", self._ids[None, :1])

    def extend(
        self, inputs: NDArray[np.generic], *, surprisal: bool = False, tokens: NDArray[np.int32] | None = None
    ) -> Step:
        """See Engine. Longer input than `chunk` is run in chunks, with the same result but for rounding."""
        self._check_open()
        rows = self._checked(np.asarray(inputs), surprisal)
        length, logits = self.length, self._logits
        np.copyto(self._spare_logits, self._logits_buffer)
        try:
            return self._consume(rows, surprisal)
        except BaseException:
            self.length, self._logits = length, logits
            np.copyto(self._logits_buffer, self._spare_logits)
            raise

    def decode(self, sampler: Sampler, limit: int, *, surprisal: bool = False) -> Generator[Token, None, None]:
        """See Engine. Raises EngineError if there are no logits to begin with, NumericError at a step that fails."""
        self._check_open()
        if not (self._has_embedding and self._has_head):
            raise EngineError("decoding needs all layers", got=f"layers {self.layers}", do="join the stages outside")
        if self._logits is None:
            raise EngineError("there are no logits to sample from", do="extend first; truncate forgets them")
        return self._decode(sampler, limit, surprisal)

    def keep(self, slots: NDArray[np.int64]) -> None:
        """See Engine; the logits stay those of the last extend. Raises SettingsError for slots that are not in use."""
        self._check_open()
        slots = np.asarray(slots)
        self._cache.move(slots, self.length)
        self.length = len(slots)

    def truncate(self, length: int) -> None:
        """See Engine. Raises SettingsError for more slots than are in use."""
        self._check_open()
        if not 0 <= length <= self.length:
            raise SettingsError("cannot truncate to this length", got=length, wanted=f"0 to {self.length} slots")
        if length < self.length:
            self.length, self._logits = length, None

    def state(self) -> KVState:
        """See Engine."""
        self._check_open()
        return self._cache.save(self.length, self._logits)

    def restore(self, state: KVState) -> None:
        """See Engine. Raises PackageError for a state of another shape; then nothing has changed."""
        self._check_open()
        logits = state.logits
        if logits is not None and logits.shape != self._logits_buffer.shape:
            raise PackageError(
                "the saved logits are not of this engine",
                got=logits.shape,
                wanted=self._logits_buffer.shape,
                do="restore it in an engine of the same model and layers",
            )
        self._cache.load(state)
        self.length, self._logits = state.length, None
        if logits is not None:
            np.copyto(self._logits_buffer, logits)
            self._logits = self._logits_buffer

    def traffic(self) -> Traffic:
        """See Engine."""
        self._check_open()
        cost = step_cost(
            self.model, self._package.precision, self.length, kv_element_bytes=self.kv_element_bytes, layers=self.layers
        )
        return Traffic(cost.weight_bytes, cost.kv_read_bytes, cost.kv_write_bytes)

    def close(self) -> None:
        """See Engine."""
        if self._session is None:
            return
        self._session = self._step = self._chunks = self._scored_chunks = None
        self._logits = None
        del self._cache, self._logits_buffer, self._spare_logits

    def _check_open(self) -> None:
        if self._session is None:
            raise EngineError("the engine is closed", do="open another")

    def _allocate(self) -> None:
        self._cache = HostCache(self.model, self.layers, self.capacity)
        self._mask = np.ones((1, self.capacity), dtype=np.int64)
        self._ids = np.zeros(self.chunk, dtype=np.int64)
        self._logits_rows = np.ones(1, dtype=np.int64)
        self._logits_buffer = aligned_zeros((self.model.vocabulary if self._has_head else 0,))
        self._spare_logits = self._logits_buffer.copy()
        self._logits = None

    def _bound(self) -> Any:
        """A binding of everything that never moves: the cache, the logits, how many rows get logits."""
        binding = self._session.io_binding()
        for layer, cache in zip(range(*self.layers), self._cache.buffer, strict=True):
            for part, values in zip(("key", "value"), cache, strict=True):
                self._bind_input(binding, f"past_key_values.{layer}.{part}", values[None])
                self._bind_output(binding, f"present.{layer}.{part}", values[None])
        if self._has_head:
            self._bind_input(binding, "logits_rows", self._logits_rows)
            self._bind_output(binding, "logits", self._logits_buffer[None, None])
        return binding

    def _bind_input(self, binding: Any, name: str, values: NDArray[Any]) -> None:
        binding.bind_input(name, "cpu", 0, values.dtype.type, values.shape, values.ctypes.data)

    def _bind_output(self, binding: Any, name: str, values: NDArray[Any]) -> None:
        binding.bind_output(name, "cpu", 0, values.dtype.type, values.shape, values.ctypes.data)

    def _checked(self, inputs: NDArray[Any], surprisal: bool) -> NDArray[Any]:
        """The inputs, contiguous. Raises what extend raises for bad ones."""
        if self._has_embedding:
            check_tokens(inputs, self.model.vocabulary)
        else:
            check_states(inputs, self.model.hidden)
        if surprisal and not (self._has_embedding and self._has_head):
            raise SettingsError("surprisal needs tokens and logits", got=f"layers {self.layers}", wanted="all layers")
        check_room(len(inputs), self.length, self.capacity)
        return np.ascontiguousarray(inputs)

    def _consume(self, rows: NDArray[Any], surprisal: bool) -> Step:
        count = len(rows)
        hidden = None if self._has_head else np.empty((count, self.model.hidden), dtype=np.float32)
        scores = np.empty(count, dtype=np.float32) if surprisal else None
        chunk = self._scored_chunk if surprisal else self.chunk
        for start in range(0, count, chunk):
            stop = min(start + chunk, count)
            if scores is not None:
                scores[start] = self._surprisal(int(rows[start]))
            self._run_chunk(
                rows[start:stop],
                None if hidden is None else hidden[start:stop],
                None if scores is None else scores[start + 1 : stop],
            )
        return Step(self._logits, hidden, scores)

    def _run_chunk(
        self, rows: NDArray[Any], hidden: NDArray[np.float32] | None, scores: NDArray[np.float32] | None
    ) -> None:
        """One run over `rows`; fills `hidden`, and `scores` of all rows but the first, where they are given."""
        binding = self._chunks if scores is None else self._scored_chunks
        count = len(rows)
        if self._has_embedding:
            self._ids[:count] = rows
            self._bind_input(binding, "input_ids", self._ids[None, :count])
        else:
            self._bind_input(binding, "hidden_states", rows[None])
        if hidden is not None:
            self._bind_output(binding, "hidden_states_out", hidden[None])
        if scores is not None:
            self._bind_output(binding, "surprisal", scores[None])
        self._logits_rows[0] = 1 if scores is None else count
        self._run(binding, count)
        if hidden is not None and not np.isfinite(hidden).all():
            raise not_finite("hidden states", self.length)

    def _run(self, binding: Any, count: int) -> None:
        """Run over `count` new slots and count them in."""
        self._bind_input(binding, "attention_mask", self._mask[:, : self.length + count])
        run_session(self._session, binding)
        # The greatest logit is nan if any is, and infinite if any is +inf: all that sampling can stumble over.
        if self._has_head:
            if not math.isfinite(self._logits_buffer.max()):
                raise not_finite("logits", self.length)
            self._logits = self._logits_buffer
        self.length += count

    def _decode(self, sampler: Sampler, limit: int, surprisal: bool) -> Generator[Token, None, None]:
        self._check_open()
        self._logits_rows[0] = 1
        for left in range(limit - 1, -1, -1):
            token = sampler.sample(self._logits_buffer)
            yield Token(token, self._surprisal(token) if surprisal else math.nan)
            if left == 0 or self.length == self.capacity:
                return
            self._check_open()
            self._logits = None  # until the run has given new ones
            self._ids[0] = token
            self._run(self._step, 1)

    def _surprisal(self, token: int) -> float:
        """-log p(token) by the logits held, nan if there are none."""
        if self._logits is None:
            return math.nan
        greatest = self._logits.max()
        return float(greatest + np.log(np.exp(self._logits - greatest).sum()) - self._logits[token])
