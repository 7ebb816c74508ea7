"""What the figures of a record depend on beside what was asked for, as names and texts: for reports and comparisons."""

from __future__ import annotations

import json

from edgemem.profiles.record import Record, Target
from edgemem.profiles.units import number_text, size_text


def conditions(record: Record) -> dict[str, str]:
    """In reading order. Two records with the same texts were made under the same conditions, as far as was recorded."""
    return {**_device(record), **_settings(record), **_versions(record), **_targets(record)}


def _device(record: Record) -> dict[str, str]:
    device = record.device
    datasheet = "none"
    if device.datasheet_bytes_per_s is not None:
        datasheet = f"{number_text(device.datasheet_bytes_per_s / 1e9)} GB/s"
    return {
        "device": device.name or f"{device.reported} (in no table)",
        "reported as": device.reported,
        "datasheet peak": f"{datasheet} ({device.datasheet_note})",
        "processor": f"{device.cpu_model}, {device.cores} cores",
        "governor": device.governor or "not known",
        "kernel": device.kernel,
        "memory": size_text(device.memory_bytes),
        "caches": f"L2 {_known_size(device.l2_bytes)}, last level {_known_size(device.llc_bytes)}",
        "telemetry": ", ".join(f"{name} from {source}" for name, source in device.telemetry.items()) or "none",
        "telemetry missing": "; ".join(f"{name}: {why}" for name, why in device.telemetry_missing.items()) or "nothing",
    }


def _known_size(count: int | None) -> str:
    return "not known" if count is None else size_text(count)


def _settings(record: Record) -> dict[str, str]:
    settings = record.settings
    used = sorted({cell.key.threads for cell in record.cells})
    kinds = sorted({f"{cell.key.engine} {cell.key.kv}" for cell in record.cells})
    return {
        "threads": ", ".join(map(str, used)) or "none",
        "keys and values": ", ".join(kinds) or "none",
        "sessions": str(settings.sessions),
        "timed steps": str(settings.steps),
        "graphs": settings.graphs,
        "seed": str(settings.seed),
    }


def _versions(record: Record) -> dict[str, str]:
    return {f"version of {name}": version or "not installed" for name, version in record.versions.items()}


def _targets(record: Record) -> dict[str, str]:
    alone = len(record.targets) == 1
    texts: dict[str, str] = {}
    for target in record.targets:
        of = "" if alone else f" of {target.name}"
        texts |= {
            f"model{of}": f"{target.name}, {target.kind} from {target.source}",
            f"weights{of}": precision_text(target),
            f"sha256{of}": target.sha256,
            f"quality{of}": quality_text(target),
        }
    return texts


def precision_text(target: Target) -> str:
    """How the matrices are stored: `embedding int8-g32, layers int4-g32`; layers that differ show their whole table."""
    table = target.precision
    ends = [f"{name} {table[name]}" for name in ("embedding", "head") if name in table]
    kinds = {kind for run in table["layers"] for name, kind in run.items() if name not in ("first", "last")}
    layers = kinds.pop() if len(kinds) == 1 else json.dumps(table["layers"])
    return ", ".join([*ends, f"layers {layers}"])


def quality_text(target: Target) -> str:
    """What these weights are worth: a speed is not read without it."""
    quality = target.quality
    if quality is None:
        return f"{target.quality_note}"
    return (
        f"perplexity {quality.perplexity:.4g} against {quality.reference_perplexity:.4g}, "
        f"KL {quality.kl_mean:.4g} nats, same first choice {quality.top1_agreement:.1%} "
        f"({quality.tokens} tokens of {quality.text})"
    )
