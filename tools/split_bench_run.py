"""Runs the bench of a split: the same tokens by every way to answer, over one proxy whose link changes."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from statistics import median

import numpy as np

from edgemem.kernels.cost import kv_slot_bytes
from edgemem.runtime.engine import Engine
from edgemem.runtime.kv_cache import KV_ELEMENT_BYTES
from edgemem.runtime.package import Package
from edgemem.split.codec import Codec, CodecSettings
from edgemem.split.coder import coder_of
from edgemem.split.engine import SplitEngine
from edgemem.split.frames import SESSION_BYTES, Bye
from edgemem.split.history import History
from edgemem.split.link import Link
from edgemem.split.measuring import WireTimes, made_up_states, measure_activation, measure_stages, measure_wire
from edgemem.split.opening import dial_to, hello_for
from edgemem.split.peers import Server
from edgemem.split.planner import Choice, Constraints, Problem, Width, cost_of, plan
from edgemem.split.remote_back import RemoteBack
from edgemem.split.remote_session import RemoteSession
from edgemem.split.shaping import Shape, ShapingProxy, shaped
from edgemem.split.sides import LinkSpeed, StageTimes, weights_of
from edgemem.split.switching import SwitchSettings
from edgemem.tools.split_bench_record import Arm, LinkResult
from edgemem.tools.split_bench_server import SlowedEngine, serving_slowly

Progress = Callable[[float], None]
SLOTS, _PROMPT_TOKENS = 512, 16
_NAME, _VERSION = "package", "bench"
_COUNTED = 8  # tokens
_UNBOUND = 10**15  # bytes, ms: no limit is what is asked about here


@dataclass(frozen=True)
class BenchSettings:
    """splits: with layers on both sides. links: bits a second and round trip in ms. tokens: timed on each link.
    threads: of each side. slowdowns: from 1."""

    splits: tuple[int, ...]
    links: tuple[tuple[float, float], ...]
    tokens: int
    threads: int
    device_slowdown: float
    server_slowdown: float
    codec: CodecSettings


@dataclass(frozen=True)
class Measured:
    """overhead_bytes: on the wire around a token's payload, both ways together."""

    device: StageTimes
    server: StageTimes
    overhead_bytes: float
    links: tuple[LinkResult, ...]


def run_bench(package: Package, settings: BenchSettings, progress: Progress) -> Measured:
    device, server = (
        measure_stages(_opener(package, settings.threads, slowdown), package.model)
        for slowdown in (settings.device_slowdown, settings.server_slowdown)
    )
    problem = _problem(package, settings, device, server)
    served = (0, *settings.splits)
    with ExitStack() as opened:
        port = opened.enter_context(
            serving_slowly(package, served, slots=SLOTS, threads=settings.threads, slowdown=settings.server_slowdown)
        )
        proxy = opened.enter_context(shaped(port))
        arms = {split: opened.enter_context(_arm(package, settings, split, proxy.port)) for split in served}
        layers = package.model.layers
        whole = _opener(package, settings.threads, settings.device_slowdown)(0, layers)
        arms[layers] = opened.enter_context(closing(whole))
        overhead_bytes = _overhead_bytes(arms[settings.splits[0]], settings, proxy, package.model.hidden)
        links = []
        for done, (bits_per_s, round_trip_ms) in enumerate(settings.links):
            progress(done / len(settings.links))
            proxy.shape = Shape(bits_per_s, round_trip_ms / 2e3)
            speed = _wire_times(package, settings, proxy.port).link
            times = _token_times(arms, settings.tokens)
            links.append(_result((bits_per_s, round_trip_ms), speed, times, problem))
        proxy.shape = Shape()
    return Measured(device, server, overhead_bytes, tuple(links))


def _result(link: tuple[float, float], speed: LinkSpeed, times: dict[int, list[float]], problem: Problem) -> LinkResult:
    problem, splits = replace(problem, link=speed), sorted(times)
    arms = []
    for split in splits:
        predicted = cost_of(problem, _choice(problem, split), 0.0).token_ms
        arms.append(Arm(split, median(times[split]), predicted, tuple(times[split])))
    chosen, inside = (_chosen(problem, offered) for offered in (splits, splits[1:-1]))
    return LinkResult(*link, speed.bits_per_s, speed.round_trip_ms, tuple(arms), chosen, inside)


