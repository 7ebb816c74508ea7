"""Which clips there are, what they hold, and which of them were recorded together. It does not open the sounds.

A folder with a metadata.csv, or a plain one: hoi/ for hands at work and bg/ for the rest, each file a recording of its
own; files that belong together (pieces of one recording, one kitchen) are put into a folder below hoi/ or bg/.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from edgemem.runtime.errors import FileError, SettingsError, UnsafePathError, shown
from edgemem.runtime.safe_files import SafeFolder, read_at_most

METADATA = "metadata.csv"
LABELS = {"hoi": True, "bg": False}
SOUNDS = (".wav", ".flac", ".ogg")
_COLUMNS = ("file", "label", "group")
_METADATA_BYTES = 16 << 20
_TEXT = 500


@dataclass(frozen=True)
class Clip:
    """path: of the sound file. hands: whether hands are at work in it. group: clips of one group were recorded
    together, and are never on both sides of a split. kind, source, tier: as metadata.csv has them, or empty."""

    path: Path
    hands: bool
    group: str
    kind: str = ""
    source: str = ""
    tier: str = ""


@dataclass(frozen=True)
class Dataset:
    """Raises SettingsError where there are no clips, or all are of one label."""

    folder: Path
    clips: tuple[Clip, ...]

    def __post_init__(self) -> None:
        if not self.clips:
            raise SettingsError("there are no clips", where=self.folder, do=_HOW)
        missing = [label for label, hands in LABELS.items() if all(clip.hands != hands for clip in self.clips)]
        if missing:
            got = f"{len(self.clips)} clips, none of label {missing[0]}"
            raise SettingsError("clips of both labels are needed", where=self.folder, got=got, do=_HOW)

    @property
    def groups(self) -> tuple[str, ...]:
        """Sorted, each once."""
        return tuple(sorted({clip.group for clip in self.clips}))


_HOW = "give a folder with hoi/ (hands at work) and bg/ (all else) full of sound files, or with a metadata.csv"


def read_dataset(folder: Path) -> Dataset:
    """The clips of `folder`, in order of their rows or names. Raises SettingsError, or FileError for bad rows."""
    try:
        with SafeFolder(folder) as opened:
            listed = METADATA in opened.names()
            clips = tuple(_rows(opened)) if listed else tuple(_plain(folder))
    except OSError as problem:
        raise FileError("cannot read the folder of clips", where=folder, got=problem, do=_HOW) from problem
    return Dataset(folder, clips)


def _rows(folder: SafeFolder) -> Iterator[Clip]:
    where = folder.path / METADATA
    descriptor = folder.open(METADATA)
    try:
        raw = read_at_most(descriptor, _METADATA_BYTES + 1)
    finally:
        os.close(descriptor)
    if len(raw) > _METADATA_BYTES:
        raise FileError("the list of clips is too long", where=where, wanted=f"at most {_METADATA_BYTES} bytes")
    try:
        reader = csv.DictReader(io.StringIO(raw.decode("utf-8-sig"), newline=""), strict=True)
        missing = [name for name in _COLUMNS if name not in (reader.fieldnames or ())]
        if missing:
            got = shown(reader.fieldnames)
            raise FileError("a column is missing", where=where, got=got, wanted=", ".join(_COLUMNS))
        for row in reader:
            yield _clip(row, folder, f"{where}, line {reader.line_num}")
    except (UnicodeDecodeError, csv.Error) as problem:
        raise FileError("the list of clips is no CSV in UTF-8", where=where, got=problem) from problem


def _clip(row: dict[str, str | None], folder: SafeFolder, where: str) -> Clip:
    texts = {name: row.get(name) or "" for name in (*_COLUMNS, "cls", "source", "tier")}
    if any(len(text) > _TEXT for text in texts.values()):
        raise FileError("a field is too long", where=where, wanted=f"at most {_TEXT} characters")
    if texts["label"] not in LABELS:
        raise FileError("unknown label", where=where, got=shown(texts["label"]), wanted=" or ".join(LABELS))
    if not texts["group"]:
        raise FileError("a clip without a group", where=where, do="name the recording that it was cut from")
    try:
        os.close(folder.open(texts["file"]))
    except FileNotFoundError as problem:
        raise FileError("a clip is missing", where=where, got=shown(texts["file"])) from problem
    except UnsafePathError as problem:
        raise UnsafePathError(problem.what, where=where, got=problem.got, wanted=problem.wanted) from problem
    path = folder.path / PurePosixPath(texts["file"])
    hands = LABELS[texts["label"]]
    return Clip(path, hands, texts["group"], kind=texts["cls"], source=texts["source"], tier=texts["tier"])


def _plain(folder: Path) -> Iterator[Clip]:
    """A file directly in hoi/ or bg/ is a group; so are all files, of both labels, in folders of one name below."""
    for label, hands in LABELS.items():
        for path in sorted((folder / label).glob("**/*")):
            if path.suffix.lower() in SOUNDS and path.is_file():
                inner = path.relative_to(folder / label)
                group = inner.parts[0] if len(inner.parts) > 1 else f"{label}/{inner.name}"
                yield Clip(path, hands, group, kind=label)
