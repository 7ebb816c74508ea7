"""Kills a process with SIGKILL at random moments while it stores a talk, and looks at what is left: nothing is missing.

    python tests/fault/kill_store.py --kills 1000

Each child goes on where the one before was killed, over the real file system, with the store's own flushing thread, and
reports what was acknowledged over a pipe. What it says is a function of how much was said, so the parent can tell.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # the parent forks: it must have no threads
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from fault.talk import IDENTITY, POLICY, VOCABULARY, assert_state, state_of

from edgemem.runtime.store import Role, Store, StoreSettings

_SLOTS, _KEPT = 48, 24
_SETTINGS = StoreSettings(flush_ms=2.0, segment_bytes=3000)


def token(place: int) -> int:
    return place * 7919 % VOCABULARY


def child(folder: Path, seed: int, pipe: int) -> None:
    """Talk for ever."""
    source = random.Random(seed)
    with Store.open(folder, IDENTITY, POLICY, settings=_SETTINGS) as store:
        said, slots = store.recovered.tokens, store.recovered.held["id"].tolist()
        if store.recovered.unfinished is not None:
            store.end_turn(None)
        while True:
            report(store, pipe)
            store.begin_turn([{"role": "user", "content": f"turn at {said}"}])
            for _ in range(source.randint(1, 12)):
                count = source.choice((1, 1, 1, 9))
                if len(slots) + count > _SLOTS:
                    store.append_keep(np.r_[0:4, len(slots) - _KEPT : len(slots)])
                    slots = slots[:4] + slots[-_KEPT:]
                ids = [token(place) for place in range(said, said + count)]
                store.append_tokens(ids, Role.ASSISTANT, generated=count == 1, scores=np.array(ids, np.float32))
                said, slots = said + count, slots + ids
                time.sleep(source.choice((0, 0, 0, 0.001)))
                report(store, pipe)
            store.end_turn(f"answer at {said}")
            report(store, pipe)
            if source.random() < 0.5:
                position = store.position()
                if position is None:
                    raise RuntimeError(store.problem)
                store.snapshot(position, state_of(slots), {"said": np.array([said]), "ids": np.array(slots)})


def report(store: Store, pipe: int) -> None:
    os.write(pipe, store.durable_tokens.to_bytes(8, "little"))


def killed(folder: Path, source: random.Random) -> int:
    """One child's life; the tokens that it had acknowledged."""
    seed = source.randrange(1 << 30)
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reading)
            child(folder, seed, writing)
        finally:
            os._exit(1)  # it is never to come here
    os.close(writing)
    with os.fdopen(reading, "rb", buffering=0) as pipe:
        if source.random() < 0.2:  # while it opens, or soon after
            first, delay_s = b"", source.uniform(0, 0.01)
        else:
            first, delay_s = pipe.read(8), source.uniform(0, 0.025)
        time.sleep(delay_s)
        os.kill(pid, signal.SIGKILL)
        reports = first + pipe.readall()
    _, status = os.waitpid(pid, 0)
    if not os.WIFSIGNALED(status):
        raise AssertionError(f"the child of seed {seed} ended by itself: {status}")
    whole = len(reports) // 8 * 8
    return int.from_bytes(reports[whole - 8 : whole], "little") if whole else 0


def check(folder: Path, acknowledged: int) -> Counter[str]:
    """Look at what a child left; raises AssertionError for anything lost, torn or mixed."""
    found: Counter[str] = Counter()
    with Store.open(folder, IDENTITY, POLICY, settings=StoreSettings(flush_ms=None)) as store:
        recovered = store.recovered
        if store.problem is not None:
            raise store.problem
        if recovered.tokens < acknowledged:
            raise AssertionError(f"{recovered.tokens} tokens are left of {acknowledged} that were acknowledged")
        held = recovered.held
        places = held["place"].astype(np.int64)
        np.testing.assert_array_equal(held["id"], [token(int(place)) for place in places])
        np.testing.assert_array_equal(held["score"], held["id"].astype(np.float32))
        if len(held) and places[-1] != recovered.tokens - 1:
            raise AssertionError("the last token is not in its slot")
        if recovered.snapshot is not None:
            found["snapshot"] = 1
            taken = int(recovered.snapshot.tables["said"][0])
            if taken != recovered.snapshot.position.tokens:
                raise AssertionError(f"a snapshot of {taken} tokens says {recovered.snapshot.position.tokens}")
            assert_state(recovered.snapshot.state, recovered.snapshot.tables["ids"].tolist())
        found["torn"] = recovered.cut_bytes > 0
        found["unfinished"] = recovered.unfinished is not None
        found["damaged snapshot"] = recovered.why_not is not None and "no snapshot was taken" not in recovered.why_not
    return found


def check_all(folder: Path) -> int:
    """Every token ever said, from all segments; how many."""
    said = 0
    with Store.open(folder, IDENTITY, POLICY, settings=StoreSettings(flush_ms=None)) as store:
        for entry in store.replay():
            ids: Any = getattr(entry, "ids", np.empty(0, np.int32))
            np.testing.assert_array_equal(ids, [token(place) for place in range(said, said + len(ids))])
            said += len(ids)
        if said != store.durable_tokens:
            raise AssertionError(f"{said} tokens in the segments, {store.durable_tokens} by the checkpoint")
    return said


def run(folder: Path, kills: int, seed: int) -> str:
    source = random.Random(seed)
    total: Counter[str] = Counter()
    acknowledged = 0
    for _ in range(kills):
        acknowledged = max(acknowledged, killed(folder, source))
        total += check(folder, acknowledged)
    segments = len(list(folder.glob("journal-*")))
    said = check_all(folder)
    details = ", ".join(f"{name} {count}" for name, count in sorted(total.items()))
    return f"{kills} kills, {said} tokens in {segments} segments, nothing lost; {details}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 30))
    options = parser.parse_args()
    print(f"seed {options.seed}", file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        print(run(Path(folder) / "store", options.kills, options.seed))


if __name__ == "__main__":
    main()
