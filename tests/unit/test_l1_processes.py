"""L1 between processes: one writes what another reads, and a dead one's segment is taken up."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from itertools import count

import pytest

from penstock.cache.arena import ROW_CELLS, Arena, ArenaGeometry
from penstock.cache.digest import Key
from penstock.cache.entry import UNIT_BYTES, pack, packed_bytes
from penstock.cache.l1 import L1
from penstock.cache.log import Log

from .forked import Child, die, linger

NOW_MS = 1_700_000_000_000
LATER_MS = NOW_MS + 60_000
STAMP = 3
GEOMETRY = ArenaGeometry.of(256 * 1024, 2000, 8)
UNITS = GEOMETRY.segment_bytes // UNIT_BYTES
Say = Callable[[bytes], object]


def key_of(number: int) -> Key:
    return Key(hashlib.sha256(number.to_bytes(8, "big")).digest())


def value_of(key: Key, size: int) -> bytes:
    return random.Random(key).randbytes(size)


def put(l1: L1, number: int, size: int = 500) -> bool:
    key = key_of(number)
    return l1.put(key, pack(key, STAMP, NOW_MS, LATER_MS, value_of(key, size)), NOW_MS)


def check(l1: L1, number: int) -> bool:
    """Whether it is found; what is found must be right."""
    key = key_of(number)
    entry = l1.get(key, STAMP, NOW_MS)
    if entry is None:
        return False
    assert entry.value == value_of(key, len(entry.value))
    return True


def rows(arena: Arena) -> list[tuple[int, int, int, int]]:
    """w, c and e in units, and the owner, of every segment."""
    at = GEOMETRY.rows_at // 8
    found = []
    for i in range(at, at + GEOMETRY.segments * ROW_CELLS, ROW_CELLS):
        state = arena.cells[i]
        found.append((state & 0x1FFFFF, state >> 21 & 0x1FFFFF, state >> 42, arena.cells[i + 1]))
    return found


def living(*slots: int) -> Callable[[int, int], bool]:
    return lambda slot, _generation: slot in slots


@pytest.fixture
def arena() -> Iterator[Arena]:
    arena = Arena.create(None, GEOMETRY, 0)
    yield arena
    arena.close()


def test_what_one_process_stored_another_finds(arena: Arena) -> None:
    def body(_: Say) -> None:
        l1 = L1(Arena.attach(arena.fd), (3, 1), living(3))
        assert all(put(l1, i) for i in range(100))
        l1.close()

    with Child(body) as child:
        assert child.wait() == 0
    reader = L1(arena, None, living())
    assert all(check(reader, i) for i in range(100))


def test_writers_in_several_processes_keep_their_own_and_read_each_others(arena: Arena) -> None:
    """Three processes turn a small cache over many times, with keys in common; a fourth reads all the while."""

    def writer(slot: int) -> Callable[[Say], None]:
        def body(say: Say) -> None:
            l1 = L1(Arena.attach(arena.fd), (slot, 1), living(1, 2, 3))
            rng = random.Random(slot)
            for _ in range(6000):
                put(l1, rng.randrange(600), rng.randrange(1900))
                check(l1, rng.randrange(600))
            say(b"%d" % l1.counts.stored)
            l1.close()

        return body

    reader = L1(Arena.attach(arena.fd), None, living(1, 2, 3))
    with Child(writer(1)) as first, Child(writer(2)) as second, Child(writer(3)) as third:
        found = 0
        for i in count():
            found += check(reader, i % 600)
            if found > 5000:
                break
        for child in (first, second, third):
            assert int(child.hear()) > 3000  # tiny segments: another was often taken at that moment
            assert child.wait() == 0
    assert not any(owner for *_, owner in rows(arena))
    assert reader.used_bytes() > 0.8 * GEOMETRY.data_bytes
    last = L1(arena, (0, 1), living(0))
    assert all(put(last, i) for i in range(10_000, 10_400))
    assert (
        sum(check(last, i) for i in range(10_000, 10_400))
        > 0.9 * GEOMETRY.data_bytes / packed_bytes(500) - 50
    )


def test_a_living_workers_segment_is_left_alone_and_a_dead_ones_is_gone_on_with(arena: Arena) -> None:
    def body(say: Say) -> None:
        l1 = L1(Arena.attach(arena.fd), (2, 7), living(2))
        put(l1, 1)
        say(b"stored")
        linger()

    with Child(body) as child:
        assert child.hear() == b"stored"
        mine = L1(arena, (0, 1), living(0, 2))
        for i in range(1000, 2000):
            assert put(mine, i)
        theirs = [row for row in rows(arena) if row[3] == 2 << 32 | 7]
        assert theirs == [(packed_bytes(500) // UNIT_BYTES, 0, 0, 2 << 32 | 7)]
        assert check(mine, 1)
        child.kill()
    mine.close()
    after = L1(Arena.attach(arena.fd), (0, 2), living(0))
    seen = False
    for i in range(2000, 3000):
        assert put(after, i)
        seen = seen or check(after, 1)
    assert seen
    assert not any(owner >> 32 == 2 for *_, owner in rows(arena))
    assert after.used_bytes() > 0.85 * GEOMETRY.data_bytes


def die_in(name: str, calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have this process die when that method of its log is called for that many times."""
    method = getattr(Log, name)
    left = iter(range(calls, -1, -1))

    def dying(log: Log, *given: object) -> object:
        return method(log, *given) if next(left) else die()

    monkeypatch.setattr(Log, name, dying)


