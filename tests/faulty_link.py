"""A server of back stages in this process, and links to it that fail as told; every message goes through bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from edgemem.runtime.errors import LinkError, NumericError, ProtocolError
from edgemem.split.back import Answer, Ask
from edgemem.split.frames import (
    CHUNK_TOKENS,
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
    decode,
    encode,
    slots_of,
)
from edgemem.split.local_back import LocalBack

# before: the message is lost; after: the reply is; forget: the server forgets all and the link goes; failed: it cannot;
# stale: the reply of another operation.
FAULTS = ("before", "after", "forget", "failed", "stale")


class FaultyServer:
    """Keeps sessions as a server does, each a LocalBack that `open_back` gives.

    faults: what happens to each message in turn, None for nothing; afterwards nothing happens.
    down: nobody can connect. calls: messages that came, Hello not counted. done: extends really done.
    """

    def __init__(self, open_back: Callable[[], LocalBack], faults: Iterable[str | None] = ()) -> None:
        self._open_back, self._faults = open_back, iter(faults)
        self.sessions: dict[bytes, _Session] = {}
        self.down, self.calls, self.done = False, 0, 0

    def dial(self) -> FaultyLink:
        return FaultyLink(self)

    def greet(self, hello: Hello) -> Welcome:
        if self.down:
            raise LinkError("the server cannot be reached")
        hello_read = decode(encode(hello))
        assert isinstance(hello_read, Hello)
        if hello_read.session not in self.sessions:
            self.sessions[hello_read.session] = _Session(self._open_back())
        session = self.sessions[hello_read.session]
        return Welcome(session.op, session.back.length, hello_read.capacity, CHUNK_TOKENS, "0")

    def forget(self) -> None:
        for session in self.sessions.values():
            session.back.close()
        self.sessions.clear()

    def fault(self) -> str | None:
        self.calls += 1
        return "before" if self.down else next(self._faults, None)

    def answer(self, number: bytes, message: Message) -> Message:
        if isinstance(message, Bye):
            session = self.sessions.pop(number)
            session.back.close()
            return Done(session.op, 0)
        if number not in self.sessions:
            raise LinkError("the link is lost")
        before = self.sessions[number].op
        reply = self.sessions[number].answer(message)
        self.done += isinstance(message, Extend) and self.sessions[number].op > before
        return reply


class FaultyLink:
    def __init__(self, server: FaultyServer) -> None:
        self._server, self._closed = server, False
        self._earlier: Message = Done(0, 0)

    def greet(self, hello: Hello, *, deadline_s: float) -> Welcome:
        assert deadline_s > 0
        self._session, self.welcome = hello.session, self._server.greet(hello)
        return self.welcome

    def call(self, message: Message, *, deadline_s: float) -> Message:
        assert deadline_s > 0
        if self._closed:
            raise LinkError("the link is closed")
        fault = self._server.fault()
        if fault == "forget":
            self._server.forget()
        if fault in ("before", "forget"):
            raise LinkError("the link is lost")
        if fault == "failed":
            return Failed(getattr(message, "op", 0), "memory", "no memory")
        if fault == "stale":
            return self._earlier
        self._earlier = self._server.answer(self._session, decode(encode(message)))
        if fault == "after":
            raise LinkError("the link is lost")
        return decode(encode(self._earlier))

    def ping(self, *, deadline_s: float) -> float:
        if self._closed or self._server.fault() is not None:
            raise LinkError("the link is lost")
        return 1.0

    def close(self) -> None:
        self._closed = True


class _Session:
    def __init__(self, back: LocalBack) -> None:
        self.back, self.op = back, 0
        self._last: Message = Done(0, 0)

    def answer(self, message: Message) -> Message:
        back = self.back
        if isinstance(message, Logits):
            return _answered(self.op, back.length, back.logits(message.count))
        assert isinstance(message, (Extend, Keep, Truncate))
        if message.op == self.op:
            return self._last
        if message.op != self.op + 1:
            raise ProtocolError("an operation out of turn", got=message.op, wanted=self.op + 1)
        try:
            self._last = self._do(message)
        except NumericError as problem:
            return Failed(message.op, "numeric", str(problem))
        self.op = message.op
        return self._last

    def _do(self, message: Extend | Keep | Truncate) -> Message:
        back = self.back
        if isinstance(message, Extend):
            if message.start != back.length:
                raise ProtocolError("another start", got=message.start, wanted=back.length)
            answer = back.extend(message.payload, message.count, Ask(message.logits, message.tokens))
            return _answered(message.op, back.length, answer)
        if isinstance(message, Keep):
            back.keep(slots_of(message.ranges, back.length))
        else:
            back.truncate(message.length)
        return Done(message.op, back.length)


def _answered(op: int, length: int, answer: Answer) -> Answered:
    return Answered(op, length, answer.ids, answer.values, answer.log_sum, answer.surprisal, answer.compute_ms)


def once(fault: str, at: int) -> Iterator[str | None]:
    """Nothing until message `at`, then that fault once."""
    yield from (None,) * at
    yield fault
