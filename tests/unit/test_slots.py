"""Worker slots: the kernel says who is alive, and nobody else's tally is ever zeroed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from penstock.cache.layout import Geometry
from penstock.cache.rows import CounterRow, Tally, TallyRow, read_counters
from penstock.cache.segment import Segment
from penstock.cache.slots import SlotTaken, claim, read_slot, sweep

from .forked import Child, die, linger

Say = Callable[[bytes], object]
GEOMETRY = Geometry(slots=4, backends=8, models=4, counter_bytes=4096, gates=4)


@pytest.fixture
def segment() -> Iterator[Segment]:
    segment = Segment.create(None, GEOMETRY, owner_pid=os.getpid(), owner_start=1)
    yield segment
    segment.close()


def worker(segment: Segment, index: int, then: Callable[[], object] = linger) -> Child:
    """A process that claims a slot and has work in flight; heard when it has."""

    def body(say: Say) -> None:
        mine = Segment.attach(segment.fd)
        slot = claim(mine, index, os.getpid(), 77)
        row = TallyRow(mine, index)
        row.add(3, 5)
        row.add_queued(1, 2)
        row.add_held(2, 4096)
        counters = CounterRow(mine, index)
        counters.cells[counters.cell(b"requests")] += 1
        slot.heartbeat(123)
        say(b"working")
        then()

    child = Child(body)
    assert child.hear() == b"working"
    return child


def nobody_waits(_: float) -> None:
    """In place of time.sleep: a slot that is taken stays so."""


def test_a_claimed_slot_says_who_holds_it(segment: Segment) -> None:
    slot = claim(segment, 2, 1234, 99)
    slot.heartbeat(55)
    info = read_slot(segment, 2)
    assert (info.pid, info.start, info.generation, info.heartbeat_ns, info.alive) == (1234, 99, 1, 55, True)
    assert not read_slot(segment, 1).alive


def test_a_slot_whose_holder_lives_is_taken(segment: Segment) -> None:
    with worker(segment, 1) as child:
        with pytest.raises(SlotTaken, match=str(child.pid)):
            claim(segment, 1, 2, 2, pause=nobody_waits)
        assert read_slot(segment, 1).alive
        assert claim(segment, 0, 2, 2).generation == 1


def test_a_slot_cannot_be_claimed_twice_through_one_segment(segment: Segment) -> None:
    claim(segment, 0, 1, 1)
    with pytest.raises(SlotTaken):
        claim(segment, 0, 1, 1, pause=nobody_waits)


def test_a_killed_holders_slot_is_free_and_its_row_is_zeroed_by_its_successor(segment: Segment) -> None:
    tally = Tally(segment)
    with worker(segment, 1) as child:
        assert (tally.inflight(3), tally.queued(1), tally.held_total()) == (5, 2, 4096)
        child.kill()
    info = read_slot(segment, 1)
    assert not info.alive
    assert tally.inflight(3) == 5
    assert claim(segment, 1, 9, 9).generation == info.generation + 1
    assert (tally.inflight(3), tally.queued(1), tally.held_total()) == (0, 0, 0)


def test_a_sweep_zeroes_the_dead_and_spares_the_living(segment: Segment) -> None:
    tally = Tally(segment)
    with worker(segment, 0), worker(segment, 1) as dead, worker(segment, 3) as dead_too:
        assert sweep(segment) == []
        assert tally.inflight(3) == 15
        dead.kill()
        dead_too.kill()
        assert sweep(segment) == [1, 3]
        assert (tally.inflight(3), tally.queued(1), tally.held_total()) == (5, 2, 4096)
        assert sweep(segment) == []
        assert (read_slot(segment, 1).pid, read_slot(segment, 1).generation) == (0, 1)
        assert read_slot(segment, 0).alive


def test_counters_survive_their_worker_the_sweep_and_the_successor(segment: Segment) -> None:
    with worker(segment, 1) as first:
        first.kill()
    sweep(segment)
    with worker(segment, 1):
        assert list(read_counters(segment, 1)) == [(b"requests", (2,))]


def test_a_claim_waits_out_a_sweeper_that_holds_the_lock_for_an_instant(segment: Segment) -> None:
    sweeper = Segment.attach(segment.fd)
    assert sweeper.slot_locks.try_lock(2)
    pauses: list[float] = []

    def sweeper_finishes(pause_s: float) -> None:
        pauses.append(pause_s)
        if len(pauses) == 3:
            sweeper.slot_locks.unlock(2)

    assert claim(segment, 2, 1, 1, pause=sweeper_finishes).generation == 1
    assert len(pauses) == 3
    sweeper.close()


def test_a_worker_killed_before_its_slot_was_marked_is_swept_by_what_it_left_in_the_tally(
    segment: Segment,
) -> None:
    def body(_: Say) -> None:
        mine = Segment.attach(segment.fd)
        assert mine.slot_locks.try_lock(2)
        TallyRow(mine, 2).add(0, 1)
        die()

    with Child(body) as child:
        assert child.wait() == -9
    assert sweep(segment) == [2]
    assert Tally(segment).inflight(0) == 0


def test_a_sweeper_killed_half_way_leaves_the_slot_to_the_next_sweep(
    segment: Segment, monkeypatch: pytest.MonkeyPatch
) -> None:
    with worker(segment, 1) as dead:
        dead.kill()

    def body(_: Say) -> None:
        monkeypatch.setattr("penstock.cache.slots._vacate", lambda *_: die())
        sweep(Segment.attach(segment.fd))

    with Child(body) as sweeper:
        assert sweeper.wait() == -9
    assert Tally(segment).inflight(3) == 5
    assert sweep(segment) == [1]


def test_a_released_slot_is_free_clean_and_keeps_its_generation(segment: Segment) -> None:
    slot = claim(segment, 0, 1, 1)
    TallyRow(segment, 0).add(1, 4)
    slot.release()
    slot.release()
    assert Tally(segment).inflight(1) == 0
    assert read_slot(segment, 0) == read_slot(segment, 0).__class__(0, 0, 1, 0, False)
    assert sweep(segment) == []


def test_a_second_release_does_not_touch_a_successor(segment: Segment) -> None:
    slot = claim(segment, 0, 1, 1)
    slot.release()
    with worker(segment, 0):
        slot.release()
        assert Tally(segment).inflight(3) == 5


def test_there_is_one_controller_and_it_has_no_tally(segment: Segment) -> None:
    last_row = TallyRow(segment, GEOMETRY.slots - 1)
    last_row.add(7, 1)
    before = bytes(segment.view[segment.layout.counters_at * 8 :])
    controller = claim(segment, GEOMETRY.controller, 5, 5)
    other = Segment.attach(segment.fd)
    with pytest.raises(SlotTaken):
        claim(other, GEOMETRY.controller, 6, 6, pause=nobody_waits)
    other.close()
    controller.release()
    assert last_row.inflight(7) == 1
    assert bytes(segment.view[segment.layout.counters_at * 8 :]) == before


def test_a_slot_past_the_controllers_is_an_index_error(segment: Segment) -> None:
    with pytest.raises(IndexError):
        claim(segment, GEOMETRY.slots + 1, 1, 1)
    with pytest.raises(IndexError):
        read_slot(segment, -1)
