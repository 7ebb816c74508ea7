"""Tokenizers: text never becomes a control token, golden texts and ids are checked, bad files give one clear error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_tokenizers import CHATML, byte_level, files_of, opened, sentencepiece

from edgemem.runtime.errors import ContextError, SettingsError, TokenizerMismatch
from edgemem.runtime.manifest import Probe, TokenizerRecord
from edgemem.runtime.package import Package
from edgemem.runtime.tokenizer import Piece, Tokenizer

# Each reaches its control tokens by another road: matched in the text, whole in the vocabulary, by merges, unmarked.
HOSTILE = {
    "byte level": (opened(byte_level()), "<|im_end|>"),
    "whole in the vocabulary": (opened(byte_level(reach=True)), "<|im_end|>"),
    "sentencepiece": (opened(sentencepiece()), "</s>"),
    "reached by merges": (opened(sentencepiece(("<s>", "<|end|>"), reach=True)), "<|end|>"),
    "not marked special": (opened(byte_level(plain_added=["<|fim|>"])), "<|fim|>"),
    "of other letters": (opened(byte_level(plain_added=["<｜end▁of▁text｜>"])), "<｜end▁of▁text｜>"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_spelled_control_token_is_text_unless_it_is_asked_for(name: str) -> None:
    tokenizer, spelling = HOSTILE[name]
    control = tokenizer.controls[spelling]
    text = f"the {spelling} lamp{spelling}"
    literal = tokenizer.encode(text)
    assert control not in literal
    assert tokenizer.decode(literal) == text
    assert tokenizer.encode(text, special=True).count(control) == 2
    assert tokenizer.encode(text) == literal  # asking once did not leave the switch on


@pytest.mark.parametrize("name", HOSTILE)
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_no_text_gives_a_control_token_and_all_text_comes_back(name: str, data: st.DataObject) -> None:
    tokenizer, _ = HOSTILE[name]
    spellings = st.sampled_from(sorted(tokenizer.controls))
    cut = spellings.flatmap(lambda spelling: st.integers(0, len(spelling)).map(lambda place: spelling[:place]))
    parts = data.draw(st.lists(spellings | cut | st.text(max_size=4) | st.just("<unk>"), max_size=8))
    text = "".join(parts)
    ids = tokenizer.encode(text)
    assert set(ids).isdisjoint(tokenizer.controls.values())
    if "▁" not in text:  # SentencePiece's space
        assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("name", ["byte level", "sentencepiece"])
def test_lone_surrogates_become_replacement_characters(name: str) -> None:
    tokenizer, _ = HOSTILE[name]
    assert tokenizer.decode(tokenizer.encode("a\ud83cb\udf0d")) == "a\ufffdb\ufffd"


def test_a_megabyte_is_encoded_and_more_than_four_are_refused() -> None:
    tokenizer, _ = HOSTILE["byte level"]
    assert len(tokenizer.encode("x" * (1 << 20))) == 1 << 20
    for text in ("x" * ((4 << 20) + 1), "你" * (2 << 20)):
        with pytest.raises(ContextError, match="too long"):
            tokenizer.encode(text)


def test_truncation_and_padding_of_the_file_are_switched_off() -> None:
    plain = json.loads(byte_level())
    plain["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    plain["padding"] = {
        "strategy": {"Fixed": 64},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "<|endoftext|>",
    }
    assert len(opened(json.dumps(plain).encode()).encode("abcdefgh")) == 8


def test_pieces_are_encoded_as_one_text_and_only_control_pieces_are_control_tokens() -> None:
    tokenizer, end = HOSTILE["byte level"]
    pieces = [Piece("<|im_start|>", True), Piece("a\n\nb", False), Piece(end, True)]
    assert tokenizer.encode_pieces(pieces) == tokenizer.encode(f"<|im_start|>a\n\nb{end}", special=True)
    hostile = [Piece("<|im_start|>", True), Piece(f"a{end}b", False), Piece(end, True)]
    ids = tokenizer.encode_pieces(hostile)
    assert [token for token in ids if token in tokenizer.controls.values()] == [1, 2]
    assert tokenizer.decode(ids) == f"a{end}b"


def test_ids_of_ends_and_beginning_come_from_the_files() -> None:
    named = {"bos_token": {"content": "<|im_start|>"}, "eos_token": "<|im_end|>"}
    both = opened(byte_level(), named, {"bos_token_id": 1, "eos_token_id": [0, 2]})
    assert (both.bos_id, both.eos_ids) == (1, {0, 2})
    assert both.named_tokens == {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    one = opened(byte_level(), named, {"eos_token_id": 0})
    assert (one.bos_id, one.eos_ids) == (1, {0, 2})  # the tokenizer's own end counts too
    broken = opened(byte_level(), {"bos_token": "\ud800", "eos_token": "<|im_end|>"})
    assert (broken.bos_id, broken.eos_ids) == (None, {2})
    none = opened(byte_level())
    assert (none.bos_id, none.eos_ids, none.adds_bos, none.chat_template) == (None, frozenset(), False, None)


def test_an_end_token_that_is_no_added_token_is_a_control_token_too() -> None:
    tokenizer = opened(byte_level(), None, {"eos_token_id": opened(byte_level()).encode("the")[0]})
    assert set(tokenizer.encode("the lamp")).isdisjoint(tokenizer.eos_ids)
    assert tokenizer.decode(tokenizer.encode("the lamp")) == "the lamp"


def test_plain_prompts_begin_as_the_setting_says_or_else_as_the_post_processor_does() -> None:
    plain = json.loads(byte_level())
    plain["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}},
    }
    adding, generation = json.dumps(plain).encode(), {"bos_token_id": 0}
    assert opened(adding, None, generation).adds_bos
    assert not opened(adding, {"add_bos_token": False}, generation).adds_bos
    assert not opened(byte_level(), None, generation).adds_bos
    assert opened(byte_level(), {"add_bos_token": True}, generation).adds_bos
    assert not opened(byte_level(), {"add_bos_token": True}).adds_bos  # there is none to add
    assert opened(adding, None, generation).encode("a") == opened(byte_level()).encode("a")
    assert opened(adding, None, generation).encode_text("a") == [0, *opened(byte_level()).encode("a")]
    assert opened(byte_level(), None, generation).encode_text("a") == opened(byte_level()).encode("a")


def test_several_named_templates_give_the_default_one() -> None:
    named = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    assert opened(byte_level(), {"chat_template": named}).chat_template == "d"
    with pytest.raises(TokenizerMismatch, match="named default"):
        opened(byte_level(), {"chat_template": named[:1]})
    with pytest.raises(TokenizerMismatch, match="named default"):
        opened(byte_level(), {"chat_template": [{"name": ["default"]}, 3]})
    with pytest.raises(TokenizerMismatch, match="no text"):
        opened(byte_level(), {"chat_template": 3})


@pytest.mark.parametrize("stored", [-1, 10**6, "2", True, 1.0, [2, None], [[2]]])
@pytest.mark.parametrize("name", ["bos_token_id", "eos_token_id"])
def test_ids_that_are_no_tokens_are_refused(name: str, stored: Any) -> None:
    with pytest.raises(TokenizerMismatch, match=name):
        opened(byte_level(), None, {name: stored})


@pytest.mark.parametrize("raw", [b"", b"{}", b"[]", b"\xff\x00", byte_level()[:-30], b'{"model": {}}'])
def test_a_malformed_tokenizer_is_refused(raw: bytes) -> None:
    with pytest.raises(TokenizerMismatch, match=r"tokenizer\.json is malformed"):
        opened(raw)


@pytest.mark.parametrize(
    "key", ["continuing_subword_prefix", r"continuing_subword_prefi\u0078", r"c\u006Fntinuing_subword_prefix"]
)
def test_a_prefix_that_would_abort_the_process_is_refused(key: str) -> None:
    raw = byte_level().replace(b'"continuing_subword_prefix":null', f'"{key}":"["'.encode())
    assert json.loads(raw)["model"]["continuing_subword_prefix"] == "["
    with pytest.raises(TokenizerMismatch, match="continuing_subword_prefix"):
        opened(raw)


def test_a_vocabulary_with_backslashes_and_escapes_is_taken() -> None:
    plain = json.loads(byte_level())
    for token in (r"\u0041", "\x7f", "\u00e9", '\\"'):
        plain["model"]["vocab"][token] = len(plain["model"]["vocab"]) + 10
    assert opened(json.dumps(plain).encode()).vocabulary > 260


def test_an_unknown_token_that_is_not_there_gives_one_error() -> None:
    plain = json.loads(sentencepiece())
    plain["model"]["byte_fallback"] = False
    del plain["model"]["vocab"]["<unk>"]
    plain["added_tokens"] = []
    with pytest.raises(TokenizerMismatch, match="cannot encode"):
        opened(json.dumps(plain).encode()).encode("🌍")


@pytest.mark.parametrize("name", ["tokenizer_config.json", "generation_config.json"])
@pytest.mark.parametrize("raw", [b"", b"[]", b"{", b"\xff", b'{"a": 1, "a": 2}', b"[" * 100_000])
def test_malformed_settings_are_refused(name: str, raw: bytes) -> None:
    with pytest.raises(TokenizerMismatch, match=name):
        Tokenizer(files_of(byte_level()) | {name: raw}, 1000)


def test_a_tokenizer_with_more_ids_than_the_model_is_refused() -> None:
    count = opened(byte_level()).vocabulary
    assert Tokenizer(files_of(byte_level()), count).vocabulary == count
    with pytest.raises(TokenizerMismatch, match="another model"):
        Tokenizer(files_of(byte_level()), count - 1)


def test_probes_find_another_tokenizer() -> None:
    tokenizer = opened(byte_level())
    record = TokenizerRecord(tokenizer.vocabulary, tokenizer.make_probes())
    assert len(record.probes) == 3
    tokenizer.check_probes(record)
    plain = json.loads(byte_level())
    plain["model"]["merges"].pop(0)
    with pytest.raises(TokenizerMismatch, match="golden text"):
        opened(json.dumps(plain).encode()).check_probes(record)
    with pytest.raises(TokenizerMismatch, match="not the one"):
        opened(byte_level((*CHATML, "<|more|>"))).check_probes(record)
    changed = TokenizerRecord(tokenizer.vocabulary, (Probe("the lamp", (1,)),))
    with pytest.raises(TokenizerMismatch, match="golden text"):
        tokenizer.check_probes(changed)


def test_ids_that_cannot_be_decoded_are_refused_and_unknown_ones_are_silent() -> None:
    tokenizer = opened(byte_level())
    assert tokenizer.decode([*tokenizer.encode("a"), 2, 100_000]) == "a"
    assert [tokenizer.is_silent(token) for token in (2, 100_000, tokenizer.encode("a")[0])] == [True, True, False]
    for bad in ([-1], [1 << 40], ["a"], [None]):
        with pytest.raises(SettingsError, match="decoded"):
            tokenizer.decode(bad)  # type: ignore[arg-type]


def test_only_byte_fallback_tokens_are_raw_bytes() -> None:
    spm, plain = opened(sentencepiece()), opened(byte_level())
    assert [spm.is_raw_byte(token) for token in spm.encode("Hello🌍")] == [False, *[True] * 4]
    assert sum(spm.is_raw_byte(token) for token in range(spm.vocabulary)) == 256
    assert not any(plain.is_raw_byte(token) for token in range(plain.vocabulary))


def test_a_package_gives_its_tokenizer(tiny_package: Path) -> None:
    with Package.open(tiny_package) as package:
        tokenizer = Tokenizer.open(package)
        assert tokenizer.decode(tokenizer.encode("The lamp <|im_end|>")) == "The lamp <|im_end|>"
        assert tokenizer.eos_ids == {0, 2}
        assert tokenizer.make_probes() == package.manifest.tokenizer.probes


@pytest.mark.parametrize(
    ("part", "value", "match"),
    [
        ("normalizer", {"type": "Precompiled", "precompiled_charsmap": "AAAA"}, "malformed"),
        ("normalizer", {"type": "Replace", "pattern": {"String": ""}, "content": "a"}, None),
    ],
)
def test_a_panic_of_the_library_is_an_error_of_the_tokenizer(part: str, value: Any, match: str | None) -> None:
    hostile = json.loads(byte_level())
    hostile[part] = value
    with pytest.raises(TokenizerMismatch, match=match):
        opened(json.dumps(hostile).encode()).encode("the lamp")


def test_a_tokenizer_that_encodes_at_random_is_refused() -> None:
    random = json.loads(byte_level())
    random["model"]["dropout"] = 0.5
    with pytest.raises(TokenizerMismatch, match=r"at random(.|\n)*dropout to null"):
        opened(json.dumps(random).encode())
