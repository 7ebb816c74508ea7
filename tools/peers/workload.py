"""The tests by llama-bench's names: `pp512`, `tg128`, `tg128@d2048`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from edgemem.runtime.errors import SettingsError

_NAME = re.compile(r"pp([1-9]\d{0,5})|tg([1-9]\d{0,5})(?:@d([1-9]\d{0,6}))?", re.ASCII)
SHORT_PROMPT = 113


@dataclass(frozen=True)
class SpeedTest:
    """prompt: tokens that come first. steps: decode steps after them; 0 where consuming the prompt is what is timed."""

    name: str
    prompt: int
    steps: int

    @property
    def tokens(self) -> int:
        """How many tokens the rate counts."""
        return self.steps or self.prompt

    @property
    def context(self) -> int:
        """KV slots that every runtime needs for it, one to spare."""
        return self.prompt + self.steps + 1

    @property
    def mean_slots(self) -> int:
        """KV slots that the middle decode step finds in use."""
        return self.prompt - 1 + self.steps // 2


def parse_speed_test(name: str) -> SpeedTest:
    """The test of this name; SettingsError for any other text. Without a depth, decoding follows 113 tokens."""
    match = _NAME.fullmatch(name)
    if match is None:
        raise SettingsError("there is no such test", got=repr(name), wanted="ppN, tgN or tgN@dDEPTH, as in tg128@d2048")
    prompt, steps, depth = match.groups()
    if prompt is not None:
        return SpeedTest(name, int(prompt), 0)
    if int(steps) < 2 or (depth is not None and int(depth) < 2):
        raise SettingsError("the test is too short", got=repr(name), wanted="at least 2 steps after at least 2 tokens")
    return SpeedTest(name, int(depth or SHORT_PROMPT), int(steps))
