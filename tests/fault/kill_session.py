"""Kills a talking session with SIGKILL at random moments, over and over, until it has said all it was to say: it says
what one says that was never killed, to the last bit of its memory. Snapshots are taken often, and some are damaged.

    python tests/fault/kill_session.py PACKAGE --kills 200
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # the parent forks: it must have no threads

from edgemem.runtime.memory import keeper
from edgemem.runtime.memory.waking import identity_of
from edgemem.runtime.open import open_engine
from edgemem.runtime.package import Package
from edgemem.runtime.retention.settings import RetentionSettings
from edgemem.runtime.session import Session
from edgemem.runtime.store import Store, StoreSettings
from edgemem.runtime.store.upkeep import look
from edgemem.runtime.tokenizer import Tokenizer

_TURNS, _BUDGET = 20, 72
_POLICIES = (
    RetentionSettings(policy="entropy", budget=_BUDGET, recent=16, margin=8),
    RetentionSettings(policy="window", budget=_BUDGET, when="turn"),
    RetentionSettings(policy="entropy", budget=_BUDGET, entropy_share=1.0, when="turn", makes_room="entropy"),
)


def question(turn: int) -> str:
    """Every third is longer than the budget."""
    return f"Question {turn}: " + "where is the lamp, and who has seen it? " * (4 if turn % 3 == 2 else 1)


@contextmanager
def opened(package: Path, folder: Path, policy: RetentionSettings) -> Iterator[Session]:
    source = Package.open(package, verify=False)
    engine = open_engine(source, capacity=policy.budget, threads=1)
    settings = StoreSettings(flush_ms=2.0, segment_bytes=4000)
    store = Store.open(folder, identity_of(source, engine), policy.to_dict(), settings=settings)
    with Session(engine, Tokenizer.open(source), package=source, memory=policy, store=store) as session:
        yield session


def talk(session: Session, report: Callable[[], None]) -> dict[str, Any]:
    """Say what is left to say; all that was said, and what is remembered."""
    done = len(session.messages) // 2
    for turn in range(done, _TURNS):
        options: dict[str, Any] = {"max_tokens": 5 + 9 * (turn % 4), "ignore_eos": True}
        resumes = turn == done and session.unfinished is not None
        for _ in session.resume(**options) if resumes else session.stream(question(turn), **options):
            report()
        report()
    state, table = session.engine.state(), session.memory.table
    digest = hashlib.sha256(state.keys.tobytes() + state.values.tobytes() + table.rows.tobytes()).hexdigest()
    return {"messages": session.messages, "memory": digest, "tokens": table.position}


def in_a_child(life: Callable[[int], None]) -> tuple[int, int]:
    """Fork; gives the child's process and the pipe that it writes to."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writing)
        return pid, reading
    status = 1
    try:
        os.close(reading)
        life(writing)
        status = 0
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        os._exit(status)


def reference(package: Path, folder: Path, policy: RetentionSettings) -> dict[str, Any]:
    """What a session says that is never killed."""

    def life(pipe: int) -> None:
        with opened(package, folder, policy) as session, os.fdopen(pipe, "w") as out:
            json.dump(talk(session, lambda: None), out)

    pid, reading = in_a_child(life)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    os.waitpid(pid, 0)
    found: dict[str, Any] = json.loads(text)
    return found


def killed(package: Path, folder: Path, policy: RetentionSettings, source: random.Random) -> tuple[int, Any]:
    """One child's life: the tokens it had acknowledged, and all it had to say if it came to the end of it."""
    snapshots, delay_s = source.random() < 0.5, source.choice((0.02, 0.15)) * source.random()

    def life(pipe: int) -> None:
        if snapshots:
            keeper._EVERY_S = keeper._SHARE = 0
        with opened(package, folder, policy) as session:
            store = session.memory.store
            if store is None:
                raise RuntimeError("no store")
            said = talk(session, lambda: print_line(pipe, {"durable": store.durable_tokens}))
        print_line(pipe, said)

    pid, reading = in_a_child(life)
    with os.fdopen(reading, "rb", buffering=0) as pipe:
        first = pipe.readline() if source.random() < 0.8 else b""  # or while it opens
        time.sleep(delay_s)
        os.kill(pid, signal.SIGKILL)
        lines = (first + pipe.readall()).split(b"\n")[:-1]
    _, status = os.waitpid(pid, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise AssertionError(f"a child ended by itself: {status}")
    reports = [json.loads(line) for line in lines]
    said = reports[-1] if reports and "messages" in reports[-1] else None
    return max((report.get("durable", 0) for report in reports), default=0), said


def print_line(pipe: int, value: dict[str, Any]) -> None:
    os.write(pipe, json.dumps(value).encode() + b"\n")


def check(folder: Path, acknowledged: int, wanted: dict[str, Any]) -> Counter[str]:
    """Look at what a child left."""
    if not any(folder.glob("journal-*")):
        if acknowledged:
            raise AssertionError(f"nothing is left of {acknowledged} tokens")
        return Counter()
    found = look(folder)
    conversation = found.conversation
    if conversation.tokens < acknowledged:
        raise AssertionError(f"{conversation.tokens} tokens are left of {acknowledged} that were acknowledged")
    if conversation.messages != wanted["messages"][: len(conversation.messages)]:
        raise AssertionError("other messages than without the kills")
    return Counter({"unfinished": conversation.unfinished is not None, "snapshot": bool(found.snapshots)})


def harm(folder: Path, source: random.Random) -> Counter[str]:
    """Now and then damage the newest snapshot."""
    snapshots = sorted(folder.glob("snapshot-*"))
    if not snapshots or source.random() < 0.6:
        return Counter()
    data = bytearray(snapshots[-1].read_bytes())
    data[source.randrange(len(data))] ^= 1 << source.randrange(8)
    snapshots[-1].write_bytes(data)
    return Counter({"damaged snapshot": 1})


def run(package: Path, folder: Path, kills: int, seed: int) -> str:
    source = random.Random(seed)
    wanted = [reference(package, folder / f"reference-{place}", policy) for place, policy in enumerate(_POLICIES)]
    total: Counter[str] = Counter()
    talks = acknowledged = done = 0
    while done < kills:
        place = talks % len(_POLICIES)
        here = folder / f"talk-{talks}"
        durable, said = killed(package, here, _POLICIES[place], source)
        acknowledged = max(acknowledged, durable)
        total += check(here, acknowledged, wanted[place])
        if said is None:
            total += harm(here, source)
            done += 1
            continue
        if said != wanted[place]:
            raise AssertionError(f"talk {talks} did not end as without the kills")
        talks, acknowledged = talks + 1, 0
    details = ", ".join(f"{name} {count}" for name, count in sorted(total.items()))
    return f"{kills} kills, {talks} talks said to the end as without them; {details}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("package", type=Path)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 30))
    options = parser.parse_args()
    print(f"seed {options.seed}", file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        print(run(options.package, Path(folder), options.kills, options.seed))


if __name__ == "__main__":
    main()
