"""CudaEngine: a package run on an NVIDIA GPU by Triton kernels, whole steps replayed as CUDA graphs.

Weights, cache, logits and sampling stay on the device; while text is generated the host only queues replays, reads the
tokens that come back, and counts. It computes nothing itself, and knows no kernel but by cuda_step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from edgemem.kernels.cost import step_cost
from edgemem.kernels.cuda.chunk import CHUNK
from edgemem.kernels.cuda.device_cache import DeviceCache, Kind
from edgemem.kernels.cuda.launching import device, interpreted
from edgemem.kernels.cuda.sampling import DeviceSampler
from edgemem.runtime.cuda_budget import available_gpu_memory, cuda_budget
from edgemem.runtime.cuda_faults import gpu_faults
from edgemem.runtime.cuda_graphs import STEPS_A_REPLAY, Mode, Replayed, StepsAhead, TokenReturn, known_modes
from edgemem.runtime.cuda_step import CudaStep
from edgemem.runtime.engine import KVState, Step, Token, Traffic
from edgemem.runtime.engine_inputs import (
    check_room,
    check_states,
    check_tokens,
    checked_slots,
    context_slots,
    layer_range,
    not_finite,
    setting,
)
from edgemem.runtime.errors import EngineError, PackageError, SettingsError
from edgemem.runtime.package import Package
from edgemem.runtime.sampling import Sampler, Sampling

KV_KINDS = get_args(Kind)
_KV_BYTES = {"fp16": (2, 0), "bf16": (2, 0), "int8": (1, 4), "fp8": (1, 0)}  # of an element, and of a head's scale


class CudaEngine:
    """The Engine protocol over layers [first, last) of a package."""

    name = "cuda"

    def __init__(
        self,
        package: Package,
        *,
        capacity: int | None = None,
        layers: tuple[int, int] | None = None,
        threads: int | None = None,
        kv: Kind = "fp16",
        mode: Mode | None = None,
    ) -> None:
        """capacity: KV slots, by default the package's max_context. threads: of no use to a GPU, and taken because
        every engine is asked alike. kv: how keys and values are kept, one of KV_KINDS. mode: how steps are launched,
        one of known_modes(), by default the last.

        Raises SettingsError for a value out of range, PackageError for layers that the package does not hold,
        EngineError for a model that the kernels do not run, or a GPU that fails, BudgetError if the GPU has too little
        free memory.
        """
        self.model = package.model
        self.layers = layer_range(layers, package)
        self.capacity = context_slots(capacity, package)
        self.length = 0
        setting("threads", threads, default=1, highest=1024)
        if kv not in KV_KINDS:
            raise SettingsError("there is no such KV cache", got=repr(kv), wanted=" or ".join(KV_KINDS))
        self.kv, self.mode = kv, _checked_mode(mode)
        self._package = package
        self._has_embedding, self._has_head = self.layers[0] == 0, self.layers[1] == self.model.layers
        self._ended: str | None = None
        self._calls = 0  # that changed what is in the slots: a decode that was overtaken must not go on
        self._logits_of: int | None = None  # slots in use when the logits on the device were made, None for no logits
        with self._running():
            cuda_budget(package, self.capacity, self.layers, kv).check(available_gpu_memory(), of="GPU")
            try:
                self._open()
            except ValueError as problem:
                do = "use --engine native"
                raise EngineError("the cuda engine does not run this model", got=problem, do=do) from problem
        package.forget_pages()

    def _open(self) -> None:
        model, count = self.model, self.layers[1] - self.layers[0]
        self._cache = DeviceCache(count, model.kv_heads, model.head_dim, self.capacity, self.kv, device())
        self._step = CudaStep(self._package, self.layers, self._cache)
        self._step.pdl = self.mode == "graph+pdl"
        self._sampler = DeviceSampler(model.vocabulary if self._has_head else 1, device())
        self._drawn = torch.zeros(STEPS_A_REPLAY, dtype=torch.int32, device=device())
        self._surprisals = torch.full((STEPS_A_REPLAY,), math.nan, device=device())
        self._back = TokenReturn(self._drawn, self._surprisals)
        self._spare_logits = torch.empty_like(self._step.logits)
        self._host_logits = torch.empty(len(self._step.logits), pin_memory=not interpreted())
        self._replayed: dict[tuple[object, ...], Replayed] = {}  # by mode, and what is in them
        # In the interpreter a step takes a second: a single token goes the way of many there.
        self._singly = not interpreted()

    def extend(
        self, inputs: NDArray[np.generic], *, surprisal: bool = False, tokens: NDArray[np.int32] | None = None
    ) -> Step:
        """See Engine. One row goes by a step as in decode, several by large products: the same but for rounding."""
        inputs = np.asarray(inputs)
        self._check(inputs, surprisal, tokens)
        scored = np.asarray(inputs if self._has_embedding else tokens) if surprisal else None
        with self._changing():
            dtype = torch.int64 if self._has_embedding else torch.float32
            rows = torch.tensor(inputs, dtype=dtype, device=device())
            length, logits_of = self.length, self._logits_of
            self._spare_logits.copy_(self._step.logits)
            try:
                return self._consume(rows, scored)
            except BaseException:
                self.length, self._logits_of = length, logits_of
                self._step.logits.copy_(self._spare_logits)
                raise

    def decode(self, sampler: Sampler, limit: int, *, surprisal: bool = False) -> Generator[Token, None, None]:
        """See Engine. Raises EngineError if there are no logits to begin with, NumericError at a step that fails."""
        self._check_open()
        if not (self._has_embedding and self._has_head):
            raise EngineError("decoding needs all layers", got=f"layers {self.layers}", do="join the stages outside")
        self._check_logits()
        return self._decode(sampler, limit, surprisal)

    def keep(self, slots: NDArray[np.int64]) -> None:
        """See Engine; the logits stay those of the last extend. Raises SettingsError for slots that are not in use."""
        self._check_open()
        slots = checked_slots(np.asarray(slots), self.length)
        frequencies = [self.model.ropes[rope].inverse_frequencies for rope in self.model.layer_ropes]
        with self._changing():
            self._cache.keep(slots, frequencies[slice(*self.layers)])
        if self._logits_of is not None:
            self._logits_of = len(slots) if self._logits_of == self.length else None
        self.length = len(slots)

    def truncate(self, length: int) -> None:
        """See Engine. Raises SettingsError for more slots than are in use."""
        self._check_open()
        if type(length) is not int or not 0 <= length <= self.length:
            raise SettingsError("cannot truncate to this length", got=length, wanted=f"0 to {self.length} slots")
        self._calls += 1
        if length < self.length:
            self.length, self._logits_of = length, None

    def state(self) -> KVState:
        """See Engine: float16, or float32 of a bf16 or int8 cache, whose values restore to the same bytes."""
        with self._running():
            keys, values = self._cache.save(self.length)
            return KVState(keys, values, None if self._logits_of != self.length else self._read_logits().copy())

    def restore(self, state: KVState) -> None:
        """See Engine. Raises PackageError for a state of another shape; then nothing has changed."""
        self._check_open()
        shape = (self.layers[1] - self.layers[0], self.model.kv_heads, state.length, self.model.head_dim)
        for name, part in (("keys", state.keys), ("values", state.values)):
            if part.dtype != self._cache.state_dtype or part.shape != shape or state.length > self.capacity:
                raise PackageError(
                    "the saved memory is not of this engine",
                    where=name,
                    got=f"{part.dtype}{part.shape}",
                    wanted=f"{self._cache.state_dtype}({shape[0]}, {shape[1]}, at most {self.capacity}, {shape[3]})",
                    do="restore it in an engine of the same model, layers and cache, with slots enough",
                )
        logits = state.logits
        if logits is not None and logits.shape != tuple(self._step.logits.shape):
            raise PackageError("the saved logits are not of this engine", got=logits.shape)
        with self._changing():
            self._cache.load(state.keys, state.values)
            if logits is not None:
                self._step.logits.copy_(torch.tensor(logits, dtype=torch.float32))
        self.length, self._logits_of = state.length, None if logits is None else state.length

    def traffic(self) -> Traffic:
        """See Engine."""
        self._check_open()
        element, scale = _KV_BYTES[self.kv]
        cost = step_cost(
            self.model,
            self._package.precision,
            self.length,
            kv_element_bytes=element,
            kv_scale_bytes=scale,
            layers=self.layers,
        )
        return Traffic(cost.weight_bytes, cost.kv_read_bytes, cost.kv_write_bytes)

    def set_mode(self, mode: Mode) -> None:
        """Launch steps in another way from now on: to compare them over the same weights. Raises SettingsError."""
        self._check_open()
        self._calls += 1
        self.mode = _checked_mode(mode)
        self._step.pdl = self.mode == "graph+pdl"

    def device_step_ms(self, steps: int) -> float:
        """Milliseconds of a greedy step when `steps` are queued at once and no token is waited for: what the GPU needs
        by itself. Slots stay as they are, and the logits are forgotten. steps: taken in whole replays, one at least.
        Raises EngineError in the interpreter."""
        if interpreted():
            raise EngineError("there is no GPU to time")
        replays = max(1, steps // STEPS_A_REPLAY)
        check_room(replays * STEPS_A_REPLAY, self.length, self.capacity)
        with self._changing():
            replayed = self._begin(Sampler(Sampling()), 0, surprisal=False).replayed
            self._logits_of = None
            before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            before.record()
            for _ in range(replays):
                replayed.run(STEPS_A_REPLAY)
            after.record()
            after.synchronize()
            passed = before.elapsed_time(after)
        return float(passed) / (replays * STEPS_A_REPLAY)

    def close(self) -> None:
        """See Engine."""
        if self._ended is None:
            self._end("closed")
            if not interpreted():
                torch.cuda.empty_cache()

    def _end(self, why: str) -> None:
        """Give up everything on the device; asks nothing of it."""
        self._ended = why
        for name in ("_replayed", "_step", "_cache", "_sampler", "_drawn", "_surprisals", "_back", "_spare_logits"):
            self.__dict__.pop(name, None)

    def _check_open(self) -> None:
        if self._ended is not None:
            raise EngineError("the engine is closed", got=self._ended, do="open another")

    def _check_logits(self) -> None:
        if self._logits_of != self.length:
            raise EngineError("there are no logits to sample from", do="extend first; truncate forgets them")

    @contextmanager
    def _running(self) -> Iterator[None]:
        """The GPU at work: what goes wrong there ends the engine."""
        self._check_open()
        with torch.inference_mode(), gpu_faults(self._end):
            yield

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """The same, and a decode that is under way must not go on behind it."""
        with self._running():
            self._calls += 1
            yield

    def _check(self, inputs: NDArray[Any], surprisal: bool, tokens: NDArray[np.int32] | None) -> None:
        """Raises what extend raises for bad inputs."""
        self._check_open()
        if self._has_embedding:
            check_tokens(inputs, self.model.vocabulary)
        else:
            check_states(inputs, self.model.hidden)
        if surprisal and not (self._has_head and (self._has_embedding or tokens is not None)):
            raise SettingsError("surprisal needs tokens and logits", got=f"layers {self.layers}", wanted="the head")
        if surprisal and not self._has_embedding:
            check_tokens(np.asarray(tokens), self.model.vocabulary)
            if len(np.asarray(tokens)) != len(inputs):
                raise SettingsError("a token for each state is wanted", got=len(np.asarray(tokens)), wanted=len(inputs))
        check_room(len(inputs), self.length, self.capacity)

    def _consume(self, rows: torch.Tensor, scored: NDArray[Any] | None) -> Step:
        """Take (n,) tokens or (n, hidden) states in; scored: the tokens whose surprisal is wanted."""
        count = len(rows)
        scores = None if scored is None else self._scores(scored)
        hidden = None if self._has_head else np.empty((count, self.model.hidden), dtype=np.float32)
        for start in range(0, count, CHUNK):
            part = rows[start : start + CHUNK]
            states = self._states(part, scores)
            if hidden is not None:
                hidden[start : start + len(part)] = states.cpu().numpy()
            if scores is not None and scored is not None:
                following = torch.tensor(scored[start + 1 : start + 1 + len(part)], dtype=torch.int64, device=device())
                known = self._step.surprisals(states[: len(following)], following)
                scores[start + 1 : start + 1 + len(following)] = known.cpu().numpy()
            self.length += len(part)
        if hidden is not None:
            if not np.isfinite(hidden).all():
                raise not_finite("hidden states", self.length - count)
            return Step(hidden=hidden)
        logits = self._read_logits()
        # The greatest logit is nan if any is, and infinite if any is +inf: all that sampling can stumble over.
        if not math.isfinite(logits.max()):
            raise not_finite("logits", self.length - count)
        self._logits_of = self.length
        return Step(logits=logits, surprisal=scores)

    def _states(self, part: torch.Tensor, scores: NDArray[np.float32] | None) -> torch.Tensor:
        """What leaves the last layer for some rows, (n, hidden), with the logits of the last one made."""
        if self._singly and len(part) == 1 and scores is None:
            self._step.position.fill_(self.length)
            (self._step.token if self._has_embedding else self._step.stream).copy_(part.reshape(-1))
            self._replay(("extend",), lambda _: self._step.launch()).run(1)
            return part if self._has_head else self._step.hidden()
        states = self._step.embedded(part) if self._has_embedding else part
        states = self._step.chunk(states, self.length)
        if self._has_head:
            self._step.score(states[-1])
        return states

    def _scores(self, scored: NDArray[Any]) -> NDArray[np.float32]:
        """(n,), of which the first is known, by the logits held: nan if there are none."""
        scores = np.full(len(scored), math.nan, dtype=np.float32)
        if self._logits_of == self.length:
            logits = self._step.logits
            scores[0] = float(torch.logsumexp(logits, 0) - logits[int(scored[0])])
        return scores

    def _read_logits(self) -> NDArray[np.float32]:
        """Those on the device, in the engine's own buffer."""
        self._host_logits.copy_(self._step.logits)
        logits: NDArray[np.float32] = self._host_logits.numpy()
        return logits

    def _decode(self, sampler: Sampler, limit: int, surprisal: bool) -> Generator[Token, None, None]:
        if limit < 1:
            return
        self._check_open()
        self._check_logits()  # an extend or truncate may have come between
        start, first = self.length, True
        with self._changing():
            calls, steps = self._calls, self._begin(sampler, min(limit - 1, self.capacity - start), surprisal)
        while True:
            with self._running():
                self._logits_of = None  # until it is known how far the device is ahead
                batch = steps.take()
                self._logits_of = start + steps.queued
            for token, score in batch:
                if token < 0:
                    self._logits_of = None
                    raise not_finite("logits", self.length)
                self.length += not first  # the token before has been consumed
                first = False
                sampler.accept_drawn(token)
                yield Token(token, score if surprisal else math.nan)
                self._check_open()
                if calls != self._calls:
                    raise EngineError("the engine was used in the middle of a decode", do="begin another decode")
            if not batch:
                return

    def _begin(self, sampler: Sampler, steps: int, surprisal: bool) -> StepsAhead:
        """An answer's settings, history and place into device memory, and its first token drawn."""
        settings = sampler.settings
        self._sampler.set(
            temperature=settings.temperature,
            top_k=settings.top_k,
            top_p=settings.top_p,
            log_min_p=math.log(settings.min_p) if settings.min_p > 0 else -math.inf,
            repetition_penalty=settings.repetition_penalty,
            seed=settings.seed,
            draws=sampler.draws,
            seen=sampler.penalised_tokens(self.model.vocabulary),
        )
        self._step.position.fill_(self.length - 1)  # each draw moves it on to the slot of its token
        self._draw(0, surprisal)
        kind = (*self._sampler.structure, surprisal)
        return StepsAhead(self._replay(kind, lambda index: self._advance(index, surprisal)), self._back, steps)

    def _replay(self, kind: tuple[object, ...], body: Callable[[int], None]) -> Replayed:
        return self._replayed.setdefault((self.mode, *kind), Replayed(body, self.mode))

    def _advance(self, index: int, surprisal: bool) -> None:
        """Queue the step that consumes the token drawn last, and the draw of the next, the batch's `index`th."""
        self._step.launch()
        self._draw(index, surprisal)

    def _draw(self, index: int, surprisal: bool) -> None:
        here = slice(index, index + 1)
        self._sampler.sample(
            self._step.logits,
            self._step.token,
            self._drawn[here],
            surprisal=self._surprisals[here] if surprisal else None,
            position=self._step.position,
            pdl=self._step.pdl,
        )


def _checked_mode(mode: Mode | None) -> Mode:
    known = known_modes()
    if mode is None:
        return known[-1]
    if mode not in known:
        raise SettingsError("steps cannot be launched so here", got=repr(mode), wanted=" or ".join(known))
    return mode
