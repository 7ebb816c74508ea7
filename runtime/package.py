"""A compiled package: opened, checked, and its tensors given as views of the mapped weights file.

Nothing of a package is trusted: not its file names, sizes, hashes, tensor header or values, nor its graphs. It runs
nothing itself; engines and the tokenizer are built from what it hands out.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgemem.kernels.formats import Precision
from edgemem.runtime.errors import EngineError, PackageError
from edgemem.runtime.finite import find_not_finite
from edgemem.runtime.graph_check import check_graph
from edgemem.runtime.limits import LIMITS
from edgemem.runtime.manifest import MANIFEST_FILE, WEIGHTS_FILE, Manifest
from edgemem.runtime.manifest_yaml import RECOMPILE, load
from edgemem.runtime.model import ModelSpec
from edgemem.runtime.safe_files import SafeFolder, read_at_most, sha256_of
from edgemem.runtime.stored_matrix import StoredMatrix
from edgemem.runtime.tensor_file import TensorEntry, TensorFile
from edgemem.runtime.weight_layout import tensor_specs

Identity = tuple[int, ...]  # device, inode, size and times of a file
_HEADER_BYTES_A_TENSOR = 256  # name, dtype, shape and offsets take some 120
_JOIN = "use the whole package, or lend the other layers from a server: edgemem split run PACKAGE --server NAME"
ENGINES_FOLDER = "engines"  # built on this device, safe to delete, no part of the contract


class Package:
    """An open package; a WeightSource. Use `Package.open`, and close it or use it as a context manager.

    The weights are mapped: if another process shortens their file meanwhile, the system ends this one with SIGBUS.
    """

    def __init__(
        self,
        path: Path,
        folder: SafeFolder,
        manifest: Manifest,
        tensors: TensorFile,
        identities: dict[str, Identity],
    ) -> None:
        self.path = path
        self.manifest = manifest
        self.model: ModelSpec = manifest.model
        self._folder = folder
        self._tensors = tensors
        self._identities = identities
        self._shapes = dict(manifest.model.matrices(*manifest.layers))
        self._lengths = dict(manifest.model.vectors(*manifest.layers))
        self._checked_graphs: set[str] = set()

    @classmethod
    def open(cls, path: Path | str, *, verify: bool = True) -> Package:
        """Open the package folder `path`.

        Always checked: the manifest, the set of files, their sizes, the weights' header. With `verify` also every
        file's SHA-256 and that all weights are finite. Raises PackageError, or UnsafePathError for a link or a
        special file inside.
        """
        path = Path(path)
        folder = _open_folder(path)
        try:
            manifest = _read_manifest(folder)
            _check_names(folder, manifest)
            tensors, identities = _open_files(folder, manifest, verify)
        except BaseException:
            folder.close()
            raise
        return cls(path.resolve(), folder, manifest, tensors, identities)

    @property
    def tensors(self) -> Mapping[str, TensorEntry]:
        """Every tensor of the weights file, with its absolute byte offsets, in file order."""
        return self._tensors.tensors

    def require(self, first: int = 0, last: int | None = None) -> None:
        """Raises PackageError unless layers [first, last) are here, by default all of the model's."""
        last = self.model.layers if last is None else last
        here = self.manifest.layers
        if not here[0] <= first < last <= here[1]:
            raise PackageError(
                "the package holds only a part of the model",
                where=self.path,
                got=f"layers [{here[0]}, {here[1]}) of {self.model.layers}",
                wanted=f"layers [{first}, {last})",
                do=_JOIN,
            )

    def precision(self, name: str) -> Precision:
        """How matrix `name` is stored."""
        return self.manifest.precision_of(name)

    def matrix(self, name: str) -> StoredMatrix:
        """The matrix `name` of the layers that are here, mapped; nothing is read yet."""
        if name not in self._shapes:
            raise self._unknown("matrix", name, self._shapes)
        return StoredMatrix(self._tensors, name, self._shapes[name], self.precision(name))

    def vector(self, name: str) -> NDArray[np.float32]:
        """A copy of the vector `name` of the layers that are here, float32; PackageError if it is not finite."""
        if name not in self._lengths:
            raise self._unknown("vector", name, self._lengths)
        values: NDArray[np.float32] = self._tensors.array(name).copy()
        _check_finite(name, values, self.path / WEIGHTS_FILE)
        return values

    def file(self, name: str) -> Path:
        """The path of a file of the manifest, after a look that it is still the file that was opened.

        A graph is given only after its content was found harmless: see graph_check.py.
        """
        record = self.manifest.files.get(name)
        if record is None:
            raise self._unknown("file", name, self.manifest.files)
        with _opened(self._folder, name, record.bytes) as descriptor:
            if _identity(descriptor) != self._identities[name]:
                raise PackageError(
                    "a file of the package changed since it was opened",
                    where=self.path / name,
                    do="open the package again",
                )
            graphs = {graph.file for graph in self.manifest.graphs}
            if name in graphs and name not in self._checked_graphs:
                weights_bytes = self.manifest.files[WEIGHTS_FILE].bytes
                check_graph(descriptor, self.path / name, WEIGHTS_FILE, weights_bytes, self.manifest.max_context)
                self._checked_graphs.add(name)
        return self.path / name

    def graph(self, first: int = 0, last: int | None = None) -> Path:
        """The ONNX graph over layers [first, last), checked. Raises EngineError naming the graphs that exist."""
        last = self.model.layers if last is None else last
        for graph in self.manifest.graphs:
            if (graph.first, graph.last) == (first, last):
                return self.file(graph.file)
        there = ", ".join(f"[{graph.first}, {graph.last})" for graph in self.manifest.graphs) or "none"
        raise EngineError(
            "the package has no graph for these layers",
            where=self.path,
            got=f"layers [{first}, {last})",
            wanted=f"one of {there}",
            do=self._how_to_stage(first, last),
        )

    def _how_to_stage(self, first: int, last: int) -> str:
        if self.manifest.part is not None:
            return "use the native engine, which needs no graph"
        end = self.model.layers
        if (first == 0 and 0 < last < end) or (last == end and 0 < first < end):
            return f"edgemem compile SOURCE -o {self.path} --stages {first or last}"
        return (
            f"ask for the front [0, K) or the back [K, {end}), 0 < K < {end}: compile --stages K writes no other part"
        )

    def _unknown(self, kind: str, name: str, known: Collection[str]) -> PackageError:
        some = ", ".join([*islice(known, 8), *(["..."] if len(known) > 8 else [])])
        do = None if self.manifest.part is None else _JOIN
        return PackageError(f"the package has no {kind} {name!a}", where=self.path, wanted=f"one of {some}", do=do)

    def forget_pages(self) -> None:
        """Give back the memory of the weights' pages, for an engine that has copied what it needs of them."""
        self._tensors.forget_pages()

    def close(self) -> None:
        """Let go of the files. Views that were handed out stay valid."""
        self._tensors.close()
        self._folder.close()

    def __enter__(self) -> Package:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _open_folder(path: Path) -> SafeFolder:
    try:
        return SafeFolder(path)
    except PermissionError as problem:
        raise _unreadable(path, problem) from problem
    except (OSError, ValueError) as problem:
        raise _no_package(path) from problem


