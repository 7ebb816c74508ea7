"""The text is the same whatever happens to links and servers; who answers, and for how long a lost server is tried."""

from __future__ import annotations

import itertools
import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import numpy as np
import pytest
from faulty_link import FaultyServer, once
from hypothesis import given
from hypothesis import strategies as st
from runnable_packages import plain_model, runnable_package, same_precision
from split_conversation import Clock, converse, local_back, remote_back, some_tokens, split_engine

from edgemem.runtime.errors import EngineError, LinkError, NumericError
from edgemem.runtime.native_engine import NativeEngine
from edgemem.runtime.package import Package
from edgemem.runtime.sampling import Sampler, Sampling
from edgemem.split.frames import Hello, Message, Welcome
from edgemem.split.opening import dial_to
from edgemem.split.peers import Server
from edgemem.split.switching import SwitchSettings

SPLIT = 1
MESSAGES = 36  # of the conversation without a fault, and some more


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Package]:
    model = plain_model()
    path = tmp_path_factory.mktemp("split") / "p.edgemem"
    with Package.open(runnable_package(path, model, same_precision(model, "int8-g32"))) as opened:
        yield opened


@pytest.fixture(scope="module")
def wanted(package: Package) -> list[int | float]:
    with closing(NativeEngine(package, capacity=64, threads=1)) as whole:
        return converse(whole)


def a_server(package: Package, *faults: Any, split: int = SPLIT) -> FaultyServer:
    return FaultyServer(lambda: local_back(package, split), *faults)


@pytest.mark.parametrize("split", [0, 1, 2])
def test_a_server_gives_the_text_of_this_device(package: Package, wanted: list[int | float], split: int) -> None:
    server = a_server(package, split=split)
    with closing(split_engine(package, split, remote_back(package, split, server.dial))) as engine:
        assert converse(engine) == wanted
        assert engine.route == "remote"
        assert 25 < server.calls <= MESSAGES
    assert not server.sessions


@pytest.mark.parametrize("local", [False, True], ids=["alone", "with-local"])
@pytest.mark.parametrize("at", range(MESSAGES))
@pytest.mark.parametrize("fault", ["before", "after", "forget", "stale"])
def test_one_fault_anywhere_changes_nothing(
    package: Package, wanted: list[int | float], fault: str, at: int, local: bool
) -> None:
    server = a_server(package, once(fault, at))
    back = remote_back(package, SPLIT, server.dial, local=local)
    with closing(split_engine(package, SPLIT, back)) as engine:
        assert converse(engine, back.probe) == wanted


@pytest.mark.parametrize("local", [False, True], ids=["alone", "with-local"])
@pytest.mark.parametrize("whole", [1, 2, 4])
@pytest.mark.parametrize("fault", ["before", "after", "stale"])
def test_a_link_that_comes_and_goes_all_the_time_changes_nothing(
    package: Package, wanted: list[int | float], fault: str, whole: int, local: bool
) -> None:
    """`whole` exchanges, and then one that is lost, over and over."""
    server = a_server(package, itertools.cycle([*[None] * whole, fault]))
    back = remote_back(package, SPLIT, server.dial, local=local)
    with closing(split_engine(package, SPLIT, back)) as engine:
        assert converse(engine, back.probe) == wanted
        assert server.done > 0


@pytest.mark.parametrize("at", range(0, MESSAGES, 5))
def test_a_server_that_cannot_go_on_is_left_for_this_device(
    package: Package, wanted: list[int | float], at: int
) -> None:
    back = remote_back(package, SPLIT, a_server(package, once("failed", at)).dial, local=True)
    with closing(split_engine(package, SPLIT, back)) as engine:
        assert converse(engine) == wanted
    with closing(remote_back(package, SPLIT, a_server(package, once("failed", 0)).dial)) as alone:
        engine = split_engine(package, SPLIT, alone)
        with pytest.raises(Exception, match="no memory"):
            engine.extend(some_tokens(3))
        assert engine.length == alone.length == 0
        engine.extend(some_tokens(3))
        assert alone.length == 3


