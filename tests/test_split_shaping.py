"""The shaping proxy: what arrives, in which order, how late, and how a connection ends."""

from __future__ import annotations

import asyncio
import math
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemem.runtime.errors import SettingsError
from edgemem.split.shaping import Faults, Lane, Shape, ShapingProxy, shaped

WAIT_S = 10.0


@contextmanager
def echoing() -> Iterator[int]:
    """A port where everything that comes is sent back, one connection after another."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        done = threading.Event()

        def serve() -> None:
            server.settimeout(0.05)
            while not done.is_set():
                try:
                    there, _ = server.accept()
                except TimeoutError:
                    continue
                with there:
                    there.settimeout(WAIT_S)
                    try:
                        while data := there.recv(1 << 16):
                            there.sendall(data)
                    except OSError:
                        continue

        thread = threading.Thread(target=serve)
        thread.start()
        yield server.getsockname()[1]
        done.set()
        thread.join(WAIT_S)


def connected(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=WAIT_S)


def received(link: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count and (part := link.recv(count - len(data))):
        data += part
    return data


def exchange_s(port: int, data: bytes) -> float:
    with connected(port) as link:
        received_first = _echo(link, b"warm")
        assert received_first == b"warm"
        begin = time.perf_counter()
        assert _echo(link, data) == data
        return time.perf_counter() - begin


def _goes_on(link: socket.socket) -> bool:
    """Whether 200 bytes come back, one by one."""
    try:
        for _ in range(200):
            link.sendall(b"x")
            if not link.recv(1):
                return False
    except OSError:
        return False
    return True


def _echo(link: socket.socket, data: bytes) -> bytes:
    sender = threading.Thread(target=link.sendall, args=(data,))
    sender.start()
    got = received(link, len(data))
    sender.join(WAIT_S)
    return got


def test_unshaped_everything_arrives_in_order_and_is_counted() -> None:
    data = bytes(range(256)) * 8000
    with echoing() as port, shaped(port) as proxy, connected(proxy.port) as link:
        assert _echo(link, data) == data
        assert (proxy.up_bytes, proxy.down_bytes) == (len(data), len(data))


def test_the_delay_is_paid_each_way() -> None:
    with echoing() as port, shaped(port, Shape(delay_s=0.06)) as proxy:
        assert 0.12 <= exchange_s(proxy.port, b"x") < 0.6


def test_bytes_take_their_time_on_each_way() -> None:
    # 50,000 bytes at 4 Mbit/s are 0.1 s; the way back begins when the first arrive, so that it is hardly longer.
    with echoing() as port, shaped(port, Shape(bits_per_s=4e6)) as proxy:
        assert 0.1 <= exchange_s(proxy.port, bytes(50_000)) < 0.5


def test_a_shape_may_be_replaced_meanwhile() -> None:
    with echoing() as port, shaped(port) as proxy:
        proxy.shape = Shape(delay_s=0.1)
        assert exchange_s(proxy.port, b"x") >= 0.2
        proxy.shape = Shape()
        assert exchange_s(proxy.port, b"x") < 0.2


@pytest.mark.parametrize("count", [0, 1, 7, 100])
def test_a_connection_is_cut_after_so_many_bytes(count: int) -> None:
    with echoing() as port, shaped(port, faults=Faults(cut_after=count)) as proxy, connected(proxy.port) as link:
        assert not _goes_on(link)
        assert proxy.up_bytes + proxy.down_bytes == count


def test_a_stalled_connection_stays_open_and_silent() -> None:
    with echoing() as port, shaped(port, faults=Faults(stall_after=6)) as proxy, connected(proxy.port) as link:
        assert _echo(link, b"abc") == b"abc"
        link.sendall(b"more")
        link.settimeout(0.2)
        with pytest.raises(TimeoutError):
            link.recv(1)


def test_faults_are_of_each_connection() -> None:
    with echoing() as port, shaped(port, faults=Faults(cut_after=4)) as proxy:
        for _ in range(3):
            with connected(proxy.port) as link:
                link.sendall(b"ab")
                assert received(link, 2) == b"ab"


def test_all_connections_of_now_can_be_cut() -> None:
    async def main(port: int) -> bytes:
        proxy = ShapingProxy(port)
        await proxy.start()
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write(b"x")
        assert await reader.read(1) == b"x"
        proxy.cut()
        try:
            return await asyncio.wait_for(reader.read(1), WAIT_S)
        except ConnectionResetError:
            return b""
        finally:
            writer.close()
            await proxy.close()

    with echoing() as port:
        assert asyncio.run(main(port)) == b""


def test_the_end_of_one_way_arrives_after_its_data() -> None:
    with echoing() as port, shaped(port, Shape(bits_per_s=1e6, delay_s=0.01)) as proxy, connected(proxy.port) as link:
        link.sendall(bytes(5000))
        link.shutdown(socket.SHUT_WR)
        assert received(link, 10_000) == bytes(5000)


def test_a_target_that_is_not_there_ends_the_connection() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        port = server.getsockname()[1]
    with shaped(port) as proxy, connected(proxy.port) as link:
        try:
            assert link.recv(1) == b""
        except ConnectionResetError:
            assert proxy.up_bytes == 0


@given(
    sizes=st.lists(st.tuples(st.floats(0, 0.1), st.integers(0, 10_000)), min_size=1, max_size=30),
    rate=st.floats(1e3, 1e9),
    delay_s=st.floats(0, 2),
)
def test_a_lane_is_never_faster_than_its_rate(sizes: list[tuple[float, int]], rate: float, delay_s: float) -> None:
    lane, now_s, shape, arrivals = Lane(), 0.0, Shape(rate, delay_s), []
    for pause_s, size in sizes:
        now_s += pause_s
        arrivals.append(lane.arrival_s(now_s, size, shape))
        assert arrivals[-1] >= now_s + 8 * size / rate + delay_s - 1e-9
    assert arrivals == sorted(arrivals)
    total_s = 8 * sum(size for _, size in sizes) / rate
    assert sizes[0][0] + total_s + delay_s - 1e-6 <= arrivals[-1] <= now_s + total_s + delay_s + 1e-6


@pytest.mark.parametrize(
    "make",
    [
        lambda: Shape(bits_per_s=0),
        lambda: Shape(bits_per_s=math.nan),
        lambda: Shape(delay_s=-1),
        lambda: Shape(delay_s=math.inf),
        lambda: Faults(cut_after=-1),
        lambda: Faults(stall_after=True),
    ],
)
def test_shapes_and_faults_that_are_none(make: object) -> None:
    with pytest.raises(SettingsError):
        make()  # type: ignore[operator]
