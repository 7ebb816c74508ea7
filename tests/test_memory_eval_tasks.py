"""What the evaluation of memories asks: generated tasks are the same for the same seed, and have one right answer."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemem.runtime.errors import SettingsError
from edgemem.runtime.package import Package
from edgemem.runtime.template import ChatTemplate
from edgemem.runtime.tokenizer import Tokenizer
from edgemem.tools.memory_eval.dialogue import dialogue
from edgemem.tools.memory_eval.filler import filler_text, text_tokens
from edgemem.tools.memory_eval.frame import TurnFrame
from edgemem.tools.memory_eval.grocery import FILLERS, grocery
from edgemem.tools.memory_eval.planted import plant
from edgemem.tools.memory_eval.questions import Question, best_constant
from edgemem.tools.memory_eval.rock_paper_scissors import MOVES, person_moves, winning
from edgemem.tools.memory_eval.words import FACTS, GROCERIES, KINDS, TOPICS

SEEDS = st.integers(0, 10_000)


@pytest.fixture(scope="module")
def tokenizer(tiny_package: Path) -> Iterator[Tokenizer]:
    with Package.open(tiny_package) as package:
        yield Tokenizer.open(package)


def test_no_word_is_of_two_kinds_or_twice_in_its_list() -> None:
    assert max(Counter(chain.from_iterable(KINDS.values())).values()) == 1
    lists = [GROCERIES, *(topic.details for topic in TOPICS), *(qualities for _, qualities, _ in FACTS)]
    assert all(len(set(words)) == len(words) for words in lists)


@given(SEEDS)
def test_grocery_names_an_item_asks_others_and_recalls_it(seed: int) -> None:
    questions = grocery(random.Random(seed))
    assert questions == grocery(random.Random(seed))
    named, *fillers, recall = questions
    assert named.candidates == ("OK",)
    assert recall.candidates == ("A", "B", "C", "D")
    assert [item for item in recall.choices if f": {item}." in named.text] == [recall.choices[recall.right]]
    assert recall.endings == recall.choices
    assert len(fillers) == FILLERS
    for filler in fillers:
        kind = next(kind for kind, words in KINDS.items() if filler.choices[filler.right] in words)
        assert kind in filler.text
        assert [choice for choice in filler.choices if choice in KINDS[kind]] == [filler.choices[filler.right]]


@given(SEEDS)
def test_a_dialogue_comes_back_to_each_detail_without_saying_it(seed: int) -> None:
    questions = dialogue(random.Random(seed))
    assert questions == dialogue(random.Random(seed))
    near = [question for question in questions if question.kind == "near"]
    far = [question for question in questions if question.kind == "far"]
    assert [*near, *far] == list(questions)
    assert {question.choices[question.right] for question in near} == {
        question.choices[question.right] for question in far
    }
    for question in near:
        detail = question.choices[question.right].rstrip(".").split()[-1]
        assert re.search(rf"\b{detail}\b", question.text)
    for question in far:
        assert len(set(question.choices)) == len(question.endings) == 4
        assert [f"{question.opening} {ending}." for ending in question.endings] == list(question.choices)
        assert not re.search(rf"\b{question.endings[question.right]}\b", question.text)


def test_a_prompt_shows_letters_where_there_is_a_choice() -> None:
    assert Question("Which?", ("one", "two"), 1, "").prompt == "Which?\nA. one\nB. two"
    assert Question("Remember this.", ("OK",), 0, "").prompt == "Remember this."


def test_the_best_constant_is_right_most_often_among_its_kind() -> None:
    groups = [[Question("", ("a", "b"), right, kind) for right, kind in ((1, "x"), (0, "y"), (1, "x"))], []]
    assert best_constant(groups, "x") == 1
    assert best_constant(groups, "y") == 0


@pytest.mark.parametrize("preferred", range(3))
def test_a_person_prefers_one_move(preferred: int) -> None:
    moves = person_moves(random.Random(preferred), 4000, preferred)
    assert moves == person_moves(random.Random(preferred), 4000, preferred)
    shares = np.bincount(moves, minlength=3) / 4000
    wanted = np.roll([0.5, 0.3, 0.2], preferred)
    np.testing.assert_allclose(shares, wanted, atol=0.03)


def test_paper_beats_rock_scissors_paper_and_rock_scissors() -> None:
    assert [(MOVES[winning(move)], name) for move, name in enumerate(MOVES)] == [
        ("paper", "rock"),
        ("scissors", "paper"),
        ("rock", "scissors"),
    ]


@given(seed=SEEDS, count=st.integers(1, len(FACTS)))
def test_facts_lie_where_they_are_said_to(tokenizer: Tokenizer, seed: int, count: int) -> None:
    filler = np.array(tokenizer.encode(filler_text(60, seed=1)), dtype=np.int32)
    trial = plant(random.Random(seed), tokenizer.encode, filler, count)
    again = plant(random.Random(seed), tokenizer.encode, filler, count)
    np.testing.assert_array_equal(trial.tokens, again.tokens)
    text = tokenizer.decode(trial.tokens.tolist())
    assert len(trial.facts) == count
    for fact in trial.facts:
        assert trial.tokens[list(fact.positions)].tolist() == [*fact.question, *fact.answer]
        assert tuple(trial.tokens[list(fact.answer_positions)].tolist()) == fact.answer
        assert fact.near_miss != fact.answer
        assert f"{tokenizer.decode(fact.near_miss)}.\n\n" in text
    said = [token for fact in trial.facts for token in trial.tokens[list(fact.positions)]]
    assert len(said) < len(trial.tokens) - len(filler)  # near misses too, and no filler is lost


def test_filler_goes_on_as_it_began(tokenizer: Tokenizer) -> None:
    assert filler_text(12, seed=3) == filler_text(12, seed=3) != filler_text(12, seed=4)
    assert filler_text(600, seed=3).startswith(filler_text(12, seed=3))
    assert len(text_tokens(None, tokenizer, 500)) == 500


def test_a_text_file_is_read_as_far_as_is_asked(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("The lamp was on the table. " * 40, encoding="utf-8")
    tokens = text_tokens(path, tokenizer, 100)
    assert tokens.dtype == np.int32
    assert tokens.tolist() == tokenizer.encode_text(path.read_text(encoding="utf-8"))[:100]
    path.write_text("", encoding="utf-8")
    with pytest.raises(SettingsError, match="too short"):
        text_tokens(path, tokenizer, 100)
    with pytest.raises(SettingsError, match="cannot be read"):
        text_tokens(tmp_path / "none.txt", tokenizer, 100)


def test_turns_one_by_one_are_the_conversation_as_its_template_has_it(tokenizer: Tokenizer) -> None:
    frame = TurnFrame.of(tokenizer)
    assert tokenizer.chat_template is not None
    said = ("Where is the lamp?", "There.", "And the box?")
    roles = ("user", "assistant", "user")
    messages = [{"role": role, "content": text} for role, text in zip(roles, said, strict=True)]
    template = ChatTemplate(tokenizer.chat_template, tokenizer.controls, tokenizer.named_tokens)
    whole = tokenizer.encode_pieces(template.render(messages))
    first, answer, second = map(tokenizer.encode, said)
    turns = [*frame.opening, *first, *frame.asked, *answer, *frame.answered, *second, *frame.asked]
    controls = set(tokenizer.controls.values())
    assert [token for token in turns if token in controls] == [token for token in whole if token in controls]
    assert tokenizer.decode(turns) == tokenizer.decode(whole)


def test_without_a_template_turns_are_plain_words(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer, "chat_template", None)
    frame = TurnFrame.of(tokenizer)
    assert tokenizer.decode(frame.opening) == "USER: "
    assert tokenizer.decode([*frame.asked, *tokenizer.encode(f"{frame.lead}A"), *frame.answered]) == (
        "\nASSISTANT: A\nUSER: "
    )


def test_a_template_that_alters_what_is_said_is_refused(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer, "chat_template", "{% for m in messages %}{{ m['content'] | upper }}{% endfor %}")
    with pytest.raises(SettingsError, match="as they are"):
        TurnFrame.of(tokenizer)
