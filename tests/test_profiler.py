"""A profile run of a tiny package, in real processes: measured, skipped, failed, killed, stopped and taken up again."""

from __future__ import annotations

import json
import os
import resource
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from profile_records import DEVICE

from edgemem.profiles.arms import Arm, ProfiledEngine, missing_reason
from edgemem.profiles.cells import block_sizes, enumerate_cells
from edgemem.profiles.devices import DeviceTable
from edgemem.profiles.environment import Environment, device_record, processor_reader
from edgemem.profiles.job import Job
from edgemem.profiles.perf_counters import MemoryCounter
from edgemem.profiles.processor_time import ProcessorTime, processor_time, share_of_others
from edgemem.profiles.profiler import Outcome, Progress, run_profile
from edgemem.profiles.recognition import Recognised, recognise
from edgemem.profiles.record import Cell, CellKey
from edgemem.profiles.record_file import record_from_dict, record_to_dict
from edgemem.profiles.samples import SAMPLES_FILE
from edgemem.profiles.settings import ProfileSettings
from edgemem.profiles.statistics import figures
from edgemem.profiles.targets import ProfiledPackage, describe
from edgemem.profiles.telemetry import Sample
from edgemem.profiles.unavailable import Unavailable
from edgemem.profiles.worker import Instruments, measure
from edgemem.runtime import onnx_engine
from edgemem.runtime.errors import FileError, PackageError, SettingsError

ENVIRONMENT = Environment("2026-01-02T03:04:05+00:00", {"edgemem": "0.1.0"}, DEVICE)
ONE = ProfileSettings(engines=("native",), contexts=(12,), sessions=2, steps=8, threads=1)


def run(package: Path, settings: ProfileSettings = ONE, **others: Any) -> Outcome:
    return run_profile(settings, [ProfiledPackage("tiny", package)], ENVIRONMENT, **others)


def statuses(outcome: Outcome) -> list[tuple[str, int, str]]:
    return [(cell.key.engine, cell.key.context, cell.status) for cell in outcome.record.cells]


def worker_processes() -> list[psutil.Process]:
    found = []
    for child in psutil.Process().children(recursive=True):
        try:
            if "edgemem.profiles.worker" in child.cmdline():
                found.append(child)
        except psutil.Error:  # gone meanwhile
            continue
    return found


def once_a_worker_runs(act: Callable[[psutil.Process], object]) -> threading.Thread:
    """Waits on a thread of its own until one is there and has worked for a moment."""

    def wait() -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            for process in worker_processes():
                with suppress(psutil.Error):
                    if process.cpu_times().user > 0.03:
                        act(process)
                        return
            time.sleep(0.005)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


@pytest.fixture(scope="module")
def whole(tiny_package: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, Path, list[Progress]]:
    folder, seen = tmp_path_factory.mktemp("out") / "new" / "run", []
    settings = replace(ONE, engines=("onnx", "cuda", "native"), contexts=(12, 9000), steps=20)
    return run(tiny_package, settings, folder=folder, progress=seen.append), folder, seen


def test_every_cell_is_measured_or_says_why_not(whole: tuple[Outcome, Path, list[Progress]]) -> None:
    outcome, _, seen = whole
    record = outcome.record
    assert outcome.problem is None
    assert not record.interrupted
    assert statuses(outcome) == [
        ("onnx", 12, "measured"),
        ("cuda", 12, "skipped"),
        ("native", 12, "measured"),
        ("onnx", 9000, "skipped"),
        ("cuda", 9000, "skipped"),
        ("native", 9000, "skipped"),
    ]
    reasons = [cell.reason for cell in record.cells if cell.reason]
    assert reasons[0] == "there is no NVIDIA GPU"
    assert "9034" in reasons[1]
    assert "512 slots" in reasons[1]
    assert [(step.done, step.total, bool(step.doing)) for step in seen] == [(done, 4, done < 4) for done in range(5)]
    assert record_from_dict(json.loads(json.dumps(record_to_dict(record)))) == record


