"""The shared segment: created whole or not at all, opened only when published."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock.cache import segment as module
from penstock.cache.layout import H_GEOMETRY, H_MAGIC, H_VERSION, Geometry, Layout
from penstock.cache.segment import (
    NoRoom,
    NotReady,
    Segment,
    WrongVersion,
    owner_alive,
    process_start,
    write_header,
)

from .forked import Child, die, linger

SMALL = Geometry(slots=4, backends=8, models=4, counter_bytes=4096, gates=4)
ALL_ONES = 0xFFFF_FFFF_FFFF_FFFF


def make(path: Path | None, geometry: Geometry = SMALL) -> Segment:
    start = process_start(os.getpid())
    assert start is not None
    return Segment.create(
        None if path is None else str(path), geometry, owner_pid=os.getpid(), owner_start=start
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "segment"


@pytest.fixture
def segment(path: Path) -> Iterator[Segment]:
    segment = make(path)
    yield segment
    segment.close()


def test_what_is_created_opens_with_the_same_geometry_and_owner(segment: Segment, path: Path) -> None:
    segment.cells[segment.layout.tally_at] = 7
    other = Segment.open(str(path))
    assert other.geometry == SMALL
    assert other.owner == (os.getpid(), process_start(os.getpid()))
    assert other.cells[other.layout.tally_at] == 7
    assert other.generation == 0
    other.close()


def test_the_file_is_private_and_every_page_of_it_is_there(segment: Segment, path: Path) -> None:
    info = path.stat()
    assert stat.S_IMODE(info.st_mode) == 0o600
    assert info.st_size == Layout.of(SMALL).total_bytes
    assert info.st_blocks * 512 >= info.st_size


def test_an_existing_file_is_neither_replaced_nor_removed(segment: Segment, path: Path) -> None:
    with pytest.raises(FileExistsError):
        make(path)
    Segment.open(str(path)).close()


def test_a_link_is_not_followed(segment: Segment, path: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(path)
    with pytest.raises(OSError, match="symbolic links"):
        Segment.open(str(link))


class Recorder(dict[int, int]):
    """Cells that remember the order of the stores."""

    def __init__(self) -> None:
        super().__init__()
        self.stores: list[tuple[int, int]] = []

    def __setitem__(self, key: int, value: int) -> None:
        self.stores.append((key, value))


def test_a_creator_killed_at_any_store_leaves_a_segment_that_is_not_ready(path: Path) -> None:
    recorder = Recorder()
    write_header(recorder, SMALL, 1, 2)
    *before, last = recorder.stores
    assert last[0] == H_VERSION
    content = bytearray(Layout.of(SMALL).total_bytes)
    for index, value in [(0, 0), *before]:
        memoryview(content).cast("Q")[index] = value
        path.write_bytes(content)
        with pytest.raises(NotReady):
            Segment.open(str(path))
    memoryview(content).cast("Q")[last[0]] = last[1]
    path.write_bytes(content)
    Segment.open(str(path)).close()


def test_a_creator_killed_before_it_publishes_leaves_a_segment_that_is_not_ready(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def body(_say: object) -> None:
        monkeypatch.setattr(module, "write_header", lambda *_: die())
        make(path)

    with Child(body) as child:
        assert child.wait() == -9
    with pytest.raises(NotReady):
        Segment.open(str(path))


def test_an_opener_racing_the_creator_never_sees_a_half_built_map(path: Path) -> None:
    for _ in range(30):
        with Child(lambda _: make(path)) as child:
            while True:
                try:
                    opened = Segment.open(str(path))
                    break
                except (FileNotFoundError, NotReady):
                    continue
            assert opened.geometry == SMALL
            assert opened.owner == (child.pid, process_start(child.pid) or opened.owner[1])
            assert not any(opened.cells[opened.layout.slots_at :])
            assert child.wait() == 0
        opened.close()
        path.unlink()


@pytest.mark.parametrize("content", [b"", b"PENSTOCK", bytes(4095)])
def test_a_file_too_short_for_a_header_is_not_ready(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(NotReady):
        Segment.open(str(path))


@pytest.mark.parametrize(
    ("cell", "value", "says"),
    [
        (H_VERSION, 99, "layout version 99"),
        (H_MAGIC, 1, "not a segment"),
        (H_GEOMETRY, 5, "damaged"),
    ],
)
def test_another_layout_is_a_wrong_version(
    segment: Segment, path: Path, cell: int, value: int, says: str
) -> None:
    segment.cells[cell] = value
    with pytest.raises(WrongVersion, match=says):
        Segment.open(str(path))


def test_a_truncated_file_is_a_wrong_version_and_no_sigbus(segment: Segment, path: Path) -> None:
    os.truncate(path, 8192)
    with pytest.raises(WrongVersion, match="8192 bytes"):
        Segment.open(str(path))


def test_a_full_file_system_is_no_room_with_the_figures_and_leaves_nothing(tmp_path: Path) -> None:
    mount = tmp_path / "tiny"
    mount.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "penstock-test", str(mount)],
        capture_output=True,
        check=False,
    )
    if done.returncode != 0:
        pytest.skip("this user may not mount a tmpfs")
    try:
        with pytest.raises(NoRoom, match=r"needs 6\.\d MiB in .*tiny, where 1\.0 MiB are free") as caught:
            make(mount / "segment", Geometry(slots=4, backends=8, models=4, counter_bytes=1 << 20))
        assert caught.value.free_bytes == 1024 * 1024
        assert caught.value.needed_bytes > 4 * 1024 * 1024
        assert list(mount.iterdir()) == []
    finally:
        subprocess.run(["umount", str(mount)], check=True)


def test_no_space_left_is_no_room_and_leaves_no_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(NoRoom, match="the shared segment needs"):
        make(path)
    assert not path.exists()
    with pytest.raises(NoRoom, match="in memory, where too little is free"):
        make(None)


def test_a_memfd_is_attached_by_its_descriptor_and_cannot_shrink() -> None:
    segment = make(None)
    cell = segment.layout.tally_at

    def body(say: object) -> None:
        Segment.attach(segment.fd).cells[cell] = 42

    with Child(body) as child:
        assert child.wait() == 0
    assert segment.cells[cell] == 42
    with pytest.raises(PermissionError):
        os.ftruncate(segment.fd, 4096)
    segment.close()


def test_an_attached_segment_outlives_its_name_and_has_locks_of_its_own(segment: Segment, path: Path) -> None:
    path.unlink()
    other = Segment.attach(segment.fd)
    assert segment.slot_locks.try_lock(0)
    assert not other.slot_locks.try_lock(0)
    assert not os.get_inheritable(other.fd)
    other.close()


def test_closing_frees_the_locks_even_while_a_row_still_looks_into_the_map(segment: Segment) -> None:
    other = Segment.attach(segment.fd)
    looking = other.cells[0:8]
    assert other.slot_locks.try_lock(1)
    assert other.gate_locks.try_lock(1)
    assert other.mark_locks.try_lock(1)
    other.close()
    other.close()
    assert segment.slot_locks.try_lock(1)
    assert segment.gate_locks.try_lock(1)
    assert segment.mark_locks.try_lock(1)
    assert looking[0] != 0


def test_a_store_of_a_cell_is_never_seen_half_done(segment: Segment) -> None:
    cell = segment.layout.tally_at

    def body(say: object) -> None:
        cells = Segment.attach(segment.fd).cells
        while True:
            cells[cell] = ALL_ONES
            cells[cell] = 0

    cells, seen = segment.cells, dict.fromkeys((0, ALL_ONES), 0)
    with Child(body):
        while min(seen.values()) < 1000 or sum(seen.values()) < 300_000:
            value = cells[cell]
            assert value in seen, hex(value)
            seen[value] += 1


def test_a_generation_is_announced_after_its_digest(segment: Segment) -> None:
    def body(say: object) -> None:
        mine = Segment.attach(segment.fd)
        generation = 0
        while True:
            generation += 1
            mine.publish_generation(generation, generation)

    with Child(body):
        while segment.generation < 10_000:
            generation = segment.generation
            assert segment.config_digest >= generation


def test_an_owner_is_alive_only_while_that_very_process_runs(segment: Segment) -> None:
    assert owner_alive(segment)
    start = process_start(os.getpid())
    assert start is not None
    segment.take_over(os.getpid(), start + 1)
    assert not owner_alive(segment)
    segment.take_over(0, 0)
    assert not owner_alive(segment)


def test_a_zombie_owner_counts_as_dead(segment: Segment) -> None:
    with Child(lambda _: linger()) as child:
        start = process_start(child.pid)
        assert start is not None
        segment.take_over(child.pid, start)
        assert owner_alive(segment)
        os.kill(child.pid, 9)
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert os.path.exists(f"/proc/{child.pid}/stat")
        assert not owner_alive(segment)
        child.wait()
        assert not owner_alive(segment)


def test_a_process_name_full_of_parentheses_does_not_move_the_start_time() -> None:
    def body(say: object) -> None:
        Path("/proc/self/comm").write_text("a) R 1 (b) 2 3")
        assert callable(say)
        say(b"renamed")
        linger()

    with Child(lambda _: linger()) as plain, Child(body) as odd:
        assert odd.hear() == b"renamed"
        first, second = process_start(plain.pid), process_start(odd.pid)
        assert first is not None
        assert second is not None
        assert 0 <= second - first <= 60 * os.sysconf("SC_CLK_TCK")
