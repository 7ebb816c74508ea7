"""A device talks over links that are slow, that stall or come and go; with a warm local stage. The text is as without.

    python tests/fault/slow_split.py --seconds 5

Prints for each link the longest pause between two tokens, beside the deadline and what a token takes here.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cut_split import CAPACITY, SPLIT, asked_of, served
from runnable_packages import plain_model, runnable_package, same_precision
from split_conversation import EXACT, local_back, some_tokens, split_engine

from edgemem.runtime.engine import Engine, route_of
from edgemem.runtime.native_engine import NativeEngine
from edgemem.runtime.package import Package
from edgemem.runtime.sampling import Sampler, Sampling
from edgemem.split.coder import coder_of
from edgemem.split.history import History
from edgemem.split.remote_back import RemoteBack
from edgemem.split.remote_session import Dial, RemoteSession
from edgemem.split.shaping import Faults, Shape, ShapingProxy
from edgemem.split.switching import SwitchSettings

SETTINGS = SwitchSettings(deadline_s=0.3, prompt_deadline_s=3.0, probe_s=0.05, warm=True)
_PROMPTS, _TOKENS = 2, 8


@dataclass(frozen=True)
class Weather:
    """A link. shapes: in turn, each for a while. faults: of each connection. flaps: all are reset at each change."""

    name: str
    shapes: tuple[Shape, ...] = (Shape(),)
    faults: Faults = Faults()  # noqa: RUF009 - it is frozen
    flaps: bool = False


WEATHERS = (
    Weather("loopback"),
    *(Weather(f"{delay_ms} ms each way", (Shape(delay_s=delay_ms / 1e3),)) for delay_ms in (5, 50, 120, 250, 500)),
    Weather("64 kbit/s", (Shape(64e3, 0.005),)),
    Weather("pauses of 0.2 s", (Shape(), Shape(), Shape(delay_s=0.2))),
    Weather("pauses of 0.8 s", (Shape(), Shape(), Shape(delay_s=0.8))),
    Weather("jitter", tuple(Shape(delay_s=delay_ms / 1e3) for delay_ms in (1, 60, 5, 140, 20, 90))),
    Weather("steps of bandwidth", tuple(Shape(bits_per_s) for bits_per_s in (1e9, 1e6, 64e3, 16e3))),
    Weather("silent after 9000 bytes", faults=Faults(stall_after=9000)),
    Weather("silent from the first byte", faults=Faults(stall_after=0)),
    Weather("reset after 4000 bytes", faults=Faults(cut_after=4000)),
    Weather("comes and goes", flaps=True),
)


@contextmanager
def changing(proxy: ShapingProxy, weather: Weather) -> Iterator[None]:
    """The weather, until the block ends."""
    over = threading.Event()

    def change() -> None:
        for shape in itertools.cycle(weather.shapes):
            proxy.shape = shape
            if over.wait(0.15):
                return
            if weather.flaps:
                proxy.cut()

    proxy.faults, proxy.shape = weather.faults, weather.shapes[0]
    thread = threading.Thread(target=change)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        proxy.shape, proxy.faults = Shape(), Faults()
        proxy.cut()


@dataclass
class Said:
    """pauses_s: of each token but the first after a prompt. routes: who answered."""

    pauses_s: list[float] = field(default_factory=list)
    routes: Counter[str] = field(default_factory=Counter)

    def answer(self, engine: Engine, prompt: int) -> list[int]:
        """A few tokens after one of the prompts."""
        engine.truncate(0)
        engine.extend(some_tokens(8, prompt))
        tokens, last_s = [], time.perf_counter()
        for place, token in enumerate(engine.decode(Sampler(Sampling()), _TOKENS)):
            now_s, before_s = time.perf_counter(), last_s
            last_s = now_s
            tokens.append(token.id)
            self.routes[str(route_of(engine))] += 1
            if place:
                self.pauses_s.append(now_s - before_s)
        return tokens


def remote(package: Package, dial: Dial) -> RemoteBack:
    model = package.model
    back = RemoteBack(
        RemoteSession(dial, asked_of(package), model.vocabulary),
        History(coder_of(model, SPLIT, EXACT)),
        capacity=CAPACITY,
        local=local_back(package, SPLIT),
        settings=SETTINGS,
    )
    back.start_probing()
    return back


def run(package: Path, folder: Path, seconds: float) -> Iterator[str]:
    """A line for each weather. Raises AssertionError where the text is another."""
    with Package.open(package) as opened, served(package, folder, tls=True) as (proxy, dial):
        alone = Said()
        with closing(NativeEngine(opened, capacity=CAPACITY, threads=1)) as whole:
            wanted = [alone.answer(whole, prompt) for prompt in range(_PROMPTS)]
        yield f"deadline {SETTINGS.deadline_s * 1e3:.0f} ms; here a token takes {max(alone.pauses_s) * 1e3:.1f} at most"
        for weather in WEATHERS:
            said = Said()
            with closing(split_engine(opened, SPLIT, remote(opened, dial))) as engine, changing(proxy, weather):
                for prompt in prompts(seconds):
                    if said.answer(engine, prompt) != wanted[prompt]:
                        raise AssertionError(f"{weather.name}: the text is not as without it")
            pauses_ms = [1e3 * pause_s for pause_s in said.pauses_s]
            routes = ", ".join(f"{name} {count}" for name, count in sorted(said.routes.items()))
            middle = statistics.median(pauses_ms)
            yield f"{weather.name}: longest pause {max(pauses_ms):.0f} ms, median {middle:.1f}; tokens {routes}"
    yield "all said as without"


def prompts(seconds: float) -> Iterator[int]:
    """Each at least once, and again for so long."""
    end_s = time.perf_counter() + seconds
    for place in itertools.count():
        if place >= _PROMPTS and time.perf_counter() > end_s:
            return
        yield place % _PROMPTS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0, help="for each link (5)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = plain_model()
        path = runnable_package(Path(folder) / "small.edgemem", model, same_precision(model, "int8-g32"))
        for line in run(path, Path(folder), options.seconds):
            print(line, flush=True)


if __name__ == "__main__":
    main()
