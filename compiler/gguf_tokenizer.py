"""tokenizer.json, tokenizer_config.json and generation_config.json from the vocabulary inside a GGUF file.

Two models: `gpt2` (byte-level BPE with its merges) and `llama` (SentencePiece BPE, whose merges are found again from
the scores). The result is built and serialised by the tokenizers library.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgemem.compiler.fields import Fields
from edgemem.compiler.gguf_file import GgufFile, StringArray
from edgemem.compiler.tokenizer_files import checked_generation, dump_json
from edgemem.runtime.errors import TokenizerMismatch, UnsupportedModel

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# Tokens that end a turn in common chat formats; used only if the file's own chat template writes them.
_TURN_ENDS = ("<|im_end|>", "<end_of_turn>", "<|eot_id|>", "<|end|>")


@dataclass(frozen=True)
class _Style:
    """How text is cut before byte-level BPE. `pattern`: a regular expression of pieces, None for GPT-2's own."""

    pattern: str | None = None
    single_digits: bool = False
    compose: bool = False  # Unicode NFC first
    whole_words_first: bool = False
    adds_bos: bool = False


_LLAMA3 = _Style(rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}{{1,3}}|{_REST}", whole_words_first=True, adds_bos=True)
_QWEN2 = _Style(rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}|{_REST}", compose=True)
_STYLES = {
    "default": _Style(),
    "gpt-2": _Style(),
    "smollm": _Style(single_digits=True),
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "qwen2": _QWEN2,
}


@dataclass(frozen=True)
class _Vocabulary:
    tokens: list[str]
    types: list[int]
    ids: dict[str, int]


def build_tokenizer_files(file: GgufFile, rows: int) -> dict[str, bytes]:
    """The three files by name. `rows`: the rows of the embedding, which no token id may reach.

    Raises TokenizerMismatch for a vocabulary that is missing, broken or too large, UnsupportedModel for a kind of
    tokenizer that is not built.
    """
    fields = Fields(file.metadata, file.path, "tokenizer.ggml.")
    vocabulary = _vocabulary(file, rows)
    model = fields.text("model")
    if model == "gpt2":
        tokenizer, adds_bos = _byte_level(file, fields, vocabulary)
    elif model == "llama":
        tokenizer, adds_bos = _sentencepiece(file, fields, vocabulary), True
    else:
        raise UnsupportedModel(
            f"tokenizer model {ascii(model)[:60]} is not supported", where=file.path, wanted="gpt2 or llama"
        )
    special = {
        name: _token_id(fields, f"{name}_token_id", vocabulary) for name in ("bos", "eos", "eot", "unknown", "padding")
    }
    _add_tokens(tokenizer, vocabulary, [special["bos"], special["eos"], special["eot"]])
    settings = _settings(file, vocabulary, special)
    first = special["bos"] if fields.flag("add_bos_token", adds_bos) else None
    last = special["eos"] if fields.flag("add_eos_token", False) else None
    _frame(tokenizer, file, vocabulary, first, last)
    settings.update(add_bos_token=first is not None, add_eos_token=last is not None)
    generation = {
        "bos_token_id": special["bos"],
        "eos_token_id": _ends(vocabulary, special, settings.get("chat_template", "")),
        "pad_token_id": special["padding"],
    }
    generation = {key: value for key, value in generation.items() if value is not None}
    return {
        "tokenizer.json": tokenizer.to_str().encode(),
        "tokenizer_config.json": dump_json(settings),
        "generation_config.json": dump_json(checked_generation(generation, file.path, rows)),
    }


def _vocabulary(file: GgufFile, rows: int) -> _Vocabulary:
    tokens = _strings(file, "tokenizer.ggml.tokens")
    if not 0 < len(tokens) <= rows:
        raise TokenizerMismatch(
            "the tokenizer and the embedding differ",
            where=file.path,
            got=f"{len(tokens)} tokens",
            wanted=f"1 to {rows}",
        )
    ids = {token: index for index, token in enumerate(tokens)}
    if len(ids) != len(tokens):
        twice = next(token for index, token in enumerate(tokens) if ids[token] != index)
        raise TokenizerMismatch("a token is in the vocabulary twice", where=file.path, got=ascii(twice)[:80])
    types = _numbers(file, "tokenizer.ggml.token_type", len(tokens), "iu") or [_NORMAL] * len(tokens)
    return _Vocabulary(tokens, types, ids)


def _strings(file: GgufFile, key: str) -> list[str]:
    value = file.metadata.get(key)
    if not isinstance(value, StringArray):
        raise TokenizerMismatch(f"{key} is missing or no list of texts", where=file.path)
    return value.decode()


def _numbers(file: GgufFile, key: str, count: int, kinds: str) -> list[Any] | None:
    value = file.metadata.get(key)
    if value is None:
        return None
    if not isinstance(value, np.ndarray) or value.dtype.kind not in kinds or len(value) != count:
        raise TokenizerMismatch(f"{key} is malformed", where=file.path, wanted=f"{count} numbers")
    return list(value.tolist())


def _token_id(fields: Fields, key: str, vocabulary: _Vocabulary) -> int | None:
    if not fields.has(key):
        return None
    return fields.integer(key, least=0, most=len(vocabulary.tokens) - 1)


