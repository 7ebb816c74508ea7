"""A conversation moves to a faster split and says the same; it moves seldom, and not where it is too dear."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import split_servers
from faulty_link import FaultyLink, FaultyServer
from hypothesis import given
from hypothesis import strategies as st
from runnable_packages import plain_model, runnable_package, same_precision
from split_conversation import EXACT, converse, local_back, remote_back, some_tokens, split_engine

from edgemem.runtime.engine import Step
from edgemem.runtime.errors import EngineError, LinkError, SettingsError
from edgemem.runtime.native_engine import NativeEngine
from edgemem.runtime.package import Package
from edgemem.runtime.sampling import Sampler, Sampling
from edgemem.split.engine import SplitEngine, StepTimes
from edgemem.split.frames import Hello, Welcome
from edgemem.split.guide import Guide, News, choice_at
from edgemem.split.history import Work
from edgemem.split.link import Link
from edgemem.split.measuring import WireTimes
from edgemem.split.moves import Moves, MoveSettings, Offer
from edgemem.split.moving_engine import MovingEngine
from edgemem.split.moving_opening import head_layers, open_here, open_moving_engine, problem_of
from edgemem.split.peers import Server
from edgemem.split.planner import Constraints, cost_of
from edgemem.split.server import ServerSettings
from edgemem.split.shaping import Shape, shaped
from edgemem.split.sides import LinkSpeed
from edgemem.split.speeds import Speeds
from edgemem.tools.cli import main
from edgemem.tools.split_bench_server import serving_slowly
from edgemem.tools.split_run import news_text

SETTINGS = MoveSettings(in_a_row=2, pause_s=0.0)
ROOMY = Constraints(10**12, 1e9, 0.0)
LAYERS = 3


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Package]:
    model = plain_model()
    path = tmp_path_factory.mktemp("moves") / "p.edgemem"
    with Package.open(runnable_package(path, model, same_precision(model, "int8-g32"))) as opened:
        yield opened


class Told:
    """A guide that offers what a test says, at the token it says."""

    def __init__(self, split: int, offers: list[int | None]) -> None:
        self.split, self.news, self._offers = split, [], iter(offers)  # type: ignore[var-annotated]
        self.problems: list[Exception] = []

    def stepped(self, times: StepTimes, tokens_left: int, work: Work) -> Offer | None:
        split = next(self._offers, None)
        return None if split in (None, self.split) else Offer(split, 1.0, 0.0)

    def moved(self, offer: Offer) -> None:
        self.split = offer.split

    def refused(self, offer: Offer, problem: Exception) -> None:
        self.problems.append(problem)


def opener(package: Package) -> Callable[[int], SplitEngine]:
    def open_at(split: int) -> SplitEngine:
        if split == LAYERS:
            return open_here(package, 1, EXACT, capacity=64, threads=1)
        server = FaultyServer(lambda: local_back(package, split))
        return split_engine(package, split, remote_back(package, split, server.dial))

    return open_at


def wait_until_prepared(engine: MovingEngine) -> None:
    if engine._preparing is not None:
        engine._preparing.exception(20)


@pytest.mark.parametrize("offers", [[3], [0], [2, 1], [None, 3, None, 0, None, 2], [3, 1, 3, 1, 0, 3]], ids=str)
def test_wherever_it_moves_the_conversation_is_the_same(package: Package, offers: list[int | None]) -> None:
    with closing(NativeEngine(package, capacity=64, threads=1)) as whole:
        wanted = converse(whole)
    open_at, guide = opener(package), Told(1, offers)
    with closing(MovingEngine(open_at(1), open_at, guide)) as engine:  # type: ignore[arg-type]
        seen = set()

        def between() -> None:
            wait_until_prepared(engine)
            seen.add((engine.split, engine.route))

        assert converse(engine, between) == wanted
    assert {split for split, _ in seen} == {1, *(split for split in offers if split is not None)}
    assert all((route == "local") == (split == LAYERS) for split, route in seen)
    assert not any(thread.name.startswith("edgemem-move") for thread in threading.enumerate())


def test_where_it_cannot_be_it_stays(package: Package) -> None:
    open_at, guide = opener(package), Told(1, [2])

    def refuse(split: int) -> SplitEngine:
        raise LinkError("the server refuses")

    with closing(MovingEngine(open_at(1), refuse, guide)) as engine:  # type: ignore[arg-type]
        assert converse(engine, lambda: wait_until_prepared(engine))
        assert [str(problem) for problem in guide.problems] == ["the server refuses"]
        assert engine.split == 1
        with pytest.raises(EngineError, match="remembers tokens"):
            engine.restore(engine.engine.state() if engine.route == "local" else None)  # type: ignore[arg-type]


def test_one_that_is_prepared_but_never_needed_is_closed(package: Package) -> None:
    open_at, opened = opener(package), list[SplitEngine]()

    def remember(split: int) -> SplitEngine:
        opened.append(open_at(split))
        return opened[-1]

    with closing(MovingEngine(open_at(1), remember, Told(1, [3]))) as engine:  # type: ignore[arg-type]
        engine.extend(some_tokens(4))
        list(engine.decode(Sampler(Sampling()), 3))
        wait_until_prepared(engine)
    with pytest.raises(EngineError, match="closed"):
        opened[0].extend(some_tokens(1))


def test_what_was_forgotten_is_not_known_after_a_move(package: Package) -> None:
    open_at = opener(package)
    with closing(MovingEngine(open_at(1), open_at, Told(1, [3]))) as engine:  # type: ignore[arg-type]
        engine.extend(some_tokens(4))
        list(engine.decode(Sampler(Sampling()), 3))
        wait_until_prepared(engine)
        engine.truncate(4)
        scores = engine.extend(some_tokens(2), surprisal=True).surprisal
        assert engine.split == LAYERS
        assert np.isnan(scores).tolist() == [True, False]  # type: ignore[arg-type]


def offer(token_ms: float, split: int = 0, cost_ms: float = 0.0) -> Offer:
    return Offer(split, token_ms, cost_ms)


def test_it_moves_after_some_tokens_in_a_row_and_not_again_for_a_while() -> None:
    settings, moves, verdicts = MoveSettings(in_a_row=3, pause_s=10.0), Moves(moved_s=0.0), []
    for now_s, there_ms in enumerate([5.0, 5.0, 9.0, *[5.0] * 10]):
        moves = moves.after(10.0, [offer(there_ms)], 100, float(now_s), settings)
        verdicts.append(moves.verdict)
    assert verdicts == ["stay"] * 10 + ["move"] * 3


def test_a_move_that_takes_longer_than_it_gains_is_too_dear() -> None:
    settings = MoveSettings(in_a_row=1, pause_s=0.0)
    for left, verdict in ((20, "dear"), (21, "move")):
        assert Moves().after(10.0, [offer(5.0, cost_ms=100.0)], left, 0.0, settings).verdict == verdict


@given(
    st.lists(
        st.tuples(st.floats(1, 100), st.lists(st.floats(1, 100), max_size=3), st.integers(0, 99), st.floats(0, 9)),
        max_size=60,
    )
)
def test_it_never_moves_for_little_or_too_often(tokens: list[tuple[float, list[float], int, float]]) -> None:
    settings, moves, now_s, moved_s = MoveSettings(in_a_row=2, pause_s=5.0), Moves(), 0.0, -1e9
    for here_ms, theres, left, passed in tokens:
        now_s += passed
        offers = [offer(there, split) for split, there in enumerate(theres)]
        moves = moves.after(here_ms, offers, left, now_s, settings)
        if moves.verdict == "move":
            assert moves.towards is not None
            assert settings.better(moves.towards.token_ms, here_ms)
            assert moves.towards.token_ms == min(theres)
            assert now_s - moved_s >= settings.pause_s
            moved_s = now_s
            moves = Moves(moved_s=now_s)


def test_speeds_are_those_of_the_newest_steps_and_looks() -> None:
    speeds = Speeds(LAYERS, 1.0, 1, 128.0)
    assert speeds.device is speeds.server is speeds.link is speeds.here_ms is None
    speeds.looked(WireTimes(LinkSpeed(1e6, 20.0), 9.0))
    assert (speeds.server, speeds.link) == (speeds._times(3.0), LinkSpeed(1e6, 20.0))
    for _ in range(8):
        speeds.stepped(1, StepTimes(1, 2.0, 36.0, 6.0))
    assert speeds.here_ms == 38.0
    assert (speeds.device, speeds.server) == (speeds._times(2.0), speeds._times(2.0))
    assert speeds.link is not None
    assert speeds.link.round_trip_ms == pytest.approx(30.0 - 1.024)
    speeds.moved()
    speeds.stepped(LAYERS, StepTimes(1, 1.0, 3.0, 3.0))
    assert speeds.here_ms is None
    assert speeds.device == speeds._times(2.0)  # the median of seven twos and the newest, 1
    speeds.looked(None)
    assert speeds.link is speeds.server is None


class Seconds:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def guide_of(package: Package, limits: Constraints = ROOMY, clock: Callable[[], float] | None = None) -> Guide:
    problem = problem_of(package, EXACT, 64, 0)
    return Guide(problem, head_layers(package), 1, (0, LAYERS), limits, settings=SETTINGS, clock=clock or Seconds())


def told(guide: Guide, times: StepTimes, left: int = 1000, steps: int = 20) -> Offer | None:
    """The first offer of so many such tokens."""
    offers = (guide.stepped(times, left, Work(3, 10)) for _ in range(steps))
    return next((one for one in offers if one is not None), None)


def test_a_slow_link_brings_all_here_and_a_quick_server_takes_all(package: Package) -> None:
    guide = guide_of(package)
    guide.looked(WireTimes(LinkSpeed(1e9, 1.0), 2.0))
    slow_link = told(guide, StepTimes(1, 1.0, 42.0, 2.0))
    assert slow_link is not None
    assert slow_link.split == LAYERS
    assert slow_link.token_ms == pytest.approx(LAYERS + head_layers(package))
    assert slow_link.cost_ms == pytest.approx(10 * slow_link.token_ms)
    slow_device = told(guide_of(package), StepTimes(1, 50.0, 3.0, 2.0))
    assert slow_device is None  # nobody looked at the link
    guide = guide_of(package)
    guide.looked(WireTimes(LinkSpeed(1e9, 1.0), 2.0))
    slow_device = told(guide, StepTimes(1, 50.0, 3.0, 2.0))
    assert slow_device is not None
    assert slow_device.split == 0
    guide.moved(slow_device)
    assert guide.split == 0
    assert told(guide, StepTimes(1, 0.0, 5.0, 4.0)) is None


def test_memory_and_money_keep_it_where_it_is(package: Package) -> None:
    problem = problem_of(package, EXACT, 64, 0)
    held = cost_of(problem, choice_at(problem, 1), 0.0).device_bytes
    guide = guide_of(package, Constraints(held, 1e9, 0.0))
    guide.looked(WireTimes(LinkSpeed(1e9, 1.0), 2.0))
    assert told(guide, StepTimes(1, 1.0, 42.0, 2.0)) is None
    guide = guide_of(package)
    guide.looked(WireTimes(LinkSpeed(1e9, 1.0), 2.0))
    assert told(guide, StepTimes(1, 1.0, 42.0, 2.0), left=0) is None
    [news] = guide.news
    assert (news.kind, news.offer.split, news.here_ms, news.tokens_left) == ("dear", LAYERS, 43.0, 0)


def test_what_is_refused_is_not_offered_again_for_a_while(package: Package) -> None:
    clock = Seconds()
    guide = guide_of(package, clock=clock)
    slow = StepTimes(1, 1.0, 42.0, 2.0)
    guide.looked(WireTimes(LinkSpeed(1e9, 40.0), 2.0))
    first = told(guide, slow)
    assert first is not None
    guide.refused(first, LinkError("no"))
    assert told(guide, slow) is None
    clock.now = 301.0
    assert told(guide, slow) == first


@pytest.mark.parametrize(
    "changes", [{"factor": 0.9}, {"least_ms": -1.0}, {"in_a_row": 0}, {"in_a_row": 1.5}, {"pause_s": float("nan")}]
)
def test_settings_out_of_range_are_refused(changes: dict[str, float]) -> None:
    with pytest.raises(SettingsError, match=next(iter(changes))):
        MoveSettings(**changes)  # type: ignore[arg-type]


class SlowHere(NativeEngine):
    """Each layer takes ten milliseconds more."""

    def extend(self, inputs: Any, **more: Any) -> Step:
        time.sleep(10e-3 * (self.layers[1] - self.layers[0]))
        return super().extend(inputs, **more)


def test_over_real_links_it_goes_where_it_is_faster_and_back(package: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    """All on the server while the device is slow, all here once the link is slower still, and back again."""
    for module in ("opening", "moving_opening"):
        monkeypatch.setattr(f"edgemem.split.{module}.NativeEngine", SlowHere)
    monkeypatch.setattr(split_servers, "MODEL_HASH", package.manifest.model_hash)
    wishes = [(0, Shape(delay_s=0.06)), (LAYERS, Shape()), (0, Shape())]  # where it is to go, and the link from then on
    with split_servers.serving(package.path, (0, 1), ServerSettings(slots=96)) as server, shaped(server.port) as proxy:
        engine, back = open_moving_engine(
            package,
            1,
            lambda: Link(Server("here", "127.0.0.1", proxy.port, None), None),
            version="test",
            codec=EXACT,
            threads=1,
            local=True,
            moves=MoveSettings(in_a_row=3, pause_s=0.0, look_s=0.05, least_ms=1.0),
        )
        with closing(engine), closing(NativeEngine(package, threads=1)) as whole:
            back.sync()
            rounds = 0
            while wishes:
                rounds += 1
                said = []
                for each in (engine, whole):
                    each.truncate(0)
                    each.extend(some_tokens(7, rounds))
                for token in engine.decode(Sampler(Sampling()), 80):
                    said.append(token.id)
                    if wishes and engine.split == wishes[0][0]:
                        proxy.shape = wishes.pop(0)[1]
                assert said == [token.id for token in whole.decode(Sampler(Sampling()), 80)]
                assert rounds < 20
    assert not any(thread.name == "edgemem-scout" for thread in threading.enumerate())


def test_the_verb_says_where_it_goes_on(tiny_package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["split", "run", str(tiny_package), "--raw", "-p", "one two", "-n", "60", "-t", "1"]
    assert main([*words, "--at", "all"]) == 0
    wanted = capsys.readouterr().out
    with (
        Package.open(tiny_package) as package,
        serving_slowly(package, (1,), slots=512, threads=1, slowdown=1.0) as port,
        shaped(port, Shape(delay_s=0.015)) as proxy,
    ):
        there = [*words, "--at", "1", "--codec", "fp32", "--insecure-loopback", str(proxy.port)]
        assert main([*there, "--local"]) == 0
        out, err = capsys.readouterr()
        assert out == wanted
        assert re.search(r"all layers here: [\d.]+ ms a token expected, [\d.]+ ms before", err)
        assert main([*there, "--local", "--stay"]) == 0
        assert capsys.readouterr() == (wanted, "")
        assert main([*there, "--at", "all"]) == 0
        assert capsys.readouterr() == (wanted, "all 3 layers run here: the server is not asked\n")


@pytest.mark.parametrize(
    ("kind", "split", "text"),
    [
        ("moved", 0, "all layers on the server: 10.0 ms a token expected, 25.0 ms before"),
        ("dear", 3, "all layers here would take 10.0 ms a token in place of 25.0 ms; to move takes 2.50 s, more than"),
        ("refused", 2, "2 layers here would take 10.0 ms a token in place of 25.0 ms, but the server refuses"),
    ],
)
def test_what_is_said_of_a_move(kind: Any, split: int, text: str) -> None:
    news = News(kind, Offer(split, 10.0, 2500.0), 25.0, 9, LinkError("the server refuses"))
    assert news_text(news, LAYERS).startswith(text)


def test_one_that_waits_for_a_lost_server_does_not_hold_up_the_end(package: Package) -> None:
    open_at, server, lost = opener(package), FaultyServer(lambda: local_back(package, 2)), threading.Event()

    def open_lost(split: int) -> SplitEngine:
        server.down = True
        back = remote_back(package, split, server.dial)
        back.sync = lambda: None  # type: ignore[method-assign] # it was there a moment ago
        back._sleep = lambda seconds: lost.set() or time.sleep(1e-3)  # type: ignore[func-returns-value, assignment]
        back._clock = lambda: 0.0  # patience has no end
        return split_engine(package, split, back)

    engine = MovingEngine(open_at(1), open_lost, Told(1, [2]))  # type: ignore[arg-type]
    with closing(engine):
        engine.extend(some_tokens(4))
        list(engine.decode(Sampler(Sampling()), 3))
        assert lost.wait(20)
        begun = engine._preparing
    assert begun is not None
    assert isinstance(begun.exception(), LinkError)


def test_one_that_waits_for_a_server_that_is_silent_does_not_hold_up_the_end(package: Package) -> None:
    asked, hung_up = threading.Event(), threading.Event()

    class Silent(FaultyLink):
        def greet(self, hello: Hello, *, deadline_s: float) -> Welcome:
            asked.set()
            assert hung_up.wait(20)
            raise LinkError("the link was closed meanwhile")

        def close(self) -> None:
            hung_up.set()

    open_at, server = opener(package), FaultyServer(lambda: local_back(package, 2))

    def open_silent(split: int) -> SplitEngine:
        return split_engine(package, split, remote_back(package, split, lambda: Silent(server)))

    with closing(MovingEngine(open_at(1), open_silent, Told(1, [2]))) as engine:  # type: ignore[arg-type]
        engine.extend(some_tokens(4))
        list(engine.decode(Sampler(Sampling()), 3))
        assert asked.wait(20)
        begun = engine._preparing
    assert begun is not None
    assert isinstance(begun.exception(), LinkError)
