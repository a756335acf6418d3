"""The pool table: what is written is read, a torn row is none, the phase is one cell."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.cache.layout import Geometry
from penstock.cache.pool_table import REASON_BYTES, PoolPhase, PoolRow, PoolTable
from penstock.cache.rows import Tally, TallyRow
from penstock.cache.segment import Segment

WORD = st.integers(0, 2**64 - 1)


@pytest.fixture(scope="module")
def segment():
    made = Segment.create(None, Geometry(slots=2, backends=4, models=3), owner_pid=1, owner_start=1)
    yield made
    made.close()


@given(
    phase=st.sampled_from(PoolPhase),
    cells=st.lists(WORD, min_size=6, max_size=6),
    reason=st.text(max_size=300),
)
def test_a_row_is_read_as_it_was_written_but_for_the_end_of_a_long_reason(segment, phase, cells, reason):
    table = PoolTable(segment)
    table.write(1, PoolRow(phase, *cells, reason))
    read = table.read(1)
    assert read is not None
    assert (read.phase, read.identity, read.reason) == (phase, cells[0], read.reason)
    assert [read.failures, read.not_before_ns, read.since_ns, read.ready, read.ready_since_ns] == cells[1:]
    assert reason.startswith(read.reason)
    assert len(read.reason.encode()) >= min(len(reason.encode()), REASON_BYTES - 3)


def test_the_phase_is_a_cell_of_its_own(segment):
    table = PoolTable(segment)
    cell = table.phase_cell(2)
    for phase in PoolPhase:
        table.write(2, PoolRow(phase))
        assert cell[0] == phase


def test_a_row_that_was_never_written_or_is_torn_is_none(segment):
    table = PoolTable(segment)
    assert table.read(0) is None
    table.write(1, PoolRow(PoolPhase.READY, ready=1))
    table.phase_cell(1)[0] = PoolPhase.OFF
    assert table.read(1) is None


def test_what_waits_is_summed_and_what_ended_last_is_the_latest(segment):
    rows, tally = [TallyRow(segment, slot) for slot in range(2)], Tally(segment)
    rows[0].add_waiting(1, 2)
    rows[1].add_waiting(1, 3)
    rows[0].finished(1, 700)
    rows[1].finished(1, 500)
    assert (tally.waiting(1), tally.finished(1)) == (5, 700)
    rows[1].add_waiting(1, -9)
    assert (tally.waiting(1), tally.waiting(0), tally.finished(2)) == (2, 0, 0)
