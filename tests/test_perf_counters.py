from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from edgemem.profiles.perf_counters import MemoryCounter, find_counter, memory_events, read_bytes
from edgemem.profiles.unavailable import Unavailable

MIB = 1 << 20

# Answers as perf does: an order by one pipe, "ack" by the other, and its counts when the program it watches has ended.
PERF = """\
#!{python}
import os, subprocess, sys, threading
orders, answers = map(int, sys.argv[sys.argv.index("--control") + 1].removeprefix("fd:").split(","))
assert sys.argv[sys.argv.index("-D") + 1] == "-1"
def answer():
    with open(orders) as lines:
        for line in lines:
            open({log!r}, "a").write(line)
            os.write(answers, b"ack\\n\\0")
threading.Thread(target=answer, daemon=True).start()
subprocess.run(sys.argv[sys.argv.index("--") + 1 :], stdout=subprocess.DEVNULL, check=True)
sys.stderr.write("Events disabled\\n" + {counts!r})
sys.stderr.flush()
os._exit(0)
"""


def stand_in(folder: Path, counts: str) -> str:
    """A program that behaves like perf and counts `counts`."""
    path = folder / "perf"
    path.write_text(PERF.format(python=sys.executable, counts=counts, log=str(folder / "orders")))
    path.chmod(0o755)
    return str(path)


def pmus(root: Path, *events: str) -> Path:
    """A tree of "PMU/events/NAME"; a PMU without events is just its name. As in sysfs, what is listed are links."""
    listed, devices = root / "sys/bus/event_source/devices", root / "sys/devices"
    listed.mkdir(parents=True)
    for event in events:
        unit, *name = event.split("/")
        (devices / unit / "events").mkdir(parents=True, exist_ok=True)
        if name:
            (devices / event).write_text("event=0x05\n")
        if not (listed / unit).exists():
            (listed / unit).symlink_to(devices / unit)
    return root


def test_intel_server(tmp_path: Path) -> None:
    units = ("uncore_imc_0", "uncore_imc_1", "uncore_imc_free_running_0")
    files = [f"{units[0]}/events/cas_count_read", f"{units[1]}/events/cas_count_read", f"{units[2]}/events/data_read"]
    root = pmus(tmp_path, "cpu", *files, "uncore_imc_0/events/cas_count_write", "uncore_imc_0/events/clockticks")
    assert memory_events(root) == ("uncore_imc_0/cas_count_read/", "uncore_imc_1/cas_count_read/")


@pytest.mark.parametrize(("unit", "event"), [("uncore_imc", "data_reads"), ("uncore_imc_free_running_0", "data_read")])
def test_intel_client(tmp_path: Path, unit: str, event: str) -> None:
    assert memory_events(pmus(tmp_path, f"{unit}/events/{event}")) == (f"{unit}/{event}/",)


def test_amd(tmp_path: Path) -> None:
    root = pmus(tmp_path, "amd_df", "amd_umc_0", "amd_umc_1", "amd_l3")
    assert memory_events(root) == ("amd_umc_0/event=0x0a,rdwrmask=0x1/", "amd_umc_1/event=0x0a,rdwrmask=0x1/")


def test_no_counter_says_why(tmp_path: Path) -> None:
    found = find_counter(pmus(tmp_path / "machine", "cpu", "msr", "software"))
    assert isinstance(found, Unavailable)
    assert "virtual machine" in found.reason
    assert isinstance(find_counter(tmp_path / "nothing"), Unavailable)
    fabric = memory_events(pmus(tmp_path / "fabric", "amd_df"))
    assert isinstance(fabric, Unavailable)
    assert "amd_df" in fabric.reason


def test_no_perf_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    found = find_counter(pmus(tmp_path, "amd_umc_0"))
    assert isinstance(found, Unavailable)
    assert "no perf program" in found.reason


def test_counts_with_a_unit_are_bytes_of_that_unit() -> None:
    text = (
        "Events disabled\nEvents enabled\nEvents disabled\n"
        "100.50;MiB;uncore_imc_0/cas_count_read/;1002003004;100.00;;\n"
        "99.50;MiB;uncore_imc_1/cas_count_read/;1002003004;100.00;;\n"
    )
    assert read_bytes(text) == 200 * MIB


