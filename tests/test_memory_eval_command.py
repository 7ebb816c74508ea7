"""edgemem eval memory: a quick run writes its files, goes on where it was stopped, and refuses what it must."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgemem.tools.cli import main
from edgemem.tools.memory_eval import evaluation
from edgemem.tools.memory_eval.cells import Bench, Cell, Job
from edgemem.tools.memory_eval.record import Result, read_record

QUICK = ("--quick", "--budgets", "320", "--text-tokens", "1500", "--stream-tokens", "1200", "-t", "1")


def test_a_quick_run_writes_record_table_and_report(
    tiny_package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["eval", "memory", "-m", str(tiny_package), *QUICK, "--out", str(tmp_path / "out")]
    assert main(argv) == 0
    out, err = capsys.readouterr()
    for title in ("Perplexity over a long text", "Grocery", "Dialogue", "Facts", "Rock, paper", "Speed", "Verdicts"):
        assert title in out
    assert "does not fit" in out  # this model's context is short
    assert "rps ..." in err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["record.json", "report.html", "table.md"]
    record = read_record(tmp_path / "out" / "record.json")
    assert record.subject["text"] == "made-up sentences"
    assert record.conditions["engine"].startswith("native")
    assert {result.cell.part for result in record.results} == {"stream", "grocery", "dialogue", "facts", "speed", "rps"}
    assert main([*argv, "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["planned"] == len(record.results)
    assert read_record(tmp_path / "out" / "record.json").results == record.results
    assert err == f"written to {tmp_path / 'out'}\n"


def test_ctrl_c_keeps_what_is_finished(
    tiny_package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = evaluation._result
    finished: list[Cell] = []

    def second_is_interrupted(job: Job, bench: Bench, advance: object) -> Result:
        if len(finished) == 1:
            raise KeyboardInterrupt
        finished.append(job.cell)
        return whole(job, bench, lambda share: None)

    monkeypatch.setattr(evaluation, "_result", second_is_interrupted)
    argv = ["eval", "memory", str(tiny_package), *QUICK, "--tasks", "facts", "--out", str(tmp_path)]
    assert main(argv) == 130
    err = capsys.readouterr().err
    assert "stopped after 1 of 6 cells; the same command goes on from here" in err
    assert "Not finished: 1 of 6 cells" in (tmp_path / "table.md").read_text(encoding="utf-8")
    monkeypatch.undo()
    assert main(argv) == 0
    results = read_record(tmp_path / "record.json").results
    assert [result.cell for result in results][:1] == finished
    assert len(results) == 6


def test_another_text_needs_another_folder(
    tiny_package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "lamp.txt"
    text.write_text("The lamp was on the table, and the miller asked the farmers for it. " * 200, encoding="utf-8")
    argv = ["eval", "memory", str(tiny_package), *QUICK, "--tasks", "stream", "--out", str(tmp_path / "out")]
    assert main([*argv, "--text", str(text)]) == 0
    assert main(argv) == 1
    assert "choose another --out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "status", "message"),
    [
        (("--tasks", "chess"), 2, "there is no 'chess'"),
        (("--budgets", "many"), 2, "no whole number"),
        (("--budgets", "480"), 1, "at most 416"),
        (("--budgets", "32"), 1, "a budget is out of range"),
        (("--text", "/nowhere/book.txt"), 1, "the text cannot be read"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    flags: tuple[str, ...], status: int, message: str, tiny_package: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", "memory", str(tiny_package), "--quick", *flags]) == status
    assert message in capsys.readouterr().err


def test_eval_alone_is_still_about_quality(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "--help"]) == 0
    assert "edgemem eval memory" in capsys.readouterr().out
    assert main(["eval", "memory", "--help"]) == 0
    out = capsys.readouterr().out
    assert "--stream-tokens" in out
    assert "--reference" not in out
