"""The tokenizer built from a GGUF vocabulary: the pieces it cuts, the ids it gives, and the files it writes."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import gguf
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_gguf import write_byte_level_vocabulary
from tiny_models import CHAT_TEMPLATE, write_tokenizer
from tokenizers import Tokenizer, pre_tokenizers

from edgemem.compiler.checkpoint import open_checkpoint
from edgemem.compiler.gguf_file import GgufFile
from edgemem.compiler.gguf_tokenizer import build_tokenizer_files, merges_from_scores
from edgemem.runtime.errors import CheckpointError, TokenizerMismatch, UnsupportedModel

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
ROWS = 10_000
Fill = Callable[[gguf.GGUFWriter], None]


def files_from(path: Path, fill: Fill, rows: int = ROWS) -> dict[str, bytes]:
    writer = gguf.GGUFWriter(path, "llama")
    fill(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = GgufFile(path)
    try:
        return build_tokenizer_files(file, rows)
    finally:
        file.close()


def tokenizer_of(files: dict[str, bytes]) -> Tokenizer:
    return Tokenizer.from_str(files["tokenizer.json"].decode())


def byte_level(pre: str, words: tuple[str, ...] = (), **keys: Any) -> Fill:
    """A byte-level vocabulary of all bytes, `words` built letter by letter, and two control tokens."""
    tokens, merges = sorted(pre_tokenizers.ByteLevel.alphabet()), []
    for word in words:
        for length in range(2, len(word) + 1):
            if word[:length] not in tokens:
                tokens.append(word[:length])
                merges.append(f"{word[: length - 1]} {word[length - 1]}")
    tokens = ["<|im_start|>", "<|im_end|>", *tokens]

    def fill(writer: gguf.GGUFWriter) -> None:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre)
        writer.add_token_list(tokens)
        writer.add_token_types([CONTROL] * 2 + [NORMAL] * (len(tokens) - 2))
        writer.add_token_merges(merges)
        writer.add_bos_token_id(0)
        writer.add_eos_token_id(1)
        for key, value in keys.items():
            getattr(writer, key)(value)

    return fill


def sentencepiece(pieces: dict[str, float], extra: dict[str, int] | None = None, **keys: Any) -> Fill:
    """<unk>, <s>, </s>, all bytes, then `pieces` with their scores and `extra` tokens with their types."""
    extra = extra or {}
    bytes_ = [f"<0x{value:02X}>" for value in range(256)]
    tokens = ["<unk>", "<s>", "</s>", *bytes_, *pieces, *extra]

    def fill(writer: gguf.GGUFWriter) -> None:
        writer.add_tokenizer_model("llama")
        writer.add_token_list(tokens)
        writer.add_token_types([UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, *[NORMAL] * len(pieces), *extra.values()])
        writer.add_token_scores([0.0] * 259 + list(pieces.values()) + [0.0] * len(extra))
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        writer.add_unk_token_id(0)
        for key, value in keys.items():
            getattr(writer, key)(value)

    return fill


def learned_pieces(words: str) -> dict[str, float]:
    """Pieces of every prefix and suffix of some words, longer ones scored lower, as SentencePiece does."""
    letters = dict.fromkeys("▁" + words.replace(" ", ""))
    longer = {
        word[a:b]
        for word in ("▁" + word for word in words.split())
        for a in (0, 1)
        for b in range(a + 2, len(word) + 1)
    }
    longer |= {word[-2:] for word in words.split() if len(word) > 2}
    ranked = [*sorted(longer, key=lambda piece: (len(piece), piece)), *letters]
    return {piece: -float(rank) for rank, piece in enumerate(ranked)}


def sentencepiece_truth(text: str, pieces: dict[str, float]) -> list[str]:
    """SentencePiece BPE as its paper tells it: always join the neighbours whose join has the best score."""
    symbols = list(text.replace(" ", "▁"))
    while True:
        joins = [(pieces[a + b], -i) for i, (a, b) in enumerate(pairwise(symbols)) if a + b in pieces]
        if not joins:
            break
        place = -max(joins)[1]
        symbols[place : place + 2] = ["".join(symbols[place : place + 2])]
    return [
        token
        for symbol in symbols
        for token in ([symbol] if symbol in pieces else [f"<0x{value:02X}>" for value in symbol.encode()])
    ]


@pytest.mark.parametrize(
    ("pre", "pieces"),
    [
        ("smollm", ["Ġ", "1", "2", "3", "4", "5", "Ġabc"]),
        ("gpt-2", ["Ġ1234", "5", "Ġabc"]),
        ("default", ["Ġ1234", "5", "Ġabc"]),
        ("llama-bpe", ["Ġ", "123", "45", "Ġabc"]),
        ("llama3", ["Ġ", "123", "45", "Ġabc"]),
        ("qwen2", ["Ġ", "1", "2", "3", "4", "5", "Ġabc"]),
    ],
)
def test_digits_are_cut_as_each_pre_tokenizer_demands(tmp_path: Path, pre: str, pieces: list[str]) -> None:
    words = ("Ġ1234", "1234", "Ġabc", "45")
    files = files_from(tmp_path / "x", byte_level(pre, words, add_add_bos_token=False))
    assert tokenizer_of(files).encode(" 12345 abc").tokens == pieces


@pytest.mark.parametrize(
    ("pre", "text", "pieces"),
    [
        ("llama-bpe", "abc\n\n\nabc", ["abc", "ĊĊĊ", "abc"]),
        ("llama-bpe", "WE'LL", ["WE", "'LL"]),
        ("gpt-2", "we'll", ["we", "'ll"]),
        ("gpt-2", "WE'LL", ["WE", "'", "LL"]),
        ("qwen2", "e\u0301", ["Ã©"]),
        ("gpt-2", "e\u0301", ["e", "Ì", "ģ"]),
    ],
)
def test_the_rest_of_the_pre_tokenizers(tmp_path: Path, pre: str, text: str, pieces: list[str]) -> None:
    words = ("abc", "ĊĊĊ", "WE", "'LL", "LL", "we", "'ll", "Ã©", "abcĊ", "cĊ")
    files = files_from(tmp_path / "x", byte_level(pre, words, add_add_bos_token=False))
    assert tokenizer_of(files).encode(text).tokens == pieces


def test_llama3_takes_a_whole_word_before_its_merges(tmp_path: Path) -> None:
    def fill(writer: gguf.GGUFWriter) -> None:
        tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "ab", "bc", "abc", "<end>"]
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("llama-bpe")
        writer.add_token_list(tokens)
        writer.add_token_types([NORMAL] * 259 + [CONTROL])
        writer.add_token_merges(["b c"])

    assert tokenizer_of(files_from(tmp_path / "x", fill)).encode("abc").tokens == ["abc"]


@pytest.mark.parametrize("pre", ["smollm", "gpt-2", "llama-bpe", "qwen2"])
@given(text=st.text(max_size=60))
@settings(deadline=None, max_examples=150)
def test_any_text_comes_back(tmp_path_factory: pytest.TempPathFactory, pre: str, text: str) -> None:
    base = tmp_path_factory.getbasetemp() / f"round-{pre}.json"
    if not base.exists():
        files = files_from(base.with_suffix(".gguf"), byte_level(pre, ("Ġthe", "1234"), add_add_bos_token=False))
        base.write_bytes(files["tokenizer.json"])
    tokenizer = Tokenizer.from_file(str(base))
    wanted = unicodedata.normalize("NFC", text) if pre == "qwen2" else text
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == wanted


def test_a_whole_byte_level_tokenizer_gives_the_same_ids(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    original = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    files = files_from(
        tmp_path / "x", lambda writer: write_byte_level_vocabulary(writer, tmp_path / "tokenizer.json"), rows=320
    )
    tokenizer = tokenizer_of(files)
    for text in ("The lamp was on the table.", "<|im_start|>user\nhi<|im_end|>", "  spaces\n\n", "Zürich 東京 🙂 123"):
        assert tokenizer.encode(text).ids == original.encode(text).ids
        assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text
    assert tokenizer.decode([1, 2], skip_special_tokens=True) == ""
    config = json.loads(files["tokenizer_config.json"])
    assert config["chat_template"] == CHAT_TEMPLATE
    assert (config["bos_token"], config["eos_token"]) == ("<|endoftext|>", "<|endoftext|>")
    assert config["add_bos_token"] is False
    generation = json.loads(files["generation_config.json"])
    assert generation == {"bos_token_id": 0, "eos_token_id": [0, 2], "pad_token_id": 0}  # 2: the template's <|im_end|>


@pytest.mark.parametrize(
    ("pre", "keys", "ids"),
    [
        ("llama-bpe", {}, [0]),
        ("gpt-2", {}, []),
        ("gpt-2", {"add_add_bos_token": True}, [0]),
        ("llama-bpe", {"add_add_bos_token": False}, []),
        ("gpt-2", {"add_add_eos_token": True}, [1]),
        ("llama-bpe", {"add_add_eos_token": True}, [0, 1]),
    ],
)
def test_text_is_framed_as_the_file_asks(tmp_path: Path, pre: str, keys: dict[str, Any], ids: list[int]) -> None:
    files = files_from(tmp_path / "x", byte_level(pre, ("the",), **keys))
    assert tokenizer_of(files).encode("").ids == ids
    assert json.loads(files["tokenizer_config.json"])["add_bos_token"] is (0 in ids)


WORDS = "the lamp was on the table and all there is to the river ran past some stones when rain came"


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_joins_by_score(tmp_path: Path, prefix: bool) -> None:
    pieces = learned_pieces(WORDS)
    tokenizer = tokenizer_of(
        files_from(tmp_path / "x", sentencepiece(pieces, add_add_bos_token=False, add_add_space_prefix=prefix))
    )
    for text in (WORDS, "there there", "  two  spaces ", "tablestones", "Ünknown 東京\n", "the", " the", "a"):
        wanted = sentencepiece_truth((" " if prefix else "") + text, pieces)
        encoding = tokenizer.encode(text)
        assert encoding.tokens == wanted
        assert tokenizer.decode(encoding.ids) == text


@given(text=st.text(max_size=40).filter(lambda text: "▁" not in text))
@settings(deadline=None, max_examples=150)
def test_any_text_comes_back_from_sentencepiece(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    base = tmp_path_factory.getbasetemp() / "sentencepiece.json"
    if not base.exists():
        files = files_from(base.with_suffix(".gguf"), sentencepiece(learned_pieces(WORDS)))
        base.write_bytes(files["tokenizer.json"])
    tokenizer = Tokenizer.from_file(str(base))
    ids = tokenizer.encode(text).ids
    assert ids[0] == 1
    assert tokenizer.decode(ids) == text


def test_sentencepiece_special_tokens(tmp_path: Path) -> None:
    extra = {
        "<start_of_turn>": CONTROL,
        "<end_of_turn>": CONTROL,
        "\n\n": USER_DEFINED,
        "  ": USER_DEFINED,
        "zz": UNUSED,
    }
    template = "<start_of_turn>{{ x }}<end_of_turn>"
    fill = sentencepiece(learned_pieces("the end"), extra, add_add_space_prefix=False, add_chat_template=template)
    files = files_from(tmp_path / "x", fill)
    tokenizer = tokenizer_of(files)
    encoding = tokenizer.encode("<start_of_turn>the\n\n  end<end_of_turn>")
    assert encoding.tokens == ["<s>", "<start_of_turn>", "the", "\n\n", "  ", "end", "<end_of_turn>"]
    assert tokenizer.decode(encoding.ids) == "the\n\n  end"
    generation = json.loads(files["generation_config.json"])
    assert generation["eos_token_id"] == [2, tokenizer.token_to_id("<end_of_turn>")]


def test_no_text_is_merged_into_a_control_token() -> None:
    tokens = ["<", "s", "<s", "a", "<0", "<a>", "ab", "b"]
    types = [NORMAL, NORMAL, CONTROL, NORMAL, BYTE, UNKNOWN, NORMAL, NORMAL]
    assert merges_from_scores(tokens, types, [0.0] * 8) == [("a", "b")]


def test_end_of_turn_ids_come_from_the_metadata_too(tmp_path: Path) -> None:
    fill = sentencepiece(learned_pieces("the end"), {"<|eot_id|>": CONTROL}, add_eot_token_id=263)
    files = files_from(tmp_path / "x", fill)
    assert tokenizer_of(files).id_to_token(263) is not None
    assert json.loads(files["generation_config.json"])["eos_token_id"] == [2, 263]


def test_a_vocabulary_of_gemmas_size_is_built_in_reasonable_work() -> None:
    count = 262_144
    tokens = [chr(0x4E00 + index) for index in range(512)]
    tokens += [tokens[index // 512] + tokens[index % 512] for index in range(count - 512)]
    merges = merges_from_scores(tokens, [NORMAL] * count, [-float(index) for index in range(count)])
    assert len(merges) == count - 512
    assert merges[0] == (tokens[0], tokens[0])


def broken(change: Callable[[gguf.GGUFWriter], None], model: str = "gpt2") -> Fill:
    def fill(writer: gguf.GGUFWriter) -> None:
        writer.add_tokenizer_model(model)
        change(writer)

    return fill


@pytest.mark.parametrize(
    ("fill", "message"),
    [
        (broken(lambda w: None), "tokens is missing"),
        (broken(lambda w: w.add_token_list([])), "tokens is missing"),
        (broken(lambda w: w.add_array("tokenizer.ggml.tokens", [1, 2])), "no list of texts"),
        (broken(lambda w: w.add_token_list(["a", "b", "a"])), "twice"),
        (broken(lambda w: w.add_token_list([str(i) for i in range(ROWS + 1)])), "differ"),
        (broken(lambda w: w.add_token_list(["a"])), "merges is missing"),
        (broken(lambda w: (w.add_token_list(["a", "b"]), w.add_token_merges(["a b"]))), "not of this vocabulary"),
        (broken(lambda w: (w.add_token_list(["a", "aa"]), w.add_token_merges(["aa"]))), "not of this vocabulary"),
        (broken(lambda w: (w.add_token_list(["a", "b"]), w.add_token_types([1]))), "token_type is malformed"),
        (broken(lambda w: w.add_token_list(["a", "b"]), "llama"), "scores"),
        (broken(lambda w: (w.add_token_list(["a"]), w.add_token_scores([float("nan")])), "llama"), "scores"),
        (broken(lambda w: (w.add_token_list(["a"]), w.add_token_scores([0.0, 1.0])), "llama"), "scores is malformed"),
    ],
)
def test_broken_vocabularies_are_refused(tmp_path: Path, fill: Fill, message: str) -> None:
    with pytest.raises(TokenizerMismatch) as caught:
        files_from(tmp_path / "x.gguf", fill)
    assert message in str(caught.value)
    assert "x.gguf" in str(caught.value)


@pytest.mark.parametrize("key", ["bos", "eos", "eot", "padding", "unknown"])
def test_ids_outside_the_vocabulary_are_refused(tmp_path: Path, key: str) -> None:
    def fill(writer: gguf.GGUFWriter) -> None:
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list(["a", "b", "ab"])
        writer.add_token_merges(["a b"])
        writer.add_uint32(f"tokenizer.ggml.{key}_token_id", 3)

    with pytest.raises(CheckpointError, match=f"{key}_token_id"):
        files_from(tmp_path / "x", fill)


def test_special_tokens_that_no_template_can_hold_are_refused(tmp_path: Path) -> None:
    def fill(writer: gguf.GGUFWriter) -> None:
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list(["a", "b", "ab", "$:x:"])
        writer.add_token_merges(["a b"])
        writer.add_bos_token_id(3)
        writer.add_add_bos_token(True)

    with pytest.raises(TokenizerMismatch, match="impossible names"):
        files_from(tmp_path / "x", fill)


@pytest.mark.parametrize(("model", "pre"), [("t5", "default"), ("bert", "default"), ("gpt2", "exotic")])
def test_other_kinds_of_tokenizers_are_named(tmp_path: Path, model: str, pre: str) -> None:
    def fill(writer: gguf.GGUFWriter) -> None:
        writer.add_tokenizer_model(model)
        writer.add_tokenizer_pre(pre)
        writer.add_token_list(["a", "b"])

    with pytest.raises(UnsupportedModel, match=pre if model == "gpt2" else model):
        files_from(tmp_path / "x", fill)


@pytest.mark.model
def test_the_real_smollm2(smollm2_gguf: Path) -> None:
    with open_checkpoint(smollm2_gguf) as checkpoint:
        files = checkpoint.tokenizer_files
    tokenizer = tokenizer_of(files)
    assert tokenizer.get_vocab_size() == 49152
    assert tokenizer.encode("<|im_start|>").ids == [1]
    assert tokenizer.encode("in 2024").tokens == ["in", "Ġ", "2", "0", "2", "4"]
    for text in (
        "Hello, world!",
        "  def f(x):\n\treturn x**2\n",
        "Zürich – 東京 🙂",
        "<|im_start|>user\nHi<|im_end|>\n",
    ):
        assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text
    assert json.loads(files["generation_config.json"])["eos_token_id"] == [2]
    assert "<|im_start|>" in json.loads(files["tokenizer_config.json"])["chat_template"]
