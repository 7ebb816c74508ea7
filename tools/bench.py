"""Times both engines against onnxruntime-genai on one package: same threads, same minutes, taking turns.

    python -m edgemem.tools.bench PACKAGE [--processes 6] [--rounds 5] [--json]

The onnx engine and genai drive one runtime over the same graph; the native engine stands beside them. It times what a
person waits for (compile, import, help) too, and sets each figure beside its target. How near decoding comes to the
memory limit shows in the floors.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemem.kernels.native import native
from edgemem.profiles.bandwidth import measured_bandwidth
from edgemem.profiles.floors import floors_at
from edgemem.runtime.engine import Engine
from edgemem.runtime.errors import EdgememError
from edgemem.runtime.machine import usable_cores
from edgemem.runtime.open import open_engine
from edgemem.runtime.package import Package
from edgemem.runtime.sampling import Sampler, Sampling
from edgemem.tools.conditions import conditions
from edgemem.tools.console import print_json, print_table
from edgemem.tools.download import locate_checkpoint
from edgemem.tools.targets import Target, print_targets
from edgemem.tools.waits import compile_seconds, help_seconds, import_seconds

_RESAMPLES = 10_000
_ENGINES = ("onnx", "native") if native() is not None else ("onnx",)
_SIDES = (*_ENGINES, "genai")
_FIGURES = {"first token": "first_token_ms", "each token after": "token_ms"}


@dataclass(frozen=True)
class Round:
    """One answer: milliseconds to the first token and per token after it, and the tokens."""

    first_token_ms: float
    token_ms: float
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Comparison:
    """Medians in milliseconds. ratio: how many times as fast we are. interval: where 95 % of resampled ratios lie."""

    ours: float
    theirs: float
    ratio: float
    interval: tuple[float, float]


def compare(ours: NDArray[np.float64], theirs: NDArray[np.float64], seed: int = 0) -> Comparison:
    """Milliseconds (processes, rounds) of both sides: the median process by its median round.

    The interval resamples processes, then rounds within them: where a process's memory happens to lie moves its speed
    more than its rounds differ.
    """
    pairs = np.array([ours, theirs])
    _, processes, rounds = pairs.shape
    random = np.random.default_rng(seed)
    chosen = random.integers(0, processes, (_RESAMPLES, processes, 1))
    within = random.integers(0, rounds, (_RESAMPLES, processes, rounds))
    resampled = np.median(np.median(pairs[:, chosen, within], axis=3), axis=2)
    low, high = np.percentile(resampled[1] / resampled[0], [2.5, 97.5])
    our, their = (float(value) for value in np.median(np.median(pairs, axis=2), axis=1))
    return Comparison(our, their, their / our, (float(low), float(high)))


def time_engine(engine: Engine, prompt: NDArray[np.int32], tokens: int) -> Round:
    engine.truncate(0)
    started = time.perf_counter()
    engine.extend(prompt)
    times, ids = [], []
    for token in engine.decode(Sampler(Sampling()), tokens):
        times.append(time.perf_counter())
        ids.append(token.id)
    return _round(started, times, ids)


def time_genai(genai: Any, model: Any, prompt: NDArray[np.int32], tokens: int) -> Round:
    settings, total = genai.GeneratorParams(model), len(prompt) + tokens
    settings.set_search_options(max_length=total, min_length=total)
    generator = genai.Generator(model, settings)
    started = time.perf_counter()
    generator.append_tokens(prompt)
    times, ids = [], []
    for _ in range(tokens):
        generator.generate_next_token()
        ids.append(int(generator.get_next_tokens()[0]))
        times.append(time.perf_counter())
    return _round(started, times, ids)


def _round(started: float, times: list[float], ids: list[int]) -> Round:
    first, last = times[0], times[-1]
    return Round(1e3 * (first - started), 1e3 * (last - first) / (len(times) - 1), tuple(ids))


def measure(
    path: Path, prompt_tokens: int, new_tokens: int, rounds: int, threads: int, first: str
) -> dict[str, list[Round]]:
    """One process's rounds of all sides, after one to warm up, in turns; `first` opens and begins."""
    import onnxruntime_genai as genai

    with Package.open(path) as package:
        prompt = np.random.default_rng(0).integers(0, package.model.vocabulary, prompt_tokens).astype(np.int32)

        def open_ours(name: str) -> Callable[[], Round]:
            engine = open_engine(package, name, capacity=prompt_tokens + new_tokens, threads=threads)
            return lambda: time_engine(engine, prompt, new_tokens)

        def open_theirs() -> Callable[[], Round]:
            config = genai.Config(str(path))
            config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
            model = genai.Model(config)
            return lambda: time_genai(genai, model, prompt, new_tokens)

        order = sorted(_SIDES, key=lambda name: name != first)
        sides = {name: open_theirs() if name == "genai" else open_ours(name) for name in order}
        results: dict[str, list[Round]] = {name: [] for name in sides}
        for _ in range(rounds + 1):
            for name, answer in sides.items():
                results[name].append(answer())
    return {name: results[name][1:] for name in _SIDES}


