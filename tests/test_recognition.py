from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from edgemem.profiles.cpu_model import cpu_model
from edgemem.profiles.devices import DeviceTable
from edgemem.profiles.nvml import GpuIdentity
from edgemem.profiles.recognition import Recognised, recognise
from edgemem.profiles.unavailable import Unavailable

TABLE = DeviceTable.load()
NO_GPU = Unavailable("NVML does not answer: none here")


def put(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def jetson(root: Path, model: str, compatible: str, extra: dict[str, str] | None = None) -> Recognised:
    """As a Jetson's device tree gives it: texts end with NUL."""
    put(root, {"proc/device-tree/model": f"{model}\0", "proc/device-tree/compatible": f"{compatible}\0"})
    put(root, {"proc/meminfo": "MemTotal:        7802184 kB\nMemFree: 1 kB\n", **(extra or {})})
    return recognise(TABLE, root, gpu=lambda: pytest.fail("NVML is not asked on a Jetson"))


NANO = ("NVIDIA Jetson Orin Nano Developer Kit", "nvidia,p3768-0000+p3767-0005\0nvidia,p3767-0005\0nvidia,tegra234")
SUPER = (
    "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super",
    "nvidia,p3768-0000+p3767-0005-super\0nvidia,p3767-0005\0nvidia,tegra234",
)
CLOCK_LIMIT = "sys/kernel/nvpmodel_clk_cap/emc"


@pytest.mark.parametrize(
    ("model", "compatible", "name"),
    [
        (
            "NVIDIA Jetson Orin NX Engineering Reference Developer Kit",
            "nvidia,p3768-0000+p3767-0000\0nvidia,p3767-0000\0nvidia,tegra234",
            "orin-nx",
        ),
        ("NVIDIA Jetson AGX Orin Developer Kit", "nvidia,p3737-0000+p3701-0005\0nvidia,tegra234", "agx-orin"),
        ("NVIDIA Jetson AGX Orin Developer Kit", "nvidia,p3737-0000\0nvidia,tegra234", "agx-orin"),
        ("Somebody's carrier board", "somebody,board\0nvidia,p3701-0004\0nvidia,tegra234", "agx-orin"),
        (
            "NVIDIA Jetson AGX Thor Developer Kit",
            "nvidia,p4071-0000+p3834-0008\0nvidia,p3834-0008\0nvidia,tegra264",
            "thor",
        ),
    ],
)
def test_jetsons(tmp_path: Path, model: str, compatible: str, name: str) -> None:
    release = "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64\n"
    found = jetson(tmp_path, model, compatible, {"etc/nv_tegra_release": release})
    assert found.device == TABLE.named(name)
    assert (found.kind, found.reported_name, found.driver) == ("jetson", model, "L4T 36.4.3")
    assert found.memory_bytes == 7802184 * 1024
    assert found.reasons == ()


@pytest.mark.parametrize("board", [NANO, SUPER])
@pytest.mark.parametrize(("limit_hz", "name"), [("3199000000", "orin-nano-super"), ("2133000000", "orin-nano-8gb")])
def test_the_memory_clock_tells_the_super_from_the_plain_nano(
    tmp_path: Path, board: tuple[str, str], limit_hz: str, name: str
) -> None:
    found = jetson(tmp_path, *board, {CLOCK_LIMIT: limit_hz + "\n"})
    assert found.device == TABLE.named(name)


@pytest.mark.parametrize("limit", [None, "0\n", "no number\n"])
def test_without_a_memory_clock_both_nanos_are_named(tmp_path: Path, limit: str | None) -> None:
    found = jetson(tmp_path, *SUPER, {} if limit is None else {CLOCK_LIMIT: limit})
    assert found.device is None
    assert found.compute_capability is None
    assert "orin-nano-8gb or orin-nano-super" in found.reasons[0]
    assert "--device" in found.reasons[0]


def test_a_jetson_that_is_not_in_the_table(tmp_path: Path) -> None:
    found = jetson(tmp_path, NANO[0], "nvidia,p3768-0000+p3767-0004\0nvidia,p3767-0004\0nvidia,tegra234")
    assert (found.device, found.kind) == (None, "jetson")
    assert "not in the device table: measured peak only" in found.reasons[0]


def test_a_jetson_is_one_device_for_both_processors(tmp_path: Path) -> None:
    jetson(tmp_path, "NVIDIA Jetson AGX Orin Developer Kit", "nvidia,p3701-0000\0nvidia,tegra234")
    for processor in ("cpu", "gpu"):
        found = recognise(TABLE, tmp_path, processor=processor)  # type: ignore[arg-type]
        assert found.device == TABLE.named("agx-orin")


def test_a_gpu(tmp_path: Path) -> None:
    put(tmp_path, {"proc/cpuinfo": "model name : Fast CPU 9000\n"})
    identity = GpuIdentity("NVIDIA GeForce RTX 3080", 12288 << 20, "595.78", "8.6")
    found = recognise(TABLE, tmp_path, gpu=lambda: identity)
    assert found.device == TABLE.named("rtx-3080-12gb")
    assert (found.kind, found.cpu_model, found.driver) == ("gpu", "Fast CPU 9000", "595.78")
    assert found.reasons == ()


def test_a_gpu_that_is_not_in_the_table_says_so(tmp_path: Path) -> None:
    identity = GpuIdentity("NVIDIA GeForce RTX 9090", 64 << 30, None, None)
    found = recognise(TABLE, tmp_path, gpu=lambda: identity)
    assert (found.device, found.reported_name) == (None, "NVIDIA GeForce RTX 9090")
    assert found.reasons == ("NVIDIA GeForce RTX 9090 with 64.0 GiB is not in the device table: measured peak only",)


def test_a_gpu_that_may_be_two_names_both(tmp_path: Path) -> None:
    found = recognise(TABLE, tmp_path, gpu=lambda: GpuIdentity("NVIDIA GeForce RTX 3080", None, None, None))
    assert found.device is None
    assert "rtx-3080 or rtx-3080-12gb" in found.reasons[0]


def test_a_cpu_has_only_a_measured_peak_and_the_record_says_why(tmp_path: Path) -> None:
    put(tmp_path, {"proc/cpuinfo": "model name : Fast CPU 9000\n", "proc/meminfo": "MemTotal: 1024 kB\n"})
    found = recognise(TABLE, tmp_path, gpu=lambda: NO_GPU)
    assert found.device == TABLE.named("cpu")
    assert (found.kind, found.reported_name, found.memory_bytes) == ("cpu", "Fast CPU 9000", 1 << 20)
    assert found.reasons[0] == NO_GPU.reason
    assert "measured only" in found.reasons[1]


def test_the_cpu_of_a_machine_with_a_gpu_can_be_asked_for(tmp_path: Path) -> None:
    put(tmp_path, {"proc/cpuinfo": "model name : Fast CPU 9000\n"})
    found = recognise(TABLE, tmp_path, gpu=lambda: pytest.fail("not asked"), processor="cpu")
    assert (found.kind, found.reported_name) == ("cpu", "Fast CPU 9000")


def test_a_user_may_describe_this_very_cpu(tmp_path: Path) -> None:
    put(tmp_path, {"proc/cpuinfo": "model name : Fast CPU 9000\n"})
    own = (
        'name: my-desk\nkind: cpu\naliases: ["Fast CPU 9000"]\nbandwidth_gb_s: 89.6\nmemory_gib: [64]\nl2_mib: null\n'
        'compute_capability: null\npower_w: null\nsource: "two channels of DDR5-5600"\n'
    )
    put(tmp_path, {"mine.yaml": own})
    found = recognise(DeviceTable.load([tmp_path / "mine.yaml"]), tmp_path, processor="cpu")
    assert found.device is not None
    assert found.device.datasheet_bandwidth == pytest.approx(89.6e9)
    assert found.reasons == ()


def test_this_machine_is_recognised() -> None:
    found = recognise(TABLE)
    assert found.reported_name
    assert found.cpu_model
    if found.device is None or found.device.datasheet_bandwidth is None:
        assert found.reasons


@pytest.mark.parametrize(
    ("cpuinfo", "board", "name"),
    [
        ("processor : 0\nmodel name : Fast CPU 9000\n", None, "Fast CPU 9000"),
        ("CPU part : 0xd0b\nModel : Raspberry Pi 5\n", "ignored", "Raspberry Pi 5"),
        ("model name : ARMv8 Processor rev 1 (v8l)\n", "NVIDIA Jetson Orin\0", "NVIDIA Jetson Orin"),
        ("CPU implementer : 0x41\nCPU part : 0xd4f\n" * 4, None, "Neoverse-V2"),
        (
            "CPU implementer : 0x41\nCPU part : 0xd85\n\nCPU implementer : 0x41\nCPU part : 0xd87\n",
            None,
            "Cortex-X925, Cortex-A725",
        ),
        ("CPU implementer : 0x99\nCPU part : 0x123\n", None, "ARM implementer 0x99 part 0x123"),
    ],
)
def test_processor_names(tmp_path: Path, cpuinfo: str, board: str | None, name: str) -> None:
    put(tmp_path, {"cpuinfo": cpuinfo} | ({} if board is None else {"tree/model": board}))
    assert cpu_model(tmp_path / "cpuinfo", tmp_path / "tree") == name


def test_the_processors_name_needs_no_library() -> None:
    """`edgemem doctor` says what is missing, so that it cannot itself need what may be."""
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('yaml', 'psutil', 'numpy')));"
        "from edgemem.profiles.cpu_model import cpu_model; assert cpu_model()"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
