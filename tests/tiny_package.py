"""Writes a tiny package with a random model, for a smoke test: `python tests/tiny_package.py OUT.edgemem`."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tiny_models import tiny_folder

from edgemem.compiler.build import CompileOptions, compile_model


def main(out: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source = tiny_folder(Path(folder), "llama", tied=True, seed=1)
        compile_model(source, out, CompileOptions(weights="int4", check_tokens=0))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
