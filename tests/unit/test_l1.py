"""L1: what was stored last is found, or nothing; room is made by age and by use."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.cache.arena import ROW_CELLS, WAYS, Arena, ArenaGeometry
from penstock.cache.digest import Key
from penstock.cache.entry import UNIT_BYTES, pack, packed_bytes
from penstock.cache.index import PLACE
from penstock.cache.l1 import L1

NOW_MS = 1_700_000_000_000
LATER_MS = NOW_MS + 60_000
STAMP = 3
MIB = 1 << 20
GEOMETRY = ArenaGeometry.of(256 * 1024, 2000, 4)


def nobody(_slot: int, _generation: int) -> bool:
    return False


def key_of(number: int) -> Key:
    return Key(hashlib.sha256(number.to_bytes(8, "big")).digest())


def put(l1: L1, key: Key, value: bytes, *, now_ms: int = NOW_MS, expires_ms: int = LATER_MS) -> bool:
    return l1.put(key, pack(key, STAMP, now_ms, expires_ms, value), now_ms)


def get(l1: L1, key: Key, *, now_ms: int = NOW_MS) -> bytes | None:
    entry = l1.get(key, STAMP, now_ms)
    return None if entry is None else entry.value


def in_set(number: int, geometry: ArenaGeometry, home: int = 8) -> Key:
    """A key whose home is a given word; another for each number."""
    return Key(PLACE.pack(home + (number + 1) * geometry.sets * WAYS, number % 256)[:5] + key_of(number)[5:])


@pytest.fixture
def arena() -> Iterator[Arena]:
    arena = Arena.create(None, GEOMETRY, 0)
    yield arena
    arena.close()


@pytest.fixture
def l1(arena: Arena) -> L1:
    return L1(arena, (0, 1), nobody)


def test_what_was_put_is_found_by_every_process_with_its_times(arena: Arena, l1: L1) -> None:
    assert put(l1, key_of(1), b"value")
    entry = L1(Arena.attach(arena.fd), None, nobody).get(key_of(1), STAMP, NOW_MS + 5)
    assert entry is not None
    assert (entry.value, entry.created_ms, entry.expires_ms) == (b"value", NOW_MS, LATER_MS)
    assert get(l1, key_of(2)) is None


def test_the_last_value_put_is_the_one_found(l1: L1) -> None:
    for i in range(1000):
        assert put(l1, key_of(i % 3), b"%d" % i)
        assert get(l1, key_of(i % 3)) == b"%d" % i
    assert (l1.counts.stored, l1.counts.replaced) == (1000, 997)


def test_an_entry_is_found_until_it_expires(l1: L1) -> None:
    put(l1, key_of(1), b"value", expires_ms=NOW_MS + 10)
    assert get(l1, key_of(1), now_ms=NOW_MS + 9) == b"value"
    assert get(l1, key_of(1), now_ms=NOW_MS + 10) is None


def test_an_entry_of_another_stamp_is_a_miss_and_is_replaced(l1: L1) -> None:
    put(l1, key_of(1), b"before the flush")
    assert l1.get(key_of(1), STAMP + 1, NOW_MS) is None
    l1.put(key_of(1), pack(key_of(1), STAMP + 1, NOW_MS, LATER_MS, b"after"), NOW_MS)
    entry = l1.get(key_of(1), STAMP + 1, NOW_MS)
    assert entry is not None
    assert entry.value == b"after"
    assert get(l1, key_of(1)) is None


def test_what_was_removed_is_gone_and_nothing_else(l1: L1) -> None:
    for i in range(50):
        put(l1, key_of(i), b"value")
    l1.remove(key_of(7))
    l1.remove(key_of(999))
    assert [i for i in range(50) if get(l1, key_of(i)) is None] == [7]


def test_entries_of_every_size_up_to_the_most_are_found_whole(l1: L1) -> None:
    for size in [*range(200), 1023, 1024, 1999, 2000]:
        value = random.Random(size).randbytes(size)
        assert put(l1, key_of(size), value)
        assert get(l1, key_of(size)) == value


def test_two_mebibytes_are_stored_and_found_whole_in_a_cache_of_a_few() -> None:
    arena = Arena.create(None, ArenaGeometry.of(20 * MIB, 2 * MIB, 4), 0)
    l1 = L1(arena, (0, 1), nobody)
    values = {i: random.Random(i).randbytes(2 * MIB) for i in range(6)}
    for i, value in values.items():
        assert put(l1, key_of(i), value)
        assert get(l1, key_of(i)) == value
    for i in range(100, 3000):
        assert put(l1, key_of(i), bytes(700))
    assert put(l1, key_of(50), values[0])
    assert get(l1, key_of(50)) == values[0]
    found = [i for i in values if get(l1, key_of(i)) is not None]
    assert all(get(l1, key_of(i)) == values[i] for i in found)
    assert len(found) >= 4
    arena.close()


def test_what_is_too_large_is_refused_counted_and_harms_nothing(l1: L1) -> None:
    put(l1, key_of(1), b"small")
    largest = packed_bytes(2000)
    assert put(l1, key_of(2), bytes(largest - 72))
    assert not put(l1, key_of(3), bytes(largest - 71))
    assert l1.counts.too_large == 1
    assert get(l1, key_of(1)) == b"small"
    assert get(l1, key_of(3)) is None


@pytest.mark.parametrize("packed", [b"", bytes(64), bytes(128), bytes(1000)])
def test_bytes_that_were_not_packed_for_the_key_are_refused(l1: L1, packed: bytes) -> None:
    with pytest.raises(ValueError, match="not packed for this key"):
        l1.put(key_of(1), packed, NOW_MS)
    with pytest.raises(ValueError, match="not packed for this key"):
        l1.put(key_of(1), pack(key_of(2), STAMP, NOW_MS, LATER_MS, b"another's"), NOW_MS)


def test_an_l1_without_an_owner_reads_and_stores_nothing(arena: Arena, l1: L1) -> None:
    put(l1, key_of(1), b"value")
    reader = L1(Arena.attach(arena.fd), None, nobody)
    assert not put(reader, key_of(2), b"value")
    assert reader.counts.skipped == 1
    assert get(reader, key_of(1)) == b"value"
    assert reader.used_bytes() == l1.used_bytes() == packed_bytes(5)


def test_the_oldest_go_first_and_nearly_all_of_the_room_is_used(l1: L1) -> None:
    size = packed_bytes(700)
    room = GEOMETRY.data_bytes // size
    for i in range(5 * room):
        put(l1, key_of(i), bytes(700))
    found = [i for i in range(5 * room) if get(l1, key_of(i)) is not None]
    assert len(found) > 0.9 * room
    assert min(found) >= 5 * room - len(found) - 2 * GEOMETRY.segment_bytes // size
    assert l1.counts.evicted + len(found) == 5 * room
    assert l1.used_bytes() <= l1.capacity_bytes == GEOMETRY.data_bytes


def test_what_is_read_is_carried_over_while_others_go(l1: L1) -> None:
    hot = [key_of(i) for i in range(40)]
    for key in hot:
        put(l1, key, b"hot " + key)
    for i in range(1000, 4000):
        put(l1, key_of(i), bytes(700))
        for key in hot[i % 4 :: 4]:
            assert get(l1, key) == b"hot " + key
    assert l1.counts.carried > len(hot)
    assert get(l1, key_of(1000)) is None


def test_an_entry_read_once_is_carried_once(l1: L1) -> None:
    put(l1, key_of(1), b"read once")
    get(l1, key_of(1))
    for i in range(1000, 4000):
        put(l1, key_of(i), bytes(700))
    assert l1.counts.carried == 1
    assert get(l1, key_of(1)) is None


def test_when_everything_was_read_there_is_room_for_what_is_new_all_the_same(l1: L1) -> None:
    for i in range(2000):
        assert put(l1, key_of(i), bytes(700))
        for j in range(max(0, i - 300), i + 1, 7):
            get(l1, key_of(j))
    assert get(l1, key_of(1999)) == bytes(700)


def test_the_expired_go_though_they_were_read_and_are_not_called_evicted(l1: L1) -> None:
    for i in range(100):
        put(l1, key_of(i), bytes(700), expires_ms=NOW_MS + 10)
        assert get(l1, key_of(i)) is not None
    room = GEOMETRY.data_bytes // packed_bytes(700)
    for i in range(1000, 1000 + room):
        put(l1, key_of(i), bytes(700), now_ms=NOW_MS + 10)
    assert (l1.counts.carried, l1.counts.evicted) == (0, 0)
    assert 90 <= l1.counts.expired <= 100


def test_a_full_set_of_the_index_gives_up_its_oldest_that_was_not_read(arena: Arena, l1: L1) -> None:
    keys = [in_set(i, GEOMETRY) for i in range(WAYS)]
    for i, key in enumerate(keys):
        put(l1, key, b"%d" % i, now_ms=NOW_MS + i)
    assert all(get(l1, key) == b"%d" % i for i, key in enumerate(keys) if i not in (3, 5))
    put(l1, in_set(WAYS, GEOMETRY), b"new", now_ms=NOW_MS + 20)
    assert get(l1, in_set(WAYS, GEOMETRY)) == b"new"
    assert [i for i, key in enumerate(keys) if get(l1, key) is None] == [3]
    assert l1.counts.evicted == 1


def test_a_full_set_whose_entries_were_all_read_gives_up_its_oldest(l1: L1) -> None:
    keys = [in_set(i, GEOMETRY) for i in range(WAYS)]
    for i, key in enumerate(keys):
        put(l1, key, b"value", now_ms=NOW_MS + 10 - i)
        get(l1, key, now_ms=NOW_MS + 20)
    put(l1, in_set(WAYS, GEOMETRY), b"new", now_ms=NOW_MS + 20)
    assert [i for i, key in enumerate(keys) if get(l1, key, now_ms=NOW_MS + 20) is None] == [WAYS - 1]
    # From then on none counted as read until the look-ups of the last line.
    put(l1, in_set(WAYS + 1, GEOMETRY), b"newer", now_ms=NOW_MS + 30)
    assert get(l1, in_set(WAYS, GEOMETRY), now_ms=NOW_MS + 30) is None


def test_a_full_set_gives_up_what_is_expired_before_what_is_not(l1: L1) -> None:
    keys = [in_set(i, GEOMETRY) for i in range(WAYS)]
    for i, key in enumerate(keys):
        put(l1, key, b"value", now_ms=NOW_MS + i, expires_ms=NOW_MS + (10 if i == 6 else 60_000))
    put(l1, in_set(WAYS, GEOMETRY), b"new", now_ms=NOW_MS + 10)
    assert [i for i, key in enumerate(keys) if get(l1, key, now_ms=NOW_MS + 10) is None] == [6]
    assert (l1.counts.evicted, l1.counts.expired) == (0, 1)


def test_a_set_never_names_one_key_twice(arena: Arena, l1: L1) -> None:
    keys = [in_set(i, GEOMETRY) for i in range(4)]
    for key in keys:
        put(l1, key, b"first")  # the first has its home, the others lie elsewhere
    l1.remove(keys[0])
    put(l1, keys[1], b"second")  # its home is free now, its word is not there
    put(l1, keys[1], b"third")
    assert get(l1, keys[1]) == b"third"
    l1.remove(keys[1])
    assert get(l1, keys[1]) is None


def test_two_words_for_one_key_become_one_with_the_next_put(arena: Arena, l1: L1) -> None:
    """As two writers leave them that stored one key at once."""
    key = in_set(0, GEOMETRY)
    put(l1, key, b"old")
    first = GEOMETRY.index_at // 8 + 8
    arena.cells[first + 5] = arena.cells[first]
    put(l1, key, b"new")
    assert get(l1, key) == b"new"
    assert sum(1 for i in range(WAYS) if arena.cells[first + i]) == 1


def test_closing_gives_the_segment_up_and_the_next_process_goes_on_in_it(arena: Arena, l1: L1) -> None:
    for i in range(1002):
        put(l1, key_of(i), bytes(700))
    rows = slice(GEOMETRY.rows_at // 8, GEOMETRY.index_at // 8, ROW_CELLS)
    open_row = arena.cells[1:][rows].tolist().index(0 << 32 | 1)
    before = arena.cells[rows].tolist()
    l1.close()
    l1.close()
    assert not any(arena.cells[1:][rows].tolist())
    other = L1(Arena.attach(arena.fd), (1, 1), lambda *_: True)
    put(other, key_of(2), b"second")
    assert arena.cells[1:][rows].tolist().index(1 << 32 | 1) == open_row
    after = arena.cells[rows].tolist()
    assert after[open_row] & 0x1FFFFF == (before[open_row] & 0x1FFFFF) + packed_bytes(6) // UNIT_BYTES
    assert get(other, key_of(1001)) == bytes(700)


SIZES = st.integers(0, 1900)


@settings(max_examples=settings.default.max_examples // 2)
@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["put", "get", "remove", "late"]), st.integers(0, 60), SIZES, st.integers(0, 2)
        ),
        max_size=400,
    )
)
def test_whatever_is_found_is_what_a_dictionary_has(steps: list[tuple[str, int, int, int]]) -> None:
    """Three writers by turns over a cache of a few dozen entries; a miss is always allowed, another value never."""
    geometry = ArenaGeometry.of(110 * 1024, 1900, 6)
    arena = Arena.create(None, geometry, 0)
    l1s = [L1(Arena.attach(arena.fd), (i, 1), lambda *_: True) for i in range(3)]
    model: dict[Key, tuple[bytes, int]] = {}
    now_ms = NOW_MS
    for count, (what, number, size, who) in enumerate(steps):
        l1, key = l1s[who], key_of(number)
        if what == "put":
            value = b"%d %d " % (number, count) + bytes(size)
            value = value[: geometry.max_entry_bytes]
            assert put(l1, key, value, now_ms=now_ms, expires_ms=now_ms + size)
            model[key] = (value, now_ms + size)
            if size:
                assert get(l1s[who - 1], key, now_ms=now_ms) == value
        elif what == "remove":
            l1.remove(key)
            model.pop(key, None)
        elif what == "late":
            now_ms += size // 10
        found = get(l1, key, now_ms=now_ms)
        if found is not None:
            value, expires_ms = model[key]
            assert found == value
            assert now_ms < expires_ms
    assert 0 <= l1s[0].used_bytes() <= geometry.data_bytes
    for l1 in l1s:
        l1.close()
    arena.close()
