"""Coder: how what crosses the split lies in bytes: hidden states by a Codec, or, at split 0, the tokens themselves."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgemem.runtime.errors import ProtocolError
from edgemem.runtime.model import ModelSpec
from edgemem.split.codec import Codec, CodecSettings
from edgemem.split.payload import PayloadReader


class Coder(Protocol):
    """Rows are what the layers behind the split take: (n, hidden) float32 states, or (n,) int32 tokens."""

    def encode(self, rows: NDArray[Any], /) -> bytes: ...

    def decode(self, payload: bytes, count: int, /) -> NDArray[Any]:
        """Raises ProtocolError for bytes that hold no `count` rows."""
        ...


class TokenCoder:
    """Tokens, four bytes each. They are no secret that hidden states would keep: the embedding can be looked up."""

    def __init__(self, vocabulary: int) -> None:
        self._vocabulary = vocabulary

    def encode(self, rows: NDArray[np.int32], /) -> bytes:
        return rows.astype("<i4").tobytes()

    def decode(self, payload: bytes, count: int, /) -> NDArray[np.int32]:
        reader = PayloadReader(payload)
        tokens = reader.array("<i4", count).astype(np.int32)
        reader.end()
        if count and (tokens.min() < 0 or tokens.max() >= self._vocabulary):
            got, wanted = f"{tokens.min()} to {tokens.max()}", f"0 to {self._vocabulary - 1}"
            raise ProtocolError("a token outside the vocabulary", got=got, wanted=wanted)
        return tokens


def coder_of(model: ModelSpec, split: int, settings: CodecSettings) -> Coder:
    """The one for what crosses in front of layer `split`."""
    return Codec(settings, model.hidden) if split else TokenCoder(model.vocabulary)
