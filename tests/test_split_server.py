"""The server of a split, asked over real links: each operation is done once, each session is its own."""

from __future__ import annotations

import random
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import MethodType
from unittest.mock import MagicMock

import numpy as np
import pytest
from numpy.typing import NDArray
from split_servers import Running, hello, serving

from edgemem.runtime.budget import native_budget
from edgemem.runtime.errors import BudgetError, LinkError, ProtocolError, SettingsError
from edgemem.runtime.native_engine import NativeEngine
from edgemem.runtime.package import Package
from edgemem.split.codec import Codec, CodecSettings
from edgemem.split.frames import (
    Answered,
    Bye,
    Done,
    Extend,
    Failed,
    Keep,
    Logits,
    Message,
    Refused,
    Truncate,
    Welcome,
    ranges_of,
)
from edgemem.split.link import Link
from edgemem.split.metrics import Metrics
from edgemem.split.server import ServerSettings
from edgemem.split.stage_pool import open_pools
from edgemem.tools import split_serve
from edgemem.tools.cli import main

SESSION = b"0123456789abcdef"
S = 20.0  # seconds that an answer may take on a loaded machine


@pytest.fixture(scope="module")
def package(tiny_package: Path) -> Iterator[Package]:
    with Package.open(tiny_package) as package:
        yield package


@pytest.fixture(scope="module")
def server(tiny_package: Path) -> Iterator[Running]:
    with serving(tiny_package) as running:
        yield running


@pytest.fixture
def alone(package: Package) -> Iterator[tuple[NativeEngine, NativeEngine]]:
    """Front and back stage here, for what is to come out."""
    stages = [
        NativeEngine(package, layers=layers, capacity=64, threads=1) for layers in ((0, 1), (1, package.model.layers))
    ]
    with closing(stages[0]), closing(stages[1]):
        yield stages[0], stages[1]


def linked(server: Running, session: bytes, package: Package, capacity: int = 64) -> Link:
    asked = hello(session, package.model.layers, capacity=capacity)
    return Link.open(server.address, asked, identity=None, timeout_s=S)


def payload(states: NDArray[np.float32] | None, package: Package) -> bytes:
    assert states is not None
    return Codec(CodecSettings("fp32"), package.model.hidden).encode(states)


def test_it_answers_as_the_layers_here_do(
    server: Running, package: Package, alone: tuple[NativeEngine, NativeEngine]
) -> None:
    front, back = alone
    tokens = np.arange(5, 25, dtype=np.int32)
    with closing(linked(server, SESSION, package)) as link:
        states = front.extend(tokens).hidden
        assert states is not None
        reply = link.call(Extend(1, 0, 20, payload(states, package), 7, tokens), deadline_s=S)
        step = back.extend(states, surprisal=True, tokens=tokens)
        assert isinstance(reply, Answered)
        assert (reply.op, reply.length) == (1, 20)
        assert step.logits is not None
        np.testing.assert_array_equal(np.sort(np.argsort(-step.logits, kind="stable")[:7]), reply.ids)
        np.testing.assert_array_equal(step.logits[reply.ids], reply.values)
        np.testing.assert_array_equal(step.surprisal, reply.surprisal)
        assert reply.log_sum == pytest.approx(float(np.log(np.exp(step.logits.astype(float)).sum())))
        more = link.call(Logits(1, package.model.vocabulary), deadline_s=S)
        assert isinstance(more, Answered)
        np.testing.assert_array_equal(more.values, step.logits)
        slots = np.array([0, 1, 2, 9, 10, 19])
        assert same(link.call(Keep(2, ranges_of(slots)), deadline_s=S), Done(2, 6))
        back.keep(slots)
        assert same(link.call(Truncate(3, 4), deadline_s=S), Done(3, 4))
        back.truncate(4)
        reply = link.call(Extend(4, 4, 1, payload(states[:1], package), 3), deadline_s=S)
        step = back.extend(states[:1])
        assert isinstance(reply, Answered)
        assert step.logits is not None
        np.testing.assert_array_equal(step.logits[reply.ids], reply.values)
        assert same(link.call(Bye(), deadline_s=S), Done(4, 0))


def same(one: Message, other: Message) -> bool:
    return type(one) is type(other) and vars(one) == vars(other)


