"""Published steps that predictions are fitted to: what they are, how well the model holds, which are taken."""

from __future__ import annotations

import pytest

from edgemem.profiles.devices import DeviceTable
from edgemem.profiles.fits import PublishedSteps, nearest, published_steps
from edgemem.profiles.plain import from_plain, to_plain

KNOWN = published_steps()
NAMES = [f"{steps.device}-{steps.weights}" for steps in KNOWN]


@pytest.mark.parametrize("steps", KNOWN, ids=NAMES)
def test_each_is_on_a_device_of_the_table_at_its_datasheets_peak(steps: PublishedSteps) -> None:
    assert DeviceTable.load().named(steps.device).datasheet_bandwidth == steps.bandwidth_gb_s * 1e9
    assert steps.source
    assert from_plain(PublishedSteps, to_plain(steps)) == steps


@pytest.mark.parametrize("steps", KNOWN, ids=NAMES)
def test_two_numbers_explain_the_steps(steps: PublishedSteps) -> None:
    found = steps.fit()
    assert 0.7 < found.efficiency < 1
    assert 0.001 < found.phase_ms < 0.05
    assert len(found.residuals) == len(steps.steps) == 4
    assert found.worst < (0.02 if "Edge-LLM" in steps.engine else 0.07)
    for text in ("another engine", steps.engine, steps.device, steps.source):
        assert text in found.origin


@pytest.mark.parametrize(
    ("bits", "peak_gb_s", "device", "taken_bits"),
    [
        (4, 204.8, "agx-orin", 4),
        (4, 102, "orin-nx", 4),
        (4, 68, "orin-nx", 4),
        (4, 4800, "a100-80gb-sxm", 4),
        (16, 204.8, "a100-80gb-sxm", 16),
        (8, 204.8, "agx-orin", 4),
        (32, 300, "a100-80gb-sxm", 16),
    ],
)
def test_the_nearest_is_of_such_weights_and_then_of_such_a_memory(
    bits: int, peak_gb_s: float, device: str, taken_bits: int
) -> None:
    taken = nearest(KNOWN, bits, peak_gb_s * 1e9)
    assert (taken.device, taken.bits) == (device, taken_bits)
