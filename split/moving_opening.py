"""A MovingEngine from its parts, and what its planner is to know of the package: bytes, not times."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import ExitStack
from typing import Any

import numpy as np

from edgemem.kernels.cost import kv_slot_bytes, step_cost
from edgemem.runtime.engine_inputs import context_slots
from edgemem.runtime.kv_cache import KV_ELEMENT_BYTES
from edgemem.runtime.native_engine import NativeEngine
from edgemem.runtime.package import Package
from edgemem.split.codec import Codec, CodecSettings
from edgemem.split.coder import coder_of
from edgemem.split.engine import SplitEngine
from edgemem.split.frames import CHUNK_TOKENS
from edgemem.split.guide import Guide, choice_at
from edgemem.split.local_back import LocalBack
from edgemem.split.measuring import made_up_states
from edgemem.split.moves import MoveSettings
from edgemem.split.moving_engine import MovingEngine
from edgemem.split.opening import check_split, hello_for, open_split_engine
from edgemem.split.planner import Activation, Constraints, Problem, Width, cost_of
from edgemem.split.remote_back import RemoteBack
from edgemem.split.remote_session import Dial
from edgemem.split.scout import Scout
from edgemem.split.sides import LinkSpeed, StageTimes, weights_of

_ANY_MS = 1e9


def open_moving_engine(
    package: Package,
    at: int,
    dial: Dial,
    *,
    version: str,
    codec: CodecSettings | None = None,
    capacity: int | None = None,
    threads: int | None = None,
    local: bool = False,
    splits: Collection[int] = (),
    device_bytes: int | None = None,
    least: int = 0,
    workspace_bytes: int = 0,
    moves: MoveSettings | None = None,
    **more: Any,
) -> tuple[MovingEngine, RemoteBack]:
    """As open_split_engine, which takes the arguments that are not named here, at a split from 1 of a whole package.

    splits: where else the server has back stages; beside these the conversation may move to 0 and to all layers here.
    device_bytes: of this device's memory that it may take; None for what it takes at the beginning. least: layers that
    must run here. workspace_bytes: what a side takes beside weights and slots. Raises what open_split_engine raises.
    """
    for split in splits:
        check_split(split, package.model.layers)
    model, codec, slots = package.model, codec or CodecSettings(), context_slots(capacity, package)
    same = {"version": version, "codec": codec, "capacity": slots, "threads": threads, "local": local, **more}

    def open_at(split: int) -> SplitEngine:
        if split == model.layers:
            return open_here(package, at, codec, capacity=slots, threads=threads)
        return open_split_engine(package, split, dial, **same)[0]

    problem = problem_of(package, codec, slots, workspace_bytes)
    if device_bytes is None:
        device_bytes = cost_of(problem, choice_at(problem, model.layers if local else at), 0.0).device_bytes
    limits = Constraints(device_bytes, _ANY_MS, 0.0)
    calibrated = codec.mode == "adaptive"  # for this split alone
    others = {split for split in (0, model.layers, *(() if calibrated else splits)) if split >= least}
    guide = Guide(problem, head_layers(package), at, others, limits, settings=moves)
    engine, back = open_split_engine(package, at, dial, **same)
    hello = hello_for(package, at, version=version, codec=codec, capacity=min(slots, CHUNK_TOKENS))
    scout = Scout(dial, hello, Codec(codec, model.hidden), guide.looked, look_s=guide.settings.look_s)
    scout.start()
    return MovingEngine(engine, open_at, guide, scout=scout), back


def open_here(
    package: Package, at: int, codec: CodecSettings, *, capacity: int, threads: int | None = None, kv: str = "fp16"
) -> SplitEngine:
    """All layers on this device, with states that go through the codec at `at` as on their way to a server: so that the
    text is the same."""
    coder = coder_of(package.model, at, codec)
    with ExitStack() as opened:
        stages = []
        for layers in ((0, at), (at, package.model.layers)):
            stages.append(NativeEngine(package, layers=layers, capacity=capacity, threads=threads, kv=kv))
            opened.callback(stages[-1].close)
        opened.pop_all()
    return SplitEngine(package.model, stages[0], LocalBack(stages[1], coder), coder)


def problem_of(package: Package, codec: CodecSettings, slots: int, workspace_bytes: int) -> Problem:
    """Of one width, one codec and one context; its times and its link are not known and say nothing."""
    model, unknown = package.model, StageTimes(0.0)
    payload = Codec(codec, model.hidden).encode(made_up_states(np.random.default_rng(0), 1, model.hidden))
    return Problem(
        widths={"": Width(weights_of(model, package.precision), unknown, unknown)},
        activations={codec.mode: Activation(len(payload))},
        contexts=(slots,),
        layer_slot_bytes=kv_slot_bytes(model, KV_ELEMENT_BYTES, (0, 1)),
        workspace_bytes=workspace_bytes,
        link=LinkSpeed(1.0, 0.0),
        quality=lambda *_: 0.0,
    )


def head_layers(package: Package) -> float:
    """The head's bytes in those of a layer, on average."""
    ops = step_cost(package.model, package.precision, 0, kv_element_bytes=1).ops
    head = sum(op.weight_bytes for op in ops if op.name == "head")
    layers = sum(op.weight_bytes for op in ops if op.name.startswith("layers."))
    return head * package.model.layers / layers
