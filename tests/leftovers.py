"""What this process has open and running. An earlier test's leftovers may go at any time: only what is new counts."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Sized
from contextlib import suppress


def descriptors() -> Counter[str]:
    """Where each open descriptor leads."""
    found: Counter[str] = Counter()
    for entry in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # the listing's own
            found[os.readlink(f"/proc/self/fd/{entry}")] += 1
    return found


def threads() -> set[threading.Thread]:
    """Python's."""
    return set(threading.enumerate())


def tasks() -> set[str]:
    """All threads, as the kernel counts them."""
    return set(os.listdir("/proc/self/task"))


def comes_to_nothing(new: Callable[[], Sized]) -> bool:
    """Whether `new` is empty before long: the kernel lists a thread that was joined a moment longer."""
    until = time.monotonic() + 10
    while new() and time.monotonic() < until:
        time.sleep(0.01)
    return not new()
