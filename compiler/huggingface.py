"""The Hugging Face folder reader: config.json, one or many safetensors, tokenizer files.

Names and shapes are settled from the headers against the ModelSpec before any weight is read.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgemem.compiler.architectures import Architecture, Part, read_architecture
from edgemem.compiler.checkpoint import Checkpoint
from edgemem.compiler.fields import Fields
from edgemem.compiler.matrices import FLOAT_KINDS, FloatMatrix, check_finite
from edgemem.compiler.source_folder import SourceFolder, sha256_of_file
from edgemem.compiler.tokenizer_files import read_json, read_tokenizer_files
from edgemem.runtime.errors import CheckpointError, UnsupportedModel
from edgemem.runtime.limits import LIMITS
from edgemem.runtime.manifest import Origin
from edgemem.runtime.model import ModelSpec
from edgemem.runtime.tensor_file import TensorFile, widen

_INDEX = "model.safetensors.index.json"
_CONFIG_BYTES = 16 << 20
_README_BYTES = 64 << 10
_LICENCE = re.compile(r"^license:[ \t]*([\w.+ -]{1,100}?)[ \t]*$", re.MULTILINE)
# Buffers that older versions saved: they are computed, not learned.
_COMPUTED = (".rotary_emb.inv_freq", ".rotary_emb.cos_cached", ".rotary_emb.sin_cached", ".masked_bias")


def open_folder(folder: SourceFolder, max_context: int | None = None) -> Checkpoint:
    """Open a model folder; see checkpoint.open_checkpoint for the arguments and for what is raised."""
    path = folder.path
    plain = read_json(folder, "config.json", _CONFIG_BYTES)
    if plain is None:
        raise CheckpointError(
            "config.json is missing",
            where=path,
            got=", ".join(folder.names()[:8]) or "an empty folder",
            do="give a Hugging Face model folder or a .gguf file",
        )
    config = Fields(plain, path / "config.json")
    architecture = read_architecture(config, max_context)
    tokenizer_files = read_tokenizer_files(folder, config, architecture.model.vocabulary)
    with ExitStack() as stack:
        files = _open_files(folder, stack)
        tensors = {name: file for file in files for name in file.tensors}
        placed = _place(architecture, tensors, path)
        _check_shapes(architecture.model, placed, tensors)
        closing = stack.pop_all()
    model = architecture.model
    return Checkpoint(
        model=model,
        matrices={name: _matrix(name, tensors[placed[name].tensor], placed[name]) for name in _matrix_names(model)},
        vectors={name: _vector(name, tensors[placed[name].tensor], placed[name]) for name, _ in model.vectors()},
        tokenizer_files=tokenizer_files,
        find_origin=lambda: _origin(folder, [file.path for file in files]),
        close=closing.close,
    )


def _open_files(folder: SourceFolder, stack: ExitStack) -> list[TensorFile]:
    index = read_json(folder, _INDEX, LIMITS.tensor_header_bytes)
    if index is None:
        names = folder.names(".safetensors")
        chosen = "model.safetensors" if "model.safetensors" in names else names[0] if len(names) == 1 else None
        if chosen is None:
            raise CheckpointError(
                "no weights found",
                where=folder.path,
                got=", ".join(names[:8] or folder.names(".bin")[:8]) or "no safetensors file",
                wanted=f"model.safetensors, or several files with {_INDEX}",
                do="save the model with safetensors: model.save_pretrained(FOLDER)",
            )
        return [stack.enter_context(TensorFile.open(folder.file(chosen)))]
    where = _weight_map(index, folder)
    files = []
    for name in sorted(set(where.values())):
        file = stack.enter_context(TensorFile.open(folder.file(name)))
        listed = {tensor for tensor, holder in where.items() if holder == name}
        if listed != set(file.tensors):
            odd = sorted(listed ^ set(file.tensors))
            raise CheckpointError(
                "the index and the file disagree", where=folder.path / name, got=_listing(odd), wanted=f"as in {_INDEX}"
            )
        files.append(file)
    return files


def _weight_map(index: dict[str, object], folder: SourceFolder) -> dict[str, str]:
    where = index.get("weight_map")
    if not isinstance(where, dict) or not where or not all(isinstance(name, str) for name in where.values()):
        raise CheckpointError(f"{_INDEX} has no weight_map", where=folder.path, wanted="tensor names and their files")
    return where


def _place(architecture: Architecture, tensors: dict[str, TensorFile], path: Path) -> dict[str, Part]:
    """Canonical name to the file's full tensor name; names every tensor that is missing or not expected."""
    decoder, head = next(
        (pair for pair in architecture.prefixes if f"{pair[0]}embed_tokens.weight" in tensors),
        architecture.prefixes[-1],
    )
    placed = {}
    for name, part in architecture.parts.items():
        prefix = head if part.tensor.startswith("lm_head.") else decoder
        placed[name] = Part(prefix + part.tensor, part.start, part.stop, part.added)
    wanted = {part.tensor for part in placed.values()}
    missing = sorted(wanted - set(tensors))
    surplus = sorted(name for name in set(tensors) - wanted if not _harmless(name, architecture, decoder, head))
    if missing or surplus:
        raise CheckpointError(
            f"the weights are not those of the {architecture.model.architecture} that config.json describes",
            where=path,
            got=f"missing: {_listing(missing)}; not expected: {_listing(surplus)}",
            wanted=f"{len(wanted)} tensors",
            do="take config.json and weights from the same model, and every file of the weights",
        )
    return placed


