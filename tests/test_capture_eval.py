"""edgemem eval capture from clips to report, with a made-up ear: what is written, what is kept, and what is refused."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from made_up_sounds import CrackleEar, clips_folder

from edgemem.runtime.capture.trigger import TriggerSettings
from edgemem.runtime.errors import FileError
from edgemem.tools.capture_eval.cost import Cost, Energy
from edgemem.tools.capture_eval.evaluation import Subject, evaluate, fitting
from edgemem.tools.capture_eval.figures import TRIGGER, groups
from edgemem.tools.capture_eval.kept import Kept
from edgemem.tools.capture_eval.record import Record, write_record
from edgemem.tools.capture_eval.report import FEW, html, markdown
from edgemem.tools.capture_eval.settings import CLAIM_DB, QUICK, RARE, USUAL, EvalSettings, Mix
from edgemem.tools.cli import main
from edgemem.tools.hands.dataset import read_dataset

pytest.importorskip("soundfile")
pytest.importorskip("sklearn")

SMALL = replace(
    QUICK, folds=2, usual=Mix(USUAL, 0.2, (CLAIM_DB, 20.0), 1), rare=Mix(RARE, 0.06, (CLAIM_DB,), 1), draws=20
)
COST = Cost(1.0, 0.005, 2.0, 3.0, 50_000_000, 30_000_000)


def subject(folder: Path, ear: CrackleEar) -> Subject:
    return Subject(read_dataset(folder), ear, "a made-up ear", TriggerSettings(), lambda seconds: COST)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clips_folder(tmp_path_factory.mktemp("clips"))


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("out")


@pytest.fixture(scope="module")
def record(clips: Path, out: Path) -> Record:
    return evaluate(
        subject(clips, CrackleEar()), SMALL, Kept(out), {"machine": "a <slow> one"}, lambda stage, share: None
    )


def test_sounds_that_are_easily_told_apart_are_captured(record: Record) -> None:
    assert record.subsets[0].head.auc.value == 1.0
    found = {(group.mix, group.snr_db): group for group in groups(record.captured, 1.0, record.draws)}
    assert list(found) == [(USUAL, CLAIM_DB), (USUAL, 20.0), (RARE, CLAIM_DB)]
    for group in found.values():
        assert group.policy(TRIGGER).covered.value == 1.0
        assert group.false_per_hour.value == 0
    assert {one.key.fold for one in record.captured} == {1}  # settings were chosen on the other
    assert all(candidate.covered <= 1 for candidate in record.sweep.candidates)
    assert record.few
    assert record.subject["clips"] == "24"


def test_what_was_heard_is_not_heard_again(record: Record, clips: Path, out: Path) -> None:
    ear = CrackleEar()
    again = evaluate(subject(clips, ear), SMALL, Kept(out), record.conditions, lambda stage, share: None)
    assert ear.heard == 0
    assert replace(again, conditions=record.conditions) == record
    assert sorted(path.name for path in (out / "streams").iterdir())[:2] == [
        "rare-10dB-fold0-0.json",
        "rare-10dB-fold1-0.json",
    ]
    longer = replace(SMALL, seconds=130.0)
    changed = evaluate(subject(clips, ear), longer, Kept(None), {}, lambda stage, share: None)
    assert ear.heard > 0
    assert changed.captured[0].seconds == 130.0


def test_an_interrupted_run_goes_on(clips: Path, tmp_path: Path) -> None:
    class Interrupted(CrackleEar):
        def hear(self, samples):  # type: ignore[no-untyped-def]
            if self.heard == 1000:
                raise KeyboardInterrupt
            return super().hear(samples)

    broken, whole = Interrupted(), CrackleEar()
    with pytest.raises(KeyboardInterrupt):
        evaluate(subject(clips, broken), SMALL, Kept(tmp_path), {}, lambda stage, share: None)
    done = len(list((tmp_path / "streams").iterdir()))
    assert 0 < done < 6
    evaluate(subject(clips, whole), SMALL, Kept(tmp_path), {}, lambda stage, share: None)
    assert len(list((tmp_path / "streams").iterdir())) == 6
    assert whole.heard == (6 - done) * ((120 * 16_000 - 15_600) // 7_680 + 1)


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b'{"setup": 3, "seconds": 1, "date": "", "value": 1}'])
def test_a_kept_file_that_is_none_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "one.json").write_bytes(content)
    with pytest.raises(FileError, match="not a file of edgemem eval capture"):
        Kept(tmp_path).value("one", "setup", Cost, lambda: COST)


def test_a_kept_value_of_another_shape_is_refused(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    assert kept.value("one", "setup", Cost, lambda: COST) == COST
    with pytest.raises(FileError, match="unknown keys"):
        kept.value("one", "setup", Energy, lambda: Energy(1.0, 1.0, 1.0))
    other = replace(COST, seconds=2.0)
    assert kept.value("one", "another setup", Cost, lambda: other) == other
    assert len(kept.dates) == 3


def test_the_record_and_the_tables_tell_all(record: Record, tmp_path: Path) -> None:
    write_record(record, tmp_path)
    plain = json.loads((tmp_path / "record.json").read_text(encoding="utf-8"))
    assert len(plain["captured"]) == 3
    assert str(tmp_path) not in json.dumps(plain)
    found = groups(record.captured, record.settings.interval_s, record.draws)
    text = markdown(record, found, Energy(10.0, 200.0, 30.0))
    for title in (
        "Aims",
        "Clips told apart",
        "Streams",
        "Settings",
        "Cost of listening",
        "Energy, estimated",
        "Method",
    ):
        assert f"\n## {title}\n" in text
    assert FEW in text
    assert "An estimate, not a measurement" in text
    assert "trigger without heartbeats" in text
    assert "Energy" not in markdown(record, found, None)
    assert FEW not in markdown(replace(record, few=False), found, None)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert all(row.endswith("|") for row in rows)


def test_the_page_stands_alone_and_escapes_its_texts(record: Record) -> None:
    pytest.importorskip("matplotlib")
    page = html(record, groups(record.captured, 1.0, record.draws), None)
    assert page.count("<svg") == 5  # a curve for each mix, waits, ROC, two minutes
    assert "a &lt;slow&gt; one" in page
    assert not re.search(r"<script|<link|src=", page)


def test_folds_are_no_more_than_recordings(clips: Path) -> None:
    fitted = fitting(EvalSettings(folds=20, development_folds=12), read_dataset(clips))
    assert (fitted.folds, fitted.development_folds) == (8, 7)
    assert fitting(SMALL, read_dataset(clips)) == SMALL


@pytest.mark.parametrize(
    ("flags", "status", "message"),
    [
        (("--energy", "audio_mw=1"), 2, "a number for each of audio_mw, frame_mj, camera_idle_mw"),
        (("--energy", "audio_mw=1,frame_mj=x,camera_idle_mw=2"), 2, "a number for each"),
        (("--energy", "audio_mw=1,frame_mj=-1,camera_idle_mw=2"), 1, "frame_mj is out of range"),
        (("--clips", "/nowhere/clips"), 1, "cannot read the folder of clips"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(
    flags: tuple[str, ...], status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", "capture", "--quick", *flags]) == status
    assert message in capsys.readouterr().err


def test_the_verb_has_its_own_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "capture", "--help"]) == 0
    out = capsys.readouterr().out
    assert "--clips" in out
    assert "--tokens" not in out
