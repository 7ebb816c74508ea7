from __future__ import annotations

import importlib.resources
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemem.profiles.device_file import parse_device
from edgemem.profiles.devices import Device, DeviceTable
from edgemem.runtime.errors import FileError, SettingsError

TABLE = DeviceTable.load()
MIB = 1 << 20

LAPTOP = """\
name: {name}
kind: gpu
aliases: ["NVIDIA GeForce RTX 4090 Laptop GPU"]
bandwidth_gb_s: 576
memory_gib: [16]
l2_mib: null
compute_capability: "8.9"
power_w: [80, 150]
source: "its maker's page"
"""


def user_file(folder: Path, name: str = "laptop", extra: str = "", filename: str | None = None) -> Path:
    path = folder / (filename or f"{name}.yaml")
    path.write_text(LAPTOP.format(name=name) + extra)
    return path


def name_of(device: Device | None) -> str | None:
    return None if device is None else device.name


def test_each_shipped_file_describes_the_device_it_is_named_after() -> None:
    folder = importlib.resources.files("edgemem.profiles.devices")
    stems = {entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml")}
    assert stems == {device.name for device in TABLE.devices}
    assert len(stems) == len(TABLE.devices)


@pytest.mark.parametrize(
    ("name", "gb_per_s"),
    [
        *[("t4", 320), ("l4", 300), ("a10", 600), ("l40s", 864), ("rtx-a6000", 768), ("rtx-6000-ada", 960)],
        *[("rtx-3090", 936), ("rtx-4090", 1008), ("rtx-5090", 1792), ("a100-40gb", 1555), ("a100-80gb-pcie", 1935)],
        *[("a100-80gb-sxm", 2039), ("h100-pcie", 2000), ("h100-sxm", 3350), ("h100-nvl", 3938), ("h200", 4800)],
        *[("b200", 8000), ("gb10", 273), ("orin-nano-8gb", 68), ("orin-nano-super", 102), ("orin-nx", 102.4)],
        *[("agx-orin", 204.8), ("thor", 273)],
    ],
)
def test_datasheet_peaks(name: str, gb_per_s: float) -> None:
    assert TABLE.named(name).datasheet_bandwidth == pytest.approx(gb_per_s * 1e9)


def test_every_device_but_the_cpu_has_a_peak_a_size_and_a_source() -> None:
    for device in TABLE.devices:
        assert device.source
        if device.kind == "cpu":
            assert device.datasheet_bandwidth is None
            assert "measured only" in device.source
        else:
            assert device.datasheet_bandwidth
            assert device.memory_bytes
            assert device.compute_capability
            assert device.aliases
    assert [device.name for device in TABLE.devices if device.kind == "cpu"] == ["cpu"]


def test_a_peak_that_depends_on_the_part_says_so() -> None:
    assert "7,700 to 8,000" in (TABLE.named("b200").note or "")
    assert TABLE.named("rtx-4090").note is None


@pytest.mark.parametrize(
    ("reported", "mib", "name"),
    [
        ("NVIDIA H100 80GB HBM3", 81559, "h100-sxm"),
        ("NVIDIA H100 PCIe", 81559, "h100-pcie"),
        ("NVIDIA H100 NVL", 95830, "h100-nvl"),
        ("NVIDIA H200", 143771, "h200"),
        ("NVIDIA B200", 183359, "b200"),
        ("NVIDIA A100-SXM4-80GB", 81920, "a100-80gb-sxm"),
        ("NVIDIA A100-SXM4-40GB", 40960, "a100-40gb"),
        ("A100-SXM4-40GB", 40536, "a100-40gb"),
        ("NVIDIA A100-PCIE-40GB", 40960, "a100-40gb"),
        ("NVIDIA A100 80GB PCIe", 81920, "a100-80gb-pcie"),
        ("Tesla T4", 15360, "t4"),
        ("NVIDIA L4", 23034, "l4"),
        ("NVIDIA A10", 23028, "a10"),
        ("NVIDIA L40S", 46068, "l40s"),
        ("NVIDIA L40", 46068, "l40"),
        ("NVIDIA RTX A6000", 49140, "rtx-a6000"),
        ("NVIDIA GeForce RTX 4090", 24564, "rtx-4090"),
        ("NVIDIA GeForce RTX 5090", 32607, "rtx-5090"),
        ("NVIDIA GeForce RTX 3080", 10240, "rtx-3080"),
        ("NVIDIA GeForce RTX 3080", 12288, "rtx-3080-12gb"),
        ("NVIDIA GeForce RTX 4060 Ti", 16380, "rtx-4060-ti"),
        ("NVIDIA GB10", None, "gb10"),
        # Others, under a name that only begins alike, or with memory that no such part was sold with.
        ("NVIDIA GeForce RTX 4090 Laptop GPU", 16376, None),
        ("NVIDIA GeForce RTX 4090 D", 24564, None),
        ("NVIDIA GeForce RTX 4090", 49140, None),
        ("NVIDIA GeForce RTX 3060", 8192, None),
        ("NVIDIA A10G", 23028, None),
        ("NVIDIA A100-SXM-64GB", 65536, None),
        ("NVIDIA H100", None, None),
        ("", None, None),
    ],
)
def test_match(reported: str, mib: int | None, name: str | None) -> None:
    assert name_of(TABLE.match(reported, None if mib is None else mib * MIB)) == name


def test_one_name_of_two_parts_matches_neither_without_the_memory_size() -> None:
    assert TABLE.match("NVIDIA GeForce RTX 3080") is None
    found = TABLE.candidates("NVIDIA GeForce RTX 3080", None)
    assert {device.name for device in found} == {"rtx-3080", "rtx-3080-12gb"}


@pytest.mark.parametrize("text", ["rtx-4090", "RTX 4090", "rtx_4090", "NVIDIA GeForce RTX 4090", "geforce rtx 4090"])
def test_named_takes_names_and_aliases_as_people_write_them(text: str) -> None:
    assert TABLE.named(text).name == "rtx-4090"


def test_an_unknown_name_is_told_its_neighbours() -> None:
    with pytest.raises(SettingsError, match="rtx-4090") as caught:
        TABLE.named("rtx4090")
    assert "--devices" in str(caught.value)
    with pytest.raises(SettingsError, match="'zzzz'") as caught:
        TABLE.named("zzzz")
    assert "agx-orin" in str(caught.value)


def test_an_alias_of_two_devices_names_neither() -> None:
    with pytest.raises(SettingsError, match="more than one") as caught:
        TABLE.named("NVIDIA GeForce RTX 3080")
    assert "rtx-3080, rtx-3080-12gb" in str(caught.value)


def test_a_users_file_or_folder_adds_devices(tmp_path: Path) -> None:
    path = user_file(tmp_path)
    (tmp_path / "README").write_text("no device")
    for given_path in (path, tmp_path):
        table = DeviceTable.load([given_path])
        device = table.match("NVIDIA GeForce RTX 4090 Laptop GPU", 16376 * MIB)
        assert name_of(device) == "laptop"
        assert len(table.devices) == len(TABLE.devices) + 1
    assert device is not None
    assert device.datasheet_bandwidth == 576e9
    assert device.power_w == (80, 150)
    assert device.l2_bytes is None


def test_a_folder_without_device_files_is_refused(tmp_path: Path) -> None:
    user_file(tmp_path, filename="laptop.yml")
    with pytest.raises(FileError, match="no device files"):
        DeviceTable.load([tmp_path])


def test_a_shipped_device_is_replaced_only_on_purpose(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="described twice"):
        DeviceTable.load([user_file(tmp_path, "rtx-4090")])
    table = DeviceTable.load([user_file(tmp_path, "rtx-4090", "replaces_shipped: true\n")])
    assert table.named("rtx-4090").datasheet_bandwidth == 576e9
    assert len(table.devices) == len(TABLE.devices)


def test_two_of_a_users_files_never_share_a_name(tmp_path: Path) -> None:
    user_file(tmp_path, "laptop")
    user_file(tmp_path, "laptop", filename="other.yaml")
    with pytest.raises(FileError, match=r"laptop is described twice \(.*other.yaml\)"):
        DeviceTable.load([tmp_path])
    user_file(tmp_path, "rtx-4090", "replaces_shipped: true\n", filename="laptop.yaml")
    user_file(tmp_path, "rtx-4090", "replaces_shipped: true\n", filename="other.yaml")
    with pytest.raises(FileError, match="no shipped device rtx-4090"):
        DeviceTable.load([tmp_path])


def test_replacing_what_was_never_shipped_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="no shipped device laptop"):
        DeviceTable.load([user_file(tmp_path, extra="replaces_shipped: true\n")])


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        ("kind: gpu", "kind: tpu", "kind is wrong"),
        ("kind: gpu", "kind: [gpu]", "kind is wrong"),
        ("name: laptop", "name: ../laptop", "name is wrong"),
        ("name: laptop", "name: 7", "name is wrong"),
        ("bandwidth_gb_s: 576", "bandwidth_gb_s: true", "bandwidth_gb_s is wrong"),
        ("bandwidth_gb_s: 576", "bandwidth_gb_s: 0", "bandwidth_gb_s is wrong"),
        ("bandwidth_gb_s: 576", "bandwidth_gb_s: -1.5", "bandwidth_gb_s is wrong"),
        ("bandwidth_gb_s: 576", "bandwidth_gb_s: .nan", "bandwidth_gb_s is wrong"),
        ("bandwidth_gb_s: 576", "bandwidth_gb_s: 1.0e+300", "bandwidth_gb_s is wrong"),
        ("bandwidth_gb_s: 576", "bandwidth: 576", "missing \\['bandwidth_gb_s'\\]"),
        ("memory_gib: [16]", "memory_gib: 16", "memory_gib is wrong"),
        ("memory_gib: [16]", "memory_gib: []", "memory_gib is wrong"),
        ("memory_gib: [16]", "memory_gib: [16, 8]", "memory_gib is wrong"),
        ("memory_gib: [16]", "memory_gib: [16.5]", "memory_gib is wrong"),
        ("l2_mib: null", "l2_mib: 99999999999999999999", "l2_mib is wrong"),
        ('"8.9"', "8.9", "compute_capability is wrong"),
        ('"8.9"', '"sm_89"', "compute_capability is wrong"),
        ("[80, 150]", "[150, 80]", "power_w is wrong"),
        ("[80, 150]", "[80]", "power_w is wrong"),
        ('"its maker\'s page"', '""', "source is wrong"),
        ('["NVIDIA GeForce RTX 4090 Laptop GPU"]', "[a, a]", "aliases is wrong"),
        ('["NVIDIA GeForce RTX 4090 Laptop GPU"]', "a", "aliases is wrong"),
        ("kind: gpu", "kind: gpu\nkind: gpu", "twice"),
        ("kind: gpu", "kind: &k gpu", "anchors"),
        ("kind: gpu", "kind: gpu\nreplaces_shipped: 1", "replaces_shipped is wrong"),
        ("kind: gpu", 'kind: gpu\nnote: "a\\u001b[31m"', "note is wrong"),
    ],
)
def test_wrong_files_are_refused_by_field(tmp_path: Path, before: str, after: str, says: str) -> None:
    path = user_file(tmp_path)
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))
    with pytest.raises(FileError, match=says) as caught:
        DeviceTable.load([path])
    assert str(path) in str(caught.value)


