"""HTTP/2's own frames counted as they come in: h2 would gather 16 MiB before it finds that a frame is too long."""

from __future__ import annotations

from edgemem.runtime.errors import ProtocolError

FRAME_BYTES = 1 << 14  # what RFC 9113 allows where nothing else was agreed on, which we never do
_HEADER_BYTES = 9
_PREFACE_BYTES = 24  # of a client, before its first frame


class Http2Guard:
    """Follows one side's bytes, however they are cut."""

    def __init__(self, *, from_client: bool) -> None:
        self._skip = _PREFACE_BYTES if from_client else 0
        self._header = b""

    def check(self, data: bytes) -> None:
        """Raises ProtocolError at the header of a frame that is too long."""
        at = 0
        while at < len(data):
            if self._skip:
                step = min(self._skip, len(data) - at)
                self._skip, at = self._skip - step, at + step
                continue
            part = data[at : at + _HEADER_BYTES - len(self._header)]
            self._header, at = self._header + part, at + len(part)
            if len(self._header) == _HEADER_BYTES:
                self._skip, self._header = int.from_bytes(self._header[:3], "big"), b""
                if self._skip > FRAME_BYTES:
                    raise ProtocolError("an HTTP/2 frame is too long", got=self._skip, wanted=f"at most {FRAME_BYTES}")
