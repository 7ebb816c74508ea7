"""`edgemem memory` and the memory flags of `edgemem chat`, over a real small package and what it really stored."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from edgemem.runtime.errors import StoreError
from edgemem.runtime.package import Package
from edgemem.runtime.retention.settings import RetentionSettings
from edgemem.runtime.session import Session
from edgemem.runtime.store import HELD
from edgemem.runtime.store.upkeep import look
from edgemem.runtime.tokenizer import Tokenizer
from edgemem.tools.cli import main
from edgemem.tools.forgetting import forget_last
from edgemem.tools.memory_view import held_cells, page, terminal_text, visible

FLAGS = ["--memory", "entropy", "--budget", "64", "--recent", "12"]
SETTINGS = RetentionSettings(policy="entropy", budget=64, recent=12)
Chat = Callable[..., int]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def chat(tiny_package: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Chat:
    def say(*lines: str, flags: list[str] | None = None) -> int:
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        chosen = FLAGS if flags is None else flags
        return main(["chat", "-m", str(tiny_package), "-n", "30", "-t", "1", *chosen, "--store", str(folder)])

    return say


def open_again(tiny_package: Path, folder: Path) -> Session:
    return Session.open(tiny_package, memory=SETTINGS, store=folder, threads=1)


# --- chat -----------------------------------------------------------------------------------------------------------


def test_chat_goes_on_where_it_stopped(chat: Chat, tiny_package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert chat("The river", "The lamp", "/memory") == 0
    first, err = capsys.readouterr()
    assert re.search(r"entropy: \d+ of 64 slots held, \d+ of them pinned; \d+ evicted in \d evictions", first)
    assert "going on" not in err
    assert chat("The box", "/memory", flags=[*FLAGS, "--system", "Be loud."]) == 0
    out, err = capsys.readouterr()
    assert "going on with the conversation" in err
    assert "--system is for a new conversation" in err
    with Session.open(tiny_package, memory=SETTINGS, threads=1) as unbroken:
        answers = [
            "".join(chunk.text for chunk in unbroken.stream(text, max_tokens=30))
            for text in ("The river", "The lamp", "The box")
        ]
    assert first.startswith(f"{answers[0]}\n{answers[1]}\n")
    assert out.startswith(f"{answers[2]}\n")


def test_chat_finishes_an_answer_that_was_cut_off(
    chat: Chat, tiny_package: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with open_again(tiny_package, tmp_path / "other") as session:
        chunks = []
        for chunk in session.stream("The river", max_tokens=30):
            chunks.append(chunk)
            if len(chunks) == 5 and session.memory.store is not None:
                session.memory.store.flush()
                folder.mkdir()
                for path in (tmp_path / "other").iterdir():
                    (folder / path.name).write_bytes(path.read_bytes())
    assert chat() == 0
    out, err = capsys.readouterr()
    assert out == "".join(chunk.text for chunk in chunks) + "\n"
    assert "cut off" in err


def test_reset_begins_anew_with_the_system_prompt_that_was_given(chat: Chat, folder: Path) -> None:
    assert chat("The river") == 0
    assert chat("/reset", "The lamp", flags=[*FLAGS, "--system", "Be loud."]) == 0
    assert [message["content"] for message in look(folder).conversation.messages[:2]] == ["Be loud.", "The lamp"]


def test_chat_says_once_that_the_conversation_is_not_stored(
    chat: Chat, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > 4:  # as it opens, and one turn
            raise OSError(28, "no space left on device")

    monkeypatch.setattr("os.fsync", full)
    assert chat("The river", "The lamp", "The box") == 0
    out, err = capsys.readouterr()
    assert err.count("goes on in memory") == 1
    assert "a full disk" in err
    assert len(out) > 60


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--budget", "64"], "--budget needs --memory"),
        (["--decay", "0.5"], "--decay needs --memory"),
        (["--memory", "all"], "invalid choice"),
        (["--memory", "window", "--budget", "0"], "no whole number from 1"),
        (["--memory", "window", "--sinks", "-1"], "no whole number from 0"),
        (["--memory", "window", "--budget", "64", "--sinks", "64"], "leaves nothing to keep"),
        (["--memory", "entropy", "--decay", "2"], "decay is out of range"),
        (["--memory", "window", "--budget", "64", "-c", "32"], "budget is more than the engine's slots"),
        ([*FLAGS, "--recall"], "no store"),
        (["--recall"], "a policy that evicts"),
        (["--memory", "window", "--budget", "1000"], "at most 512|1 to 512"),
    ],
)
def test_flags_that_do_not_fit(
    chat: Chat, flags: list[str], says: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert chat("The river", flags=flags) in (1, 2)
    assert re.search(says, capsys.readouterr().err)
    assert not folder.exists()


def test_a_message_that_finds_no_room_among_the_pins_is_refused(chat: Chat, capsys: pytest.CaptureFixture[str]) -> None:
    assert chat("Hi", flags=[*FLAGS, "--system", "Be brief. " * 20]) == 1
    err = capsys.readouterr().err
    assert "--budget" in err
    assert "/reset" in err


# --- memory -----------------------------------------------------------------------------------------------------------


def test_show_prints_what_is_held_with_its_gaps(
    chat: Chat, folder: Path, tiny_package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chat("The river", "Where is the lamp?", "The box \u202e\x1b[31m<script>alert(1)</script>")
    capsys.readouterr()
    assert main(["memory", "show", str(folder), "-m", str(tiny_package)]) == 0
    out = capsys.readouterr().out
    held = look(folder).conversation.held
    assert f"{len(held)} tokens held of {look(folder).conversation.tokens} so far" in out
    gaps = [int(found) for found in re.findall(r"⟨(\d+) gone⟩", out)]
    assert sum(gaps) == held["place"][-1] + 1 - len(held) > 0
    assert "<|im_start|>user" in out
    assert "\x1b" not in out
    assert "\u202e" not in out
    file = tmp_path / "held.html"
    assert main(["memory", "show", str(folder), "-m", str(tiny_package), "--html", str(file)]) == 0
    html = file.read_text(encoding="utf-8")
    assert html.count('<span class="token') == len(held)
    assert "<script>" not in html
    assert "http" not in html
    assert {"html", "span", "style"} <= _tags(html) <= _TAGS


_TAGS = {"html", "meta", "title", "style", "h1", "p", "b", "span", "main"}


def _tags(html: str) -> set[str]:
    found: set[str] = set()
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attributes: found.add(tag)  # type: ignore[method-assign]
    parser.feed(html)
    return found


def test_show_finds_the_tokenizer_in_the_cache_and_refuses_another(
    chat: Chat,
    folder: Path,
    tiny_package: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    chat("The river")
    monkeypatch.setenv("EDGEMEM_CACHE", str(tmp_path / "cache"))
    assert main(["memory", "show", str(folder)]) == 1
    assert "-m PACKAGE" in capsys.readouterr().err
    (tmp_path / "cache" / "packages").mkdir(parents=True)
    (tmp_path / "cache" / "packages" / "tiny.edgemem").symlink_to(tiny_package)
    assert main(["memory", "show", str(folder)]) == 0
    assert "The river" in capsys.readouterr().out


def test_stats_count_what_the_session_counted(
    chat: Chat, folder: Path, tiny_package: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with open_again(tiny_package, folder) as session:
        for text in ("The river", "Where is the lamp?", "The box"):
            list(session.stream(text, max_tokens=40, ignore_eos=True))
        memory = session.memory
        wanted = (3, memory.table.position, memory.table.length, memory.evictions, memory.evicted)
    assert main(["memory", "stats", str(folder), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert tuple(found[name] for name in ("turns", "tokens", "held", "evictions", "evicted")) == wanted
    assert found["policy"]["budget"] == 64
    assert found["journal_bytes"] > 0
    assert found["snapshot_at_frame"] == found["frames"]
    assert main(["memory", "stats", str(folder)]) == 0
    out = capsys.readouterr().out
    assert f"{wanted[3]}, of {wanted[4]} slots" in out
    assert "all sound" in out


def test_stats_count_evictions_that_leave_only_the_first_slots(
    folder: Path, tiny_package: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    narrow = RetentionSettings(policy="window", budget=40)
    with Session.open(tiny_package, memory=narrow, store=folder, threads=1) as session:
        list(session.stream("The river " * 20, raw=True, max_tokens=4, ignore_eos=True))
        wanted = session.memory.evictions, session.memory.evicted
    assert wanted[0] > 1
    assert main(["memory", "stats", str(folder), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["evictions"], found["evicted"]) == wanted


def test_a_page_that_cannot_be_written_is_an_error_in_plain_words(
    chat: Chat, folder: Path, tiny_package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chat("Hi")
    assert main(["memory", "show", str(folder), "-m", str(tiny_package), "--html", str(tmp_path)]) == 1
    err = capsys.readouterr().err
    assert "cannot be written" in err
    assert "bug" not in err


def test_a_full_memory_of_a_given_budget_says_to_raise_that(chat: Chat, capsys: pytest.CaptureFixture[str]) -> None:
    assert chat("The river " * 20, flags=["--memory", "full", "--budget", "16"]) == 1
    assert "(--budget, at most" in capsys.readouterr().err


def test_forgetting_on_a_full_disk_says_that_it_did_not(
    chat: Chat, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat("Hi", "Ho")

    def full(descriptor: int) -> None:
        raise OSError(28, "no space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StoreError, match="cannot be forgotten"):
        forget_last(folder, 1)


def test_forgetting_the_last_turns_leaves_what_was_before(chat: Chat, folder: Path, tiny_package: Path) -> None:
    questions, roomy = ("Hi", "Ho", "He", "Ha"), replace(SETTINGS, budget=200)

    def open_again(package: Path, folder: Path) -> Session:
        return Session.open(package, memory=roomy, store=folder, threads=1)

    with open_again(tiny_package, folder) as session:
        session.messages = [{"role": "system", "content": "Be brief."}]
        said = []
        for text in questions:
            list(session.stream(text, max_tokens=4, ignore_eos=True))
            said.append((list(session.messages), session.memory.tokens))
    assert forget_last(folder, 1) == 7
    assert forget_last(folder, 1) == 5
    with open_again(tiny_package, folder) as session:
        assert (session.messages, session.memory.tokens) == said[1]
        list(session.stream("Hu", max_tokens=4, ignore_eos=True))
        assert len(session.messages) == 7
    assert forget_last(folder, 2) == 3
    with open_again(tiny_package, folder) as session:
        assert (session.messages, session.memory.tokens) == said[0]
    assert forget_last(folder, 1) == 0
    with open_again(tiny_package, folder) as session:
        assert (session.messages, session.memory.tokens) == ([], [])


def test_forget_asks_first_and_takes_everything(
    chat: Chat, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chat("Hi", "Ho")
    assert main(["memory", "forget", str(folder)]) == 2
    assert main(["memory", "forget", str(folder), "--all"]) == 2  # nobody to ask
    assert "--yes" in capsys.readouterr().err
    assert main(["memory", "forget", str(folder), "--last", "1", "--yes"]) == 0
    assert "2 messages are left" in capsys.readouterr().out
    assert main(["memory", "repair", str(folder)]) == 0
    assert "sound" in capsys.readouterr().out
    master, slave = pty.openpty()
    with os.fdopen(slave, "r") as terminal:
        monkeypatch.setattr(sys, "stdin", terminal)
        for answer, status in (("n", 1), ("yes", 0)):
            monkeypatch.setattr("builtins.input", lambda question: answer)  # noqa: B023
            assert main(["memory", "forget", str(folder), "--all"]) == status
    os.close(master)
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    assert [path.name for path in folder.iterdir()] == ["lock"]
    assert main(["memory", "stats", str(folder)]) == 1


def test_a_damaged_journal_is_repaired_up_to_its_damage(
    chat: Chat, folder: Path, tiny_package: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chat("Hi", "Ho", "He", "Ha", "Hu", "Hy")
    (journal,) = folder.glob("journal-*")
    data = bytearray(journal.read_bytes())
    data[-len(data) // 2] ^= 1
    journal.write_bytes(data)
    assert chat("He") == 1
    assert "edgemem memory repair" in capsys.readouterr().err
    assert main(["memory", "repair", str(folder)]) == 0
    assert "set aside" in capsys.readouterr().out
    assert chat("He") == 0
    with pytest.raises(StoreError, match="no conversation"):
        look(folder / "absent")


# --- the view ---------------------------------------------------------------------------------------------------------


def test_characters_of_many_tokens_and_hostile_ones_are_shown_once_and_tame(tiny_package: Path) -> None:
    with Package.open(tiny_package) as package:
        tokenizer = Tokenizer.open(package)
    text = "é🌍<b>\x1b[2J\u202eabc"
    ids = tokenizer.encode(text)
    held = np.zeros(len(ids), dtype=HELD)
    held["id"], held["place"], held["score"] = ids, np.arange(len(ids)), np.linspace(0, 14, len(ids))
    held["score"][0] = np.nan
    held["pinned"][-1] = 1
    cells = list(held_cells(held, 2, tokenizer))
    assert "".join(cell.text for cell in cells) == visible(text) == "é🌍<b>␛[2J<U+202E>abc"
    assert [cell.sink for cell in cells].count(True) == 2
    assert (cells[0].shade, cells[-1].shade) == (0.0, 1.0)
    html = page(iter(cells), "<memory>", "a & b")
    assert html.count("<b>") == 1  # the legend's own
    assert "&lt;memory&gt;" in html
    shown = terminal_text(iter(cells))
    assert shown.plain == visible(text)
    assert {"black on rgb(255,122,0) underline"} <= {str(span.style) for span in shown.spans}


def test_on_a_terminal_surprisal_is_a_colour(chat: Chat, folder: Path, tiny_package: Path) -> None:
    chat("The river")
    command = "from edgemem.tools.cli import main; import sys; sys.exit(main(sys.argv[1:]))"
    master, slave = pty.openpty()
    argv = [sys.executable, "-c", command, "memory", "show", str(folder), "-m", str(tiny_package)]
    environment = {**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor"}
    done = subprocess.Popen(argv, stdout=slave, stderr=slave, env=environment)
    os.close(slave)
    seen = b""
    while b"sinks, underlined" not in seen:
        seen += os.read(master, 4096)
    os.close(master)
    assert done.wait(30) == 0
    assert len(set(re.findall(rb"48;2;\d+;\d+;\d+", seen))) > 5
