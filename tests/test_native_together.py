"""One row each of several conversations in one native call: what comes out is what each would get alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from runnable_packages import rich_model, runnable_package, same_precision

from edgemem.kernels.native import native
from edgemem.runtime.engine import KVState, Step
from edgemem.runtime.errors import ContextError, EngineError, SettingsError
from edgemem.runtime.native_engine import MOST_TOGETHER, NativeEngine
from edgemem.runtime.package import Package

PATHS = native().paths()  # type: ignore[union-attr]  # the suite runs where it is built
LENGTHS = (0, 700, 3, 511, 40, 512, 17, 1)  # of a piece of the slots, and of more than one


@pytest.fixture(scope="module")
def rich(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Package]:
    """A model with every feature, quantised."""
    model = rich_model()
    precision = same_precision(
        model, "int4-g32-min", embedding="int8-g32", down="int8-g64", value="int8-g32", up="bf16"
    )
    path = runnable_package(tmp_path_factory.mktemp("rich") / "p.edgemem", model, precision, max_context=1024)
    with Package.open(path) as package:
        yield package


def opened(package: Package, **settings: Any) -> closing[NativeEngine]:
    return closing(NativeEngine(package, **{"threads": 2, **settings}))


def some_rows(engine: NativeEngine, count: int, seed: int) -> NDArray[Any]:
    random = np.random.default_rng(seed)
    if engine.layers[0] == 0:
        return random.integers(0, engine.model.vocabulary, count).astype(np.int32)
    return random.normal(size=(count, engine.model.hidden)).astype(np.float32)


def begun(engine: NativeEngine, length: int, capacity: int | None = None) -> Any:
    """A conversation of so many slots; which rows they are of depends on that alone."""
    conversation = engine.conversation(capacity)
    if length:
        engine.exchange(conversation)
        engine.extend(some_rows(engine, length, seed=length))
        engine.exchange(conversation)
    return conversation


def alone(engine: NativeEngine, conversation: Any, row: NDArray[Any]) -> Step:
    engine.exchange(conversation)
    step = engine.extend(row[None])
    engine.exchange(conversation)
    return step


def memory(engine: NativeEngine, conversation: Any) -> KVState:
    engine.exchange(conversation)
    state = engine.state()
    engine.exchange(conversation)
    return state


def same_memory(one: KVState, other: KVState) -> None:
    for name in ("keys", "values", "logits"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), name)


@pytest.mark.parametrize("kv", ["fp16", "int8"])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("path", PATHS)
def test_each_row_is_bit_for_bit_what_it_is_alone(rich: Package, path: str, threads: int, kv: str) -> None:
    with opened(rich, path=path, threads=threads, kv=kv) as engine:
        together, apart = ([begun(engine, length) for length in LENGTHS] for _ in range(2))
        for count in (len(LENGTHS), 2, 5, 1, 3):
            rows = some_rows(engine, count, seed=100 + count)
            steps = engine.extend_together(together[:count], rows)
            for place, step in enumerate(steps):
                assert isinstance(step, Step)
                np.testing.assert_array_equal(step.logits, alone(engine, apart[place], rows[place]).logits)
        for one, other in zip(together, apart, strict=True):
            same_memory(memory(engine, one), memory(engine, other))
        assert (engine.length, [one.length for one in together[:2]]) == (0, [5, 704])


@pytest.mark.parametrize("layers", [(0, 1), (1, 2), (1, 3), (2, 4)])
def test_stages_go_from_tokens_or_states_to_states_or_logits(rich: Package, layers: tuple[int, int]) -> None:
    with opened(rich, layers=layers) as engine:
        together, apart = ([begun(engine, length) for length in (4, 0, 30)] for _ in range(2))
        rows = some_rows(engine, 3, seed=9)
        for place, step in enumerate(engine.extend_together(together, rows)):
            wanted = alone(engine, apart[place], rows[place])
            assert isinstance(step, Step)
            for got, want in ((step.logits, wanted.logits), (step.hidden, wanted.hidden)):
                assert (got is None) == (want is None)
                np.testing.assert_array_equal(got, want)


def test_as_many_as_there_may_be(rich: Package) -> None:
    with opened(rich, layers=(3, 4)) as engine:
        crowd = [engine.conversation(2) for _ in range(MOST_TOGETHER)]
        rows = some_rows(engine, MOST_TOGETHER + 1, seed=1)
        steps = engine.extend_together(crowd, rows[:-1])
        last = alone(engine, engine.conversation(2), rows[-2])
        np.testing.assert_array_equal(steps[-1].logits, last.logits)  # type: ignore[union-attr]
        with pytest.raises(EngineError, match="1 to 128"):
            engine.extend_together([*crowd, engine.conversation(2)], rows)


@pytest.mark.parametrize("layers", [(1, 3), (2, 4)])
def test_a_row_that_is_not_finite_harms_no_other(
    rich: Package, layers: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgemem.runtime.native_engine.check_states", lambda *_: None)
    with opened(rich, layers=layers) as engine:
        together, apart = ([begun(engine, length) for length in (7, 5, 9)] for _ in range(2))
        rows = some_rows(engine, 3, seed=4)
        rows[1, 3] = np.nan
        before = memory(engine, together[1])
        steps = engine.extend_together(together, rows)
        assert steps[1] is None
        same_memory(memory(engine, together[1]), before)
        for place in (0, 2):
            alone(engine, apart[place], rows[place])
            same_memory(memory(engine, together[place]), memory(engine, apart[place]))
        rows[1] = rows[0]
        step = engine.extend_together(together[1:], rows[1:])[0]  # it goes on
        wanted = alone(engine, apart[1], rows[1])
        assert isinstance(step, Step)
        np.testing.assert_array_equal(
            step.logits if engine.layers[1] == 4 else step.hidden,
            wanted.logits if engine.layers[1] == 4 else wanted.hidden,
        )


def test_what_is_refused_moves_none(rich: Package) -> None:
    with opened(rich) as engine, opened(rich) as other:
        ready, full, strange = begun(engine, 3), begun(engine, 5, capacity=5), begun(other, 2)
        rows = some_rows(engine, 2, seed=2)
        for conversations, inputs, error in (
            ([ready, full], rows, ContextError),
            ([ready, ready], rows, EngineError),
            ([ready, strange], rows, EngineError),
            ([ready], rows, EngineError),
            ([], rows, EngineError),
            ([ready], np.array([engine.model.vocabulary], dtype=np.int32), SettingsError),
            ([ready], np.zeros((1, engine.model.hidden), dtype=np.float32), SettingsError),
        ):
            with pytest.raises(error):
                engine.extend_together(conversations, inputs)
        assert [one.length for one in (ready, full, strange)] == [3, 5, 2]


def test_after_the_engine_is_closed_its_conversations_are_refused(rich: Package) -> None:
    with opened(rich) as engine:
        conversations = [begun(engine, 3), begun(engine, 4)]
    with pytest.raises(EngineError, match="closed"):
        engine.extend_together(conversations, np.array([1, 2], dtype=np.int32))


def test_the_native_call_trusts_no_argument(rich: Package) -> None:
    with opened(rich, layers=(2, 4)) as engine:
        decoder, width = engine._decoder, engine.model.vocabulary
        states = np.zeros((1, engine.model.hidden), dtype=np.float32)
        out = np.empty(width, dtype=np.float32)
        one = engine.conversation(4)
        for conversations, tokens, rows, outs in (
            ([one], np.array([1], dtype=np.int32), None, [out]),
            ([one], None, states[:, :-1].copy(), [out]),
            ([one], None, states, [out[:-1]]),
            ([one], None, states, [out.astype(np.float64)]),
            ([one], None, states, []),
            ([None], None, states, [out]),
            ([out], None, states, [out]),
        ):
            with pytest.raises((ValueError, TypeError)):
                decoder.extend_together(conversations, tokens, rows, outs)
        assert one.length == 0
