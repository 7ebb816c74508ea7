"""Rock, paper, scissors on a model: it names its move, then is told the person's, in one endless conversation."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from functools import partial
from statistics import fmean

import numpy as np

from edgemem.runtime.retention.settings import RetentionSettings
from edgemem.tools.memory_eval.cells import Bench, Cell, Job, Progress, Values, setup_text
from edgemem.tools.memory_eval.choice_run import CHANCE, CONSTANT
from edgemem.tools.memory_eval.feed import Feed
from edgemem.tools.memory_eval.rock_paper_scissors import MOVES, RULES, person_moves, winning
from edgemem.tools.memory_eval.scoring import best_first_token
from edgemem.tools.memory_eval.settings import ENTROPY, SIRLLM, WINDOW, EvalSettings, retention

_DECAY = 0.9  # SirLLM's for this task
_STEP = 100  # rounds that make a value
_MINE, _YOURS = "\nMine:", ", yours:"


def rps_jobs(settings: EvalSettings) -> Iterator[Job]:
    """The seed also says which move is preferred, in turn."""
    arms = [(policy, budget) for budget in settings.budgets for policy in (WINDOW, ENTROPY, SIRLLM)]
    for seed in range(settings.seeds):
        for policy in (CHANCE, CONSTANT):
            cell = Cell("rps", policy, 0, seed, setup_text(None, rounds=settings.rounds))
            yield Job(cell, partial(_baseline, settings.rounds, seed, policy))
        for policy, budget in arms:
            kept = retention(policy, budget, decay=_DECAY, turns=True)
            cell = Cell("rps", policy, budget, seed, setup_text(kept, rounds=settings.rounds))
            yield Job(cell, partial(_run, settings.rounds, seed, kept))


def _run(rounds: int, seed: int, kept: RetentionSettings, bench: Bench, progress: Progress) -> Values:
    """A round is a turn: the model's own move, the person's, and the words that ask for the next."""
    encode, frame = bench.tokenizer.encode, bench.frame
    moves = [encode(f" {move}") for move in MOVES]
    mine, yours = encode(_MINE), encode(_YOURS)
    feed = Feed(bench.engine, kept, bench.clock)
    turn: Sequence[int] = (*frame.opening, *encode(RULES), *frame.asked, *mine)
    theirs, replies, nats = _moves(rounds, seed), [], []
    for number, move in enumerate(theirs):
        step = feed.consume(np.array(turn, dtype=np.int32))
        if number:
            told = len(turn) - len(mine)
            nats.append(float(np.sum(step.surprisal[told - len(moves[theirs[number - 1]]) : told])))
        replies.append(best_first_token(step.logits, moves))
        feed.end_turn()
        turn = (*moves[replies[-1]], *yours, *moves[move], *mine)
        progress((number + 1) / rounds)
    return {
        **_outcomes(theirs, replies),
        "move nats": _steps(nats),
        "evictions": (float(feed.evictions),),
        "evicted": (float(feed.evicted),),
    }


def _baseline(rounds: int, seed: int, policy: str, bench: Bench, progress: Progress) -> Values:
    theirs = _moves(rounds, seed)
    constants = [_outcomes(theirs, [reply] * rounds) for reply in range(len(MOVES))]
    if policy == CONSTANT:
        return max(constants, key=lambda values: fmean(values["win"]))
    return {name: tuple(1 / len(MOVES) for _ in series) for name, series in constants[0].items()}


def _moves(rounds: int, seed: int) -> list[int]:
    return person_moves(random.Random(f"rps {seed}"), rounds, seed % len(MOVES))


def _outcomes(theirs: Sequence[int], replies: Sequence[int]) -> dict[str, tuple[float, ...]]:
    """Shares of each hundred rounds."""
    won = [float(reply == winning(move)) for move, reply in zip(theirs, replies, strict=True)]
    tied = [float(reply == move) for move, reply in zip(theirs, replies, strict=True)]
    lost = [1 - win - tie for win, tie in zip(won, tied, strict=True)]
    return {"win": _steps(won), "tie": _steps(tied), "lose": _steps(lost)}


def _steps(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(fmean(values[at : at + _STEP]) for at in range(0, len(values), _STEP))
