"""NativeEngine: a package run by our own CPU kernels, one native call for a chunk of the prompt or several new tokens.

Weights are packed from the mapped package as it opens; the KV cache is fp16 or int8. It is the adapter between the
Engine protocol and kernels/cpu: it computes nothing itself.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from edgemem.kernels.cost import step_cost
from edgemem.kernels.native import native
from edgemem.runtime.budget import native_budget
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
from edgemem.runtime.errors import BudgetError, EngineError, PackageError, SettingsError
from edgemem.runtime.machine import available_memory, core_processors, usable_cores
from edgemem.runtime.model import ModelSpec
from edgemem.runtime.package import Package
from edgemem.runtime.sampling import Sampler

if TYPE_CHECKING:
    from edgemem.kernels._native import Conversation

_KINDS = {"int4": 0, "int8": 1, "fp16": 2, "bf16": 3, "fp32": 4}
_MATRICES = ("query", "key", "value", "output", "gate", "up", "down")
KV_KINDS = ("fp16", "int8")
_LANES = 16  # the kernels' rows are whole lanes
_MOST_HEAD_DIM = 512
# One native call yields this many tokens or takes about this long: a consumer sees text flow, and can cancel.
_BATCH_TOKENS, _BATCH_MS = 16, 20.0
MOST_TOGETHER = 128  # conversations of one extend_together


class NativeEngine:
    """The Engine protocol over layers [first, last) of a package."""

    name = "native"

    def __init__(
        self,
        package: Package,
        *,
        capacity: int | None = None,
        layers: tuple[int, int] | None = None,
        threads: int | None = None,
        kv: str = "fp16",
        path: str = "auto",
    ) -> None:
        """capacity: KV slots, by default the package's max_context. threads: by default the usable physical cores.
        kv: how keys and values are kept; "int8" has a scale for each head and slot, and takes about half the memory.
        path: the instruction set, one of `_native.paths()`, by default the fastest.

        Raises SettingsError for a value out of range, EngineError where the kernels were not built or do not run this
        model, PackageError for layers that the package does not hold, BudgetError if there is too little memory.
        """
        self.model = package.model
        self.layers = layer_range(layers, package)
        self.capacity = self._most_capacity = context_slots(capacity, package)
        self.length = 0
        threads = setting("threads", threads, default=usable_cores(), highest=1024)
        self._module = _kernels(self.model)
        if path not in ("auto", *self._module.paths()):
            wanted = ", ".join(("auto", *self._module.paths()))
            raise SettingsError("this processor has no such path", got=repr(path), wanted=wanted)
        if kv not in KV_KINDS:
            raise SettingsError("there is no such KV cache", got=repr(kv), wanted=" or ".join(KV_KINDS))
        self.kv = kv
        self.kv_element_bytes = 1 if kv == "int8" else 2
        native_budget(package, self.capacity, self.layers, threads, kv_as_bytes=kv == "int8").check(available_memory())
        self._package = package
        self._has_embedding, self._has_head = self.layers[0] == 0, self.layers[1] == self.model.layers
        with _errors():
            self._decoder = _open_decoder(
                self._module, package, self.layers, self.capacity, kv == "int8", threads, path
            )
        package.forget_pages()
        self.path: str = self._decoder.path

    def extend(
        self, inputs: NDArray[np.generic], *, surprisal: bool = False, tokens: NDArray[np.int32] | None = None
    ) -> Step:
        rows = np.asarray(inputs)
        if self._has_embedding:
            check_tokens(rows, self.model.vocabulary)
        else:
            check_states(rows, self.model.hidden)
        if surprisal and not (self._has_head and (self._has_embedding or tokens is not None)):
            raise SettingsError("surprisal needs tokens and logits", got=f"layers {self.layers}", wanted="the head")
        if surprisal and not self._has_embedding:
            tokens = np.ascontiguousarray(tokens, dtype=np.int32)
            check_tokens(tokens, self.model.vocabulary)
            if len(tokens) != len(rows):
                raise SettingsError("a token for each state is wanted", got=len(tokens), wanted=len(rows))
        check_room(len(rows), self.length, self.capacity)
        rows = np.ascontiguousarray(rows, dtype=np.int32 if self._has_embedding else np.float32)
        scores = np.empty(len(rows), dtype=np.float32) if surprisal else None
        hidden = None if self._has_head else np.empty((len(rows), self.model.hidden), dtype=np.float32)
        with self._settled() as decoder:
            if not self._has_embedding:
                finite = decoder.extend_states(rows, hidden, tokens if surprisal else None, scores)
            elif self._has_head:
                finite = decoder.extend_tokens(rows, scores)
            else:
                finite = decoder.tokens_to_states(rows, hidden)
            if not finite:
                raise not_finite("logits" if self._has_head else "hidden states", self.length)
            self.length = decoder.length
            return Step(self._logits(decoder), hidden, scores)

    def decode(self, sampler: Sampler, limit: int, *, surprisal: bool = False) -> Generator[Token, None, None]:
        """See Engine. Raises EngineError if there are no logits to begin with, NumericError at a step that fails."""
        if not (self._has_embedding and self._has_head):
            raise EngineError("decoding needs all layers", got=f"layers {self.layers}", do="join the stages outside")
        with self._settled() as decoder:
            if not decoder.has_logits:
                raise EngineError("there are no logits to sample from", do="extend first; truncate forgets them")
            drawing = self._sampler(sampler)
        return self._decode(sampler, drawing, limit, surprisal)

    def keep(self, slots: NDArray[np.int64]) -> None:
        """See Engine; the logits stay those of the last extend. Raises SettingsError for slots that are not in use."""
        slots = checked_slots(np.asarray(slots), self.length)
        with self._settled() as decoder:
            decoder.keep(slots)
        self.length = len(slots)

    def truncate(self, length: int) -> None:
        if type(length) is not int or not 0 <= length <= self.length:
            raise SettingsError("cannot truncate to this length", got=length, wanted=f"0 to {self.length} slots")
        self.length = length
        with self._settled():
            pass

    def state(self) -> KVState:
        """A copy of the memory: float16, or float32 of an int8 cache, whose values restore to the same bytes."""
        keys, values = (np.empty(self._state_shape(self.length), dtype=np.float32) for _ in range(2))
        with self._settled() as decoder:
            decoder.read_state(keys.reshape(-1), values.reshape(-1))
            dtype = self._state_dtype
            return KVState(keys.astype(dtype, copy=False), values.astype(dtype, copy=False), self._logits(decoder))

    def restore(self, state: KVState) -> None:
        wanted = self._state_shape(state.length)
        for name, part in (("keys", state.keys), ("values", state.values)):
            if part.dtype != self._state_dtype or part.shape != wanted or state.length > self.capacity:
                shape = f"({', '.join(map(str, wanted[:2]))}, at most {self.capacity}, {wanted[3]})"
                raise PackageError(
                    "the saved memory is not of this engine",
                    where=name,
                    got=f"{part.dtype}{part.shape}",
                    wanted=f"{self._state_dtype}{shape}",
                )
        logits = state.logits
        if logits is not None and (not self._has_head or logits.shape != (self.model.vocabulary,)):
            raise PackageError("the saved logits are not of this engine", got=logits.shape)
        keys, values = (part.astype(np.float32).reshape(-1) for part in (state.keys, state.values))
        row = None if logits is None else np.ascontiguousarray(logits, dtype=np.float32)
        with self._settled() as decoder:
            decoder.write_state(keys, values, state.length, row)
        self.length = state.length

    def traffic(self) -> Traffic:
        self._check_open()
        cost = step_cost(
            self.model, self._package.precision, self.length, kv_element_bytes=self.kv_element_bytes, layers=self.layers
        )
        # A float scale for each head of an int8 slot.
        scales = Fraction(4, self.model.head_dim) if self.kv == "int8" else Fraction()
        read, written = (int(part * (1 + scales)) for part in (cost.kv_read_bytes, cost.kv_write_bytes))
        return Traffic(cost.weight_bytes, read, written)

    def conversation(self, capacity: int | None = None) -> Conversation:
        """An empty one over the same weights, for `exchange`. capacity: KV slots, by default and at most as many as the
        engine was opened with. Its memory is not the engine's budget's, and is freed with it.

        Raises SettingsError for a capacity out of range.
        """
        self._check_open()
        slots = setting("capacity", capacity, default=self._most_capacity, highest=self._most_capacity)
        with _errors():
            return cast("Conversation", self._decoder.conversation(slots))

    def exchange(self, other: Conversation) -> None:
        """Go on with `other`, its slots and logits; it becomes the one of now. This takes no time."""
        with self._settled() as decoder:
            decoder.exchange(other)
            self.length, self.capacity = decoder.length, decoder.capacity

    def extend_together(self, conversations: Sequence[Conversation], inputs: NDArray[np.generic]) -> list[Step | None]:
        """One row more for each of 1 to MOST_TOGETHER conversations, in one pass over the weights; the one of now is
        not among them.

        inputs: as those of extend, a row for each. A row's result is bit for bit that of an extend, whatever the others
        are. It is None where it is not finite: that conversation, and no other, is as it was.

        Raises what extend raises of such rows, ContextError where any is full; then nothing has changed.
        """
        rows = np.asarray(inputs)
        if self._has_embedding:
            check_tokens(rows, self.model.vocabulary)
        else:
            check_states(rows, self.model.hidden)
        for one in conversations:
            check_room(1, one.length, one.capacity)
        rows = np.ascontiguousarray(rows, dtype=np.int32 if self._has_embedding else np.float32)
        width = self.model.vocabulary if self._has_head else self.model.hidden
        outs = [np.empty(width, dtype=np.float32) for _ in conversations]
        tokens, states = (rows, None) if self._has_embedding else (None, rows)
        with self._settled() as decoder:
            finite = decoder.extend_together(list(conversations), tokens, states, outs)
        steps = [Step(logits=out) if self._has_head else Step(hidden=out[None]) for out in outs]
        return [step if is_finite else None for step, is_finite in zip(steps, finite, strict=True)]

    def close(self) -> None:
        """End the threads and free the memory. The package stays open; the engine cannot run any more."""
        decoder, self._decoder = self._decoder, None
        if decoder is not None:
            with _errors():
                decoder.close()

    @contextmanager
    def _settled(self) -> Iterator[Any]:
        """The decoder, with nothing in it beyond `length`: what a decode that was left early had run ahead is
        forgotten, and its logits with it. Errors of the kernels become the project's."""
        self._check_open()
        with _errors():
            self._decoder.truncate(self.length)
            yield self._decoder

    def _check_open(self) -> None:
        if self._decoder is None:
            raise EngineError("the engine is closed", do="open another")

    def _decode(self, sampler: Sampler, drawing: Any, limit: int, surprisal: bool) -> Generator[Token, None, None]:
        pending, batch = -1, 1  # the first token needs no step: it is given at once
        while limit > 0:
            room = self.capacity - self.length + (pending < 0)
            if room == 0:
                return
            with self._settled() as decoder:
                start = self.length + (pending >= 0)
                ids, surprisals, finite = decoder.decode(
                    drawing, pending, min(batch, limit, room), _BATCH_MS, surprisal
                )
            for index, token in enumerate(ids):
                self._check_open()
                self.length = start + index
                sampler.accept_drawn(token)
                yield Token(token, surprisals[index] if surprisal else math.nan)
                pending = token
            if not finite:
                raise not_finite("logits", self.length)
            limit, batch = limit - len(ids), _BATCH_TOKENS

    def _sampler(self, sampler: Sampler) -> Any:
        settings = sampler.settings
        return self._module.Sampler(
            vocabulary=self.model.vocabulary,
            path=self.path,
            temperature=settings.temperature,
            top_k=settings.top_k,
            top_p=settings.top_p,
            log_min_p=math.log(settings.min_p) if settings.min_p > 0 else -math.inf,
            repetition_penalty=settings.repetition_penalty,
            seed=settings.seed,
            draws=sampler.draws,
            seen=sampler.penalised_tokens(self.model.vocabulary),
        )

    def _logits(self, decoder: Any) -> NDArray[np.float32] | None:
        if not decoder.has_logits:
            return None
        logits = np.empty(self.model.vocabulary, dtype=np.float32)
        decoder.copy_logits(logits)
        return logits

    @property
    def _state_dtype(self) -> np.dtype[Any]:
        return np.dtype(np.float16 if self.kv == "fp16" else np.float32)

    def _state_shape(self, length: int) -> tuple[int, int, int, int]:
        return self.layers[1] - self.layers[0], self.model.kv_heads, length, self.model.head_dim


