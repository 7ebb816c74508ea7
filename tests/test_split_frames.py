"""Messages survive their bytes, and no bytes are more than a message or a ProtocolError."""

from __future__ import annotations

import json
import struct
import tracemalloc
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemem.runtime.errors import ProtocolError
from edgemem.runtime.limits import LIMITS
from edgemem.split.fields import printable
from edgemem.split.frames import (
    CHUNK_TOKENS,
    FRAME_BYTES,
    PAYLOAD_BYTES,
    PROTOCOL,
    RANGES,
    Answered,
    Bye,
    Done,
    Extend,
    Failed,
    Hello,
    Keep,
    Logits,
    Message,
    Ping,
    Pong,
    Refused,
    Stranger,
    Truncate,
    Welcome,
    decode,
    encode,
    ranges_of,
    slots_of,
)

HELLO = Hello(
    PROTOCOL, "0.1.0", bytes(range(16)), "ab" * 32, 2, 3, 512, {"mode": "adaptive", "tau": None, "delta": 0.5}
)
ops = st.integers(0, (1 << 63) - 1)
slots = st.integers(0, LIMITS.context)
texts = st.text(st.characters(categories=["L", "N", "P", "Zs"], include_characters="\n"), max_size=50).filter(
    lambda text: all(char.isprintable() or char == "\n" for char in text)
)
plain = st.none() | st.booleans() | st.integers(-(1 << 60), 1 << 60) | st.floats(allow_nan=False, allow_infinity=False)


def ids(size: int) -> st.SearchStrategy[Any]:
    return st.lists(st.integers(0, LIMITS.vocabulary - 1), min_size=size, max_size=size).map(
        lambda values: np.array(values, np.int32)
    )


@st.composite
def hellos(draw: st.DrawFn) -> Hello:
    split = draw(st.integers(0, LIMITS.layers - 1))
    return Hello(
        PROTOCOL,
        draw(texts.filter(lambda text: len(text.encode()) <= 64)),
        draw(st.binary(min_size=16, max_size=16)),
        draw(st.text("0123456789abcdef", min_size=64, max_size=64)),
        split,
        draw(st.integers(split + 1, LIMITS.layers)),
        draw(slots),
        draw(st.dictionaries(st.text(max_size=8), plain | st.text(max_size=8), max_size=5)),
    )


@st.composite
def extends(draw: st.DrawFn) -> Extend:
    count = draw(st.integers(1, CHUNK_TOKENS))
    payload, tokens = draw(st.binary(max_size=500)), draw(st.none() | ids(count))
    return Extend(draw(ops), draw(slots), count, payload, draw(st.integers(0, LIMITS.vocabulary)), tokens)


@st.composite
def answers(draw: st.DrawFn) -> Answered:
    rising = np.array(sorted(draw(st.sets(st.integers(0, LIMITS.vocabulary - 1), max_size=20))), np.int32)
    reals = st.floats(width=32, allow_nan=False, allow_infinity=False)
    values = draw(st.lists(reals, min_size=len(rising), max_size=len(rising)))
    surprisal = draw(st.none() | st.lists(reals, max_size=CHUNK_TOKENS).map(lambda row: np.array(row, np.float32)))
    if surprisal is not None and len(surprisal) and draw(st.booleans()):
        surprisal[0] = np.nan
    log_sum, compute_ms = draw(st.floats(-1e9, 1e9)), draw(st.floats(0, 1e9))
    return Answered(draw(ops), draw(slots), rising, np.array(values, np.float32), log_sum, surprisal, compute_ms)


kept = st.sets(st.integers(0, 3000), max_size=60).map(lambda kept: np.array(sorted(kept), np.int64))
messages: st.SearchStrategy[Message] = st.one_of(
    hellos(),
    extends(),
    answers(),
    st.builds(Refused, st.just("model"), texts),
    st.builds(Welcome, ops, slots, slots, st.integers(0, CHUNK_TOKENS), st.just("0.1.0")),
    st.builds(Logits, ops, st.integers(0, LIMITS.vocabulary)),
    st.builds(lambda op, rows: Keep(op, ranges_of(rows)), ops, kept),
    st.builds(Truncate, ops, slots),
    st.builds(Done, ops, slots),
    st.builds(Failed, ops, st.just("memory"), texts),
    st.builds(Ping, st.integers(0, (1 << 64) - 1)),
    st.builds(Pong, st.integers(0, (1 << 64) - 1)),
    st.just(Bye()),
)


