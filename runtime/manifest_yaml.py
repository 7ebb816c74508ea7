"""The manifest as text: a readable YAML writer and a strict reader, which refuses unknown keys and other versions.

The last line is a checksum of the rest, so that a cut or a flipped bit is seen: against accidents, not forgers.
It checks what a package claims; whether the files keep the claim is checked by package.py.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import yaml

from edgemem.runtime.errors import PackageError, SettingsError, UnsafePathError, shown
from edgemem.runtime.limits import LIMITS
from edgemem.runtime.manifest import (
    FILE_NAME,
    FORMAT,
    MANIFEST_FILE,
    WEIGHTS_FILE,
    FileRecord,
    GraphRecord,
    Manifest,
    Origin,
    Part,
    Probe,
    Quality,
    TokenizerRecord,
)
from edgemem.runtime.model import ModelSpec
from edgemem.runtime.precision_table import compact, expand
from edgemem.runtime.strict_yaml import parse_yaml

RECOMPILE = "recompile the model with this version: edgemem compile SOURCE -o OUT.edgemem"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SEAL = b"# sha256 of the lines above: "
_SHORT, _LONG = 256, 4096


def dump(manifest: Manifest) -> bytes:
    """Readable YAML, sealed. Raises PackageError for a manifest that `load` would refuse, so none is ever written."""
    plain: dict[str, Any] = {
        "format": manifest.format,
        "name": manifest.name,
        "model": manifest.model.to_dict(),
        **({} if manifest.part is None else {"part": asdict(manifest.part)}),
        "max_context": manifest.max_context,
        "precision": compact(manifest.model, manifest.precision, *manifest.layers),
        "files": {name: asdict(record) for name, record in manifest.files.items()},
        "graphs": [asdict(graph) for graph in manifest.graphs],
        "tokenizer": _lists(asdict(manifest.tokenizer)),
        "origin": asdict(manifest.origin),
        "quality": None if manifest.quality is None else asdict(manifest.quality),
    }
    raw = seal("".join(_section(key, value) for key, value in plain.items()).encode())
    if load(raw, where="the manifest to be written") != manifest:
        raise PackageError("the manifest would not read back as it was", where=manifest.name)
    return raw


def seal(body: bytes) -> bytes:
    """`body` with its checksum behind it, as a comment line."""
    return body + _SEAL + hashlib.sha256(body).hexdigest().encode() + b"\n"


def load(raw: bytes, *, where: object) -> Manifest:
    """The manifest in `raw`, the bytes of manifest.yaml; `where` names the file. Raises PackageError."""
    if len(raw) > LIMITS.manifest_bytes:
        raise PackageError(
            "the manifest is too long", where=where, got=f"{len(raw)} bytes", wanted=f"at most {LIMITS.manifest_bytes}"
        )
    try:
        plain = parse_yaml(raw.decode("utf-8"))
    except ValueError as problem:
        raise PackageError("the manifest is no valid YAML", where=where, got=problem, do=RECOMPILE) from problem
    if isinstance(plain, dict) and plain.get("format", FORMAT) != FORMAT:
        raise PackageError(
            "the package has another format version",
            where=where,
            got=f"format {shown(plain['format'])}",
            wanted=f"format {FORMAT}, the one this version reads",
            do=RECOMPILE,
        )
    body = raw[: -len(seal(b""))]
    if seal(body) != raw:
        raise PackageError(
            "the manifest is truncated or altered: its last line is not the checksum of the rest",
            where=where,
            got=shown(raw[len(body) :]),
            wanted=shown(seal(body)[len(body) :]),
            do="copy the whole folder again or recompile",
        )
    return _manifest(_Value(plain, "", where))


@dataclass(frozen=True)
class _Value:
    """A value of the document with its place, for strict reading: every method raises PackageError."""

    plain: Any
    place: str
    where: object

    def bad(self, wanted: str, got: object = None) -> PackageError:
        place = self.place or "top level"
        got = shown(self.plain) if got is None else got
        return PackageError(f"the manifest is wrong at {place}", where=self.where, got=got, wanted=wanted, do=RECOMPILE)

    def mapping(self) -> dict[str, _Value]:
        if not isinstance(self.plain, dict):
            raise self.bad("keys and values")
        prefix = f"{self.place}." if self.place else ""
        return {key: _Value(value, f"{prefix}{_safe(key)}", self.where) for key, value in self.plain.items()}

    def record(self, kind: type, *, optional: str | None = None) -> dict[str, _Value]:
        """The values for a dataclass: exactly its fields, no more, and no fewer but for `optional`."""
        known = [field.name for field in fields(kind)]
        values = self.mapping()
        unknown = [key for key in values if key not in known]
        missing = [name for name in known if name not in values and name != optional]
        if unknown or missing:
            raise self.bad(f"exactly the keys {', '.join(known)}", f"unknown {shown(unknown)}, missing {missing}")
        return values

    def items(self) -> list[_Value]:
        if not isinstance(self.plain, list):
            raise self.bad("a list")
        return [_Value(item, f"{self.place}[{index}]", self.where) for index, item in enumerate(self.plain)]

    def text(self, longest: int = _SHORT, pattern: re.Pattern[str] | None = None) -> str:
        if not isinstance(self.plain, str) or len(self.plain) > longest:
            raise self.bad(f"a text of at most {longest} characters")
        if pattern is not None and not pattern.fullmatch(self.plain):
            raise self.bad(f"a text of the form {pattern.pattern}")
        return self.plain

    def whole(self, lowest: int, highest: int) -> int:
        if type(self.plain) is not int or not lowest <= self.plain <= highest:
            raise self.bad(f"a whole number from {lowest} to {highest}")
        return self.plain

    def number(self, highest: float) -> float:
        # The comparison is false for NaN.
        if type(self.plain) is not float or not 0.0 <= self.plain <= highest:
            raise self.bad(f"a number with a decimal point from 0 to {highest}")
        return self.plain


def _manifest(document: _Value) -> Manifest:
    values = document.record(Manifest, optional="part")
    try:
        model = ModelSpec.from_dict({key: value.plain for key, value in values["model"].mapping().items()})
    except SettingsError as problem:
        wanted = str(problem.wanted or "a model description")
        raise values["model"].bad(wanted, f"{problem.what}: {problem.got}") from problem
    part = _part(values["part"], model) if "part" in values else None
    layers = (0, model.layers) if part is None else (part.first, part.last)
    try:
        precision = expand(model, values["precision"].plain, *layers)
    except ValueError as problem:
        raise values["precision"].bad("one precision a matrix, e.g. int4-g32", problem) from problem
    files = {_file_name(name, value.where): _file(value) for name, value in values["files"].mapping().items()}
    if WEIGHTS_FILE not in files or MANIFEST_FILE in files:
        raise values["files"].bad(f"{WEIGHTS_FILE}, and not {MANIFEST_FILE}", ", ".join(files))
    quality = values["quality"]
    return Manifest(
        format=values["format"].whole(FORMAT, FORMAT),
        name=values["name"].text(),
        model=model,
        max_context=values["max_context"].whole(1, LIMITS.context),
        precision=precision,
        files=files,
        graphs=tuple(_graph(graph, layers, files) for graph in values["graphs"].items()),
        tokenizer=_tokenizer(values["tokenizer"]),
        origin=_origin(values["origin"]),
        quality=None if quality.plain is None else _quality(quality),
        part=part,
    )


def _part(value: _Value, model: ModelSpec) -> Part:
    record = value.record(Part)
    first = record["first"].whole(0, model.layers - 1)
    last = record["last"].whole(first + 1, model.layers)
    if (first == 0) == (last == model.layers):
        raise value.bad(f"the first of {model.layers} layers or the last, and not all")
    return Part(first, last, record["whole_sha256"].text(64, _SHA256))


def _file_name(name: str, where: object) -> str:
    if not FILE_NAME.fullmatch(name):
        raise UnsafePathError(
            "the manifest holds a file name that is unsafe to open",
            where=where,
            got=shown(name),
            wanted=f"a plain name of the form {FILE_NAME.pattern}",
            do=RECOMPILE,
        )
    return name


def _file(value: _Value) -> FileRecord:
    record = value.record(FileRecord)
    return FileRecord(record["bytes"].whole(0, 1 << 62), record["sha256"].text(64, _SHA256))


def _graph(value: _Value, layers: tuple[int, int], files: Mapping[str, FileRecord]) -> GraphRecord:
    record = value.record(GraphRecord)
    file, first = record["file"].text(), record["first"].whole(layers[0], layers[1] - 1)
    if file not in files:
        raise record["file"].bad("a file listed under files")
    return GraphRecord(file, first, record["last"].whole(first + 1, layers[1]))


def _tokenizer(value: _Value) -> TokenizerRecord:
    record = value.record(TokenizerRecord)
    return TokenizerRecord(
        record["vocabulary"].whole(1, LIMITS.vocabulary), tuple(_probe(probe) for probe in record["probes"].items())
    )


def _probe(value: _Value) -> Probe:
    record = value.record(Probe)
    return Probe(record["text"].text(_LONG), tuple(i.whole(0, LIMITS.vocabulary - 1) for i in record["ids"].items()))


def _origin(value: _Value) -> Origin:
    record = value.record(Origin)
    licence = record["licence"]
    return Origin(
        source=record["source"].text(_LONG),
        format=record["format"].text(),
        sha256=record["sha256"].text(64, _SHA256),
        licence=None if licence.plain is None else licence.text(_LONG),
    )


def _quality(value: _Value) -> Quality:
    record = value.record(Quality)
    return Quality(
        text=record["text"].text(_LONG),
        tokens=record["tokens"].whole(1, 1 << 40),
        perplexity=record["perplexity"].number(1e30),
        reference_perplexity=record["reference_perplexity"].number(1e30),
        kl_mean=record["kl_mean"].number(1e30),
        top1_agreement=record["top1_agreement"].number(1.0),
    )


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True  # a value used twice is written twice: aliases are refused on reading


def _section(key: str, value: Any) -> str:
    # None: the innermost lists and tables on one line each; False: one key a line throughout.
    flow = None if isinstance(value, (dict, list)) and key not in ("origin", "quality") else False
    text: str = yaml.dump(
        {key: value}, Dumper=_Dumper, sort_keys=False, default_flow_style=flow, width=118, allow_unicode=True
    )
    return text


def _lists(plain: Any) -> Any:
    """Tuples as lists, throughout."""
    if isinstance(plain, dict):
        return {key: _lists(value) for key, value in plain.items()}
    if isinstance(plain, Sequence) and not isinstance(plain, str):
        return [_lists(value) for value in plain]
    return plain


def _safe(key: str) -> str:
    return key if FILE_NAME.fullmatch(key) else shown(key)
