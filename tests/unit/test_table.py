"""The backend table: a row is whole, or it is none."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import astuple

import pytest

from penstock.cache.layout import BACKEND_ROW_CELLS, Geometry
from penstock.cache.segment import Segment
from penstock.cache.table import UP, BackendState, BackendTable

from .forked import Child, linger

GEOMETRY = Geometry(slots=1, backends=4, models=1, counter_bytes=1024, gates=1)
STATE = BackendState(UP, 2500, 3, 4, 512, 1, 99, 0xFEDC_BA98_7654_3210)


@pytest.fixture
def segment() -> Iterator[Segment]:
    segment = Segment.create(None, GEOMETRY, owner_pid=os.getpid(), owner_start=1)
    yield segment
    segment.close()


def test_what_is_written_is_read(segment: Segment) -> None:
    table = BackendTable(segment)
    table.write(2, STATE)
    assert table.read(2) == STATE
    table.write(2, BackendState())
    assert table.read(2) == BackendState()


def test_a_row_never_written_is_none(segment: Segment) -> None:
    assert [BackendTable(segment).read(i) for i in range(4)] == [None] * 4


def test_a_change_of_any_single_cell_makes_the_row_none(segment: Segment) -> None:
    table = BackendTable(segment)
    table.write(1, STATE)
    row = segment.layout.backends_at + BACKEND_ROW_CELLS
    for cell in range(row, row + BACKEND_ROW_CELLS):
        segment.cells[cell] ^= 1
        assert table.read(1) is None
        segment.cells[cell] ^= 1
    assert table.read(1) == STATE


def test_a_row_in_another_rows_place_is_none(segment: Segment) -> None:
    table = BackendTable(segment)
    table.write(0, STATE)
    at, size = segment.layout.backends_at * 8, BACKEND_ROW_CELLS * 8
    segment.view[at + size : at + 2 * size] = bytes(segment.view[at : at + size])
    assert table.read(1) is None


def test_the_stamp_changes_with_the_row_and_only_with_it(segment: Segment) -> None:
    table = BackendTable(segment)
    table.write(0, STATE)
    first = table.stamp(0)
    table.write(0, STATE)
    table.write(1, STATE)
    assert table.stamp(0) == first
    table.write(0, BackendState())
    assert table.stamp(0) != first


def test_a_value_that_is_no_cell_leaves_the_row_as_it_was(segment: Segment) -> None:
    table = BackendTable(segment)
    table.write(0, STATE)
    for bad in (-1, 2**64):
        with pytest.raises(struct.error):
            table.write(0, BackendState(waiting=bad))
    assert table.read(0) == STATE


def test_an_index_past_the_last_backend_is_an_index_error(segment: Segment) -> None:
    table = BackendTable(segment)
    for index in (-1, 4):
        with pytest.raises(IndexError):
            table.read(index)
        with pytest.raises(IndexError):
            table.write(index, STATE)


def test_a_reader_beside_the_writer_sees_whole_rows_or_none_and_so_does_one_after_its_kill(
    segment: Segment,
) -> None:
    def body(say: Callable[[bytes], object]) -> None:
        table = BackendTable(Segment.attach(segment.fd))
        n = 0
        while True:
            n += 1
            table.write(0, BackendState(*(n,) * 10))

    table = BackendTable(segment)
    whole = torn = 0
    with Child(body) as child:
        while whole < 20_000:
            state = table.read(0)
            if state is None:
                torn += 1
            else:
                whole += 1
                assert len(set(astuple(state))) == 1
        child.kill()
    state = table.read(0)
    assert state is None or len(set(astuple(state))) == 1
    table.write(0, STATE)  # the controller's successor
    assert table.read(0) == STATE


def test_a_stopped_writer_stops_no_reader(segment: Segment) -> None:
    def body(say: Callable[[bytes], object]) -> None:
        BackendTable(Segment.attach(segment.fd)).write(3, STATE)
        say(b"written")
        linger()

    with Child(body) as child:
        assert child.hear() == b"written"
        assert BackendTable(segment).read(3) == STATE
