"""`edgemem demo glasses`: the composed kitchen, its timeline in characters and as a page, and the answer."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgemem import tools
from edgemem.runtime.capture.audio import RATE_HZ
from edgemem.runtime.capture.event import Event
from edgemem.runtime.capture.event_log import EventLog
from edgemem.runtime.capture.reports import Hop
from edgemem.tools.capture_timeline import Span, Timeline, time_axis, timeline_rows
from edgemem.tools.commands import demo
from edgemem.tools.demo_kitchen import Kitchen
from edgemem.tools.timeline_page import timeline_page

DATA = Path(tools.__path__[0], "demo_data")


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., int]:
    monkeypatch.setenv("EDGEMEM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "136")

    def run(*argv: object) -> int:
        parser = argparse.ArgumentParser("edgemem demo")
        parser.set_defaults(run=demo.run, usage_error=parser.error)
        demo.configure(parser)
        return demo.run(parser.parse_args(["glasses", *map(str, argv)]))

    return run


# --- the data ---------------------------------------------------------------------------------------------------------


def test_every_sound_and_image_has_its_licence_and_all_are_small() -> None:
    licences = (DATA / "LICENSES.md").read_text()
    named = set(re.findall(r"^\| `([\w-]+\.(?:flac|jpg))` \|", licences, re.MULTILINE))
    files = [*DATA.glob("sounds/*.flac"), *DATA.glob("images/*.jpg")]
    assert {path.name for path in files} == named
    assert sum(path.stat().st_size for path in files) < 1_500_000


def test_the_kitchen_is_the_same_for_the_same_seed() -> None:
    kitchens = [Kitchen(seed) for seed in (3, 3, 4)]
    first, again, other = (np.concatenate([block.samples for block in each.pieces()]) for each in kitchens)
    assert len(first) == round(kitchens[0].seconds * RATE_HZ)
    np.testing.assert_array_equal(first, again)
    assert kitchens[0].happenings == kitchens[1].happenings != kitchens[2].happenings
    assert len(other) != len(first)
    ends = [(one.start_s, one.end_s) for one in kitchens[0].happenings]
    assert sorted(ends) == ends
    loud = [
        np.abs(first[round(one.start_s * RATE_HZ) : round(one.end_s * RATE_HZ)]).max() for one in kitchens[0].happenings
    ]
    assert min(loud) > 2 * np.abs(first[: RATE_HZ * 4]).max()


def test_the_kitchen_shows_what_is_there_at_the_time() -> None:
    kitchen = Kitchen()
    scenes = [one for one in kitchen.happenings if one.hands]
    camera = kitchen.camera()
    assert kitchen.caption(camera.take(0.0)) == "a cup of coffee"
    for scene in scenes:
        picture = camera.take(scene.start_s + 0.1)
        assert kitchen.caption(picture) == scene.seen.replace("-", " ")
        assert picture.pixels.shape[2] == 3
    assert len({scene.seen for scene in scenes}) == len(list((DATA / "images").iterdir()))


def test_a_kitchen_that_is_closed_ends() -> None:
    kitchen = Kitchen()
    pieces = kitchen.pieces()
    next(pieces)
    kitchen.close()
    assert list(pieces) == []


# --- the demo ---------------------------------------------------------------------------------------------------------


def test_the_demo_shows_pictures_a_timeline_and_the_notes_without_a_model(
    command: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    html, folder = tmp_path / "timeline.html", tmp_path / "log"
    assert command("--html", html, "--log", folder, "-q", "Where is the cat?") == 0
    out = capsys.readouterr().out
    with EventLog.open(folder, read_only=True) as log:
        taken = list(log.events(outcomes=("taken",)))
    assert out.count("taken   ") == len(taken)
    (with_pictures,) = re.findall(r"hands were at work 8 times; (\d) of them have a picture", out)
    assert int(with_pictures) >= 6
    rows = {line[:15].rstrip(): line[16:] for line in out.splitlines() if line[15:16] == " "}
    assert rows["known: █ hands"].count("█") > 20
    assert 0 < rows["pictures"].count("│") <= len(taken)
    assert re.search(r"\[\d\d:\d\d:\d\d\] .*seen: a ginger cat\n.*\nWhere is the cat\?", out, re.DOTALL)
    assert "edgemem pull smollm2-135m && edgemem compile smollm2-135m" in out
    page = html.read_text()
    assert page.count('src="data:image/jpeg;base64,') == len(taken)
    assert not re.search(r"(src|href)=\"?(http|//)|<script|@import", page)


def test_the_demo_asks_the_model_that_is_there_and_keeps_nothing(
    command: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny_package: Path
) -> None:
    folder = tmp_path / "cache" / "packages"
    folder.mkdir(parents=True)
    (folder / "small.edgemem").symlink_to(tiny_package)
    assert command("--seed", 2) == 0
    out = capsys.readouterr().out
    assert "Which animal did I see?\n\nsmall: " in out
    assert "its first sentence" in out
    assert "--log" not in out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache"]


# --- the timeline -----------------------------------------------------------------------------------------------------


def _timeline() -> Timeline:
    known = [Span("plates", 2.0, 4.0, True), Span("<dog>", 6.0, 7.0, False)]
    hops = [Hop(s + 0.5, -30.0 if s == 3 else -90.0, 0.9, 1.0 if s == 3 else 0.0, s == 3) for s in range(10)]
    events = [
        Event(0.0, 3.5, "s", "trigger", "taken", None, 0.9, (("<b>Dishes</b>", 0.5),), "frames/1.jpg", "a <plate>"),
        Event(0.0, 3.9, "s", "trigger", "taken", None, 0.9),
        Event(0.0, 8.5, "s", "trigger", "dropped", "no camera", 0.9),
    ]
    return Timeline(10.0, 0.5, 0.3, known, hops, events)


def test_rows_put_everything_in_its_column() -> None:
    assert dict(timeline_rows(_timeline(), 10)) == {
        "known: █ hands": "  ██  ░   ",
        "level": "   ▄      ",
        "score of hands": "   █      ",
        "camera awake": "   ━      ",
        "pictures": "   ║      ",
    }
    assert _timeline().covered == [(_timeline().known[0], 2)]
    assert timeline_rows(Timeline(10.0, 0.5, 0.3), 10)[0][0] == "level"


def test_columns_shorter_than_a_hop_show_the_nearest() -> None:
    rows = dict(timeline_rows(_timeline(), 40))
    assert rows["score of hands"].count("█") == 4
    assert rows["pictures"].replace(" ", "") == "││"


def test_the_axis_has_its_marks_at_their_columns() -> None:
    axis = time_axis(120.0, 40)
    assert axis.index("0:30") == 10
    assert axis.index("1:00") == 20
    assert axis.index("1:30") == 30
    assert time_axis(4.0, 40) == "0:00"


def test_the_page_escapes_what_strangers_wrote_and_shows_what_is_there() -> None:
    page = timeline_page(_timeline(), "<Title>", ["a <line>"], lambda event: b"jpeg" if event.frame else None)
    assert "&lt;Title&gt;" in page
    assert "a &lt;line&gt;" in page
    assert "&lt;dog&gt;" in page
    assert "a &lt;plate&gt;" in page
    assert "&lt;b&gt;Dishes&lt;/b&gt;" in page
    assert page.count("<li><b>") == page.count("<li><img") == 1
    assert page.count('class="frame"') == 2
    assert page.count('class="threshold"') == 2