def same(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray):
        return bool(one.dtype == other.dtype and np.array_equal(one, other, equal_nan=one.dtype.kind == "f"))
    return bool(type(one) is type(other) and one == other)


@given(messages)
def test_a_message_comes_back_as_it_was(message: Message) -> None:
    back = decode(encode(message))
    assert type(back) is type(message)
    for field in fields(message):
        assert same(getattr(message, field.name), getattr(back, field.name)), field.name


@given(messages, st.data())
def test_a_frame_that_is_cut_or_goes_on_is_refused(message: Message, data: st.DataObject) -> None:
    frame = encode(message)
    with pytest.raises(ProtocolError):
        decode(frame[: data.draw(st.integers(0, len(frame) - 1))])
    with pytest.raises(ProtocolError):
        decode(frame + data.draw(st.binary(min_size=1, max_size=9)))


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_a_protocol_error(frame: bytes) -> None:
    try:
        message = decode(frame)
    except ProtocolError:
        return
    if not isinstance(message, Stranger):
        assert type(decode(encode(message))) is type(message)


@given(kept)
def test_ranges_name_the_slots_they_were_made_of(rows: np.ndarray) -> None:
    ranges = ranges_of(rows)
    assert np.array_equal(slots_of(ranges, 3001), rows)
    assert slots_of(ranges, 3001).dtype == np.int64
    if len(rows):
        assert (ranges[1:, 0] > ranges[:-1, 1]).all()
        with pytest.raises(ProtocolError, match="not in use"):
            slots_of(ranges, int(rows[-1]))


@pytest.mark.parametrize("limit", [FRAME_BYTES + 1, 1 << 27])
def test_a_frame_beyond_the_limit_is_refused_whole(limit: int) -> None:
    with pytest.raises(ProtocolError, match="too long"):
        decode(bytes(limit))


def test_the_largest_of_each_kind_fits_the_frame_limit() -> None:
    most = np.arange(LIMITS.vocabulary, dtype=np.int32)
    row = np.zeros(CHUNK_TOKENS, np.float32)
    tokens = np.zeros(CHUNK_TOKENS, np.int32)
    answered = Answered(1, 1, most, np.zeros(len(most), np.float32), 0.0, row)
    starts = np.arange(RANGES, dtype=np.int32) * 2
    keep = Keep(1, np.stack([starts, starts + 1], axis=1))
    for message in (answered, keep, Extend(1, 0, CHUNK_TOKENS, bytes(PAYLOAD_BYTES), len(most), tokens)):
        assert len(encode(decode(encode(message)))) <= FRAME_BYTES
    assert len(slots_of(keep.ranges, LIMITS.context)) == RANGES


