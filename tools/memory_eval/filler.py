"""The long text that is read: a file's, or filler, which is plain sentences that state nothing to be remembered."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgemem.runtime.errors import SettingsError
from edgemem.runtime.tokenizer import MAX_TEXT_BYTES, Tokenizer
from edgemem.tools.memory_eval.words import DOINGS, PEOPLE, PLACES, TIMES

_PARAGRAPH = 6
_BYTES_PER_TOKEN = 64  # far more than any text needs: bounds what is read of a huge file


def filler_text(sentences: int, seed: int) -> str:
    """So many sentences in paragraphs of six; the same for the same seed."""
    chance = random.Random(seed)
    made = [_sentence(chance) for _ in range(sentences)]
    return "\n\n".join(" ".join(made[at : at + _PARAGRAPH]) for at in range(0, len(made), _PARAGRAPH))


def text_tokens(path: Path | None, tokenizer: Tokenizer, count: int) -> NDArray[np.int32]:
    """The first `count` tokens of a text file, or all of a shorter one; without a file, of filler.

    Raises SettingsError for a file that cannot be read or has not two tokens.
    """
    if path is None:
        text = filler_text(count // 4, seed=0)
    else:
        try:
            with path.open("rb") as file:
                text = file.read(min(_BYTES_PER_TOKEN * count, MAX_TEXT_BYTES)).decode("utf-8", errors="ignore")
        except OSError as problem:
            raise SettingsError("the text cannot be read", where=path, got=problem.strerror) from problem
    tokens = np.array(tokenizer.encode_text(text)[:count], dtype=np.int32)
    if len(tokens) < 2:
        raise SettingsError("the text is too short", where=path, got=f"{len(tokens)} tokens", wanted="2 at least")
    return tokens


def _sentence(chance: random.Random) -> str:
    subject, other = chance.sample(PEOPLE, 2)
    doing = chance.choice(DOINGS).format(place=chance.choice(PLACES), other=other)
    return f"{chance.choice(TIMES)} the {subject} {doing}."
