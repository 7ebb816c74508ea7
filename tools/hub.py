"""The one adapter of huggingface_hub: fetches a model into the hub's cache layout.

The hub library begins an interrupted file anew; model files are large and links are poor, so the bytes are fetched
here first, resumed across runs and checked against the hub's hash, and the library then lays out the snapshot.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from edgemem.profiles.units import size_text
from edgemem.runtime.errors import DownloadError
from edgemem.tools.console import progress_bar
from edgemem.tools.source import HubModel, cache_folder

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling

CHECKPOINT_FILES = (
    "config.json",
    "generation_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    "README.md",  # its front matter names the licence
    "LICENSE*",
)
# Copies of the same weights in other layouts, and everything in subfolders.
OTHER_FILES = ("*/*", "consolidated*", "adapter_model*")
_INDEX = "model.safetensors.index.json"
_HASH = re.compile(r"[0-9a-f]{64}|[0-9a-f]{40}")
_METADATA_TIMEOUT_SECONDS = 20.0


@dataclass(frozen=True)
class _RemoteFile:
    path: str
    size: int  # bytes
    digest: str  # sha256 of a large file, git blob sha1 of a small one; also its name in the hub's cache


@dataclass(frozen=True)
class _Place:
    """Where to fetch from and where to store."""

    model: HubModel
    endpoint: str
    cache: Path

    @property
    def blobs(self) -> Path:
        return self.cache / f"models--{self.model.repo.replace('/', '--')}" / "blobs"

    @property
    def patterns(self) -> dict[str, list[str]]:
        if self.model.file is not None:
            return {"allow_patterns": [self.model.file], "ignore_patterns": []}
        return {"allow_patterns": list(CHECKPOINT_FILES), "ignore_patterns": list(OTHER_FILES)}


def pull_hub(model: HubModel, *, offline: bool = False, quiet: bool = False) -> Path:
    """The snapshot folder of a model, or its one GGUF file; raises DownloadError.

    Stored under EDGEMEM_CACHE/hub if that is set, else in the hub's own cache (HF_HOME).
    """
    from huggingface_hub import constants

    # Both are read again here because the library reads the environment once, at import.
    endpoint = os.environ.get("HF_ENDPOINT", constants.ENDPOINT).rstrip("/")
    cache = cache_folder() / "hub" if os.environ.get("EDGEMEM_CACHE") else Path(constants.HF_HUB_CACHE)
    place = _Place(model, endpoint, cache)
    offline = offline or constants.HF_HUB_OFFLINE
    with _clear_errors(place):
        if not offline:
            offline = not _fetch_blobs(place, quiet=quiet)
        folder = _lay_out(place, offline=offline)
    return folder if model.file is None else folder / model.file


def _lay_out(place: _Place, *, offline: bool) -> Path:
    """Let the hub library link the blobs into a snapshot; offline, check that one is there and complete."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils.tqdm import tqdm

    class Silent(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})  # type: ignore[no-untyped-call]

    folder = Path(
        snapshot_download(
            place.model.repo,
            revision=place.model.revision,
            cache_dir=place.cache,
            endpoint=place.endpoint,
            local_files_only=offline,
            tqdm_class=Silent,
            allow_patterns=place.patterns["allow_patterns"],
            ignore_patterns=place.patterns["ignore_patterns"],
        )
    )
    if not _is_complete(folder, place.model):
        raise _not_in_cache(place)
    return folder


def _is_complete(folder: Path, model: HubModel) -> bool:
    """Whether a snapshot holds the one file asked for, or config and weights, with every file of the weights' index."""
    if model.file is not None:
        return (folder / model.file).is_file()
    names = {path.name for path in folder.iterdir() if path.is_file()}  # a link whose blob is gone is no file
    try:
        index = json.loads((folder / _INDEX).read_bytes()) if _INDEX in names else {}
        listed = set(index.get("weight_map", {}).values())
    except (ValueError, AttributeError, TypeError, RecursionError):  # whole, but nonsense: the reader will say so
        listed = set()
    return "config.json" in names and any(name.endswith(".safetensors") for name in names) and listed <= names


