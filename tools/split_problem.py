"""What `edgemem split plan` knows before it plans: packages of one model, measured here and, if asked, on a server."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from edgemem.runtime.errors import SettingsError

if TYPE_CHECKING:
    from edgemem.runtime.package import Package
    from edgemem.split.codec_file import CodecFile
    from edgemem.split.measuring import WireTimes
    from edgemem.split.planner import Activation, Problem, Quality, Width
    from edgemem.split.sides import LinkSpeed, StageTimes

# Of a token's two messages: 100 bytes of HTTP/2 and gRPC, as the bench counts, and a TLS record and TCP/IP around each.
STATED_OVERHEAD_BYTES = 100 + 2 * (22 + 40)
_TIMED_SLOTS = 64
_DEADLINE_S = 10.0


@dataclass(frozen=True)
class Known:
    """notes: what was taken for granted, for people."""

    problem: Problem
    notes: tuple[str, ...]


def known_problem(args: argparse.Namespace, packages: Sequence[Package]) -> Known:
    """The first package is the one to plan for; the others are the same model at other widths."""
    from edgemem.kernels.cost import kv_slot_bytes
    from edgemem.runtime.kv_cache import KV_ELEMENT_BYTES
    from edgemem.split.codec_file import read_codec_file
    from edgemem.split.planner import Problem

    package, model = packages[0], packages[0].model
    if any(other.model != model for other in packages):
        raise SettingsError("the packages are not of one model", got=", ".join(one.manifest.name for one in packages))
    device = {_name(one): device_times(one, args.threads) for one in packages}
    link, server, notes = _other_side(args, package, device)
    files = [read_codec_file(path) for path in args.codec]
    contexts = (args.context,) if args.context else _contexts(min(one.manifest.max_context for one in packages))
    quality, more = _quality(packages, files)
    problem = Problem(
        widths=_widths(packages, device, server),
        activations=_activations(package, files),
        contexts=contexts,
        layer_slot_bytes=kv_slot_bytes(model, KV_ELEMENT_BYTES, (0, 1)),
        workspace_bytes=max(workspace_bytes(one, contexts[-1], args.threads) for one in packages),
        link=link,
        quality=quality,
    )
    return Known(problem, (*notes, *more))


def device_times(package: Package, threads: int | None) -> StageTimes:
    """Measured here, by the native engine."""
    from edgemem.runtime.native_engine import NativeEngine
    from edgemem.split.measuring import measure_stages

    def stage(first: int, last: int) -> NativeEngine:
        return NativeEngine(package, layers=(first, last), capacity=_TIMED_SLOTS, threads=threads)

    return measure_stages(stage, package.model)


def workspace_bytes(package: Package, context: int, threads: int | None) -> int:
    """What the native engine takes beside weights and slots, of all layers: no stage takes more."""
    from edgemem.runtime.budget import native_budget
    from edgemem.runtime.machine import usable_cores

    layers = (0, package.model.layers)
    lines = native_budget(package, context, layers, threads or usable_cores()).lines
    return sum(size for name, size in lines if name not in ("weights, packed", "KV cache"))


def _other_side(
    args: argparse.Namespace, package: Package, device: dict[str, StageTimes]
) -> tuple[LinkSpeed, dict[str, StageTimes], tuple[str, ...]]:
    """The link, and what the server takes."""
    from edgemem.split.sides import LinkSpeed

    if args.link is not None:
        bits_per_s, round_trip_ms = args.link
        ratio = args.server_speedup or 1.0
        server = {name: times.slowed(1 / ratio) for name, times in device.items()}
        said = "as stated" if args.server_speedup else "taken for granted: measure it with --server"
        notes = (
            f"server: {ratio:g} times as fast as this device, {said}",
            "link: as stated; what both ends do to a message, about a millisecond, is not in it",
        )
        return LinkSpeed(bits_per_s, round_trip_ms, STATED_OVERHEAD_BYTES), server, notes
    split = _served_split(args, package)
    found = _measured_server(args, package)
    own = device[_name(package)].stage_ms(package.model.layers - split, embedding=False, head=True)
    ratio = found.compute_ms / max(own, 1e-6)
    server = {name: times.slowed(ratio) for name, times in device.items()}
    note = f"server: its layers from {split} on take {found.compute_ms:.3g} ms, {ratio:.3g} times what they take here"
    return found.link, server, (note,)


def measured_link(args: argparse.Namespace, package: Package) -> LinkSpeed:
    """To the server that was asked for. Raises LinkError where it does not answer or refuses."""
    return _measured_server(args, package).link


def _measured_server(args: argparse.Namespace, package: Package) -> WireTimes:
    import secrets

    from edgemem.split.codec import Codec, CodecSettings
    from edgemem.split.frames import CHUNK_TOKENS, SESSION_BYTES, Bye
    from edgemem.split.measuring import measure_wire
    from edgemem.split.opening import hello_for
    from edgemem.tools.split_dial import dial_of
    from edgemem.tools.versions import version_of

    split = _served_split(args, package)
    if not 0 < split < package.model.layers:
        raise SettingsError("a server is measured at a split inside the model", got=split)
    codec = Codec(CodecSettings("fp32"), package.model.hidden)
    version, capacity = version_of("edgemem-runtime") or "unknown", min(CHUNK_TOKENS, package.manifest.max_context)
    hello = hello_for(package, split, version=version, codec=codec.settings, capacity=capacity)
    hello = replace(hello, session=secrets.token_bytes(SESSION_BYTES))
    with closing(dial_of(args)()) as link:
        link.greet(hello, deadline_s=_DEADLINE_S)
        found = measure_wire(link, codec)
        link.call(Bye(), deadline_s=_DEADLINE_S)
    return found


def _served_split(args: argparse.Namespace, package: Package) -> int:
    return package.model.layers // 2 if args.at is None else int(args.at)


def _widths(
    packages: Sequence[Package], device: dict[str, StageTimes], server: dict[str, StageTimes]
) -> dict[str, Width]:
    """From the narrowest to the widest."""
    from edgemem.split.planner import Width
    from edgemem.split.sides import weights_of

    found = {}
    for package in packages:
        name = _name(package)
        if name in found:
            raise SettingsError("two packages have one name", got=name, do="rename one of the folders")
        found[name] = Width(weights_of(package.model, package.precision), device[name], server[name])
    return dict(sorted(found.items(), key=lambda item: item[1].weights.front_bytes[-1]))


def _activations(package: Package, files: Sequence[CodecFile]) -> dict[str, Activation]:
    """Half floats, and what was calibrated; from the fewest bytes to the most."""
    from edgemem.split.codec import Codec, CodecSettings
    from edgemem.split.measuring import measure_activation

    hidden = package.model.hidden
    weights = package.manifest.model_hash
    found = {"fp16": measure_activation(Codec(CodecSettings("fp16"), hidden), 2.0 * hidden)}
    for file in files:
        settings = file.settings_for(weights, file.split)
        found[_calibrated(file)] = measure_activation(Codec(settings, hidden), _measured(file, "token_bytes"))
    return dict(sorted(found.items(), key=lambda item: item[1].token_bytes))


def _quality(packages: Sequence[Package], files: Sequence[CodecFile]) -> tuple[Quality, tuple[str, ...]]:
    """A point's KL is that of its weights and that of its states together; a mix of widths counts as the worse one."""
    of_weights: dict[str, float | None] = {}
    for package in packages:
        quality = package.manifest.quality
        of_weights[_name(package)] = None if quality is None else quality.kl_mean
    notes = []
    if len(packages) == 1 and None in of_weights.values():
        of_weights = dict.fromkeys(of_weights, 0.0)
        notes.append("KL: against the package itself, whose own was not measured")
    of_states = {_calibrated(file): (file.split, _measured(file, "kl")) for file in files}

    def quality_of(split: int, front: str | None, back: str | None, activation: str | None) -> float | None:
        parts = [of_weights[name] for name in (front, back) if name is not None]
        known = [part for part in parts if part is not None]
        if len(known) < len(parts):
            return None
        if activation in of_states:
            at, lost = of_states[activation]
            return max(known) + lost if at == split else None
        return max(known)

    return quality_of, tuple(notes)


def _calibrated(file: CodecFile) -> str:
    return f"{file.settings.mode} at {file.split}"


def _measured(file: CodecFile, name: str) -> float:
    value = file.measured.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise SettingsError("the codec's file lacks what was measured", got=name, do="edgemem split calibrate")
    return float(value)


def _contexts(most: int) -> tuple[int, ...]:
    """Powers of two from 512, and the most that there is."""
    return (*(size for size in (512 << step for step in range(12)) if size < most), most)


def _name(package: Package) -> str:
    return package.path.name.removesuffix(".edgemem")
