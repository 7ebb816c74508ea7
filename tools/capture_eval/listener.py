"""The listener alone in a process: `python -m edgemem.tools.capture_eval.listener < JOB`. One JSON object on stdout.

Noise in blocks, as a microphone would give them, goes through windows, ear, head and trigger as fast as it can.
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np
import psutil

from edgemem.profiles.process import private_stdout

_BLOCK = 1600  # samples: 0.1 s
_WARM_S = 3.0  # of sound, before anything is timed


def main() -> None:
    channel = private_stdout()
    seconds = float(json.load(sys.stdin)["seconds"])
    base_bytes = psutil.Process().memory_info().rss
    figures = _listen(seconds)
    added_bytes = psutil.Process().memory_info().rss - base_bytes
    channel.write(json.dumps({**figures, "base_bytes": base_bytes, "added_bytes": max(added_bytes, 0)}) + "\n")
    channel.close()


def _listen(seconds: float) -> dict[str, float]:
    """Imports what listening needs here, so that its memory is counted."""
    from edgemem.runtime.capture.audio import RATE_HZ, Block
    from edgemem.runtime.capture.head import Head
    from edgemem.runtime.capture.trigger import Trigger, TriggerSettings
    from edgemem.runtime.capture.windows import Framer
    from edgemem.runtime.capture.yamnet import Ear

    ear, head, framer, trigger = Ear.open(), Head.open(), Framer(), Trigger(TriggerSettings())
    random, hops_ms, busy_s = np.random.default_rng(0), list[float](), 0.0
    warm = round(_WARM_S * RATE_HZ)
    for start in range(0, warm + round(seconds * RATE_HZ), _BLOCK):
        samples = random.normal(scale=0.01, size=_BLOCK).astype(np.float32)
        began, began_busy = time.perf_counter(), time.process_time()
        heard = False
        for window in framer.push(Block(samples, start)):
            trigger.step(window.end_s, head.score(ear.hear(window.samples).embedding))
            heard = True
        if start >= warm:
            busy_s += time.process_time() - began_busy
            hops_ms += [1000 * (time.perf_counter() - began)] if heard else []
    ear.close()
    middle, late = np.percentile(hops_ms, (50, 99))
    return {"seconds": seconds, "cpu_share": busy_s / seconds, "hop_ms": float(middle), "late_hop_ms": float(late)}


if __name__ == "__main__":
    main()
