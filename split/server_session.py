"""ServerSession: a conversation on the server. Its operations are each done once, in order, however often they come."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgemem.runtime.errors import ProtocolError, SettingsError
from edgemem.split.answering import answer_of, extend_back
from edgemem.split.back import Answer, Ask
from edgemem.split.coder import Coder
from edgemem.split.frames import Answered, Done, Extend, Keep, Logits, Message, Truncate, slots_of
from edgemem.split.stage_pool import StagePool

if TYPE_CHECKING:
    from edgemem.kernels._native import Conversation

Changing = Extend | Keep | Truncate


class ServerSession:
    """op: of the last operation done, 0 before the first. conversation: its slots. Used by the pool's one thread."""

    def __init__(
        self, pool: StagePool, coder: Coder, capacity: int, *, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        """clock: seconds. Raises what StagePool.conversation raises."""
        self.op = 0
        self.capacity = capacity
        self._pool, self._coder, self._clock = pool, coder, clock
        self.conversation: Conversation = pool.conversation(capacity)
        self._reply: Message = Done(0, 0)
        self._logits: NDArray[np.float32] | None = None

    @property
    def length(self) -> int:
        """Slots in use."""
        return self.conversation.length

    def do(self, message: Message) -> Message:
        """The reply; that of the last operation again, if this is the same one.

        Raises ProtocolError for a number, or a place, that is not the next, SettingsError for logits where there are
        none, and what the engine raises: then nothing was done.
        """
        if isinstance(message, Logits):
            return self._more_logits(message)
        if not isinstance(message, Changing):
            raise ProtocolError("a message that is no operation", got=type(message).__name__)
        if message.op == self.op and self.op:
            return self._reply
        if message.op != self.op + 1:
            raise ProtocolError(
                "an operation out of order", got=message.op, wanted=f"{self.op} again, or {self.op + 1}"
            )
        return self._replied(message.op, self._done(message))

    def row(self, message: Extend) -> NDArray[Any] | None:
        """What the layers are to take of an Extend of one row, before `stepped`; None where `do` would refuse it, or
        has done it. Raises ProtocolError for a payload that holds no row."""
        if message.op != self.op + 1 or message.start != self.length or self.length == self.capacity:
            return None
        return self._coder.decode(message.payload, 1)

    def stepped(self, message: Extend, logits: NDArray[np.float32], compute_ms: float) -> Message:
        """The reply when the conversation has taken the row. logits: (vocabulary,) behind it."""
        self._logits = logits
        answer = answer_of(logits, message.logits, compute_ms=compute_ms)
        return self._replied(message.op, self._answered(message.op, answer))

    def _replied(self, op: int, reply: Message) -> Message:
        self.op, self._reply = op, reply
        return reply

    def _done(self, message: Changing) -> Message:
        if isinstance(message, Extend):
            if message.start != self.length:
                raise ProtocolError("the two sides hold different slots", got=message.start, wanted=self.length)
            ask = Ask(message.logits, message.tokens)
            with self._pool.taking_up(self.conversation) as engine:
                answer, self._logits = extend_back(
                    engine, self._coder, message.payload, message.count, ask, clock=self._clock
                )
            return self._answered(message.op, answer)
        with self._pool.taking_up(self.conversation) as engine:
            if isinstance(message, Keep):
                engine.keep(slots_of(message.ranges, engine.length))
            else:
                if message.length > engine.length:
                    wanted = f"at most {engine.length}"
                    raise ProtocolError("slots to stay that are not in use", got=message.length, wanted=wanted)
                if message.length < engine.length:
                    engine.truncate(message.length)
                    self._logits = None
        return Done(message.op, self.length)

    def _more_logits(self, message: Logits) -> Message:
        if message.op != self.op:
            raise ProtocolError("logits of another operation", got=message.op, wanted=self.op)
        if self._logits is None:
            raise SettingsError("there are no logits", do="extend first; truncate forgets them")
        return self._answered(self.op, answer_of(self._logits, message.count))

    def _answered(self, op: int, answer: Answer) -> Answered:
        return Answered(op, self.length, answer.ids, answer.values, answer.log_sum, answer.surprisal, answer.compute_ms)
