"""Session: one conversation with one engine, from text to a stream of text.

It knows prompts, messages, stop strings and cancelling, and which tokens lie in the engine's slots, so that each turn
consumes only what is new. It does not know how tokens are computed, and it forgets nothing by itself.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from edgemem.runtime.engine import Engine
from edgemem.runtime.errors import ContextError, EdgememError, SettingsError
from edgemem.runtime.package import Package
from edgemem.runtime.prompt import Prompt, PromptReader
from edgemem.runtime.sampling import Sampler, Sampling
from edgemem.runtime.template import Message
from edgemem.runtime.text_stream import TextStream
from edgemem.runtime.tokenizer import Tokenizer

FinishReason = Literal["stop", "length", "cancelled", "error"]
GREEDY = Sampling()
_USUAL_CONTEXT = 4096
# Consumed at once, from slots 0, 128, 256 ... on; between them, cancel is looked at. Engines round by how many tokens
# come together, so a prompt is taken up again only at multiples of the second number within those parts, and never by
# its last token alone: then what was in the slots already makes no difference to the logits.
_PREFILL_TOKENS, _PREFILL_STEP = 128, 24


@dataclass(frozen=True)
class Chunk:
    """A piece of an answer: its text, never a broken character, and the tokens that made it.

    finish_reason is None but in the last chunk: "stop" for an end token or a stop string, "length" for max_tokens or
    full slots, "cancelled", or "error", after which the error itself is raised.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None = None


@dataclass
class Timings:
    """Of one answer, filled in while it runs. Time is the engine's: neither the consumer's nor the detokenizer's.

    prompt_tokens: all of the prompt; prefill_tokens and prefill_ms: what of it was not yet in the slots.
    time_to_first_token_ms: from the first chunk being asked for, tokenizing included; nan before the first token.
    decode_tokens and decode_ms: the tokens after the first, sampling included.
    """

    prompt_tokens: int = 0
    prefill_tokens: int = 0
    prefill_ms: float = 0.0
    time_to_first_token_ms: float = float("nan")
    decode_tokens: int = 0
    decode_ms: float = 0.0

    @property
    def prefill_tokens_per_second(self) -> float:
        return _per_second(self.prefill_tokens, self.prefill_ms)

    @property
    def decode_tokens_per_second(self) -> float:
        return _per_second(self.decode_tokens, self.decode_ms)


class _Request(NamedTuple):
    prompt: Prompt
    raw: bool
    sampling: Sampling
    max_tokens: int
    stop: str | Sequence[str]
    ignore_eos: bool


