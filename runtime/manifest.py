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
    """All that a package says of itself. `precision` holds every matrix of model.matrices() by name."""

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

    def precision_of(self, name: str) -> Precision:
        """How matrix `name` is stored; PackageError for a name that the model has not."""
        if name not in self.precision:
            raise PackageError(
                f"the model has no matrix {name!a}", where=self.name, got=f"{len(self.precision)} other matrices"
            )
        return self.precision[name]
