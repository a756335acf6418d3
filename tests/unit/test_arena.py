"""The cache's file: laid out within its size, created whole or not at all, taken over only when it is the same."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.cache.arena import H_MAGIC, H_SHAPE, H_VERSION, WAYS, Arena, ArenaGeometry
from penstock.cache.digest import Key
from penstock.cache.entry import UNIT_BYTES, pack, packed_bytes
from penstock.cache.l1 import L1
from penstock.cache.layout import PAGE_BYTES
from penstock.cache.memory import NoRoom, NotReady, WrongVersion

from .forked import Child

SMALL = ArenaGeometry.of(256 * 1024, 1024, 4)
KEY = Key(bytes(range(32)))
MIB = 1 << 20


def always(_slot: int, _generation: int) -> bool:
    return True


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "arena"


@pytest.fixture
def arena(path: Path) -> Iterator[Arena]:
    arena = Arena.create(str(path), SMALL, 77)
    yield arena
    arena.close()


@given(
    size_bytes=st.integers(1, 1 << 38),
    max_entry_bytes=st.integers(1, 4 * MIB),
    slots=st.integers(1, 600),
)
def test_a_geometry_fits_its_size_or_is_refused_with_a_size_that_does(
    size_bytes: int, max_entry_bytes: int, slots: int
) -> None:
    try:
        geometry = ArenaGeometry.of(size_bytes, max_entry_bytes, slots)
    except ValueError as error:
        if "max_entry is" in str(error):
            assert packed_bytes(max_entry_bytes) > 0xFFFF * UNIT_BYTES
            return
        assert size_bytes < ArenaGeometry.smallest(max_entry_bytes, slots)
        return
    assert geometry.total_bytes <= size_bytes
    assert geometry.segment_bytes >= packed_bytes(max_entry_bytes)
    assert geometry.segment_bytes % UNIT_BYTES == 0
    assert geometry.segment_bytes // UNIT_BYTES < 1 << 21
    assert geometry.segments >= (slots + 1) // 2 + 2
    assert geometry.sets & (geometry.sets - 1) == 0
    regions = [
        geometry.rows_at,
        geometry.index_at,
        geometry.data_at,
        geometry.total_bytes,
    ]
    assert regions == sorted(regions)
    assert all(at % PAGE_BYTES == 0 for at in regions)
    assert geometry.data_at - geometry.index_at >= geometry.sets * WAYS * 8


@given(max_entry_bytes=st.integers(1, 4_000_000), slots=st.integers(1, 600))
def test_the_smallest_size_is_accepted_and_not_much_smaller_ones_are_refused(
    max_entry_bytes: int, slots: int
) -> None:
    smallest = ArenaGeometry.smallest(max_entry_bytes, slots)
    assert ArenaGeometry.of(smallest, max_entry_bytes, slots).segments >= 3
    with pytest.raises(ValueError, match="segments"):
        ArenaGeometry.of(smallest // 2, max_entry_bytes, slots)


@pytest.mark.parametrize("size_bytes", [64 * MIB, 256 * MIB, 256 * MIB + 1, 511 * MIB, 1 << 32, 1 << 34])
def test_most_of_a_size_is_for_entries(size_bytes: int) -> None:
    geometry = ArenaGeometry.of(size_bytes, 2 * MIB, 16)
    assert geometry.data_bytes > 0.95 * size_bytes
    assert geometry.sets * WAYS >= geometry.data_bytes / 512
    assert geometry.segment_bytes >= 2 * packed_bytes(2 * MIB)


def test_what_cannot_be_laid_out_is_one_clear_line() -> None:
    with pytest.raises(
        ValueError, match=r"a cache of 4\.0 MiB cannot hold 6 segments .*: give it 12\.\d MiB, or"
    ):
        ArenaGeometry.of(4 * MIB, 2 * MIB, 8)
    with pytest.raises(ValueError, match=r"max_entry is 5242880 bytes, the most is 4194\d\d\d"):
        ArenaGeometry.of(256 * MIB, 5 * MIB, 8)
    with pytest.raises(ValueError, match="the most is 274877906944"):
        ArenaGeometry.of(1 << 39, MIB, 8)
    with pytest.raises(ValueError, match="0 slots"):
        ArenaGeometry.of(MIB, 1, 0)


def test_the_largest_entry_allowed_is_allowed() -> None:
    most = 0xFFFF * UNIT_BYTES - packed_bytes(0)
    assert ArenaGeometry.of(256 * MIB, most, 8).segments
    with pytest.raises(ValueError, match="max_entry"):
        ArenaGeometry.of(256 * MIB, most + UNIT_BYTES + 1, 8)


def test_what_is_created_opens_with_geometry_digest_and_epochs(arena: Arena, path: Path) -> None:
    arena.epochs.set("all", 5)
    other = Arena.open(str(path))
    assert (other.geometry, other.digest, other.epochs.get("all")) == (SMALL, 77, 5)
    other.close()
    other.close()


def test_the_file_is_private_and_every_page_of_it_is_there(arena: Arena, path: Path) -> None:
    info = path.stat()
    assert stat.S_IMODE(info.st_mode) == 0o600
    assert info.st_size == SMALL.total_bytes
    assert info.st_blocks * 512 >= info.st_size


def test_an_arena_without_l1_has_epochs_and_an_l1_that_keeps_nothing() -> None:
    geometry = ArenaGeometry.of(0, 2 * MIB, 8)
    assert geometry.total_bytes < 64 * 1024
    arena = Arena.create(None, geometry, 0)
    arena.epochs.set("m:3", 9)
    l1 = L1(arena, (0, 1), always)
    for i in range(2000):
        key = Key(i.to_bytes(32, "little"))
        assert not l1.put(key, pack(key, 0, 0, 10, b"value"), 1)
        assert l1.get(key, 0, 1) is None
        l1.remove(key)
    assert (l1.used_bytes(), l1.capacity_bytes, l1.counts.skipped) == (0, 0, 2000)
    assert arena.epochs.names_set() == {"m:3": 9}
    l1.close()
    arena.close()


def test_an_existing_file_is_neither_replaced_nor_removed(arena: Arena, path: Path) -> None:
    with pytest.raises(FileExistsError):
        Arena.create(str(path), SMALL, 77)
    Arena.open(str(path)).close()


def test_a_file_that_is_not_published_is_not_ready(arena: Arena, path: Path) -> None:
    arena.cells[H_VERSION] = 0
    with pytest.raises(NotReady, match="not published"):
        Arena.open(str(path))
    os.truncate(path, 100)
    with pytest.raises(NotReady, match="no header"):
        Arena.open(str(path))


@pytest.mark.parametrize(
    ("cell", "value", "says"),
    [(H_VERSION, 99, "layout version 99"), (H_MAGIC, 1, "not a cache"), (H_SHAPE + 2, 1, "damaged")],
)
def test_another_layout_is_a_wrong_version(
    arena: Arena, path: Path, cell: int, value: int, says: str
) -> None:
    arena.cells[cell] = value
    with pytest.raises(WrongVersion, match=says):
        Arena.open(str(path))


def test_a_truncated_file_is_a_wrong_version_and_no_sigbus(arena: Arena, path: Path) -> None:
    os.truncate(path, 8192)
    with pytest.raises(WrongVersion, match="8192 bytes"):
        Arena.open(str(path))


def test_no_space_left_is_no_room_and_leaves_no_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(NoRoom, match=r"the cache needs 0\.2 MiB"):
        Arena.create(str(path), SMALL, 0)
    assert not path.exists()


def test_a_memfd_is_attached_by_its_descriptor_and_has_a_lock_of_its_own() -> None:
    arena = Arena.create(None, SMALL, 3)

    def body(_: object) -> None:
        mine = Arena.attach(arena.fd)
        mine.epochs.set("t:5", 42)
        assert not mine.lock.try_lock(0)

    assert arena.lock.try_lock(0)
    with Child(body) as child:
        assert child.wait() == 0
    assert arena.epochs.get("t:5") == 42
    with pytest.raises(PermissionError):
        os.ftruncate(arena.fd, 4096)
    arena.close()


def test_closing_frees_the_lock_even_while_an_l1_still_looks_into_the_map(arena: Arena) -> None:
    other = Arena.attach(arena.fd)
    l1 = L1(other, None, always)
    assert other.lock.try_lock(0)
    other.close()
    assert arena.lock.try_lock(0)
    assert l1.get(KEY, 0, 0) is None


def test_a_kept_file_of_the_same_geometry_and_digest_is_taken_over_with_entries_and_epochs(
    path: Path,
) -> None:
    arena = Arena.create(str(path), SMALL, 77)
    arena.epochs.set("all", 5)
    arena.epochs.mark_synced(True)
    L1(arena, (2, 9), always).put(KEY, pack(KEY, 5, 0, 10, b"kept"), 1)
    arena.close()

    kept = Arena.adopt(str(path), SMALL, 77)
    assert kept is not None
    entry = L1(kept, None, always).get(KEY, 5, 1)
    assert entry is not None
    assert entry.value == b"kept"
    assert kept.epochs.get("all") == 5
    assert not kept.epochs.synced
    # Its writer is dead, whatever `alive` says of a slot and generation of that name now.
    l1 = L1(kept, (3, 1), always)
    assert l1.put(KEY, pack(KEY, 5, 0, 10, b"new"), 1)
    assert l1.used_bytes() == 2 * packed_bytes(4)
    kept.close()


def test_a_file_of_another_geometry_or_digest_is_not_taken_over(arena: Arena, path: Path) -> None:
    L1(arena, (0, 1), always).put(KEY, pack(KEY, 5, 0, 10, b"value"), 1)
    before = path.read_bytes()
    other = ArenaGeometry.of(512 * 1024, 1024, 4)
    assert Arena.adopt(str(path), SMALL, 78) is None
    assert Arena.adopt(str(path), other, 77) is None
    assert Arena.adopt(str(path.with_name("none")), SMALL, 77) is None
    assert path.read_bytes() == before
    arena.cells[H_VERSION] = 2
    assert Arena.adopt(str(path), SMALL, 77) is None
    arena.cells[H_VERSION] = 0
    assert Arena.adopt(str(path), SMALL, 77) is None


def test_a_worker_of_an_earlier_life_stores_nothing_more_but_still_reads(arena: Arena, path: Path) -> None:
    old = L1(arena, (0, 1), always)
    assert old.put(KEY, pack(KEY, 0, 0, 10, b"old"), 1)
    kept = Arena.adopt(str(path), SMALL, 77)
    assert kept is not None
    new = L1(kept, (0, 1), always)  # the same slot and generation: those began anew
    assert new.put(KEY, pack(KEY, 0, 0, 10, b"new"), 1)
    assert not old.put(KEY, pack(KEY, 0, 0, 10, b"late"), 1)
    assert old.counts.skipped == 1
    old.close()
    for l1 in (old, new):
        entry = l1.get(KEY, 0, 1)
        assert entry is not None
        assert entry.value == b"new"
    assert new.put(KEY, pack(KEY, 0, 0, 10, b"newer"), 1)
    kept.close()