def _chosen(problem: Problem, offered: Sequence[int]) -> int:
    """The planner's split: of these, that of the least time."""
    limits = Constraints(device_bytes=_UNBOUND, deadline_ms=_UNBOUND, kl_nats=0.0, prefer="time")
    known = replace(problem, quality=lambda split, *_: 0.0 if split in offered else None)
    return plan(known, limits).front[0].choice.split


def _choice(problem: Problem, split: int) -> Choice:
    front, back = (_NAME if split else None), (_NAME if split < problem.layers else None)
    return Choice(split, front, back, _NAME if front and back else None, problem.contexts[0])


def _problem(package: Package, settings: BenchSettings, device: StageTimes, server: StageTimes) -> Problem:
    """Of the package as it is. Its link is given later."""
    codec = Codec(settings.codec, package.model.hidden)
    token_bytes = len(codec.encode(made_up_states(np.random.default_rng(0), 1, codec.hidden)))
    width = Width(weights_of(package.model, package.precision), device, server)
    return Problem(
        widths={_NAME: width},
        activations={_NAME: measure_activation(codec, token_bytes)},
        contexts=(SLOTS,),
        layer_slot_bytes=kv_slot_bytes(package.model, KV_ELEMENT_BYTES, (0, 1)),
        workspace_bytes=0,
        link=LinkSpeed(1e9, 0.0),
        quality=lambda *_: 0.0,
    )


@contextmanager
def _arm(package: Package, settings: BenchSettings, split: int, port: int) -> Iterator[Engine]:
    """The first layers here, the others on the server behind `port`."""
    coder = coder_of(package.model, split, settings.codec)
    front = _opener(package, settings.threads, settings.device_slowdown)(0, split) if split else None
    hello = hello_for(package, split, version=_VERSION, codec=settings.codec, capacity=SLOTS)
    session = RemoteSession(dial_to(_server(port), None), hello, package.model.vocabulary)
    patient = SwitchSettings(deadline_s=60.0, prompt_deadline_s=60.0, stall_s=60.0)
    back = RemoteBack(session, History(coder), capacity=SLOTS, settings=patient)
    with closing(SplitEngine(package.model, front, back, coder)) as engine:
        yield engine


def _token_times(arms: Mapping[int, Engine], tokens: int) -> dict[int, list[float]]:
    """ms for each of the tokens after one prompt, the arms in turn: what disturbs the machine disturbs all alike."""
    random, vocabulary = np.random.default_rng(1), next(iter(arms.values())).model.vocabulary
    prompt = random.integers(0, vocabulary, _PROMPT_TOKENS, dtype=np.int32)
    for engine in arms.values():
        engine.truncate(0)
        engine.extend(prompt)
    times: dict[int, list[float]] = {split: [] for split in arms}
    for token in random.integers(0, vocabulary, (tokens, 1), dtype=np.int32):
        for split, engine in arms.items():
            begin = time.perf_counter()
            engine.extend(token)
            times[split].append(1e3 * (time.perf_counter() - begin))
    return times


def _overhead_bytes(engine: Engine, settings: BenchSettings, proxy: ShapingProxy, hidden: int) -> float:
    """Counted on the proxy, over some tokens by this engine."""
    codec = Codec(settings.codec, hidden)
    payload = len(codec.encode(made_up_states(np.random.default_rng(0), 1, hidden)))
    engine.extend(np.zeros(1, np.int32))
    before = proxy.up_bytes + proxy.down_bytes
    for _ in range(_COUNTED):
        engine.extend(np.zeros(1, np.int32))
    return (proxy.up_bytes + proxy.down_bytes - before) / _COUNTED - payload


def _wire_times(package: Package, settings: BenchSettings, port: int) -> WireTimes:
    codec = CodecSettings("fp32")
    hello = hello_for(package, settings.splits[-1], version=_VERSION, codec=codec, capacity=SLOTS)
    hello = replace(hello, session=secrets.token_bytes(SESSION_BYTES))
    with closing(Link.open(_server(port), hello, identity=None, timeout_s=60.0)) as link:
        found = measure_wire(link, Codec(codec, package.model.hidden))
        link.call(Bye(), deadline_s=60.0)
    return found


def _server(port: int) -> Server:
    return Server("bench", "127.0.0.1", port, None)


def _opener(package: Package, threads: int, slowdown: float) -> Callable[[int, int], SlowedEngine]:
    return lambda first, last: SlowedEngine(
        package, layers=(first, last), capacity=SLOTS, threads=threads, slowdown=slowdown
    )
