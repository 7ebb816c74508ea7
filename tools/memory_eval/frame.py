"""TurnFrame: the tokens that a model's chat template puts around questions and answers, for turns added one by one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgemem.runtime.errors import SettingsError
from edgemem.runtime.template import ChatTemplate
from edgemem.runtime.tokenizer import Piece, Tokenizer

_MARKS = ("edgemem asks first", "edgemem is answered", "edgemem asks again")


@dataclass(frozen=True)
class TurnFrame:
    """opening: before the first question. asked: from a question's end to its answer. answered: from there to the next
    question. lead: what an answer's text begins with."""

    opening: tuple[int, ...]
    asked: tuple[int, ...]
    answered: tuple[int, ...]
    lead: str

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> TurnFrame:
        """By the chat template, else by plain words. SettingsError for a template that alters messages."""
        source = tokenizer.chat_template
        if source is None:
            opening, asked, answered = tokenizer.encode_text("USER: "), tokenizer.encode("\nASSISTANT:"), "\nUSER: "
            return cls(tuple(opening), tuple(asked), tuple(tokenizer.encode(answered)), " ")
        template = ChatTemplate(source, tokenizer.controls, tokenizer.named_tokens)
        roles = ("user", "assistant", "user")
        messages = [{"role": role, "content": mark} for role, mark in zip(roles, _MARKS, strict=True)]
        parts = (tuple(tokenizer.encode_pieces(part)) for part in _parts(template.render(messages)))
        opening_ids, asked_ids, answered_ids = parts
        return cls(opening_ids, asked_ids, answered_ids, "")


def _parts(pieces: Sequence[Piece]) -> list[list[Piece]]:
    """What stands before each mark."""
    parts: list[list[Piece]] = [[]]
    for piece in pieces:
        rest = piece.text
        while not piece.control and len(parts) <= len(_MARKS) and _MARKS[len(parts) - 1] in rest:
            before, _, rest = rest.partition(_MARKS[len(parts) - 1])
            parts[-1].append(Piece(before, False))
            parts.append([])
        parts[-1].append(Piece(rest, piece.control))
    if len(parts) != len(_MARKS) + 1:
        raise SettingsError("the chat template does not show messages as they are", got=f"{len(parts) - 1} of 3")
    return parts[:-1]
