"""L1 over damaged memory: a miss, and room again; never another value, never an exception."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from penstock.cache.arena import H_SEQUENCE, ROW_CELLS, WAYS, Arena, ArenaGeometry
from penstock.cache.digest import Key
from penstock.cache.entry import pack, packed_bytes
from penstock.cache.index import LOCATION, PLACE
from penstock.cache.l1 import L1

NOW_MS = 1_700_000_000_000
LATER_MS = NOW_MS + 60_000
STAMP = 3
GEOMETRY = ArenaGeometry.of(160 * 1024, 1000, 4)
CELLS = st.one_of(
    st.integers(0, 2**64 - 1),
    st.sampled_from([0, 1, 2**64 - 1, 2**63, 2**40 - 1, (2**40 - 1) & -64]),
    st.integers(0, GEOMETRY.total_bytes + 4096).map(lambda at: at | 0xFFFF << 40 | 7 << 56),
)


def anybody(slot: int, _generation: int) -> bool:
    assert slot < GEOMETRY.slots  # a slot that cannot be is not asked about
    return slot == 1


def key_of(number: int) -> Key:
    return Key(hashlib.sha256(number.to_bytes(8, "big")).digest())


def value_of(key: Key, size: int) -> bytes:
    return (key * (size // 32 + 1))[:size]


def put(l1: L1, key: Key, size: int = 500) -> bool:
    return l1.put(key, pack(key, STAMP, NOW_MS, LATER_MS, value_of(key, size)), NOW_MS)


def check(l1: L1, key: Key) -> bool:
    """Whether it is found; what is found must be right."""
    entry = l1.get(key, STAMP, NOW_MS)
    if entry is None:
        return False
    assert entry.value == value_of(key, len(entry.value))
    assert (entry.created_ms, entry.expires_ms) == (NOW_MS, LATER_MS)
    return True


def word_of(arena: Arena, key: Key) -> int:
    """The cell of the key's home word."""
    return GEOMETRY.index_at // 8 + (PLACE.unpack(key)[0] & GEOMETRY.sets * WAYS - 1)


@pytest.fixture
def arena() -> Iterator[Arena]:
    arena = Arena.create(None, GEOMETRY, 0)
    yield arena
    arena.close()


def test_every_byte_of_an_entry_changed_under_the_reader_is_a_miss(arena: Arena) -> None:
    l1, key = L1(arena, (0, 1), anybody), key_of(1)
    put(l1, key, 700)
    at = arena.cells[word_of(arena, key)] & LOCATION
    assert check(l1, key)
    for i in range(at, at + packed_bytes(700)):
        for flip in (0x01, 0x80, 0xFF):
            arena.map[i] ^= flip
            assert not check(l1, key), (i, flip)
            arena.map[i] ^= flip
    assert check(l1, key)


def test_every_bit_of_a_word_changed_under_the_reader_is_a_miss(arena: Arena) -> None:
    l1, key = L1(arena, (0, 1), anybody), key_of(1)
    put(l1, key, 700)
    cell = word_of(arena, key)
    for bit in range(1, 64):
        arena.cells[cell] ^= 1 << bit
        # Bits 1 to 5 are those of a location that is a multiple of 64: they are not looked at.
        assert check(l1, key) == (bit < 6), bit
        arena.cells[cell] ^= 1 << bit
    assert check(l1, key)


def test_another_keys_entry_in_place_of_ones_own_is_a_miss(arena: Arena) -> None:
    l1, mine, other = L1(arena, (0, 1), anybody), key_of(1), key_of(3)
    put(l1, mine)
    put(l1, other)
    tag = arena.cells[word_of(arena, mine)] >> 56 << 56
    arena.cells[word_of(arena, mine)] = arena.cells[word_of(arena, other)] & (1 << 56) - 1 | tag
    assert not check(l1, mine)
    assert check(l1, other)


@given(word=CELLS, tagged=st.booleans())
@example(word=0xFFFF << 40, tagged=True)  # the whole header and more
@example(word=0, tagged=True)
def test_a_rubbish_word_is_a_miss_and_the_next_put_is_found(word: int, tagged: bool) -> None:
    arena = Arena.create(None, GEOMETRY, 0)
    l1 = L1(arena, (0, 1), anybody)
    key = key_of(7)
    cell = word_of(arena, key)
    if tagged:
        word = word & (1 << 56) - 1 | PLACE.unpack(key)[1] << 56
    for first in (cell, cell & -WAYS):
        for i in range(first, (cell & -WAYS) + WAYS):
            arena.cells[i] = word
        assert not check(l1, key)
    assert put(l1, key)
    assert check(l1, key)
    l1.remove(key)
    assert not check(l1, key)
    arena.close()


@settings(max_examples=settings.default.max_examples // 5)
@given(
    rows=st.lists(st.tuples(CELLS, CELLS | st.sampled_from([1 << 32 | 5, 0 << 32 | 1]), CELLS), max_size=80),
    sequence=CELLS,
    seed=st.integers(0, 2**32),
    what=st.sets(st.sampled_from(["words", "data", "heads"])),
)
def test_an_arena_full_of_rubbish_gives_no_wrong_value_no_exception_and_room_again(
    rows: list[tuple[int, int, int]], sequence: int, seed: int, what: set[str]
) -> None:
    arena = Arena.create(None, GEOMETRY, 0)
    rng = random.Random(seed)
    g = GEOMETRY
    before = L1(arena, (2, 1), anybody)
    for i in range(150):
        put(before, key_of(i), rng.randrange(1000))
        check(before, key_of(rng.randrange(150)))
    at = g.rows_at // 8
    for i, row in enumerate(rows[: g.segments]):
        for j, value in enumerate(row):
            arena.cells[at + i * ROW_CELLS + j] = value
    arena.cells[H_SEQUENCE] = sequence
    if "words" in what:
        arena.map[g.index_at : g.data_at] = rng.randbytes(g.data_at - g.index_at)
    if "data" in what:
        arena.map[g.data_at : g.total_bytes] = rng.randbytes(g.total_bytes - g.data_at)
    if "heads" in what:  # lengths that lead anywhere
        for i in range(g.data_at, g.data_at + g.data_bytes, 64):
            arena.cells[(i + 64) // 8] = 1 << 32 | rng.choice([0, 63, 64, 65, 1000, 4096, 2**31])
    l1 = L1(arena, (0, 1), anybody)
    for i in range(100, 400):
        put(l1, key_of(i), rng.randrange(1000))
        check(l1, key_of(rng.randrange(400)))
    assert 0 <= l1.used_bytes() <= l1.capacity_bytes
    # Rows that seem to be a living worker's (slot 1) stay its own; all others can be had, and words turn over.
    theirs = sum(1 for _, owner, _ in rows[: g.segments] if owner >> 32 == 1)
    if theirs < g.segments:
        for i in range(1000, 1010):
            assert put(l1, key_of(i), 10)
            assert check(l1, key_of(i))
    arena.close()


def test_a_row_that_no_process_can_have_stored_counts_as_an_empty_segment(arena: Arena) -> None:
    rows = GEOMETRY.rows_at // 8
    for state in (2**64 - 1, 0x1FFFFF, 5 << 21 | 4 << 42, 3 | 2 << 21 | 4 << 42):
        for i in range(GEOMETRY.segments):
            arena.cells[rows + i * ROW_CELLS] = state
        l1 = L1(arena, (0, 1), anybody)
        assert l1.used_bytes() == 0
        assert put(l1, key_of(1))
        assert check(l1, key_of(1))
        assert l1.used_bytes() == packed_bytes(500)
        l1.close()
