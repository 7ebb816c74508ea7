"""Kills a server with SIGKILL at random moments while a device talks to it, over and over: the text is as without that.

    python tests/fault/kill_split.py --kills 200

Half of them alone, where the device waits for the next server, half with a local stage, where it goes on by itself.
Some servers are killed while they start, the others soon after their first answer.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from runnable_packages import plain_model, runnable_package, same_precision
from split_conversation import CAPACITY, EXACT, converse

from edgemem.runtime.engine import route_of
from edgemem.runtime.native_engine import NativeEngine
from edgemem.runtime.package import Package
from edgemem.split.opening import dial_to, open_split_engine
from edgemem.split.peers import Server
from edgemem.split.switching import SwitchSettings
from edgemem.tools.versions import version_of

SPLIT = 1
SETTINGS = SwitchSettings(deadline_s=10.0, probe_s=0.01, patience_s=120.0, first_retry_s=0.01, last_retry_s=0.05)
_EDGEMEM = (sys.executable, "-c", "from edgemem.tools.cli import main; raise SystemExit(main())")
_READY = b"serving on"
_SPAN_S = 0.2  # from the first answer of a server to its end, at most
_PATIENCE_S = 20.0


class Killer(threading.Thread):
    """One server after the other on a port, each killed; the last one stays until `close`."""

    def __init__(self, package: Path, port: int, kills: int, source: random.Random) -> None:
        super().__init__(name="killer")
        self.kills = 0
        self.heard = threading.Event()  # set when a server has answered
        self.over = threading.Event()
        where = ("--insecure-loopback", "--port", str(port))
        self._words = (str(package), "--split", str(SPLIT), "-c", str(CAPACITY), "-t", "1", *where)
        self._wanted, self._source = kills, source
        self._server: subprocess.Popen[bytes] | None = None
        self.problem: str | None = None

    def run(self) -> None:
        while self.kills < self._wanted and self.problem is None:
            early = self._source.random() < 0.1
            server = self._served(wait=not early)
            self.heard.clear()
            if not early and not self.heard.wait(_PATIENCE_S):
                self.problem = "nobody came to the new server"
            time.sleep(self._source.random() * _SPAN_S)
            self._kill(server)
            self.kills += 1
        self._server = self._served(wait=True)
        self.over.set()

    def close(self) -> None:
        self.join()
        if self._server is not None:
            self._kill(self._server)

    def _served(self, *, wait: bool) -> subprocess.Popen[bytes]:
        server = subprocess.Popen([*_EDGEMEM, "split", "serve", *self._words], stderr=subprocess.PIPE)
        if wait and server.stderr is not None:
            said = server.stderr.readline()
            if not said.startswith(_READY):
                self.problem = (said + server.stderr.read()).decode()
        return server

    def _kill(self, server: subprocess.Popen[bytes]) -> None:
        os.kill(server.pid, signal.SIGKILL)
        server.communicate()


def talk(package: Package, port: int, killer: Killer, *, local: bool) -> Counter[str]:
    """Conversations until the killer is done; what answered each token. Raises AssertionError where one is not as
    without the kills."""
    with closing(NativeEngine(package, capacity=CAPACITY, threads=1)) as whole:
        wanted = converse(whole)
    server = Server("here", "127.0.0.1", port, None)
    engine, _ = open_split_engine(
        package,
        SPLIT,
        dial_to(server, None),
        version=version_of("edgemem-runtime") or "unknown",
        codec=EXACT,
        capacity=CAPACITY,
        threads=1,
        local=local,
        settings=SETTINGS,
    )
    seen: Counter[str] = Counter()

    def look() -> None:
        route = str(route_of(engine))
        seen[route] += 1
        if route == "remote":
            killer.heard.set()

    with closing(engine):
        over = False
        while not over:
            over = killer.over.is_set()  # and one more
            if converse(engine, look) != wanted:
                raise AssertionError(f"a conversation is not as without the kills, after {killer.kills}")
            engine.truncate(0)
            seen["conversations"] += 1
    return seen


def run(kills: int, seed: int, *, local: bool) -> str:
    """What was done. Raises AssertionError as `talk` does, and where a server did not do its part."""
    begin_s = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        model = plain_model()
        path = runnable_package(Path(folder) / "small.edgemem", model, same_precision(model, "int8-g32"))
        port = free_port()
        killer = Killer(path, port, kills, random.Random(seed))
        with Package.open(path) as package:
            killer.start()
            try:
                seen = talk(package, port, killer, local=local)
            finally:
                killer.close()
    if killer.problem is not None:
        raise AssertionError(killer.problem)
    took_s = time.perf_counter() - begin_s
    details = ", ".join(f"{name} {count}" for name, count in sorted(seen.items()))
    how = "with a local stage" if local else "alone"
    return f"{kills} kills, {how}: all said as without them; {details}; {took_s:.0f} s"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 30))
    options = parser.parse_args()
    print(f"seed {options.seed}", file=sys.stderr)
    for local in (False, True):
        print(run((options.kills + local) // 2, options.seed, local=local), flush=True)


if __name__ == "__main__":
    main()
