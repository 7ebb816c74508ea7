from __future__ import annotations

import hashlib
import json
import math
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from edgemem.runtime.errors import NumericError, ProtocolError, SettingsError
from edgemem.split.codec import LEAST_DELTA, Codec, CodecSettings

HIDDEN = 48
SETTINGS = (
    CodecSettings("fp32"),
    CodecSettings("fp16"),
    CodecSettings("int8"),
    CodecSettings("adaptive", delta=0.1),
    CodecSettings("adaptive", delta=0.02, rans=False),
    CodecSettings("adaptive", tau=5.0, delta=0.1),
    CodecSettings("adaptive", tau=5.0, delta=0.3, rans=False),
    CodecSettings("adaptive", tau=5.0, delta=0),
)


def like_hidden_states(count: int, hidden: int = HIDDEN, seed: int = 0) -> NDArray[np.float32]:
    """Heavy tails, tokens of different size, one channel that is always large, and a token with a massive value."""
    source = np.random.default_rng(seed)
    states = source.standard_t(4, (count, hidden)) * source.uniform(0.5, 3, (count, 1))
    states[:, hidden // 3] += 40
    states[: count // 20, hidden // 2] = 27_000
    return states.astype(np.float32)


@st.composite
def any_states(draw: st.DrawFn) -> NDArray[np.float32]:
    """Rows of any shape of values, each by a power of ten of its own."""
    count, hidden = draw(st.integers(1, 4)), draw(st.integers(1, 40))
    values = draw(arrays(np.float32, (count, hidden), elements=st.floats(-1, 1, width=32)))
    sizes = draw(arrays(np.float32, (count, 1), elements=st.sampled_from([1e-20, 1e-6, 1, 100, 7e4, 1e9, 1e30])))
    states: NDArray[np.float32] = (values * sizes).astype(np.float32)
    return states


def lost(states: NDArray[np.float32], decoded: NDArray[np.float32]) -> NDArray[np.float64]:
    """(n,) norms of what was lost, and of the states."""
    return np.linalg.norm(states.astype(np.float64) - decoded, axis=1)


def norms(states: NDArray[np.float32]) -> NDArray[np.float64]:
    return np.linalg.norm(states.astype(np.float64), axis=1)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_round_trip_of_0_to_130_states(settings: CodecSettings) -> None:
    codec = Codec(settings, HIDDEN)
    states = like_hidden_states(130)
    whole = codec.decode(codec.encode(states), 130)
    assert (lost(states, whole) <= 0.35 * norms(states)).all()
    for count in range(131):
        decoded = codec.decode(codec.encode(states[:count]), count)
        assert decoded.shape == (count, HIDDEN)
        assert decoded.dtype == np.float32
        np.testing.assert_array_equal(decoded, whole[:count])


@given(any_states())
def test_fp32_changes_nothing(states: NDArray[np.float32]) -> None:
    codec = Codec(CodecSettings("fp32"), states.shape[1])
    assert codec.decode(codec.encode(states), len(states)).tobytes() == states.tobytes()


@given(any_states())
def test_fp16_loses_half_a_unit_in_the_last_place(states: NDArray[np.float32]) -> None:
    codec = Codec(CodecSettings("fp16"), states.shape[1])
    decoded = codec.decode(codec.encode(states), len(states))
    above = np.abs(states).max(axis=1) >= 1e-25
    assert (lost(states, decoded)[above] <= 2.0**-11 * 1.001 * norms(states)[above]).all()


def test_fp16_states_pass_unchanged() -> None:
    states = like_hidden_states(20).astype(np.float16).astype(np.float32)
    codec = Codec(CodecSettings("fp16"), HIDDEN)
    np.testing.assert_array_equal(codec.decode(codec.encode(states), 20), states)


@given(any_states())
def test_int8_is_within_a_step(states: NDArray[np.float32]) -> None:
    codec = Codec(CodecSettings("int8"), states.shape[1])
    decoded = codec.decode(codec.encode(states), len(states))
    spans = states.max(axis=1, initial=0).astype(np.float64) - states.min(axis=1, initial=0)
    steps = 1.01 * spans / 255 + 1e-30  # a step is rounded up to bfloat16
    assert (np.abs(states - decoded).max(axis=1) <= steps).all()


@given(
    any_states(),
    st.sampled_from([math.inf, 2.0**-14, 0.01, 0.5, 30.0]),
    st.floats(LEAST_DELTA, 0.9),
    st.booleans(),
)
def test_a_token_keeps_to_delta(states: NDArray[np.float32], tau: float, delta: float, rans: bool) -> None:
    codec = Codec(CodecSettings("adaptive", tau, delta, rans), states.shape[1])
    decoded = codec.decode(codec.encode(states), len(states))
    above = np.abs(states).max(axis=1) >= 1e-25
    assert (lost(states, decoded)[above] <= 1.0001 * delta * norms(states)[above]).all()


@given(any_states(), st.sampled_from(SETTINGS[1:]))
def test_never_more_than_three_bytes_a_token_beyond_fp16(states: NDArray[np.float32], settings: CodecSettings) -> None:
    count, hidden = states.shape
    assert len(Codec(settings, hidden).encode(states)) <= count * (2 * hidden + 3)


def test_what_does_not_compress_goes_in_fp16() -> None:
    states = np.random.default_rng(0).uniform(-1, 1, (30, 512)).astype(np.float32)
    fine = Codec(CodecSettings("adaptive", delta=LEAST_DELTA), 512)
    np.testing.assert_array_equal(
        fine.decode(fine.encode(states), 30), Codec(CodecSettings("fp16"), 512).decode(fine.encode(states)[30:], 30)
    )


@given(any_states(), st.sampled_from([math.inf, 0.5]), st.lists(st.floats(LEAST_DELTA, 0.9), min_size=2, max_size=5))
def test_a_smaller_delta_never_takes_fewer_bits(states: NDArray[np.float32], tau: float, deltas: list[float]) -> None:
    sizes = []
    for delta in sorted(deltas, reverse=True):
        codec = Codec(CodecSettings("adaptive", tau, delta, rans=False), states.shape[1])
        sizes.append([len(codec.encode(row[None])) for row in states])
    assert (np.diff(sizes, axis=0) >= 0).all()


def test_it_compresses_what_hidden_states_are_like() -> None:
    states = like_hidden_states(200, hidden=576)
    sizes = {
        name: len(Codec(settings, 576).encode(states)) / 200
        for name, settings in {
            "both": CodecSettings("adaptive", 20.0, 0.1),
            "packed": CodecSettings("adaptive", 20.0, 0.1, rans=False),
            "bits": CodecSettings("adaptive", math.inf, 0.1, rans=False),
        }.items()
    }
    assert sizes["both"] < 1152 / 3
    assert sizes["both"] < sizes["packed"] < sizes["bits"] < 1152 / 2


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_payloads_add_up(settings: CodecSettings) -> None:
    codec = Codec(settings, HIDDEN)
    states = like_hidden_states(60)
    payloads = [codec.encode(row[None]) for row in states]
    assert len(codec.encode(states)) == sum(map(len, payloads))
    decoded = np.concatenate([codec.decode(payload, 1) for payload in payloads])
    np.testing.assert_array_equal(codec.decode(codec.encode(states), 60), decoded)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("value", [0.0, -0.0, 3.0, -3.0, 1e5, -1e30])
def test_rows_of_one_value(settings: CodecSettings, value: float) -> None:
    for hidden in (1, 2, 33, 300):
        states = np.full((3, hidden), value, dtype=np.float32)
        codec = Codec(settings, hidden)
        np.testing.assert_allclose(codec.decode(codec.encode(states), 3), states, rtol=0.01)


def test_more_outliers_than_a_row_can_name_go_in_fp16() -> None:
    states = np.linspace(1, 2, 700, dtype=np.float32)[None]
    codec = Codec(CodecSettings("adaptive", tau=1.0, delta=0.5), 700)
    assert len(codec.encode(states)) == 1403
    np.testing.assert_allclose(codec.decode(codec.encode(states), 1), states, rtol=2**-11)


def test_the_widest_model() -> None:
    states = np.zeros((1, 1 << 16), dtype=np.float32)
    states[0, [0, 40_000, 65_535]] = (7, -8, 9)
    codec = Codec(CodecSettings("adaptive", tau=5.0), 1 << 16)
    np.testing.assert_array_equal(codec.decode(codec.encode(states), 1), states)


def test_the_same_states_give_the_same_bytes_on_every_machine() -> None:
    states = (((np.arange(40 * 96) * 7919) % 1009 - 504.0) ** 3 / 3e6).reshape(40, 96).astype(np.float32)
    payload = b"".join(Codec(settings, 96).encode(states) for settings in SETTINGS)
    assert hashlib.sha256(payload).hexdigest() == PINNED


PINNED = "8c273e7270a8dd7554ee5f7b87024167ef08113b7f7f0dfb6055c609f0abdde2"


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e38])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_states_that_are_not_finite_are_refused(settings: CodecSettings, bad: float) -> None:
    states = like_hidden_states(3)
    states[1, 7] = bad
    with pytest.raises(NumericError, match="not finite"):
        Codec(settings, HIDDEN).encode(states)


