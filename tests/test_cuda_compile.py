"""Every kernel of the cuda engine compiles for every GPU, in a process that does not interpret them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgemem.kernels.cuda.compile_targets import CAPABILITIES

SPILLED_BYTES = 128  # of a thread: a few values, outside of the loops
SHARED_BYTES = 99 << 10  # what a program may have on the GPU that has least


@pytest.mark.timeout(900)  # dozens of compilations
def test_every_kernel_compiles_for_every_gpu(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "edgemem.kernels.cuda.compile_targets"],
        env={**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:] + done.stdout[-4000:]  # a refusal comes with the whole program
    kernels: dict[str, set[int]] = {}
    for line in done.stdout.splitlines():
        record = json.loads(line)
        kernels.setdefault(record["kernel"], set()).add(record["capability"])
        assert 0 < record["registers"] <= 255, record
        assert record["stack_bytes"] <= SPILLED_BYTES, record
        assert record["shared_bytes"] <= SHARED_BYTES, record
    assert {"quantized_matvec", "float_matvec", "embed_row", "attend", "survey_logits", "narrow", "draw"} <= set(
        kernels
    )
    assert all(capabilities == set(CAPABILITIES) for capabilities in kernels.values())
