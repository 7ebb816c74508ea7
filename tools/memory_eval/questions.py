"""Question: one turn of a conversation with lettered choices, as the choice tasks have it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

LETTERS = "ABCDE"


@dataclass(frozen=True)
class Question:
    """right: the place of the right choice. kind: which figure it counts for; "" for none, as there is one choice.

    opening, endings: the reply's beginning, and its next words for each choice, so that the same can be asked without
    letters, which small models cannot use; none where it is not.
    """

    text: str
    choices: tuple[str, ...]
    right: int
    kind: str
    opening: str = ""
    endings: tuple[str, ...] = ()

    @property
    def prompt(self) -> str:
        """What the user says: the text, and the choices, if there are several, each behind its letter."""
        if len(self.choices) == 1:
            return self.text
        lines = (f"{letter}. {choice}" for letter, choice in zip(LETTERS, self.choices, strict=False))
        return "\n".join([self.text, *lines])

    @property
    def candidates(self) -> tuple[str, ...]:
        """The possible answers: letters, or the only choice."""
        return self.choices if len(self.choices) == 1 else tuple(LETTERS[: len(self.choices)])


def best_constant(conversations: Sequence[Sequence[Question]], kind: str) -> int:
    """The place that is right most often among the questions of this kind; the first of several."""
    rights = [question.right for questions in conversations for question in questions if question.kind == kind]
    return max(range(len(LETTERS)), key=rights.count)