class Session:
    """A conversation. Answers run one at a time; `cancel` may be called from any thread.

    messages: the conversation so far, as {"role", "content"} dicts. An answer adds its question and itself when it
    ends, also when it was cancelled or failed half-way; not if it ended before its first token.
    timings: of the last answer, or of the one that runs.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        *,
        package: Package | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """The session closes `engine`, and `package` if given. `clock`: seconds."""
        self.engine, self.tokenizer, self.package = engine, tokenizer, package
        self.messages: list[Message] = []
        self.timings = Timings()
        where = None if package is None else package.path / "tokenizer_config.json"
        self._reader = PromptReader(tokenizer, engine.model.vocabulary, where=where)
        self._clock = clock
        self._slots: list[int] = []  # the tokens in the engine's slots
        self._busy = threading.Lock()
        self._cancelled = self._newest = threading.Event()  # of the answer that runs, of the one last asked for
        self._closing: Future[None] | None = None  # of the last astream, in its thread
        self._closed = False

    @classmethod
    def open(
        cls,
        path: Path | str,
        *,
        engine: str | None = None,
        context: int | None = None,
        threads: int | None = None,
        providers: Sequence[str] | None = None,
        kv: str | None = None,
    ) -> Session:
        """A session over the package at `path`.

        context: KV slots, by default the package's max_context but at most 4096, as they cost memory. engine, threads,
        providers and kv: as open_engine has them. Raises what Package.open, Tokenizer.open and open_engine raise.
        """
        from edgemem.runtime.open import open_engine

        package = Package.open(path)
        slots = min(package.manifest.max_context, _USUAL_CONTEXT) if context is None else context
        try:
            tokenizer = Tokenizer.open(package)
            opened = open_engine(package, engine, capacity=slots, threads=threads, providers=providers, kv=kv)
        except BaseException:
            package.close()
            raise
        return cls(opened, tokenizer, package=package)

    def stream(
        self,
        prompt: Prompt,
        *,
        sampling: Sampling = GREEDY,
        max_tokens: int = 256,
        stop: str | Sequence[str] = (),
        ignore_eos: bool = False,
        raw: bool = False,
    ) -> Iterator[Chunk]:
        """The answer, chunk by chunk; work begins when the first is asked for, and only as far as is asked for.

        prompt: a text is the next turn of the conversation, or, with `raw` or where the model has no chat template,
        the text that the model goes on with. A list of messages is a whole conversation, which becomes the session's.
        Token ids are taken as they are. The last chunk alone has a finish_reason. The same prompt and sampling give the
        same text again on the same engine and threads; one with an answer in it may differ in rounding, by whether that
        answer was still in the slots from being generated or had to be read.
        Raises SettingsError for bad arguments, a closed or a busy session, ContextError if the prompt is longer than
        the context: then nothing has changed. An engine's error is raised after a last chunk with what there was.
        """
        cancelled = self._newest = threading.Event()
        return self._answer(_Request(prompt, raw, sampling, max_tokens, stop, ignore_eos), cancelled)

    async def astream(
        self,
        prompt: Prompt,
        *,
        sampling: Sampling = GREEDY,
        max_tokens: int = 256,
        stop: str | Sequence[str] = (),
        ignore_eos: bool = False,
        raw: bool = False,
    ) -> AsyncIterator[Chunk]:
        """`stream` for asyncio, run in a thread of its own, which computes a chunk only when one is awaited.

        Cancelling the task, or leaving the loop, cancels the answer; one asked for next waits until that has ended.
        """
        cancelled = self._newest = threading.Event()
        for _ in range(3):  # a loop that was left: asyncio begins to close its iterator some turns later
            if self._busy.locked():
                await asyncio.sleep(0)
        if self._closing is not None:
            await asyncio.wait([asyncio.wrap_future(self._closing)])
        answer = self._answer(_Request(prompt, raw, sampling, max_tokens, stop, ignore_eos), cancelled)
        loop = asyncio.get_running_loop()
        worker = ThreadPoolExecutor(1, "edgemem-answer")
        try:
            while (chunk := await loop.run_in_executor(worker, next, answer, None)) is not None:
                yield chunk
        finally:
            cancelled.set()
            closing = self._closing = worker.submit(answer.close)  # after the step that may be under way
            worker.shutdown(wait=False)
            await asyncio.shield(asyncio.wrap_future(closing))

    def cancel(self) -> None:
        """End the answer that is running at its next token, or its next part of the prompt, and the one last asked
        for before its first. With neither, it does nothing."""
        self._cancelled.set()
        self._newest.set()

    def reset(self) -> None:
        """Forget the conversation and empty the slots. Raises SettingsError while an answer is running."""
        self._begin(threading.Event())
        try:
            self.messages, self._slots = [], []
            self.engine.truncate(0)
        finally:
            self._end()

    def close(self) -> None:
        """Free the engine, and the package if the session owns it. An answer that is running is cancelled first and
        frees them as it ends."""
        self._closed = True
        self.cancel()
        self._free()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _answer(self, request: _Request, cancelled: threading.Event) -> Generator[Chunk, None, None]:
        """One answer's life. However it ends, slots and messages agree afterwards and the session is free again."""
        self._begin(cancelled)
        try:
            timings = self.timings = Timings()
            started = self._clock()
            ends = self._checked_ends(request)
            writer = _Writer(TextStream(self.tokenizer, request.stop))
            tokens, conversation = self._prepare(request)
            generated = self._generate(tokens, request, cancelled, timings, started)
            began = ended = False
            problem: EdgememError | None = None
            try:
                for token in generated:
                    began = True
                    if token in ends:
                        ended = True
                        break
                    if chunk := writer.take(token):
                        yield chunk
                    if writer.stopped:
                        break
            except EdgememError as error:
                problem = error
            finally:
                generated.close()
                rest = writer.finish()
                if began and conversation is not None:
                    self.messages = [*conversation, {"role": "assistant", "content": writer.text}]
            yield Chunk(*rest, _reason(problem, ended or writer.stopped, cancelled.is_set()))
            if problem is not None:
                raise problem
        finally:
            self._end()

    def _generate(
        self, tokens: list[int], request: _Request, cancelled: threading.Event, timings: Timings, started: float
    ) -> Generator[int, None, None]:
        """Consume what of the prompt is not in the slots yet, then yield new tokens; `_slots` follows the engine."""
        engine, clock = self.engine, self._clock
        kept = _kept(_common_prefix(self._slots, tokens), len(tokens))
        del self._slots[kept:]
        engine.truncate(kept)
        timings.prompt_tokens = len(tokens)
        while len(self._slots) < len(tokens):
            if cancelled.is_set():
                return
            start = len(self._slots)
            part, mark = tokens[start : start + _PREFILL_TOKENS - start % _PREFILL_TOKENS], clock()
            engine.extend(np.array(part, dtype=np.int32))
            self._slots += part
            timings.prefill_tokens += len(part)
            timings.prefill_ms += 1e3 * (clock() - mark)
        if cancelled.is_set():
            return
        drawn: list[int] = []
        decoded = engine.decode(Sampler(request.sampling, tokens), request.max_tokens)
        try:
            mark = clock()
            for token in decoded:
                now = clock()
                if drawn:
                    timings.decode_tokens += 1
                    timings.decode_ms += 1e3 * (now - mark)
                else:
                    timings.time_to_first_token_ms = 1e3 * (now - started)
                drawn.append(token.id)
                yield token.id
                if cancelled.is_set():
                    return
                mark = clock()
        finally:
            decoded.close()
            self._slots += drawn[: engine.length - len(self._slots)]

    def _prepare(self, request: _Request) -> tuple[list[int], list[Message] | None]:
        """The prompt's tokens, no more than the context has, and the conversation that they are, if any."""
        tokens, conversation = self._reader.read(request.prompt, self.messages, raw=request.raw)
        capacity = self.engine.capacity
        if len(tokens) > capacity:
            raise ContextError(
                "the prompt is longer than the context",
                got=f"{len(tokens)} tokens",
                wanted=f"at most {capacity}",
                do="shorten the prompt or leave out earlier messages, or open the session with a larger context "
                f"(the model was trained for {self.engine.model.trained_context})",
            )
        return tokens, conversation

    def _checked_ends(self, request: _Request) -> frozenset[int]:
        if not isinstance(request.sampling, Sampling):
            raise SettingsError("sampling is no Sampling", got=type(request.sampling).__name__)
        if type(request.max_tokens) is not int or request.max_tokens < 1:
            raise SettingsError("max_tokens is out of range", got=repr(request.max_tokens), wanted="1 or more")
        return frozenset() if request.ignore_eos else self.tokenizer.eos_ids

    def _begin(self, cancelled: threading.Event) -> None:
        free = self._busy.acquire(blocking=False)
        if free:
            self._cancelled = cancelled  # before the look at _closed: close() sets that first and cancels second
        if self._closed:
            if free:
                self._end()
            raise SettingsError("the session is closed", do="open another")
        if not free:
            raise SettingsError(
                "the session is answering already",
                do="read that answer to its end, close() its iterator, or use a second session",
            )

    def _end(self) -> None:
        self._busy.release()
        if self._closed:
            self._free()

    def _free(self) -> None:
        """Close engine and package unless an answer still uses them; `_busy` then stays taken for good."""
        if self._busy.acquire(blocking=False):
            self.engine.close()
            if self.package is not None:
                self.package.close()


