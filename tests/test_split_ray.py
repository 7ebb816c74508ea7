"""A fleet on a real Ray cluster of this machine: what a killed replica held goes on elsewhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from edgemem.runtime.errors import SettingsError
from edgemem.split.ray_app import FleetSettings, SessionPolicy


@pytest.mark.timeout(240)
def test_a_conversation_outlives_the_replicas_it_is_on(tiny_package: Path) -> None:
    script = Path(__file__).with_name("fault") / "ray_fleet.py"
    quiet = {"RAY_USAGE_STATS_ENABLED": "0"}
    done = subprocess.run(
        [sys.executable, str(script), str(tiny_package)], capture_output=True, text=True, env={**os.environ, **quiet}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(set(found["killed"])) == 2
    assert found["links"] > 1  # its own replica was among them
    assert len(found["talked"]) == 30
    assert found["talked"] == found["wanted"]


def test_replicas_are_as_many_as_the_sessions_ask_for() -> None:
    policy = SessionPolicy(sessions_each=10)
    for held, wanted in (({}, 1), ({"a": 10.0}, 1), ({"a": 10.0, "b": 1.0}, 2), ({"a": 31.0}, 4)):
        assert policy(SimpleNamespace(aggregated_metrics={"sessions": held})) == (wanted, {})  # type: ignore[arg-type]
    assert policy(SimpleNamespace(aggregated_metrics=None)) == (1, {})  # type: ignore[arg-type]


@pytest.mark.parametrize("change", [{"replicas": (0, 1)}, {"replicas": (3, 2)}, {"sessions_each": 0}])
def test_fleet_settings_out_of_range_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(SettingsError):
        FleetSettings(**change)  # type: ignore[arg-type]
