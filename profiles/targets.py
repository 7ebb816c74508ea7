"""Packages to profile, and what a record says of them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgemem.profiles.plain import printable
from edgemem.profiles.record import Target
from edgemem.runtime.manifest import Manifest
from edgemem.runtime.package import Package
from edgemem.runtime.precision_table import compact


@dataclass(frozen=True)
class ProfiledPackage:
    """A package to profile, by the name that the report gives it. kind: "shape" where its weights are random."""

    name: str
    path: Path
    kind: Literal["package", "shape"] = "package"


def describe(profiled: ProfiledPackage) -> Target:
    """The package, opened and wholly verified once. Raises PackageError and UnsafePathError."""
    with Package.open(profiled.path) as package:
        package.require()
        manifest = package.manifest
    note = "random weights" if profiled.kind == "shape" else "not measured when it was compiled"
    return Target(
        name=printable(profiled.name),
        kind=profiled.kind,
        source=printable(manifest.origin.source),
        sha256=package_sha256(manifest),
        model=manifest.model,
        precision=compact(manifest.model, manifest.precision),
        max_context=manifest.max_context,
        quality=manifest.quality,
        quality_note=note if manifest.quality is None else None,
    )


def package_sha256(manifest: Manifest) -> str:
    """Of the names and hashes of all files that the manifest lists, 64 hex digits."""
    files = sorted((name, record.sha256) for name, record in manifest.files.items())
    return hashlib.sha256(repr(files).encode()).hexdigest()
