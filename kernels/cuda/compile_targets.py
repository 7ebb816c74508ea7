"""Compiles every kernel of this folder for GPUs that are elsewhere, to see that it can be, and what it takes.

`TRITON_INTERPRET=0 python -m edgemem.kernels.cuda.compile_targets` prints a line of JSON for each.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from edgemem.kernels.cuda import attention, embedding, launching, matvec, sampling, sweep

import triton  # isort: skip  # after launching, which sets the environment that it reads

CAPABILITIES = (80, 86, 87, 89, 90, 100, 110, 120)
_MODULES = (matvec, embedding, attention, sampling, sweep)


def main() -> None:
    """The first target of each kernel is compiled for every GPU, the others for the first that has PDL."""
    seen: set[str] = set()
    jobs = []
    for module in _MODULES:
        for place, target in enumerate(module.targets()):
            name = target.kernel.__name__
            jobs += [(module.__name__, place, sm) for sm in ((90,) if name in seen else CAPABILITIES)]
            seen.add(name)
    with ProcessPoolExecutor() as pool:
        for record in pool.map(_record, jobs):
            sys.stdout.write(json.dumps(record) + "\n")


def _record(job: tuple[str, int, int]) -> dict[str, Any]:
    module, place, capability = job
    target = sys.modules[module].targets()[place]
    return {"kernel": target.kernel.__name__, "capability": capability, **compiled(target, capability)}


def compiled(target: launching.Target, capability: int) -> dict[str, Any]:
    """What the kernel takes: registers and stack bytes of a thread (0 where nothing is spilled), shared bytes."""
    pdl = capability >= 90
    constants = {**target.constants, "PDL": pdl}
    names = target.kernel.arg_names
    source = triton.compiler.ASTSource(
        target.kernel,
        {name: "constexpr" if name in constants else target.signature[name] for name in names},
        {(names.index(name),): value for name, value in constants.items()},
        {
            (place,): [["tt.divisibility", 16]]
            for place, name in enumerate(names)
            if target.signature.get(name, "").startswith("*")
        },
    )
    options: dict[str, Any] = {"num_warps": target.warps, "num_stages": target.stages, "launch_pdl": pdl}
    if target.registers is not None:
        options["maxnreg"] = target.registers
    kernel = triton.compile(source, target=triton.backends.compiler.GPUTarget("cuda", capability, 32), options=options)
    return {**usage(kernel.asm["cubin"]), "shared_bytes": kernel.metadata.shared}


def usage(cubin: bytes) -> dict[str, int]:
    """Registers and stack of a compiled kernel, as NVIDIA's own tool, which comes with Triton, reads them."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", str(path)]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    names = {"REG": "registers", "STACK": "stack_bytes"}
    return {names[name]: int(value) for name, value in re.findall(r"\b(REG|STACK):(\d+)", text)}


if __name__ == "__main__":
    main()
