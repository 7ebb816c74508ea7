"""Links that are cut, servers that are killed, frames that come twice or late: the text is as without all that.

The loops are in fault/: cut_split.py, kill_split.py, slow_split.py.
"""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from faulty_link import FaultyServer
from runnable_packages import plain_model, runnable_package, same_precision
from split_conversation import CAPACITY, Clock, converse, local_back, remote_back, some_tokens, split_engine
from split_network import HELLO, PATIENCE_S, Sessions, listening
from split_servers import Running, serving

from edgemem.runtime.errors import LinkError
from edgemem.runtime.native_engine import NativeEngine
from edgemem.runtime.package import Package
from edgemem.split.frames import (
    Bye,
    Extend,
    Hello,
    Keep,
    Logits,
    Message,
    Truncate,
    Welcome,
    decode,
    encode,
)
from edgemem.split.link import Link
from edgemem.split.listener import Listener
from edgemem.split.opening import dial_to
from edgemem.split.peers import Device
from edgemem.split.remote_session import Wire
from edgemem.split.server import ServerSettings
from edgemem.split.switching import SwitchSettings

FAULT = Path(__file__).parent / "fault"


def loop(script: str, *words: str) -> str:
    done = subprocess.run([sys.executable, str(FAULT / script), *words], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "as without" in done.stdout
    return done.stdout


@pytest.mark.parametrize(
    "words",
    [("messages", "--stride", "31", "--messages", "40"), ("links", "--stride", "29"), ("local", "--stride", "29")],
    ids=lambda words: words[0],
)
def test_a_link_that_is_cut_anywhere_changes_nothing(words: tuple[str, ...]) -> None:
    print(loop("cut_split.py", *words))


def test_a_paired_link_that_is_cut_anywhere_changes_nothing() -> None:
    print(loop("cut_split.py", "local", "--tls", "--stride", "97"))


def test_a_server_that_is_killed_over_and_over_changes_nothing() -> None:
    print(loop("kill_split.py", "--kills", "15", "--seed", "1"))


def test_links_that_fall_silent_anywhere_and_stay_open_change_nothing() -> None:
    print(loop("cut_split.py", "silences", "--stride", "97"))


def test_links_that_are_slow_or_fall_silent_change_nothing() -> None:
    print(loop("slow_split.py", "--seconds", "0.5"))


def test_nothing_of_an_earlier_link_is_done_once_the_device_is_told_where_it_is(tmp_path: Path) -> None:
    """Else the server would be elsewhere than it said, and take another operation for that one sent again."""
    told, go_on = asyncio.Event(), asyncio.Event()

    class Slow(Sessions):
        async def open_session(self, hello: Hello, device: Device) -> Welcome:  # type: ignore[override]
            welcome = super().open_session(hello, device)
            assert isinstance(welcome, Welcome)
            if len(self.opened) > 1:
                told.set()
                await go_on.wait()
            return welcome

    with listening(tmp_path, Slow()) as place, closing(dialled(place)) as earlier:
        opening = place.loops.start(asyncio.to_thread(dialled, place))
        place.loops.run(told.wait())
        with pytest.raises(LinkError):
            earlier.call(Truncate(1, 0), deadline_s=PATIENCE_S)
        place.loops.loop.call_soon_threadsafe(go_on.set)
        with closing(opening.result(PATIENCE_S)) as link:
            assert link.welcome.op == 0
            assert place.sessions.calls == []
            link.call(Truncate(1, 0), deadline_s=PATIENCE_S)


class Said:
    """A stream of frames of which some come late; for what is said to it."""

    def __init__(self, *frames: bytes, first: int = 1) -> None:
        self.heard: list[Message] = []
        self.go_on = asyncio.Event()
        self._frames, self._first = list(frames), first

    async def receive(self) -> bytes | None:
        if not self._first:
            await self.go_on.wait()
        self._first -= 1
        return self._frames.pop(0) if self._frames else None

    async def send(self, frame: bytes) -> None:
        self.heard.append(decode(frame))

    def close(self) -> None:
        """What has arrived can still be read."""


def test_a_frame_that_had_arrived_by_then_is_not_done_either() -> None:
    async def talk() -> None:
        sessions = Sessions()
        listener = Listener(
            "127.0.0.1", 0, roll=None, open_session=sessions.open_session, handle=sessions.handle, version="test"
        )
        earlier, later = (Said(encode(HELLO), encode(Truncate(1, length))) for length in (0, 3))
        links = [asyncio.ensure_future(listener._talk(cast(Any, stream), None)) for stream in (earlier, later)]
        while not later.heard:
            await asyncio.sleep(0)
        earlier.go_on.set()
        await links[0]
        assert sessions.calls == []
        later.go_on.set()
        await links[1]
        assert [vars(call) for call in sessions.calls] == [{"op": 1, "length": 3}]

    asyncio.run(talk())


def test_what_was_recorded_of_a_paired_link_is_accepted_by_nobody(tmp_path: Path) -> None:
    with listening(tmp_path) as place:
        with recording(place.server.port) as (port, recorded):
            server = replace(place.server, port=port)
            with closing(Link.open(server, HELLO, identity=place.device, timeout_s=PATIENCE_S)) as link:
                for op in (1, 2, 3):
                    link.call(Truncate(op, 0), deadline_s=PATIENCE_S)
        said, opened, calls = bytes(recorded), len(place.sessions.opened), len(place.sessions.calls)
        assert (len(said) > 1000, opened, calls) == (True, 1, 3)
        for beginning in (len(said), *range(0, len(said), len(said) // 15)):
            replay(said[:beginning], place.server.port)
        assert (len(place.sessions.opened), len(place.sessions.calls)) == (opened, calls)
        with closing(dialled(place)) as link:  # and it goes on
            link.call(Truncate(4, 0), deadline_s=PATIENCE_S)


def replay(said: bytes, port: int) -> None:
    """Until the server hangs up, which it may in the middle."""
    with socket.create_connection(("127.0.0.1", port), PATIENCE_S) as replayed, suppress(ConnectionError):
        replayed.sendall(said)
        replayed.shutdown(socket.SHUT_WR)
        while replayed.recv(65536):
            pass


@contextmanager
def recording(target: int) -> Iterator[tuple[int, bytearray]]:
    """A port that leads to this one, for one connection; and what was sent there."""
    sent = bytearray()

    def forward() -> None:
        here, _ = listener.accept()
        with here, socket.create_connection(("127.0.0.1", target)) as there:
            back = threading.Thread(target=copy, args=(there, here))
            back.start()
            copy(here, there, sent)
            back.join()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=forward)
        thread.start()
        yield listener.getsockname()[1], sent
        thread.join()


def copy(source: socket.socket, to: socket.socket, record: bytearray | None = None) -> None:
    with suppress(OSError):
        while part := source.recv(65536):
            if record is not None:
                record += part
            to.sendall(part)
    with suppress(OSError):
        to.shutdown(socket.SHUT_WR)


def dialled(place: Any) -> Link:
    return Link.open(place.server, HELLO, identity=place.device, timeout_s=PATIENCE_S)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Package]:
    model = plain_model()
    path = tmp_path_factory.mktemp("split") / "p.edgemem"
    with Package.open(runnable_package(path, model, same_precision(model, "int8-g32"))) as opened:
        yield opened


@pytest.mark.parametrize("local", [False, True], ids=["alone", "with-local"])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("kind", [Hello, Extend, Logits, Keep, Truncate, Bye])
def test_a_server_that_dies_of_a_frame_changes_nothing(
    package: Package, wanted: list[int | float], kind: type, when: str, local: bool
) -> None:
    """Of the first of its kind, before it was done or before that was told; the next server knows of nothing."""
    with serving(package.path, [1], ServerSettings(slots=CAPACITY)) as server:
        died = dies_of(server, kind, after=when == "after")
        back = remote_back(package, 1, dial_to(server.address, None), local=local)
        with closing(split_engine(package, 1, back)) as engine:
            assert converse(engine, back.probe) == wanted
        assert died.is_set()


def dies_of(server: Running, kind: type, *, after: bool) -> threading.Event:
    """Set once it has: all links are gone then, and all sessions."""
    listener, held, died = server._listener, server.back._held, threading.Event()

    def mortal(done: Callable[..., Any], asked: int) -> Callable[..., Any]:
        async def call(*words: Any) -> Any:
            if type(words[asked]) is not kind or died.is_set():
                return await done(*words)
            if after:
                await done(*words)
            died.set()
            held.clear()
            for connection in listener._inside:
                connection.transport.abort()
            raise LinkError("killed")

        return call

    listener._open_session = mortal(listener._open_session, 0)
    listener._handle = mortal(listener._handle, 1)
    return died


@pytest.fixture(scope="module")
def wanted(package: Package) -> list[int | float]:
    with closing(NativeEngine(package, capacity=CAPACITY, threads=1)) as whole:
        return converse(whole)


class SlowLink:
    """Each reply takes `took_s`, by the clock."""

    welcome: Welcome

    def __init__(self, link: Wire, clock: Clock, took_s: Callable[[], float]) -> None:
        self._link, self._clock, self._took_s = link, clock, took_s

    def greet(self, hello: Hello, *, deadline_s: float) -> Welcome:
        self.welcome = self._link.greet(hello, deadline_s=deadline_s)
        return self.welcome

    def call(self, message: Message, *, deadline_s: float) -> Message:
        reply, took_s = self._link.call(message, deadline_s=deadline_s), self._took_s()
        self._clock.sleep(min(took_s, deadline_s))
        if took_s > deadline_s:
            raise LinkError("the server does not answer in time")
        return reply

    def ping(self, *, deadline_s: float) -> float:
        return self._link.ping(deadline_s=deadline_s)

    def close(self) -> None:
        self._link.close()


def test_all_that_a_token_needs_of_the_server_has_one_deadline(package: Package) -> None:
    """What was kept and cut is done with the next token: three messages, each alone in time."""
    clock, settings, took_s = Clock(), SwitchSettings(deadline_s=1.0), [0.0]
    server = FaultyServer(lambda: local_back(package, 1))
    dial, server.dial = server.dial, lambda: SlowLink(dial(), clock, lambda: took_s[0])  # type: ignore
    back = remote_back(package, 1, server.dial, local=True, clock=clock, settings=settings)
    with (
        closing(split_engine(package, 1, back)) as engine,
        closing(split_engine(package, 1, local_back(package, 1))) as alone,
    ):
        for each in (engine, alone):
            each.extend(some_tokens(12))
        assert engine.route == "remote"
        took_s[0] = 0.9
        for each in (engine, alone):
            each.keep(np.array([0, 1, 2, 7, 8, 9]))
            each.truncate(5)
        begun_s = clock.now
        step = engine.extend(some_tokens(1))
        assert clock.now - begun_s < 1.1
        assert engine.route == "local"
        np.testing.assert_array_equal(step.logits, alone.extend(some_tokens(1)).logits)