@pytest.mark.parametrize(
    "states", [np.zeros(HIDDEN, np.float32), np.zeros((1, HIDDEN + 1), np.float32), np.zeros((1, HIDDEN))], ids=str
)
def test_states_of_another_shape_are_refused(states: NDArray[Any]) -> None:
    with pytest.raises(SettingsError, match="another shape"):
        Codec(CodecSettings(), HIDDEN).encode(states)


@given(st.binary(max_size=400), st.integers(0, 60), st.sampled_from(SETTINGS))
def test_any_bytes_are_states_or_refused(payload: bytes, count: int, settings: CodecSettings) -> None:
    try:
        states = Codec(settings, 4).decode(payload, count)
    except ProtocolError:
        return
    assert states.shape == (count, 4)
    assert np.isfinite(states).all()


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_payload_of_another_length_is_refused(settings: CodecSettings) -> None:
    codec = Codec(settings, HIDDEN)
    payload = codec.encode(like_hidden_states(3))
    for end in range(len(payload)):
        with pytest.raises(ProtocolError):
            codec.decode(payload[:end], 3)
    for count, longer in ((2, payload), (4, payload), (0, payload), (3, payload + b"\0"), (3, payload + b"\0\0")):
        with pytest.raises(ProtocolError):
            codec.decode(longer, count)


