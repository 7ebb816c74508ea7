"""A file that is there whole once it was written, or as it was before."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from edgemem.runtime.errors import FileError


@contextmanager
def whole_file(path: Path, what: str, *, do: str | None = None) -> Iterator[Path]:
    """The path to write to, which takes `path`'s place at the end, or is gone. Raises FileError, saying `what`."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        os.replace(partial, path)
    except OSError as problem:
        raise FileError(what, where=path, got=problem.strerror or problem, do=do) from problem
    finally:
        with suppress(OSError):  # where the folder is a file, there is nothing to remove either
            partial.unlink(missing_ok=True)
