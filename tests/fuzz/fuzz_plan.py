"""Any text is a plan file or a SettingsError; an accepted one names matrices of the model and precisions that fit."""

from __future__ import annotations

from pathlib import Path

import driver
from small_packages import small_model

from edgemem.compiler.plan import read_plan_file
from edgemem.runtime.errors import SettingsError

_MODEL = small_model()
SEEDS = [
    b"layers.0-2.down: int8-g32\nlayers.*.*: int4-g64-min\nlayers.1.query: fp32\nhead: fp16\n",
    b'{"embedding": "int8-g64-min", "layers.2.up": bf16}',
]


def fuzz_one_input(data: bytes) -> bool:
    with driver.in_memory_file(data) as descriptor:
        try:
            exact = read_plan_file(Path(f"/proc/self/fd/{descriptor}"), _MODEL)
        except SettingsError:
            return False
    shapes = dict(_MODEL.matrices())
    for name, precision in exact.items():
        if precision.quantized and shapes[name][1] % precision.group:
            raise AssertionError(f"{name} cannot be {precision}")
    return True


if __name__ == "__main__":
    driver.main(fuzz_one_input, SEEDS)
