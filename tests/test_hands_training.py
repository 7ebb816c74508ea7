"""Training and judging on made-up clips, and the command that does both."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from made_up_sounds import CrackleEar, beep, clips_folder, crackle, hum
from sklearn.metrics import average_precision_score, roc_auc_score

from edgemem.runtime.capture.audio import RATE_HZ, Samples
from edgemem.runtime.capture.head import EMBEDDING, Head
from edgemem.runtime.errors import FileError, SettingsError
from edgemem.tools import listen_train
from edgemem.tools.hands.clip_scores import ALL, Fold, clip_level, fold_heads, out_of_fold, without_head
from edgemem.tools.hands.dataset import read_dataset
from edgemem.tools.hands.lessons import Lessons, hear_lessons
from edgemem.tools.hands.ranking import average_precision, roc_auc, with_interval
from edgemem.tools.hands.settings import TrainSettings
from edgemem.tools.hands.training import calibration, train_head

SETTINGS = TrainSettings(folds=3, copies=2)


def silent(stage: str, done: float) -> None:
    assert 0 <= done <= 1


@pytest.fixture(scope="module")
def lessons(tmp_path_factory: pytest.TempPathFactory) -> Lessons:
    dataset = read_dataset(clips_folder(tmp_path_factory.mktemp("clips")))
    return hear_lessons(dataset, CrackleEar(), SETTINGS, silent)


@given(st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=2, max_size=60))
def test_rankings_agree_with_scikit_learn(rows: list[tuple[int, bool]]) -> None:
    scores, truth = np.array([row[0] / 9 for row in rows]), np.array([row[1] for row in rows])
    if truth.all() or not truth.any():
        for figure in (roc_auc, average_precision):
            with pytest.raises(ValueError, match="both true and false"):
                figure(scores, truth)
        return
    assert np.isclose(roc_auc(scores, truth), roc_auc_score(truth, scores))
    assert np.isclose(average_precision(scores, truth), average_precision_score(truth, scores))


def test_intervals_resample_groups_and_not_clips() -> None:
    random = np.random.default_rng(0)
    truth = random.random(200) < 0.5
    scores = truth + random.normal(scale=1.0, size=200)
    apart = with_interval(roc_auc, scores, truth, [str(index) for index in range(200)])
    together = with_interval(
        roc_auc, np.repeat(scores, 10), np.repeat(truth, 10), np.repeat(np.arange(200), 10).tolist()
    )
    assert apart.low < apart.value == roc_auc(scores, truth) < apart.high
    assert np.isclose(together.high - together.low, apart.high - apart.low, rtol=0.2)


def test_logistic_regression_finds_what_tells_apart_and_counts_both_labels_alike() -> None:
    random = np.random.default_rng(0)
    hands = np.arange(600) % 6 == 0
    embeddings = np.abs(random.normal(scale=0.1, size=(600, EMBEDDING))).astype(np.float32)
    embeddings[hands, 5] += 1.0
    head = train_head(embeddings, hands, np.ones(600), TrainSettings(regularisation=0.1))
    assert int(head.weights.argmax()) == 5
    scores = head.scores(embeddings)
    assert scores[hands].min() > 0.5 > scores[~hands].max()
    twice = np.concatenate([embeddings, embeddings[hands]]), np.concatenate([hands, hands[hands]])
    weights = np.concatenate([np.where(hands, 0.5, 1.0), np.full(int(hands.sum()), 0.5)])
    again = train_head(*twice, weights, TrainSettings(regularisation=0.1))
    assert np.abs(again.scores(embeddings) - scores).max() < 0.05


def test_calibration_finds_the_slope_of_overconfident_logits() -> None:
    random = np.random.default_rng(0)
    odds = random.normal(scale=2.0, size=20_000)
    truth = random.random(20_000) < 1 / (1 + np.exp(-odds))
    found = calibration((2 * odds).astype(np.float32), truth, np.ones(20_000))
    assert abs(found.slope - 0.5) < 0.03
    assert abs(found.shift) < 0.1


def test_a_fold_never_hears_its_groups(lessons: Lessons) -> None:
    folds = fold_heads(lessons, SETTINGS)
    assert sorted(group for fold in folds for group in fold.groups) == sorted(lessons.dataset.groups)
    for number, fold in enumerate(folds):
        outside = np.array([clip.group not in fold.groups for clip in lessons.dataset.clips])
        assert (outside == (lessons.fold != number)).all()
        assert (lessons.train(outside, SETTINGS).weights == fold.head.weights).all()


class Marks:
    """Hears which clips are in a window: clip n has a tone of its own, and the embedding says where tones are."""

    class_names = CrackleEar.class_names

    def hear(self, samples: Samples) -> object:
        heard = CrackleEar().hear(samples)
        spectrum = np.abs(np.fft.rfft(samples, RATE_HZ))
        tones = np.array([spectrum[_hertz(number) - 3 : _hertz(number) + 4].max() for number in range(40)])
        embedding = np.zeros(EMBEDDING, np.float32)
        embedding[:40] = tones / spectrum.max() > 0.02
        return type(heard)(embedding, heard.scores)


def _hertz(number: int) -> int:
    return 400 + 150 * number


def test_takes_are_mixed_within_their_fold_alone(tmp_path: Path) -> None:
    """Else a held-apart background would be heard in training."""
    for number in range(40):
        folder = tmp_path / ("hoi" if number < 20 else "bg")
        folder.mkdir(exist_ok=True)
        soundfile.write(folder / f"{number:02}.wav", hum(1.0, _hertz(number), 0.1), RATE_HZ)
    settings = TrainSettings(copies=8, snr_db=(0.0, 3.0), noise_db=(-100.0, -90.0), lead_s=0.0)
    heard = hear_lessons(read_dataset(tmp_path), Marks(), settings, silent)  # type: ignore[arg-type]
    numbers = [int(clip.path.stem) for clip in heard.dataset.clips]
    fold_of = {number: int(fold) for number, fold in zip(numbers, heard.fold, strict=True)}
    mixed = 0
    for embedding, owner in zip(heard.embeddings, heard.owner, strict=True):
        inside = np.flatnonzero(embedding).tolist()
        assert numbers[owner] in inside
        assert {fold_of[number] for number in inside} == {fold_of[numbers[owner]]}
        mixed += len(inside) > 1
    assert mixed > len(heard.owner) / 3


def test_figures_of_sounds_that_are_easily_told_apart(lessons: Lessons) -> None:
    folds = fold_heads(lessons, SETTINGS)
    figures = clip_level(lessons, folds, SETTINGS)
    assert [subset.name for subset in figures.subsets] == [ALL, "made up"]
    everything = figures.subsets[0]
    assert (everything.clips, everything.hands, everything.groups) == (24, 8, 16)
    assert everything.head.auc.value == everything.head.average_precision.value == 1.0
    assert everything.any_class.auc.value > 0.9  # its only class that moves is one of hands
    assert figures.recall == 1.0
    assert set(figures.by_kind) == {"drawer", "plates", "hum", "beep"}
    assert figures.by_kind["drawer"] == figures.by_kind["plates"] == 1.0
    assert figures.calibration.slope > 0


def test_each_clip_is_scored_by_the_head_that_never_heard_it(lessons: Lessons) -> None:
    groups = sorted(lessons.dataset.groups)
    weights = np.zeros(EMBEDDING, np.float32)
    folds = [Fold(frozenset([group]), Head(weights, float(index))) for index, group in enumerate(groups)]
    for clip, score in zip(lessons.dataset.clips, out_of_fold(lessons, folds), strict=True):
        assert np.isclose(score, 1 / (1 + np.exp(-groups.index(clip.group))))


def test_an_ear_without_a_class_is_refused(lessons: Lessons) -> None:
    assert without_head(lessons).shape == (24,)
    with pytest.raises(SettingsError, match="does not know a class"):
        without_head(lessons, ["Unheard of"])


def test_a_tier_that_is_left_out_teaches_nothing(tmp_path: Path) -> None:
    folder = clips_folder(tmp_path)
    rows = (folder / "metadata.csv").read_text().splitlines()
    tiers = ["C-unknown" if index % 2 else "A-own" for index in range(len(rows) - 1)]
    (folder / "metadata.csv").write_text("\n".join([rows[0], *map(str.__add__, rows[1:], tiers)]) + "\n")
    settings = TrainSettings(folds=2, copies=2, without_tier="C")
    ear = CrackleEar()
    heard = hear_lessons(read_dataset(folder), ear, settings, silent)
    everything = np.ones(24, dtype=bool)
    allowed = np.array([clip.tier.startswith("A") for clip in heard.dataset.clips])
    assert 0 < allowed.sum() < 24
    assert (heard.train(everything, settings).weights == heard.train(allowed, settings).weights).all()
    assert set(np.flatnonzero(np.bincount(heard.owner, heard.weights, 24) > 1.5)) == set(np.flatnonzero(allowed))
    with pytest.raises(SettingsError, match="left to train on"):
        heard.train(~allowed, settings)


def train(*words: object) -> int:
    parser = argparse.ArgumentParser()
    listen_train.configure(parser)
    return listen_train.run(parser.parse_args([str(word) for word in words]))


def ten_clips(folder: Path) -> Path:
    for index in range(5):
        for label, samples in (("hoi", crackle(1.5, index, level=0.05)), ("bg", hum(1.5, 150.0 + 60 * index))):
            (folder / label).mkdir(parents=True, exist_ok=True)
            soundfile.write(folder / label / f"{index}.wav", samples, RATE_HZ)
    return folder


def test_the_command_trains_on_ten_clips(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clips, out = ten_clips(tmp_path / "clips"), tmp_path / "mine.safetensors"
    assert train(clips, "-o", out) == 0
    shown = capsys.readouterr()
    assert re.search(r"all: 5 of 10, 10 groups +head +1\.000", shown.out)
    assert "hear ..." in shown.err
    assert f"--head {out}" in shown.err
    card = out.with_suffix(".md").read_text()
    assert "edgemem listen train clips/ -o mine.safetensors --seed 7 --folds 5" in card
    first = out.read_bytes()
    assert train(clips, "-o", out, "--json") == 0
    shown = capsys.readouterr()
    found = json.loads(shown.out)
    assert out.read_bytes() == first
    assert found["sha256"] in card
    assert found["figures"]["subsets"][0]["head"]["auc"]["value"] == 1.0
    assert shown.err == ""
    assert 0 <= Head.open(out).score(np.zeros(EMBEDDING, np.float32)) <= 1


def test_the_command_refuses_what_cannot_be_trained_on(tmp_path: Path) -> None:
    out = tmp_path / "x.safetensors"
    (tmp_path / "empty").mkdir()
    with pytest.raises(SettingsError, match="no clips"):
        train(tmp_path / "empty", "-o", out)
    clips = ten_clips(tmp_path / "clips")
    (clips / "bg" / "0.wav").unlink()
    with pytest.raises(SettingsError, match="too few recordings of background"):
        train(clips, "-o", out)
    (clips / "bg" / "0.wav").write_bytes(b"no sound")
    with pytest.raises(FileError, match=r"bg/0\.wav"):
        train(clips, "-o", out)
    with pytest.raises(SettingsError, match="a name of their own"):
        train(clips, "-o", tmp_path / "weights.md")
    with pytest.raises(SettingsError, match="no such folder"):
        train(clips, "-o", tmp_path / "nowhere" / "x.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clips", "empty"]


def test_more_than_an_hour_of_sound_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgemem.tools.hands.lessons.MOST_S", 10.0)
    with pytest.raises(SettingsError, match="too much sound"):
        hear_lessons(read_dataset(ten_clips(tmp_path)), CrackleEar(), TrainSettings(), silent)


def test_beeps_are_background_to_a_head_that_heard_hums_alone(lessons: Lessons) -> None:
    """A head has no say on what it never heard; here it does, as the ear's embedding is alike for both."""
    quiet = np.array([clip.hands or clip.kind == "hum" for clip in lessons.dataset.clips])
    head = lessons.train(quiet, SETTINGS)
    assert head.score(CrackleEar().hear(beep(0.975, 700.0)).embedding) < 0.5
