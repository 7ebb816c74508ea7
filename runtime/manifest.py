"""The manifest: what a package says of itself, as frozen records. How it is written and read: manifest_yaml.py."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from edgemem.kernels.formats import Precision
from edgemem.runtime.errors import PackageError
from edgemem.runtime.model import ModelSpec

FORMAT = 1
MANIFEST_FILE = "manifest.yaml"
WEIGHTS_FILE = "weights.safetensors"
FILE_NAME = re.compile(r"[a-z0-9_-][a-z0-9_.-]{0,63}")  # flat, no leading dot


@dataclass(frozen=True)
class FileRecord:
    """Exact size and SHA-256 (64 hex digits) of one file."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class GraphRecord:
    """An ONNX graph over layers [first, last)."""

    file: str
    first: int
    last: int


@dataclass(frozen=True)
class Part:
    """Which layers, [first, last), a package holds that has not all of them: the model's first ones or its last.

    whole_sha256: of the weights file that it was cut from, 64 hex digits; a claim, which nothing here can check.
    """

    first: int
    last: int
    whole_sha256: str


@dataclass(frozen=True)
class Probe:
    """A golden text: the tokenizer must give exactly these ids for it."""

    text: str
    ids: tuple[int, ...]


@dataclass(frozen=True)
class TokenizerRecord:
    vocabulary: int
    probes: tuple[Probe, ...]


@dataclass(frozen=True)
class Origin:
    """Where the weights came from. format: `gguf` or `huggingface`; sha256: of the source file(s)."""

    source: str
    format: str
    sha256: str
    licence: str | None = None


@dataclass(frozen=True)
class Quality:
    """Measured at compile time against the float32 reference. kl_mean in nats; top1_agreement from 0 to 1."""

    text: str
    tokens: int
    perplexity: float
    reference_perplexity: float
    kl_mean: float
    top1_agreement: float


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """All that a package says of itself. `model` is the whole one, of which a package with a `part` holds some layers.

    precision: of every matrix of model.matrices(*layers), by name. quality: of the whole model.
    """

    format: int = FORMAT
    name: str
    model: ModelSpec
    max_context: int
    precision: Mapping[str, Precision]
    files: Mapping[str, FileRecord]
    graphs: tuple[GraphRecord, ...]
    tokenizer: TokenizerRecord
    origin: Origin
    quality: Quality | None = None
    part: Part | None = None

    @property
    def layers(self) -> tuple[int, int]:
        """[first, last) that the package holds."""
        return (0, self.model.layers) if self.part is None else (self.part.first, self.part.last)

    @property
    def model_hash(self) -> str:
        """SHA-256 of the whole model's weights file, 64 hex digits: the same of a package and of the parts of it."""
        return self.files[WEIGHTS_FILE].sha256 if self.part is None else self.part.whole_sha256

    def precision_of(self, name: str) -> Precision:
        """How matrix `name` is stored; PackageError for a name that the package has not."""
        if name not in self.precision:
            raise PackageError(
                f"the package has no matrix {name!a}", where=self.name, got=f"{len(self.precision)} other matrices"
            )
        return self.precision[name]
