"""The head: how likely hands are at work, from what the ear made of a window. A logistic model, NumPy alone.

Weights come from a file that is not believed before it is checked. It does not smooth and does not decide.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemem.runtime.errors import FileError, NumericError, SettingsError, shown
from edgemem.runtime.tensor_file import TensorFile

EMBEDDING = 1024
FORMAT = "edgemem-hands-1"
SHIPPED = Path(__file__).parent / "data" / "hands.safetensors"
_SHAPES = {"weights": (EMBEDDING,), "bias": (1,)}
_FILE_BYTES = 1 << 16
_LARGEST = 1e4  # times 1024 activations this is still far from where float32 ends


class Head:
    """p = 1 / (1 + exp(-(weights . embedding + bias)))."""

    def __init__(self, weights: NDArray[np.float32], bias: float) -> None:
        """weights: (1024,) float32. Raises SettingsError for another shape or type, or a value that is not finite."""
        if weights.shape != (EMBEDDING,) or weights.dtype != np.float32:
            got = f"{weights.dtype}{list(weights.shape)}"
            raise SettingsError("these are no weights of a head", got=got, wanted=f"float32[{EMBEDDING}]")
        finite = np.isfinite(weights).all() and math.isfinite(bias)
        if not finite or max(float(np.abs(weights).max()), abs(bias)) > _LARGEST:
            wanted = f"finite, at most {_LARGEST:g}"
            raise SettingsError("a weight of the head is out of range", wanted=wanted)
        self.weights, self.bias = weights, float(bias)

    @classmethod
    def open(cls, path: Path | None = None) -> Head:
        """The weights in `path`, by default those that are shipped. Raises FileError for anything but a head."""
        path = SHIPPED if path is None else Path(path)
        try:
            size = path.stat().st_size
        except (OSError, ValueError) as problem:
            raise FileError("cannot open the head", where=path, got=problem) from problem
        if size > _FILE_BYTES:
            raise FileError("too large for a head", where=path, got=size, wanted=f"at most {_FILE_BYTES} bytes")
        with TensorFile.open(path, error=FileError) as file:
            arrays = _arrays(file)
        try:
            return cls(arrays["weights"].astype(np.float32), float(arrays["bias"][0]))
        except SettingsError as problem:
            raise FileError(problem.what, where=path, got=problem.got, wanted=problem.wanted) from problem

    def score(self, embedding: NDArray[np.float32]) -> float:
        """0 to 1, of one embedding (1024,). Raises as `scores` does."""
        return float(self.scores(embedding[np.newaxis])[0])

    def scores(self, embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
        """(n,) float32, 0 to 1, of (n, 1024). Raises SettingsError for another shape, NumericError for NaN or Inf."""
        if embeddings.ndim != 2 or embeddings.shape[1] != EMBEDDING:
            got, wanted = f"[{', '.join(map(str, embeddings.shape))}]", f"[n, {EMBEDDING}]"
            raise SettingsError("these are no embeddings", got=got, wanted=wanted)
        logits = self.logits(embeddings)
        if not np.isfinite(logits).all():
            raise NumericError("an embedding holds NaN or Inf, or is far too large")
        return np.asarray(0.5 * (1.0 + np.tanh(0.5 * logits)), np.float32)  # the logistic function, without overflow

    def logits(self, embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
        """(n,): what the logistic function is taken of; unchecked."""
        with np.errstate(all="ignore"):
            return np.asarray(embeddings @ self.weights + np.float32(self.bias), np.float32)


def _arrays(file: TensorFile) -> dict[str, NDArray[Any]]:
    """Exactly the tensors of a head. Raises FileError."""
    made_as = file.metadata.get("format")
    if made_as != FORMAT:
        raise FileError("this file holds no head of ours", where=file.path, got=shown(made_as), wanted=FORMAT)
    found = {name: (entry.dtype, entry.shape) for name, entry in file.tensors.items()}
    wanted = {name: ("F32", shape) for name, shape in _SHAPES.items()}
    if found != wanted:
        raise FileError("the head's tensors are not those of a head", where=file.path, got=shown(found), wanted=wanted)
    return {name: file.array(name) for name in _SHAPES}
