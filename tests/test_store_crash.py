"""Power loss and failing disks: a crash in every step; what was not synced is dropped, kept, torn or reordered."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest
from fault.simulated_disk import MODES, Crash, Mode, SimulatedDisk
from fault.talk import Talk, Witness, open_store, state_of

from edgemem.runtime.errors import StoreError
from edgemem.runtime.store import Role

SEEDS = {"drop": 1, "keep": 1, "tear": 2, "reorder": 3}


def long_talk(talk: Talk) -> None:
    """Turns, evictions, snapshots, and several segments."""
    talk.turn(1)
    talk.snapshot()
    talk.keep([*range(4), *range(8, 18)])
    talk.turn(2)
    talk.snapshot()
    talk.begin([{"role": "system", "content": "be brief"}, {"role": "user", "content": "x" * 900}], whole=True)
    talk.tokens(list(range(60)), Role.TEXT, generated=False)
    talk.flush()
    talk.end(None)
    talk.keep([0, 1, 2, 40])
    talk.turn(3)
    talk.snapshot()
    talk.turn(4)


def steps_of(run: Callable[[Talk], None]) -> int:
    disk = SimulatedDisk()
    run(Talk(open_store(disk), Witness()))
    return disk.steps


def crashed(step: int) -> tuple[SimulatedDisk, Witness]:
    """The disk whose power goes in that step of the long talk, and the witness."""
    disk, witness = SimulatedDisk(), Witness()
    disk.crash_at = step
    with pytest.raises(Crash):
        long_talk(Talk(open_store(disk), witness))
    return disk, witness


def goes_on(disk: SimulatedDisk, witness: Witness) -> None:
    """The store opens as it must, can be talked to, and loses nothing of that either."""
    store = open_store(disk)
    count = witness.check(store)
    assert store.problem is None
    again = Witness(witness.said[:count], [*witness.flushed, count], count, list(witness.snapshots))
    talk = Talk(store, again)
    if store.recovered.unfinished is not None:
        talk.end("cut off")
    talk.turn(9)
    again.check(open_store(disk.after_crash("drop")))


@pytest.mark.parametrize("mode", MODES)
def test_a_crash_in_any_step_loses_nothing_that_was_acknowledged(mode: Mode) -> None:
    for step in range(1, steps_of(long_talk) + 1):
        disk, witness = crashed(step)
        for seed in range(SEEDS[mode]):
            goes_on(disk.after_crash(mode, seed), witness)


@pytest.mark.parametrize("mode", MODES)
def test_a_crash_in_any_step_of_the_recovery_loses_nothing_more(mode: Mode) -> None:
    for step in range(1, steps_of(long_talk) + 1, 7):
        found, witness = crashed(step)
        left = found.after_crash("tear", seed=step).files
        recovering = SimulatedDisk(left)
        open_store(recovering)
        for second in range(1, recovering.steps + 1):
            disk = SimulatedDisk(left)
            disk.crash_at = second
            with pytest.raises(Crash):
                open_store(disk)
            goes_on(disk.after_crash(mode, second), witness)


def test_what_a_killed_process_left_in_memory_is_safe_once_the_next_has_opened_it() -> None:
    for step in range(1, steps_of(long_talk) + 1):
        disk, witness = crashed(step)
        store = open_store(disk.after_kill())
        found = Witness(witness.said, witness.flushed, witness.check(store), witness.snapshots)
        found.check(open_store(disk.after_crash("drop")))
        disk, witness = crashed(step)
        goes_on(disk.after_kill(), witness)


@pytest.mark.parametrize("mode", MODES)
def test_a_crash_while_forgetting_leaves_the_old_or_nothing(mode: Mode) -> None:
    def forgetting(talk: Talk) -> None:
        long_talk(talk)
        before = talk.store._disk.steps  # type: ignore[attr-defined]
        talk.forget()
        steps.extend(range(before + 1, talk.store._disk.steps + 1))  # type: ignore[attr-defined]

    steps: list[int] = []
    forgetting(Talk(open_store(SimulatedDisk()), Witness()))
    assert len(steps) > 6
    outcomes = set()
    for step in steps:
        disk, witness = SimulatedDisk(), Witness()
        disk.crash_at = step
        talk = Talk(open_store(disk), witness)
        with pytest.raises(Crash):
            forgetting(talk)
        for seed in range(SEEDS[mode]):
            left = disk.after_crash(mode, seed)
            store = open_store(left)
            outcomes.add(store.recovered.tokens > 0)
            if store.recovered.tokens:
                witness.check(store)
            else:
                Witness().check(store)
                assert not any(name.startswith("snapshot") for name in left.files)
                assert len([name for name in left.files if name.startswith("journal")]) == 1
    assert False in outcomes


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_a_disk_that_fails_in_any_step_never_stops_the_talk_and_is_not_tried_again(number: int) -> None:
    for step in range(1, steps_of(long_talk) + 1):
        disk, witness, told = SimulatedDisk(), Witness(), list[StoreError]()
        disk.failures[step] = number
        store = open_store(disk, on_problem=told.append)
        long_talk(Talk(store, witness))
        operation, name = disk.log[step - 1]
        if name.startswith("snapshot") or told[0] is not store.problem:
            assert store.problem is None
            assert len(told) == 1
        else:
            assert store.problem is told[0]
            assert told[1:] == []
            assert not store.flush()
            assert {later for later, _ in disk.log[step:]} <= {"remove"}  # of the temporary file
        assert (operation == "write" and number == errno.ENOSPC) <= ("full disk" in str(told[0]))
        disk.failures.clear()
        found = disk.after_crash("drop")
        if not found.files:
            assert witness.safe == 0
        witness.check(open_store(found))


def test_a_disk_that_fails_for_good_says_so_once_for_the_journal_and_once_for_snapshots() -> None:
    disk, told = SimulatedDisk(), list[StoreError]()
    store = open_store(disk, on_problem=told.append)
    talk = Talk(store, Witness())
    talk.turn(1)
    position = store.position()
    assert position is not None
    disk.failures = dict.fromkeys(range(disk.steps + 1, 10_000), errno.ENOSPC)
    safe = store.durable_tokens
    ids = [slot[0] for slot in talk.witness.held(len(talk.witness.said))]
    for _ in range(3):
        assert not store.snapshot(position, state_of(ids), {})
    talk.turn(2)
    talk.turn(3)
    assert [error.what for error in told] == [
        "cannot write a snapshot",
        "the conversation is not being kept any more; the talk goes on in memory",
    ]
    assert store.durable_tokens == safe
    assert store.position() is None
    store.close()