@given(
    faults=st.lists(st.sampled_from([None, None, None, "before", "after", "forget", "stale"]), max_size=80),
    local=st.booleans(),
    warm=st.booleans(),
    split=st.sampled_from([0, 1, 2]),
)
def test_any_faults_change_nothing(
    package: Package, wanted: list[int | float], faults: list[str | None], local: bool, warm: bool, split: int
) -> None:
    server = a_server(package, faults, split=split)
    back = remote_back(package, split, server.dial, local=local, settings=SwitchSettings(warm=warm))
    with closing(split_engine(package, split, back)) as engine:
        assert converse(engine, back.probe) == wanted


def test_a_lost_server_is_left_at_once_and_returned_to_after_three_good_probes(package: Package) -> None:
    server, clock = a_server(package), Clock()
    back = remote_back(package, SPLIT, server.dial, local=True, clock=clock)
    with closing(split_engine(package, SPLIT, back)) as engine, closing(whole_engine(package)) as whole:
        whole.extend(some_tokens(9))
        wanted = [token.id for token in whole.decode(Sampler(Sampling()), 12)]
        engine.extend(some_tokens(9))
        decoding, routes, got = engine.decode(Sampler(Sampling()), 12), [], []
        for step in range(12):
            server.down = 3 <= step < 6
            got.append(next(decoding).id)
            routes.append(engine.route)
            back.probe()
        assert got == wanted
        assert routes == ["remote"] * 3 + ["local"] * 6 + ["remote"] * 3
        assert back.problem is None


def test_what_is_done_here_meanwhile_is_done_there_once(package: Package) -> None:
    server = a_server(package)
    back = remote_back(package, SPLIT, server.dial, local=True)
    with closing(split_engine(package, SPLIT, back)) as engine:
        engine.extend(some_tokens(5))
        server.down = True
        for _ in range(4):
            engine.extend(some_tokens(2))
        engine.truncate(9)
        engine.keep(np.array([0, 2, 4, 5, 6]))
        done, server.down = server.done, False
        for _ in range(3):
            back.probe()
        assert engine.route == "remote"
        assert server.done == done + 2  # what was truncated is not sent
        [session] = server.sessions.values()
        assert session.back.length == engine.length == 5


def test_a_probe_that_fails_begins_the_count_anew(package: Package) -> None:
    server = a_server(package, ["before", None, None, "before", *[None] * 9])
    back = remote_back(package, SPLIT, server.dial, local=True)
    with closing(split_engine(package, SPLIT, back)) as engine:
        engine.extend(some_tokens(5))
        routes = []
        for _ in range(6):
            back.probe()
            routes.append(engine.route)
        assert routes == ["local"] * 5 + ["remote"]


def test_probing_runs_by_itself_and_ends_with_the_engine(package: Package) -> None:
    server = a_server(package, ["before"])
    back = remote_back(package, SPLIT, server.dial, local=True, settings=SwitchSettings(probe_s=0.01))
    with closing(split_engine(package, SPLIT, back)) as engine:
        back.start_probing()
        engine.extend(some_tokens(5))
        assert engine.route == "local"
        waiting = threading.Event()
        while engine.route == "local":
            waiting.wait(0.01)
        assert len(list(engine.decode(Sampler(Sampling()), 5))) == 5
    assert not any(thread.name == "edgemem-probe" for thread in threading.enumerate())


class StuckLink:
    """Waits in `greet`, or else in `ping`, until it is closed."""

    welcome: Welcome

    def __init__(self, stuck_in: str) -> None:
        self._stuck_in, self._closed = stuck_in, threading.Event()
        self.reached = threading.Event()

    def greet(self, hello: Hello, *, deadline_s: float) -> Welcome:
        self._wait_in("greet", deadline_s)
        return Welcome(0, 0, hello.capacity, 128, "0")

    def call(self, message: Message, *, deadline_s: float) -> Message:
        raise LinkError("the link is closed")

    def ping(self, *, deadline_s: float) -> float:
        self._wait_in("ping", deadline_s)
        return 1.0

    def close(self) -> None:
        self._closed.set()

    def _wait_in(self, name: str, deadline_s: float) -> None:
        if name == self._stuck_in:
            self.reached.set()
            self._closed.wait(deadline_s)
            raise LinkError("the link was closed meanwhile")