def _unreadable(path: Path, problem: OSError) -> PackageError:
    return PackageError("cannot read the package", where=path, got=problem.strerror, do="check its permissions")


def _no_package(path: Path) -> PackageError:
    """The error for a path without a manifest, saying what lies there instead and how to make a package of it."""
    compile_it = f"compile it first: edgemem compile {path} -o {path.name or 'OUT'}.edgemem"
    if path.is_file():
        with path.open("rb") as file:
            is_gguf = file.read(4) == b"GGUF"
        kind = "a GGUF model file" if is_gguf else "a file"
        return PackageError("not a compiled package", where=path, got=kind, wanted="a folder", do=compile_it)
    if not path.is_dir():
        kind = "nothing there" if not path.exists() else "no folder"
        return PackageError(
            "not a compiled package",
            where=path,
            got=kind,
            do="check the path, or edgemem compile; names of models work on the command line alone",
        )
    kind = "a model folder" if (path / "config.json").exists() else "a folder"
    return PackageError("not a compiled package", where=path, got=f"{kind} without {MANIFEST_FILE}", do=compile_it)


def _read_manifest(folder: SafeFolder) -> Manifest:
    try:
        descriptor = folder.open(MANIFEST_FILE)
    except FileNotFoundError as problem:
        raise _no_package(folder.path) from problem
    except OSError as problem:
        raise _unreadable(folder.path / MANIFEST_FILE, problem) from problem
    try:
        raw = read_at_most(descriptor, LIMITS.manifest_bytes + 1)
    finally:
        os.close(descriptor)
    return load(raw, where=folder.path / MANIFEST_FILE)


