"""The link between device and server: what goes over it, who is refused before a byte, what cannot bring it down."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import itertools
import resource
import socket
import ssl
import struct
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpclib.client
import grpclib.const
import numpy as np
import psutil
import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st
from split_network import (
    HELLO,
    PATIENCE_S,
    Eavesdropper,
    LoopThread,
    Place,
    Sessions,
    client_tls,
    listening,
    self_made,
    server_tls,
)

from edgemem.runtime.errors import BudgetError, LinkError, ProtocolError, SettingsError
from edgemem.split import grpc_stream
from edgemem.split.door import Door, DoorLimits
from edgemem.split.frames import (
    FRAME_BYTES,
    PAYLOAD_BYTES,
    PROTOCOL,
    Answered,
    Done,
    Extend,
    Failed,
    Hello,
    Keep,
    Message,
    Ping,
    Pong,
    Refused,
    Truncate,
    Welcome,
    encode,
    ranges_of,
)
from edgemem.split.grpc_stream import TALK, ClientConnection, FrameStream, ServerConnection
from edgemem.split.http2_guard import Http2Guard
from edgemem.split.identity import Identity, own_identity
from edgemem.split.link import Link
from edgemem.split.listener import Caller, Listener, ListenerLimits
from edgemem.split.peers import Device, PeerFile, Server
from edgemem.split.terms import Terms, refusal
from edgemem.split.tls import device_context

EXTEND = Extend(1, 0, 1, b"hidden states of the user")


def connect(place: Place, hello: Hello = HELLO) -> Link:
    return Link.open(place.server, hello, identity=place.device, timeout_s=PATIENCE_S)


@contextmanager
def linked(place: Place, hello: Hello = HELLO) -> Iterator[Link]:
    link = connect(place, hello)
    try:
        yield link
    finally:
        link.close()


def test_messages_go_there_and_back(tmp_path: Path) -> None:
    with listening(tmp_path) as place, linked(place) as link:
        assert link.welcome.capacity == HELLO.capacity
        assert place.sessions.opened == [(HELLO.session, "robot")]
        for op in range(1, 30):
            reply = link.call(Extend(op, op - 1, 1, b"p" * 1200), deadline_s=PATIENCE_S)
            assert isinstance(reply, Done)
            assert reply.op == op
        assert link.ping(deadline_s=PATIENCE_S) > 0
        assert len(place.sessions.calls) == 29  # a ping is no operation


def test_the_largest_frames_fit(tmp_path: Path) -> None:
    most = np.arange(1 << 20, dtype=np.int32)
    sessions = Sessions(reply=lambda _: Answered(1, 128, most, most.astype(np.float32), 1.0))
    with listening(tmp_path, sessions) as place, linked(place) as link:
        reply = link.call(Extend(1, 0, 128, bytes(PAYLOAD_BYTES)), deadline_s=PATIENCE_S)
        assert isinstance(reply, Answered)
        assert np.array_equal(reply.ids, most)
        assert sessions.payload_bytes == PAYLOAD_BYTES


@pytest.mark.parametrize(
    ("problem", "code", "text"),
    [
        (BudgetError("no memory is left", got="1 GiB"), "memory", "no memory is left\n  got: 1 GiB"),
        (SettingsError("\x1b[2J"), "settings", "?[2J"),
        (ZeroDivisionError("secret details"), "failed", "the server failed: ZeroDivisionError"),
        (AssertionError(), "failed", "the server failed: AssertionError"),
    ],
)
def test_what_an_operation_dies_of_is_told_and_survived(
    tmp_path: Path, problem: Exception, code: str, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    def reply(message: Message) -> Message:
        if isinstance(message, Extend):
            raise problem
        return Done(message.op, 0)  # type: ignore[union-attr]

    with listening(tmp_path, Sessions(reply=reply)) as place, linked(place) as link:
        failed = link.call(replace(EXTEND, op=7), deadline_s=PATIENCE_S)
        assert isinstance(failed, Failed)
        assert (failed.op, failed.code, failed.text) == (7, code, text)
        assert isinstance(link.call(Truncate(8, 0), deadline_s=PATIENCE_S), Done)
    assert ("secret details" in caplog.text) == isinstance(problem, ZeroDivisionError)


def test_a_session_that_cannot_be_opened_is_told_and_survived(tmp_path: Path) -> None:
    def refuse(hello: Hello) -> Refused | None:
        if hello.capacity == 1:
            raise RuntimeError("a bug")
        return None

    with listening(tmp_path, Sessions(refuse=refuse)) as place:
        with pytest.raises(LinkError, match="the server failed: RuntimeError"):
            connect(place, replace(HELLO, capacity=1))
        connect(place).close()


def test_a_broken_rule_closes_the_link(tmp_path: Path) -> None:
    def reply(message: Message) -> Message:
        raise ProtocolError("an operation out of order", got=5, wanted=2)

    with listening(tmp_path, Sessions(reply=reply)) as place, linked(place) as link:
        with pytest.raises(ProtocolError, match=r"(?s)rule was broken.*out of order.*got: 5"):
            link.call(EXTEND, deadline_s=PATIENCE_S)
        assert link.closed
        with pytest.raises(LinkError, match="closed"):
            link.call(EXTEND, deadline_s=PATIENCE_S)
        link.close()


def test_a_reply_that_cannot_be_sent_is_the_servers_failure(tmp_path: Path) -> None:
    sessions = Sessions(reply=lambda _: Done(1, 1 << 40))
    with listening(tmp_path, sessions) as place, linked(place) as link, pytest.raises(ProtocolError):
        link.call(EXTEND, deadline_s=PATIENCE_S)


class Slow(Sessions):
    """Answers when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.go_on, self.finished = threading.Event(), threading.Event(), threading.Event()

    async def handle(self, caller: Caller, message: Message) -> Message:
        self.begun.set()
        while not self.go_on.is_set():
            await asyncio.sleep(0.005)
        self.finished.set()
        return await super().handle(caller, message)


