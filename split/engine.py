"""SplitEngine: an Engine whose front layers run here, and the others in a Back, wherever that is.

It keeps both caches the same length and asks for no more logits than are needed. How a Back is reached, and what is
done when it is not, it does not know.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgemem.runtime.engine import Engine, KVState, Route, Step, Token, Traffic
from edgemem.runtime.engine_inputs import check_room, check_tokens, checked_slots
from edgemem.runtime.errors import EngineError, PackageError, SettingsError
from edgemem.runtime.model import ModelSpec
from edgemem.runtime.sampling import Sampler, Sampling
from edgemem.split.back import Answer, Ask, Back
from edgemem.split.coder import Coder
from edgemem.split.frames import CHUNK_TOKENS


class StepTimes(NamedTuple):
    """What one step of so many tokens took: in front of the split, and from there to the answer, ms. Of that the back
    stage computed for compute_ms, as it says itself."""

    tokens: int
    front_ms: float
    back_ms: float
    compute_ms: float


class SplitEngine:
    """The Engine protocol over all layers of a model; layers [0, split) are `front`'s.

    route: where the last answer came from. back: as given. times: of the last step; None before the first.
    """

    name = "split"

    def __init__(
        self,
        model: ModelSpec,
        front: Engine | None,
        back: Back,
        coder: Coder,
        *,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """front: None at split 0, where tokens cross as they are. The engine closes front and back. clock: seconds."""
        self.model, self.layers = model, (0, model.layers)
        self.capacity = back.capacity if front is None else min(front.capacity, back.capacity)
        self.length = 0
        self.times: StepTimes | None = None
        self.back = back
        self._front, self._coder, self._clock = front, coder, clock
        self._split = 0 if front is None else front.layers[1]
        self._row = np.full(model.vocabulary, -np.inf, dtype=np.float32)  # the logits known, -inf for the others
        self._answer: Answer | None = None  # what `_row` holds; None where no logits follow from the slots in use
        self._usual = 1  # logits that the last decode needed at each step
        self._closed = False

    @property
    def route(self) -> Route:
        return self.back.route

    def extend(
        self, inputs: NDArray[np.generic], *, surprisal: bool = False, tokens: NDArray[np.int32] | None = None
    ) -> Step:
        """See Engine. Raises what the Back raises, too."""
        self._check_open()
        rows = np.asarray(inputs)
        check_tokens(rows, self.model.vocabulary)
        check_room(len(rows), self.length, self.capacity)
        scores = np.empty(len(rows), dtype=np.float32) if surprisal else None
        self._consume(np.ascontiguousarray(rows, dtype=np.int32), scores, self._usual)
        return _LazyStep(lambda: self._logits(self.model.vocabulary), scores)

    def decode(self, sampler: Sampler, limit: int, *, surprisal: bool = False) -> Generator[Token, None, None]:
        """See Engine. Raises EngineError if there are no logits to begin with, and at a step what extend raises."""
        self._check_open()
        if self._answer is None:
            raise EngineError("there are no logits to sample from", do="extend first; truncate forgets them")
        return self._decode(sampler, limit, surprisal)

    def keep(self, slots: NDArray[np.int64]) -> None:
        self._check_open()
        slots = checked_slots(np.asarray(slots), self.length)
        if self._front is not None:
            self._front.keep(slots)
        self.back.keep(slots)
        self.length = len(slots)

    def truncate(self, length: int) -> None:
        self._check_open()
        if type(length) is not int or not 0 <= length <= self.length:
            raise SettingsError("cannot truncate to this length", got=length, wanted=f"0 to {self.length} slots")
        if length < self.length:
            self._cut(length)
            self._answer = None

    @property
    def has_logits(self) -> bool:
        """Whether it is known what follows the slots in use."""
        return self._answer is not None

    def forget_logits(self) -> None:
        """As truncate does."""
        self._answer = None

    def state(self) -> KVState:
        """See Engine. Raises EngineError where the cache of the back layers is a server's."""
        self._check_open()
        back = self.back.state()
        logits = None if self._answer is None else self._logits(self.model.vocabulary).copy()
        if self._front is None:
            return KVState(back.keys, back.values, logits)
        front = self._front.state()
        keys, values = ((front.keys, back.keys), (front.values, back.values))
        return KVState(np.concatenate(keys), np.concatenate(values), logits)

    def restore(self, state: KVState) -> None:
        """See Engine. Raises EngineError where the cache of the back layers is a server's."""
        self._check_open()
        layers, logits = len(state.keys), state.logits
        wrong = logits is not None and logits.shape != (self.model.vocabulary,)
        if wrong or layers != self.model.layers or len(state.values) != layers or state.length > self.capacity:
            got = f"{layers} layers, {state.length} slots"
            wanted = f"{self.model.layers} layers, at most {self.capacity} slots"
            raise PackageError("the saved memory is not of this engine", got=got, wanted=wanted)
        split = self._split
        self.back.restore(KVState(state.keys[split:], state.values[split:], logits))
        if self._front is not None:
            self._front.restore(KVState(state.keys[:split], state.values[:split], None))
        self.length, self._answer = state.length, None
        if logits is not None:
            self._take(self.back.logits(self.model.vocabulary))

    def traffic(self) -> Traffic:
        """Of the layers that are here for good: those of the front."""
        self._check_open()
        return Traffic(0, 0, 0) if self._front is None else self._front.traffic()

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self.back.close()
            if self._front is not None:
                self._front.close()

    def _check_open(self) -> None:
        if self._closed:
            raise EngineError("the engine is closed", do="open another")

    def _decode(self, sampler: Sampler, limit: int, surprisal: bool) -> Generator[Token, None, None]:
        wanted = self._usual = logits_wanted(sampler.settings, self.model.vocabulary)
        for left in range(limit - 1, -1, -1):
            self._check_open()
            token = sampler.sample(self._logits(wanted))
            yield Token(token, self._surprisal(token) if surprisal else math.nan)
            if left == 0 or self.length == self.capacity:
                return
            self._check_open()
            self._consume(np.array([token], dtype=np.int32), None, wanted)

    def _consume(self, tokens: NDArray[np.int32], scores: NDArray[np.float32] | None, wanted: int) -> None:
        """Into the next slots; `scores` are filled in. `wanted`: logits after the last. All, or on an error none."""
        start, begun = self.length, self._answer is not None
        try:
            for at in range(0, len(tokens), CHUNK_TOKENS):
                part = tokens[at : at + CHUNK_TOKENS]
                last = at + len(part) == len(tokens)
                answer = self._step(part, Ask(wanted if last else 0, None if scores is None else part, part))
                if scores is not None and answer.surprisal is not None:
                    scores[at : at + len(part)] = answer.surprisal
                self.length += len(part)
        except BaseException:
            if self.back.length > start:
                self._answer = None
            self._cut(start)
            raise
        if scores is not None and not begun:
            scores[0] = np.nan  # a back stage that was refilled may know more than was known here
        self._take(answer)

    def _step(self, tokens: NDArray[np.int32], ask: Ask) -> Answer:
        begun_s = self._clock()
        hidden = None if self._front is None else self._front.extend(tokens).hidden
        crossed_s = self._clock()
        answer = self.back.extend(self._coder.encode(tokens if hidden is None else hidden), len(tokens), ask)
        front_ms, back_ms = 1e3 * (crossed_s - begun_s), 1e3 * (self._clock() - crossed_s)
        self.times = StepTimes(len(tokens), front_ms, back_ms, answer.compute_ms)
        return answer

    def _cut(self, length: int) -> None:
        if self._front is not None and self._front.length > length:
            self._front.truncate(length)
        if self.back.length > length:
            self.back.truncate(length)
        self.length = length

    def _logits(self, wanted: int) -> NDArray[np.float32]:
        """(vocabulary,), of which the `wanted` highest are right."""
        if self._answer is None:
            raise EngineError("there are no logits", do="extend first; truncate forgets them")
        if len(self._answer.ids) < min(wanted, self.model.vocabulary):
            self._take(self.back.logits(wanted))
        return self._row

    def _take(self, answer: Answer) -> None:
        self._row.fill(-np.inf)
        self._row[answer.ids] = answer.values
        self._answer = answer

    def _surprisal(self, token: int) -> float:
        """-log p(token) by the logits held, of which the token's is one."""
        return math.nan if self._answer is None else self._answer.log_sum - float(self._row[token])


def logits_wanted(sampling: Sampling, vocabulary: int) -> int:
    """How many of the highest logits make the sampler choose as it would among all."""
    if sampling.repetition_penalty != 1:
        return vocabulary
    if sampling.temperature == 0:
        return 1
    return min(sampling.top_k, vocabulary) or vocabulary


class _LazyStep(Step):
    """Its logits are fetched when they are looked at: all of them take a slow link longer than the step."""

    def __init__(self, read: Callable[[], NDArray[np.float32]], surprisal: NDArray[np.float32] | None) -> None:
        for name, value in (("_read", read), ("hidden", None), ("surprisal", surprisal)):
            object.__setattr__(self, name, value)

    @property
    def logits(self) -> NDArray[np.float32]:
        read: Callable[[], NDArray[np.float32]] = self.__dict__["_read"]
        return read()
