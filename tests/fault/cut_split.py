"""Cuts the link of a talking device at one byte after another: it says what it would have said.

    python tests/fault/cut_split.py --all

messages: every message is cut at its first byte, then, sent again over a new link, at its second, and so on to the end
of its reply; before some, the greeting of the new link is cut at every byte too. links: each link is cut a byte later
than the one before, and lasts until then. local: the same, and the device goes on alone meanwhile. silences: as local,
but the link stays open and nothing arrives any more.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from runnable_packages import plain_model, runnable_package, same_precision
from split_conversation import EXACT, local_back, some_tokens, split_engine
from split_servers import hello, serving

from edgemem.runtime.engine import Engine
from edgemem.runtime.native_engine import NativeEngine
from edgemem.runtime.package import Package
from edgemem.runtime.sampling import Sampler, Sampling
from edgemem.split.coder import coder_of
from edgemem.split.frames import Hello, Message, Welcome
from edgemem.split.history import History
from edgemem.split.identity import own_identity
from edgemem.split.opening import dial_to
from edgemem.split.peers import Device, PeerFile, Server
from edgemem.split.remote_back import RemoteBack
from edgemem.split.remote_session import Dial, RemoteSession, Wire
from edgemem.split.roll import Roll
from edgemem.split.server import ServerSettings
from edgemem.split.shaping import Faults, ShapingProxy, shaped
from edgemem.split.switching import SwitchSettings

SPLIT, CAPACITY = 1, 64
SETTINGS = SwitchSettings(deadline_s=10.0, patience_s=600.0, first_retry_s=1e-4, last_retry_s=1e-4)
HASTY = replace(SETTINGS, connect_s=0.1, deadline_s=0.1, prompt_deadline_s=0.1)
_S = 10.0
_AROUND = 48  # bytes at the end of a greeting that are always cut: some that are sent unasked come a little later
_WHOLE_GREETINGS = (0, 1, 9)  # messages before which the greeting is cut as well
_LINK_BYTES = 2500  # of a link that is cut: the greeting, and ten messages


@dataclass
class Count:
    links: int = 0
    messages: int = 0
    bytes: int = 0  # of messages and replies, each cut once


class LinkCuts:
    """Dials the server; each link is cut `stride` bytes after the place of the one before, the first at once.

    silent: it falls silent instead.
    """

    def __init__(self, proxy: ShapingProxy, dial: Dial, stride: int, *, silent: bool = False) -> None:
        self.count, self._proxy, self._dial, self._stride = Count(), proxy, dial, stride
        self._place, self.silent = 0, silent

    def dial(self) -> Wire:
        self._proxy.faults = Faults(stall_after=self._place) if self.silent else Faults(cut_after=self._place)
        self._place += self._stride
        self.count.links += 1
        return self._dial()

    @property
    def over(self) -> bool:
        return self._place > _LINK_BYTES


class MessageCuts(LinkCuts):
    """The same, and when a message is through, the next is cut from its first byte on."""

    def __init__(self, proxy: ShapingProxy, dial: Dial, stride: int, messages: int, asked: Hello) -> None:
        super().__init__(proxy, dial, stride)
        self._messages = messages
        with closing(dial()) as link:
            link.greet(asked, deadline_s=_S)
        self._greeting = proxy.up_bytes + proxy.down_bytes

    def dial(self) -> Wire:
        return _OneMessage(super().dial(), self._came_through)

    @property
    def over(self) -> bool:
        return self.count.messages >= self._messages

    def _came_through(self) -> None:
        count = self.count
        count.bytes += max(0, self._place - self._stride - self._greeting)
        count.messages += 1
        begin = 0 if count.messages in _WHOLE_GREETINGS else max(0, self._greeting - _AROUND)
        self._place = begin + count.messages % self._stride


class _OneMessage:
    """A link that is over after one message."""

    welcome: Welcome

    def __init__(self, link: Wire, came_through: Callable[[], None]) -> None:
        self._link, self._came_through = link, came_through

    def greet(self, hello: Hello, *, deadline_s: float) -> Welcome:
        self.welcome = self._link.greet(hello, deadline_s=deadline_s)
        return self.welcome

    def call(self, message: Message, *, deadline_s: float) -> Message:
        reply = self._link.call(message, deadline_s=deadline_s)
        self._link.close()
        self._came_through()
        return reply

    def ping(self, *, deadline_s: float) -> float:
        return self._link.ping(deadline_s=deadline_s)

    def close(self) -> None:
        self._link.close()


def say(engine: Engine, turn: int, between: Callable[[], None] = lambda: None) -> list[int | float]:
    """A turn in which everything happens: all that is to be seen of it. between: called at every token."""
    seen: list[int | float] = []

    def decode(count: int, sampling: Sampling) -> None:
        for token in engine.decode(Sampler(sampling), count):
            seen.append(token.id)
            between()

    if engine.length > 30:
        engine.truncate(turn % 3)
    scores = engine.extend(some_tokens(3, turn), surprisal=True).surprisal
    seen += [] if scores is None else [round(float(score), 4) for score in scores[1:]]
    decode(6, Sampling())
    if turn % 3 == 0:
        engine.keep(np.arange(0, engine.length, 2))
        engine.extend(some_tokens(2, turn))
    decode(4, Sampling(temperature=1.0, top_k=3, seed=turn))
    if turn % 3 == 1:
        engine.truncate(engine.length - 2)
        engine.extend(some_tokens(1, turn))
        decode(1, Sampling(repetition_penalty=1.3))
    return seen


def talk(package: Package, cuts: LinkCuts, *, local: bool, turn: int = 0) -> Count:
    """From this turn on, until the cuts are over. Raises AssertionError where one is not as without them."""
    model = package.model
    session = RemoteSession(cuts.dial, asked_of(package), model.vocabulary)
    back = RemoteBack(
        session,
        History(coder_of(model, SPLIT, EXACT)),
        capacity=CAPACITY,
        local=local_back(package, SPLIT) if local else None,
        settings=HASTY if cuts.silent else SETTINGS,
    )

    def return_to_the_server() -> None:
        for _ in range(SETTINGS.good_probes):
            back.probe()

    with (
        closing(split_engine(package, SPLIT, back)) as engine,
        closing(NativeEngine(package, capacity=CAPACITY, threads=1)) as whole,
    ):
        while not cuts.over:
            if say(engine, turn, return_to_the_server) != say(whole, turn):
                raise AssertionError(f"turn {turn} is not as without the cuts, after {cuts.count}")
            turn += 1
    return cuts.count


def asked_of(package: Package) -> Hello:
    return hello(bytes(16), package.model.layers, split=SPLIT, capacity=CAPACITY)


@contextmanager
def served(package: Path, folder: Path, *, tls: bool) -> Iterator[tuple[ShapingProxy, Dial]]:
    """A server behind a proxy, and how to reach it."""
    identity = own_identity(folder / "device", "device") if tls else None
    there = own_identity(folder / "server", "server") if tls else None
    if identity is not None:
        PeerFile(folder / "server", Device).put(Device("robot", identity.certificate))
    roll = None if there is None else Roll(folder / "server", there)
    certificate = None if there is None else there.certificate
    with serving(package, [SPLIT], ServerSettings(slots=CAPACITY), roll) as running, shaped(running.port) as proxy:
        server = Server("home", "127.0.0.1", proxy.port, certificate)
        yield proxy, dial_to(server, identity)


HOWS = ("messages", "links", "local", "silences")


@dataclass(frozen=True)
class Part:
    """What is to be cut. how: messages, links, local or silences. turn: the first of the talk."""

    how: str
    stride: int = 1
    messages: int = 50
    turn: int = 0
    tls: bool = False


ALL = (
    *(Part("messages", turn=turn) for turn in (0, 7, 14, 21)),
    *(Part(how, tls=tls) for how in ("links", "local", "silences") for tls in (False, True)),
    Part("messages", messages=10, tls=True),
)


def run(part: Part) -> str:
    begin_s = time.perf_counter()
    with ExitStack() as opened:
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory()))
        model = plain_model(hidden=16, heads=1, kv_heads=1, intermediate=32)  # few bytes a message
        path = runnable_package(folder / "small.edgemem", model, same_precision(model, "fp16"))
        package = opened.enter_context(Package.open(path))
        proxy, dial = opened.enter_context(served(path, folder, tls=part.tls))
        if part.how == "messages":
            cuts: LinkCuts = MessageCuts(proxy, dial, part.stride, part.messages, asked_of(package))
        else:
            cuts = LinkCuts(proxy, dial, part.stride, silent=part.how == "silences")
        count = talk(package, cuts, local=part.how in ("local", "silences"), turn=part.turn)
    took_s = time.perf_counter() - begin_s
    cut = f", {count.messages} messages cut at {count.bytes} bytes" if count.messages else ""
    over = " over TLS" if part.tls else ""
    return f"{part.how}{over}: {count.links} links cut{cut}; all said as without them; {took_s:.0f} s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("how", nargs="?", choices=HOWS, default="messages")
    parser.add_argument("--stride", type=int, default=7, help="bytes from one cut to the next (7)")
    parser.add_argument("--messages", type=int, default=50)
    parser.add_argument("--tls", action="store_true", help="a device that has paired")
    parser.add_argument("--all", action="store_true", help="every byte of two hundred messages, and of links")
    options = parser.parse_args()
    if not options.all:
        print(run(Part(options.how, options.stride, options.messages, tls=options.tls)))
        return
    with ProcessPoolExecutor(4) as pool:  # each is waiting most of the time
        for line in pool.map(run, ALL):
            print(line, flush=True)


if __name__ == "__main__":
    main()
