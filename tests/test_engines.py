"""The rules that every engine obeys, on a plain model in float32 and on one with every feature, quantised."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from interpreted_cuda import INTERPRETED
from numpy.typing import NDArray
from plan_engines import plan_engine
from runnable_packages import plain_model, rich_model, runnable_package, same_precision

from edgemem.runtime.engine import Engine
from edgemem.runtime.errors import ContextError, EngineError, NumericError, PackageError, SettingsError
from edgemem.runtime.open import ENGINES, open_engine
from edgemem.runtime.package import Package
from edgemem.runtime.sampling import Sampler, Sampling
from edgemem.split.codec import CodecSettings
from edgemem.split.coder import coder_of
from edgemem.split.engine import SplitEngine
from edgemem.split.local_back import LocalBack

CAPACITY = 64
# Relative to the greatest value. Int8 activations turn a rounding of the last bit into one of a 127th now and then, and
# the native engine's fp16 keys and values one into 2**-11.
TOLERANCE = {
    "onnx": {"plain": 1e-5, "rich": 5e-2, "single": 1e-5},
    "native": {"plain": 2e-3, "rich": 5e-2, "single": 2e-3},
    "cuda": {"plain": 2e-3, "rich": 5e-2, "single": 2e-3},
    "tensorrt": {"plain": 5e-3, "rich": 5e-2, "single": 5e-3},
    "split": {"plain": 2e-3, "rich": 5e-2, "single": 2e-3},
}
KV_BYTES = {"onnx": 4, "native": 2, "cuda": 2, "tensorrt": 2, "split": 2}
Open = Callable[..., Engine]


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Package]]:
    folder = tmp_path_factory.mktemp("engines")
    plain, rich, single = plain_model(), rich_model(), plain_model(layers=1)
    written = {
        "plain": runnable_package(
            folder / "plain.edgemem", plain, same_precision(plain, "fp32"), stages=[(0, 1), (1, 2), (1, 3), (2, 3)]
        ),
        "rich": runnable_package(
            folder / "rich.edgemem",
            rich,
            same_precision(rich, "int4-g32-min", embedding="int8-g32", down="int8-g64"),
            stages=[(0, 2), (2, 4)],
        ),
        "single": runnable_package(folder / "single.edgemem", single, same_precision(single, "fp32")),
    }
    opened = {name: Package.open(path) for name, path in written.items()}
    yield opened
    for package in opened.values():
        package.close()


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("graphs")


@pytest.fixture(params=[*ENGINES, "split"])
def open_(request: pytest.FixtureRequest, packages: dict[str, Package], graphs: Path) -> Iterator[Open]:
    """Opens an engine of the kind under test by the package's name, and closes it in the end."""
    opened: list[Engine] = []

    def open_one(name: str, **settings: Any) -> Engine:
        settings = {"capacity": CAPACITY, "threads": 1, **settings}
        if request.param == "tensorrt":
            opened.append(plan_engine(packages[name], graphs, **settings))
        elif request.param != "split":
            opened.append(open_engine(packages[name], request.param, **settings))
        elif "layers" in settings:
            pytest.skip("a split engine is all layers")
        else:
            opened.append(split_engine(packages[name], **settings))
        return opened[-1]

    yield open_one
    for engine in opened:
        engine.close()


def split_engine(package: Package, **settings: Any) -> Engine:
    """Its first layer, or none of one, in front, and the others behind, all here."""
    model = package.model
    split = min(1, model.layers - 1)
    coder = coder_of(model, split, CodecSettings("fp32"))
    front = open_engine(package, "native", layers=(0, split), **settings) if split else None
    back = open_engine(package, "native", layers=(split, model.layers), **settings)
    return SplitEngine(model, front, LocalBack(back, coder), coder)


