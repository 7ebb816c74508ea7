"""SIGKILL at random moments of a talk, over the real file system; the loop itself is in fault/kill_store.py."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

LOOP = Path(__file__).parent / "fault" / "kill_store.py"


def test_two_hundred_kills_lose_nothing() -> None:
    loop = [sys.executable, str(LOOP), "--kills", "200", "--seed", "1"]
    done = subprocess.run(loop, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "200 kills" in done.stdout
    assert "nothing lost" in done.stdout
