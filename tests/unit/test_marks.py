"""Flight marks: of all who claim a key one leads, whoever dies and whenever."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator

import pytest

from penstock.cache import marks as module
from penstock.cache.digest import Key
from penstock.cache.layout import MARK_STRIPE_CELLS, MARK_STRIPES, Geometry
from penstock.cache.marks import Claim, Marks
from penstock.cache.segment import Segment
from penstock.cache.slots import Slot, alive, claim

from .forked import Child, die, linger

GEOMETRY = Geometry(slots=8, backends=1, models=1, counter_bytes=1024, gates=1)
FAR_NS = 10**15
Say = Callable[[bytes], object]


def key(n: int, stripe: int = 5) -> Key:
    """The n-th key of a stripe."""
    return Key((stripe + n * MARK_STRIPES).to_bytes(8, "little") + n.to_bytes(24, "big"))


@pytest.fixture
def segment() -> Iterator[Segment]:
    segment = Segment.create(None, GEOMETRY, owner_pid=os.getpid(), owner_start=1)
    yield segment
    segment.close()


def worker(segment: Segment, slot: int) -> tuple[Marks, Slot, Segment]:
    """What a worker in that slot has: a view of its own, its slot claimed, the marks."""
    own = Segment.attach(segment.fd)
    taken = claim(own, slot, os.getpid(), 1)
    return Marks(own, slot, taken.generation), taken, own


def region(segment: Segment) -> list[int]:
    at = segment.layout.marks_at
    return segment.cells[at : at + MARK_STRIPES * MARK_STRIPE_CELLS].tolist()


def test_the_first_to_claim_a_key_leads_and_the_others_learn_who(segment: Segment) -> None:
    first, slot, _ = worker(segment, 3)
    second, _, _ = worker(segment, 4)
    assert first.claim(key(1), 0, FAR_NS) is Claim.LED
    assert second.claim(key(1), 0, FAR_NS) == (3, slot.generation)
    assert first.claim(key(1), 0, FAR_NS) == (3, slot.generation)
    assert second.claim(key(2), 0, FAR_NS) is Claim.LED
    assert first.claim(key(2), 0, FAR_NS) == (4, 1)


def test_a_cleared_mark_leaves_nothing_set_and_another_may_lead(segment: Segment) -> None:
    first, _, _ = worker(segment, 0)
    second, _, _ = worker(segment, 1)
    for marks in (first, second, first):
        assert marks.claim(key(1), 0, FAR_NS) is Claim.LED
        marks.clear(key(1), 0)
    begin = segment.layout.marks_at + 5 * MARK_STRIPE_CELLS
    assert [segment.cells[begin + 8 * i] for i in range(4)] == [0] * 4


@pytest.mark.parametrize("now", [0, FAR_NS - 1, FAR_NS, FAR_NS + 1])
def test_clearing_anothers_mark_does_nothing(segment: Segment, now: int) -> None:
    first, slot, _ = worker(segment, 0)
    second, _, _ = worker(segment, 1)
    assert first.claim(key(1), 0, FAR_NS) is Claim.LED
    second.clear(key(1), now)
    first.clear(key(2), now)
    assert second.claim(key(1), 0, FAR_NS) == (0, slot.generation)


@pytest.mark.parametrize("now", [0, FAR_NS, 3 * FAR_NS])
def test_a_leader_whose_mark_was_taken_over_clears_nothing_of_its_successor(
    segment: Segment, now: int
) -> None:
    first, _, _ = worker(segment, 0)
    second, slot, _ = worker(segment, 1)
    third, _, _ = worker(segment, 2)
    assert first.claim(key(1), 0, 1000) is Claim.LED
    assert second.claim(key(1), 1000, FAR_NS) is Claim.LED
    first.clear(key(1), now)
    assert third.claim(key(1), 0, FAR_NS) == (1, slot.generation)


def test_a_mark_near_its_deadline_is_cleared_under_the_lock_or_left_to_run_out(segment: Segment) -> None:
    first, slot, _ = worker(segment, 0)
    second, _, own = worker(segment, 1)
    assert first.claim(key(1), 0, 1000) is Claim.LED
    assert own.mark_locks.try_lock(5)
    first.clear(key(1), 999)
    own.mark_locks.unlock(5)
    assert second.claim(key(1), 999, FAR_NS) == (0, slot.generation)
    assert second.claim(key(1), 1000, FAR_NS) is Claim.LED
    second.clear(key(1), FAR_NS - 1)
    assert first.claim(key(1), 0, FAR_NS) is Claim.LED


def test_a_stripe_holds_four_flights_and_says_when_it_is_full(segment: Segment) -> None:
    first, _, _ = worker(segment, 0)
    second, _, _ = worker(segment, 1)
    for n in range(4):
        assert (first, second)[n % 2].claim(key(n), 0, FAR_NS) is Claim.LED
    assert first.claim(key(4), 0, FAR_NS) is Claim.FULL
    assert first.claim(key(4, stripe=6), 0, FAR_NS) is Claim.LED
    assert second.claim(key(2), 0, FAR_NS) == (0, 1)
    second.clear(key(1), 0)
    assert first.claim(key(4), 0, FAR_NS) is Claim.LED


def test_a_full_stripe_gives_away_the_place_of_a_flight_past_its_deadline(segment: Segment) -> None:
    first, _, _ = worker(segment, 0)
    second, _, _ = worker(segment, 1)
    for n in range(4):
        assert first.claim(key(n), 0, 500 if n == 2 else FAR_NS) is Claim.LED
    assert second.claim(key(9), 499, FAR_NS) is Claim.FULL
    assert second.claim(key(9), 500, FAR_NS) is Claim.LED
    assert second.claim(key(0), 500, FAR_NS) == (0, 1)


def test_a_stripe_somebody_is_in_is_busy_and_only_that_one(segment: Segment) -> None:
    first, _, _ = worker(segment, 0)
    _, _, own = worker(segment, 1)
    assert own.mark_locks.try_lock(5)
    assert first.claim(key(1), 0, FAR_NS) is Claim.BUSY
    assert first.claim(key(1, stripe=6), 0, FAR_NS) is Claim.LED
    own.mark_locks.unlock(5)
    assert first.claim(key(1), 0, FAR_NS) is Claim.LED


@pytest.mark.parametrize("other", [b"", b"x", bytes(31), bytes(33)])
def test_what_is_no_key_is_refused(segment: Segment, other: bytes) -> None:
    marks, _, _ = worker(segment, 0)
    with pytest.raises(ValueError, match="a key of"):
        marks.claim(Key(other), 0, FAR_NS)
    assert not any(region(segment))


def test_keys_that_differ_in_their_last_byte_alone_are_two_flights(segment: Segment) -> None:
    marks, _, _ = worker(segment, 0)
    for last in range(4):
        assert marks.claim(Key(bytes(31) + bytes([last])), 0, FAR_NS) is Claim.LED


def test_of_many_processes_that_claim_one_key_exactly_one_leads(segment: Segment) -> None:
    processes, keys = 6, 300
    ready, go = os.pipe()

    def contend(slot: int) -> Callable[[Say], None]:
        def body(say: Say) -> None:
            marks, _, _ = worker(segment, slot)
            say(b".")
            os.close(go)
            os.read(ready, 1)
            led = bytearray(keys)
            for n in range(keys):
                got: object = Claim.BUSY
                while got is Claim.BUSY:
                    got = marks.claim(key(0, stripe=n), 0, FAR_NS)
                led[n] = got is Claim.LED
                assert led[n] or isinstance(got, tuple)
            say(bytes(led))
            linger()

        return body

    children = [Child(contend(slot)) for slot in range(processes)]
    try:
        assert [child.hear() for child in children] == [b"."] * processes
        os.close(go)
        led = [child.hear() for child in children]
        assert all(len(answer) == keys for answer in led)
        assert [sum(column) for column in zip(*led, strict=True)] == [1] * keys
    finally:
        os.close(ready)
        for child in children:
            child.__exit__(None, None, None)


def test_the_mark_of_a_killed_leader_is_taken_over_by_exactly_one(segment: Segment) -> None:
    def lead(say: Say) -> None:
        marks, _, _ = worker(segment, 0)
        assert marks.claim(key(1), 0, FAR_NS) is Claim.LED
        say(b".")
        linger()

    first, _, _ = worker(segment, 1)
    second, _, _ = worker(segment, 2)
    with Child(lead) as child:
        assert child.hear() == b"."
        assert first.claim(key(1), 0, FAR_NS) == (0, 1)
        child.kill()
        assert second.claim(key(1), 0, FAR_NS) is Claim.LED
        assert first.claim(key(1), 0, FAR_NS) == (2, 1)


def test_a_stopped_leader_leads_until_its_deadline(segment: Segment) -> None:
    def lead(say: Say) -> None:
        marks, _, _ = worker(segment, 0)
        assert marks.claim(key(1), 0, 1000) is Claim.LED
        say(b".")
        linger()

    other, _, _ = worker(segment, 1)
    with Child(lead) as child:
        assert child.hear() == b"."
        os.kill(child.pid, signal.SIGSTOP)
        assert other.claim(key(1), 999, FAR_NS) == (0, 1)
        assert other.claim(key(1), 1000, FAR_NS) is Claim.LED


class Deadly:
    """Cells or bytes of a map that kill their process at the n-th store, before it or after it."""

    left = 0
    after = False

    def __init__(self, under: memoryview) -> None:
        self.under = under

    def __getitem__(self, index: int | slice) -> object:
        return self.under[index]

    def __setitem__(self, index: int | slice, value: object) -> None:
        Deadly.left -= 1
        if Deadly.left == 0 and not Deadly.after:
            die()
        self.under[index] = value  # type: ignore[assignment]
        if Deadly.left == 0:
            die()


def deadly(marks: Marks, store: int, after: bool) -> Marks:
    Deadly.left, Deadly.after = store, after
    marks._cells = Deadly(marks._cells)  # type: ignore[assignment]
    marks._view = Deadly(marks._view)  # type: ignore[assignment]
    return marks


CLAIM_STORES = 4  # free the mark, key, deadline, leader


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("store", range(1, CLAIM_STORES + 1))
@pytest.mark.parametrize(
    "place", ["free", "of a dead leader", "past its deadline", "another's, past its deadline"]
)
def test_a_claimer_killed_at_any_store_leaves_a_free_lock_and_a_key_that_one_can_lead(
    segment: Segment, place: str, store: int, after: bool
) -> None:
    first, _, own = worker(segment, 1)
    second, _, _ = worker(segment, 2)
    if place == "of a dead leader":
        with Child(lambda _: worker(segment, 0)[0].claim(key(1), 0, FAR_NS)) as child:
            assert child.wait() == 0
    elif place == "past its deadline":
        assert first.claim(key(1), 0, 500) is Claim.LED
    elif place.startswith("another's"):
        for n in range(4):
            assert first.claim(key(9 - n), 0, 500 if n == 0 else FAR_NS) is Claim.LED

    def body(_: Say) -> None:
        deadly(worker(segment, 3)[0], store, after).claim(key(1), 500, FAR_NS)

    with Child(body) as child:
        assert child.wait() == -9
    assert own.mark_locks.try_lock(5)
    own.mark_locks.unlock(5)
    got = [marks.claim(key(1), 600, FAR_NS) for marks in (first, second)]
    assert got == [Claim.LED, (1, 1)]
    if place.startswith("another's"):
        assert second.claim(key(8), 600, FAR_NS) == (1, 1)


def test_a_claimer_stores_as_often_as_this_file_kills_it(segment: Segment) -> None:
    marks = deadly(worker(segment, 3)[0], 1000, False)
    assert marks.claim(key(1), 0, FAR_NS) is Claim.LED
    assert 1000 - Deadly.left == CLAIM_STORES


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("store", [1, 2])  # when it ended, the leader
@pytest.mark.parametrize("now", [0, FAR_NS - 1])
def test_a_leader_killed_while_it_clears_leaves_a_key_that_one_can_lead(
    segment: Segment, after: bool, store: int, now: int
) -> None:
    def body(_: Say) -> None:
        marks = worker(segment, 3)[0]
        assert marks.claim(key(1), 0, FAR_NS) is Claim.LED
        deadly(marks, store, after).clear(key(1), now)

    with Child(body) as child:
        assert child.wait() == -9
    first, second = worker(segment, 1)[0], worker(segment, 2)[0]
    assert [marks.claim(key(1), 0, FAR_NS) for marks in (first, second)] == [Claim.LED, (1, 1)]


def test_a_process_killed_under_the_lock_frees_it(segment: Segment, monkeypatch: pytest.MonkeyPatch) -> None:
    def body(_: Say) -> None:
        monkeypatch.setattr(module, "alive", lambda *_: die())
        marks, _, _ = worker(segment, 3)
        marks.claim(key(1), 0, FAR_NS)

    first, _, _ = worker(segment, 1)
    second, _, _ = worker(segment, 2)
    assert first.claim(key(1), 0, FAR_NS) is Claim.LED
    with Child(body) as child:
        assert child.wait() == -9
    assert second.claim(key(1), 0, FAR_NS) == (1, 1)


def test_a_successor_in_the_slot_is_not_the_leader_that_died_there(segment: Segment) -> None:
    first, slot, own = worker(segment, 0)
    other, _, _ = worker(segment, 1)
    assert first.claim(key(1), 0, FAR_NS) is Claim.LED
    own.close()
    successor, again, _ = worker(segment, 0)
    assert again.generation == slot.generation + 1
    assert other.claim(key(1), 0, FAR_NS) is Claim.LED
    assert successor.claim(key(1), 0, FAR_NS) == (1, 1)


def test_a_life_is_one_generation_of_a_slot_whose_lock_is_held(segment: Segment) -> None:
    _, slot, own = worker(segment, 2)
    for view in (segment, own):
        assert alive(view, 2, slot.generation)
        assert not alive(view, 2, slot.generation + 1)
        assert not alive(view, 1, 0)
        assert not alive(view, GEOMETRY.slots, 0)
        assert not alive(view, -1, 0)
        assert not alive(view, 1 << 31, 1)
    own.close()
    assert not alive(segment, 2, slot.generation)


def test_the_stores_of_one_key_end_where_the_region_ends(segment: Segment) -> None:
    marks, _, _ = worker(segment, 0)
    for n in range(4):
        assert marks.claim(key(n, stripe=MARK_STRIPES - 1), 0, FAR_NS) is Claim.LED
    at = segment.layout.marks_at + (MARK_STRIPES - 1) * MARK_STRIPE_CELLS
    assert not any(segment.cells[segment.layout.sticky_at : at])
    assert all(segment.cells[at + 8 * i] for i in range(4))