@pytest.mark.parametrize(
    ("settings", "payload", "message"),
    [
        (CodecSettings("fp32"), np.array([np.nan, 1], "<f4").tobytes(), "not finite"),
        (CodecSettings("fp16"), b"\0" + np.array([np.inf, 1], "<f2").tobytes(), "not finite"),
        (CodecSettings("fp16"), b"\x71" + bytes(4), "exponent"),
        (CodecSettings("fp16"), b"\x80" + bytes(4), "exponent"),
        (CodecSettings("int8"), b"\x80\x7f\0\1\1", "not finite"),
        (CodecSettings("int8"), b"\x7f\x7f\0\xff\xff", "not finite"),
        (CodecSettings("adaptive"), b"\x27" + bytes(5), "form"),
        (CodecSettings("adaptive"), b"\xff" + bytes(5), "form"),
        (CodecSettings("adaptive"), b"\0\0\0" + bytes(4), "state out of range"),
        (CodecSettings("adaptive"), b"\0\xff\x7f" + b"\xff\xff\xff\xff", "decoded"),
        (CodecSettings("adaptive", tau=1.0), b"\x26\1" + b"\2\0" + bytes(7), "beyond the hidden"),
        (CodecSettings("adaptive", tau=1.0), b"\x26\1" + b"\1\0" + b"\0\x7c" + bytes(5), "not finite"),
        (CodecSettings("adaptive", tau=1.0), b"\x26\xff" + bytes(20), "cut off"),
    ],
)
def test_what_is_wrong_is_said(settings: CodecSettings, payload: bytes, message: str) -> None:
    with pytest.raises(ProtocolError, match=message):
        Codec(settings, 2).decode(payload, 1)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_count_beyond_the_bytes_allocates_nothing(settings: CodecSettings) -> None:
    codec = Codec(settings, 4096)
    payload = codec.encode(like_hidden_states(1, 4096))
    codec.decode(payload, 1)  # what is built once is built
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError):
            codec.decode(payload, 1 << 40)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_settings_survive_json(settings: CodecSettings) -> None:
    assert CodecSettings.from_dict(json.loads(json.dumps(settings.to_dict(), allow_nan=False))) == settings


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"mode": "fp8"}, "mode"),
        ({"mode": None}, "mode"),
        ({"tau": 0.0}, "tau"),
        ({"tau": -1.0}, "tau"),
        ({"tau": math.nan}, "tau"),
        ({"tau": True}, "tau"),
        ({"tau": "5"}, "tau"),
        ({"delta": 1.0}, "delta"),
        ({"delta": -0.1}, "delta"),
        ({"delta": LEAST_DELTA / 2}, "delta"),
        ({"delta": math.nan}, "delta"),
        ({"delta": False}, "delta"),
        ({"rans": 1}, "rans"),
        ({"rans": None}, "rans"),
    ],
)
def test_bad_settings_are_refused(changes: dict[str, Any], name: str) -> None:
    with pytest.raises(SettingsError, match=name):
        CodecSettings(**changes)
    with pytest.raises(SettingsError, match=name):
        CodecSettings.from_dict({**CodecSettings().to_dict(), **changes})


@pytest.mark.parametrize("plain", [{}, {"mode": "fp16"}, {**CodecSettings().to_dict(), "more": 1}], ids=str)
def test_other_keys_are_refused(plain: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match="other keys"):
        CodecSettings.from_dict(plain)


@pytest.mark.parametrize("hidden", [0, -1, (1 << 16) + 1, True, 4.0])
def test_a_hidden_size_out_of_range_is_refused(hidden: Any) -> None:
    with pytest.raises(SettingsError, match="hidden"):
        Codec(CodecSettings(), hidden)
