"""A text as token sequences of one length, each begun as the model's texts are: for calibration and measurement."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgemem.runtime.errors import SettingsError
from edgemem.runtime.tokenizer import Tokenizer


def token_sequences(text: str, tokenizer: Tokenizer, length: int, limit: int) -> NDArray[np.int32]:
    """The first `limit` tokens of the text, or fewer, as (sequences, length); SettingsError if there is no sequence."""
    begin = tokenizer.encode_text("")
    body = length - len(begin)
    ids = tokenizer.encode(text)
    count = min(len(ids), limit) // body
    if count == 0:
        raise SettingsError(
            "the text is too short", got=f"{len(ids)} tokens", wanted=f"at least {body}", do="give a longer text"
        )
    return np.array([begin + ids[index * body : (index + 1) * body] for index in range(count)], dtype=np.int32)