def test_samples_are_those_of_the_protocol(whole: tuple[Outcome, Path, list[Progress]]) -> None:
    record = whole[0].record
    onnx, native = record.cells[0], record.cells[2]
    assert [cell.key.kv for cell in (onnx, native)] == ["fp32", "fp16"]
    for cell in (onnx, native):
        assert [session.number for session in cell.sessions] == [0, 1]
        assert len({session.tokens for session in cell.sessions}) == 1
        for session in cell.sessions:
            assert [len(block.step_ms) for block in session.blocks] == block_sizes(20) == [10, 10]
            assert len(session.tokens) == 10 + 2 * (2 + 10)
            for block in session.blocks:
                assert sum(block.step_ms) == pytest.approx(block.wall_ms)
            parts = [*session.blocks, *session.sweeps, *session.copies]
            assert sorted(part.order for part in parts) == list(range(len(parts)))
            assert [block.order for block in session.blocks] == [4, 9]  # after three reads and a copy, before as many
        found = figures(record, cell)
        assert found is not None
        assert "fits_in_cache" in found.flags
        assert found.of_datasheet is None
    for mine, its in zip(onnx.sessions, native.sessions, strict=True):
        assert mine.sweeps != its.sweeps  # a process each


def test_bytes_of_a_step_are_those_of_the_cost_model(whole: tuple[Outcome, Path, list[Progress]]) -> None:
    onnx, native = whole[0].record.cells[0].bytes, whole[0].record.cells[2].bytes
    model = whole[0].record.targets[0].model
    assert onnx is not None
    assert native is not None
    assert onnx.weights == native.weights
    assert onnx.kv_read == 2 * native.kv_read
    middle = 12 + 10 + (20 + 2 * 2) // 2
    assert native.kv_read == middle * native.kv_write
    assert native.kv_write == model.layers * 2 * model.kv_heads * model.head_dim * 2
    assert native.moved >= native.useful
    assert native.footprint > native.weights


def test_a_finished_run_is_not_measured_again(whole: tuple[Outcome, Path, list[Progress]], tiny_package: Path) -> None:
    outcome, folder, _ = whole
    samples = (folder / SAMPLES_FILE).read_bytes()
    seen: list[Progress] = []
    again = run(tiny_package, outcome.record.settings, folder=folder, progress=seen.append)
    assert again.record == outcome.record
    assert [step.doing for step in seen] == [""]
    assert (folder / SAMPLES_FILE).read_bytes() == samples


