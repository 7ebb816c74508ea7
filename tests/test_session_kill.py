"""SIGKILL at random moments of a talking session; the loop itself is in fault/kill_session.py."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

LOOP = Path(__file__).parent / "fault" / "kill_session.py"


def test_a_talk_that_is_killed_twenty_times_says_what_it_would_have_said(tiny_package: Path) -> None:
    loop = [sys.executable, str(LOOP), str(tiny_package), "--kills", "20", "--seed", "1"]
    done = subprocess.run(loop, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "20 kills" in done.stdout
    assert "as without them" in done.stdout