@pytest.mark.parametrize("stuck_in", ["greet", "ping"])
def test_a_probe_that_waits_does_not_keep_it_from_closing(package: Package, stuck_in: str) -> None:
    link = StuckLink(stuck_in)
    links = iter([a_server(package, ["before"]).dial(), link])
    settings = SwitchSettings(probe_s=0.01, connect_s=1e5, deadline_s=1e5)
    back = remote_back(package, SPLIT, lambda: next(links), local=True, settings=settings)
    with closing(split_engine(package, SPLIT, back)) as engine:
        engine.extend(some_tokens(5))
        back.start_probing()
        link.reached.wait()
    assert not any(thread.name == "edgemem-probe" for thread in threading.enumerate())


def test_a_server_that_does_not_answer_a_greeting_holds_nothing_up(package: Package) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        dial = dial_to(Server("silent", "127.0.0.1", silent.getsockname()[1], None), None)
        for local, settings in (
            (True, SwitchSettings(connect_s=1e5, prompt_deadline_s=0.05)),
            (False, SwitchSettings(connect_s=0.05, patience_s=1e-6)),
        ):
            back = remote_back(package, SPLIT, dial, local=local, settings=settings)
            with closing(split_engine(package, SPLIT, back)) as engine:
                if local:
                    engine.extend(some_tokens(5))
                    assert engine.route == "local"
                else:
                    with pytest.raises(LinkError, match="in time"):
                        back.sync()


def test_a_warm_stage_has_little_to_do_when_it_is_needed(package: Package) -> None:
    for warm in (False, True):
        server = a_server(package)
        back = remote_back(package, SPLIT, server.dial, local=True, settings=SwitchSettings(warm=warm))
        local = back._local
        assert local is not None
        with closing(split_engine(package, SPLIT, back)) as engine:
            for _ in range(6):
                engine.extend(some_tokens(2))
                back.probe()
            engine.truncate(11)
            assert local.length == (10 if warm else 0)
            server.down = True
            scores = engine.extend(some_tokens(2), surprisal=True).surprisal
            assert np.isnan(scores).tolist() == [True, False]
            assert (local.length, engine.route) == (13, "local")


def test_without_a_local_stage_the_server_is_tried_until_patience_ends(package: Package) -> None:
    server, clock = a_server(package), Clock()
    settings = SwitchSettings(patience_s=20, first_retry_s=1, last_retry_s=4)
    back = remote_back(package, SPLIT, server.dial, clock=clock, settings=settings)
    with closing(split_engine(package, SPLIT, back)) as engine:
        engine.extend(some_tokens(5))
        server.down, begin = True, clock.now
        with pytest.raises(LinkError, match=r"lost|reached"):
            engine.extend(some_tokens(2))
        assert 20 <= clock.now - begin < 26
        assert engine.length == back.length == 5
        assert isinstance(back.problem, LinkError)
        server.down = False
        engine.extend(some_tokens(2))
        assert engine.route == "degraded"
        for _ in range(2):
            engine.extend(some_tokens(1))
        assert engine.route == "remote"
        assert back.problem is None


@pytest.mark.parametrize("fault", ["before", "after", "stale"])
def test_what_counted_as_not_done_is_undone_where_it_was(package: Package, fault: str) -> None:
    server = a_server(package, [None, fault])
    back = remote_back(package, SPLIT, server.dial, settings=SwitchSettings(patience_s=1e-6))
    with closing(split_engine(package, SPLIT, back)) as engine, closing(whole_engine(package)) as whole:
        engine.extend(some_tokens(5))
        with pytest.raises(LinkError):
            engine.extend(some_tokens(2, seed=1))
        assert engine.length == back.length == 5
        whole.extend(some_tokens(5))
        for each in (engine, whole):
            next(each.decode(Sampler(Sampling()), 1))  # the logits before are still known
        for each in (engine, whole):
            each.extend(some_tokens(2, seed=2))
        wanted = [token.id for token in whole.decode(Sampler(Sampling()), 9)]
        assert [token.id for token in engine.decode(Sampler(Sampling()), 9)] == wanted


