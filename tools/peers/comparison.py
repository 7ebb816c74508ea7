"""One comparison of runtimes: its settings, its rounds, and what it has found so far. Prints nothing but progress."""

from __future__ import annotations

import os
import statistics
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

from edgemem.kernels.native import MemorySweep, cpu_features
from edgemem.profiles.cpu_model import cpu_model
from edgemem.runtime.errors import EdgememError
from edgemem.runtime.kv_cache import KV_ELEMENT_BYTES
from edgemem.runtime.machine import usable_cores
from edgemem.runtime.token_prefix import common_prefix
from edgemem.tools.console import note
from edgemem.tools.peers.environments import RUNTIMES, Environment, prepare
from edgemem.tools.peers.models import BenchModel
from edgemem.tools.peers.process import Outcome, run_adapter
from edgemem.tools.peers.results import BASE, Row, decode_figures, rates, speedup
from edgemem.tools.peers.workload import SpeedTest
from edgemem.tools.source import cache_folder

_SWEEP_BYTES = 512 << 20
_PROCESS_LIMIT_S = 3600.0


@dataclass
class Comparison:
    """Fill in the settings, then install() and run() model by model; rows() and record() may be asked at any time."""

    tests: list[SpeedTest]
    runtimes: list[str]
    threads: int
    rounds: int
    repetitions: int
    environments: dict[str, Environment] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)  # by runtime, model, or model/runtime
    models: dict[str, BenchModel] = field(default_factory=dict)
    outcomes: dict[tuple[str, str], dict[int, Outcome]] = field(default_factory=dict)  # (model, runtime), round
    sweeps: list[float] = field(default_factory=list)  # bytes a second
    load_before: tuple[float, float, float] = field(default_factory=os.getloadavg)

    @property
    def context(self) -> int:
        return max(test.context for test in self.tests)

    @property
    def ceiling(self) -> float | None:
        return max(self.sweeps, default=None)

    def install(self) -> None:
        cache = cache_folder() / "peers"
        for name in self.runtimes:
            try:
                self.environments[name] = prepare(RUNTIMES[name], cache)
            except EdgememError as problem:
                self.failures[name] = " ".join(str(problem).split())

    def run(self, model: BenchModel) -> None:
        """All rounds over one model; the runtimes take turns in going first."""
        self.models[model.name] = model
        self.sweep()
        for round_ in range(self.rounds):
            for name in self.runtimes[:: 1 if round_ % 2 == 0 else -1]:
                if name in self.environments and f"{model.name}/{name}" not in self.failures:
                    self._run_one(model, name, round_)
                    self.sweep()

    def sweep(self) -> None:
        """Measure the read ceiling once more."""
        self.sweeps.append(max(MemorySweep(_SWEEP_BYTES, self.threads).read()))

    def _run_one(self, model: BenchModel, name: str, round_: int) -> None:
        runtime = RUNTIMES[name]
        label = f"{model.name}, round {round_ + 1} of {self.rounds}: {name}"
        try:
            outcome = run_adapter(
                self.environments[name].python, runtime.adapter, self.job(model, runtime.engine), _PROCESS_LIMIT_S
            )
        except EdgememError as problem:
            self.failures[f"{model.name}/{name}"] = " ".join(str(problem).split())
            note(f"{label}: {problem}")
            return
        self.outcomes.setdefault((model.name, name), {})[round_] = outcome
        means = [f"{test.name} {rates(test, [outcome.seconds[test.name]])[0]:.1f}" for test in self.tests]
        note(f"{label}: {', '.join(means)} tokens/s")

    def job(self, model: BenchModel, engine: str) -> dict[str, Any]:
        """What timing.py is told."""
        return {
            "gguf": str(model.gguf),
            "package": str(model.package),
            "graph_kv_element_bytes": KV_ELEMENT_BYTES,
            "engine": engine,
            "threads": self.threads,
            "context": self.context,
            "repetitions": self.repetitions,
            "ids": model.ids,
            "tests": [{"name": test.name, "prompt": test.prompt, "steps": test.steps} for test in self.tests],
        }

    def rows(self) -> list[Row]:
        """The table, model by model, test by test; a runtime without a figure has one row a model, which says why."""
        rows = []
        for model in self.models.values():
            ran = [name for name in self.runtimes if (model.name, name) in self.outcomes]
            rows += [self._row(model, test, name) for test in self.tests for name in ran]
            for name in self.runtimes:
                if name not in ran:
                    why = self.failures.get(name) or self.failures.get(f"{model.name}/{name}") or "not run"
                    rows.append(Row(model.name, model.size_bytes, name, self.threads, "all", failure=why))
        return rows

    def _row(self, model: BenchModel, test: SpeedTest, name: str) -> Row:
        outcomes = self.outcomes[model.name, name]
        ours = self._seconds(model, test, name)
        rate, deviation = rates(test, list(ours.values()))
        found: dict[str, Any] = {"failure": self.failures.get(f"{model.name}/{name}")}
        if test.steps:
            element = next(iter(outcomes.values())).about["kv_element_bytes"]
            step_bytes = model.step_bytes(test.mean_slots, element)
            found |= decode_figures(test, list(ours.values()), step_bytes, self.ceiling)
            steps = [step for outcome in outcomes.values() for step in outcome.steps[test.name]]
            found["step_p99_over_median"] = statistics.median(step["p99"] / step["median"] for step in steps)
        if (gain := speedup(ours, self._seconds(model, test, BASE))) is not None:
            found["ratio"], found["ratio_interval"] = gain
        return Row(model.name, model.size_bytes, name, self.threads, test.name, rate, deviation, **found)

    def _seconds(self, model: BenchModel, test: SpeedTest, name: str) -> dict[int, list[float]]:
        outcomes = self.outcomes.get((model.name, name), {})
        return {round_: outcome.seconds[test.name] for round_, outcome in outcomes.items()}

    def same_tokens(self) -> dict[str, dict[str, dict[str, int]]]:
        """By real model, runtime and test: how many first greedy tokens are llama.cpp's, the least over the rounds.

        A near tie parts two right runtimes for good, so a low number in one test alone means little.
        """
        agreement: dict[str, dict[str, dict[str, int]]] = {}
        for (model, name), outcomes in self.outcomes.items():
            base = next(iter(self.outcomes.get((model, BASE), {}).values()), None)
            if base is None or not self.models[model].real or name == BASE:
                continue
            counts = {
                test: min(common_prefix(outcome.ids[test], ids) for outcome in outcomes.values())
                for test, ids in base.ids.items()
            }
            agreement.setdefault(model, {})[name] = counts
        return agreement

    def record(self) -> dict[str, Any]:
        """Everything, for JSON: the machine, the versions, the rows and the seconds they were made of."""
        return {
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "cpu": cpu_model(),
            "cpu_features": sorted(name for name, there in cpu_features().items() if there),
            "usable_cores": usable_cores(),
            "load_average_before": self.load_before,
            "load_average_after": os.getloadavg(),
            "threads": self.threads,
            "rounds": self.rounds,
            "repetitions": self.repetitions,
            "versions": {name: environment.versions for name, environment in self.environments.items()},
            "read_ceiling_gb_s": None if self.ceiling is None else self.ceiling / 1e9,
            "read_sweeps_gb_s": [sweep / 1e9 for sweep in self.sweeps],
            "failures": self.failures,
            "same_first_tokens_as_llama_cpp": self.same_tokens(),
            "rows": [row.to_dict() for row in self.rows()],
            "samples": [
                {"model": model, "runtime": name, "round": round_, "about": outcome.about, "seconds": outcome.seconds}
                | {"step_ms": outcome.steps, "ids": outcome.ids}
                for (model, name), outcomes in self.outcomes.items()
                for round_, outcome in outcomes.items()
            ],
        }
