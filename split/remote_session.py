"""RemoteSession: one session on a server, over as many links as it takes, each operation done once.

Operations are numbered 1, 2, ...; one whose reply was lost is sent again with its number. What is to be done it is told
by a History; it decides neither when to try again nor when to give up.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from edgemem.runtime.errors import (
    BudgetError,
    ContextError,
    EdgememError,
    EngineError,
    LinkError,
    NumericError,
    ProtocolError,
    SettingsError,
)
from edgemem.split.back import Answer
from edgemem.split.frames import (
    SESSION_BYTES,
    Answered,
    Bye,
    Done,
    Extend,
    Failed,
    Hello,
    Keep,
    Logits,
    Message,
    Truncate,
    Welcome,
    ranges_of,
)
from edgemem.split.history import BEGINNING, Extended, Kept, Operation, Place

_ERRORS = {"context": ContextError, "numeric": NumericError, "settings": SettingsError, "memory": BudgetError}
_BYE_S = 2.0


class Wire(Protocol):
    """A link that is to greet first; Link is one. Each raises LinkError where there is no answer in time, or once the
    link was closed, which another thread may do meanwhile. welcome: as greet gave it."""

    welcome: Welcome

    def greet(self, hello: Hello, *, deadline_s: float) -> Welcome: ...

    def call(self, message: Message, *, deadline_s: float) -> Message: ...

    def ping(self, *, deadline_s: float) -> float: ...

    def close(self) -> None: ...


Dial = Callable[[], Wire]  # one that has not greeted


class _Sent(NamedTuple):
    """An operation whose reply has not come. place, length: where the session is once it is done."""

    message: Extend | Keep | Truncate
    place: Place
    length: int


class RemoteSession:
    """place, length: where in the history the server is, by its last reply."""

    def __init__(self, dial: Dial, hello: Hello, vocabulary: int) -> None:
        """hello: its session is replaced by a new one. vocabulary: of the model."""
        self._dial, self._hello, self._vocabulary = dial, replace(hello, session=_new_session()), vocabulary
        self._wire: Wire | None = None
        self._sent: _Sent | None = None
        self._over = False
        self._begin()

    def connect(self, *, deadline_s: float) -> None:
        """See to it that there is a link, and that both sides agree where they are.

        A server that knows nothing of the session is at its beginning. Raises LinkError.
        """
        if self._wire is not None:
            return
        self._wire = wire = self._dial()
        try:
            if self._over:  # looked at only now: `interrupt` sees either the link or that there is none to come
                raise LinkError("the session is over")
            self._agree(wire.greet(self._hello, deadline_s=deadline_s))
        except BaseException:
            self.hang_up()
            raise

    def ping(self, *, deadline_s: float) -> None:
        """Over the link that there is. Raises LinkError where no answer comes in time."""
        with self._linked() as wire:
            wire.ping(deadline_s=deadline_s)

    def settle(self, *, deadline_s: float) -> Answer | None:
        """Have the reply to an operation that was sent before, if there is one; its answer if it was an extend.

        Raises as `do` does.
        """
        return None if self._sent is None else self._exchange(self._sent, deadline_s)

    def do(self, operation: Operation, place: Place, logits: int, *, deadline_s: float) -> Answer | None:
        """The next operation; its answer, with so many logits, if it is an extend. Nothing may be left to settle.

        place: where the server is in the history after it. Raises LinkError where it is not known whether it was done,
        else the server's own error: then it was not.
        """
        op = self._op + 1
        if isinstance(operation, Extended):
            count, payload, tokens = operation.count, operation.payload, operation.tokens
            message = Extend(op, self.length, count, payload, min(logits, self._vocabulary), tokens)
            self._sent = _Sent(message, place, self.length + count)
        elif isinstance(operation, Kept):
            self._sent = _Sent(Keep(op, ranges_of(operation.slots)), place, len(operation.slots))
        else:
            self._sent = _Sent(Truncate(op, operation.length), place, operation.length)
        return self._exchange(self._sent, deadline_s)

    def logits(self, count: int, *, deadline_s: float) -> Answer:
        """More of the logits after the last operation. Raises as `do` does."""
        count = min(count, self._vocabulary)
        with self._linked() as wire:
            reply = self._checked(wire.call(Logits(self._op, count), deadline_s=deadline_s), self._op, self.length)
            return self._answer(reply, count, None)

    def hang_up(self) -> None:
        if self._wire is not None:
            self._wire.close()
            self._wire = None

    def interrupt(self) -> None:
        """From another thread: what the session waits for fails at once, and no link comes any more."""
        self._over = True
        if (wire := self._wire) is not None:
            wire.close()

    def close(self) -> None:
        """Tell the server that it may forget the session, if it can be told."""
        if self._wire is not None:
            with suppress(LinkError):  # it forgets by itself, later
                self._wire.call(Bye(), deadline_s=_BYE_S)
            self.hang_up()

    def _agree(self, welcome: Welcome) -> None:
        if welcome.capacity < self._hello.capacity:
            got, wanted = f"{welcome.capacity} slots", f"{self._hello.capacity} slots"
            raise ProtocolError("the server gives the session fewer slots", got=got, wanted=wanted)
        known = {self._op: self.length}
        if self._sent is not None:
            known[self._op + 1] = self._sent.length
        if welcome.op == 0:
            self._begin()
        elif known.get(welcome.op) != welcome.length:
            self._begin()
            self._hello = replace(self._hello, session=_new_session())
            raise LinkError("the server holds another state of this session", do="it is sent again, as a new one")

    def _begin(self) -> None:
        self.place, self.length, self._op = BEGINNING, 0, 0
        self._sent = None

    def _exchange(self, sent: _Sent, deadline_s: float) -> Answer | None:
        message, answer = sent.message, None
        with self._linked() as wire:
            reply = self._checked(wire.call(message, deadline_s=deadline_s), message.op, sent.length)
            if isinstance(message, Extend):
                answer = self._answer(reply, message.logits, message.tokens)
            elif not isinstance(reply, Done):
                raise _strange(reply, "Done")
            self.place, self.length, self._op, self._sent = sent.place, sent.length, message.op, None
        return answer

    def _checked(self, reply: Message, op: int, length: int) -> Message:
        """The reply, which is to this operation and leaves this length. Raises the server's error where it failed."""
        if isinstance(reply, Failed) and reply.op == op:
            self._sent = None
            raise _ERRORS.get(reply.code, EngineError)(f"the server could not go on: {reply.text}")
        if not isinstance(reply, (Answered, Done)) or (reply.op, reply.length) != (op, length):
            raise _strange(reply, f"operation {op}, {length} slots")
        return reply

    def _answer(self, reply: Message, logits: int, tokens: NDArray[np.int32] | None) -> Answer:
        """As it was asked for: the number and range of the logits, a surprisal for each token."""
        if not isinstance(reply, Answered):
            raise _strange(reply, "Answered")
        scores, wanted = (None if part is None else len(part) for part in (reply.surprisal, tokens))
        if len(reply.ids) != logits or scores != wanted or (logits and int(reply.ids[-1]) >= self._vocabulary):
            raise _strange(reply, f"{logits} logits, {wanted} scores")
        return Answer(reply.ids, reply.values, reply.log_sum, reply.surprisal, reply.compute_ms)

    @contextmanager
    def _linked(self) -> Iterator[Wire]:
        """The link. Where a reply did not come, or was wrong, another may come later: the link is given up."""
        if self._wire is None:
            raise LinkError("there is no link")
        try:
            yield self._wire
        except BaseException as problem:
            if isinstance(problem, LinkError) or not isinstance(problem, EdgememError):
                self.hang_up()
            raise


def _strange(reply: Message, wanted: str) -> ProtocolError:
    op, length = getattr(reply, "op", None), getattr(reply, "length", None)
    return ProtocolError("a reply to another question", got=f"{type(reply).__name__}, {op}, {length}", wanted=wanted)


def _new_session() -> bytes:
    return secrets.token_bytes(SESSION_BYTES)
