"""Timed decode steps of one model on the GPU in every mode, over the same weights, as the sessions of a record.

Modes take turns in short blocks with sweeps of the memory between them. The host's share comes from the same steps
queued all at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import count

import numpy as np
from numpy.typing import NDArray

from edgemem.profiles.bandwidth import Sweeping
from edgemem.profiles.floors import kv_format, model_floors, model_step
from edgemem.profiles.moved import moved_bytes
from edgemem.profiles.record import Block, Cell, CellKey, Session, StepBytes, Sweep
from edgemem.profiles.stepping import decode_steps, step_times
from edgemem.runtime.cuda_engine import CudaEngine
from edgemem.runtime.cuda_graphs import Mode, known_modes
from edgemem.tools.gpu_models import RandomModel

_WARM_STEPS, _ROUNDS, _BLOCK_STEPS = 12, 4, 32
_QUEUED_STEPS = 64


@dataclass
class Arm:
    """One mode while it runs. device_ms: of a step that no host waits for, None without graphs."""

    mode: Mode
    blocks: list[Block] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    together: int = 1
    device_ms: float | None = None


@dataclass(frozen=True)
class Decoded:
    """What was measured of one model. host_share: by mode, of the wall time of a step."""

    cells: tuple[Cell, ...]
    host_share: dict[str, float]


def slots_for(context: int) -> int:
    """KV slots that a measurement needs: every block begins at `context` again."""
    return context + max(_WARM_STEPS, _BLOCK_STEPS, _QUEUED_STEPS) + 1


def measure_decode(model: RandomModel, context: int, sweep: Sweeping, modes: tuple[Mode, ...]) -> Decoded:
    """Raises what opening the engine and decoding raise."""
    arms = [Arm(mode) for mode in modes]
    with closing(CudaEngine(model.as_package(), capacity=slots_for(context), mode=modes[0])) as engine:
        prompt = np.random.default_rng(0).integers(0, model.model.vocabulary, context, dtype=np.int32)
        started = time.perf_counter()
        engine.extend(prompt)
        prefill_ms = 1e3 * (time.perf_counter() - started)
        for arm in arms:
            for _ in _begins(engine, prompt, arm.mode, 2):  # the first compiles, the second captures
                decode_steps(engine, _WARM_STEPS, time.perf_counter)
        reads, copies = _take_turns(engine, prompt, arms, sweep)
        for arm in arms:
            if arm.mode != "eager":
                for _ in _begins(engine, prompt, arm.mode, 1):
                    arm.device_ms = engine.device_step_ms(_QUEUED_STEPS)
    sessions = {arm.mode: _session(arm, prefill_ms, reads, copies) for arm in arms}
    bytes_ = step_bytes(model, context + _BLOCK_STEPS // 2)
    cells = [
        Cell(cell_key(model.label, "cuda", mode, context), "measured", None, bytes_, (session,), ())
        for mode, session in sessions.items()
    ]
    shares: dict[str, float] = {
        arm.mode: max(0.0, 1 - arm.device_ms / float(np.median(sessions[arm.mode].step_ms)))
        for arm in arms
        if arm.device_ms is not None
    }
    return Decoded(tuple(cells), shares)


def warm(model: RandomModel) -> None:
    """Compile every kernel that `measure_decode` will launch, into Triton's cache on disk. A model of one layer will
    do."""
    for mode in known_modes():
        with closing(CudaEngine(model.as_package(), capacity=model.context, mode=mode)) as engine:
            engine.extend(np.arange(2, dtype=np.int32))
            decode_steps(engine, _WARM_STEPS, time.perf_counter)


def cell_key(target: str, engine: str, arm: str, context: int, kv: str = "fp16") -> CellKey:
    return CellKey(target, engine, arm, context, 1, kv)


def step_bytes(model: RandomModel, slots: int) -> StepBytes:
    """Of the step that finds `slots` slots in use."""
    cost = model_step(model.model, model.precision, slots, kv_format("cuda"))
    return StepBytes(
        useful=cost.streamed_bytes,
        moved=moved_bytes(model.model, model.precision, slots, "cuda").total,
        weights=cost.weight_bytes,
        kv_read=cost.kv_read_bytes,
        kv_write=cost.kv_write_bytes,
        footprint=round(model_floors(model.model, model.precision, slots, kv_format("cuda")).footprint_bytes),
    )


def _begins(engine: CudaEngine, prompt: NDArray[np.int32], mode: Mode, times: int) -> Iterator[None]:
    """At the end of the prompt again, in a mode, so many times."""
    for _ in range(times):
        engine.set_mode(mode)
        engine.truncate(len(prompt) - 1)
        engine.extend(prompt[-1:])
        yield


def _take_turns(
    engine: CudaEngine, prompt: NDArray[np.int32], arms: list[Arm], sweep: Sweeping
) -> tuple[list[Sweep], list[Sweep]]:
    order = count()
    reads: list[Sweep] = []
    copies: list[Sweep] = []

    def measure_memory() -> None:
        reads.extend(Sweep(next(order), rate) for rate in sweep.read(3))
        copies.extend(Sweep(next(order), rate) for rate in sweep.copy(1))

    measure_memory()
    for turn in range(_ROUNDS):
        for arm in arms if turn % 2 == 0 else reversed(arms):
            for _ in _begins(engine, prompt, arm.mode, 1):
                _run_block(engine, arm, next(order), time.perf_counter)
            measure_memory()
    return reads, copies


def _run_block(engine: CudaEngine, arm: Arm, order: int, clock: Callable[[], float]) -> None:
    steps = decode_steps(engine, _BLOCK_STEPS, clock)
    step_ms, together = step_times(steps.readings)
    arm.blocks.append(Block(order, 1e3 * (steps.readings[-1] - steps.readings[0]), tuple(step_ms)))
    arm.tokens += steps.tokens
    arm.together = max(arm.together, together)


def _session(arm: Arm, prefill_ms: float, reads: list[Sweep], copies: list[Sweep]) -> Session:
    return Session(
        number=0,
        prefill_ms=prefill_ms,
        blocks=tuple(arm.blocks),
        steps_together=arm.together,
        sweeps=tuple(reads),
        copies=tuple(copies),
        tokens=tuple(arm.tokens),
        telemetry=None,
    )