def test_files_that_are_no_device_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "device.yaml"
    for data, says in ((b"\xff\xfe", "plain YAML"), (b"- 1\n", "no mapping"), (b"# " + b"x" * 70_000, "too long")):
        path.write_bytes(data)
        with pytest.raises(FileError, match=says):
            DeviceTable.load([path])
    with pytest.raises(FileError, match="cannot read"):
        DeviceTable.load([tmp_path / "absent.yaml"])


@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "ignore")))
def test_any_bytes_are_a_device_or_a_file_error(data: bytes) -> None:
    with pytest.raises(FileError):
        parse_device(data, "somewhere")


@given(
    bandwidth=st.none() | st.floats(0.1, 99_999).map(lambda value: round(value, 3)),
    memory=st.none() | st.lists(st.integers(1, 65_536), min_size=1, max_size=4, unique=True).map(sorted),
    power=st.none() | st.lists(st.integers(1, 65_536), min_size=2, max_size=2).map(sorted),
)
def test_what_is_written_is_read(bandwidth: float | None, memory: list[int] | None, power: list[int] | None) -> None:
    def written(value: object) -> str:
        return "null" if value is None else str(value)

    text = LAPTOP.format(name="x").replace("576", written(bandwidth)).replace("[16]", written(memory))
    fields = parse_device(text.replace("[80, 150]", written(power)).encode(), "somewhere")
    assert fields.bandwidth_gb_s == bandwidth
    assert fields.memory_gib == (None if memory is None else tuple(memory))
    assert fields.power_w == (None if power is None else tuple(power))