def _kernels(model: ModelSpec) -> Any:
    """The native module. Raises EngineError where it was not built, or a dimension is not one of its own."""
    module = native()
    if module is None:
        raise EngineError("the native kernels were not built", do="install a C++ compiler, or use --engine onnx")
    sizes = {
        "hidden": model.hidden,
        "intermediate": model.intermediate,
        "heads * head_dim": model.heads * model.head_dim,
    }
    for name, size in sizes.items():
        if size % _LANES:
            raise EngineError(
                "the native engine does not run this model",
                got=f"{name} {size}",
                wanted=f"a multiple of {_LANES}",
                do="use --engine onnx",
            )
    if model.head_dim > _MOST_HEAD_DIM:
        raise EngineError(
            "the native engine does not run this model",
            got=f"head_dim {model.head_dim}",
            wanted=f"at most {_MOST_HEAD_DIM}",
            do="use --engine onnx",
        )
    return module


def _open_decoder(
    module: Any,
    package: Package,
    layers: tuple[int, int],
    capacity: int,
    kv_as_bytes: bool,
    threads: int,
    path: str,
) -> Any:
    model, (first, last) = package.model, layers
    has_head = last == model.layers
    embedding = _table(module, package, "embedding") if first == 0 else None
    head = None
    if has_head:
        head = embedding if model.tied_head and embedding is not None else _table(module, package, _head_name(model))
    cores = core_processors()
    return module.Decoder(
        shape=_shape(module, model, layers),
        ropes=[(list(rope.inverse_frequencies), rope.amplitude) for rope in model.ropes],
        layers=[_layer(module, package, index) for index in range(first, last)],
        embedding=embedding,
        head=head,
        norm=package.vector("norm") if has_head else None,
        capacity=capacity,
        kv_as_bytes=kv_as_bytes,
        processors=cores[:threads] if threads <= len(cores) else [-1] * threads,
        path=path,
    )


