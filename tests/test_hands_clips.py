"""Which clips a folder holds, how they are split, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from made_up_sounds import crackle

from edgemem.runtime.capture.audio import HOP_SAMPLES, RATE_HZ, WINDOW_SAMPLES
from edgemem.runtime.errors import FileError, SettingsError, UnsafePathError
from edgemem.tools.hands.augment import level, take
from edgemem.tools.hands.clips import read_clip
from edgemem.tools.hands.dataset import Clip, read_dataset
from edgemem.tools.hands.folds import assign_folds
from edgemem.tools.hands.hearing import audible, windows_of
from edgemem.tools.hands.settings import TrainSettings


def sound(path: Path, seconds: float = 0.5, rate: int = RATE_HZ) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.full(round(seconds * rate), 0.1), rate)
    return path


def listed(folder: Path, *rows: str, header: str = "file,label,group,cls,source,tier") -> Path:
    """A folder with these rows of metadata, and two sounds."""
    sound(folder / "a.wav")
    sound(folder / "b.wav")
    (folder / "metadata.csv").write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return folder


def test_metadata_says_what_clips_there_are(tmp_path: Path) -> None:
    folder = listed(tmp_path, "a.wav,hoi,kitchen,drawer,mine,A-own", 'b.wav,bg,"street, noon",,,')
    found = read_dataset(folder)
    assert found.clips == (
        Clip(tmp_path / "a.wav", True, "kitchen", kind="drawer", source="mine", tier="A-own"),
        Clip(tmp_path / "b.wav", False, "street, noon"),
    )
    assert found.groups == ("kitchen", "street, noon")


def test_a_plain_folder_groups_by_folders_below_the_labels(tmp_path: Path) -> None:
    for name in ("hoi/x.wav", "hoi/monday/y.FLAC", "hoi/monday/deep/z.wav", "bg/monday/w.ogg", "bg/x.wav"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "hoi" / "readme.txt").touch()
    (tmp_path / "else.wav").touch()
    found = {str(clip.path.relative_to(tmp_path)): (clip.hands, clip.group) for clip in read_dataset(tmp_path).clips}
    assert found == {
        "hoi/x.wav": (True, "hoi/x.wav"),
        "hoi/monday/y.FLAC": (True, "monday"),
        "hoi/monday/deep/z.wav": (True, "monday"),
        "bg/monday/w.ogg": (False, "monday"),
        "bg/x.wav": (False, "bg/x.wav"),
    }


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("a.wav,hands,g,,,", "unknown label"),
        ("a.wav,hoi,,,,", "without a group"),
        ("c.wav,hoi,g,,,", "a clip is missing"),
        (f"a.wav,hoi,{'g' * 501},,,", "too long"),
        ('"a.wav,hoi,g,,,', "no CSV"),
    ],
)
def test_bad_rows_are_refused_with_their_place(tmp_path: Path, row: str, words: str) -> None:
    with pytest.raises(FileError, match=words) as caught:
        read_dataset(listed(tmp_path, "b.wav,bg,h,,,", row))
    assert "metadata.csv" in str(caught.value)


@pytest.mark.parametrize("name", ["../a.wav", "/etc/passwd", "link.wav", "folder"])
def test_a_clip_stays_inside_its_folder(tmp_path: Path, name: str) -> None:
    folder = listed(tmp_path / "clips", "b.wav,bg,h,,,", f"{name},hoi,g,,,")
    sound(tmp_path / "a.wav")
    (folder / "folder").mkdir()
    (folder / "link.wav").symlink_to(tmp_path / "a.wav")
    with pytest.raises(UnsafePathError, match="unsafe"):
        read_dataset(folder)


def test_metadata_that_is_no_text_or_lacks_a_column_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="a column is missing"):
        read_dataset(listed(tmp_path, "a.wav,hoi", header="file,label"))
    (tmp_path / "metadata.csv").write_bytes(b"file,label,group\n\xff,hoi,g\n")
    with pytest.raises(FileError, match="no CSV in UTF-8"):
        read_dataset(tmp_path)


def test_clips_of_both_labels_are_needed(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="cannot read the folder"):
        read_dataset(tmp_path / "nowhere")
    with pytest.raises(SettingsError, match="no clips"):
        read_dataset(tmp_path)
    sound(tmp_path / "hoi" / "a.wav")
    with pytest.raises(SettingsError, match="both labels") as caught:
        read_dataset(tmp_path)
    assert "none of label bg" in str(caught.value)


@given(
    st.lists(st.tuples(st.integers(0, 30), st.booleans()), min_size=1, max_size=80),
    st.integers(2, 6),
    st.integers(0, 9),
)
def test_no_group_is_in_two_folds_and_no_fold_lacks_a_label(
    rows: list[tuple[int, bool]], folds: int, seed: int
) -> None:
    clips = [Clip(Path("x"), hands, str(group)) for group, hands in rows]
    of_label = [{clip.group for clip in clips if clip.hands == hands} for hands in (True, False)]
    if min(map(len, of_label)) < folds:
        with pytest.raises(SettingsError, match="too few recordings"):
            assign_folds(clips, folds, seed)
        return
    found = assign_folds(clips, folds, seed)
    assert set(found.tolist()) <= set(range(folds))
    for group in {clip.group for clip in clips}:
        assert len({int(fold) for clip, fold in zip(clips, found, strict=True) if clip.group == group}) == 1
    assert (found == assign_folds(clips, folds, seed)).all()


def test_folds_hold_about_as_many_clips_of_either_label() -> None:
    clips = [Clip(Path("x"), index % 3 == 0, f"{index // 2}") for index in range(150)]
    found = assign_folds(clips, 5, seed=3)
    for hands, wanted in ((True, 10), (False, 20)):
        counts = np.bincount(found[[clip.hands == hands for clip in clips]], minlength=5)
        assert np.abs(counts - wanted).max() <= 2


def test_sounds_are_read_at_any_rate(tmp_path: Path) -> None:
    assert len(read_clip(sound(tmp_path / "x.wav", 1.0, 44_100))) == RATE_HZ
    samples = read_clip(sound(tmp_path / "y.flac", 1.0))
    assert samples.dtype == np.float32
    assert np.allclose(samples, 0.1, atol=1e-4)


def test_broken_sounds_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "x.wav").write_bytes(b"RIFF but no more")
    whole = sound(tmp_path / "y.wav", 1.0).read_bytes()
    soundfile.write(tmp_path / "z.wav", np.array([0.0] * 8000 + [np.nan]), RATE_HZ, subtype="FLOAT")
    sound(tmp_path / "long.wav", 61.0)
    sound(tmp_path / "short.wav", 0.05)
    for name in ("x.wav", "z.wav", "long.wav", "short.wav", "none.wav"):
        with pytest.raises(FileError, match=name):
            read_clip(tmp_path / name)
    (tmp_path / "flac.flac").write_bytes(sound(tmp_path / "w.flac", 1.0).read_bytes()[:-200])
    with pytest.raises(FileError, match=r"flac\.flac"):
        read_clip(tmp_path / "flac.flac")
    assert len(whole) > RATE_HZ


@given(st.integers(1, 5 * RATE_HZ))
def test_windows_are_a_hop_apart_and_a_short_clip_is_padded(length: int) -> None:
    samples = np.arange(length, dtype=np.float32)
    windows = windows_of(samples)
    assert windows.shape == (1 + max(0, length - WINDOW_SAMPLES) // HOP_SAMPLES, WINDOW_SAMPLES)
    for index, window in enumerate(windows):
        there = samples[index * HOP_SAMPLES : index * HOP_SAMPLES + WINDOW_SAMPLES]
        assert (window[: len(there)] == there).all()
        assert not window[len(there) :].any()


def test_only_windows_near_the_loudest_are_audible() -> None:
    samples = np.zeros(4 * RATE_HZ, np.float32)
    samples[3 * RATE_HZ :] = crackle(1.0, 0)
    found = audible(samples, 15.0)
    assert not found[:3].any()
    assert found[-1]
    assert audible(np.zeros(RATE_HZ, np.float32), 15.0).all()


@given(st.integers(0, 10_000), st.booleans())
def test_a_take_is_finite_within_bounds_and_as_long_as_its_lead_and_sound(seed: int, mixed: bool) -> None:
    settings, random = TrainSettings(), np.random.default_rng(seed)
    whole = crackle(0.5, seed)
    made = take(whole, crackle(0.2, seed + 1) if mixed else None, settings, random)
    lead = len(made.samples) - len(whole)
    assert 0 <= lead <= RATE_HZ
    assert made.samples.dtype == np.float32
    assert np.abs(made.samples).max() <= 1
    assert -58.1 <= 20 * np.log10(level(made.samples)) <= -15.9
    assert not made.alone[:lead].any()
    assert (made.alone[lead:] == whole).all()


def test_the_background_of_a_take_is_as_far_below_as_was_asked() -> None:
    at = np.arange(RATE_HZ) / RATE_HZ
    over, under = (np.sin(2 * np.pi * hertz * at).astype(np.float32) for hertz in (500.0, 2000.0))
    for snr in (0.0, 10.0, 20.0):
        settings = TrainSettings(snr_db=(snr, snr), noise_db=(-100.0, -100.0), lead_s=0.0)
        spectrum = np.abs(np.fft.rfft(take(over, 0.01 * under, settings, np.random.default_rng(0)).samples))
        assert abs(20 * np.log10(spectrum[500] / spectrum[2000]) - snr) < 0.1


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": -1},
        {"seed": True},
        {"folds": 1},
        {"copies": 65},
        {"mixed_share": 1.5},
        {"lead_s": float("nan")},
        {"quiet_db": 0.0},
        {"regularisation": 0.0},
        {"snr_db": (5.0, 1.0)},
        {"level_db": (0.0, float("inf"))},
        {"noise_db": (1.0,)},
    ],
)
def test_settings_out_of_range_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(SettingsError):
        TrainSettings(**changes)  # type: ignore[arg-type]