def _fetch_blobs(place: _Place, *, quiet: bool) -> bool:
    """Fetch what is missing; False where the hub is down or cannot be reached, and the cache must do."""
    from huggingface_hub import HfApi, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    try:
        info = HfApi(endpoint=place.endpoint).model_info(
            place.model.repo, revision=place.model.revision, files_metadata=True, timeout=_METADATA_TIMEOUT_SECONDS
        )
    except HfHubHTTPError as error:
        if error.response.status_code >= 500 and _is_cached(place):
            return False
        raise
    except _transport_errors() as error:
        if _is_cached(place):
            return False
        raise DownloadError(
            "the hub cannot be reached, and the model is not in the cache",
            where=place.endpoint,
            got=error,
            do="check the network (HF_ENDPOINT, proxies), then pull again",
        ) from error
    files = [file for file in _wanted_files(place, info.siblings or []) if not (place.blobs / file.digest).exists()]
    place.blobs.mkdir(parents=True, exist_ok=True)
    _require_fetchable(place, files)
    _require_space(place, files)
    headers = build_hf_headers()
    with progress_bar(quiet=quiet or not sys.stderr.isatty()) as progress:
        for file in files:
            stage = f"{file.path} ({size_text(file.size)})"
            url = hf_hub_url(place.model.repo, file.path, revision=info.sha, endpoint=place.endpoint)
            _fetch_blob(url, headers, place.blobs, file, lambda fraction, stage=stage: progress(stage, fraction))  # type: ignore[misc]
    return True


def _wanted_files(place: _Place, siblings: list[RepoSibling]) -> list[_RemoteFile]:
    """The files of the repository that make up the model, with sizes and hashes that are sound."""
    allow, ignore = place.patterns["allow_patterns"], place.patterns["ignore_patterns"]
    files = []
    for sibling in siblings:
        path = sibling.rfilename
        if not any(fnmatch(path, p) for p in allow) or any(fnmatch(path, p) for p in ignore):
            continue
        digest = sibling.lfs.sha256 if sibling.lfs is not None else sibling.blob_id
        if type(sibling.size) is not int or sibling.size < 0 or not _HASH.fullmatch(str(digest)):
            raise DownloadError(
                "the hub describes a file without a sound size and hash",
                where=f"{place.endpoint}: {place.model.repo}/{path}",
                got=f"size {sibling.size!r}, hash {digest!r}",
                do="check HF_ENDPOINT: not every mirror gives file metadata",
            )
        files.append(_RemoteFile(path, sibling.size, str(digest)))
    names = {file.path for file in files}
    if place.model.file is None and not ("config.json" in names and any(n.endswith(".safetensors") for n in names)):
        names.clear()
    if not names:
        ggufs = sorted(s.rfilename for s in siblings if s.rfilename.endswith(".gguf"))
        raise DownloadError(
            "the repository holds no such model files",
            where=place.model,
            got=f"GGUF files: {', '.join(ggufs[:8])}" if ggufs else f"{len(siblings)} other files",
            wanted=place.model.file or "config.json and *.safetensors",
            do=f"edgemem pull hf:{place.model.repo}:{ggufs[0]}" if ggufs and not place.model.file else None,
        )
    return files


def _fetch_blob(
    url: str, headers: dict[str, str], blobs: Path, file: _RemoteFile, progress: Callable[[float], None]
) -> None:
    """Download one file to BLOBS/HASH, going on from where an earlier run was cut off."""
    from huggingface_hub.file_download import http_get

    part = blobs / f"{file.digest}.incomplete"
    with part.open("ab") as out:
        _lock(out.fileno(), part)
        if out.tell() > file.size:
            out.seek(0)
            out.truncate()
        http_get(
            url,
            out,
            resume_size=out.tell(),
            headers=headers,
            expected_size=file.size,
            tqdm_class=_bar(file.size, progress),
        )
        out.flush()
        os.fsync(out.fileno())
        found = _digest(part, like=file.digest)
        if found != file.digest:
            part.unlink()
            raise DownloadError(
                "a downloaded file is not the one the hub describes; it was thrown away",
                where=url,
                got=found,
                wanted=file.digest,
                do="pull again",
            )
        os.replace(part, blobs / file.digest)


