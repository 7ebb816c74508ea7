"""A model folder from a stranger: plain names only, regular files only, nothing read from outside it.

A link may lead elsewhere in the folder or, in the Hugging Face cache's layout, to the cache's own blobs.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from edgemem.runtime.errors import CheckpointError, UnsafePathError
from edgemem.runtime.safe_files import sha256_of


class SourceFolder:
    """The folder at `path`. CheckpointError where there is none."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._root = path.resolve(strict=True)
            self._names = sorted(os.listdir(self._root))
        except (OSError, RuntimeError, ValueError) as problem:
            raise CheckpointError("cannot read the model folder", where=path, got=problem) from problem
        self._roots = [self._root]
        if self._root.parent.name == "snapshots":
            self._roots.append(self._root.parent.parent / "blobs")

    @property
    def title(self) -> str:
        """What the folder is called: its own name, or ORG/NAME@revision in the Hugging Face cache."""
        holder = self._root.parent.parent.name
        if len(self._roots) == 2 and holder.startswith("models--"):
            return f"{holder.removeprefix('models--').replace('--', '/')}@{self._root.name}"
        return self._root.name

    def names(self, suffix: str = "") -> list[str]:
        """Names in the folder that end in `suffix`, sorted."""
        return [name for name in self._names if name.endswith(suffix)]

    def file(self, name: str) -> Path:
        """The real path of a regular file. UnsafePathError if it leads out, CheckpointError if it is missing."""
        if not name or name in (".", "..") or "/" in name or "\\" in name or "\0" in name:
            raise UnsafePathError(
                f"unsafe file name {ascii(name)[:80]}", where=self.path, wanted="a plain name of a file in the folder"
            )
        try:
            real = (self._root / name).resolve(strict=True)
            mode = real.stat().st_mode
        except (OSError, RuntimeError, ValueError) as problem:
            raise CheckpointError(f"cannot find {ascii(name)[:80]}", where=self.path, got=problem) from problem
        if not any(real.is_relative_to(root) for root in self._roots):
            raise UnsafePathError(
                f"{name} leads out of the model folder", where=self.path, got=real, wanted=f"a file in {self._root}"
            )
        if not stat.S_ISREG(mode):
            raise UnsafePathError(f"{name} is no regular file", where=self.path, wanted="a regular file")
        return real

    def read(self, name: str, limit: int) -> bytes | None:
        """The whole file, None if there is none. CheckpointError if it is longer than `limit` bytes."""
        if name not in self._names:
            return None
        path = self.file(name)
        try:
            with path.open("rb") as file:
                raw = file.read(limit + 1)
        except OSError as problem:
            raise CheckpointError(f"cannot read {name}", where=self.path, got=problem) from problem
        if len(raw) > limit:
            raise CheckpointError(f"{name} is too long", where=self.path, wanted=f"at most {limit} bytes")
        return raw


def sha256_of_file(path: Path) -> str:
    """The file's SHA-256 in hexadecimal. CheckpointError if it cannot be read."""
    try:
        with path.open("rb") as file:
            return sha256_of(file.fileno())
    except OSError as problem:
        raise CheckpointError("cannot read the file", where=path, got=problem) from problem
