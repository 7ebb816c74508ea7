"""Many devices at one server at once, for minutes: whether all are answered, how fast, and whether memory stays flat.

example: python -m edgemem.tools.split_crowd smollm2-135m --sessions 64 --minutes 5
The server is `edgemem split serve` in a process of its own, in plain text on this machine, and so the devices here
compete with it for the same cores. They send made-up hidden states: no front layers run.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import psutil

from edgemem.runtime.errors import EdgememError, EngineError
from edgemem.runtime.package import Package
from edgemem.split.codec import Codec, CodecSettings
from edgemem.split.frames import SESSION_BYTES, Answered, Bye, Extend, Keep
from edgemem.split.link import Link
from edgemem.split.opening import hello_for
from edgemem.split.peers import Server
from edgemem.tools.options import model_name, positive
from edgemem.tools.source import locate_package

_SERVE = "import sys; from edgemem.tools.cli import main; sys.exit(main(sys.argv[1:]))"
_SLOTS, _PROMPT, _TURN = 256, 64, 32  # of a session, states of its prompts, and tokens of its answers
_DEADLINE_S = 60.0


@dataclass
class Crowd:
    """token_ms: from a state sent to its answer. resident: (seconds, MiB) of the server's process."""

    token_ms: list[float] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    resident: list[tuple[float, float]] = field(default_factory=list)
    tokens: int = 0


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="split_crowd", description=__doc__)
    parser.add_argument("package", metavar="PACKAGE")
    parser.add_argument("--sessions", type=positive, default=64, metavar="N")
    parser.add_argument("--minutes", type=float, default=5.0, metavar="X")
    parser.add_argument("--batch", type=positive, default=8, metavar="N", help="as split serve has it (8)")
    parser.add_argument("--at", type=positive, default=None, metavar="L", help="the split (half of the layers)")
    args = parser.parse_args(argv)
    args.model, args.usage_error = None, parser.error
    path = locate_package(model_name(args))
    with Package.open(path) as package:
        split = args.at or package.model.layers // 2
        crowd = Crowd()
        with _server(str(path), split, args.sessions, args.batch) as (address, process):
            _talk_together(package, split, address, process, args.sessions, 60 * args.minutes, crowd)
    print(json.dumps({"batch": args.batch, **_figures(crowd, args.sessions)}, indent=1))
    return 1 if crowd.problems else 0


@contextmanager
def _server(path: str, split: int, sessions: int, batch: int) -> Iterator[tuple[Server, psutil.Process]]:
    flags = [
        "--split",
        str(split),
        "--insecure-loopback",
        "--port",
        "0",
        "--connections",
        str(sessions),
        "--batch",
        str(batch),
    ]
    command = [sys.executable, "-c", _SERVE, "split", "serve", path, *flags]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            line = server.stderr.readline() if server.stderr is not None else ""
            found = re.search(r"port (\d+)", line)
            if found is None:
                raise EngineError("the server did not start", got=line)
            yield Server("crowd", "127.0.0.1", int(found[1]), None), psutil.Process(server.pid)
        finally:
            server.terminate()


def _talk_together(
    package: Package,
    split: int,
    server: Server,
    process: psutil.Process,
    sessions: int,
    seconds: float,
    crowd: Crowd,
) -> None:
    end, lock = time.monotonic() + seconds, threading.Lock()
    talkers = [
        threading.Thread(target=_talk, args=(package, split, server, place, end, crowd, lock))
        for place in range(sessions)
    ]
    began = time.monotonic()
    for talker in talkers:
        talker.start()
    while any(talker.is_alive() for talker in talkers):
        crowd.resident.append((time.monotonic() - began, process.memory_info().rss / 2**20))
        time.sleep(1.0)
    for talker in talkers:
        talker.join()


def _talk(
    package: Package, split: int, server: Server, place: int, end: float, crowd: Crowd, lock: threading.Lock
) -> None:
    """Turn after turn, and what is oldest forgotten, until the time is over."""
    model = package.model
    random = np.random.default_rng(place)
    codec = Codec(CodecSettings("fp16"), model.hidden)
    hello = hello_for(package, split, version="crowd", codec=codec.settings, capacity=_SLOTS)
    hello = replace(hello, session=random.bytes(SESSION_BYTES))
    states = random.normal(size=(_PROMPT, model.hidden)).astype(np.float32)
    prompt, one = codec.encode(states), codec.encode(states[:1])
    took: list[float] = []
    try:
        with closing(Link.open(server, hello, identity=None, timeout_s=_DEADLINE_S)) as link:
            op = length = 0
            while time.monotonic() < end:
                if length + _PROMPT + _TURN > _SLOTS:
                    op, length = op + 1, _SLOTS // 4
                    link.call(Keep(op, np.array([[0, length]], dtype=np.int32)), deadline_s=_DEADLINE_S)
                for payload, count in ((prompt, _PROMPT), *((one, 1),) * _TURN):
                    op, mark = op + 1, time.perf_counter()
                    reply = link.call(Extend(op, length, count, payload), deadline_s=_DEADLINE_S)
                    length += count
                    if not isinstance(reply, Answered) or reply.length != length:
                        raise EngineError("the server answered something else", got=type(reply).__name__)
                    if count == 1:
                        took.append(1e3 * (time.perf_counter() - mark))
            link.call(Bye(), deadline_s=_DEADLINE_S)
    except EdgememError as problem:
        with lock:
            crowd.problems.append(f"session {place}: {problem}")
    with lock:
        crowd.token_ms += took
        crowd.tokens += len(took)


def _figures(crowd: Crowd, sessions: int) -> dict[str, object]:
    seconds, resident = np.array(crowd.resident).T
    settled = seconds > seconds[-1] / 5
    slope = float(np.polyfit(seconds[settled], resident[settled], 1)[0]) * 60 if settled.sum() > 2 else float("nan")
    times = np.array(crowd.token_ms or [float("nan")])
    return {
        "sessions": sessions,
        "seconds": round(float(seconds[-1]), 1),
        "tokens": crowd.tokens,
        "tokens_per_s": round(crowd.tokens / float(seconds[-1]), 1),
        "token_ms_p50": round(float(np.percentile(times, 50)), 2),
        "token_ms_p99": round(float(np.percentile(times, 99)), 2),
        "resident_MiB": [round(float(resident[settled][0]), 1), round(float(resident[-1]), 1)],
        "resident_MiB_per_minute": round(slope, 3),
        "problems": crowd.problems,
    }


if __name__ == "__main__":
    sys.exit(main())