def _head_name(model: ModelSpec) -> str:
    return "embedding" if model.tied_head else "head"


def _shape(module: Any, model: ModelSpec, layers: tuple[int, int]) -> Any:
    shape = module.Shape()
    for name in ("hidden", "intermediate", "heads", "kv_heads", "head_dim", "vocabulary", "norm_epsilon"):
        setattr(shape, name, getattr(model, name))
    for name in ("attention_scale", "embedding_scale", "attention_softcap", "logit_softcap"):
        setattr(shape, name, getattr(model, name))
    shape.gelu = model.activation == "gelu_tanh"
    shape.has_embedding, shape.has_head = layers[0] == 0, layers[1] == model.layers
    return shape


def _layer(module: Any, package: Package, index: int) -> tuple[dict[str, Any], dict[str, Any], int, int]:
    prefix = f"layers.{index}."
    matrices = {name: _table(module, package, prefix + name) for name in _MATRICES}
    names = [name for name, _ in package.model.vectors(index, index + 1) if name.startswith(prefix)]
    vectors = {name.removeprefix(prefix): package.vector(name) for name in names}
    return matrices, vectors, package.model.layer_ropes[index], package.model.windows[index]


def _table(module: Any, package: Package, name: str) -> Any:
    """The matrix as it lies in the mapped file."""
    matrix = package.matrix(name)
    parts = [part.reshape(-1).view(np.uint8) for part in matrix.parts]
    codes, scales, minima = (*parts, None, None)[:3]
    return module.Table(_KINDS[matrix.stored.kind], *matrix.shape, matrix.stored.group, codes, scales, minima)


@contextmanager
def _errors() -> Iterator[None]:
    """What the kernels raise, as the project's own errors."""
    try:
        yield
    except MemoryError as problem:
        raise BudgetError("the memory for the engine could not be had", do="open with a smaller context") from problem
    except (ValueError, TypeError) as problem:
        raise EngineError("the native kernels refused", got=problem, do="use --engine onnx") from problem
    except RuntimeError as problem:  # in use elsewhere, or in a forked process
        raise EngineError("the native engine cannot run now", got=problem, do="open one for itself") from problem