def test_a_run_goes_on_where_it_was_torn_off(
    whole: tuple[Outcome, Path, list[Progress]], tiny_package: Path, tmp_path: Path
) -> None:
    outcome, folder, _ = whole
    header, first, second, *_ = (folder / SAMPLES_FILE).read_text().splitlines(keepends=True)
    (tmp_path / SAMPLES_FILE).write_text(header + first + second[: len(second) // 2])
    seen: list[Progress] = []
    again = run(tiny_package, outcome.record.settings, folder=tmp_path, progress=seen.append)
    assert [step.done for step in seen] == [1, 2, 3, 4]
    done = json.loads(first)["results"][0]
    for before, after in zip(outcome.record.cells, again.record.cells, strict=True):
        for old, new in zip(before.sessions, after.sessions, strict=True):
            finished = (before.key.engine, old.number) == (done["key"]["engine"], done["number"])
            assert (new == old) is finished
    assert (tmp_path / SAMPLES_FILE).read_text().startswith(header + first)
    assert len((tmp_path / SAMPLES_FILE).read_text().splitlines()) == 5


@pytest.mark.parametrize("change", ["settings", "packages", "versions", "machine"])
def test_samples_of_another_run_are_refused(
    whole: tuple[Outcome, Path, list[Progress]], tiny_package: Path, change: str
) -> None:
    outcome, folder, _ = whole
    samples = (folder / SAMPLES_FILE).read_bytes()
    settings, name, environment = outcome.record.settings, "tiny", ENVIRONMENT
    if change == "settings":
        settings = replace(settings, seed=1)
    elif change == "packages":
        name = "other"
    elif change == "versions":
        environment = replace(environment, versions={})
    else:
        environment = replace(environment, device=replace(DEVICE, cpu_model="another CPU"))
    with pytest.raises(SettingsError, match=f"another {change}"):
        run_profile(settings, [ProfiledPackage(name, tiny_package)], environment, folder)
    assert (folder / SAMPLES_FILE).read_bytes() == samples


@pytest.mark.parametrize("line", ["nothing", "{}", '{"results": [{}]}', '{"results": [], "more": 1}', "\udcff"])
def test_malformed_samples_are_refused(
    whole: tuple[Outcome, Path, list[Progress]], tiny_package: Path, tmp_path: Path, line: str
) -> None:
    outcome, folder, _ = whole
    header = (folder / SAMPLES_FILE).read_text().splitlines(keepends=True)[0]
    (tmp_path / SAMPLES_FILE).write_bytes(f"{header}{line}\n".encode(errors="surrogateescape"))
    with pytest.raises(FileError, match="malformed"):
        run(tiny_package, outcome.record.settings, folder=tmp_path)


def test_a_folder_that_cannot_be_used_is_refused_before_anything_runs(tiny_package: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "link").mkdir()
    (tmp_path / "link" / SAMPLES_FILE).symlink_to(tmp_path / "file")
    for folder in (tmp_path / "file", tmp_path / "link"):
        with pytest.raises(FileError, match="cannot be kept"):
            run(tiny_package, folder=folder)


def test_a_folder_in_use_is_refused(tiny_package: Path, tmp_path: Path) -> None:
    def second_run(step: Progress) -> None:
        if step.done == 0:
            with pytest.raises(SettingsError, match="another profile run"):
                run(tiny_package, folder=tmp_path)

    assert run(tiny_package, replace(ONE, sessions=1), folder=tmp_path, progress=second_run).problem is None


def test_a_killed_process_is_one_failed_session(tiny_package: Path, tmp_path: Path) -> None:
    killers = []

    def progress(step: Progress) -> None:
        if step.done == 0:
            killers.append(once_a_worker_runs(lambda process: process.send_signal(signal.SIGKILL)))

    outcome = run(tiny_package, folder=tmp_path, progress=progress)
    killers[0].join()
    (cell,) = outcome.record.cells
    assert outcome.problem is None
    assert cell.status == "measured"
    assert [(failed.number, failed.reason) for failed in cell.failed_sessions] == [(0, "ended by SIGKILL")]
    assert [session.number for session in cell.sessions] == [1]
    (mended,) = run(tiny_package, folder=tmp_path).record.cells  # what failed is tried again
    assert [session.number for session in mended.sessions] == [0, 1]
    assert mended.failed_sessions == ()
    assert mended.sessions[1] == cell.sessions[0]


def test_an_arm_that_never_comes_through_is_given_up(tiny_package: Path) -> None:
    def progress(step: Progress) -> None:
        if step.doing:
            once_a_worker_runs(lambda process: process.send_signal(signal.SIGKILL))

    (cell,) = run(tiny_package, replace(ONE, sessions=6), progress=progress).record.cells
    assert (cell.status, cell.reason) == ("failed", "ended by SIGKILL")
    assert len(cell.failed_sessions) == 2


def test_ctrl_c_keeps_what_is_complete(tiny_package: Path, tmp_path: Path) -> None:
    def progress(step: Progress) -> None:
        if step.done == 1:
            once_a_worker_runs(lambda _: os.kill(os.getpid(), signal.SIGINT))

    settings = replace(ONE, contexts=(12, 13))
    outcome = run(tiny_package, settings, folder=tmp_path, progress=progress)
    assert isinstance(outcome.problem, KeyboardInterrupt)
    assert outcome.record.interrupted
    by_status = {cell.status: cell for cell in outcome.record.cells}
    assert by_status.keys() == {"measured", "skipped"}
    assert by_status["skipped"].reason == "the run ended before it"
    assert worker_processes() == []
    rest = run(tiny_package, settings, folder=tmp_path)
    assert rest.problem is None
    measured = next(cell for cell in rest.record.cells if cell.key == by_status["measured"].key)
    assert measured.sessions[0] == by_status["measured"].sessions[0]
    assert [len(cell.sessions) for cell in rest.record.cells] == [2, 2]


def test_a_full_disk_is_one_error_and_the_samples_are_shown(tiny_package: Path, tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def progress(step: Progress) -> None:
        if step.done == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / SAMPLES_FILE).stat().st_size + 100, hard))

    try:
        outcome = run(tiny_package, replace(ONE, sessions=4), folder=tmp_path, progress=progress)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert isinstance(outcome.problem, FileError)
    assert SAMPLES_FILE in str(outcome.problem)
    assert len(outcome.record.cells[0].sessions) == 2
    rest = run(tiny_package, replace(ONE, sessions=4), folder=tmp_path)  # room was made
    assert rest.problem is None
    assert rest.record.cells[0].sessions[0] == outcome.record.cells[0].sessions[0]


