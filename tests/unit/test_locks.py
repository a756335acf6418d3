"""OFD locks: exclusive between open file descriptions, freed by death, tried and never waited for."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from penstock.cache.locks import Stripes

from .forked import Child, linger

BASE = 1 << 40


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "locked"
    path.write_bytes(b"data")
    return path


@pytest.fixture
def open_stripes(path: Path) -> Iterator[Callable[[], Stripes]]:
    descriptors: list[int] = []

    def make() -> Stripes:
        descriptors.append(os.open(path, os.O_RDWR))
        return Stripes(descriptors[-1], BASE, 4)

    yield make
    for fd in descriptors:
        os.close(fd)


def test_a_lock_excludes_other_descriptions_and_leaves_its_neighbours_free(
    open_stripes: Callable[[], Stripes],
) -> None:
    mine, other = open_stripes(), open_stripes()
    assert mine.try_lock(1)
    assert not other.try_lock(1)
    assert other.try_lock(0)
    assert other.try_lock(2)
    mine.unlock(1)
    assert other.try_lock(1)


def test_a_lock_already_held_is_refused_to_its_own_holder(open_stripes: Callable[[], Stripes]) -> None:
    mine = open_stripes()
    assert mine.try_lock(3)
    assert not mine.try_lock(3)
    assert mine.holds(3)
    mine.unlock(3)
    assert not mine.holds(3)
    assert mine.try_lock(3)


def test_unlocking_what_one_does_not_hold_takes_nothing_from_the_holder(
    open_stripes: Callable[[], Stripes],
) -> None:
    mine, other = open_stripes(), open_stripes()
    assert mine.try_lock(0)
    other.unlock(0)
    assert not other.try_lock(0)


def test_asking_who_holds_a_lock_takes_nothing(open_stripes: Callable[[], Stripes]) -> None:
    mine, other = open_stripes(), open_stripes()
    assert not other.held_elsewhere(2)
    assert mine.try_lock(2)
    assert other.held_elsewhere(2)
    assert not mine.held_elsewhere(2)
    mine.unlock_all()
    assert not other.held_elsewhere(2)


def test_closing_another_descriptor_of_the_file_keeps_the_lock(
    open_stripes: Callable[[], Stripes], path: Path
) -> None:
    mine, other = open_stripes(), open_stripes()
    assert mine.try_lock(0)
    path.read_bytes()  # a plain record lock of this process would be gone now
    assert not other.try_lock(0)


def test_the_lock_of_a_process_killed_with_9_is_free(open_stripes: Callable[[], Stripes], path: Path) -> None:
    def body(say: Callable[[bytes], object]) -> None:
        assert Stripes(os.open(path, os.O_RDWR), BASE, 4).try_lock(1)
        say(b"locked")
        linger()

    mine = open_stripes()
    with Child(body) as child:
        assert child.hear() == b"locked"
        assert not mine.try_lock(1)
        assert mine.held_elsewhere(1)
        child.kill()
        assert mine.try_lock(1)


def test_a_lock_past_the_last_is_an_index_error(open_stripes: Callable[[], Stripes]) -> None:
    with pytest.raises(IndexError):
        open_stripes().try_lock(4)


def test_a_descriptor_that_cannot_be_locked_is_an_error_and_no_refusal(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        with pytest.raises(OSError, match="Bad file descriptor"):
            Stripes(fd, BASE, 1).try_lock(0)
    finally:
        os.close(fd)
