"""Gates: exact under the stripe's lock, whole whoever dies."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from penstock.cache.gates import Gates
from penstock.cache.layout import Geometry
from penstock.cache.segment import Segment

from .forked import Child, die

GEOMETRY = Geometry(slots=1, backends=1, models=1, counter_bytes=1024, gates=3)
Say = Callable[[bytes], object]


@pytest.fixture
def segment() -> Iterator[Segment]:
    segment = Segment.create(None, GEOMETRY, owner_pid=os.getpid(), owner_start=1)
    yield segment
    segment.close()


def state(gates: Gates, stripe: int) -> list[int]:
    seen: list[list[int]] = []

    def look(cells: list[int]) -> list[int]:
        seen.append(cells)
        return list(cells)

    assert gates.update(stripe, look)
    return seen[0]


def test_an_update_replaces_the_eight_cells_of_one_stripe(segment: Segment) -> None:
    gates = Gates(segment)
    for turn in range(1, 4):
        assert gates.update(1, lambda cells: [cell + i for i, cell in enumerate(cells)])
        assert state(gates, 1) == [turn * i for i in range(8)]
    assert state(gates, 0) == state(gates, 2) == [0] * 8


def test_a_stripe_whose_lock_is_not_free_is_left_alone(segment: Segment) -> None:
    other = Segment.attach(segment.fd)
    assert other.gate_locks.try_lock(1)
    called: list[object] = []

    def fn(cells: list[int]) -> list[int]:
        called.append(cells)
        return cells

    assert not Gates(segment).update(1, fn)
    assert called == []
    assert Gates(segment).update(0, fn)
    other.close()
    assert Gates(segment).update(1, fn)


def test_an_update_within_an_update_of_the_same_stripe_is_refused(segment: Segment) -> None:
    gates = Gates(segment)
    inner: list[bool] = []

    def fn(cells: list[int]) -> list[int]:
        inner.append(gates.update(0, lambda own: own))
        return cells

    assert gates.update(0, fn)
    assert inner == [False]


@pytest.mark.parametrize("result", [[1] * 7, [1] * 9, [1, 2, -1, 4, 5, 6, 7, 8], [2**64] * 8])
def test_a_result_that_is_no_stripe_changes_nothing_and_frees_the_lock(
    segment: Segment, result: list[int]
) -> None:
    gates = Gates(segment)
    gates.update(2, lambda _: [9] * 8)
    with pytest.raises(ValueError, match=r"cells|memoryview|range|format"):
        gates.update(2, lambda _: result)
    assert state(gates, 2) == [9] * 8


def test_what_the_function_raises_comes_out_and_frees_the_lock(segment: Segment) -> None:
    gates = Gates(segment)
    with pytest.raises(ZeroDivisionError):
        gates.update(0, lambda cells: [1 // 0])
    assert state(gates, 0) == [0] * 8


class Deadly(list[int]):
    """Eight cells that kill their process when the n-th is taken."""

    def __init__(self, n: int) -> None:
        super().__init__([5] * 8)
        self.n = n

    def __iter__(self) -> Iterator[int]:
        for i in range(8):
            if i == self.n:
                die()
            yield 5
        die()


@pytest.mark.parametrize("n", range(9))
def test_a_process_killed_after_any_store_leaves_the_old_state_whole_and_the_lock_free(
    segment: Segment, n: int
) -> None:
    gates = Gates(segment)
    gates.update(1, lambda _: [1, 2, 3, 4, 5, 6, 7, 8])

    def body(_: Say) -> None:
        Gates(Segment.attach(segment.fd)).update(1, lambda _: Deadly(n))

    with Child(body) as child:
        assert child.wait() == -9
    assert state(gates, 1) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert gates.update(1, lambda _: [8] * 8)
    assert state(gates, 1) == [8] * 8


def test_processes_that_contend_lose_no_update(segment: Segment) -> None:
    def body(_: Say) -> None:
        gates, done = Gates(Segment.attach(segment.fd)), 0
        while done < 3000:
            done += gates.update(0, lambda cells: [cell + 1 for cell in cells])

    with Child(body) as first, Child(body) as second:
        assert (first.wait(), second.wait()) == (0, 0)
    assert state(Gates(segment), 0) == [6000] * 8


def test_a_stripe_that_is_none_is_an_index_error(segment: Segment) -> None:
    for stripe in (-1, 3):
        with pytest.raises(IndexError):
            Gates(segment).update(stripe, lambda cells: cells)