def test_an_operation_that_comes_twice_is_done_once_over_whichever_link(server: Running, package: Package) -> None:
    states = np.ones((3, package.model.hidden), dtype=np.float32)
    extend = Extend(1, 0, 3, payload(states, package), 2)
    with closing(linked(server, b"a" * 16, package)) as link:
        first = link.call(extend, deadline_s=S)
        again = link.call(extend, deadline_s=S)
    with closing(linked(server, b"a" * 16, package)) as link:
        assert (link.welcome.op, link.welcome.length) == (1, 3)
        last = link.call(extend, deadline_s=S)
        for reply in (first, again, last):
            assert isinstance(reply, Answered)
            assert (reply.op, reply.length, reply.values.tolist()) == (1, 3, first.values.tolist())  # type: ignore[union-attr]
        link.call(Bye(), deadline_s=S)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda p: Extend(3, 3, 1, p, 1),
        lambda p: Extend(2, 2, 1, p, 1),
        lambda p: Extend(2, 3, 1, p[:-1], 1),
        lambda p: Extend(2, 3, 2, p, 1),
        lambda p: Truncate(2, 4),
        lambda p: Keep(2, np.array([[0, 4]], dtype=np.int32)),
        lambda p: Logits(2, 1),
        lambda p: Truncate(0, 1),
    ],
)
def test_what_breaks_a_rule_closes_the_link_and_leaves_the_session(
    server: Running, package: Package, wrong: object
) -> None:
    session = random.randbytes(16)
    states = np.ones((3, package.model.hidden), dtype=np.float32)
    one = payload(states[:1], package)
    with closing(linked(server, session, package)) as link:
        link.call(Extend(1, 0, 3, payload(states, package), 1), deadline_s=S)
        with pytest.raises(ProtocolError):
            link.call(wrong(one), deadline_s=S)  # type: ignore[operator]
        assert link.closed
    with closing(linked(server, session, package)) as link:
        assert (link.welcome.op, link.welcome.length) == (1, 3)
        assert isinstance(link.call(Extend(2, 3, 1, one, 1), deadline_s=S), Answered)
        link.call(Bye(), deadline_s=S)


def test_what_cannot_be_done_leaves_the_link_too(server: Running, package: Package) -> None:
    states = np.ones((9, package.model.hidden), dtype=np.float32)
    with closing(linked(server, b"c" * 16, package, capacity=10)) as link:
        reply = link.call(Logits(0, 1), deadline_s=S)
        assert isinstance(reply, Failed)
        assert reply.code == "settings"
        link.call(Extend(1, 0, 9, payload(states, package), 1), deadline_s=S)
        reply = link.call(Extend(2, 9, 9, payload(states, package), 1), deadline_s=S)
        assert isinstance(reply, Failed)
        assert reply.code == "context"
        assert isinstance(link.call(Extend(2, 9, 1, payload(states[:1], package), 1), deadline_s=S), Answered)
        link.call(Bye(), deadline_s=S)


def test_sessions_beyond_the_limits_are_refused_until_there_is_room(tiny_package: Path, package: Package) -> None:
    with serving(tiny_package, settings=ServerSettings(sessions=2, slots=64)) as server:
        links = [linked(server, bytes([place]) * 16, package) for place in range(2)]
        with pytest.raises(LinkError, match="full"):
            linked(server, b"x" * 16, package)
        with pytest.raises(LinkError, match="fewer slots"):
            linked(server, b"x" * 16, package, capacity=65)
        links[0].call(Bye(), deadline_s=S)
        assert server.back.sessions == 1
        with closing(linked(server, b"x" * 16, package)) as link:
            assert link.welcome.op == 0
        with pytest.raises(LinkError, match="other terms"):
            linked(server, b"x" * 16, package, capacity=63)
        for link in links:
            link.close()
        text = server.back.metrics.text()
        assert 'edgemem_split_refused_total{code="busy"} 1.0' in text
        assert "edgemem_split_sessions 2.0" in text


def test_what_is_idle_is_freed_and_told_so(tiny_package: Path, package: Package) -> None:
    with serving(tiny_package, settings=ServerSettings(slots=64, idle_s=0.05)) as server:
        with closing(linked(server, b"i" * 16, package)) as link:
            threading.Event().wait(0.2)
            assert server.back.sweep() == 1
            with pytest.raises(ProtocolError, match="no more"):
                link.call(Truncate(1, 0), deadline_s=S)
        with closing(linked(server, b"i" * 16, package)) as link:
            assert link.welcome.op == 0


