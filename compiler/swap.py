"""A temporary folder beside its destination, swapped in whole or removed without a trace.

The folder is locked while its process lives: left-overs of dead processes are recognised by that and removed by the
next one with the same destination. It knows a package only well enough never to replace anything else.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgemem.compiler.genai_config import GENAI_FILE
from edgemem.runtime.errors import PackageError
from edgemem.runtime.manifest import MANIFEST_FILE, WEIGHTS_FILE
from edgemem.runtime.package import ENGINES_FOLDER
from edgemem.runtime.tokenizer import TOKENIZER_FILES

_FILES = {MANIFEST_FILE, WEIGHTS_FILE, GENAI_FILE, *TOKENIZER_FILES}
_GRAPH = re.compile(r"(model|(front|back)-[0-9]+)\.onnx")
_MANIFEST_START = b"format: "
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


class Staging:
    """`folder` is the temporary folder; `publish` makes it `out`; `discard` removes what is left of it."""

    def __init__(self, out: Path) -> None:
        """Raises PackageError if `out` exists and is no package; OSError where the folder cannot be made."""
        self.out = Path(os.path.realpath(out))  # a link is followed: what it names is replaced, not the link
        check_replaceable(self.out)
        self.out.parent.mkdir(parents=True, exist_ok=True)
        with _locked(self.out.parent):
            _clean_up(self.out)
            self.folder = _sibling(self.out, "partial")
            self.folder.mkdir()
            self._lock = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def publish(self) -> None:
        """Swap the folder in for `out`, and remove what was there. At any moment `out` is the old or the new one."""
        os.fsync(self._lock)
        with _locked(self.out.parent) as parent:
            check_replaceable(self.out)
            if not self.out.exists():
                os.rename(self.folder, self.out)
            elif not _exchange(self.folder, self.out):
                _replace_in_two_steps(self.folder, self.out)
            os.fsync(parent)
        self.discard()

    def discard(self) -> None:
        """Remove the temporary folder; after `publish` that is the old package, or nothing."""
        shutil.rmtree(self.folder, ignore_errors=True)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def check_replaceable(out: Path) -> None:
    """PackageError if something is at `out` that is not plainly a package, damaged or of any version."""
    if not os.path.lexists(out):
        return
    got = "a file"
    if out.is_dir():
        with os.scandir(out) as entries:
            there = list(entries)
        foreign = [entry.name for entry in there if not _is_ours(entry)]
        names = {entry.name for entry in there}
        if not foreign and MANIFEST_FILE in names and (WEIGHTS_FILE in names or _is_manifest(out / MANIFEST_FILE)):
            return
        got = f"a folder with {foreign[0]!a}" if foreign else f"a folder without {MANIFEST_FILE} of ours"
    raise PackageError(
        "the output exists and is no edgemem package, so it is not replaced",
        where=out,
        got=got,
        do="choose another output, or remove it yourself",
    )


def _is_ours(entry: os.DirEntry[str]) -> bool:
    if entry.name == ENGINES_FOLDER:
        return entry.is_dir(follow_symlinks=False)
    named = entry.name in _FILES or _GRAPH.fullmatch(entry.name) is not None
    return named and entry.is_file(follow_symlinks=False)


def _is_manifest(path: Path) -> bool:
    """Whether the file begins as every version of our manifest does."""
    with path.open("rb") as file:
        return file.read(len(_MANIFEST_START)) == _MANIFEST_START


@contextmanager
def _locked(folder: Path) -> Iterator[int]:
    """One process at a time makes, swaps or cleans temporary folders in `folder`."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


def _sibling(out: Path, kind: str) -> Path:
    return out.parent / f".{out.name}.{kind}-{secrets.token_hex(4)}"


def _clean_up(out: Path) -> None:
    """Finish what dead processes left: put back a package that was moved aside, remove partial folders."""
    for aside in _left_overs(out, "previous"):
        if out.exists():
            shutil.rmtree(aside, ignore_errors=True)
        else:
            os.rename(aside, out)
    for partial in _left_overs(out, "partial"):
        descriptor = os.open(partial, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(partial, ignore_errors=True)
        except BlockingIOError:
            pass  # its process lives
        finally:
            os.close(descriptor)


def _left_overs(out: Path, kind: str) -> list[Path]:
    prefix = f".{out.name}.{kind}-"
    with os.scandir(out.parent) as entries:
        return [
            Path(entry.path)
            for entry in entries
            if entry.name.startswith(prefix) and entry.is_dir(follow_symlinks=False)
        ]


def _exchange(a: Path, b: Path) -> bool:
    """Swap two folders in one step; False where the system or the file system cannot."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:
        return False
    if renameat2(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EXDEV):
        return False
    raise OSError(code, os.strerror(code), str(b))


def _replace_in_two_steps(folder: Path, out: Path) -> None:
    aside = _sibling(out, "previous")
    try:
        os.rename(out, aside)
        os.rename(folder, out)
    except BaseException:
        if aside.exists() and not out.exists():
            os.rename(aside, out)
        raise
    shutil.rmtree(aside, ignore_errors=True)
