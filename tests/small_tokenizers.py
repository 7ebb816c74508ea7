"""Small real tokenizers of the kinds that models come with, as files: byte-level, SentencePiece-like, and hostile ones.

Import as `from small_tokenizers import byte_level, sentencepiece, opened`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Library

from edgemem.runtime.tokenizer import Tokenizer

CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_WORDS = ["▁the", "▁lamp", "he", "am", "▁a", "in", "▁", "▁▁", "▁Hello", "Hello", "user", "\n"]


def byte_level(specials: Sequence[str] = CHATML, *, plain_added: Sequence[str] = (), reach: bool = False) -> bytes:
    """tokenizer.json of a byte-level BPE. With `reach`, its own vocabulary gives the special tokens whole."""
    vocabulary = {token: number for number, token in enumerate(specials)}
    for letter in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocabulary[letter] = len(vocabulary)
    merges = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("i", "n"), ("Ċ", "Ċ"), ("Ġ", "Ġ"), ("<", "|"), ("|", ">")]
    for left, right in merges:
        vocabulary[left + right] = len(vocabulary)
    library = Library(models.BPE(vocabulary, merges, ignore_merges=reach))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not reach)
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    library.add_tokens([AddedToken(token, special=False, normalized=False) for token in plain_added])
    return str(library.to_str()).encode()


def sentencepiece(specials: Sequence[str] = ("<s>", "</s>"), *, strip: bool = True, reach: bool = False) -> bytes:
    """tokenizer.json of a BPE with byte fallback and "▁" for spaces; with `strip`, as Llama 2 has its first space.

    With `reach`, merges lead to the last special token.
    """
    vocabulary = {"<unk>": 0} | {token: number for number, token in enumerate(specials, 1)}
    for value in range(256):
        vocabulary[f"<0x{value:02X}>"] = len(vocabulary)
    merges: list[tuple[str, str]] = []
    for word in [*_WORDS, *map(chr, range(33, 127)), *(specials[-1:] if reach else ())]:
        for end in range(1, len(word) + 1):
            vocabulary.setdefault(word[end - 1], len(vocabulary))
            vocabulary.setdefault(word[:end], len(vocabulary))
            if end > 1 and (word[: end - 1], word[end - 1]) not in merges:
                merges.append((word[: end - 1], word[end - 1]))
    library = Library(models.BPE(vocabulary, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    prepend = [normalizers.Prepend("▁")] if strip else []
    library.normalizer = normalizers.Sequence([*prepend, normalizers.Replace(" ", "▁")])
    steps: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    library.decoder = decoders.Sequence([*steps, *([decoders.Strip(" ", 1, 0)] if strip else [])])
    library.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in ("<unk>", *specials)])
    return str(library.to_str()).encode()


def files_of(raw: bytes, settings: dict[str, Any] | None = None, generation: dict[str, Any] | None = None) -> Any:
    """The three files that a Tokenizer is made from."""
    return {
        "tokenizer.json": raw,
        "tokenizer_config.json": json.dumps(settings or {}).encode(),
        "generation_config.json": json.dumps(generation or {}).encode(),
    }


def opened(raw: bytes, settings: dict[str, Any] | None = None, generation: dict[str, Any] | None = None) -> Tokenizer:
    return Tokenizer(files_of(raw, settings, generation), 1 << 17)
