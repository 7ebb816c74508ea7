"""The models that are compared: one GGUF file that every runtime reads, and the package compiled from it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgemem.compiler.build import CompileOptions, compile_model
from edgemem.compiler.quality import calibration_text
from edgemem.kernels.cost import step_cost
from edgemem.kernels.formats import Precision
from edgemem.runtime.errors import SettingsError
from edgemem.runtime.model import ModelSpec
from edgemem.runtime.package import Package
from edgemem.runtime.tokenizer import Tokenizer
from edgemem.tools.console import note
from edgemem.tools.download import pull
from edgemem.tools.peers.shapes import SHAPES, write_shape
from edgemem.tools.registry import KNOWN_MODELS

MODELS = (*KNOWN_MODELS, *SHAPES)
_SHAPE_FILE = "q4_0-random-1.gguf"  # the number rises when what write_shape writes changes


@dataclass(frozen=True)
class BenchModel:
    """A model ready for every runtime. ids: the prompt. real: its weights were learnt, so its greedy tokens mean
    something."""

    name: str
    gguf: Path
    package: Path
    spec: ModelSpec
    precision: dict[str, Precision]
    ids: list[int]
    real: bool

    @property
    def size_bytes(self) -> int:
        """All weights, as stored."""
        return step_cost(self.spec, self.precision.__getitem__, 0, kv_element_bytes=1).footprint_bytes

    def step_bytes(self, slots: int, kv_element_bytes: int) -> int:
        """Bytes that a decode step must stream when it finds `slots` KV slots in use."""
        cost = step_cost(self.spec, self.precision.__getitem__, slots, kv_element_bytes=kv_element_bytes)
        return cost.streamed_bytes


def prepare_model(name: str, cache: Path, prompt_tokens: int) -> BenchModel:
    """The model of this name with its files under `cache`; its package is compiled anew, by the code as it stands.

    Raises SettingsError for another name, and what pull and compile_model raise.
    """
    if name not in MODELS:
        raise SettingsError("there is no such model to compare on", got=repr(name), wanted=", ".join(MODELS))
    if name in KNOWN_MODELS:
        gguf = pull(name)
    else:
        gguf = cache / "models" / f"{name}-{_SHAPE_FILE}"
        if not gguf.exists():
            note(f"writing {gguf}")
            gguf.parent.mkdir(parents=True, exist_ok=True)
            write_shape(gguf, SHAPES[name])
    note(f"compiling {name}")
    return compiled(name, gguf, cache / "packages" / f"{name}.edgemem", prompt_tokens)


def compiled(name: str, gguf: Path, out: Path, prompt_tokens: int) -> BenchModel:
    """The model in the file `gguf`, compiled into `out`."""
    out.parent.mkdir(parents=True, exist_ok=True)
    compile_model(gguf, out, CompileOptions(check_tokens=0))
    real = name in KNOWN_MODELS
    with Package.open(out) as package:
        spec = package.model
        precision = {matrix: package.precision(matrix) for matrix, _ in spec.matrices()}
        ids = _text_ids(package, prompt_tokens) if real else _random_ids(spec.vocabulary, prompt_tokens)
    return BenchModel(name, gguf, out, spec, precision, ids, real)


def _text_ids(package: Package, count: int) -> list[int]:
    ids = Tokenizer.open(package).encode(calibration_text())
    return (ids * (count // len(ids) + 1))[:count]


def _random_ids(vocabulary: int, count: int) -> list[int]:
    return [int(token) for token in np.random.default_rng(0).integers(0, vocabulary, count)]