def _bar(total: int, progress: Callable[[float], None]) -> Any:
    """A class with as much of tqdm's face as the hub library uses, that reports to `progress`."""

    class Bar:
        def __init__(self, *, initial: int = 0, **_: object) -> None:
            self.count = initial

        def update(self, count: int) -> None:
            self.count += count
            progress(self.count / total if total else 1.0)

        def __enter__(self) -> Bar:
            return self

        def __exit__(
            self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
        ) -> None:
            pass

    return Bar


def _lock(descriptor: int, part: Path) -> None:
    """Two pulls must not append to one file; nor may one append to what the other has just finished and renamed."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        alone = part.exists() and os.fstat(descriptor).st_ino == part.stat().st_ino
    except BlockingIOError:
        alone = False
    if not alone:
        raise DownloadError("another process is fetching this file", where=part, do="wait for it, then pull again")


def _digest(path: Path, *, like: str) -> str:
    """sha256 of the content, or git's blob sha1, as the length of `like` says."""
    size = path.stat().st_size
    digest = hashlib.sha256() if len(like) == 64 else hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _require_fetchable(place: _Place, files: list[_RemoteFile]) -> None:
    """The hub library refuses to begin a larger file over plain HTTP."""
    from huggingface_hub.constants import MAX_HTTP_DOWNLOAD_SIZE as limit

    for file in files:
        if file.size > limit:
            raise DownloadError(
                "a file is too large for a plain download",
                where=f"{place.model}: {file.path}",
                got=size_text(file.size),
                wanted=f"at most {size_text(limit)}",
                do=f"hf download {place.model.repo} (it takes large files another way), then give edgemem the folder",
            )


def _require_space(place: _Place, files: list[_RemoteFile]) -> None:
    parts = [place.blobs / f"{file.digest}.incomplete" for file in files]
    wanted = sum(file.size for file in files) - sum(part.stat().st_size for part in parts if part.exists())
    free = shutil.disk_usage(place.blobs).free
    if free < wanted:
        raise _disk_full(place, f"{size_text(free)} free, {size_text(wanted)} wanted")


def _is_cached(place: _Place) -> bool:
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        _lay_out(place, offline=True)
    except (LocalEntryNotFoundError, DownloadError):
        return False
    return True


def _transport_errors() -> tuple[type[Exception], ...]:
    """What is raised when no answer came: by the hub's HTTP client, whichever it is built on, or by the system."""
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # imported there from the client

    return (HTTPError, OSError)


@contextmanager
def _clear_errors(place: _Place) -> Iterator[None]:
    """The hub library's exceptions as DownloadErrors that say what to do."""
    from huggingface_hub import errors

    model, repo = place.model, f"{place.endpoint}/{place.model.repo}"
    try:
        yield
    except errors.GatedRepoError as error:
        raise DownloadError(
            "this model is gated: its publisher wants the licence accepted",
            where=model,
            do=f"accept it at {repo}, then set HF_TOKEN to a token of that account and pull again",
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise DownloadError(
            "the hub has no such model, or it is private",
            where=model,
            do="check the name; for a private one set HF_TOKEN",
        ) from error
    except errors.RevisionNotFoundError as error:
        raise DownloadError(
            "the model has no such revision", where=model, got=model.revision, do=f"see {repo}/tree/main"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise _not_in_cache(place) from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        raise DownloadError(
            "the hub refused or failed",
            where=model,
            got=f"HTTP {status} from {error.response.url}",
            do="check HF_TOKEN and that it may read this model" if status in (401, 403) else "pull again later",
        ) from error
    except _transport_errors() as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _disk_full(place, error.strerror) from error
        raise DownloadError(
            "the download broke off; what has come is kept",
            where=model,
            got=f"{type(error).__name__}: {error}",
            do="pull again to go on from there",
        ) from error


def _not_in_cache(place: _Place) -> DownloadError:
    return DownloadError(
        f"{place.model} is not complete in the cache",
        where=place.cache,
        do=f"run edgemem pull {place.model} while online",
    )


def _disk_full(place: _Place, got: object) -> DownloadError:
    return DownloadError(
        "the disk is too full for this model; what has come is kept",
        where=place.cache,
        got=got,
        do="free some space, or set EDGEMEM_CACHE (or HF_HOME) to a folder on another disk, then pull again",
    )