def test_a_missed_deadline_closes_the_link_and_the_operation_is_finished(tmp_path: Path) -> None:
    with listening(tmp_path, Slow()) as place, linked(place) as link:
        with pytest.raises(LinkError, match="in time"):
            link.call(EXTEND, deadline_s=0.05)
        assert link.closed
        assert not place.sessions.finished.is_set()
        place.sessions.go_on.set()
        assert place.sessions.finished.wait(PATIENCE_S)


def test_a_device_that_comes_back_ends_its_earlier_link(tmp_path: Path) -> None:
    with (
        listening(tmp_path) as place,
        linked(place) as first,
        linked(place, replace(HELLO, session=b"b" * 16)) as other,
        linked(place) as second,
    ):
        with pytest.raises(LinkError):
            first.call(EXTEND, deadline_s=PATIENCE_S)
        assert isinstance(second.call(EXTEND, deadline_s=PATIENCE_S), Done)
        assert isinstance(other.call(EXTEND, deadline_s=PATIENCE_S), Done)


def test_a_link_can_be_closed_while_it_waits(tmp_path: Path) -> None:
    with listening(tmp_path, Slow()) as place, linked(place) as link:
        closer = threading.Thread(target=lambda: place.sessions.begun.wait(PATIENCE_S) and link.close())
        closer.start()
        with pytest.raises(LinkError):
            link.call(EXTEND, deadline_s=PATIENCE_S)
        closer.join()
        place.sessions.go_on.set()


def test_draining_finishes_what_is_under_way(tmp_path: Path) -> None:
    with listening(tmp_path, Slow()) as place, linked(place, replace(HELLO, session=b"b" * 16)) as idle:
        with linked(place) as busy:
            got: list[Message] = []
            caller = threading.Thread(target=lambda: got.append(busy.call(EXTEND, deadline_s=PATIENCE_S)))
            caller.start()
            assert place.sessions.begun.wait(PATIENCE_S)
            drained = place.loops.start(place.listener.drain(PATIENCE_S))
            until_inside(place, 1)
            with pytest.raises(LinkError):
                idle.call(EXTEND, deadline_s=PATIENCE_S)
            place.sessions.go_on.set()
            drained.result(PATIENCE_S)
            caller.join()
            assert isinstance(got[0], Done)
        until_inside(place, 0)
        with pytest.raises(LinkError, match="cannot be reached"):
            connect(place)


def test_draining_gives_up_what_takes_too_long(tmp_path: Path) -> None:
    with listening(tmp_path, Slow()) as place, linked(place) as link:
        caller = threading.Thread(target=lambda: _ignoring(lambda: link.call(EXTEND, deadline_s=PATIENCE_S)))
        caller.start()
        assert place.sessions.begun.wait(PATIENCE_S)
        place.loops.run(place.listener.drain(0.05))
        caller.join()
        assert not place.listener._inside
        assert not place.sessions.finished.is_set()


def until_inside(place: Place, connections: int) -> None:
    while len(place.listener._inside) > connections:
        place.loops.run(asyncio.sleep(0.01))


def _ignoring(work: Callable[[], object]) -> None:
    with contextlib.suppress(LinkError):
        work()


# ---- plain text, on this machine alone


@contextmanager
def listening_in_plain_text(sessions: Sessions) -> Iterator[tuple[LoopThread, Server]]:
    with LoopThread() as loops:
        listener = Listener(
            "127.0.0.1", 0, roll=None, open_session=sessions.open_session, handle=sessions.handle, version="0.1.0"
        )
        loops.run(listener.start())
        try:
            yield loops, Server("here", "127.0.0.1", listener.port, None)
        finally:
            loops.run(listener.drain(0.0))


