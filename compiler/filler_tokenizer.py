"""A tokenizer of the right size and no meaning, for models whose weights were never learnt.

Byte-level without merges: any text becomes its bytes, and every id that no byte has is a filler that no text holds.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

END = "<|endoftext|>"


def filler_tokens(size: int, words: Sequence[str] = ()) -> list[str]:
    """`size` different tokens: the end of a text, the 256 bytes, the `words`, then fillers."""
    tokens = [END, *byte_characters(), *words]
    return [*tokens, *(f"<filler {index}>" for index in range(size - len(tokens)))]


def byte_characters() -> list[str]:
    """The character that byte-level BPE writes for each byte: itself where printable, else one from 256 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) if byte in printable else chr(256 + others.index(byte)) for byte in range(256)]


def filler_tokenizer_files(size: int) -> dict[str, bytes]:
    """tokenizer.json, tokenizer_config.json and generation_config.json for a vocabulary of `size`."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    tokenizer = {
        "version": "1.0",
        "added_tokens": [{"id": 0, "content": END, **flags, "special": True}],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "vocab": {token: index for index, token in enumerate(filler_tokens(size))},
            "merges": [],
        },
    }
    return {
        "tokenizer.json": json.dumps(tokenizer, ensure_ascii=False).encode(),
        "tokenizer_config.json": json.dumps({"bos_token": END, "eos_token": END, "add_bos_token": False}).encode(),
        "generation_config.json": json.dumps({"bos_token_id": 0, "eos_token_id": [0]}).encode(),
    }
