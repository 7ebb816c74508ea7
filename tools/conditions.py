"""What a reported speed depends on beside the engine: package, precision, context, device, versions."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from edgemem.profiles.cpu_model import cpu_model
from edgemem.runtime.package import Package
from edgemem.runtime.precision_table import compact
from edgemem.tools.versions import run_versions


def conditions(package: Package, context: int) -> dict[str, Any]:
    """Plain values for JSON. context: the engine's KV slots; quality: as measured when it was compiled, or None."""
    manifest = package.manifest
    return {
        "package": str(package.path),
        "precision": compact(manifest.model, manifest.precision),
        "context": context,
        "quality": None if manifest.quality is None else asdict(manifest.quality),
        "device": cpu_model(),
        "versions": run_versions(),
    }
