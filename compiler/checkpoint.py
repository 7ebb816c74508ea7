"""One checkpoint object for every kind of model file: a WeightSource with its tokenizer and its origin.

It chooses the reader; reading itself is in huggingface.py and gguf_reader.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgemem.compiler.source_folder import SourceFolder
from edgemem.runtime.errors import CheckpointError, SettingsError
from edgemem.runtime.limits import LIMITS
from edgemem.runtime.manifest import Origin
from edgemem.runtime.model import ModelSpec
from edgemem.runtime.weights import Matrix


class Checkpoint:
    """The tensors of a model file under canonical names, memory-mapped and lazy.

    `tokenizer_files` holds tokenizer.json, tokenizer_config.json (with the chat template) and generation_config.json
    (with bos_token_id and the list eos_token_id). The caller closes it; it is a context manager too.
    """

    def __init__(
        self,
        *,
        model: ModelSpec,
        matrices: Mapping[str, Matrix],
        vectors: Mapping[str, Callable[[], NDArray[np.float32]]],
        tokenizer_files: dict[str, bytes],
        find_origin: Callable[[], Origin],
        close: Callable[[], None],
    ) -> None:
        self.model, self.tokenizer_files = model, tokenizer_files
        self._matrices, self._vectors = matrices, vectors
        self._find_origin, self._close = find_origin, close

    @cached_property
    def origin(self) -> Origin:
        """Where the weights came from. The first look reads every byte of the files, for their SHA-256."""
        return self._find_origin()

    def matrix(self, name: str) -> Matrix:
        """SettingsError for a name that is not among model.matrices()."""
        if name not in self._matrices:
            raise SettingsError(f"the model has no matrix {name!a}", wanted="a name of ModelSpec.matrices()")
        return self._matrices[name]

    def vector(self, name: str) -> NDArray[np.float32]:
        """The vector as float32. SettingsError for a name not among model.vectors(), NumericError for NaN or Inf."""
        if name not in self._vectors:
            raise SettingsError(f"the model has no vector {name!a}", wanted="a name of ModelSpec.vectors()")
        return self._vectors[name]()

    def close(self) -> None:
        self._close()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_checkpoint(source: Path, *, max_context: int | None = None) -> Checkpoint:
    """Open a Hugging Face folder, a .gguf file, or a folder holding exactly one .gguf file.

    `max_context` only chooses between LongRoPE's short factors (up to the original context, and if None) and its long.
    Raises CheckpointError, UnsupportedModel, UnsafePathError or TokenizerMismatch; nothing is read beyond headers and
    tokenizer.
    """
    source = Path(source)
    if max_context is not None and (type(max_context) is not int or not 0 < max_context <= LIMITS.context):
        raise SettingsError("max_context is out of range", got=max_context, wanted=f"1 to {LIMITS.context}")
    if source.is_dir():
        folder = SourceFolder(source)
        ggufs = folder.names(".gguf")
        if not ggufs or "config.json" in folder.names():
            from edgemem.compiler.huggingface import open_folder

            return open_folder(folder, max_context)
        if len(ggufs) > 1:
            raise CheckpointError(
                "the folder holds several GGUF files",
                where=source,
                got=", ".join(ggufs[:8]),
                wanted="exactly one",
                do="name the one file to compile",
            )
        folder.file(ggufs[0])  # a link must not lead out of the folder
        source = source / ggufs[0]
    if not source.exists():
        raise CheckpointError("no such model", where=source, do="give a Hugging Face folder or a .gguf file")
    from edgemem.compiler.gguf_reader import open_gguf

    return open_gguf(source)
