"""Rock, paper, scissors against a person who prefers one move: the moves, and what is said of a round."""

from __future__ import annotations

import random

MOVES = ("rock", "paper", "scissors")
_SHARES = (0.5, 0.3, 0.2)  # of the preferred move, and of the two after it in MOVES
RULES = (
    "We play rock, paper, scissors many times. Each line has my move and then yours. Try to win as often as you can."
)


def person_moves(chance: random.Random, rounds: int, preferred: int) -> list[int]:
    """The person's moves as places in MOVES, drawn independently."""
    order = [(preferred + shift) % len(MOVES) for shift in range(len(MOVES))]
    return chance.choices(order, _SHARES, k=rounds)


def winning(move: int) -> int:
    """The place of the move that beats this one."""
    return (move + 1) % len(MOVES)