def test_plain_text_serves_this_machine() -> None:
    with listening_in_plain_text(Sessions()) as (_, server):
        link = Link.open(server, HELLO, identity=None, timeout_s=PATIENCE_S)
        assert isinstance(link.call(EXTEND, deadline_s=PATIENCE_S), Done)
        link.close()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "localhost", "192.168.1.5", "127.0.0.2", "example.org"])
def test_plain_text_goes_nowhere_else(host: str) -> None:
    sessions = Sessions()
    with pytest.raises(SettingsError, match="plain text"):
        Listener(host, 0, roll=None, open_session=sessions.open_session, handle=sessions.handle, version="0")
    with pytest.raises(SettingsError, match="plain text"):
        Server("here", host, 7410, None)


class _AsTheyAre:
    """grpclib's codec for messages that are bytes already."""

    __content_subtype__ = "proto"  # the default, which is not named on the wire

    def encode(self, message: Any, message_type: Any) -> bytes:
        return bytes(message)

    def decode(self, data: bytes, message_type: Any) -> bytes:
        return data


def test_any_grpc_client_can_talk() -> None:
    async def talk(port: int) -> list[bytes]:
        codec: Any = _AsTheyAre()
        async with grpclib.client.Channel("127.0.0.1", port, codec=codec) as channel:
            method = grpclib.client.StreamStreamMethod(channel, TALK, bytes, bytes)
            async with method.open(timeout=PATIENCE_S) as stream:
                await stream.send_message(encode(HELLO))
                welcome = await stream.recv_message()
                await stream.send_message(encode(Ping(7)), end=True)
                pong = await stream.recv_message()
                assert await stream.recv_message() is None
        return [welcome or b"", pong or b""]

    with listening_in_plain_text(Sessions()) as (loops, server):
        welcome, pong = loops.run(talk(server.port))
    assert welcome == encode(Welcome(0, 0, HELLO.capacity, 128, "0.1.0"))
    assert pong == encode(Pong(7))


# ---- L4: a wrong server is told nothing


def trusting(folder: Path, certificate: bytes) -> tuple[Server, Identity]:
    return Server("home", "127.0.0.1", 1, certificate), own_identity(folder / "device", "device")


def wrong_servers(folder: Path) -> dict[str, tuple[ssl.SSLContext | None, bytes, str]]:
    """Of each: its TLS, the certificate that the device has pinned, and what it says."""
    pinned = own_identity(folder / "server", "server")
    other = own_identity(folder / "other", "server")
    authority = trustme.CA().issue_cert("server.edgemem")
    (folder / "trustme.pem").write_bytes(authority.private_key_and_cert_chain_pem.bytes())
    expired = self_made(folder / "expired.pem", server=True, valid_days=(-10, -1))
    early = self_made(folder / "early.pem", server=True, valid_days=(1, 10))
    named = self_made(folder / "named.pem", server=True, name="other.edgemem")
    role = self_made(folder / "role.pem", server=False)
    signed = self_made(folder / "signed.pem", server=True, issuer=pinned.path)
    return {
        "of another authority": (server_tls(folder / "trustme.pem"), pinned.certificate, "not the one"),
        "another server of the user": (server_tls(other), pinned.certificate, "not the one"),
        "expired": (server_tls(expired), expired.certificate, "expired"),
        "not yet valid": (server_tls(early), early.certificate, "not yet valid"),
        "of another name": (server_tls(named), named.certificate, "mismatch"),
        "a device": (server_tls(role), role.certificate, "not the one"),
        "signed by the pinned key": (server_tls(signed), pinned.certificate, "not the one"),
        "TLS 1.2": (server_tls(pinned, ssl.TLSVersion.TLSv1_2), pinned.certificate, "cannot be reached"),
        "plain text": (None, pinned.certificate, "cannot be reached"),
    }


@pytest.mark.parametrize(
    "who",
    [
        "of another authority",
        "another server of the user",
        "expired",
        "not yet valid",
        "of another name",
        "a device",
        "signed by the pinned key",
        "TLS 1.2",
        "plain text",
    ],
)
def test_a_wrong_server_is_told_nothing(tmp_path: Path, who: str) -> None:
    tls, certificate, says = wrong_servers(tmp_path)[who]
    server, device = trusting(tmp_path, certificate)
    with Eavesdropper(tls) as eavesdropper, pytest.raises(LinkError, match=says):
        Link.open(replace(server, port=eavesdropper.port), HELLO, identity=device, timeout_s=PATIENCE_S)
    assert len(eavesdropper.received) == 0


def test_the_right_server_would_have_been_told(tmp_path: Path) -> None:
    """The counting counts: behind the pinned certificate it hears the greeting."""
    pinned = own_identity(tmp_path / "server", "server")
    server, device = trusting(tmp_path, pinned.certificate)
    with Eavesdropper(server_tls(pinned), HELLO.session) as eavesdropper, pytest.raises(LinkError):
        Link.open(replace(server, port=eavesdropper.port), HELLO, identity=device, timeout_s=PATIENCE_S)
    assert HELLO.session in eavesdropper.received


