"""Prompts: from a text, a conversation or token ids to the tokens that an engine consumes.

It knows the tokenizer and the chat template; it keeps no conversation and asks no engine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from edgemem.runtime.errors import PackageError, SettingsError
from edgemem.runtime.store import NOTE
from edgemem.runtime.template import ChatTemplate, Message, check_messages
from edgemem.runtime.tokenizer import Piece, Tokenizer

Prompt = str | Sequence[Message] | Sequence[int]
_MARK = "\uf8ffmark{}\uf8ff"


class PromptReader:
    """Reads prompts for one model of `vocabulary` tokens. `where`: what to name in errors of its chat template."""

    def __init__(self, tokenizer: Tokenizer, vocabulary: int, *, where: object = None) -> None:
        self._tokenizer, self._vocabulary, self._where = tokenizer, vocabulary, where

    @property
    def chats(self) -> bool:
        """Whether a text can be a turn of a conversation: whether the model has a chat template."""
        return self._tokenizer.chat_template is not None

    def read(
        self, prompt: Prompt, history: Sequence[Message], *, raw: bool, begins: bool = True
    ) -> tuple[list[int], list[Message] | None]:
        """The prompt's tokens, at least one, and the conversation that they are, or None if they are none.

        A text is the next turn after `history`; with `raw`, or without a chat template, it is taken as it is, and
        `begins` a text or goes on with one. Messages and token ids stand for themselves. Raises SettingsError for
        anything else, and what ChatTemplate.render and Tokenizer.encode raise.
        """
        tokens, conversation = self._read(prompt, history, raw, begins)
        if not tokens:
            raise SettingsError("the prompt is empty", wanted="at least one token")
        return tokens, conversation

    def read_next(self, text: str, history: Sequence[Message]) -> tuple[list[int], list[Message]]:
        """The tokens of `text` as the turn after `history` alone, and the conversation with it.

        They are all that the template writes behind the last answer's text, its end token first; so the answer is never
        read again, and it does not matter if the template would write it otherwise, e.g. without its thinking. Behind
        notes they go on in the message that those began. The template sees no more than a leading system message and
        the last turn. Raises what `read` raises, SettingsError for a history without answer or note, and PackageError
        if the template leaves answers out.
        """
        return self._tokenizer.encode_pieces(self._behind(text, history)), [*history, {"role": "user", "content": text}]

    def read_note(self, text: str, history: Sequence[Message], *, goes_on: bool) -> tuple[list[int], list[Message]]:
        """The tokens of a note after `history`, and the conversation with it: the beginning of a user's message, which
        other notes and the next question go on with. goes_on: those of the note alone, as `read_next` has them; else
        all of the conversation's. Raises what `read_next` raises."""
        conversation: list[Message] = [*history, *check_messages([{"role": NOTE, "content": text}])]
        mark = _mark(*(message["content"] for message in conversation))
        if goes_on and history[-1]["role"] == NOTE:
            written = [Piece(_line(text), False)]
        elif goes_on:
            written = self._behind(_line(text) + mark, history)
        else:
            written = self._template.render(_folded([*conversation, {"role": NOTE, "content": mark}]))
        return self._tokenizer.encode_pieces(_split(written, mark, last=True)[0]), conversation

    def encode(self, text: str) -> list[int]:
        """The tokens of some words inside a text."""
        return self._tokenizer.encode(text)

    def read_opening(self, messages: Sequence[Message]) -> list[int]:
        """The tokens before the first message of a user: the system prompt, also one that is the template's own."""
        messages = _folded(messages)
        first = next((place for place, message in enumerate(messages) if message["role"] == "user"), None)
        if first is None:
            return []
        mark = _mark(*(message["content"] for message in messages))
        marked = [*messages[:first], {"role": "user", "content": mark}, *messages[first + 1 :]]
        before, behind = _split(self._template.render(marked), mark, last=False)
        return [] if behind is None else self._tokenizer.encode_pieces(before)

    def _read(
        self, prompt: object, history: Sequence[Message], raw: bool, begins: bool
    ) -> tuple[list[int], list[Message] | None]:
        if isinstance(prompt, str):
            if raw or not self.chats:
                return (self._tokenizer.encode_text if begins else self._tokenizer.encode)(prompt), None
            return self._chat([*history, {"role": "user", "content": prompt}])
        entries = prompt.tolist() if isinstance(prompt, np.ndarray) else prompt
        if not isinstance(entries, Sequence) or isinstance(entries, (bytes, bytearray, memoryview)):
            wanted = "a text, a list of messages, or token ids"
            raise SettingsError("a prompt of no known kind", got=type(prompt).__name__, wanted=wanted)
        if entries and isinstance(entries[0], Mapping):
            return self._chat(entries)
        return self._checked_ids(entries), None

    @cached_property
    def _template(self) -> ChatTemplate:
        source = self._tokenizer.chat_template
        if source is None:
            raise SettingsError(
                "the model has no chat template, so it takes no messages",
                where=self._where,
                do="give the prompt as one text, or use a model that was trained to chat",
            )
        return ChatTemplate(source, self._tokenizer.controls, self._tokenizer.named_tokens, where=self._where)

    def _chat(self, messages: Sequence[Message]) -> tuple[list[int], list[Message]]:
        template = self._template
        conversation: list[Message] = [*check_messages(messages)]
        return self._tokenizer.encode_pieces(template.render(_folded(conversation))), conversation

    def _behind(self, text: str, history: Sequence[Message]) -> list[Piece]:
        """What the template writes for a user's `text` behind the last answer, or behind the notes after it."""
        last = max((place for place, message in enumerate(history) if message["role"] == "assistant"), default=-1)
        noted = bool(history) and history[-1]["role"] == NOTE
        if last < 0 and not noted:
            raise SettingsError("there is no answer to go on from", wanted="a history with an assistant's message")
        asked = max((place for place in range(last) if history[place]["role"] == "user"), default=max(last, 1))
        leading = [message for message in history[:1] if message["role"] == "system" and asked > 0]
        mark = _mark(text, *(message["content"] for message in history[asked:]))
        turn: list[Message] = [*leading, *history[asked : last + noted]]
        if noted:
            turn.append({"role": "user", "content": f"{mark}\n{text}"})
        else:
            turn += [{"role": "assistant", "content": mark}, {"role": "user", "content": text}]
        _, behind = _split(self._template.render(_folded(turn)), mark, last=True)
        if behind is None:
            raise PackageError(
                "the chat template leaves answers out", where=self._where, do="give the conversation as messages"
            )
        return behind

    def _checked_ids(self, prompt: Sequence[Any]) -> list[int]:
        ids = []
        for place, token in enumerate(prompt):
            whole = isinstance(token, (int, np.integer)) and not isinstance(token, bool)
            if not whole or not 0 <= token < self._vocabulary:
                wanted = f"a whole number from 0 to {self._vocabulary - 1}"
                raise SettingsError(f"prompt token {place} is no token id", got=repr(token)[:80], wanted=wanted)
            ids.append(int(token))
        return ids


