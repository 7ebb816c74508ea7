"""Any bytes are a GGUF file or a CheckpointError; the tensors of an accepted one lie inside the file."""

from __future__ import annotations

import struct
from pathlib import Path

import driver

from edgemem.compiler.gguf_file import GgufFile
from edgemem.runtime.errors import CheckpointError


def _text(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def _seed(version: int = 3) -> bytes:
    """Keys of every type, an array of texts and one of numbers; an F32 and a Q4_0 tensor."""
    pairs = [
        _text(b"general.architecture") + struct.pack("<I", 8) + _text(b"llama"),
        _text(b"general.alignment") + struct.pack("<II", 4, 32),
        _text(b"a.float") + struct.pack("<If", 6, 1e-5),
        _text(b"a.bool") + struct.pack("<I?", 7, True),
        _text(b"a.long") + struct.pack("<Iq", 11, -5),
        _text(b"a.texts") + struct.pack("<IIQ", 9, 8, 2) + _text(b"x") + _text(b"yz"),
        _text(b"a.numbers") + struct.pack("<IIQ3i", 9, 5, 3, 1, 2, 3),
    ]
    tensors = [
        _text(b"output_norm.weight") + struct.pack("<IQIQ", 1, 8, 0, 0),
        _text(b"token_embd.weight") + struct.pack("<IQQIQ", 2, 64, 3, 2, 32),
    ]
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(pairs)) + b"".join(pairs) + b"".join(tensors)
    return head + bytes(-len(head) % 32) + bytes(32) + bytes(128)  # both padded to 32


SEEDS = [_seed(), _seed(2)]


def fuzz_one_input(data: bytes) -> bool:
    with driver.in_memory_file(data) as descriptor:
        try:
            opened = GgufFile(Path(f"/proc/self/fd/{descriptor}"))
        except CheckpointError:
            return False
    for name, tensor in opened.tensors.items():
        if not 0 <= tensor.start <= tensor.stop <= len(data):
            raise AssertionError(f"tensor {name!a} is outside the file")
        opened.bytes_of(name).tobytes()
    opened.close()
    return True


if __name__ == "__main__":
    driver.main(fuzz_one_input, SEEDS)
