"""From raw values to verdicts: intervals, pairs, the record that is gone on with, tables and the page."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemem.runtime.errors import ContextError, FileError, SettingsError
from edgemem.runtime.retention.settings import RetentionSettings
from edgemem.tools.memory_eval.cells import Bench, Cell, Job, Progress, Values, setup_text
from edgemem.tools.memory_eval.choice_run import CHANCE
from edgemem.tools.memory_eval.evaluation import evaluate
from edgemem.tools.memory_eval.measures import Measure, arms_of, defaults, verdicts
from edgemem.tools.memory_eval.record import RECORD_FILE, Ledger, Result, read_record
from edgemem.tools.memory_eval.report import conclusions, html, markdown
from edgemem.tools.memory_eval.settings import (
    ENTROPY,
    FULL,
    NO_SINKS,
    RELEASED,
    SIRLLM,
    WINDOW,
    EvalSettings,
    retention,
)
from edgemem.tools.memory_eval.speed_run import SCORES
from edgemem.tools.memory_eval.speed_table import speed_table
from edgemem.tools.memory_eval.statistics import Estimate, difference, mean, word
from edgemem.tools.memory_eval.tables import part_tables, verdict_table

SUBJECT = {"package": "tiny", "text": "made-up sentences"}
CONDITIONS = {"machine": "a <slow> one"}
BENCH: Any = None  # jobs made here do not look at it
VALUES = st.lists(st.floats(-100, 100), min_size=1, max_size=20)


def result(part: str, policy: str, budget: int = 0, seed: int = 0, **values: Any) -> Result:
    named = {name.replace("_", " "): tuple(series) for name, series in values.items()}
    return Result(
        Cell(part, policy, budget, seed, setup_text(None, block=16)), named, None, 1.0, "2026-01-01T00:00:00+00:00"
    )


def job(policy: str, values: Mapping[str, tuple[float, ...]] | BaseException, calls: list[str]) -> Job:
    """Gives the values, or raises; notes that it ran."""

    def run(bench: Bench, progress: Progress) -> Values:
        calls.append(policy)
        progress(0.5)
        if isinstance(values, BaseException):
            raise values
        return values

    return Job(Cell("facts", policy, 128, 0, "{}"), run)


def speed_results() -> list[Result]:
    stream: dict[str, Any] = {
        "step_ms": [3.0] * 10,
        "p99_over_median": [1.2],
        "p99_over_median_without_evictions": [1.1],
        "last_over_first": [1.05],
        "resident_MiB": [300.0] * 10,
        "MiB_per_10k_tokens": [0.2],
        "eviction_ms": [2.0, 4.0, 2.5],
        "evictions": [3.0],
        "evicted": [99.0],
        "tokens": [2560.0],
    }
    return [
        result("speed", ENTROPY, 256, **stream),
        result("speed", SCORES, 256, decode_ratio=[1.01, 1.03], prefill_ratio=[1.2, 1.3]),
    ]


def all_results() -> list[Result]:
    """Entropy is right more often, and predicts worse."""
    units = np.linspace(0, 1, 8)
    found = speed_results()
    for seed in range(2):
        found.append(result("grocery", CHANCE, 0, seed, recall=[0.25] * 8, recall_open=[0.25] * 8))
        found.append(result("grocery", FULL, 0, seed, recall_open=[1.0] * 8, evictions=[0.0] * 8))
        for policy, right in ((WINDOW, 0.0), (ENTROPY, 1.0)):
            open_ = [right] * 7 + [0.5]
            found.append(
                result("grocery", policy, 128, seed, recall=[0.0, 1.0] * 4, recall_open=open_, evictions=[3.0])
            )
    for policy, more in ((WINDOW, 0.0), (ENTROPY, 0.1), (NO_SINKS, 2.0)):
        nats = list(3 + more + 0.1 * units)
        found.append(result("stream", policy, 256, nats=nats, last_nats=nats[-2:], evictions=[9.0]))
    return found


@given(VALUES)
def test_a_mean_lies_in_its_interval_and_that_among_the_values(values: list[float]) -> None:
    found = mean(values)
    assert found == mean(values)
    assert found.value == pytest.approx(np.mean(values), abs=1e-9)
    assert min(values) - 1e-9 <= found.low <= found.high <= max(values) + 1e-9


def test_an_interval_is_about_two_standard_errors_wide() -> None:
    values = np.random.default_rng(5).standard_normal(400)
    found = mean(values.tolist())
    error = values.std() / 20
    assert found.low == pytest.approx(found.value - 1.96 * error, abs=0.15 * error)
    assert found.high == pytest.approx(found.value + 1.96 * error, abs=0.15 * error)


@given(VALUES, st.floats(-10, 10))
def test_a_difference_is_of_pairs(values: list[float], shift: float) -> None:
    found = difference([value + shift for value in values], values)
    assert [found.low, found.value, found.high] == pytest.approx([shift] * 3, abs=1e-9)
    with pytest.raises(ValueError, match=r"shorter|longer"):
        difference(values, [*values, 0.0])


@pytest.mark.parametrize(
    ("low", "high", "units", "higher", "expected"),
    [
        (0.1, 0.3, 5, True, "wins"),
        (0.1, 0.3, 5, False, "loses"),
        (-0.3, -0.1, 5, True, "loses"),
        (-0.3, -0.1, 5, False, "wins"),
        (-0.1, 0.3, 5, True, "no difference"),
        (0.0, 0.3, 5, True, "no difference"),
        (0.1, 0.3, 4, True, "too few units"),
    ],
)
def test_a_word_is_given_where_the_interval_leaves_out_0(
    low: float, high: float, units: int, higher: bool, expected: str
) -> None:
    assert word(Estimate((low + high) / 2, low, high), units, higher_is_better=higher) == expected


def test_verdicts_pair_the_units_of_the_seeds_that_both_have() -> None:
    found = all_results()
    (one,) = (v for v in verdicts(found) if v.measure.series == "recall open")
    assert (one.policy, one.budget, one.word, one.units) == (ENTROPY, 128, "wins", 16)
    assert one.change.value == pytest.approx(7 / 8)
    without = [r for r in found if (r.cell.policy, r.cell.seed) != (WINDOW, 1)]
    (one,) = (v for v in verdicts(without) if v.measure.series == "recall open")
    assert one.units == 8
    assert not [v for v in verdicts(found) if v.budget == 0 or v.policy == WINDOW]


def test_perplexity_is_compared_by_its_ratio() -> None:
    (one,) = (v for v in verdicts(all_results()) if v.measure.series == "nats")
    assert one.word == "loses"
    assert one.change.value == pytest.approx(math.expm1(0.1))
    arm = next(arm for arm in arms_of("stream", all_results()) if arm.policy == WINDOW)
    estimate = arm.estimate(one.measure)
    assert estimate is not None
    assert estimate.value == pytest.approx(math.exp(3.05))
    assert Measure("stream", "nats", "", "perplexity", False).shown(1e6) > 1e300


def test_defaults_follow_the_evidence() -> None:
    told = "\n".join(defaults(verdicts(all_results())))
    assert "recalling one thing said long before (grocery, recall by words): entropy, which wins at 128" in told
    assert "reading and writing on (stream, perplexity): window, as entropy loses at 256" in told
    few = [result("facts", policy, 128, answer_held=[share]) for policy, share in ((WINDOW, 0.0), (ENTROPY, 1.0))]
    assert defaults(verdicts(few)) == [
        "For holding facts in long text (facts, answers held): too little was measured to tell."
    ]
    same = [result("rps", policy, 128, win=[0.3] * 6) for policy in (WINDOW, ENTROPY)]
    assert defaults(verdicts(same))[0].endswith("window, the simpler, as no difference shows.")
    mixed = [
        result("rps", policy, budget, win=[share] * 6)
        for policy, shares in ((WINDOW, (0.3, 0.3)), (ENTROPY, (0.2, 0.4)))
        for budget, share in zip((128, 256), shares, strict=True)
    ]
    assert defaults(verdicts(mixed))[0].endswith("entropy at 256, window at 128.")


def test_tables_hold_every_part_with_its_intervals() -> None:
    stream, grocery = part_tables(all_results())
    assert stream.rows[0][:3] == ("window", "256", "21.1 [20.6, 21.6]")
    assert [row[:2] for row in grocery.rows] == [("chance", "–"), ("full", "–"), ("window", "128"), ("entropy", "128")]
    (entropy,) = (row for row in verdict_table(verdicts(all_results())).rows if row[0] == "grocery, recall by words")
    assert entropy[2].startswith("wins: +87.5 points")
    missing = Result(Cell("facts", FULL, 0, 0, "{}"), {}, "no room", 0.0, "2026-01-01T00:00:00+00:00")
    (facts,) = part_tables([missing])
    assert facts.rows[0][-2:] == ("does not fit", "0")


def test_speed_is_set_against_its_aims() -> None:
    table = speed_table(speed_results())
    assert table is not None
    met = {what: answer for what, _, _, answer in table.rows if answer != "–"}
    assert met == {
        "step, 99th percentile over median": "yes",
        "step, last tenth over first": "no",
        "resident memory, slope": "yes",
        "eviction, budget 256, median": "yes",
        "surprisal's cost in decoding": "yes",
        "surprisal's cost in reading": "no",
    }
    assert speed_table([]) is None


def test_the_record_comes_back_as_it_was(tmp_path: Path) -> None:
    ledger = Ledger(SUBJECT, CONDITIONS, tmp_path)
    for each in all_results():
        ledger.add(each)
    assert read_record(tmp_path / RECORD_FILE) == ledger.record
    again = Ledger(SUBJECT, {"machine": "another"}, tmp_path)
    assert again.record.results == ledger.record.results
    assert again.record.conditions == {"machine": "another"}
    changed = Result(Cell("speed", SCORES, 256, 0, '{"pairs": 2}'), {}, None, 2.0, "2026-01-02T00:00:00+00:00")
    again.add(changed)
    assert len(again.record.results) == len(ledger.record.results)
    assert again.find(changed.cell) == changed
    with pytest.raises(SettingsError, match="something else"):
        Ledger({**SUBJECT, "text": "a novel"}, CONDITIONS, tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"\xff",
        b"[1, 2",
        b'{"format": 2, "subject": {}, "conditions": {}, "results": []}',
        b'{"format": 1, "subject": {}, "conditions": {}, "results": [{"cell": 3}]}',
        b'{"format": 1, "subject": {}, "conditions": {}, "results": [], "more": 1}',
    ],
)
def test_a_file_that_is_no_record_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / RECORD_FILE).write_bytes(content)
    with pytest.raises(FileError, match="not a record"):
        Ledger(SUBJECT, CONDITIONS, tmp_path)


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    calls: list[str] = []
    first = job(WINDOW, {"held": (0.5,)}, calls)
    jobs = [first, job(ENTROPY, KeyboardInterrupt(), calls), job(SIRLLM, ContextError("no room"), calls)]
    ledger = Ledger(SUBJECT, CONDITIONS, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        evaluate(jobs, BENCH, ledger, lambda part, share: None)
    assert [each.cell for each in read_record(tmp_path / RECORD_FILE).results] == [first.cell]
    shares: list[float] = []
    jobs[1] = job(ENTROPY, {"held": (1.0,)}, calls)
    ledger = Ledger(SUBJECT, CONDITIONS, tmp_path)
    evaluate(jobs, BENCH, ledger, lambda part, share: shares.append(share))
    assert calls == [WINDOW, ENTROPY, ENTROPY, SIRLLM]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    missing = ledger.find(jobs[2].cell)
    assert missing is not None
    assert missing.missing == "no room"
    assert not missing.values


def test_the_report_tells_what_is_there_and_what_is_not() -> None:
    ledger = Ledger(SUBJECT, CONDITIONS)
    for each in all_results():
        ledger.add(each)
    text = markdown(ledger.record, len(ledger.record.results) + 1)
    assert f"{len(ledger.record.results)} of {len(ledger.record.results) + 1} cells" in text
    for title in ("# What", "## Perplexity", "## Grocery", "## Speed", "## Verdicts", "## Defaults", "## Conditions"):
        assert title in text
    assert all(line in text for line in conclusions(ledger.record.results))
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert all(row.endswith("|") for row in rows)
    assert "- stream: block 16, seeds 1" in text
    assert "- grocery: block 16, seeds 2" in text
    assert "Not finished" not in markdown(ledger.record, len(ledger.record.results))


def test_the_page_stands_alone_and_escapes_its_texts() -> None:
    pytest.importorskip("matplotlib")
    ledger = Ledger(SUBJECT, CONDITIONS)
    for each in all_results():
        ledger.add(each)
    page = html(ledger.record, len(ledger.record.results))
    assert page.count("<svg") == 4  # perplexity, recall, steps, memory
    assert "a &lt;slow&gt; one" in page
    assert not re.search(r"<script|<link|src=", page)
    empty = html(Ledger(SUBJECT, CONDITIONS).record, 5)
    assert "<svg" not in empty
    assert "0 of 5 cells" in empty


@pytest.mark.parametrize(
    "wrong", [{"budgets": ()}, {"budgets": (128, 128)}, {"budgets": (64,)}, {"facts": 9}, {"block": 300}, {"seeds": 0}]
)
def test_settings_refuse_what_cannot_be_measured(wrong: dict[str, Any]) -> None:
    with pytest.raises(SettingsError):
        EvalSettings(**wrong)


def test_policies_are_known_by_name() -> None:
    with pytest.raises(SettingsError, match="no such policy"):
        retention("none", 128, decay=1.0, turns=True)
    assert EvalSettings().stream_budgets == (256, 512, 1024)
    assert EvalSettings(budgets=(128,)).stream_budgets == (128,)


def test_sirllm_has_its_published_settings() -> None:
    found = retention(SIRLLM, 1024, decay=0.9, turns=True)
    wanted = RetentionSettings("entropy", 1024, 4, 0, 1.0, 0.9, "paper", "turn", 32, "entropy")
    assert found == wanted
    assert retention(RELEASED, 1024, decay=0.9, turns=True).score == "as_released"
    assert json.loads(setup_text(found, rounds=3)) == {"retention": found.to_dict(), "rounds": 3}