def test_a_paired_server_is_not_asked_without_an_identity(tmp_path: Path) -> None:
    server, _ = trusting(tmp_path, b"pinned")
    with pytest.raises(SettingsError, match="paired device"):
        Link.open(server, HELLO, identity=None, timeout_s=PATIENCE_S)


# ---- L4: a wrong device is told nothing


def wrong_devices(folder: Path, place: Place) -> dict[str, ssl.SSLContext | None]:
    authority = trustme.CA().issue_cert("device.edgemem")
    (folder / "trustme.pem").write_bytes(authority.private_key_and_cert_chain_pem.bytes())
    expired = self_made(folder / "expired.pem", server=False, valid_days=(-10, -1))
    role = self_made(folder / "role.pem", server=True)
    signed = self_made(folder / "signed.pem", server=False, issuer=place.device.path)
    pinned = PeerFile(place.folder, Device)
    for name, identity in (("expired", expired), ("role", role)):
        pinned.put(Device(name, identity.certificate))
    return {
        "without a certificate": client_tls(None),
        "of another authority": client_tls(folder / "trustme.pem"),
        "of another server": client_tls(own_identity(folder / "other", "device")),
        "expired": client_tls(expired),
        "a server": client_tls(role),
        "signed by a pinned key": client_tls(signed),
        "TLS 1.2": client_tls(place.device, ssl.TLSVersion.TLSv1_2),
        "plain text": None,
    }


WRONG_DEVICES = (
    "without a certificate",
    "of another authority",
    "of another server",
    "expired",
    "a server",
    "signed by a pinned key",
    "TLS 1.2",
    "plain text",
)


@pytest.mark.parametrize("who", WRONG_DEVICES)
def test_a_wrong_device_is_told_nothing(tmp_path: Path, who: str) -> None:
    with listening(tmp_path) as place:
        assert _overheard(place, wrong_devices(tmp_path, place)[who]) == b""
        assert place.sessions.opened == []
        connect(place).close()
    assert len(place.sessions.opened) == 1


def test_a_forgotten_device_is_told_nothing(tmp_path: Path) -> None:
    with listening(tmp_path) as place:
        assert _overheard(place, client_tls(place.device)) != b""
        place.forget()
        assert _overheard(place, client_tls(place.device)) == b""
        with pytest.raises(LinkError, match="pair again"):
            connect(place)
    assert place.sessions.opened == []


def _overheard(place: Place, tls: ssl.SSLContext | None, *, all_of_it: bool = False) -> bytes:
    """What a client that begins HTTP/2, whatever TLS says, hears under TLS; all_of_it: until the server hangs up."""
    heard = b""
    with (
        contextlib.suppress(OSError),
        socket.create_connection(("127.0.0.1", place.server.port), PATIENCE_S) as raw,
        contextlib.nullcontext(raw) if tls is None else tls.wrap_socket(raw) as connection,
    ):
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0")
        while (part := connection.recv(65536)) and (all_of_it or not heard):
            heard += part
    return b"" if tls is None else heard  # in plain text it is TLS's own alert


def test_a_forgotten_device_is_cut_off_in_the_middle(tmp_path: Path) -> None:
    with listening(tmp_path) as place, linked(place) as link:
        link.call(EXTEND, deadline_s=PATIENCE_S)
        place.forget()
        with pytest.raises(LinkError):
            link.call(replace(EXTEND, op=2), deadline_s=PATIENCE_S)
        assert len(place.sessions.calls) == 1


def test_a_device_that_pairs_later_comes_in(tmp_path: Path) -> None:
    with listening(tmp_path) as place:
        late = own_identity(tmp_path / "late", "device")
        with pytest.raises(LinkError):
            Link.open(place.server, HELLO, identity=late, timeout_s=PATIENCE_S)
        PeerFile(place.folder, Device).put(Device("late", late.certificate))
        Link.open(place.server, HELLO, identity=late, timeout_s=PATIENCE_S).close()
        assert place.sessions.opened == [(HELLO.session, "late")]


def test_a_list_that_cannot_be_read_lets_nobody_in(tmp_path: Path) -> None:
    with listening(tmp_path) as place, linked(place) as link:
        path = PeerFile(place.folder, Device).path
        whole = path.read_bytes()
        path.write_bytes(whole[:-40])
        with pytest.raises(LinkError):
            connect(place)
        with pytest.raises(LinkError):
            link.call(EXTEND, deadline_s=PATIENCE_S)
        path.write_bytes(whole)
        connect(place).close()
    assert place.sessions.calls == []


# ---- L5: frames and connections that break the rules


