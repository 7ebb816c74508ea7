"""Frames that come twice, late, out of order, damaged or from another: a session on the server is as it was.

A machine sends whatever it likes, in any order, to a server of sessions; a twin that was only ever told what was in
order says what the server has to hold.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from runnable_packages import plain_model, runnable_package, same_precision
from split_servers import MODEL_HASH, hello

from edgemem.runtime.engine import KVState
from edgemem.runtime.errors import ContextError, EdgememError, NumericError, ProtocolError, SettingsError
from edgemem.runtime.native_engine import NativeEngine
from edgemem.runtime.package import Package
from edgemem.split.codec import Codec, CodecSettings
from edgemem.split.frames import (
    Answered,
    Bye,
    Done,
    Extend,
    Keep,
    Logits,
    Message,
    Refused,
    Truncate,
    Welcome,
    decode,
    encode,
    ranges_of,
)
from edgemem.split.listener import Caller
from edgemem.split.peers import Device
from edgemem.split.server import BackServer, ServerSettings
from edgemem.split.stage_pool import StagePool

SPLIT, CAPACITY = 1, 24
OURS, THEIRS = Device("robot", b"ours"), Device("other", b"theirs")
NUMBER = b"0123456789abcdef"
T = TypeVar("T")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = plain_model(hidden=32, heads=2, kv_heads=1, intermediate=64)
    path = tmp_path_factory.mktemp("split") / "small.edgemem"
    return runnable_package(path, model, same_precision(model, "int8-g32"))


class Frames(RuleBasedStateMachine):
    """op, twin: what the session has to be. last: the latest operation done and the frame of its reply."""

    path: Path

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.package = Package.open(self.path)
        pool = StagePool(self.package, SPLIT, capacity=CAPACITY, threads=1)
        limits = ServerSettings(slots=CAPACITY)
        self.server = BackServer({SPLIT: pool}, model_hash=MODEL_HASH, version="test", settings=limits)
        layers = self.package.model.layers
        self.twin = NativeEngine(self.package, layers=(SPLIT, layers), capacity=CAPACITY, threads=1)
        self.codec = Codec(CodecSettings("fp32"), self.package.model.hidden)
        self.hello = hello(NUMBER, layers, split=SPLIT, capacity=CAPACITY)
        self.op, self.logits = 0, False
        self.recorded: list[bytes] = []  # every operation that was done in this session's life
        self.last = b""

    def teardown(self) -> None:
        self.server.close()
        self.twin.close()
        self.package.close()
        self.loop.close()

    @initialize()
    def greet(self) -> None:
        assert isinstance(self.run(self.server.open_session(self.hello, OURS)), Welcome)

    @rule(count=st.integers(1, 5), logits=st.integers(0, 4), scored=st.booleans(), seed=st.integers(0, 99))
    def extend(self, count: int, logits: int, scored: bool, seed: int) -> None:
        states, payload = self.some_states(count, seed)
        tokens = (np.arange(count, dtype=np.int32) + seed) % self.package.model.vocabulary if scored else None
        message = Extend(self.op + 1, self.twin.length, count, payload, logits, tokens)
        if self.twin.length + count > CAPACITY:
            self.refused(message, ContextError)
            return
        step = self.twin.extend(states, surprisal=scored, tokens=tokens)
        reply = self.accepted(message)
        assert isinstance(reply, Answered)
        assert step.logits is not None
        np.testing.assert_array_equal(reply.values, step.logits[reply.ids])
        assert len(reply.ids) == logits
        self.logits = True

    @rule(data=st.data())
    def keep(self, data: st.DataObject) -> None:
        dropped = data.draw(st.sets(st.integers(0, CAPACITY), max_size=6))
        slots = np.setdiff1d(np.arange(self.twin.length), list(dropped))
        self.twin.keep(slots)
        assert isinstance(self.accepted(Keep(self.op + 1, ranges_of(slots))), Done)

    @rule(data=st.data())
    def truncate(self, data: st.DataObject) -> None:
        cut = data.draw(st.integers(0, min(3, self.twin.length)))
        self.twin.truncate(self.twin.length - cut)
        assert isinstance(self.accepted(Truncate(self.op + 1, self.twin.length)), Done)
        if cut:
            self.logits = False
            self.refused(Logits(self.op, 3), SettingsError)

    @precondition(lambda self: self.recorded)
    @rule(times=st.integers(1, 3))
    def again(self, times: int) -> None:
        """The last one, however often, is answered as at first, and done once."""
        for _ in range(times):
            assert encode(self.send(decode(self.recorded[-1]))) == self.last

    @precondition(lambda self: self.recorded)
    @rule(seed=st.integers(0, 99))
    def another_with_the_last_number(self, seed: int) -> None:
        message = Extend(self.op, self.twin.length, 1, self.some_states(1, seed)[1], 1)
        assert encode(self.send(message)) == self.last

    @precondition(lambda self: len(self.recorded) > 1)
    @rule(data=st.data())
    def replay(self, data: st.DataObject) -> None:
        """What was recorded of this session, but for the last."""
        for frame in data.draw(st.lists(st.sampled_from(self.recorded[:-1]), min_size=1, max_size=4)):
            self.refused(decode(frame), ProtocolError)

    @rule(ahead=st.integers(2, 1 << 40), kind=st.sampled_from(["extend", "keep", "truncate"]))
    def one_too_early(self, ahead: int, kind: str) -> None:
        op = self.op + ahead
        messages = {
            "extend": Extend(op, self.twin.length, 1, self.some_states(1, 0)[1]),
            "keep": Keep(op, np.empty((0, 2), np.int32)),
            "truncate": Truncate(op, 0),
        }
        self.refused(messages[kind], ProtocolError)

    @rule(start=st.integers(0, CAPACITY))
    def another_start(self, start: int) -> None:
        if start != self.twin.length:
            self.refused(Extend(self.op + 1, start, 1, self.some_states(1, 0)[1]), ProtocolError)

    @rule(more=st.integers(1, 1000))
    def slots_that_are_not_there(self, more: int) -> None:
        beyond = self.twin.length + more
        self.refused(Truncate(self.op + 1, beyond), ProtocolError)
        self.refused(Keep(self.op + 1, np.array([[0, beyond]], np.int32)), ProtocolError)

    @rule(cut=st.integers(-40, 40).filter(bool), value=st.sampled_from([np.nan, np.inf, -np.inf]))
    def payloads_that_are_none(self, cut: int, value: float) -> None:
        states, payload = self.some_states(2, 1)
        wrong = payload[:cut] if cut < 0 else payload + bytes(cut)
        self.refused(Extend(self.op + 1, self.twin.length, 2, wrong), ProtocolError)
        states[1, 3] = value
        if self.twin.length + 2 <= CAPACITY:
            damaged = payload[: -states.nbytes] + states.tobytes()
            self.refused(Extend(self.op + 1, self.twin.length, 2, damaged), (NumericError, ProtocolError))

    @rule(count=st.integers(0, 97))
    def more_logits(self, count: int) -> None:
        if not self.logits:
            self.refused(Logits(self.op, count), SettingsError)
            return
        reply = self.send(Logits(self.op, count))
        assert isinstance(reply, Answered)
        assert (reply.op, reply.length, len(reply.ids)) == (self.op, self.twin.length, count)

    @rule(away=st.integers(1, 9))
    def logits_of_another_time(self, away: int) -> None:
        self.refused(Logits(self.op + away, 3), ProtocolError)
        if self.op >= away:
            self.refused(Logits(self.op - away, 3), ProtocolError)

    @rule()
    def what_is_no_operation(self) -> None:
        for message in (self.hello, Done(self.op + 1, 0), Welcome(9, 9, 9, 9, "9")):
            self.refused(message, ProtocolError)

    @rule(seed=st.integers(0, 99))
    def another_device(self, seed: int) -> None:
        """It has the session's number, and all that was said."""
        caller = Caller(THEIRS, NUMBER)
        for frame in self.recorded[-3:]:
            with pytest.raises(ProtocolError):
                self.run(self.server.handle(caller, decode(frame)))
        welcome = self.run(self.server.open_session(self.hello, THEIRS))
        assert isinstance(welcome, Welcome)
        assert (welcome.op, welcome.length) == (0, 0)
        self.run(self.server.handle(caller, Extend(1, 0, 1, self.some_states(1, seed)[1])))
        self.run(self.server.handle(caller, Bye()))

    @rule(change=st.sampled_from([{"capacity": CAPACITY - 1}, {"split": 0}, {"model": "0" * 64}, {"layers": 9}]))
    def other_terms(self, change: dict[str, Any]) -> None:
        refused = self.run(self.server.open_session(replace(self.hello, **change), OURS))
        assert isinstance(refused, Refused)
        assert refused.code == "session"

    @precondition(lambda self: len(self.recorded) > 5)
    @rule()
    def go_and_come_back(self) -> None:
        """What was recorded is of no use to a session that begins anew, but for its first operation."""
        replayed = [decode(frame) for frame in self.recorded[1:]]
        assert isinstance(self.send(Bye()), Done)
        self.refused_as_unknown(replayed)
        self.greet()
        self.twin.truncate(0)
        self.op, self.logits, self.recorded = 0, False, []
        for message in replayed:
            self.refused(message, ProtocolError)

    @invariant()
    def it_is_as_it_has_to_be(self) -> None:
        welcome = self.run(self.server.open_session(self.hello, OURS))
        assert isinstance(welcome, Welcome)
        assert (welcome.op, welcome.length) == (self.op, self.twin.length)
        assert self.server.sessions == 1
        held = self.server._held[Caller(OURS, NUMBER)].session
        with held._pool.taking_up(held.conversation) as engine:
            state, wanted = engine.state(), self.twin.state()
        assert same_cache(state, wanted)

    def refused_as_unknown(self, messages: list[Message]) -> None:
        for message in messages:
            with pytest.raises(ProtocolError, match="no more"):
                self.send(message)

    def accepted(self, message: Message) -> Message:
        frame = encode(message)
        reply = self.send(decode(frame))
        self.op += 1
        self.recorded.append(frame)
        self.last = encode(reply)
        assert isinstance(reply, (Answered, Done))
        assert (reply.op, reply.length) == (self.op, self.twin.length)
        return reply

    def refused(self, message: Message, error: type[EdgememError] | tuple[type[EdgememError], ...]) -> None:
        with pytest.raises(error):
            self.send(message)

    def send(self, message: Message) -> Message:
        return self.run(self.server.handle(Caller(OURS, NUMBER), message))

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    def some_states(self, count: int, seed: int) -> tuple[np.ndarray, bytes]:
        states = np.random.default_rng(seed).standard_normal((count, self.package.model.hidden)).astype(np.float32)
        return states, self.codec.encode(states)


def same_cache(one: KVState, other: KVState) -> bool:
    return np.array_equal(one.keys, other.keys) and np.array_equal(one.values, other.values)


def test_whatever_frames_come_a_session_does_what_is_in_order(small: Path) -> None:
    machine = type("Machine", (Frames,), {"path": small})
    run_state_machine_as_test(machine, settings=settings(max_examples=60, stateful_step_count=40, deadline=None))
