"""Text streams: the pieces joined equal decoding at once, characters stay whole, and stop strings never show."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_tokenizers import byte_level, opened, sentencepiece

from edgemem.runtime.errors import SettingsError
from edgemem.runtime.text_stream import TextStream
from edgemem.runtime.tokenizer import Tokenizer

TOKENIZERS = {
    "byte level": opened(byte_level()),
    "sentencepiece": opened(sentencepiece()),
    "sentencepiece without a first space": opened(sentencepiece(strip=False)),
}
TEXT = st.text(alphabet=st.sampled_from("the lamp in a\n <|>🌍é你\u200d\ufffd▁Ġ"), max_size=30)


def _streamed(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    stream = TextStream(tokenizer)
    return [*(stream.push(token) for token in ids), stream.finish()]


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_any_tokens_streamed_equal_the_tokens_decoded_at_once(name: str, data: st.DataObject) -> None:
    tokenizer = TOKENIZERS[name]
    known = st.integers(0, tokenizer.vocabulary + 2)  # three of them have no token
    raw_bytes = st.sampled_from(tokenizer.encode("🌍é你a ") + tokenizer.encode("\x80"))
    ids = data.draw(st.lists(known | raw_bytes, max_size=40))
    assert "".join(_streamed(tokenizer, ids)) == tokenizer.decode(ids)


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(deadline=None, max_examples=100)
@given(text=TEXT)
def test_encoded_text_comes_back_and_no_piece_holds_a_broken_character(name: str, text: str) -> None:
    tokenizer = TOKENIZERS[name]
    pieces = _streamed(tokenizer, tokenizer.encode(text))
    assert "".join(pieces) == tokenizer.decode(tokenizer.encode(text))
    assert "".join(pieces).count("\ufffd") == text.count("\ufffd")


def test_a_character_of_four_tokens_comes_out_whole_at_the_fourth() -> None:
    for name, at in (("byte level", 3), ("sentencepiece without a first space", 4)):
        tokenizer = TOKENIZERS[name]
        ids = tokenizer.encode("🌍a")
        assert len(ids) == 5
        pieces = _streamed(tokenizer, ids)
        assert pieces.index(next(piece for piece in pieces if piece)) == at
        assert "".join(pieces) == "🌍a"


def test_text_comes_out_token_by_token() -> None:
    tokenizer = TOKENIZERS["sentencepiece"]
    ids = tokenizer.encode("Hello the lamp")
    assert _streamed(tokenizer, ids) == ["Hello", " the", " lamp", ""]


def test_an_unfinished_character_becomes_one_replacement_at_the_end() -> None:
    tokenizer = TOKENIZERS["byte level"]
    ids = tokenizer.encode("a🌍")[:-1]
    assert _streamed(tokenizer, ids) == ["a", "", "", "", "\ufffd"]


def test_endless_broken_bytes_are_not_held_back_for_ever() -> None:
    tokenizer = TOKENIZERS["byte level"]
    broken = tokenizer.encode("🌍")[1]  # a continuation byte
    pieces = _streamed(tokenizer, [broken] * 50)
    assert pieces[1:] == ["\ufffd"] * 50


def test_special_tokens_give_no_text_and_split_no_character() -> None:
    tokenizer = TOKENIZERS["byte level"]
    first, *rest = tokenizer.encode("🌍")
    ids = [0, first, 1, *rest, 2]
    assert "".join(_streamed(tokenizer, ids)) == "🌍" == tokenizer.decode(ids)


class _Letters:
    """A decoder whose tokens are characters."""

    def decode(self, ids: list[int]) -> str:  # type: ignore[override]
        return "".join(map(chr, ids))

    def is_silent(self, token: int) -> bool:
        return False

    def is_raw_byte(self, token: int) -> bool:
        return False


def _stopped(text: str, stops: list[str]) -> tuple[list[str], bool]:
    stream = TextStream(_Letters(), stops)  # type: ignore[arg-type]
    pieces = []
    for letter in text:
        pieces.append(stream.push(ord(letter)))
        if stream.stopped:
            break
    pieces.append(stream.finish())
    return pieces, stream.stopped


def test_a_possible_stop_string_is_held_until_it_is_decided() -> None:
    assert _stopped("aEND", ["END"]) == (["a", "", "", "", ""], True)
    assert _stopped("aENx", ["END"]) == (["a", "", "", "ENx", ""], False)
    assert _stopped("aEN", ["END"]) == (["a", "", "", "EN"], False)
    assert _stopped("EENDx", ["END"]) == (["", "E", "", "", ""], True)


def test_the_stop_string_that_ends_first_counts_and_of_those_the_longest() -> None:
    assert "".join(_stopped("xabc", ["abc", "b"])[0]) == "xa"
    assert "".join(_stopped("xabc", ["c", "abc", "bc"])[0]) == "x"


@settings(deadline=None, max_examples=300)
@given(
    text=st.text("ab\n", max_size=30),
    stops=st.lists(st.text("ab\n", min_size=1, max_size=5), min_size=1, max_size=3),
    cuts=st.sets(st.integers(1, 29)),
)
def test_stops_do_not_depend_on_how_the_text_is_cut(text: str, stops: list[str], cuts: set[int]) -> None:
    places = [0, *sorted(cut for cut in cuts if cut < len(text)), len(text)]
    runs = [text[start:end] for start, end in pairwise(places)]

    class Runs(_Letters):
        def decode(self, ids: list[int]) -> str:  # type: ignore[override]
            return "".join(runs[number] for number in ids)

    stream = TextStream(Runs(), stops)  # type: ignore[arg-type]
    pieces = [stream.push(number) for number in range(len(runs))]
    whole = "".join([*pieces, stream.finish()])
    letters, stopped = _stopped(text, stops)
    assert (whole, stream.stopped) == ("".join(letters), stopped)
    assert stopped == any(stop in text for stop in stops)
    assert text.startswith(whole)
    assert not any(stop in whole for stop in stops)
    assert stopped or whole == text


def test_a_single_string_is_one_stop_and_not_its_letters() -> None:
    stream = TextStream(_Letters(), "ab")  # type: ignore[arg-type]
    assert [stream.push(ord("b")), stream.push(ord("a")), stream.push(ord("b"))] == ["b", "", ""]
    assert stream.stopped
    assert stream.push(ord("x")) == stream.finish() == ""


@pytest.mark.parametrize("stops", [[""], [None], ["a" * 1025], ["a"] * 65, [b"a"]])
def test_bad_stop_strings_are_refused(stops: list[str]) -> None:
    with pytest.raises(SettingsError, match="stop string"):
        TextStream(_Letters(), stops)  # type: ignore[arg-type]
