"""The dialogue task: a person tells of eight things, then comes back to each; the right reply repeats the detail.

In the place of SirLLM's DailyDialog task, whose replies are real utterances: every turn has four possible replies, and
the wrong ones are the right ones of other dialogues. The sentences are our own.
"""

from __future__ import annotations

import random

from edgemem.tools.memory_eval.questions import Question
from edgemem.tools.memory_eval.words import TOPICS, Topic

DETAILS, CHOICES = 8, 4


def dialogue(chance: random.Random, details: int = DETAILS) -> tuple[Question, ...]:
    """Turns that each tell a detail ("near"), then as many, in another order, that do not say it again ("far")."""
    told = [(topic, chance.choice(topic.details)) for topic in chance.sample(TOPICS, details)]
    near = [_turn(chance, topic.told.format(detail), topic, detail, "near") for topic, detail in told]
    chance.shuffle(told)
    far = [_turn(chance, topic.again, topic, detail, "far") for topic, detail in told]
    return (*near, *far)


def _turn(chance: random.Random, said: str, topic: Topic, detail: str, kind: str) -> Question:
    details = [detail, *chance.sample([other for other in topic.details if other != detail], CHOICES - 1)]
    chance.shuffle(details)
    replies = tuple(f"{topic.reply} {other}." for other in details)
    far = kind == "far"
    opening, endings = (topic.reply, tuple(details)) if far else ("", ())
    return Question(said, replies, details.index(detail), kind, opening, endings)
