"""The tables of an evaluation: aims, clips, streams by policy, settings that were tried, cost, and energy estimated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from edgemem.profiles.units import number_text, size_text
from edgemem.tools.capture_eval.cost import Cost, Energy
from edgemem.tools.capture_eval.figures import PERIODIC, RANDOM, TRIGGER, GroupFigures
from edgemem.tools.capture_eval.record import Record
from edgemem.tools.capture_eval.settings import CLAIM_DB, RARE, USUAL
from edgemem.tools.capture_eval.sweep import COVERED, WAIT_S, Candidate
from edgemem.tools.hands.clip_scores import ALL, Ranking
from edgemem.tools.memory_eval.statistics import Estimate
from edgemem.tools.memory_eval.tables import Table, estimate_text

_STREAM_NOTE = (
    "Always on: a frame every {interval:g} s. Periodic and random capture take as many frames of each stream as the "
    "trigger, whose heartbeats are counted. Covered: events with a frame in them. Wait: from the beginning of an "
    "event's sound to its first frame, without the camera's own time; median and 95th percentile, of covered events. "
    "False: openings in whose window no hands were at work. Intervals hold 95 %, over streams and the events in them."
)
_CLIP_NOTE = (
    "Each clip by a head that heard no clip of its group; a clip's score is the mean of its windows'. Without a "
    "head: the ear's highest class of hands, and its highest of all, window by window. Intervals hold 95 %, over "
    "groups."
)


def tables_of(record: Record, found: Sequence[GroupFigures], energy: Energy | None) -> list[Table]:
    """found: groups(record.captured, ...). energy: costs by which an estimate is made, if any were given."""
    tables = [
        aims_table(record, found),
        clips_table(record),
        streams_table(record, found),
        settings_table(record),
        cost_table(record.cost),
    ]
    return tables if energy is None else [*tables, energy_table(energy, found, record.settings.interval_s)]


def aims_table(record: Record, found: Sequence[GroupFigures]) -> Table:
    """At the signal-to-noise ratio of the aims."""
    at = {group.mix: group for group in found if group.snr_db == CLAIM_DB}
    usual, rare = at[USUAL], at[RARE]
    trigger, clips = usual.policy(TRIGGER), record.subsets[0].head
    wait = "–" if trigger.wait_s is None else f"{_text(trigger.wait_s)} s"
    rows = [
        _aim("clips, area under ROC", _text(clips.auc, 3), "at least 0.975", clips.auc.value >= 0.975),
        _aim("clips, average precision", _text(clips.average_precision, 3), "at least 0.96", _ap(clips) >= 0.96),
        _aim("frames saved", _share(usual.saved), "at least 60 %", usual.saved.value >= 0.6),
        _aim("events covered", _share(trigger.covered), "at least 95 %", trigger.covered.value >= 0.95),
        _aim("median wait", wait, "under 1.0 s", trigger.wait_s is not None and trigger.wait_s.value < 1),
        _aim(
            "where events are rare, more coverage than periodic capture",
            f"{100 * rare.gain.value:+.1f} points [{100 * rare.gain.low:+.1f}, {100 * rare.gain.high:+.1f}]",
            "at least 20 points",
            rare.gain.value >= 0.2,
        ),
        _aim("a hop of 0.48 s", f"{number_text(record.cost.hop_ms)} ms", "at most 3 ms", record.cost.hop_ms <= 3),
    ]
    note = f"Streams: at {CLAIM_DB:g} dB, on folds that no setting was chosen on."
    return Table("Aims", ("what", "measured", "aim", "met"), tuple(rows), note)


def clips_table(record: Record) -> Table:
    headers = ("clips of", "hands + background", "groups", *_twice("head"), *_twice("hand class"), *_twice("any class"))
    rows = tuple(
        (
            "all sources" if one.name == ALL else one.name,
            f"{one.hands} + {one.clips - one.hands}",
            str(one.groups),
            *(text for ranking in (one.head, one.hand_classes, one.any_class) for text in _ranking(ranking)),
        )
        for one in record.subsets
    )
    return Table("Clips told apart", headers, rows, _CLIP_NOTE)


def streams_table(record: Record, found: Sequence[GroupFigures]) -> Table:
    headers = (
        *("hands at work", "dB", "policy", "frames/h", "saved", "covered", "wait s", "95 % s", "false/h"),
        *("frames of hands", "streams, events"),
    )
    rows = tuple(row for group in found for row in _group_rows(group))
    return Table("Streams", headers, rows, _STREAM_NOTE.format(interval=record.settings.interval_s))


def settings_table(record: Record) -> Table:
    """The best, and those that were judged."""
    headers = (
        "open",
        "close",
        "smoothing s",
        "hold s",
        "habituation s",
        "covered",
        "wait s",
        "saved",
        "saved, rare",
        "false/h",
        "used",
    )
    rows = tuple(_candidate_row(one, used=one.settings == record.settings) for one in record.sweep.candidates)
    note = (
        f"The best of {record.sweep.tried} that were tried, at {CLAIM_DB:g} dB, on folds apart from those of the other "
        f"tables. Asked for: {100 * COVERED:g} % of events covered, a median wait of at most {WAIT_S:g} s; of those "
        "that reach it, the best saves most frames, usual and rare counting the same."
    )
    return Table("Settings", headers, rows, note)


def cost_table(cost: Cost) -> Table:
    rows = (
        ("share of one core", f"{100 * cost.cpu_share:.2g} %"),
        ("a hop of 0.48 s, median", f"{number_text(cost.hop_ms)} ms"),
        ("a hop of 0.48 s, 99th percentile", f"{number_text(cost.late_hop_ms)} ms"),
        ("resident memory added", size_text(cost.added_bytes)),
        ("resident memory with Python and NumPy alone", size_text(cost.base_bytes)),
    )
    note = (
        f"Windows, ear, head and trigger in a process of their own, over {cost.seconds:g} s of noise. Added: with ONNX "
        "Runtime and the models. Microphone and camera are not in it."
    )
    return Table("Cost of listening", ("what", "measured"), rows, note)


def energy_table(energy: Energy, found: Sequence[GroupFigures], interval_s: float) -> Table:
    always = energy.joules_per_hour(3600 / interval_s, listening=False)
    rows = []
    for group in found:
        ours = energy.joules_per_hour(group.frames_per_hour, listening=True)
        rows.append(
            (group.mix, f"{group.snr_db:g}", *map(number_text, (ours, always)), f"{100 * (1 - ours / always):.0f} %")
        )
    given = ", ".join(f"{name} {value:g}" for name, value in asdict(energy).items())
    note = (
        f"An estimate, not a measurement, from costs that were given: {given}. An hour costs camera_idle_mw x 3.6 + "
        "frame_mj x frames / 1000, and with the trigger audio_mw x 3.6 more."
    )
    return Table("Energy, estimated", ("mix", "dB", "trigger J/h", "always on J/h", "saved"), tuple(rows), note)


def _group_rows(group: GroupFigures) -> list[tuple[str, ...]]:
    head = (group.mix, f"{group.snr_db:g}")
    rows: list[tuple[str, ...]] = []
    for name in (TRIGGER, PERIODIC, RANDOM):
        policy = group.policy(name)
        ours = name == TRIGGER
        rows.append(
            (
                *head,
                name,
                f"{group.frames_per_hour:.0f}",
                _share(group.saved),
                _share(policy.covered),
                _text(policy.wait_s),
                _text(policy.late_s),
                _text(group.false_per_hour) if ours else "–",
                _share(group.in_events) if ours else "–",
                f"{group.streams}, {group.events}",
            )
        )
    rows.append((*head, "trigger without heartbeats", "–", "–", _share(group.triggered), *["–"] * 4, rows[0][-1]))
    return rows


def _candidate_row(one: Candidate, *, used: bool) -> tuple[str, ...]:
    settings = one.settings
    return (
        *(
            f"{value:g}"
            for value in (
                settings.open_at,
                settings.close_at,
                settings.smoothing_s,
                settings.hold_s,
                settings.habituation_s,
            )
        ),
        f"{100 * one.covered:.0f} %",
        "–" if one.wait_s is None else f"{one.wait_s:.2f}",
        f"{100 * one.saved:.0f} %",
        f"{100 * one.saved_rare:.0f} %",
        number_text(one.false_per_hour),
        "yes" if used else "",
    )


def _ranking(ranking: Ranking) -> tuple[str, str]:
    return _text(ranking.auc, 3), _text(ranking.average_precision, 3)


def _ap(ranking: Ranking) -> float:
    return ranking.average_precision.value


def _twice(name: str) -> tuple[str, str]:
    return f"{name}, ROC", f"{name}, AP"


def _aim(what: str, measured: str, aim: str, met: bool) -> tuple[str, ...]:
    return what, measured, aim, "yes" if met else "no"


def _share(found: Estimate) -> str:
    return estimate_text(found, "share")


def _text(found: Estimate | None, digits: int = 2) -> str:
    """`0.52 [0.48, 0.61]`"""
    if found is None:
        return "–"
    value, low, high = (f"{number:.{digits}f}" for number in (found.value, found.low, found.high))
    return f"{value} [{low}, {high}]"
