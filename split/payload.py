"""PayloadReader: the parts of a payload from the wire, one after the other, none longer than what came."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemem.runtime.errors import ProtocolError


class PayloadReader:
    """Gives views of the payload; copies nothing. Raises ProtocolError for a payload of another length."""

    def __init__(self, payload: bytes) -> None:
        self._payload, self._at = payload, 0

    def array(self, dtype: str, *shape: int) -> NDArray[Any]:
        """The next values, of this little-endian dtype and shape."""
        kind, count = np.dtype(dtype), 1
        for size in shape:
            count *= size
        start, self._at = self._at, self._at + count * kind.itemsize
        if self._at > len(self._payload):
            raise ProtocolError("hidden states that are cut off", got=len(self._payload), wanted=f"{self._at} bytes")
        return np.frombuffer(self._payload, kind, count, start).reshape(shape)

    def rest(self) -> bytes:
        """All that has not been read."""
        start, self._at = self._at, len(self._payload)
        return self._payload[start:]

    def end(self) -> None:
        if self._at != len(self._payload):
            raise ProtocolError("bytes behind the hidden states", got=len(self._payload), wanted=f"{self._at} bytes")
