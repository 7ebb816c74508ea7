"""The three tokenizer files of a Hugging Face folder, checked against the model and made uniform.

The chat template ends up inside tokenizer_config.json, the end-of-text ids as a list in generation_config.json.
"""

from __future__ import annotations

import json
from typing import Any

from edgemem.compiler.fields import Fields
from edgemem.compiler.source_folder import SourceFolder
from edgemem.runtime.errors import CheckpointError, TokenizerMismatch
from edgemem.runtime.limits import LIMITS
from edgemem.runtime.tensor_file import parse_json_object
from edgemem.runtime.tokenizer import default_template

_SMALL_FILE = 16 << 20


def read_tokenizer_files(folder: SourceFolder, config: Fields, vocabulary: int) -> dict[str, bytes]:
    """tokenizer.json, tokenizer_config.json and generation_config.json of the folder, by name.

    `config` is config.json, `vocabulary` the rows of the embedding. Raises TokenizerMismatch where the tokenizer is
    missing, broken or has ids that the model has not.
    """
    raw = folder.read("tokenizer.json", LIMITS.tokenizer_bytes)
    if raw is None:
        raise TokenizerMismatch(
            "tokenizer.json is missing",
            where=folder.path,
            got=", ".join(folder.names(".model") + folder.names("vocab.json")) or "no tokenizer file",
            do="save a fast tokenizer beside the weights: "
            "transformers.AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)",
        )
    ids = _token_ids(raw, folder, vocabulary)
    settings = read_json(folder, "tokenizer_config.json", _SMALL_FILE) or {}
    _merge_chat_template(settings, folder)
    generation = read_json(folder, "generation_config.json", _SMALL_FILE) or {}
    _complete_generation(generation, config, settings, ids)
    checked = checked_generation(generation, folder.path, vocabulary)
    return {
        "tokenizer.json": raw,
        "tokenizer_config.json": dump_json(settings),
        "generation_config.json": dump_json(checked),
    }


def read_json(folder: SourceFolder, name: str, limit: int) -> dict[str, Any] | None:
    """The JSON object in a file of the folder, None if there is no such file."""
    raw = folder.read(name, limit)
    if raw is None:
        return None
    try:
        return parse_json_object(raw)
    except ValueError as problem:
        raise CheckpointError(f"{name} is no valid JSON object", where=folder.path, got=problem) from problem


def dump_json(plain: dict[str, Any]) -> bytes:
    return json.dumps(plain, ensure_ascii=False, indent=2).encode("utf-8", "backslashreplace")


def checked_generation(generation: dict[str, Any], where: object, vocabulary: int) -> dict[str, Any]:
    """The same settings with eos_token_id as a list; TokenizerMismatch for ids outside the vocabulary."""
    ends = generation.get("eos_token_id")
    ends = [] if ends is None else ends if isinstance(ends, list) else [ends]
    for key, ids in (("eos_token_id", ends), ("bos_token_id", [generation.get("bos_token_id")])):
        for token in ids:
            if token is not None and (type(token) is not int or not 0 <= token < vocabulary):
                raise TokenizerMismatch(
                    f"{key} is no token of the model",
                    where=where,
                    got=ascii(token)[:80],
                    wanted=f"0 to {vocabulary - 1}",
                )
    return {**generation, "eos_token_id": list(dict.fromkeys(ends))}


def _token_ids(raw: bytes, folder: SourceFolder, vocabulary: int) -> dict[str, int]:
    """Ids of the added tokens by text, after checking that no id is beyond the model's vocabulary."""
    where = folder.path / "tokenizer.json"
    try:
        plain = parse_json_object(raw)
        vocab = plain["model"]["vocab"]
        added = {str(token["content"]): token["id"] for token in plain.get("added_tokens") or []}
        # Unigram models list (text, score); all others map text to id.
        ids = list(vocab.values()) if isinstance(vocab, dict) else list(range(len(vocab)))
        ids += added.values()
        largest = max(ids)
        if any(type(token) is not int for token in ids) or min(ids) < 0:
            raise ValueError("ids that are no whole numbers")
    except (ValueError, KeyError, TypeError, AttributeError) as problem:
        raise TokenizerMismatch("the tokenizer is malformed", where=where, got=repr(problem)[:200]) from problem
    if largest >= vocabulary:
        raise TokenizerMismatch(
            "the tokenizer has more tokens than the model",
            where=where,
            got=f"token {largest}",
            wanted=f"at most {vocabulary - 1}",
            do="take the tokenizer that was published with these weights",
        )
    return added


def _merge_chat_template(settings: dict[str, Any], folder: SourceFolder) -> None:
    raw = folder.read("chat_template.jinja", _SMALL_FILE)
    if raw is not None:
        try:
            settings["chat_template"] = raw.decode("utf-8")
        except ValueError as problem:
            raise CheckpointError("chat_template.jinja is no UTF-8", where=folder.path, got=problem) from problem
    template = default_template(settings.pop("chat_template", None))
    if template is None:
        return
    if not isinstance(template, str):
        raise CheckpointError("the chat template is no text", where=folder.path, got=type(template).__name__)
    settings["chat_template"] = template


def _complete_generation(
    generation: dict[str, Any], config: Fields, settings: dict[str, Any], ids: dict[str, int]
) -> None:
    """Fill in missing ids from config.json, then from the tokenizer's own special tokens."""
    nested = config.table("text_config")
    for key, special in (("bos_token_id", "bos_token"), ("eos_token_id", "eos_token"), ("pad_token_id", "pad_token")):
        token = settings.get(special)
        text = token.get("content") if isinstance(token, dict) else token
        candidates = [generation.get(key), config.get(key), nested.get(key) if nested else None]
        candidates.append(ids.get(text) if isinstance(text, str) else None)
        found = [candidate for candidate in candidates if candidate is not None]
        if found:
            generation[key] = found[0]
