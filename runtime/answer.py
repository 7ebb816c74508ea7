"""An answer: what is asked for, the tokens that the memory gives, the chunks that they come in, how long it took."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from edgemem.runtime.engine import Engine, Route, route_of
from edgemem.runtime.memory.memory import Memory
from edgemem.runtime.prompt import Prompt
from edgemem.runtime.sampling import Sampler, Sampling
from edgemem.runtime.store import Role
from edgemem.runtime.text_stream import TextStream
from edgemem.runtime.turn import Turn

FinishReason = Literal["stop", "length", "cancelled", "error"]


class Request(NamedTuple):
    """What Session.stream takes. resumes: to go on with the turn that was cut off; the prompt is none, then. notes: the
    prompt is a note, and its answer is to have no tokens."""

    prompt: Prompt
    raw: bool
    sampling: Sampling
    max_tokens: int
    stop: str | Sequence[str]
    ignore_eos: bool
    pinned: bool
    resumes: bool = False
    notes: bool = False


@dataclass(frozen=True)
class Chunk:
    """A piece of an answer: its text, never a broken character, and the tokens that made it.

    finish_reason is None but in the last chunk: "stop" for an end token or a stop string, "length" for max_tokens or
    full slots, "cancelled", or "error", after which the error itself is raised. route: where it was computed; None of
    an engine that is all here.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None = None
    route: Route | None = None


@dataclass
class Timings:
    """Of one answer, filled in while it runs. Time is the engine's: neither the consumer's nor the detokenizer's.

    prompt_tokens: all of the prompt; prefill_tokens and prefill_ms: what of it was not yet in the slots.
    time_to_first_token_ms: from the first chunk being asked for, tokenizing included; nan before the first token.
    decode_tokens and decode_ms: the tokens after the first, sampling included. started: by the session's clock.
    """

    prompt_tokens: int = 0
    prefill_tokens: int = 0
    prefill_ms: float = 0.0
    time_to_first_token_ms: float = float("nan")
    decode_tokens: int = 0
    decode_ms: float = 0.0
    started: float = field(default=0.0, repr=False, compare=False)

    @property
    def prefill_tokens_per_second(self) -> float:
        return _per_second(self.prefill_tokens, self.prefill_ms)

    @property
    def decode_tokens_per_second(self) -> float:
        return _per_second(self.decode_tokens, self.decode_ms)


def answer_tokens(
    memory: Memory,
    turn: Turn,
    request: Request,
    timings: Timings,
    cancelled: Callable[[], bool],
    clock: Callable[[], float],
) -> Generator[int, None, None]:
    """Consume what of the turn's prompt is not in the slots yet, then yield the tokens of the answer."""
    timings.prompt_tokens = len(turn.tokens)
    _read(memory, turn, _take_up(memory, turn, request), request, timings, cancelled, clock)
    if not cancelled() and memory.bring_back(turn.words):
        _read(memory, turn, 0, request, timings, cancelled, clock)
    if cancelled():
        return
    sampler = Sampler(request.sampling, memory.tokens)
    for token in turn.answer:
        sampler.accept_drawn(token)
        yield token
    first, mark = True, clock()
    with closing(memory.decode(sampler, request.max_tokens - len(turn.answer))) as decoded:
        for token in decoded:
            now = clock()
            if first:
                timings.time_to_first_token_ms, first = 1e3 * (now - timings.started), False
            else:
                timings.decode_tokens += 1
                timings.decode_ms += 1e3 * (now - mark)
            yield token
            if cancelled():
                return
            mark = clock()


def _take_up(memory: Memory, turn: Turn, request: Request) -> int:
    """Bring the memory to where the turn is to go on; how many of its tokens are in there."""
    count = len(turn.tokens)
    if turn.answer:
        return count
    if not memory.endless:
        return memory.take_up(turn.tokens.tolist())
    if not turn.read:
        if turn.whole:
            memory.truncate(0)
        memory.make_room_for_turn(count + request.max_tokens - 1)
    return turn.read


def _read(
    memory: Memory,
    turn: Turn,
    done: int,
    request: Request,
    timings: Timings,
    cancelled: Callable[[], bool],
    clock: Callable[[], float],
) -> None:
    """Consume the prompt from its token `done` on, part by part, until it is cancelled."""
    while done < len(turn.tokens) and not cancelled():
        opening, mark = done < turn.opening, clock()
        part = turn.tokens[done : turn.opening if opening else None]
        role = Role.SYSTEM if opening else turn.role
        count = memory.consume(part, role, pinned=opening or request.pinned)
        done += count
        timings.prefill_tokens += count
        timings.prefill_ms += 1e3 * (clock() - mark)


class Writer:
    """Gathers tokens into chunks: a chunk goes out when there is text that is certain."""

    def __init__(self, stream: TextStream, engine: Engine | None = None) -> None:
        """engine: the one whose route the chunks have taken."""
        self._stream, self._engine = stream, engine
        self._parts: list[str] = []
        self._unsent: list[int] = []

    @property
    def stopped(self) -> bool:
        return self._stream.stopped

    @property
    def text(self) -> str:
        return "".join(self._parts)

    @property
    def route(self) -> Route | None:
        return None if self._engine is None else route_of(self._engine)

    def take(self, token: int) -> Chunk | None:
        self._unsent.append(token)
        text = self._stream.push(token)
        return Chunk(*self._sent(text), route=self.route) if text else None

    def finish(self) -> tuple[str, tuple[int, ...]]:
        """The rest: text that was held back, and the tokens that no chunk has had."""
        return self._sent(self._stream.finish())

    def _sent(self, text: str) -> tuple[str, tuple[int, ...]]:
        self._parts.append(text)
        tokens, self._unsent = tuple(self._unsent), []
        return text, tokens


def _per_second(count: int, milliseconds: float) -> float:
    return 1e3 * count / milliseconds if milliseconds > 0 else float("nan")
