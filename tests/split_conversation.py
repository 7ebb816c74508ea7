"""Engines over a small model that are split at a layer, and a conversation in which everything happens to one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from split_servers import hello

from edgemem.runtime.engine import Engine
from edgemem.runtime.native_engine import NativeEngine
from edgemem.runtime.package import Package
from edgemem.runtime.sampling import Sampler, Sampling
from edgemem.split.back import Back
from edgemem.split.codec import CodecSettings
from edgemem.split.coder import coder_of
from edgemem.split.engine import SplitEngine
from edgemem.split.frames import SESSION_BYTES
from edgemem.split.history import History
from edgemem.split.local_back import LocalBack
from edgemem.split.remote_back import RemoteBack
from edgemem.split.remote_session import Dial, RemoteSession
from edgemem.split.switching import SwitchSettings

EXACT = CodecSettings("fp32")
CAPACITY = 64


class Clock:
    """Time passes where somebody sleeps, and a little whenever it is looked at."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1e-3
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def local_back(package: Package, split: int, codec: CodecSettings = EXACT, **settings: Any) -> LocalBack:
    layers = (split, package.model.layers)
    engine = NativeEngine(package, layers=layers, **{"capacity": CAPACITY, "threads": 1, **settings})
    return LocalBack(engine, coder_of(package.model, split, codec))


def split_engine(
    package: Package, split: int, back: Back, codec: CodecSettings = EXACT, **settings: Any
) -> SplitEngine:
    given = {"capacity": CAPACITY, "threads": 1, **settings}
    front = NativeEngine(package, layers=(0, split), **given) if split else None
    return SplitEngine(package.model, front, back, coder_of(package.model, split, codec))


def remote_back(
    package: Package,
    split: int,
    dial: Dial,
    *,
    local: bool = False,
    clock: Clock | None = None,
    settings: SwitchSettings | None = None,
    bound_bytes: int = 64 << 20,
    capacity: int = CAPACITY,
) -> RemoteBack:
    model, clock = package.model, clock or Clock()
    asked = hello(bytes(SESSION_BYTES), model.layers, split=split, capacity=capacity)
    return RemoteBack(
        RemoteSession(dial, asked, model.vocabulary),
        History(coder_of(model, split, EXACT), bound_bytes=bound_bytes),
        capacity=capacity,
        local=local_back(package, split, capacity=capacity) if local else None,
        settings=settings,
        clock=clock,
        sleep=clock.sleep,
    )


def some_tokens(count: int, seed: int = 0) -> NDArray[np.int32]:
    return np.random.default_rng(seed).integers(0, 97, count).astype(np.int32)


def converse(engine: Engine, between: Callable[[], object] = lambda: None) -> list[int | float]:
    """All that is to be seen of a conversation: tokens, and the surprisal of some. `between`: called at each step."""
    seen: list[int | float] = []

    def decode(sampling: Sampling, count: int) -> None:
        for token in engine.decode(Sampler(sampling), count):
            seen.append(token.id)
            between()

    scores = engine.extend(some_tokens(20), surprisal=True).surprisal
    assert scores is not None
    seen += [round(float(score), 4) for score in scores[1:]]
    decode(Sampling(), 6)
    engine.keep(np.array([0, 1, 2, 7, 8, 9, 20, 21, 22]))
    between()
    engine.extend(some_tokens(5, seed=1))
    engine.truncate(12)
    engine.extend(some_tokens(3, seed=2))
    decode(Sampling(temperature=1.0, top_k=5, seed=4), 6)
    between()
    engine.keep(np.arange(2, 18))
    decode(Sampling(repetition_penalty=1.3), 4)
    engine.truncate(0)
    engine.extend(some_tokens(4, seed=3))
    decode(Sampling(), 8)
    return seen
