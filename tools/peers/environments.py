"""One Python environment per peer, made once in the user's cache: no peer's library meets another's or ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from edgemem.runtime.errors import EngineError
from edgemem.tools.console import note
from edgemem.tools.versions import run_versions

_MARK = "installed.json"
_ASK_VERSIONS = "import sys; from importlib.metadata import version; print(*map(version, sys.argv[1:]))"


@dataclass(frozen=True)
class Runtime:
    """A runtime by name. adapter: the module that drives it. distributions: what is installed, the first built from
    source where `from_source`; none where it runs in our own Python. engine: ours, of that name."""

    name: str
    adapter: str
    distributions: tuple[str, ...] = ()
    from_source: bool = False
    build_settings: Mapping[str, str] = field(default_factory=dict)
    engine: str = ""


RUNTIMES = {
    runtime.name: runtime
    for runtime in (
        Runtime("edgemem-native", "run_edgemem", engine="native"),
        Runtime("edgemem-onnx", "run_edgemem", engine="onnx"),
        Runtime(
            "llama.cpp",
            "run_llama_cpp",
            ("llama-cpp-python",),
            from_source=True,
            build_settings={"CMAKE_ARGS": "-DGGML_NATIVE=ON"},
        ),
        Runtime("onnxruntime-genai", "run_onnxruntime_genai", ("onnxruntime-genai", "onnxruntime")),
        Runtime("openvino-genai", "run_openvino_genai", ("openvino-genai", "openvino")),
    )
}


@dataclass(frozen=True)
class Environment:
    """A Python that can run a runtime's adapter, and the versions of what it finds there."""

    python: Path
    versions: dict[str, str | None]


def prepare(runtime: Runtime, cache: Path) -> Environment:
    """The runtime's environment under `cache`, made now if it is not there. EngineError if it cannot be made."""
    if not runtime.distributions:
        return Environment(Path(sys.executable), run_versions())
    folder = cache / runtime.name
    python, mark = folder / "bin" / "python", folder / _MARK
    if not mark.exists():
        note(f"installing {', '.join(runtime.distributions)} into {folder}")
        log = cache / f"{runtime.name}.log"
        source = ["--no-binary", runtime.distributions[0]] if runtime.from_source else []
        install = [str(python), "-m", "pip", "install", *source, *runtime.distributions]
        _run([sys.executable, "-m", "venv", str(folder)], log, {})
        _run(install, log, runtime.build_settings)
        versions = subprocess.run(
            [str(python), "-c", _ASK_VERSIONS, *runtime.distributions], capture_output=True, text=True, check=True
        ).stdout.split()
        mark.write_text(json.dumps(dict(zip(runtime.distributions, versions, strict=True))))
    return Environment(python, json.loads(mark.read_text()))


def _run(command: list[str], log: Path, settings: Mapping[str, str]) -> None:
    """Run one step of the installation; EngineError with the last line it said, where it fails."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as out:
        process = subprocess.run(command, stdout=out, stderr=out, env={**os.environ, **settings}, check=False)
    if process.returncode != 0:
        lines = log.read_text(errors="replace").strip().splitlines()
        raise EngineError("the peer was not installed", where=log, got=lines[-1] if lines else "no output")