class SteadyReader:
    source = "nothing"

    def read(self) -> Sample:
        return Sample(temperature_c=40.0, clocks_mhz={"cpu": 1000.0})


INSTRUMENTS = Instruments(time.perf_counter, SteadyReader(), Unavailable("not asked for"), processor_time)


def job(package: Path, *engines: str) -> Job:
    """A process takes any arms, though a run gives it those of one engine."""
    kinds = {"native": "fp16", "onnx": "fp32"}
    keys = tuple(CellKey("tiny", engine, "default", 12, 1, kinds[engine]) for engine in engines)
    return Job(str(package), describe(ProfiledPackage("tiny", package)).sha256, keys, 8, 0, 0)


def test_arms_take_turns_with_sweeps_between(tiny_package: Path) -> None:
    first, second = measure(replace(job(tiny_package, "native", "onnx"), steps=32), INSTRUMENTS)
    assert first.session is not None
    assert second.session is not None
    assert first.session.sweeps == second.session.sweeps
    blocks = sorted(block.order for result in (first, second) for block in result.session.blocks)
    assert blocks == [4 + 5 * index for index in range(8)]
    rounds = [{block.order // 10 for block in result.session.blocks} for result in (first, second)]
    assert rounds == [{0, 1, 2, 3}] * 2


def test_no_memory_for_one_arm_leaves_the_other(tiny_package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_engine, "available_memory", lambda: 1000)
    onnx, native = measure(job(tiny_package, "onnx", "native"), INSTRUMENTS)
    assert onnx.session is None
    assert onnx.failure is not None
    assert onnx.failure.startswith("this machine has too little free memory for the engine; got: 1,000 bytes available")
    assert len(onnx.failure) < 250
    assert native.session is not None
    assert native.session.telemetry is not None
    assert native.session.telemetry.clocks_mhz == {"cpu": (1000.0, 1000.0)}
    assert native.session.telemetry.temperature_c == 40.0


def test_bytes_are_counted_block_by_block(tiny_package: Path, tmp_path: Path) -> None:
    """A program stands for perf: it answers its orders, and at its end says 100 lines of 64 bytes."""
    perf = tmp_path / "perf"
    perf.write_text(
        """#!/bin/bash
for word in "$@"; do case "$word" in fd:*) fds="${word#fd:}";; esac; done
while read -r order <&"${fds%,*}"; do printf 'ack\\n\\0' >&"${fds#*,}"; done &
cat
kill $!
echo "100;;reads;1;100.00;;" >&2
"""
    )
    perf.chmod(0o755)
    instruments = replace(INSTRUMENTS, counter=MemoryCounter(str(perf), ("reads",)))
    (native,) = measure(replace(job(tiny_package, "native"), steps=16), instruments)
    assert native.session is not None
    assert len(native.session.blocks) == 2
    assert native.session.counted_bytes == 2 * 6400 / 16


def test_a_package_that_changed_meanwhile_is_refused(tiny_package: Path) -> None:
    with pytest.raises(PackageError, match="changed"):
        measure(replace(job(tiny_package, "native"), sha256="0" * 64), INSTRUMENTS)


def test_no_package_no_run(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match="not a compiled package"):
        run(tmp_path / "none")


def test_a_shape_says_that_its_weights_are_random(tiny_package: Path) -> None:
    shape = describe(ProfiledPackage("tiny", tiny_package, "shape"))
    assert (shape.quality, shape.quality_note) == (None, "random weights")
    package = describe(ProfiledPackage("tiny", tiny_package))
    assert (package.quality_note, package.sha256) == ("not measured when it was compiled", shape.sha256)


def test_arms_with_graphs_are_chosen() -> None:
    engine = ProfiledEngine((Arm("eager", {}, False), Arm("graph", {"x": 1}, True), Arm("other")), ("fp16",))
    names = {graphs: [arm.name for arm in engine.arms_for(graphs)] for graphs in ("ab", "on", "off")}
    assert names == {"ab": ["eager", "graph", "other"], "on": ["graph", "other"], "off": ["eager", "other"]}
    assert engine.settings("graph", "fp16") == {"x": 1, "kv": None}


def test_each_engine_has_a_process_of_its_own(tiny_package: Path) -> None:
    target = describe(ProfiledPackage("tiny", tiny_package))
    settings = ProfileSettings(contexts=(12, 13), steps=8, kv="int8")
    groups, skipped = enumerate_cells(settings, [target, replace(target, name="other")], 2, missing_reason)
    assert [(group.target, group.context, group.engine) for group in groups] == [
        (name, context, engine) for name in ("tiny", "other") for context in (12, 13) for engine in ("native", "onnx")
    ]
    keys = [key for group in groups[:2] for key in group.keys]
    assert [(key.engine, key.kv, key.threads) for key in keys] == [("native", "int8", 2), ("onnx", "fp32", 2)]
    assert skipped == []
    groups, skipped = enumerate_cells(settings, [target], 2, lambda engine: "not here" if engine == "onnx" else None)
    assert [key.engine for group in groups for key in group.keys] == ["native", "native"]
    assert [type(cell) is Cell and cell.reason for cell in skipped] == ["not here", "not here"]


def test_engines_that_are_compared_follow_one_another(tiny_package: Path) -> None:
    seen: list[Progress] = []
    settings = replace(ONE, engines=("native", "onnx"), contexts=(12, 13), sessions=4)
    assert run(tiny_package, settings, progress=seen.append).problem is None
    turns = [step.doing.split(", ")[1:4] for step in seen if step.doing]
    assert [turn[2] for turn in turns] == [f"session {number} of 4" for number in range(1, 5) for _ in range(4)]
    pairs = list(zip(turns[::2], turns[1::2], strict=True))
    assert all(first[1:] == second[1:] and first[0] != second[0] for first, second in pairs)
    assert {first[0] for first, _ in pairs} == {"native", "onnx"}  # neither is always the first


@pytest.mark.parametrize("steps", [8, 15, 16, 64, 130, 1000])
def test_blocks_make_up_the_steps(steps: int) -> None:
    sizes = block_sizes(steps)
    assert sum(sizes) == steps
    assert max(sizes) - min(sizes) <= 1
    assert len(sizes) <= 16
    assert min(sizes) >= 8


def test_time_of_others_is_what_is_busy_and_not_our_own() -> None:
    before = ProcessorTime(100.0, 50.0, 7.0)
    assert share_of_others(before, ProcessorTime(110.0, 58.0, 12.0)) == pytest.approx(0.3)
    assert share_of_others(before, ProcessorTime(110.0, 51.0, 12.0)) == 0.0
    assert share_of_others(before, before) is None


def test_our_own_work_is_not_that_of_others() -> None:
    before = processor_time()
    deadline = time.process_time() + 0.3
    while time.process_time() < deadline:
        pass
    after = processor_time()
    assert after.own_s - before.own_s >= 0.25
    assert after.busy_s - before.busy_s >= 0.25
    assert after.whole_s - before.whole_s >= after.busy_s - before.busy_s - 1e-6  # rounding, where none was idle


def test_a_peak_that_depends_on_the_part_is_told_with_its_source() -> None:
    for name in ("b200", "l4"):
        recognised = Recognised(DeviceTable.load().named(name), "gpu", name, "some CPU")
        found = device_record(recognised, SteadyReader())
        assert found.datasheet_note.startswith("NVIDIA, ")
        assert ("7,700 to 8,000 GB/s" in found.datasheet_note) is (name == "b200")
    unknown = Recognised(None, "gpu", "some GPU", "some CPU", reasons=("not in the table", "really"))
    assert device_record(unknown, SteadyReader()).datasheet_note == "not in the table; really"


def test_this_machine_is_described() -> None:
    device = device_record(recognise(DeviceTable.load(), processor="cpu"), processor_reader())
    assert device.cores >= 1
    assert {*device.telemetry, *device.telemetry_missing} == {
        "power",
        "temperature",
        "clocks",
        "throttling",
        "memory counter",
    }
    assert device.datasheet_note