@pytest.mark.parametrize("kind", [4, 6, 7])
def test_a_length_that_is_not_there_allocates_nothing(kind: int) -> None:
    frame = bytes([kind]) + struct.pack("<QI", 1, 0) + b"\x01\0\0\0" + b"\xff\xff\x0f\0" * 20
    tracemalloc.start()
    with pytest.raises(ProtocolError):
        decode(frame)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: Extend(1, 0, 0, b""), "without states"),
        (lambda: Extend(1, 0, 2, b"", tokens=np.zeros(1, np.int32)), "not those of the states"),
        (lambda: Extend(1, 0, 1, b"", tokens=np.array([-1], np.int32)), "no vocabulary"),
        (lambda: Extend(1, 0, 1, b"", tokens=np.array([LIMITS.vocabulary], np.int32)), "no vocabulary"),
        (lambda: Answered(1, 1, np.array([2, 2], np.int32), np.zeros(2, np.float32), 0.0), "rising"),
        (lambda: Answered(1, 1, np.array([1], np.int32), np.zeros(2, np.float32), 0.0), "rising"),
        (lambda: Answered(1, 1, np.array([1], np.int32), np.array([np.inf], np.float32), 0.0), "cannot be"),
        (lambda: Answered(1, 1, np.zeros(0, np.int32), np.zeros(0, np.float32), 0.0, None, -1.0), "cannot be"),
        (
            lambda: Answered(
                1, 1, np.zeros(0, np.int32), np.zeros(0, np.float32), 0.0, np.array([0, np.nan], np.float32)
            ),
            "surprisal",
        ),
        (lambda: Keep(1, np.array([[0, 2], [2, 3]], np.int32)), "apart"),
        (lambda: Keep(1, np.array([[3, 3]], np.int32)), "apart"),
        (lambda: Keep(1, np.array([[-1, 3]], np.int32)), "apart"),
        (lambda: Keep(1, np.array([[0, LIMITS.context + 1]], np.int32)), "apart"),
        (lambda: replace(HELLO, model="AB" * 32), "hash"),
        (lambda: replace(HELLO, split=3), "split"),
    ],
)
def test_a_message_that_cannot_be_is_not_made(make: Any, what: str) -> None:
    with pytest.raises(ProtocolError, match=what):
        make()


@pytest.mark.parametrize(
    "message",
    [
        replace(HELLO, session=b"short"),
        replace(HELLO, capacity=LIMITS.context + 1),
        replace(HELLO, layers=LIMITS.layers + 1),
        replace(HELLO, codec={"mode": ["nested"]}),
        replace(HELLO, codec={"tau": float("nan")}),
        replace(HELLO, codec={"mode": "x" * 5000}),
        Done(-1, 0),
        Done(True, 0),
        Done(1 << 63, 0),
        Failed(1, "failed", "\x1b[2J"),
        Failed(1, "failed", "x" * 5000),
        Extend(1, 0, 129, b""),
        Extend(1, 0, 1, bytes(PAYLOAD_BYTES + 1)),
        Answered(1, 1, np.zeros(0, np.int32), np.zeros(0, np.float32), float("nan")),
        Stranger(2, "9"),
    ],
)
def test_what_is_beyond_a_limit_is_not_sent(message: Message) -> None:
    with pytest.raises(ProtocolError):
        encode(message)


def with_codec(text: bytes) -> bytes:
    frame = encode(replace(HELLO, codec={}))
    return frame[:-6] + struct.pack("<I", len(text)) + text


@pytest.mark.parametrize(
    "text",
    [b"", b"[]", b"{", b"nan", b'{"tau": NaN}', b'{"tau": 1e999}', b'{"a": {}}', b"[" * 4000, b"\xff", b'{"a":' * 800],
)
def test_settings_that_are_no_flat_object_are_refused(text: bytes) -> None:
    assert decode(with_codec(b'{"mode": "fp32"}')).codec == {"mode": "fp32"}  # type: ignore[union-attr]
    with pytest.raises(ProtocolError):
        decode(with_codec(text))


def test_text_that_would_act_on_a_terminal_is_refused() -> None:
    frame = encode(Failed(1, "failed", "A red herring"))
    with pytest.raises(ProtocolError, match="cannot be shown"):
        decode(frame.replace(b"A red", b"\x1b[31m"))
    with pytest.raises(ProtocolError, match="UTF-8"):
        decode(frame.replace(b"A red", b"\xff\xff\xff\xff\xff"))


def test_the_hello_of_another_protocol_tells_which() -> None:
    later = b"\x01" + struct.pack("<HI", PROTOCOL + 6, 5) + b"9.1.2" + b"whatever it has then"
    stranger = decode(later)
    assert isinstance(stranger, Stranger)
    assert (stranger.protocol, stranger.version) == (PROTOCOL + 6, "9.1.2")


def test_a_text_is_made_fit_to_be_sent() -> None:
    assert printable("two\nlines", 100) == "two\nlines"
    assert printable("\x1b[2J\ud800é", 100) == "?[2J?é"
    assert printable("éé", 3) == "é"
    assert json.loads(json.dumps(printable("x" * 9999, 4000))) == "x" * 4000
