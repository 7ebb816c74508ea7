from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemem.profiles.nvml import gpu_identity, open_gpu
from edgemem.profiles.rapl import Rapl
from edgemem.profiles.record import Telemetry
from edgemem.profiles.sysfs import read_number, read_text
from edgemem.profiles.telemetry import Sample, Watch, summarise, together
from edgemem.profiles.telemetry_cpu import CpuReader
from edgemem.profiles.telemetry_jetson import JetsonReader
from edgemem.profiles.unavailable import Unavailable
from edgemem.runtime.errors import SettingsError

NOTHING = Sample()
PACKAGE, MEMORY = "sys/class/powercap/intel-rapl:0", "sys/class/powercap/intel-rapl:0:1"


def put(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return root


def rapl_zone(folder: str, name: str, energy_uj: int, most_uj: int = 1_000_000) -> dict[str, str]:
    values = {"name": name, "energy_uj": str(energy_uj), "max_energy_range_uj": str(most_uj)}
    return {f"{folder}/{key}": value for key, value in values.items()}


def test_small_files(tmp_path: Path) -> None:
    put(tmp_path, {"number": "-12", "text": "12 mA", "huge": "9" * 30, "empty": ""})
    (tmp_path / "tree").write_bytes(b"a\0b\0")
    (tmp_path / "bytes").write_bytes(b"\xff\n")
    assert read_number(tmp_path / "number") == -12
    assert [read_number(tmp_path / name) for name in ("text", "huge", "empty", "absent", "bytes")] == [None] * 5
    assert read_text(tmp_path / "tree") == "a\0b"
    assert read_text(tmp_path) is None


def test_energy_is_the_counters_where_there_is_one() -> None:
    samples = [Sample(power_w=1, energy_j=100), Sample(power_w=1), Sample(power_w=1, energy_j=130)]
    summary = summarise([0, 1, 2], samples)
    assert (summary.energy_j, summary.seconds) == (pytest.approx(30), 2)


def test_a_counter_that_stands_still_is_no_energy_of_zero() -> None:
    assert summarise([0, 1], [Sample(energy_j=5), Sample(energy_j=5)]).energy_j is None
    assert summarise([0, 1], [Sample(energy_j=5, power_w=3)] * 2).energy_j == pytest.approx(3)


def test_power_is_weighed_by_time() -> None:
    summary = summarise([0, 1, 4], [Sample(power_w=10), Sample(power_w=20), Sample(power_w=20)])
    assert summary.energy_j == pytest.approx(15 + 60)


def test_a_single_reading_stands_for_the_whole_duration() -> None:
    assert summarise([0, 2], [NOTHING, Sample(power_w=7)]).energy_j == 14


def test_what_was_not_read_is_none() -> None:
    for count in (2, 3):
        assert summarise(list(range(count)), [NOTHING] * count) == Telemetry(count - 1, None, None, {}, ())


def test_reasons_temperatures_and_clocks_are_put_together() -> None:
    samples = [
        Sample(temperature_c=60, clocks_mhz={"sm": 1980, "memory": 2619}, throttle_reasons=frozenset()),
        Sample(temperature_c=71, clocks_mhz={"sm": 1785}, throttle_reasons=frozenset({"software power cap"})),
    ]
    summary = summarise([0, 1], samples)
    assert summary.temperature_c == 71
    assert summary.clocks_mhz == {"sm": (1785, 1980), "memory": (2619, 2619)}
    assert summary.throttled == ("software power cap",)
    assert summarise([0, 1], samples[:1] * 2).throttled == ()


def test_throttling_that_was_counted_before_does_not_count() -> None:
    def counted(count: int) -> Sample:
        return Sample(throttle_reasons=frozenset(), throttle_counts={"cpu thermal": count})

    assert summarise([0, 1], [counted(7), counted(7)]).throttled == ()
    assert summarise([0, 1], [counted(7), counted(8)]).throttled == ("cpu thermal",)


def test_parts_are_put_together() -> None:
    warm = Telemetry(2.0, 30.0, 60.0, {"sm": (1785.0, 1980.0)}, ("software power cap",))
    hot = Telemetry(1.0, 12.0, 71.0, {"sm": (1900.0, 1995.0), "memory": (2619.0, 2619.0)}, ())
    clocks = {"sm": (1785.0, 1995.0), "memory": (2619.0, 2619.0)}
    assert together([warm, hot]) == Telemetry(3.0, 42.0, 71.0, clocks, ("software power cap",))
    unread = Telemetry(1.0, None, None, {}, ())
    assert together([warm, unread]) == replace(warm, seconds=3.0, energy_j=None)  # a part is not the whole
    assert together([unread]) == unread


@given(
    power=st.floats(0.1, 1000),
    steps=st.lists(st.floats(0.01, 10), min_size=1, max_size=20),
    counted=st.booleans(),
)
def test_a_constant_power_gives_its_energy(power: float, steps: list[float], counted: bool) -> None:
    times = [sum(steps[:count]) for count in range(len(steps) + 1)]
    samples = [Sample(energy_j=power * time) if counted else Sample(power_w=power) for time in times]
    assert summarise(times, samples).energy_j == pytest.approx(power * times[-1])


class Counting:
    """A reader that says when it has been asked often enough."""

    source = "counting"

    def __init__(self, enough: int) -> None:
        self.count, self.enough, self.reached = 0, enough, threading.Event()

    def read(self) -> Sample:
        self.count += 1
        if self.count == self.enough:
            self.reached.set()
        return Sample(energy_j=float(self.count))


def test_a_watch_samples_meanwhile_and_leaves_no_thread() -> None:
    before = set(threading.enumerate())
    reader = Counting(enough=3)
    with Watch(reader, interval_s=0.2) as watch:
        assert reader.reached.wait(20)
    assert set(threading.enumerate()) == before
    assert reader.count >= 4
    assert watch.summary.energy_j == pytest.approx(reader.count - 1)


def test_a_short_measurement_has_its_first_and_last_sample() -> None:
    times = iter([10.0, 13.0])
    with Watch(Counting(9), clock=lambda: next(times)) as watch:
        pass
    assert (watch.summary.energy_j, watch.summary.seconds) == (1.0, 3.0)


def test_a_measurement_that_fails_ends_the_watch_with_its_own_error() -> None:
    before = set(threading.enumerate())
    with pytest.raises(ZeroDivisionError), Watch(Counting(9)):
        1 // 0  # noqa: B018
    assert set(threading.enumerate()) == before


def test_a_reader_that_breaks_is_not_silent() -> None:
    class Broken(Counting):
        def read(self) -> Sample:
            sample = super().read()
            if self.count == 2:
                raise RuntimeError("broken reader")
            return sample

    reader = Broken(enough=2)
    with pytest.raises(RuntimeError, match="broken reader"), Watch(reader, interval_s=0.2):
        assert reader.reached.wait(20)


@pytest.mark.parametrize("interval_s", [0, 0.1, -1, float("nan"), float("inf")])
def test_intervals_that_would_disturb_are_refused(interval_s: float) -> None:
    with pytest.raises(SettingsError, match="interval"):
        Watch(Counting(1), interval_s=interval_s)


def test_rapl_adds_packages_and_memory_and_nothing_twice(tmp_path: Path) -> None:
    put(tmp_path, rapl_zone(PACKAGE, "package-0", 100) | rapl_zone(MEMORY, "dram", 10))
    put(tmp_path, rapl_zone("sys/class/powercap/intel-rapl:0:0", "core", 50))
    put(tmp_path, rapl_zone("sys/class/powercap/intel-rapl:1", "psys", 900))
    put(tmp_path, rapl_zone("sys/class/powercap/intel-rapl-mmio:0", "package-0", 100))
    rapl = Rapl(tmp_path)
    assert rapl.source == "RAPL package-0, dram"
    assert rapl.energy_j() == 0
    put(tmp_path, {f"{PACKAGE}/energy_uj": "400100", f"{MEMORY}/energy_uj": "100010"})
    assert rapl.energy_j() == pytest.approx(0.5)


def test_rapl_counters_turn_over(tmp_path: Path) -> None:
    put(tmp_path, rapl_zone(PACKAGE, "package-0", 900_000))
    rapl = Rapl(tmp_path)
    for now_uj, used_j in ((999_000, 0.099), (51_000, 0.151), (50_000, 1.15)):
        put(tmp_path, {f"{PACKAGE}/energy_uj": str(now_uj)})
        assert rapl.energy_j() == pytest.approx(used_j)


@given(start=st.integers(0, 999), steps=st.lists(st.integers(0, 999), max_size=8))
def test_rapl_follows_any_use_below_a_turn(
    tmp_path_factory: pytest.TempPathFactory, start: int, steps: list[int]
) -> None:
    root = put(tmp_path_factory.mktemp("rapl"), rapl_zone(PACKAGE, "package-0", start, most_uj=1000))
    rapl, used = Rapl(root), 0
    for step in steps:
        used += step
        put(root, {f"{PACKAGE}/energy_uj": str((start + used) % 1000)})
        assert rapl.energy_j() == pytest.approx(used / 1e6)


def test_rapl_of_which_a_part_cannot_be_read_is_none(tmp_path: Path) -> None:
    put(tmp_path, rapl_zone(PACKAGE, "package-0", 100) | rapl_zone(MEMORY, "dram", 10))
    (tmp_path / MEMORY / "energy_uj").unlink()
    assert (Rapl(tmp_path).source, Rapl(tmp_path).energy_j()) == (None, None)


def test_rapl_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    put(tmp_path, rapl_zone(PACKAGE, "package-0", 100))
    rapl = Rapl(tmp_path)
    (tmp_path / PACKAGE / "energy_uj").unlink()
    assert rapl.energy_j() is None
    assert (Rapl(tmp_path).source, Rapl(tmp_path).energy_j()) == (None, None)


def test_a_cpu_with_everything(tmp_path: Path) -> None:
    cpu = "sys/devices/system/cpu"
    put(tmp_path, rapl_zone(PACKAGE, "package-0", 0, 10_000_000))
    put(
        tmp_path,
        {
            f"{cpu}/cpu0/cpufreq/scaling_cur_freq": "800000",
            f"{cpu}/cpu1/cpufreq/scaling_cur_freq": "3700000",
            f"{cpu}/cpu2/cpufreq/scaling_cur_freq": "5000000",  # not one of this process's
            f"{cpu}/cpu0/thermal_throttle/core_throttle_count": "4",
            f"{cpu}/cpu0/thermal_throttle/package_throttle_count": "0",
            "sys/class/hwmon/hwmon0/name": "nvme",
            "sys/class/hwmon/hwmon0/temp1_input": "99000",
            "sys/class/hwmon/hwmon1/name": "coretemp",
            "sys/class/hwmon/hwmon1/temp1_input": "61000",
            "sys/class/hwmon/hwmon1/temp2_input": "64500",
        },
    )
    reader = CpuReader(tmp_path, processors=[0, 1])
    assert reader.source == "RAPL package-0, thermal sensors, cpufreq, throttle counts"
    put(tmp_path, {f"{PACKAGE}/energy_uj": "2500000"})
    sample = reader.read()
    assert (sample.power_w, sample.energy_j, sample.temperature_c) == (None, 2.5, 64.5)
    assert sample.clocks_mhz == {"cpu": 3700}
    assert (sample.throttle_reasons, sample.throttle_counts) == (frozenset(), {"cpu thermal": 4})
    put(tmp_path, {f"{cpu}/cpu0/thermal_throttle/package_throttle_count": "1"})
    assert reader.read().throttle_counts == {"cpu thermal": 5}


def test_a_cpu_with_a_thermal_zone_alone(tmp_path: Path) -> None:
    zone = "sys/class/thermal/thermal_zone"
    put(tmp_path, {f"{zone}0/type": "acpitz", f"{zone}0/temp": "20000"})
    put(tmp_path, {f"{zone}1/type": "x86_pkg_temp", f"{zone}1/temp": "55000"})
    assert CpuReader(tmp_path).read() == Sample(temperature_c=55)


def test_a_cpu_with_nothing(tmp_path: Path) -> None:
    reader = CpuReader(tmp_path)
    assert reader.read() == NOTHING
    assert reader.source == "nothing readable"


def ina3221(number: int, *rails: tuple[str, int, int]) -> dict[str, str]:
    """rails: name, millivolts, milliamperes of the monitor's channels."""
    folder = f"sys/class/hwmon/hwmon{number}"
    files = {f"{folder}/name": "ina3221"}
    for channel, (name, millivolts, milliamperes) in enumerate(rails, 1):
        files[f"{folder}/in{channel}_label"] = name
        files[f"{folder}/in{channel}_input"] = str(millivolts)
        files[f"{folder}/curr{channel}_input"] = str(milliamperes)
    return files


def test_a_jetson_orin_nano(tmp_path: Path) -> None:
    brake = "sys/class/thermal/cooling_device3"
    put(tmp_path, ina3221(1, ("VDD_IN", 5000, 2400), ("VDD_CPU_GPU_CV", 5000, 900), ("VDD_SOC", 5000, 500)))
    put(
        tmp_path,
        {
            "sys/class/devfreq/17000000.gpu/cur_freq": "1020000000",
            "sys/class/devfreq/15340000.vic/cur_freq": "435200000",
            "sys/kernel/debug/bpmp/debug/clk/emc/rate": "3199000000",
            "sys/class/thermal/thermal_zone0/type": "cpu-thermal",
            "sys/class/thermal/thermal_zone0/temp": "52000",
            "sys/class/thermal/thermal_zone1/type": "tj-thermal",
            "sys/class/thermal/thermal_zone1/temp": "57500",
            "sys/class/thermal/thermal_zone2/type": "PMIC-Die",
            "sys/class/thermal/thermal_zone2/temp": "100000",
            f"{brake}/type": "gpu-throttle-alert",
            f"{brake}/cur_state": "0",
            "sys/class/thermal/cooling_device0/type": "pwm-fan",
            "sys/class/thermal/cooling_device0/cur_state": "3",
            "sys/class/hwmon/hwmon5/oc1_event_cnt": "2",
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "1728000",
        },
    )
    reader = JetsonReader(tmp_path)
    sample = reader.read()
    assert reader.source == "sysfs, power of VDD_IN"
    assert (sample.power_w, sample.temperature_c) == (12, 57.5)
    assert {name: sample.clocks_mhz[name] for name in ("gpu", "memory")} == {"gpu": 1020, "memory": 3199}
    assert (sample.throttle_reasons, sample.throttle_counts) == (frozenset(), {"over-current": 2})
    put(tmp_path, {f"{brake}/cur_state": "1", "sys/class/hwmon/hwmon5/oc1_event_cnt": "3"})
    after = reader.read()
    assert summarise([0, 1], [sample, after]).throttled == ("gpu-throttle-alert", "over-current")


def test_a_jetson_agx_orins_power_is_the_sum_of_what_feeds_it(tmp_path: Path) -> None:
    put(tmp_path, ina3221(1, ("VDD_GPU_SOC", 20000, 500), ("VDD_CPU_CV", 20000, 100), ("VIN_SYS_5V0", 5000, 1000)))
    put(tmp_path, ina3221(2, ("NC", 0, 0), ("VDDQ_VDD2_1V8AO", 5000, 400), ("NC", 0, 0)))
    assert JetsonReader(tmp_path).read().power_w == pytest.approx(10 + 2 + 5)
    (tmp_path / "sys/class/hwmon/hwmon1/curr2_input").unlink()
    assert JetsonReader(tmp_path).read().power_w is None  # a part is not the whole


def test_a_jetson_thor(tmp_path: Path) -> None:
    put(tmp_path, ina3221(1, ("VDD_GPU", 12000, 1000), ("VDD_CPU_SOC_MSS", 12000, 900), ("VIN_SYS_5V0", 5000, 2000)))
    put(tmp_path, {"sys/class/hwmon/hwmon2/name": "ina238", "sys/class/hwmon/hwmon2/power1_input": "48500000"})
    put(tmp_path, {"sys/class/devfreq/gpu-gpc-0/cur_freq": "1575000000"})
    put(tmp_path, {"sys/class/devfreq/gpu-nvd-0/cur_freq": "999000000"})
    put(tmp_path, {"sys/class/devfreq/bwmgr/cur_freq": "4266000000"})
    sample = JetsonReader(tmp_path).read()
    assert sample.power_w == pytest.approx(48.5)
    assert sample.clocks_mhz == {"gpu": 1575, "memory": 4266}


def test_a_jetson_with_nothing(tmp_path: Path) -> None:
    reader = JetsonReader(tmp_path)
    assert reader.read() == NOTHING
    assert reader.source == "sysfs, power of no rail"


def test_this_machine_can_be_watched() -> None:
    with Watch(CpuReader()) as watch:
        sum(range(1000))
    assert watch.summary.seconds > 0
    assert watch.summary.energy_j is None or watch.summary.energy_j > 0


# Stands in for NVIDIA's driver library, so that the real pynvml is what asks it. LATE: a driver from 535 on.
DRIVER = r"""
#include <string.h>
typedef void *device;
int nvmlInitWithFlags(unsigned flags) { return 0; }
int nvmlInit_v2(void) { return 0; }
int nvmlShutdown(void) { return 0; }
const char *nvmlErrorString(int code) { return code == 3 ? "Not Supported" : "Invalid Argument"; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, device *handle) { *handle = (device)1; return index ? 2 : 0; }
int nvmlDeviceGetName(device handle, char *name, unsigned size) { strcpy(name, "NVIDIA H100 PCIe"); return 0; }
int nvmlSystemGetDriverVersion(char *name, unsigned size) { strcpy(name, "595.78"); return 0; }
int nvmlDeviceGetMemoryInfo(device handle, unsigned long long *memory) { memory[0] = 81559ull << 20; return 0; }
int nvmlDeviceGetCudaComputeCapability(device handle, int *major, int *minor) { *major = 9; *minor = 0; return 0; }
int nvmlDeviceGetPowerUsage(device handle, unsigned *milliwatts) { *milliwatts = 310500; return 0; }
int nvmlDeviceGetTemperature(device handle, int sensor, unsigned *celsius) { *celsius = 64; return 0; }
int nvmlDeviceGetTotalEnergyConsumption(device handle, unsigned long long *energy) { return 3; }
int nvmlDeviceGetClockInfo(device handle, int kind, unsigned *mhz) { *mhz = kind == 1 ? 1755 : 1593; return 0; }
#ifdef LATE
int nvmlDeviceGetCurrentClocksEventReasons(device handle, unsigned long long *bits) { *bits = 0x5; return 0; }
#else
int nvmlDeviceGetCurrentClocksThrottleReasons(device handle, unsigned long long *bits) { *bits = 0x41; return 0; }
#endif
"""

ASK = """
import dataclasses, json
from edgemem.profiles.nvml import gpu_identity, open_gpu
with open_gpu() as gpu:
    sample = dataclasses.asdict(gpu.read())
with open_gpu(1) as none:
    sample["none"] = none.reason
sample["throttle_reasons"] = sorted(sample["throttle_reasons"])
print(json.dumps({**sample, **dataclasses.asdict(gpu_identity())}))
"""


@pytest.mark.parametrize(
    ("flags", "reasons"), [(["-DLATE"], ["software power cap"]), ([], ["hardware thermal slowdown"])]
)
def test_a_gpu_through_nvml(tmp_path: Path, flags: list[str], reasons: list[str]) -> None:
    pytest.importorskip("pynvml")
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    (tmp_path / "driver.c").write_text(DRIVER)
    library = tmp_path / "libnvidia-ml.so.1"
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-w", *flags, "-o", str(library), str(tmp_path / "driver.c")], check=True
    )
    environment = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path)}
    result = subprocess.run([sys.executable, "-c", ASK], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == {
        "power_w": 310.5,
        "energy_j": None,  # not supported by this one
        "temperature_c": 64,
        "clocks_mhz": {"sm": 1755, "memory": 1593},
        "throttle_reasons": reasons,
        "throttle_counts": {},
        "none": "NVML has no GPU 1: Invalid Argument",
        "name": "NVIDIA H100 PCIe",
        "memory_bytes": 81559 << 20,
        "driver": "595.78",
        "compute_capability": "9.0",
    }


def test_without_pynvml_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with open_gpu() as gpu:
        assert isinstance(gpu, Unavailable)
        assert "edgemem-runtime[gpu]" in gpu.reason
    assert gpu_identity() == gpu


def test_this_machine_has_a_gpu_or_a_reason() -> None:
    with open_gpu() as gpu:
        told = gpu.reason if isinstance(gpu, Unavailable) else gpu.identity().name
    assert told