def _check_names(folder: SafeFolder, manifest: Manifest) -> None:
    wanted = {MANIFEST_FILE, *manifest.files}
    there = folder.names() - {ENGINES_FOLDER}
    missing, extra = sorted(wanted - there), sorted(there - wanted)
    if missing or extra:
        raise PackageError(
            "the package's files are not those of its manifest",
            where=folder.path,
            got=f"missing: {', '.join(missing) or 'none'}; extra: {', '.join(map(ascii, extra[:10])) or 'none'}",
            do="remove what is extra; if files are missing, copy the whole folder again or recompile",
        )


@contextmanager
def _opened(folder: SafeFolder, name: str, size: int) -> Iterator[int]:
    """The descriptor of a file of the manifest, of exactly `size` bytes."""
    try:
        descriptor = folder.open(name)
    except OSError as problem:
        raise PackageError("cannot open a file of the package", where=folder.path / name, got=problem) from problem
    try:
        got = os.fstat(descriptor).st_size
        if got != size:
            raise PackageError(
                "a file of the package is truncated or altered",
                where=folder.path / name,
                got=f"{got} bytes",
                wanted=f"{size} bytes",
                do="copy the whole folder again or recompile",
            )
        yield descriptor
    finally:
        os.close(descriptor)


def _open_files(folder: SafeFolder, manifest: Manifest, verify: bool) -> tuple[TensorFile, dict[str, Identity]]:
    """Check every file of the manifest; gives the weights file open, and which file each name meant."""
    identities: dict[str, Identity] = {}
    path = folder.path / WEIGHTS_FILE
    for name, record in manifest.files.items():
        with _opened(folder, name, record.bytes) as descriptor:
            identities[name] = _identity(descriptor)
            if verify and (got := sha256_of(descriptor)) != record.sha256:
                raise PackageError(
                    "a file of the package was altered: its SHA-256 differs",
                    where=folder.path / name,
                    got=got,
                    wanted=record.sha256,
                    do="copy the whole folder again or recompile",
                )
            if name == WEIGHTS_FILE:
                _check_header_length(descriptor, manifest, path)
                tensors = TensorFile.open(path, error=PackageError, descriptor=descriptor)
    _check_tensors(tensors, manifest, path)
    if verify:
        for name in tensors.tensors:
            if not name.endswith(".codes"):
                _check_finite(name, tensors.array(name), path)
    return tensors, identities


def _identity(descriptor: int) -> Identity:
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _check_header_length(descriptor: int, manifest: Manifest, path: Path) -> None:
    """Before the header is read: it can be no longer than the manifest's own tensors need."""
    length = int.from_bytes(read_at_most(descriptor, 8), "little")
    vectors = len(dict(manifest.model.vectors(*manifest.layers)))
    longest = _HEADER_BYTES_A_TENSOR * (3 * len(manifest.precision) + vectors + 1)
    if length > longest:
        raise PackageError(
            "the header's length is impossible", where=path, got=f"{length} bytes", wanted=f"at most {longest} bytes"
        )


def _check_tensors(tensors: TensorFile, manifest: Manifest, path: Path) -> None:
    """The file holds exactly the tensors that the layers and their precisions ask for, in their order."""
    try:
        specs = list(tensor_specs(manifest.model, manifest.precision, *manifest.layers))
    except ValueError as problem:
        raise PackageError("the manifest's precisions do not fit its model", where=path, got=problem) from problem
    wanted = {spec.name: (spec.dtype, spec.shape) for spec in specs}
    got = {name: (entry.dtype, entry.shape) for name, entry in tensors.tensors.items()}
    if list(got.items()) == list(wanted.items()):
        return
    for name in [*wanted, *got]:
        if got.get(name) != wanted.get(name):
            raise PackageError(
                f"tensor {name[:80]!a} is not as the manifest has it",
                where=path,
                got=got.get(name, "none"),
                wanted=wanted.get(name, "none"),
                do=RECOMPILE,
            )
    raise PackageError("the tensors are in another order than the format's", where=path, do=RECOMPILE)


def _check_finite(name: str, values: NDArray[np.generic], path: Path) -> None:
    found = find_not_finite(values)
    if found is not None:
        raise PackageError(
            f"tensor {name!a} holds NaN or Inf", where=path, got=found, do="recompile the package from sound weights"
        )
