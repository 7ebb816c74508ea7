"""Writes a package folder: first beside its destination, then swapped in whole.

Whatever happens on the way, a full disk or Ctrl-C included, the package that was there before stays as it was. Weights
are written straight to their final offsets, so memory holds one block of rows at a time.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from edgemem.compiler.swap import Staging
from edgemem.compiler.weights_writer import Block, WeightsPlan, WeightsWriter
from edgemem.kernels.formats import Precision
from edgemem.runtime.errors import PackageError
from edgemem.runtime.manifest import FILE_NAME, MANIFEST_FILE, WEIGHTS_FILE, FileRecord, Manifest
from edgemem.runtime.manifest_yaml import dump
from edgemem.runtime.model import ModelSpec
from edgemem.runtime.safe_files import sha256_of
from edgemem.runtime.tensor_file import TensorEntry

_MARGIN_BYTES = 32 << 20  # graph, tokenizer and manifest come on top of the weights


class PackageWriter:
    """Use as a context manager: leaving it without `finish`, for whatever reason, removes all that was written.

    with PackageWriter(out) as writer:
        entries = writer.write_weights(model, precision, blocks)
        writer.add_file("tokenizer.json", data)
        emit(writer.path("model.onnx")); writer.adopt("model.onnx")
        path = writer.staged(manifest)          # a package that can be opened and measured
        manifest = writer.finish(manifest)      # perhaps another: now it is at `out`
    """

    def __init__(self, out: Path) -> None:
        """Raises PackageError if `out` exists and is no package, or cannot be written."""
        self.files: dict[str, FileRecord] = {}
        self._out = Path(out)
        with self.disk_errors():
            self._staging = Staging(self._out)

    def path(self, name: str) -> Path:
        """Where file `name` is while the package is being written; `adopt` it once it is there."""
        if not FILE_NAME.fullmatch(name):
            raise PackageError("no file name for a package", where=self._out, got=ascii(name), wanted=FILE_NAME.pattern)
        return self._staging.folder / name

    def write_weights(
        self,
        model: ModelSpec,
        precision: Mapping[str, Precision],
        blocks: Iterable[tuple[str, Block]],
        layers: tuple[int, int] | None = None,
    ) -> dict[str, TensorEntry]:
        """Write weights.safetensors of `layers`, or all, and give where each tensor lies.

        `blocks` yields (name, values): every vector of them as float32, every matrix in one or more blocks of
        consecutive rows, in any order of names. A matrix's block is a QuantizedMatrix of its precision, or for a float
        precision float32 rows, which are converted here. Raises PackageError for a full disk and for a block that is
        not as declared, NumericError for NaN and Inf.
        """
        try:
            plan = WeightsPlan(model, precision, *(layers or (0, model.layers)))
        except ValueError as problem:
            raise PackageError("the precisions do not fit the model", where=self._out, got=problem) from problem
        needed = plan.file_bytes + _MARGIN_BYTES
        if needed > self._free_bytes():
            raise self._disk_full(needed)
        with self.disk_errors(needed):
            weights = WeightsWriter(self.path(WEIGHTS_FILE), plan)
        try:
            for name, block in blocks:
                with self.disk_errors(needed):
                    weights.write(name, block)
            weights.check_complete()
        finally:
            weights.close()
        self.adopt(WEIGHTS_FILE)
        return plan.entries

    def add_file(self, name: str, data: bytes) -> None:
        """Write one whole file."""
        with self.disk_errors(len(data)):
            self.path(name).write_bytes(data)
        self.adopt(name)

    def adopt(self, name: str) -> None:
        """Take over a file that was written to `path(name)`: record its size and SHA-256."""
        with self.disk_errors():
            descriptor = os.open(self.path(name), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                os.fsync(descriptor)
                self.files[name] = FileRecord(os.fstat(descriptor).st_size, sha256_of(descriptor))
            finally:
                os.close(descriptor)

    def staged(self, manifest: Manifest) -> Path:
        """Write the manifest, its `files` being those written so far: the folder is then a package to be opened."""
        self._write_manifest(manifest)
        return self._staging.folder

    def finish(self, manifest: Manifest) -> Manifest:
        """Write the manifest and swap the package in; gives the manifest as written."""
        complete = self._write_manifest(manifest)
        with self.disk_errors():
            self._staging.publish()
        return complete

    def _write_manifest(self, manifest: Manifest) -> Manifest:
        complete = replace(manifest, files=dict(self.files))
        with self.disk_errors(), self.path(MANIFEST_FILE).open("wb") as file:
            file.write(dump(complete))
            file.flush()
            os.fsync(file.fileno())
        return complete

    def _free_bytes(self) -> int:
        out = self._out.absolute()
        return shutil.disk_usage(next(path for path in (out, *out.parents) if os.path.isdir(path))).free

    def _disk_full(self, needed: int | None) -> PackageError:
        return PackageError(
            "no room for the package on this disk",
            where=self._out,
            got=f"{self._free_bytes():,} bytes free",
            wanted=None if needed is None else f"{needed:,} bytes",
            do="make room, or choose an output on another disk",
        )

    @contextmanager
    def disk_errors(self, needed: int | None = None) -> Iterator[None]:
        """What the system refuses inside becomes a PackageError; needed: bytes that were to be written, if known."""
        try:
            yield
        except OSError as problem:
            if problem.errno in (errno.ENOSPC, errno.EDQUOT):
                raise self._disk_full(needed) from problem
            raise PackageError("cannot write the package", where=self._out, got=problem) from problem

    def __enter__(self) -> PackageWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._staging.discard()
