"""Prompts: from a text, a conversation or token ids to the tokens that an engine consumes.

It knows the tokenizer and the chat template; it keeps no conversation and asks no engine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from edgemem.runtime.errors import SettingsError
from edgemem.runtime.template import ChatTemplate, Message, check_messages
from edgemem.runtime.tokenizer import Tokenizer

Prompt = str | Sequence[Message] | Sequence[int]


class PromptReader:
    """Reads prompts for one model of `vocabulary` tokens. `where`: what to name in errors of its chat template."""

    def __init__(self, tokenizer: Tokenizer, vocabulary: int, *, where: object = None) -> None:
        self._tokenizer, self._vocabulary, self._where = tokenizer, vocabulary, where

    def read(self, prompt: Prompt, history: Sequence[Message], *, raw: bool) -> tuple[list[int], list[Message] | None]:
        """The prompt's tokens, at least one, and the conversation that they are, or None if they are none.

        A text is the next turn after `history`; with `raw`, or without a chat template, it is taken as it is.
        Messages and token ids stand for themselves. Raises SettingsError for anything else, and what
        ChatTemplate.render and Tokenizer.encode raise.
        """
        tokens, conversation = self._read(prompt, history, raw)
        if not tokens:
            raise SettingsError("the prompt is empty", wanted="at least one token")
        return tokens, conversation

    def _read(self, prompt: object, history: Sequence[Message], raw: bool) -> tuple[list[int], list[Message] | None]:
        if isinstance(prompt, str):
            if raw or self._template is None:
                return self._tokenizer.encode_text(prompt), None
            return self._chat([*history, {"role": "user", "content": prompt}])
        entries = prompt.tolist() if isinstance(prompt, np.ndarray) else prompt
        if not isinstance(entries, Sequence) or isinstance(entries, (bytes, bytearray, memoryview)):
            wanted = "a text, a list of messages, or token ids"
            raise SettingsError("a prompt of no known kind", got=type(prompt).__name__, wanted=wanted)
        if entries and isinstance(entries[0], Mapping):
            return self._chat(entries)
        return self._checked_ids(entries), None

    @cached_property
    def _template(self) -> ChatTemplate | None:
        source = self._tokenizer.chat_template
        if source is None:
            return None
        return ChatTemplate(source, self._tokenizer.controls, self._tokenizer.named_tokens, where=self._where)

    def _chat(self, messages: Sequence[Message]) -> tuple[list[int], list[Message]]:
        if self._template is None:
            raise SettingsError(
                "the model has no chat template, so it takes no messages",
                where=self._where,
                do="give the prompt as one text, or use a model that was trained to chat",
            )
        conversation: list[Message] = [*check_messages(messages)]
        return self._tokenizer.encode_pieces(self._template.render(conversation)), conversation

    def _checked_ids(self, prompt: Sequence[Any]) -> list[int]:
        ids = []
        for place, token in enumerate(prompt):
            whole = isinstance(token, (int, np.integer)) and not isinstance(token, bool)
            if not whole or not 0 <= token < self._vocabulary:
                wanted = f"a whole number from 0 to {self._vocabulary - 1}"
                raise SettingsError(f"prompt token {place} is no token id", got=repr(token)[:80], wanted=wanted)
            ids.append(int(token))
        return ids