@pytest.mark.parametrize(
    ("name", "calls"), [("_publish", 3), ("_publish", 200), ("_move", 20), ("_open", 30), ("_choose", 30)]
)
def test_a_writer_killed_inside_a_put_leaves_what_the_next_one_goes_on_with(
    arena: Arena, monkeypatch: pytest.MonkeyPatch, name: str, calls: int
) -> None:
    def body(_: Say) -> None:
        l1 = L1(Arena.attach(arena.fd), (2, 7), living(2))
        die_in(name, calls, monkeypatch)
        for i in count():
            put(l1, i % 700, 300 + i * 7 % 500)
            check(l1, i % 700 if i % 3 else i % 50)

    with Child(body) as child:
        assert child.wait() == -9
    for w, c, e, _ in rows(arena):
        assert w <= UNITS
        assert c <= e <= UNITS
        assert c == e or w <= c
    l1 = L1(arena, (0, 1), living(0))
    before = sum(check(l1, i) for i in range(700))
    assert before > 0
    for i in range(2000):
        assert put(l1, i)
        assert check(l1, i)
    room = GEOMETRY.data_bytes // packed_bytes(500)
    assert sum(check(l1, i) for i in range(2000)) > 0.85 * room
    assert l1.counts.skipped == 0
    assert not any(owner >> 32 == 2 for *_, owner in rows(arena))


def test_a_put_that_needs_a_segment_while_another_process_takes_one_is_skipped_and_counted(
    arena: Arena,
) -> None:
    l1 = L1(arena, (0, 1), living(0))
    assert put(l1, 1)
    other = Arena.attach(arena.fd)
    assert other.lock.try_lock(0)
    stored = [put(l1, i) for i in range(100, 200)]
    assert stored == sorted(stored, reverse=True)  # what fits the open segment, then none
    assert l1.counts.skipped == stored.count(False) > 50
    assert check(l1, 1)
    other.lock.unlock(0)
    assert put(l1, 300)
    assert check(l1, 300)
    assert arena.lock.try_lock(0)
    other.close()


def test_when_others_own_every_other_segment_a_writer_empties_its_own(arena: Arena) -> None:
    l1 = L1(arena, (0, 1), living(0, 5))
    assert put(l1, 1)
    at = GEOMETRY.rows_at // 8
    for i in range(GEOMETRY.segments):
        if arena.cells[at + i * ROW_CELLS + 1] == 0:
            arena.cells[at + i * ROW_CELLS + 1] = 5 << 32 | 1
    for i in range(100, 200):
        assert put(l1, i)
        assert check(l1, i)
    assert not check(l1, 1)
    assert (
        L1(Arena.attach(arena.fd), (1, 1), living(0, 5)).put(
            key_of(1), pack(key_of(1), STAMP, NOW_MS, LATER_MS, b""), NOW_MS
        )
        is False
    )
