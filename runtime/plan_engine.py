"""PlanEngine: the Engine protocol over a plan, that is a decoder built for fixed buffers and a few sizes.

It cuts input into chunks, takes the smallest bucket that holds the slots in use, and keeps account of them; a runner
executes. All buckets look at one cache, so that going from one to the next copies nothing.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemem.kernels.cost import kv_slot_bytes, step_cost
from edgemem.kernels.formats import Precision
from edgemem.runtime.engine import KVState, Step, Token, Traffic
from edgemem.runtime.engine_inputs import check_room, check_states, check_tokens, not_finite
from edgemem.runtime.errors import EngineError, PackageError, SettingsError
from edgemem.runtime.package import Package
from edgemem.runtime.plan_buffers import PlanBuffers
from edgemem.runtime.plan_cache import KV_ELEMENT_BYTES, import_torch
from edgemem.runtime.plan_runner import PlanRunner
from edgemem.runtime.sampling import Sampler


@dataclass(frozen=True)
class _InPlan:
    """How a plan holds a matrix: as the package does, but that a group's minimum is float32 and not float16."""

    precision: Precision

    def bytes_for(self, rows: int, columns: int) -> int:
        more = 2 * rows * columns // self.precision.group if self.precision.minimum else 0
        return self.precision.bytes_for(rows, columns) + more


