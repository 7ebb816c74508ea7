"""Steps of several sessions in one pass: each is answered as if it were alone, whatever becomes of the others."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from split_servers import MODEL_HASH, hello

from edgemem.runtime.errors import ContextError, ProtocolError, SettingsError
from edgemem.runtime.package import Package
from edgemem.split.batching import Batching, Operated
from edgemem.split.codec import Codec, CodecSettings
from edgemem.split.frames import Answered, Extend, Message, Truncate, Welcome
from edgemem.split.listener import Caller
from edgemem.split.metrics import Metrics
from edgemem.split.peers import Device
from edgemem.split.server import BackServer, ServerSettings
from edgemem.split.server_session import ServerSession
from edgemem.split.stage_pool import StagePool

S = 20.0  # seconds that an answer may take on a loaded machine
SLOTS = 32


class Room:
    """A pool of the tiny package's layers from 1 on, its sessions, and what they may send."""

    def __init__(self, package: Package, pool: StagePool, most: int) -> None:
        self.pool, self.metrics = pool, Metrics()
        self.batching = Batching(most, self.metrics)
        self.codec = Codec(CodecSettings("fp32"), package.model.hidden)
        self._random = np.random.default_rng(3)

    def session(self, begun: int = 0) -> ServerSession:
        """With so many slots in use."""
        session = ServerSession(self.pool, self.codec, SLOTS)
        if begun:
            session.do(self.extend(session, begun))
        return session

    def extend(self, session: ServerSession, count: int = 1, **changes: object) -> Extend:
        """The next of the session's operations."""
        states = self._random.normal(size=(count, self.pool.model.hidden)).astype(np.float32)
        extend = Extend(session.op + 1, session.length, count, self.codec.encode(states), 3)
        return replace(extend, **changes)  # type: ignore[arg-type]

    def ask(self, session: ServerSession, message: Message) -> Future[Operated]:
        return self.batching.operate(self.pool, session, message)

    @contextmanager
    def busy(self) -> Iterator[None]:
        """The thread computes something else; what is asked for meanwhile waits."""
        begun, over = threading.Event(), threading.Event()
        self.batching.run(lambda: (begun.set(), over.wait(S)))
        assert begun.wait(S)
        try:
            yield
        finally:
            over.set()

    def passes(self) -> list[int]:
        """How many passes there were, of up to 1, 2, 4, ... rows."""
        lines = [
            line for line in self.metrics.text().splitlines() if line.startswith("edgemem_split_batch_rows_bucket")
        ]
        return np.diff([float(line.split()[-1]) for line in lines], prepend=0.0).astype(int).tolist()  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def package(tiny_package: Path) -> Iterator[Package]:
    with Package.open(tiny_package) as package:
        yield package


@pytest.fixture(scope="module")
def pool(package: Package) -> Iterator[StagePool]:
    with closing(StagePool(package, 1, capacity=SLOTS, threads=2)) as pool:
        yield pool


@pytest.fixture
def room(package: Package, pool: StagePool) -> Iterator[Room]:
    room = Room(package, pool, most=4)
    with closing(room.batching):
        yield room


def values(reply: Message) -> tuple[int, int, list[int], list[float], float]:
    assert isinstance(reply, Answered)
    return reply.op, reply.length, reply.ids.tolist(), reply.values.tolist(), reply.log_sum


def logits(session: ServerSession) -> NDArray[np.float32]:
    assert session._logits is not None
    return session._logits


def test_each_is_answered_as_if_it_were_alone(room: Room) -> None:
    together, apart = [[ServerSession(room.pool, room.codec, SLOTS) for _ in range(3)] for _ in range(2)]
    for place, (one, other) in enumerate(zip(together, apart, strict=True)):
        prompt = room.extend(one, 3 * place + 1)
        assert values(one.do(prompt)) == values(other.do(prompt))
    for _ in range(5):
        steps = [room.extend(session) for session in together]
        with room.busy():
            asked = [room.ask(session, step) for session, step in zip(together, steps, strict=True)]
        for place, step in enumerate(steps):
            assert values(asked[place].result(S).reply) == values(apart[place].do(step))
            np.testing.assert_array_equal(logits(together[place]), logits(apart[place]))
    assert room.passes()[:4] == [0, 0, 5, 0]


def test_a_step_that_nobody_waits_with_goes_at_once(room: Room) -> None:
    session = room.session(begun=2)
    for _ in range(3):
        room.ask(session, room.extend(session)).result(S)
    assert room.passes()[:2] == [3, 0]


def test_no_pass_is_of_more_than_the_most(room: Room) -> None:
    sessions = [room.session(begun=1) for _ in range(9)]
    with room.busy():
        asked = [room.ask(session, room.extend(session)) for session in sessions]
    assert [values(one.result(S).reply)[:2] for one in asked] == [(2, 2)] * 9
    assert room.passes()[:3] == [1, 0, 2]