def test_a_server_that_was_refilled_knows_no_more_than_was_known(package: Package) -> None:
    server = a_server(package)
    with closing(split_engine(package, SPLIT, remote_back(package, SPLIT, server.dial))) as engine:
        for _ in range(2):
            engine.extend(some_tokens(3))
        engine.truncate(3)
        server.forget()
        scores = engine.extend(some_tokens(3), surprisal=True).surprisal
        assert np.isnan(scores).tolist() == [True, False, False]


def test_a_late_answer_is_waited_for_and_seen(package: Package) -> None:
    clock = Clock()
    back = remote_back(package, SPLIT, a_server(package).dial, clock=clock, settings=SwitchSettings(deadline_s=1e-4))
    with closing(split_engine(package, SPLIT, back)) as engine:
        engine.extend(some_tokens(5))
        assert engine.route == "remote"
        engine.extend(some_tokens(1))
        assert engine.route == "degraded"


def test_an_error_of_the_model_is_no_fault_of_the_link(package: Package) -> None:
    server = a_server(package)
    back = remote_back(package, SPLIT, server.dial)
    with closing(split_engine(package, SPLIT, back)) as engine:
        engine.extend(some_tokens(5))
        [session] = server.sessions.values()
        sound, state = session.back.state(), session.back.state()
        state.values[0, 0, 3] = np.nan
        session.back.restore(state)
        with pytest.raises(NumericError, match="not finite"):
            engine.extend(some_tokens(2))
        assert engine.length == 5
        session.back.restore(sound)
        engine.extend(some_tokens(2))
        assert (engine.length, session.back.length, engine.route) == (7, 7, "remote")


def test_a_history_beyond_its_bound_goes_on_with_what_is_held(package: Package) -> None:
    server = a_server(package)
    back = remote_back(package, SPLIT, server.dial, bound_bytes=1 << 14)
    with closing(split_engine(package, SPLIT, back)) as engine, closing(whole_engine(package)) as whole:
        for round_ in range(40):
            for each in (engine, whole):
                each.extend(some_tokens(3, seed=round_))
                each.keep(np.arange(max(0, each.length - 20), each.length))
        assert server.done == 40  # one that has done all loses nothing by it
        assert [t.id for t in engine.decode(Sampler(Sampling()), 9)] == [
            t.id for t in whole.decode(Sampler(Sampling()), 9)
        ]
        server.forget()
        assert engine.length == 28
        logits = engine.extend(some_tokens(1)).logits
        assert np.isfinite(logits).all()
        assert server.done - 40 - 8 < 20  # not all that ever was
        [session] = server.sessions.values()
        assert session.back.length == 29


def test_a_servers_memory_is_not_to_be_had(package: Package) -> None:
    server = a_server(package)
    back = remote_back(package, SPLIT, server.dial, local=True)
    with closing(split_engine(package, SPLIT, back)) as engine, closing(whole_engine(package)) as whole:
        engine.extend(some_tokens(5))
        whole.extend(some_tokens(5))
        with pytest.raises(EngineError, match="cannot be copied"):
            engine.state()
        with pytest.raises(EngineError, match="cannot be replaced"):
            engine.restore(whole.state())
        server.down = True
        for each in (engine, whole):
            each.extend(some_tokens(2))
        got, wanted = engine.state(), whole.state()
        for name in ("keys", "values", "logits"):
            np.testing.assert_array_equal(getattr(got, name), getattr(wanted, name))


def test_sync_says_what_is_wrong_before_anything_is_asked(package: Package) -> None:
    server = a_server(package)
    server.down = True
    for local in (False, True):
        back = remote_back(package, SPLIT, server.dial, local=local)
        with closing(split_engine(package, SPLIT, back)) as engine:
            with pytest.raises(LinkError, match="cannot be reached"):
                back.sync()
            assert engine.route == ("local" if local else "degraded")
    server.down = False
    with closing(remote_back(package, SPLIT, server.dial)) as back:
        back.sync()
        assert back.route == "remote"


def whole_engine(package: Package) -> NativeEngine:
    return NativeEngine(package, capacity=64, threads=1)