@contextmanager
def wire(place: Place) -> Iterator[Callable[[Callable[[FrameStream], Awaitable[Any]]], Any]]:
    """A paired device that says what it likes: wire(lambda stream: ...) runs it."""

    async def opened() -> FrameStream:
        assert place.server.certificate is not None
        context = device_context(place.device, place.server.certificate)
        host, port = place.server.host, place.server.port
        _, connection = await asyncio.get_running_loop().create_connection(
            ClientConnection, host, port, ssl=context, server_hostname="server.edgemem"
        )
        stream: FrameStream = await connection.talk("server.edgemem")
        return stream

    stream = place.loops.run(opened())
    try:
        yield lambda work: place.loops.run(_awaited(work(stream)))
    finally:
        place.loops.loop.call_soon_threadsafe(stream.close)


async def _awaited(work: Awaitable[Any]) -> Any:
    return await work


async def _raw(stream: FrameStream, data: bytes) -> None:
    await stream._stream.send_data(data)


def _ended(stream: FrameStream) -> Awaitable[bool]:
    async def ends() -> bool:
        try:
            return await stream.receive() is None
        except LinkError:
            return True

    return ends()


BROKEN: dict[str, bytes] = {
    "too long": struct.pack(">BI", 0, (1 << 32) - 1),
    "one byte too long": struct.pack(">BI", 0, FRAME_BYTES + 1),
    "compressed": struct.pack(">BI", 1, 3) + b"abc",
    "empty": struct.pack(">BI", 0, 0),
    "of an unknown kind": struct.pack(">BI", 0, 3) + b"\xeeab",
    "short": struct.pack(">BI", 0, 5) + encode(Done(1, 2))[:5],
    "of the other side": struct.pack(">BI", 0, 21) + encode(Ping(1)) + b"x" * 12,
}


@pytest.mark.parametrize("what", BROKEN)
@pytest.mark.parametrize("greeted", [False, True])
def test_a_broken_frame_ends_its_connection_alone(tmp_path: Path, what: str, greeted: bool) -> None:
    with listening(tmp_path) as place, linked(place, replace(HELLO, session=b"b" * 16)) as other, wire(place) as say:
        if greeted:
            say(lambda stream: stream.send(encode(HELLO)))
            assert say(lambda stream: stream.receive())[:1] == encode(Welcome(0, 0, 0, 0, ""))[:1]
        say(lambda stream: _raw(stream, BROKEN[what]))
        assert say(lambda stream: stream.receive())[:1] == encode(Failed(0, "protocol", ""))[:1]
        assert say(_ended)
        assert isinstance(other.call(EXTEND, deadline_s=PATIENCE_S), Done)


def test_a_length_that_is_named_is_not_allocated(tmp_path: Path) -> None:
    with listening(tmp_path) as place:
        connect(place).close()
        before = psutil.Process().memory_info().rss
        for _ in range(20):
            with wire(place) as say:
                say(lambda stream: stream.send(encode(HELLO)))
                say(lambda stream: stream.receive())
                say(lambda stream: _raw(stream, struct.pack(">BI", 0, 1 << 31)))
                say(lambda stream: stream.receive())
                assert say(_ended)
        assert psutil.Process().memory_info().rss - before < 16 << 20


HASTE = ListenerLimits(DoorLimits(handshake_s=1.0), hello_s=1.0)


def test_one_who_says_nothing_is_shown_out(tmp_path: Path) -> None:
    """Before TLS, after it, in the stream, and in the middle of a Hello; a session that stands may be silent."""
    with listening(tmp_path, limits=HASTE) as place, linked(place) as other:
        with socket.create_connection(("127.0.0.1", place.server.port), PATIENCE_S) as silent:
            assert silent.recv(1) == b""
        with (
            socket.create_connection(("127.0.0.1", place.server.port), PATIENCE_S) as slow,
            contextlib.suppress(ConnectionError),
        ):
            slow.sendall(b"\x16\x03\x01\x02\x00\x01\x00")  # a ClientHello that does not go on
            assert slow.recv(1) == b""
        heard = _overheard(place, client_tls(place.device), all_of_it=True)  # TLS and HTTP/2, and then no stream
        assert heard != b""
        for beginning in (b"", struct.pack(">BI", 0, 80) + b"\x01\x01"):
            with wire(place) as say:
                say(lambda stream, beginning=beginning: _raw(stream, beginning) if beginning else asyncio.sleep(0))
                assert say(_ended)
        assert isinstance(other.call(EXTEND, deadline_s=PATIENCE_S), Done)
        assert [session for session, _ in place.sessions.opened] == [HELLO.session]


def test_a_frame_that_does_not_go_on_ends_its_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpc_stream, "_PATIENCE_S", 0.5)
    with listening(tmp_path) as place, wire(place) as say:
        say(lambda stream: stream.send(encode(HELLO)))
        say(lambda stream: stream.receive())
        say(lambda stream: _raw(stream, struct.pack(">BI", 0, 100) + b"\x04"))
        assert say(_ended)
        assert place.sessions.calls == []