def _folded(messages: Sequence[Message]) -> list[Message]:
    """Without notes: they begin the message of the user that follows them, or are one of their own."""
    folded: list[Message] = []
    noted = ""
    for message in messages:
        if message["role"] == NOTE:
            noted += _line(message["content"])
            continue
        if noted and message["role"] == "user":
            folded.append({"role": "user", "content": f"{noted}\n{message['content']}"})
        elif noted:
            folded += [{"role": "user", "content": noted}, message]
        else:
            folded.append(message)
        noted = ""
    if noted:
        folded.append({"role": "user", "content": noted})
    return folded


def _line(note: str) -> str:
    return f"{note}\n"


def _mark(*texts: str) -> str:
    """A word that is in none of the texts, and that no template changes."""
    number = 0
    while any(_MARK.format(number) in text for text in texts):
        number += 1
    return _MARK.format(number)


def _split(pieces: Sequence[Piece], mark: str, *, last: bool) -> tuple[list[Piece], list[Piece] | None]:
    """What stands before and behind the first or last mark; all of it and None where there is none."""
    places = [place for place, piece in enumerate(pieces) if mark in piece.text]
    if not places:
        return list(pieces), None
    place = places[-1 if last else 0]
    text = pieces[place].text
    before, _, behind = text.rpartition(mark) if last else text.partition(mark)
    return (
        [*pieces[:place], *([Piece(before, False)] if before else [])],
        [*([Piece(behind, False)] if behind else []), *pieces[place + 1 :]],
    )