def _byte_level(file: GgufFile, fields: Fields, vocabulary: _Vocabulary) -> tuple[Tokenizer, bool]:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    name = fields.text("pre", "default")
    style = _STYLES.get(name)
    if style is None:
        raise UnsupportedModel(
            f"pre-tokenizer {ascii(name)[:60]} is not supported", where=file.path, wanted=f"one of {', '.join(_STYLES)}"
        )
    merges = _merges(file, vocabulary)
    tokenizer = Tokenizer(models.BPE(vocabulary.ids, merges, ignore_merges=style.whole_words_first))
    if style.compose:
        tokenizer.normalizer = normalizers.NFC()
    steps: list[Any] = []
    if style.single_digits:
        steps.append(pre_tokenizers.Digits(individual_digits=True))
    if style.pattern is not None:
        steps.append(pre_tokenizers.Split(Regex(style.pattern), "isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=style.pattern is None))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, style.adds_bos


def _merges(file: GgufFile, vocabulary: _Vocabulary) -> list[tuple[str, str]]:
    merges = []
    for line in _strings(file, "tokenizer.ggml.merges"):
        left, _, right = line.partition(" ")
        if left not in vocabulary.ids or right not in vocabulary.ids or left + right not in vocabulary.ids:
            raise TokenizerMismatch(
                "a merge is not of this vocabulary",
                where=file.path,
                got=ascii(line)[:80],
                wanted="two tokens and their join",
            )
        merges.append((left, right))
    return merges


def _sentencepiece(file: GgufFile, fields: Fields, vocabulary: _Vocabulary) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, normalizers

    scores = _numbers(file, "tokenizer.ggml.scores", len(vocabulary.tokens), "f")
    if scores is None or not all(map(math.isfinite, scores)):
        raise TokenizerMismatch("tokenizer.ggml.scores is missing or not finite", where=file.path)
    unknown = vocabulary.tokens[fields.integer("unknown_token_id", 0, least=0, most=len(vocabulary.tokens) - 1)]
    merges = merges_from_scores(vocabulary.tokens, vocabulary.types, scores)
    tokenizer = Tokenizer(models.BPE(vocabulary.ids, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    spaces: list[Any] = [normalizers.Replace(" ", "▁")]
    steps: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if fields.flag("add_space_prefix", True):
        spaces.insert(0, normalizers.Prepend("▁"))
        steps.append(decoders.Strip(" ", 1, 0))
    tokenizer.normalizer = normalizers.Sequence(spaces)
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer


def merges_from_scores(tokens: list[str], types: list[int], scores: list[float]) -> list[tuple[str, str]]:
    """The merges of a SentencePiece BPE model: every cut of a piece into two pieces, the best-scored pieces first.

    Control, unknown and byte tokens take no part, so that no text is ever merged into one.
    """
    plain = {token: index for index, token in enumerate(tokens) if types[index] in (_NORMAL, _USER_DEFINED)}
    ranked: list[tuple[float, int, int]] = []
    for token, index in plain.items():
        for cut in range(1, len(token)):
            left = plain.get(token[:cut])
            if left is not None and (right := plain.get(token[cut:])) is not None:
                ranked.append((-scores[index], left, right))
    ranked.sort()
    return [(tokens[left], tokens[right]) for _, left, right in ranked]


def _add_tokens(tokenizer: Tokenizer, vocabulary: _Vocabulary, named: Iterable[int | None]) -> None:
    """Control and `named` tokens become special; user-defined ones are matched in the text but stay text."""
    from tokenizers import AddedToken

    control = {index for index, kind in enumerate(vocabulary.types) if kind in (_CONTROL, _UNKNOWN)}
    control.update(index for index in named if index is not None)
    added = sorted(control | {index for index, kind in enumerate(vocabulary.types) if kind == _USER_DEFINED})
    tokenizer.add_tokens(
        [AddedToken(vocabulary.tokens[index], special=index in control, normalized=False) for index in added]
    )


def _frame(tokenizer: Tokenizer, file: GgufFile, vocabulary: _Vocabulary, first: int | None, last: int | None) -> None:
    """Put the beginning-of-text and end-of-text tokens around every text, where the file asks for them."""
    from tokenizers import processors

    if first is None and last is None:
        return
    names = [None if index is None else vocabulary.tokens[index] for index in (first, last)]
    ids = [(vocabulary.tokens[index], index) for index in {first, last} if index is not None]
    single = [name for name in (names[0], "$A", names[1]) if name is not None]
    pair = single + [f"{name}:1" for name in (names[0], "$B", names[1]) if name is not None]
    try:
        tokenizer.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=ids)
    except ValueError as problem:  # a name with a colon or a dollar has a meaning of its own in templates
        raise TokenizerMismatch("the special tokens have impossible names", where=file.path, got=problem) from problem


def _settings(file: GgufFile, vocabulary: _Vocabulary, special: dict[str, int | None]) -> dict[str, Any]:
    names = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
    settings: dict[str, Any] = {}
    for key, name in names.items():
        index = special[key]
        if index is not None:
            settings[name] = vocabulary.tokens[index]
    if "tokenizer.chat_template" in file.metadata:
        settings["chat_template"] = Fields(file.metadata, file.path).text("tokenizer.chat_template")
    return settings


def _ends(vocabulary: _Vocabulary, special: dict[str, int | None], template: str) -> list[int]:
    """Ids that end an answer: end of text, end of turn, and the turn's end that the chat template writes."""
    ends = [index for index in (special["eos"], special["eot"]) if index is not None]
    for token in _TURN_ENDS:
        index = vocabulary.ids.get(token)
        if index is not None and token in template and vocabulary.types[index] in (_CONTROL, _USER_DEFINED):
            ends.append(index)
    return ends