def test_many_at_once_do_not_mix(server: Running, package: Package, alone: tuple[NativeEngine, NativeEngine]) -> None:
    back, hidden = alone[1], package.model.hidden
    states = np.random.default_rng(2).normal(size=(8, 12, hidden)).astype(np.float32)
    wanted = []
    for rows in states:
        back.truncate(0)
        wanted.append([back.extend(row[None]).logits.argmax() for row in rows])  # type: ignore[union-attr]
    got: list[list[int]] = [[] for _ in states]

    def talk(place: int) -> None:
        with closing(linked(server, bytes([65 + place]) * 16, package)) as link:
            for step, row in enumerate(states[place]):
                reply = link.call(Extend(step + 1, step, 1, payload(row[None], package), 1), deadline_s=S)
                assert isinstance(reply, Answered)
                got[place].append(int(reply.ids[0]))
            link.call(Bye(), deadline_s=S)

    threads = [threading.Thread(target=talk, args=(place,)) for place in range(len(states))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == wanted
    assert server.back.sessions == 0


def test_metrics_are_served_on_loopback() -> None:
    metrics = Metrics()
    metrics.done("extend", 5, 0.001, 0.02)
    port, stop = metrics.serve(0)
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=S) as page:
            text = page.read().decode()
    finally:
        stop()
    assert "edgemem_split_tokens_total 5.0" in text
    assert 'edgemem_split_operations_total{kind="extend"} 1.0' in text


def test_a_port_for_metrics_that_is_none_is_told() -> None:
    with pytest.raises(LinkError, match="cannot be had"):
        Metrics().serve(65536)


def test_the_verbs_flags_are_the_servers_settings(tiny_package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, welcomed = [], []

    async def look(args: object, open_session: MethodType, handle: object) -> None:
        seen.append(open_session.__self__.settings)
        with Package.open(tiny_package) as package:
            asked = hello(SESSION, package.model.layers, capacity=8)
            asked = replace(asked, model=package.manifest.model_hash)
        for split in range(asked.layers):
            its_own = replace(asked, split=split, session=bytes([split]) * len(SESSION))
            welcomed.append(type(await open_session(its_own, None)))

    monkeypatch.setattr(split_serve, "serve_network", look)
    flags = ["--split", "0,2,0", "--sessions", "3", "-c", "64", "--memory", "5MiB", "--idle", "7"]
    assert main(["split", "serve", str(tiny_package), "-t", "1", *flags]) == 0
    assert seen == [ServerSettings(sessions=3, slots=64, bytes=5 << 20, idle_s=7.0)]
    assert welcomed == [Welcome, Refused, Welcome]


def test_a_fleets_replicas_have_every_split(tiny_package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = []

    async def look(*_: object) -> None: ...

    def fleet(path: Path, splits: list[int], **_: object) -> MagicMock:
        given.append((path, splits))
        return MagicMock()

    monkeypatch.setattr(split_serve, "serve_network", look)
    monkeypatch.setattr("edgemem.split.ray_app.Fleet", fleet)
    assert main(["split", "serve", str(tiny_package), "--split", "0,2", "--replicas", "2"]) == 0
    assert given == [(tiny_package, [0, 2])]


def test_a_list_of_splits_that_is_none_is_told(tiny_package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for text in ("0,", "1;2", "-1"):
        assert main(["split", "serve", str(tiny_package), f"--split={text}"]) == 2
        assert "no whole number" in capsys.readouterr().err
    assert main(["split", "serve", str(tiny_package), "--split", "1,3"]) == 1
    assert "there are no such layers" in capsys.readouterr().err


def test_pools_that_fit_only_one_by_one_are_not_opened(package: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    budgets = [native_budget(package, 64, (split, package.model.layers), 1).total for split in (0, 1)]
    monkeypatch.setattr("edgemem.split.stage_pool.available_memory", lambda: sum(budgets) - 1)
    with pytest.raises(BudgetError, match="weights, packed, from 1"):
        open_pools(package, (0, 1), capacity=64, threads=1)
    for pool in open_pools(package, (1,), capacity=64, threads=1).values():
        pool.close()


@pytest.mark.parametrize("change", [{"sessions": 0}, {"slots": True}, {"bytes": 0.5}, {"idle_s": 0}])
def test_settings_out_of_range_are_refused(change: dict[str, int]) -> None:
    with pytest.raises(SettingsError, match=next(iter(change))):
        replace(ServerSettings(), **change)
