"""What `edgemem profile` is to measure: a compiled package, or a well-known shape with random weights, cached."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from edgemem.compiler.plan import INT4_HAS_MINIMUM
from edgemem.compiler.random_model import write_random_package
from edgemem.kernels.formats import Precision
from edgemem.profiles.cells import slots_needed
from edgemem.profiles.shapes import SHAPES, shape
from edgemem.profiles.targets import ProfiledPackage
from edgemem.runtime.errors import SettingsError
from edgemem.runtime.manifest import MANIFEST_FILE
from edgemem.runtime.model import ModelSpec
from edgemem.runtime.package import Package
from edgemem.tools.console import Progress, note
from edgemem.tools.source import cache_folder, locate_package

_DEFAULT_WEIGHTS = ("int4",)
_GROUP = 32


def find_packages(
    text: str, weights: Sequence[str] | None, seed: int, cache: Path | None, progress: Progress
) -> list[ProfiledPackage]:
    """The compiled package of this name or path; where there is none, or `weights` are asked for, the shape's.

    weights: one package of random weights each. Raises SettingsError for a name that is neither, and what writing a
    package raises.
    """
    if weights is None:
        try:
            path = locate_package(text)
        except SettingsError as absent:
            if text not in SHAPES:
                raise SettingsError(
                    "there is no such package or shape",
                    got=repr(text),
                    wanted=f"a package's path or name, or a shape: {', '.join(SHAPES)}",
                    do="edgemem compile SOURCE -o NAME.edgemem, then give its path",
                ) from absent
            note(f"{text} is not compiled here: random {', '.join(_DEFAULT_WEIGHTS)} weights of its dimensions")
        else:
            return [ProfiledPackage(path.name.removesuffix(".edgemem"), path)]
    folder = cache_folder() / "shapes" if cache is None else cache
    spec, kinds = shape(text), _DEFAULT_WEIGHTS if weights is None else weights
    precisions = {kind: parse_weights(kind) for kind in kinds}  # all, before the first package is written
    if not kinds or len(precisions) != len(kinds):
        raise SettingsError("bad weights", got=", ".join(kinds) or "none", wanted="at least one kind, each once")
    return [
        _random_package(
            f"{text}-{kind}", folder / f"{text}-{precision}-seed{seed}.edgemem", spec, precision, seed, progress
        )
        for kind, precision in precisions.items()
    ]


def contexts_that_fit(packages: Sequence[ProfiledPackage], contexts: Sequence[int], steps: int) -> tuple[int, ...]:
    """Those of `contexts` that leave every package room for the steps; if none does, the longest that would."""
    room = min(_max_context(package.path) for package in packages) - slots_needed(0, steps)
    return tuple(context for context in contexts if context <= room) or (max(room, 1),)


def _random_package(
    name: str, path: Path, spec: ModelSpec, precision: Precision, seed: int, progress: Progress
) -> ProfiledPackage:
    """Written once for each path, which says shape, precision and seed."""
    if not os.path.exists(path / MANIFEST_FILE):
        write_random_package(
            path,
            spec,
            weights=precision,
            seed=seed,
            progress=lambda stage, share: progress(f"{stage} {name} weights", share),
        )
    return ProfiledPackage(name, path, "shape")


def parse_weights(text: str) -> Precision:
    """`int4` as compiling makes it, `int8`, or a precision in full, such as int4-g128."""
    try:
        if text == "int4":
            return Precision("int4", _GROUP, minimum=INT4_HAS_MINIMUM)
        return Precision.parse(f"int8-g{_GROUP}" if text == "int8" else text)
    except ValueError as problem:
        raise SettingsError(
            "unknown weights", got=repr(text), wanted="int4, int8, fp16, bf16, int4-g128, ..."
        ) from problem


def _max_context(path: Path) -> int:
    with Package.open(path, verify=False) as package:
        return package.manifest.max_context