def test_a_list_that_became_a_link_lets_nobody_in_and_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with listening(tmp_path) as place:
        path = PeerFile(place.folder, Device).path
        aside = path.rename(path.with_name("aside"))
        for target in (aside, path):  # to a list that is good, and to itself
            path.symlink_to(target.name)
            with pytest.raises(LinkError, match="cannot be reached") as problem:
                connect(place)
            path.unlink()
            assert problem.value.got  # why, also where the server hung up without a word
            end = time.monotonic() + PATIENCE_S
            while "symbolic link" not in caplog.text and time.monotonic() < end:
                time.sleep(0.01)  # the server logs it in its own time
            assert "symbolic link" in caplog.text
            caplog.clear()
        aside.rename(path)
        connect(place).close()


def test_a_thousand_half_open_connections_keep_nobody_out(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2200:
        pytest.skip(f"no more than {hard} files may be open")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2200), hard))
    with listening(tmp_path) as place, linked(place) as link, contextlib.ExitStack() as stack:
        link.call(EXTEND, deadline_s=PATIENCE_S)
        gc.collect()
        before = psutil.Process().memory_info().rss
        hello = _client_hello()
        for number in range(1000):
            half_open = stack.enter_context(socket.create_connection(("127.0.0.1", place.server.port), PATIENCE_S))
            half_open.sendall(
                hello[: (0, 7, len(hello))[number % 3]]
            )  # nothing, a beginning, or all of the first message
            if number % 100 == 0:
                assert isinstance(link.call(replace(EXTEND, op=2 + number), deadline_s=PATIENCE_S), Done)
        assert psutil.Process().memory_info().rss - before < 16 << 20
        with linked(place, replace(HELLO, session=b"b" * 16)) as newcomer:
            assert isinstance(newcomer.call(EXTEND, deadline_s=PATIENCE_S), Done)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _client_hello() -> bytes:
    out = ssl.MemoryBIO()
    tls = client_tls(None).wrap_bio(ssl.MemoryBIO(), out)
    with contextlib.suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    return out.read()


def test_a_crowd_from_one_address_leaves_the_others_their_place(tmp_path: Path) -> None:
    with (
        listening(tmp_path, limits=ListenerLimits(DoorLimits(handshake_s=60.0))) as place,
        contextlib.ExitStack() as stack,
    ):
        address = ("127.0.0.1", place.server.port)
        quiet = stack.enter_context(socket.create_connection(address, PATIENCE_S, source_address=("127.0.0.3", 0)))
        for _ in range(50):
            stack.enter_context(socket.create_connection(address, PATIENCE_S, source_address=("127.0.0.2", 0)))
        connect(place).close()
        quiet.settimeout(0.3)
        with pytest.raises(TimeoutError):  # it is still waited for
            quiet.recv(1)


@pytest.mark.parametrize("turns", range(5))
def test_who_comes_as_the_door_closes_is_not_forgotten(turns: int) -> None:
    async def close_as_one_comes() -> None:
        door = a_door()
        door.open()
        await asyncio.sleep(0)
        with socket.create_connection(("127.0.0.1", door.port), PATIENCE_S) as late:
            for _ in range(turns):  # of the loop, until it is accepted, greeted and inside
                await asyncio.sleep(0)
            await door.close()
            with contextlib.suppress(ConnectionError):
                while late.recv(64):
                    pass

    asyncio.run(close_as_one_comes())
    gc.collect()  # a socket that was forgotten would warn


def test_a_door_goes_on_when_files_may_be_opened_again(monkeypatch: pytest.MonkeyPatch) -> None:
    accept, failures = socket.socket.accept, iter([OSError(errno.EMFILE, "too many open files")])

    def fail_once(listening: socket.socket) -> tuple[socket.socket, Any]:
        if (problem := next(failures, None)) is not None:
            raise problem
        return accept(listening)

    async def come_in() -> bytes:
        door = a_door()
        door.open()
        reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
        greeting = await reader.read(5)
        writer.close()
        await door.close()
        return greeting

    monkeypatch.setattr(socket.socket, "accept", fail_once)
    assert asyncio.run(come_in()) == b"hello"


