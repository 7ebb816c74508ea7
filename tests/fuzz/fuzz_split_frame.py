"""Any bytes are one message within its limits or a ProtocolError; and what was read can be sent again."""

from __future__ import annotations

import driver
import numpy as np

from edgemem.runtime.errors import ProtocolError
from edgemem.split.frames import (
    PROTOCOL,
    Answered,
    Bye,
    Done,
    Extend,
    Failed,
    Hello,
    Keep,
    Logits,
    Ping,
    Pong,
    Refused,
    Stranger,
    Truncate,
    Welcome,
    decode,
    encode,
    ranges_of,
    slots_of,
)

_CODEC = {"mode": "adaptive", "tau": 6.5, "delta": 0.02, "rans": True}
_SURPRISAL = np.array([np.nan, 1.5, 0.25], np.float32)
SEEDS = [
    encode(message)
    for message in (
        Hello(PROTOCOL, "0.1.0", bytes(range(16)), "5a" * 32, 12, 30, 4096, _CODEC),
        Refused("model", "device: weights 12ab\nserver: weights 34cd"),
        Welcome(7, 120, 4096, 128, "0.1.0"),
        Extend(8, 120, 3, bytes(range(60)), 40, np.array([5, 0, 49151], np.int32)),
        Extend(9, 123, 1, b"payload"),
        Logits(9, 1000),
        Answered(9, 124, np.array([3, 8], np.int32), np.array([1.5, -2.0], np.float32), 11.5, _SURPRISAL, 3.25),
        Keep(10, ranges_of(np.array([0, 1, 2, 3, 40, 41, 90]))),
        Truncate(11, 5),
        Done(11, 5),
        Failed(12, "context", "no slot is left"),
        Ping(1 << 40),
        Pong(1 << 40),
        Bye(),
    )
]


def fuzz_one_input(data: bytes) -> bool:
    try:
        message = decode(data)
    except ProtocolError:
        return False
    if isinstance(message, Stranger):
        return True
    if encode(decode(encode(message))) != encode(message):
        raise AssertionError(f"{message} does not come back")
    if isinstance(message, Keep):
        try:
            kept = slots_of(message.ranges, 1000)
        except ProtocolError:
            return True
        if not (np.diff(kept) > 0).all() or (len(kept) and not 0 <= kept[0] <= kept[-1] < 1000):
            raise AssertionError("slots that are not among those in use")
    return True


if __name__ == "__main__":
    driver.main(fuzz_one_input, SEEDS)
