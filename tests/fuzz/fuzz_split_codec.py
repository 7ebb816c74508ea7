"""Any bytes are hidden states or a ProtocolError; what is accepted is finite and of the shape that was asked for.

The first byte of an input says by which settings it is read, the second how many states it should hold.
"""

from __future__ import annotations

import driver
import numpy as np

from edgemem.runtime.errors import ProtocolError
from edgemem.split.codec import Codec, CodecSettings

_HIDDEN = 24
_CODECS = [
    Codec(settings, _HIDDEN)
    for settings in (
        CodecSettings("fp32"),
        CodecSettings("fp16"),
        CodecSettings("int8"),
        CodecSettings("adaptive"),
        CodecSettings("adaptive", tau=6.0, delta=0.2),
        CodecSettings("adaptive", tau=6.0, delta=0.05, rans=False),
    )
]


def _states(count: int) -> np.ndarray:
    source = np.random.default_rng(count)
    states = source.standard_t(3, (count, _HIDDEN)) * source.uniform(0.1, 10, (count, 1))
    states[: count // 3] *= 1e5  # beyond fp16
    return states.astype(np.float32)


# 60 rows: enough for the coder that takes all rows at once.
SEEDS = [
    bytes((index, count)) + codec.encode(_states(count)) for index, codec in enumerate(_CODECS) for count in (1, 5, 60)
]


def fuzz_one_input(data: bytes) -> bool:
    if len(data) < 2:
        return False
    count = data[1]
    try:
        states = _CODECS[data[0] % len(_CODECS)].decode(data[2:], count)
    except ProtocolError:
        return False
    if states.shape != (count, _HIDDEN) or states.dtype != np.float32 or not states.flags.writeable:
        raise AssertionError(f"states of another shape or kind: {states.dtype}{states.shape}")
    if not np.isfinite(states).all():
        raise AssertionError("states that are not finite")
    return True


if __name__ == "__main__":
    driver.main(fuzz_one_input, SEEDS)