def test_counts_without_a_unit_are_lines() -> None:
    text = (
        "# started on Tue\n\n1000000;;amd_umc_0/event=0x0a,rdwrmask=0x1/;5000;100.00;;\n0;;amd_umc_1/x/;5000;100.00;;\n"
    )
    assert read_bytes(text) == 64_000_000


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("<not supported>;;uncore_imc_0/x/;0;100.00;;\n", "did not count uncore_imc_0/x/: not supported"),
        ("5;MiB;a/x/;1;100;;\n<not counted>;MiB;b/x/;0;0.00;;\n", "did not count b/x/: not counted"),
        ("5;Joules;power/energy-pkg/;1;100.00;;\n", "Joules"),
        ("nan;MiB;a/x/;1;100.00;;\n", "did not count a/x/"),
        ("-5;MiB;a/x/;1;100.00;;\n", "did not count a/x/"),
        ("1e5;MiB;a/x/;1;100.00;;\n", "did not count a/x/"),
        ("Error:\nAccess to performance monitoring is limited.\n", "Access to performance monitoring is limited"),
        ("", "no output"),
    ],
)
def test_what_was_not_counted_is_a_reason(text: str, says: str) -> None:
    found = read_bytes(text)
    assert isinstance(found, Unavailable)
    assert says in found.reason


def test_counting_begins_and_ends_with_the_work(tmp_path: Path) -> None:
    counter = MemoryCounter(stand_in(tmp_path, "3.00;MiB;imc/x/;1;100.00;;\n"), ("imc/x/",))
    orders = tmp_path / "orders"
    seen, counted = counter.measure(orders.read_text)
    assert seen == "enable\n"
    assert orders.read_text() == "enable\ndisable\n"
    assert counted == 3 * MIB


def test_a_counter_that_was_tried_is_found(tmp_path: Path) -> None:
    root = pmus(tmp_path, "uncore_imc_0/events/cas_count_read")
    found = find_counter(root, stand_in(tmp_path, "0.00;MiB;uncore_imc_0/cas_count_read/;1;100.00;;\n"))
    assert isinstance(found, MemoryCounter)
    assert found.events == ("uncore_imc_0/cas_count_read/",)


def test_a_counter_that_is_not_permitted_is_not_found(tmp_path: Path) -> None:
    root = pmus(tmp_path, "amd_umc_0")
    refusing = tmp_path / "perf"
    refusing.write_text("#!/bin/sh\necho 'Error: No permission to enable amd_umc_0 event.' >&2\nexit 255\n")
    refusing.chmod(0o755)
    found = find_counter(root, str(refusing))
    assert isinstance(found, Unavailable)
    assert "No permission" in found.reason


def test_a_perf_that_cannot_start_lets_the_work_be_done(tmp_path: Path) -> None:
    result, counted = MemoryCounter(str(tmp_path / "absent"), ("imc/x/",)).measure(lambda: 7)
    assert result == 7
    assert isinstance(counted, Unavailable)
    assert "does not start" in counted.reason


def test_work_that_fails_ends_perf_too(tmp_path: Path) -> None:
    counter = MemoryCounter(stand_in(tmp_path, ""), ("imc/x/",))
    with pytest.raises(ZeroDivisionError):
        counter.measure(lambda: 1 // 0)
    assert (tmp_path / "orders").read_text() == "enable\n"


def test_a_killed_process_leaves_no_perf(tmp_path: Path) -> None:
    perf = stand_in(tmp_path, "")
    code = (
        "import sys, time; from edgemem.profiles.perf_counters import MemoryCounter; "
        "MemoryCounter(sys.argv[1], ('imc/x/',)).measure(lambda: (print(), sys.stdout.flush(), time.sleep(60)))"
    )
    with subprocess.Popen([sys.executable, "-c", code, perf], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        (child,) = psutil.Process(process.pid).children()
        process.kill()
    assert psutil.wait_procs([child], timeout=20)[1] == []


def test_real_perf_counts_what_the_work_does() -> None:
    """Page faults stand for reads: each is counted by software, so that any machine has them."""
    program = shutil.which("perf")
    if program is None:
        pytest.skip("no perf program")
    counter = MemoryCounter(program, ("page-faults",), line_bytes=1)
    size = 64 * MIB
    touched, many = counter.measure(lambda: sum(bytearray(b"x") * size) and size)
    if isinstance(many, Unavailable):
        pytest.skip(many.reason)
    assert touched == size
    assert many > 0