class PlanEngine:
    """The Engine protocol over layers [first, last) of a package."""

    kv_element_bytes = KV_ELEMENT_BYTES

    def __init__(self, package: Package, runner: PlanRunner, *, name: str, capacity: int | None = None) -> None:
        """name: of the engine. capacity: KV slots, at most and by default those of the plan; else SettingsError."""
        shape = runner.buffers.shape
        if capacity is not None and not 1 <= capacity <= shape.capacity:
            raise SettingsError(
                "the plan was built for fewer slots",
                got=capacity,
                wanted=f"1 to {shape.capacity}",
                do="choose a smaller context, or build it again with a larger --max-context",
            )
        self.name, self.model, self.layers = name, package.model, shape.layers
        self.capacity, self.length = capacity or shape.capacity, 0
        self._torch = import_torch()
        self._package, self._shape = package, shape
        self._runner: PlanRunner | None = runner
        # The logits after the last token: on the device after a run, and here once someone asked for them.
        self._row: Any = None
        self._logits: NDArray[np.float32] | None = None
        self._likeliest = 0  # of _row

    def extend(
        self, inputs: NDArray[np.generic], *, surprisal: bool = False, tokens: NDArray[np.int32] | None = None
    ) -> Step:
        """See Engine. Input longer than the plan's chunk is run in chunks, with the same result but for rounding."""
        buffers = self._buffers()
        rows = self._checked(np.asarray(inputs), surprisal, buffers)
        length, before = self.length, self._host_logits()
        scores = np.empty(len(rows), dtype=np.float32) if surprisal else None
        hidden = None if buffers.has_head else np.empty((len(rows), self.model.hidden), dtype=np.float32)
        try:
            for start in range(0, len(rows), self._most(surprisal)):
                part = slice(start, start + self._most(surprisal))
                self._run_chunk(rows[part], None if hidden is None else hidden[part], scores, start)
            return Step(self._host_logits(), hidden, scores)
        except BaseException:
            buffers.cache.clear(length, min(length + len(rows), self.capacity))
            self.length, self._row, self._logits = length, None, before
            raise

    def decode(self, sampler: Sampler, limit: int, *, surprisal: bool = False) -> Generator[Token, None, None]:
        """See Engine. Raises EngineError if there are no logits to begin with, NumericError at a step that fails."""
        buffers = self._buffers()
        if not (buffers.has_embedding and buffers.has_head):
            raise EngineError("decoding needs all layers", got=f"layers {self.layers}", do="join the stages outside")
        if self._row is None and self._logits is None:
            raise EngineError("there are no logits to sample from", do="extend first; truncate forgets them")
        return self._decode(sampler, limit, surprisal)

    def keep(self, slots: NDArray[np.int64]) -> None:
        """See Engine; the logits stay those of the last extend. Raises SettingsError for slots that are not in use."""
        slots = np.asarray(slots)
        self._buffers().cache.move(slots, self.length)
        self.length = len(slots)

    def truncate(self, length: int) -> None:
        """See Engine. Raises SettingsError for more slots than are in use."""
        cache = self._buffers().cache
        if not 0 <= length <= self.length:
            raise SettingsError("cannot truncate to this length", got=length, wanted=f"0 to {self.length} slots")
        if length < self.length:
            cache.clear(length, self.length)
            self.length, self._row, self._logits = length, None, None

    def state(self) -> KVState:
        """See Engine."""
        keys, values = self._buffers().cache.save(self.length)
        logits = self._host_logits()
        return KVState(keys, values, None if logits is None else logits.copy())

    def restore(self, state: KVState) -> None:
        """See Engine. Raises PackageError for a state of another shape; then nothing has changed."""
        cache = self._buffers().cache
        layers, _, kv_heads, _, head_dim = cache.buffer.shape
        for name, part in (("keys", state.keys), ("values", state.values)):
            fits = part.dtype == np.float16 and part.shape == (layers, kv_heads, state.length, head_dim)
            if not fits or state.length > self.capacity:
                raise PackageError(
                    "the saved memory is not of this engine",
                    where=name,
                    got=f"{part.dtype}{part.shape}",
                    wanted=f"float16 ({layers}, {kv_heads}, at most {self.capacity}, {head_dim})",
                    do="restore it in an engine of the same model and layers, with slots enough",
                )
        logits, has_head = state.logits, self._buffers().has_head
        if logits is not None and (not has_head or logits.shape != (self.model.vocabulary,)):
            raise PackageError("the saved logits are not of this engine", got=logits.shape)
        cache.load(state.keys, state.values, self.length)
        self.length, self._row = state.length, None
        self._logits = None if logits is None else logits.astype(np.float32)

    def traffic(self) -> Traffic:
        """See Engine. Of keys and values it counts the whole bucket, which is what a plan's attention reads."""
        self._buffers()
        cost = step_cost(self.model, self._stored, 0, kv_element_bytes=self.kv_element_bytes, layers=self.layers)
        bucket = self._shape.bucket(min(self.length + 1, self._shape.capacity))
        read = bucket * kv_slot_bytes(self.model, self.kv_element_bytes, self.layers)
        return Traffic(cost.weight_bytes, read, cost.kv_write_bytes)

    def close(self) -> None:
        """See Engine."""
        if self._runner is not None:
            self._runner.close()
        self._runner = self._row = self._logits = None

    def _stored(self, name: str) -> _InPlan:
        return _InPlan(self._package.precision(name))

    def _buffers(self) -> PlanBuffers:
        return self._open().buffers

    def _open(self) -> PlanRunner:
        if self._runner is None:
            raise EngineError("the engine is closed", do="open another")
        return self._runner

    def _checked(self, inputs: NDArray[Any], surprisal: bool, buffers: PlanBuffers) -> NDArray[Any]:
        """The inputs as the plan takes them. Raises what extend raises for bad ones."""
        if buffers.has_embedding:
            check_tokens(inputs, self.model.vocabulary)
        else:
            check_states(inputs, self.model.hidden)
        if surprisal and not (buffers.has_embedding and buffers.has_head):
            raise SettingsError("surprisal needs tokens and logits", got=f"layers {self.layers}", wanted="all layers")
        check_room(len(inputs), self.length, self.capacity)
        return inputs.astype(np.int64) if buffers.has_embedding else inputs

    def _most(self, scored: bool) -> int:
        return min(self._shape.chunk, self._shape.rows) if scored else self._shape.chunk

    def _run_chunk(
        self,
        rows: NDArray[Any],
        hidden: NDArray[np.float32] | None,
        scores: NDArray[np.float32] | None,
        start: int,
    ) -> None:
        """One run over `rows`; fills `hidden`, and of `scores` those of the rows, the first of which is `start`."""
        if scores is not None:
            scores[start] = self._surprisal(int(rows[0]))
        self._run(rows, 1 if scores is None else len(rows))
        if scores is not None and len(rows) > 1:
            before = self._buffers().logits(len(rows))[:-1]
            chosen = self._torch.from_numpy(rows[1:]).to(before.device)[:, None]
            lost = before.logsumexp(dim=1) - before.gather(1, chosen)[:, 0]
            scores[start + 1 : start + len(rows)] = lost.cpu().numpy()
        if hidden is not None:
            states = self._buffers().hidden(len(rows))
            if not bool(states.isfinite().all()):
                raise not_finite("hidden states", self.length)
            hidden[:] = states.cpu().numpy()

    def _run(self, rows: NDArray[Any], logits_rows: int) -> None:
        """Run over new slots and count them in; the logits of the last are then those of the engine."""
        runner, count = self._open(), len(rows)
        self._row = self._logits = None
        runner.buffers.fill(rows, self.length, logits_rows)
        runner.run(count, self._shape.bucket(self.length + count), logits_rows)
        if runner.buffers.has_head:
            row = runner.buffers.logits(logits_rows)[-1]
            # Of equal logits the first; both numbers in one wait for the device.
            likeliest, greatest = self._torch.stack((row.argmax().double(), row.amax().double())).tolist()
            # The greatest logit is nan if any is, and infinite if any is +inf: all that sampling can stumble over.
            if not math.isfinite(greatest):
                raise not_finite("logits", self.length)
            self._row, self._likeliest = row, int(likeliest)
        self.length += count

    def _decode(self, sampler: Sampler, limit: int, surprisal: bool) -> Generator[Token, None, None]:
        for left in range(limit - 1, -1, -1):
            self._open()
            token = self._chosen(sampler)
            yield Token(token, self._surprisal(token) if surprisal else math.nan)
            if left == 0 or self.length == self.capacity:
                return
            cache = self._buffers().cache
            try:
                self._run(np.array([token], dtype=np.int64), 1)
            except BaseException:
                cache.clear(self.length, self.length + 1)
                raise

    def _chosen(self, sampler: Sampler) -> int:
        """The next token; of a greedy answer the device has told its number, and the logits stay there."""
        settings = sampler.settings
        if self._row is not None and settings.temperature == 0 and settings.repetition_penalty == 1:
            sampler.accept_drawn(self._likeliest)
            return self._likeliest
        logits = self._host_logits()
        if logits is None:
            raise EngineError("there are no logits to sample from", do="extend first; truncate forgets them")
        return sampler.sample(logits)

    def _surprisal(self, token: int) -> float:
        """-log p(token) by the logits held, nan if there are none."""
        row = self._row
        if row is None and self._logits is not None:
            row = self._torch.from_numpy(self._logits)
        return math.nan if row is None else float(row.logsumexp(dim=0) - row[token])

    def _host_logits(self) -> NDArray[np.float32] | None:
        """The logits after the last token in CPU memory, copied there at most once; None where there are none."""
        if self._logits is None and self._row is not None:
            self._logits = self._row.cpu().numpy().copy()
        return self._logits