class _Writer:
    """Gathers tokens into chunks: a chunk goes out when there is text that is certain."""

    def __init__(self, stream: TextStream) -> None:
        self._stream = stream
        self._parts: list[str] = []
        self._unsent: list[int] = []

    @property
    def stopped(self) -> bool:
        return self._stream.stopped

    @property
    def text(self) -> str:
        return "".join(self._parts)

    def take(self, token: int) -> Chunk | None:
        self._unsent.append(token)
        text = self._stream.push(token)
        return Chunk(*self._sent(text)) if text else None

    def finish(self) -> tuple[str, tuple[int, ...]]:
        """The rest: text that was held back, and the tokens that no chunk has had."""
        return self._sent(self._stream.finish())

    def _sent(self, text: str) -> tuple[str, tuple[int, ...]]:
        self._parts.append(text)
        tokens, self._unsent = tuple(self._unsent), []
        return text, tokens


def _reason(problem: EdgememError | None, stopped: bool, cancelled: bool) -> FinishReason:
    if problem is not None:
        return "error"
    if stopped:
        return "stop"
    return "cancelled" if cancelled else "length"


def _common_prefix(ours: Sequence[int], theirs: Sequence[int]) -> int:
    """How many tokens both begin with."""
    for place, (left, right) in enumerate(zip(ours, theirs)):  # noqa: B905  # the shorter one ends it
        if left != right:
            return place
    return min(len(ours), len(theirs))


def _kept(common: int, count: int) -> int:
    """How many of the `common` tokens stay in their slots for a prompt of `count` tokens."""
    kept = min(common, count - 1)  # the last is always consumed anew: the engine's logits are those of the last extend
    inside = kept % _PREFILL_TOKENS
    kept -= inside % _PREFILL_STEP
    alone = kept == count - 1 and kept % _PREFILL_TOKENS > 0
    return kept - _PREFILL_STEP if alone else kept


def _per_second(count: int, milliseconds: float) -> float:
    return 1e3 * count / milliseconds if milliseconds > 0 else float("nan")
