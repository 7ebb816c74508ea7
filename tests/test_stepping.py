"""Timed steps: the same tokens as one long decode, and each step's share of a call that made several."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from interpreted_cuda import INTERPRETED

from edgemem.profiles.stepping import decode_steps, step_times
from edgemem.runtime.errors import EngineError
from edgemem.runtime.open import ENGINES, open_engine
from edgemem.runtime.package import Package
from edgemem.runtime.sampling import Sampler, Sampling

PROMPT = np.array([3, 1, 4, 1, 5], dtype=np.int32)


@pytest.mark.parametrize("name", [name for name in ENGINES if name != "tensorrt"])  # which needs a plan and a GPU
def test_blocks_of_steps_are_one_decode(tiny_package: Path, name: str) -> None:
    # In Triton's interpreter a step takes a second.
    sizes = (1, 2, 1) if name == "cuda" and INTERPRETED else (1, 12, 7)
    with Package.open(tiny_package) as package:
        engine = open_engine(package, name, capacity=32, threads=1)
        engine.extend(PROMPT)
        whole = [token.id for token in engine.decode(Sampler(Sampling()), sum(sizes) + 1)]
        engine.truncate(0)
        engine.extend(PROMPT)
        ticks = count()
        blocks = [decode_steps(engine, size, lambda: float(next(ticks))) for size in sizes]
        length = engine.length
        engine.close()
    assert [token for block in blocks for token in block.tokens] == whole[1:]
    assert [len(block.readings) for block in blocks] == [size + 1 for size in sizes]
    assert length == len(PROMPT) + sum(sizes)


def test_a_decode_that_ends_early_is_an_error(tiny_package: Path) -> None:
    with Package.open(tiny_package) as package:
        engine = open_engine(package, capacity=8, threads=1)
        engine.extend(PROMPT)
        with pytest.raises(EngineError, match="ended early"):
            decode_steps(engine, 4, lambda: 0.0)
        engine.close()


def test_steps_of_one_call_share_its_time() -> None:
    readings = [0.0, 0.030, 0.03001, 0.03002, 0.040, 0.060, 0.06001]
    step_ms, together = step_times(readings)
    assert step_ms == pytest.approx([10.00667] * 3 + [9.98] + [10.005] * 2, rel=1e-4)
    assert together == 3


@given(st.lists(st.floats(1e-6, 10), min_size=1, max_size=40))
def test_no_time_is_lost(gaps: list[float]) -> None:
    readings = [0.0, *np.cumsum(gaps).tolist()]
    step_ms, together = step_times(readings)
    assert len(step_ms) == len(gaps)
    assert sum(step_ms) == pytest.approx(1e3 * readings[-1])
    assert 1 <= together <= len(gaps)
    assert min(step_ms) > 0
