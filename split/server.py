"""BackServer: who may have a session here, and whose operation is computed next.

One thread computes: see Batching. A session has one operation under way at most and no operation is more than a chunk
of a prompt, so that first come, first served is also fair. It knows no transport: Listener calls it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from edgemem.runtime.errors import BudgetError, ProtocolError, SettingsError
from edgemem.runtime.native_engine import MOST_TOGETHER
from edgemem.split.batching import Batching
from edgemem.split.codec import CodecSettings
from edgemem.split.coder import coder_of
from edgemem.split.frames import CHUNK_TOKENS, Bye, Done, Extend, Hello, Message, Refused, Welcome
from edgemem.split.listener import Caller
from edgemem.split.metrics import Metrics
from edgemem.split.peers import Device
from edgemem.split.server_session import ServerSession
from edgemem.split.stage_pool import StagePool
from edgemem.split.terms import Terms, refusal


@dataclass(frozen=True)
class ServerSettings:
    """sessions: at most so many at once. slots: of one session at most. bytes: of all their memories together.
    idle_s: a session that asked for nothing for so long is freed; its device begins it anew when it comes back.
    batch: steps of as many sessions that wait at once go through the layers together. What each session gets does not
    depend on it.

    Raises SettingsError for a value out of range.
    """

    sessions: int = 64
    slots: int = 4096
    bytes: int = 4 << 30
    idle_s: float = 600.0
    batch: int = 8

    def __post_init__(self) -> None:
        for name in ("sessions", "slots", "bytes"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise SettingsError(f"the server's {name} are out of range", got=repr(value), wanted="at least 1")
        if type(self.batch) is not int or not 1 <= self.batch <= MOST_TOGETHER:
            wanted = f"1 to {MOST_TOGETHER}"
            raise SettingsError("the server's batch is out of range", got=repr(self.batch), wanted=wanted)
        if not 0 < self.idle_s < float("inf"):
            raise SettingsError("the server's idle_s is out of range", got=self.idle_s, wanted="a number over 0")


@dataclass(eq=False)
class _Held:
    session: ServerSession
    hello: Hello
    bytes: int
    asked_s: float  # when last
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)  # of two links of one device, that overlap


class BackServer:
    """Sessions over `pools`, one for each split that is served; `close` closes those."""

    def __init__(
        self,
        pools: dict[int, StagePool],
        *,
        model_hash: str,
        version: str,
        settings: ServerSettings | None = None,
        metrics: Metrics | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """pools: by split; of one model. model_hash: as Hello has it. version: of edgemem. clock: seconds."""
        self.settings, self.metrics = settings or ServerSettings(), metrics or Metrics()
        self._pools, self._version, self._clock = pools, version, clock
        layers = next(iter(pools.values())).model.layers
        self._terms = Terms(version, model_hash, frozenset(pools), layers, self.settings.slots)
        self._held: dict[Caller, _Held] = {}
        self._opening = asyncio.Lock()
        self._batching = Batching(self.settings.batch, self.metrics, clock=clock)

    @property
    def sessions(self) -> int:
        return len(self._held)

    async def open_session(self, hello: Hello, device: Device) -> Welcome | Refused:
        """For Listener. A session that is known goes on where it was."""
        async with self._opening:  # one after the other: room that was seen is there, and a session begins once
            answer = await self._opened(hello, Caller(device, hello.session))
        if isinstance(answer, Refused):
            self.metrics.refused(answer.code)
        self._told()
        return answer

    async def handle(self, caller: Caller, message: Message) -> Message:
        """For Listener. Raises ProtocolError for a session that was freed, and what ServerSession.do raises."""
        held = self._held.get(caller)
        if held is None:
            raise ProtocolError("the session is no more", do="connect again: it is sent anew")
        async with held.turn:
            held.asked_s = self._clock()
            if isinstance(message, Bye):
                self._free(caller)
                return Done(held.session.op, 0)
            pool = self._pools[held.hello.split]
            done = await asyncio.wrap_future(self._batching.operate(pool, held.session, message))
            held.asked_s = self._clock()
            tokens = message.count if isinstance(message, Extend) else 0
            self.metrics.done(type(message).__name__.lower(), tokens, done.waited_s, done.took_s)
            return done.reply

    def sweep(self) -> int:
        """Free what asked for nothing for idle_s; how many those were. To be called now and then."""
        before = len(self._held)
        latest = self._clock() - self.settings.idle_s
        for caller, held in list(self._held.items()):
            if held.asked_s < latest and not held.turn.locked():
                self._free(caller)
        return before - len(self._held)

    def close(self) -> None:
        """After the operation that may be under way."""
        self._batching.close()
        self._held.clear()
        for pool in self._pools.values():
            pool.close()

    async def _opened(self, hello: Hello, caller: Caller) -> Welcome | Refused:
        known = self._held.get(caller)
        if known is None:
            refused = self._refusal(hello)
            return refused if refused is not None else await self._begun(hello, caller)
        if not _same_terms(known.hello, hello):
            return Refused("session", "the session was begun with other terms\ndo: begin another")
        async with known.turn:
            known.asked_s = self._clock()
            return self._welcome(known.session)

    def _refusal(self, hello: Hello) -> Refused | None:
        if (refused := refusal(hello, self._terms)) is not None:
            return refused
        wanted = self._pools[hello.split].slots_bytes(hello.capacity)
        return None if self._has_room(wanted) else Refused("busy", self._full(wanted))

    async def _begun(self, hello: Hello, caller: Caller) -> Welcome | Refused:
        pool = self._pools[hello.split]
        try:
            coder = coder_of(pool.model, hello.split, CodecSettings.from_dict(hello.codec))
        except SettingsError as problem:
            return Refused("codec", f"the server cannot read what the device sends\n{problem}")
        try:
            beginning = self._batching.run(lambda: ServerSession(pool, coder, hello.capacity))
            session = await asyncio.wrap_future(beginning)
        except BudgetError as problem:
            return Refused("busy", f"the server has no memory for a session\n{problem}")
        self._held[caller] = _Held(session, hello, pool.slots_bytes(hello.capacity), self._clock())
        return self._welcome(session)

    def _has_room(self, wanted: int) -> bool:
        """After freeing those that are idle."""
        self.sweep()
        taken = sum(held.bytes for held in self._held.values())
        return len(self._held) < self.settings.sessions and taken + wanted <= self.settings.bytes

    def _full(self, wanted: int) -> str:
        taken, settings = sum(held.bytes for held in self._held.values()), self.settings
        return (
            f"the server is full\ngot: {len(self._held)} sessions with {taken} bytes, and {wanted} more wanted\n"
            f"wanted: at most {settings.sessions} sessions with {settings.bytes} bytes\ndo: try again later"
        )

    def _welcome(self, session: ServerSession) -> Welcome:
        return Welcome(session.op, session.length, session.capacity, CHUNK_TOKENS, self._version)

    def _free(self, caller: Caller) -> None:
        self._held.pop(caller, None)
        self._told()

    def _told(self) -> None:
        self.metrics.holds(len(self._held), sum(held.bytes for held in self._held.values()))


def _same_terms(one: Hello, other: Hello) -> bool:
    names = ("model", "split", "layers", "capacity", "codec")
    return all(getattr(one, name) == getattr(other, name) for name in names)