def run(
    path: Path, *, prompt_tokens: int, new_tokens: int, processes: int, rounds: int, threads: int
) -> dict[str, Any]:
    """The whole benchmark: `processes` fresh processes, one after the other, of `rounds` rounds each."""
    results = []
    for index in range(processes):
        with get_context("spawn").Pool(1) as pool:
            task = (path, prompt_tokens, new_tokens, rounds, threads, _SIDES[index % len(_SIDES)])
            results.append(pool.apply(measure, task))
    tokens = {side: [round_.tokens for result in results for round_ in result[side]] for side in _SIDES}

    def compared(engine: str) -> dict[str, Any]:
        """By figure, the engine against genai."""
        pairs = {
            field: [
                np.array([[getattr(round_, field) for round_ in result[side]] for result in results])
                for side in (engine, "genai")
            ]
            for field in _FIGURES.values()
        }
        return {field: asdict(compare(ours, theirs)) for field, (ours, theirs) in pairs.items()}

    return {
        **_circumstances(path, prompt_tokens, new_tokens, threads),
        "prompt_tokens": prompt_tokens,
        "new_tokens": new_tokens,
        "processes": processes,
        "rounds": rounds,
        "threads": threads,
        "onnxruntime": version("onnxruntime"),
        "onnxruntime_genai": version("onnxruntime-genai"),
        "same_tokens": tokens["onnx"] == tokens["genai"],
        "engines": {engine: compared(engine) for engine in _ENGINES},
    }


def _circumstances(path: Path, prompt_tokens: int, new_tokens: int, threads: int) -> dict[str, Any]:
    """What the rounds ran on and with, and the onnx engine's floors in the middle of an answer."""
    bandwidth = measured_bandwidth(threads)
    with Package.open(path) as package:
        floors = floors_at(package.manifest, prompt_tokens + new_tokens // 2, "onnx")
        return {
            **conditions(package, prompt_tokens + new_tokens),
            "bytes_per_token": floors.streamed_bytes,
            "read_bandwidth_gb_s": bandwidth / 1e9,
            **floors.milliseconds(bandwidth),
        }


def reached(report: dict[str, Any], source: Path) -> list[Target]:
    """The onnx engine's ratios and the waits, timed now, beside their targets. source: what to time compiling."""
    onnx = report["engines"]["onnx"]
    return [
        Target("onnx: tokens, times as fast", onnx["token_ms"]["ratio"], 0.97, "x", least=True),
        Target("onnx: first token, times as fast", onnx["first_token_ms"]["ratio"], 1.0, "x", least=True),
        Target(f"compile {source.name}", compile_seconds(source), 30.0, "s"),
        Target("import edgemem.runtime", import_seconds(), 0.3, "s"),
        Target("edgemem --help", help_seconds(), 0.5, "s"),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m edgemem.tools.bench", description=__doc__.splitlines()[0])
    parser.add_argument("package", type=Path)
    parser.add_argument("--prompt-tokens", type=int, default=113)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--processes", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--source", default="smollm2-135m", help="model to time compiling (smollm2-135m)")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    for name in ("prompt_tokens", "new_tokens", "processes", "rounds", "threads"):
        if getattr(options, name) < (2 if name == "new_tokens" else 1):
            parser.error(f"--{name.replace('_', '-')} is too small")
    if find_spec("onnxruntime_genai") is None:
        print("onnxruntime-genai is not installed\n  do: pip install onnxruntime-genai", file=sys.stderr)
        return 1
    try:
        report = run(
            options.package,
            prompt_tokens=options.prompt_tokens,
            new_tokens=options.new_tokens,
            processes=options.processes,
            rounds=options.rounds,
            threads=options.threads,
        )
        targets = reached(report, locate_checkpoint(options.source, quiet=options.json))
    except EdgememError as problem:
        print(problem, file=sys.stderr)
        return 1
    if options.json:
        print_json({**report, "targets": [target.to_dict() for target in targets]})
    else:
        _show(report)
        print_targets(targets)
    return 0


def _show(report: dict[str, Any]) -> None:
    same = "the same" if report["same_tokens"] else "NOT the same"
    print(
        f"{report['package']}: {report['new_tokens']} tokens after {report['prompt_tokens']}; "
        f"greedy tokens of onnx and genai {same}"
    )
    print(f"{report['processes']} processes of {report['rounds']} rounds in turns, {report['threads']} threads; ms")
    rows = []
    for engine, figures in report["engines"].items():
        for name, key in _FIGURES.items():
            row = figures[key]
            (low, high), times = row["interval"], (f"{row['ours']:.2f}", f"{row['theirs']:.2f}")
            rows.append((engine, name, *times, f"{row['ratio']:.3f}", f"{low:.3f} to {high:.3f}"))
    theirs = f"onnxruntime-genai {report['onnxruntime_genai']}"
    print_table("", ("engine", "", "edgemem", theirs, "times as fast", "95 % interval"), rows)
    print(
        f"floors at the measured {report['read_bandwidth_gb_s']:.1f} GB/s: "
        f"streamed {report['streamed_floor_ms']:.2f} ms, footprint {report['footprint_floor_ms']:.2f} ms"
    )


if __name__ == "__main__":
    sys.exit(main())