@pytest.fixture(params=["plain", "rich"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def some_tokens(count: int, seed: int = 0) -> NDArray[np.int32]:
    return np.random.default_rng(seed).integers(0, 97, count).astype(np.int32)


def few(engine: Engine, count: int) -> int:
    """How many tokens to decode: `count`, but two in Triton's interpreter, where a step takes a second. Longer runs of
    the cuda engine are in test_cuda_engine.py."""
    return 2 if engine.name == "cuda" and INTERPRETED else count


def logits_of(engine: Engine, tokens: NDArray[np.int32]) -> NDArray[np.float32]:
    logits = engine.extend(tokens).logits
    assert logits is not None
    return logits.copy()


def tolerance(engine: Engine, kind: str) -> float:
    return TOLERANCE[engine.name][kind]


def assert_close(engine: Engine, got: NDArray[Any], wanted: NDArray[Any], kind: str) -> None:
    np.testing.assert_allclose(
        got.astype(np.float32), wanted, rtol=0, atol=tolerance(engine, kind) * np.abs(wanted).max()
    )


@pytest.mark.parametrize("cuts", [[20], [1], [39], list(range(1, 40)), [7, 8, 9, 31]])
def test_input_in_pieces_is_the_same_as_at_once(open_: Open, kind: str, cuts: list[int]) -> None:
    tokens, whole, pieces = some_tokens(40), open_(kind), open_(kind)
    wanted = logits_of(whole, tokens)
    for piece in np.split(tokens, cuts):
        got = logits_of(pieces, piece)
    assert pieces.length == whole.length == 40
    assert_close(whole, got, wanted, kind)
    assert_close(whole, pieces.state().keys, whole.state().keys, kind)
    assert_close(whole, pieces.state().values, whole.state().values, kind)


def test_keeping_all_slots_changes_nothing(open_: Open, kind: str) -> None:
    engine = open_(kind)
    engine.extend(some_tokens(30))
    before = engine.state()
    engine.keep(np.arange(30))
    after = engine.state()
    np.testing.assert_array_equal(after.keys, before.keys)
    np.testing.assert_array_equal(after.values, before.values)
    np.testing.assert_array_equal(after.logits, before.logits)


@pytest.mark.parametrize("slots", [[0, 1, 2, 10, 11, 29], [5], [0, 2, 4, 6], list(range(1, 30)), []])
def test_kept_keys_stand_at_their_new_positions(open_: Open, kind: str, slots: list[int]) -> None:
    engine = open_(kind)
    engine.extend(some_tokens(30))
    before, kept = engine.state(), np.array(slots, dtype=np.int64)
    engine.keep(kept)
    after = engine.state()
    assert engine.length == len(slots)
    np.testing.assert_array_equal(after.values, before.values[:, :, kept])
    for layer, index in enumerate(engine.model.layer_ropes):
        rope = engine.model.ropes[index]
        half = len(rope.inverse_frequencies)
        keys = before.keys[layer][:, kept].astype(np.float64)
        turn = np.exp(1j * (np.arange(len(slots)) - kept)[:, None] * np.array(rope.inverse_frequencies))
        turned = (keys[..., :half] + 1j * keys[..., half : 2 * half]) * turn
        wanted = np.concatenate([turned.real, turned.imag, keys[..., 2 * half :]], axis=-1)
        rounding = 1e-5 if KV_BYTES[engine.name] == 4 else 2e-3 * np.abs(wanted).max(initial=0)
        np.testing.assert_allclose(after.keys[layer], wanted, atol=rounding)


def test_in_one_layer_keeping_is_as_if_the_others_had_never_been(open_: Open) -> None:
    tokens, kept, engine, fresh = some_tokens(30), np.array([0, 3, 4, 17, 28]), open_("single"), open_("single")
    engine.extend(tokens)
    engine.keep(kept)
    following = some_tokens(4, seed=1)
    wanted = logits_of(fresh, np.concatenate([tokens[kept], following]))
    assert_close(engine, logits_of(engine, following), wanted, "single")


@pytest.mark.parametrize(
    "slots",
    [[1, 1], [2, 1], [-1, 0], [0, 30], [[0]], [0.0]],
    ids=["twice", "falling", "below", "above", "rank", "type"],
)
def test_slots_that_cannot_be_kept_are_refused(open_: Open, slots: list[Any]) -> None:
    engine = open_("plain")
    engine.extend(some_tokens(30))
    before = engine.state()
    with pytest.raises(SettingsError, match="slots"):
        engine.keep(np.array(slots))
    assert engine.length == 30
    np.testing.assert_array_equal(engine.state().keys, before.keys)


def test_truncating_is_never_having_gone_on(open_: Open, kind: str) -> None:
    tokens, engine, fresh = some_tokens(40), open_(kind), open_(kind)
    engine.extend(tokens[:25])
    engine.extend(some_tokens(20, seed=1))
    engine.truncate(25)
    fresh.extend(tokens[:25])
    np.testing.assert_array_equal(logits_of(engine, tokens[25:]), logits_of(fresh, tokens[25:]))


def test_truncating_to_more_than_there_is_is_refused(open_: Open) -> None:
    engine = open_("plain")
    engine.extend(some_tokens(5))
    for length in (6, -1):
        with pytest.raises(SettingsError):
            engine.truncate(length)
    engine.truncate(5)
    assert engine.state().logits is not None
    engine.truncate(4)
    assert engine.state().logits is None
    with pytest.raises(EngineError, match="no logits"):
        engine.decode(Sampler(Sampling()), 1)


def test_a_state_comes_back_bit_for_bit_and_goes_on_alike(open_: Open, kind: str) -> None:
    engine, other = open_(kind), open_(kind)
    engine.extend(some_tokens(30))
    state = engine.state()
    count = few(engine, 10)
    going_on = [token.id for token in engine.decode(Sampler(Sampling()), count)]
    other.extend(some_tokens(44, seed=2))
    other.restore(state)
    again = other.state()
    for name in ("keys", "values", "logits"):
        np.testing.assert_array_equal(getattr(again, name), getattr(state, name))
    assert [token.id for token in other.decode(Sampler(Sampling()), count)] == going_on


def test_a_state_of_another_shape_is_refused(open_: Open) -> None:
    engine, smaller, other = open_("plain"), open_("plain", capacity=20), open_("rich")
    before = engine.state()
    other.extend(some_tokens(3))
    with pytest.raises(PackageError, match="not of this engine"):
        engine.restore(other.state())
    assert engine.state().keys.shape == before.keys.shape
    engine.extend(some_tokens(21))
    with pytest.raises(PackageError, match="not of this engine"):
        smaller.restore(engine.state())


def test_decoding_is_extending_by_the_likeliest_token(open_: Open, kind: str) -> None:
    engine, stepped = open_(kind), open_(kind)
    engine.extend(some_tokens(9))
    count = few(engine, 12)
    decoded = [token.id for token in engine.decode(Sampler(Sampling()), count)]
    wanted, logits = [], logits_of(stepped, some_tokens(9))
    for _ in range(count):
        wanted.append(int(logits.argmax()))
        logits = logits_of(stepped, np.array(wanted[-1:], dtype=np.int32))
    assert decoded == wanted
    assert engine.length == 9 + count - 1  # the last token is not consumed


def test_a_closed_decode_has_consumed_all_but_the_last_token(open_: Open) -> None:
    engine = open_("plain")
    engine.extend(some_tokens(9))
    decoding = engine.decode(Sampler(Sampling()), 12)
    count = few(engine, 5)
    for _ in range(count):
        next(decoding)
    decoding.close()
    assert engine.length == 9 + count - 1


def test_decoding_stops_when_the_slots_run_out(open_: Open) -> None:
    engine = open_("plain")
    engine.extend(some_tokens(CAPACITY - 3))
    assert len(list(engine.decode(Sampler(Sampling()), 100))) == 4
    assert engine.length == CAPACITY
    with pytest.raises(ContextError):
        engine.extend(some_tokens(1))


def test_surprisal_is_minus_the_log_probability(open_: Open, kind: str) -> None:
    tokens, engine, stepped = some_tokens(40), open_(kind), open_(kind)
    got = engine.extend(tokens, surprisal=True).surprisal
    logits = np.array([logits_of(stepped, tokens[i : i + 1]) for i in range(40)], dtype=np.float64)
    likelihoods = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    wanted = -likelihoods[np.arange(39), tokens[1:]]
    assert got is not None
    assert got.shape == (40,)
    assert np.isnan(got[0])
    np.testing.assert_allclose(got[1:], wanted, atol=tolerance(engine, kind) * np.abs(logits).max())
    more = engine.extend(tokens[:2], surprisal=True).surprisal
    assert more is not None
    np.testing.assert_allclose(
        more[0], -likelihoods[39, tokens[0]], atol=tolerance(engine, kind) * np.abs(logits).max()
    )


def test_surprisal_of_decoded_tokens_is_that_of_extending_by_them(open_: Open, kind: str) -> None:
    engine, other = open_(kind), open_(kind)
    engine.extend(some_tokens(9))
    decoded = list(engine.decode(Sampler(Sampling(temperature=1.0, seed=3)), few(engine, 8), surprisal=True))
    other.extend(some_tokens(9))
    wanted = other.extend(np.array([token.id for token in decoded], dtype=np.int32), surprisal=True).surprisal
    assert wanted is not None
    np.testing.assert_allclose(
        [token.surprisal for token in decoded], wanted, atol=max(1e-3, tolerance(engine, kind) * 5)
    )


@pytest.mark.parametrize(
    ("kind", "cuts"), [("plain", [0, 1, 3]), ("plain", [0, 1, 2, 3]), ("rich", [0, 2, 4])], ids=["two", "three", "rich"]
)
def test_stages_in_a_row_are_the_whole_model(open_: Open, kind: str, cuts: list[int]) -> None:
    tokens, whole = some_tokens(20), open_(kind)
    stages = [open_(kind, layers=layers) for layers in pairwise(cuts)]
    for piece in np.split(tokens, [11, 12]):
        wanted = logits_of(whole, piece)
        values: NDArray[Any] = piece
        for stage in stages:
            step = stage.extend(values)
            values = step.logits if step.hidden is None else step.hidden
        assert_close(whole, values, wanted, kind)
    for stage in stages:
        with pytest.raises(EngineError, match="all layers"):
            stage.decode(Sampler(Sampling()), 1)
    with pytest.raises(SettingsError, match="surprisal"):
        stages[0].extend(tokens, surprisal=True)


def test_layers_that_do_not_exist_are_refused(open_: Open) -> None:
    for layers in ((0, 4), (2, 2), (-1, 2)):
        with pytest.raises((SettingsError, EngineError), match="layers"):
            open_("plain", layers=layers)


def test_input_that_does_not_fit_leaves_everything_as_it_was(open_: Open) -> None:
    engine = open_("plain")
    engine.extend(some_tokens(60))
    before = engine.state()
    with pytest.raises(ContextError, match=r"60 slots in use and 5 more(.|\n)*64"):
        engine.extend(some_tokens(5))
    after = engine.state()
    np.testing.assert_array_equal(after.keys, before.keys)
    np.testing.assert_array_equal(after.logits, before.logits)
    engine.extend(some_tokens(4))
    assert engine.length == 64


@pytest.mark.parametrize(
    "tokens",
    [
        np.array([3, 97]),
        np.array([-1]),
        np.array([1.0]),
        np.array([True]),
        np.array([[1]]),
        np.array([], dtype=np.int32),
    ],
    ids=["above", "below", "float", "bool", "rank", "empty"],
)
def test_bad_tokens_are_refused(open_: Open, tokens: NDArray[Any]) -> None:
    engine = open_("plain")
    engine.extend(some_tokens(7))
    before = engine.state()
    with pytest.raises(SettingsError, match="token"):
        engine.extend(tokens)
    np.testing.assert_array_equal(engine.state().logits, before.logits)
    assert engine.length == 7


@pytest.mark.parametrize(
    "states",
    [np.zeros((2, 63), np.float32), np.zeros((2, 64)), np.zeros(64, np.float32), np.zeros((0, 64), np.float32)],
)
def test_bad_hidden_states_are_refused(open_: Open, states: NDArray[Any]) -> None:
    with pytest.raises(SettingsError, match="hidden states"):
        open_("plain", layers=(1, 3)).extend(states)


def test_numbers_that_are_not_finite_are_an_error_and_leave_the_length(open_: Open) -> None:
    engine, back = open_("plain"), open_("plain", layers=(1, 3))
    engine.extend(some_tokens(7))
    state = engine.state()
    state.values[1, 0, 3, 2] = np.nan
    engine.restore(state)
    with pytest.raises(NumericError, match="not finite"):
        engine.extend(some_tokens(2))
    assert engine.length == 7
    np.testing.assert_array_equal(engine.state().logits, state.logits)
    with pytest.raises(NumericError, match="not finite"):
        list(engine.decode(Sampler(Sampling()), 3))
    assert engine.length == 7
    with pytest.raises(NumericError, match="not finite"):
        back.extend(np.full((1, 64), np.inf, dtype=np.float32))


@pytest.mark.parametrize(
    "settings", [{"capacity": 0}, {"capacity": 97}, {"capacity": True}, {"threads": 0}, {"colour": 1}]
)
def test_settings_out_of_range_are_refused(open_: Open, settings: dict[str, Any]) -> None:
    with pytest.raises(SettingsError):
        open_("plain", **settings)


def test_there_are_no_other_engines(packages: dict[str, Package]) -> None:
    with pytest.raises(SettingsError, match="abacus"):
        open_engine(packages["plain"], "abacus")


def test_a_closed_engine_says_so_whatever_is_asked(open_: Open) -> None:
    engine = open_("plain")
    engine.extend(some_tokens(5))
    state, decoding, not_begun = engine.state(), *(engine.decode(Sampler(Sampling()), 9) for _ in range(2))
    next(decoding)
    engine.close()
    engine.close()
    uses: list[Callable[[], object]] = [
        lambda: engine.extend(some_tokens(1)),
        lambda: engine.decode(Sampler(Sampling()), 1),
        lambda: next(decoding),
        lambda: next(not_begun),
        lambda: engine.keep(np.arange(2)),
        lambda: engine.truncate(0),
        engine.state,
        lambda: engine.restore(state),
        engine.traffic,
    ]
    for use in uses:
        with pytest.raises(EngineError, match="closed"):
            use()


def test_traffic_grows_with_the_slots_in_use(open_: Open) -> None:
    engine = open_("rich")
    engine.extend(some_tokens(1))
    short = engine.traffic()
    engine.extend(some_tokens(3))
    long = engine.traffic()
    assert long.weights == short.weights > 0
    assert long.kv_read > short.kv_read
    # layers that are here for good, key and value, one head of 32
    layers = 1 if engine.name == "split" else 4
    assert long.kv_write == short.kv_write == layers * 2 * 32 * KV_BYTES[engine.name]