def a_door() -> Door:
    """It says hello, and hangs up."""

    class Greets(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            assert isinstance(transport, asyncio.Transport)
            transport.write(b"hello")
            transport.close()

    return Door("127.0.0.1", 0, Greets, context=lambda: None, inside=lambda: 0, limits=DoorLimits())


def test_no_more_connections_than_there_are_places(tmp_path: Path) -> None:
    limits = ListenerLimits(DoorLimits(connections=2))
    hellos = [replace(HELLO, session=bytes([number]) * 16) for number in range(3)]
    with listening(tmp_path, limits=limits) as place, linked(place, hellos[0]), linked(place, hellos[1]) as second:
        with pytest.raises(LinkError):
            connect(place, hellos[2])
        second.close()
        until_inside(place, 1)
        connect(place, hellos[2]).close()


def test_an_http2_frame_that_is_too_long_ends_its_connection_at_its_header(tmp_path: Path) -> None:
    with listening(tmp_path) as place, linked(place) as other, wire(place) as say:
        begun = b"\x01\0\0" + b"\0" * 6 + bytes(1000)  # 64 KiB are named, and 1,000 bytes come

        async def overlong(stream: FrameStream) -> None:
            stream._connection.transport.write(begun)

        say(overlong)
        assert say(_ended)
        assert isinstance(other.call(EXTEND, deadline_s=PATIENCE_S), Done)


@given(st.lists(st.integers(0, 1 << 14), max_size=6), st.booleans(), st.data())
def test_http2_frames_are_followed_however_they_are_cut(
    lengths: list[int], from_client: bool, data: st.DataObject
) -> None:
    stream = bytes(24 if from_client else 0) + b"".join(n.to_bytes(3, "big") + bytes(6 + n) for n in lengths)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=5)))
    guard = Http2Guard(from_client=from_client)
    for begin, end in itertools.pairwise([0, *cuts, len(stream)]):
        guard.check(stream[begin:end])
    guard.check(b"\0\x40")
    with pytest.raises(ProtocolError, match="16385"):
        guard.check(b"\x01" + bytes(6))


def test_one_connection_carries_one_stream(tmp_path: Path) -> None:
    async def twice(stream: FrameStream) -> tuple[bytes | None, str]:
        await stream.send(encode(HELLO))
        await stream.receive()
        second = await stream._connection.talk("server.edgemem")  # type: ignore[attr-defined]
        try:
            await second.greeted()
        except LinkError as problem:
            reason = str(problem)
        await stream.send(encode(Ping(3)))
        return await stream.receive(), reason

    with listening(tmp_path) as place, wire(place) as say:
        pong, reason = say(twice)
        assert pong == encode(Pong(3))
        assert "reset" in reason


# ---- a server that breaks the rules


@contextmanager
def strange_server(talk: Callable[[FrameStream], Awaitable[None]]) -> Iterator[Server]:
    inside: set[ServerConnection] = set()

    async def start() -> asyncio.Server:
        return await asyncio.get_running_loop().create_server(
            lambda: ServerConnection(lambda stream, _: talk(stream), inside, 5.0), "127.0.0.1", 0
        )

    async def stop(server: asyncio.Server) -> None:
        server.close()
        for connection in list(inside):
            await connection.abandon()

    with LoopThread() as loops:
        server = loops.run(start())
        try:
            yield Server("here", "127.0.0.1", server.sockets[0].getsockname()[1], None)
        finally:
            loops.run(stop(server))


async def _says(stream: FrameStream, *frames: bytes) -> None:
    for frame in frames:
        await stream.receive()
        await stream.send(frame)
    await stream.receive()


WELCOME = encode(Welcome(0, 0, 512, 128, "0.1.0"))
ANSWERS: dict[str, tuple[list[bytes], type[LinkError], str]] = {
    "nonsense for Welcome": ([b"\xee"], ProtocolError, "unknown kind"),
    "Done for Welcome": ([encode(Done(0, 0))], ProtocolError, "answer to Hello"),
    "a refusal": ([encode(Refused("busy", "come later"))], LinkError, "come later"),
    "nonsense for a reply": ([WELCOME, b"\xee"], ProtocolError, "unknown kind"),
    "a reply that is cut": ([WELCOME, encode(Done(1, 2))[:-1]], ProtocolError, "cut short"),
    "a reply that is empty": ([WELCOME, b""], ProtocolError, "cut short"),
    "another's Pong": ([WELCOME, encode(Pong(1))], ProtocolError, "no Ping"),
    "the end": ([WELCOME], LinkError, r"ended|lost|in time"),
}


@pytest.mark.parametrize("what", ANSWERS)
def test_a_server_that_breaks_the_rules_loses_the_link(what: str) -> None:
    frames, kind, says = ANSWERS[what]
    with strange_server(lambda stream: _says(stream, *frames)) as server, pytest.raises(kind, match=says):
        _ping(server)


def _ping(server: Server) -> None:
    link = Link.open(server, HELLO, identity=None, timeout_s=PATIENCE_S)
    try:
        link.ping(deadline_s=PATIENCE_S)
    finally:
        assert link.closed