def test_what_is_no_step_keeps_its_turn(room: Room) -> None:
    order: list[str] = []
    over = threading.Event()
    sessions = {name: room.session(begun=1) for name in ("first", "step", "prompt", "late", "cut", "later")}

    def ask(name: str, message: Message) -> None:
        def done(_: Future[Operated]) -> None:
            order.append(name)
            if name == "first":  # the pass of the first is over: what comes now does not go before what waits
                ask("later", room.extend(sessions["later"]))
            elif name == "later":
                over.set()

        room.ask(sessions[name], message).add_done_callback(done)

    with room.busy():
        ask("first", room.extend(sessions["first"]))
        ask("step", room.extend(sessions["step"]))
        ask("prompt", room.extend(sessions["prompt"], 9))
        ask("late", room.extend(sessions["late"]))
        ask("cut", Truncate(2, 0))
    assert over.wait(S)
    assert order == ["first", "step", "late", "prompt", "cut", "later"]
    assert sessions["cut"].length == 0


@pytest.mark.parametrize(
    "change", [{"op": 5}, {"start": 9}, {"payload": b"no row"}], ids=lambda change: next(iter(change))
)
def test_one_that_is_refused_harms_no_other(room: Room, change: dict[str, object]) -> None:
    good, bad = [room.session(begun=2) for _ in range(2)], room.session(begun=2)
    with room.busy():
        asked = [room.ask(session, room.extend(session)) for session in good[:1]]
        refused = room.ask(bad, room.extend(bad, **change))
        asked += [room.ask(session, room.extend(session)) for session in good[1:]]
    with pytest.raises(ProtocolError):
        refused.result(S)
    assert [values(one.result(S).reply)[:2] for one in asked] == [(2, 3), (2, 3)]
    assert (bad.op, bad.length) == (1, 2)
    assert values(room.ask(bad, room.extend(bad)).result(S).reply)[:2] == (2, 3)


def test_a_full_session_is_told_so_alone(room: Room) -> None:
    full, other = room.session(begun=SLOTS), room.session(begun=1)
    with room.busy():
        asked = [room.ask(session, room.extend(session)) for session in (full, other)]
    with pytest.raises(ContextError):
        asked[0].result(S)
    assert values(asked[1].result(S).reply)[:2] == (2, 2)


def test_a_row_whose_result_is_not_finite_is_done_alone(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    bad, other = room.session(begun=2), room.session(begun=1)
    row = np.full((1, room.pool.model.hidden), np.nan, dtype=np.float32)
    monkeypatch.setattr(bad, "row", lambda _: row)
    monkeypatch.setattr("edgemem.runtime.native_engine.check_states", lambda *_: None)
    with room.busy():
        asked = [room.ask(session, room.extend(session)) for session in (bad, other)]
    assert [values(one.result(S).reply)[:2] for one in asked] == [(2, 3), (2, 2)]


def test_an_operation_that_comes_twice_is_done_once(room: Room) -> None:
    session, other = room.session(begun=1), room.session(begun=1)
    step = room.extend(session)
    with room.busy():
        asked = [room.ask(session, step), room.ask(session, step), room.ask(other, room.extend(other))]
    first, again, third = (one.result(S).reply for one in asked)
    assert first is again
    assert values(first)[:2] == values(third)[:2] == (2, 2)
    assert session.length == 2


def test_what_was_cancelled_before_its_turn_is_not_done(room: Room) -> None:
    sessions = [room.session(begun=1) for _ in range(4)]
    with room.busy():
        asked = [room.ask(session, room.extend(session)) for session in sessions[:3]]
        asked.append(room.ask(sessions[3], Truncate(2, 0)))
        assert all(asked[place].cancel() for place in (0, 2, 3))
    assert values(asked[1].result(S).reply)[:2] == (2, 2)
    room.batching.close()
    assert [session.length for session in sessions] == [1, 2, 1, 1]


def test_where_the_pass_fails_each_goes_alone(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(room.pool.engine, "extend_together", fail)
    sessions = [room.session(begun=1) for _ in range(3)]
    with room.busy():
        asked = [room.ask(session, room.extend(session)) for session in sessions]
    assert [values(one.result(S).reply)[:2] for one in asked] == [(2, 2)] * 3


@pytest.mark.parametrize(("batch", "passes"), [(1, [3, 0, 0]), (8, [0, 0, 1])])
def test_a_server_computes_as_many_together_as_it_is_told(package: Package, batch: int, passes: list[int]) -> None:
    async def talk() -> list[int]:
        settings = ServerSettings(slots=SLOTS, batch=batch)
        stage = StagePool(package, 1, capacity=SLOTS, threads=1)
        server = BackServer({1: stage}, model_hash=MODEL_HASH, version="test", settings=settings)
        room = Room(package, stage, 1)
        room.batching.close()
        room.metrics, room.batching = server.metrics, server._batching
        device = Device("device", b"certificate")
        with closing(server):
            callers = [Caller(device, bytes([place]) * 16) for place in range(3)]
            for caller in callers:
                asked = hello(caller.session, package.model.layers, capacity=SLOTS)
                assert isinstance(await server.open_session(asked, device), Welcome)
            payload = room.codec.encode(np.ones((1, package.model.hidden), dtype=np.float32))
            with room.busy():
                replies = [
                    asyncio.ensure_future(server.handle(caller, Extend(1, 0, 1, payload, 2))) for caller in callers
                ]
                await asyncio.sleep(0)
            assert len({str(values(await reply)) for reply in replies}) == 1
            return room.passes()[:3]

    assert asyncio.run(talk()) == passes


@pytest.mark.parametrize("batch", [0, 129, True, 2.0])
def test_a_batch_out_of_range_is_refused(batch: int) -> None:
    with pytest.raises(SettingsError, match="batch"):
        ServerSettings(batch=batch)
