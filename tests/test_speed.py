"""The speed line and object: rates that the answer has, floors at the measured bandwidth."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from edgemem.profiles.floors import Floors
from edgemem.runtime.session import Timings
from edgemem.tools.console import print_json
from edgemem.tools.speed import Speed

WHOLE = Speed("onnx", 2, Timings(30, 20, 100.0, 120.0, 50, 1000.0), Floors(100e6, 120e6), 10e9)


def test_line_says_how_near_it_came() -> None:
    line = WHOLE.line()
    assert line.split(" | ") == [
        "50.0 tokens/s",
        "prompt 200 tokens/s (20)",
        "first token after 120 ms",
        "100.0 MB/token",
        "5.0 GB/s = 50% of the measured 10.0",
        "onnx, 2 threads",
    ]


@pytest.mark.parametrize(
    ("timings", "left"),
    [
        (Timings(30, 20, 100.0, 120.0), ["prompt 200 tokens/s (20)", "first token after 120 ms"]),
        (Timings(30, 0, 0.0, 3.0), ["first token after 3 ms"]),
        (Timings(), []),
    ],
)
def test_rates_that_are_not_there_are_left_out(
    timings: Timings, left: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    short = replace(WHOLE, timings=timings)
    assert short.line().split(" | ") == [*left, "100.0 MB/token", "onnx, 2 threads"]
    print_json(short.to_dict())
    shown = json.loads(capsys.readouterr().out)
    assert shown["decode_tokens_per_second"] is None
    assert shown["bandwidth_share"] is None


def test_floors_need_a_bandwidth() -> None:
    shown = WHOLE.to_dict()
    assert (shown["streamed_floor_ms"], shown["footprint_floor_ms"]) == pytest.approx((10.0, 12.0))
    shown = replace(WHOLE, read_bandwidth=None).to_dict()
    assert (shown["streamed_floor_ms"], shown["footprint_floor_ms"]) == (None, None)