@pytest.mark.parametrize("prefix", [struct.pack(">BI", 0, (1 << 32) - 1), struct.pack(">BI", 1, 1)])
def test_a_reply_beyond_the_limit_is_not_read(prefix: bytes) -> None:
    async def talk(stream: FrameStream) -> None:
        await _says(stream, WELCOME)
        await _raw(stream, prefix)
        await stream.receive()

    with strange_server(talk) as server:
        link = Link.open(server, HELLO, identity=None, timeout_s=PATIENCE_S)
        with pytest.raises(ProtocolError, match="too long"):
            link.call(EXTEND, deadline_s=PATIENCE_S)


@pytest.mark.parametrize("greeting", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\0\0\4\1\4\0\0\0\1abcd"])
def test_what_is_no_edgemem_server_is_told_apart(greeting: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening_socket:

        def serve() -> None:
            accepted, _ = listening_socket.accept()
            with accepted, contextlib.suppress(OSError):
                accepted.sendall(greeting)
                while greeting and accepted.recv(65536):
                    pass

        thread = threading.Thread(target=serve)
        thread.start()
        server = Server("here", "127.0.0.1", listening_socket.getsockname()[1], None)
        with pytest.raises(LinkError):
            Link.open(server, HELLO, identity=None, timeout_s=PATIENCE_S)
        thread.join()


def test_a_server_that_does_not_answer_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        server = Server("here", "127.0.0.1", silent.getsockname()[1], None)
        with pytest.raises(LinkError, match="in time"):
            Link.open(server, HELLO, identity=None, timeout_s=0.1)


def test_a_link_can_be_closed_while_it_greets() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        link = Link(Server("here", "127.0.0.1", silent.getsockname()[1], None), None)

        def close_once_it_is_there() -> None:
            with contextlib.closing(silent.accept()[0]) as accepted:
                assert accepted.recv(1)
                link.close()

        closer = threading.Thread(target=close_once_it_is_there)
        closer.start()
        with pytest.raises(LinkError, match="closed"):
            link.greet(HELLO, deadline_s=1e5)
        closer.join()
        with pytest.raises(LinkError, match="closed"):
            link.greet(HELLO, deadline_s=1e5)


def test_a_server_that_stops_in_the_handshake_is_given_up(tmp_path: Path) -> None:
    server, device = trusting(tmp_path, own_identity(tmp_path / "server", "server").certificate)
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(LinkError, match="in time"):
        Link.open(replace(server, port=silent.getsockname()[1]), HELLO, identity=device, timeout_s=0.1)


def test_a_server_that_is_not_there_is_told(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        server = Server("here", "127.0.0.1", free.getsockname()[1], None)
    with pytest.raises(LinkError, match=r"(?s)cannot be reached.*do: see that"):
        Link.open(server, HELLO, identity=None, timeout_s=PATIENCE_S)


# ---- L6: sides that do not fit are told both values, and what to do

TERMS = Terms("0.1.0", "ab" * 32, frozenset({2, 15}), 30, 4096)
FITS = replace(HELLO, split=15, layers=30)
MISFITS: dict[str, tuple[Hello, tuple[str, ...]]] = {
    "model": (replace(FITS, model="cd" * 32), ("cdcdcdcdcdcdcdcd", "abababababababab", "same package")),
    "split": (replace(FITS, split=3), ("layer 3 of 30", "layer 2, 15 of 30", "choose a split")),
    "layers": (replace(FITS, layers=28), ("layer 15 of 28", "of 30", "choose a split")),
    "capacity": (replace(FITS, capacity=5000), ("5000 slots", "at most 4096", "smaller context")),
    "older device": (
        replace(FITS, protocol=PROTOCOL - 1, version="0.0.9"),
        ("protocol 0, edgemem 0.0.9", "protocol 1, edgemem 0.1.0", "update edgemem on the device"),
    ),
    "newer device": (
        replace(FITS, protocol=PROTOCOL + 1, version="2.0"),
        ("protocol 2, edgemem 2.0", "protocol 1, edgemem 0.1.0", "update edgemem on the server"),
    ),
}


@pytest.mark.parametrize("what", MISFITS)
def test_sides_that_do_not_fit_are_shown_both(tmp_path: Path, what: str) -> None:
    hello, shown = MISFITS[what]
    with listening(tmp_path, Sessions(refuse=lambda hello: refusal(hello, TERMS))) as place:
        with pytest.raises(LinkError, match="refuses") as caught:
            connect(place, hello)
        for part in shown:
            assert part in str(caught.value)
        connect(place, FITS).close()
    assert place.sessions.calls == []


def test_ranges_reach_the_other_side(tmp_path: Path) -> None:
    kept = np.array([0, 1, 5, 6, 7, 90])
    with listening(tmp_path) as place, linked(place) as link:
        link.call(Keep(1, ranges_of(kept)), deadline_s=PATIENCE_S)
        keep = place.sessions.calls[0]
        assert isinstance(keep, Keep)
        assert keep.ranges.tolist() == [[0, 2], [5, 8], [90, 91]]
