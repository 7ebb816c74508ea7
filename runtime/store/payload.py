"""Payloads: numbers, texts and messages as bytes, and the bounded reading of them. ValueError for what does not fit."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any

Message = Mapping[str, str]

ROLE_BYTES, TEXT_BYTES, MESSAGES = 64, 24 << 20, 1 << 16


class PayloadReader:
    """Takes a payload apart from front to back; never reads beyond its end."""

    def __init__(self, payload: bytes | memoryview) -> None:
        self._rest = memoryview(payload)

    def take(self, count: int) -> memoryview:
        if not 0 <= count <= len(self._rest):
            raise ValueError(f"{count} bytes wanted, {len(self._rest)} left")
        taken, self._rest = self._rest[:count], self._rest[count:]
        return taken

    def numbers(self, form: str) -> tuple[Any, ...]:
        return struct.unpack(form, self.take(struct.calcsize(form)))

    def flag(self) -> bool:
        (value,) = self.numbers("<B")
        if value > 1:
            raise ValueError(f"{value} where 0 or 1 was wanted")
        return bool(value)

    def text(self) -> str:
        return _decoded(self.take(self.numbers("<I")[0]))

    def messages(self) -> list[dict[str, str]]:
        (count,) = self.numbers("<I")
        if count > MESSAGES:
            raise ValueError(f"{count} messages, wanted at most {MESSAGES}")
        messages = []
        for _ in range(count):
            role = _decoded(self.take(self.numbers("<B")[0]))
            messages.append({"role": role, "content": self.text()})
        check_messages(messages)
        return messages

    @property
    def left(self) -> int:
        return len(self._rest)

    def rest(self) -> memoryview:
        return self.take(len(self._rest))

    def done(self) -> None:
        if self._rest:
            raise ValueError(f"{len(self._rest)} bytes too many")


def flag_bytes(flag: bool) -> bytes:
    return b"\1" if flag else b"\0"


def text_bytes(text: str) -> bytes:
    content = _encoded(text)
    return len(content).to_bytes(4, "little") + content


def messages_bytes(messages: Sequence[Message]) -> bytes:
    parts = [len(messages).to_bytes(4, "little")]
    for message in messages:
        role = _encoded(message["role"])
        parts += [len(role).to_bytes(1, "little"), role, text_bytes(message["content"])]
    return b"".join(parts)


def check_messages(messages: Sequence[Message]) -> None:
    """ValueError unless each is a role and a content, both text, and all together fit into a frame."""
    size = 0
    if len(messages) > MESSAGES:
        raise ValueError(f"{len(messages)} messages, wanted at most {MESSAGES}")
    for message in messages:
        if set(message) != {"role", "content"} or not all(isinstance(text, str) for text in message.values()):
            raise ValueError("a message that is no role and content, both text")
        if not 0 < len(_encoded(message["role"])) <= ROLE_BYTES:
            raise ValueError(f"a role of {len(_encoded(message['role']))} bytes, wanted 1 to {ROLE_BYTES}")
        size += text_size(message)
    if size > TEXT_BYTES:
        raise ValueError(f"messages of {size} bytes, wanted at most {TEXT_BYTES}")


def text_size(message: Message) -> int:
    """Bytes of the content as it is stored."""
    return len(_encoded(message["content"]))


# A message may hold half a surrogate pair: it comes back as it was.
def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _decoded(raw: memoryview) -> str:
    return bytes(raw).decode("utf-8", "surrogatepass")
