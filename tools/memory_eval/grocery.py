"""The Grocery task: an item to buy is named, twenty other questions follow, then the item is asked for.

After the format of SirLLM's task (Yao et al., ACL 2024): one possible reply to the item, five choices for a filler,
four for the recall. Words and sentences are our own.
"""

from __future__ import annotations

import random

from edgemem.tools.memory_eval.questions import Question
from edgemem.tools.memory_eval.words import GROCERIES, KINDS

FILLERS, FILLER_CHOICES, RECALL_CHOICES = 20, 5, 4
_FORMS = (
    "Which of these is {}?",
    "One of these words names {}. Which one?",
    "Choose the word that stands for {}.",
    "All but one of these words are wrong. Which one is {}?",
)


def grocery(chance: random.Random, fillers: int = FILLERS) -> tuple[Question, ...]:
    """One conversation: the item, `fillers` questions ("filler") and the recall ("recall")."""
    items = tuple(chance.sample(GROCERIES, RECALL_CHOICES))
    right = chance.randrange(RECALL_CHOICES)
    named = Question(f"Please remember that I have to buy one thing: {items[right]}.", ("OK",), 0, "")
    text, opening = "Which thing did I say that I have to buy?", "You have to buy one thing:"
    recall = Question(text, items, right, "recall", opening, items)
    return (named, *(_filler(chance) for _ in range(fillers)), recall)


def _filler(chance: random.Random) -> Question:
    kinds = chance.sample(sorted(KINDS), FILLER_CHOICES)
    right = chance.randrange(FILLER_CHOICES)
    text = chance.choice(_FORMS).format(kinds[right])
    return Question(text, tuple(chance.choice(KINDS[kind]) for kind in kinds), right, "filler")
