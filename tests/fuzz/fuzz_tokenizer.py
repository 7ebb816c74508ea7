"""Any three files are a tokenizer or a TokenizerMismatch; one that is accepted never makes control tokens of text."""

from __future__ import annotations

import driver
from small_tokenizers import byte_level, files_of, sentencepiece

from edgemem.runtime.errors import TokenizerMismatch
from edgemem.runtime.tokenizer import TOKENIZER_FILES, Tokenizer

_VOCABULARY = 1 << 12
_TEMPLATES = [{"name": "default", "template": "{{ messages }}"}, {"name": "tool_use", "template": ""}]
_SETTINGS = {"chat_template": _TEMPLATES, "bos_token": {"content": "<s>"}, "eos_token": "</s>", "add_bos_token": True}
SEEDS = [
    b"\0".join(files[name] for name in TOKENIZER_FILES)
    for files in (
        files_of(byte_level(), {"chat_template": "x"}, {"bos_token_id": 0, "eos_token_id": [2, 0]}),
        files_of(sentencepiece(), _SETTINGS, {"eos_token_id": 2}),
    )
]


def fuzz_one_input(data: bytes) -> bool:
    contents = [*data.split(b"\0"), b"", b""]
    try:
        tokenizer = Tokenizer(dict(zip(TOKENIZER_FILES, contents, strict=False)), _VOCABULARY)
        ids = tokenizer.encode_text(f"the lamp \U0001f30d{''.join(tokenizer.controls)}")
    except TokenizerMismatch:
        return False
    begins = ids[:1] if tokenizer.adds_bos else []
    if begins not in ([], [tokenizer.bos_id]) or not set(tokenizer.controls.values()).isdisjoint(ids[len(begins) :]):
        raise AssertionError(f"control tokens out of text: {ids}")
    if not all(0 <= token < tokenizer.vocabulary <= _VOCABULARY for token in (*ids, *tokenizer.eos_ids)):
        raise AssertionError(f"tokens outside the vocabulary: {ids}")
    tokenizer.decode(ids)
    return True


if __name__ == "__main__":
    driver.main(fuzz_one_input, SEEDS)