def _harmless(name: str, architecture: Architecture, decoder: str, head: str) -> bool:
    if name.endswith(_COMPUTED):
        return True
    if name == f"{head}lm_head.weight":
        return architecture.model.tied_head  # a copy of the embedding
    return architecture.has_other_modalities and not name.startswith(decoder)


def _check_shapes(model: ModelSpec, placed: dict[str, Part], tensors: dict[str, TensorFile]) -> None:
    wanted: dict[str, tuple[int, ...]] = {name: (length,) for name, length in model.vectors()}
    wanted.update(model.matrices())
    whole: dict[str, tuple[int, ...]] = {}
    for name, shape in wanted.items():
        part = placed[name]
        rows = max(part.stop or shape[0], whole.get(part.tensor, (0,))[0])  # fused tensors: the last part's end
        whole[part.tensor] = (rows, *shape[1:])
    for tensor, shape in whole.items():
        file = tensors[tensor]
        entry = file.tensors[tensor]
        if entry.shape != shape:
            raise CheckpointError(
                f"tensor {tensor} has the wrong shape",
                where=file.path,
                got=entry.shape,
                wanted=f"{shape}, from config.json",
                do="take config.json and weights from the same model",
            )
        if entry.dtype not in FLOAT_KINDS:
            raise UnsupportedModel(
                f"tensor {tensor} is {entry.dtype}",
                where=file.path,
                wanted=f"one of {', '.join(FLOAT_KINDS)}",
                do="take the original checkpoint, or a GGUF file",
            )


def _matrix_names(model: ModelSpec) -> dict[str, None]:
    return dict.fromkeys(name for name, _ in model.matrices())


def _matrix(name: str, file: TensorFile, part: Part) -> FloatMatrix:
    return FloatMatrix(name, file.array(part.tensor)[part.start : part.stop], file.tensors[part.tensor].dtype)


def _vector(name: str, file: TensorFile, part: Part) -> Callable[[], NDArray[np.float32]]:
    def read() -> NDArray[np.float32]:
        values = widen(file.array(part.tensor))
        check_finite(name, values)
        return values + np.float32(part.added) if part.added else values

    return read


def _origin(folder: SourceFolder, paths: list[Path]) -> Origin:
    """The SHA-256 is that of the lines `sha256  name` of config.json and the weight files, sorted by name."""
    lines = [f"{sha256_of_file(path)}  {path.name}\n" for path in [folder.file("config.json"), *sorted(paths)]]
    return Origin(folder.title, "huggingface", hashlib.sha256("".join(lines).encode()).hexdigest(), _licence(folder))


def _licence(folder: SourceFolder) -> str | None:
    if "README.md" not in folder.names():
        return None
    with folder.file("README.md").open("rb") as file:
        text = file.read(_README_BYTES).decode("utf-8", "replace")
    front, _, _ = text.removeprefix("---\n").partition("\n---")
    match = _LICENCE.search(front) if text.startswith("---\n") else None
    return match.group(1) if match else None


def _listing(names: list[str]) -> str:
    shown = ", ".join(ascii(name)[1:-1] for name in names[:8])
    return f"{shown}{f' and {len(names) - 8} more' if len(names) > 8 else ''}" or "none"
