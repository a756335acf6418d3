"""The byte layout: regions neither overlap nor straddle their boundaries."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.cache import layout as lay
from penstock.cache.layout import Geometry, Layout

GEOMETRIES = st.builds(
    Geometry,
    slots=st.integers(1, 200),
    backends=st.integers(1, 600),
    models=st.integers(1, 600),
    counter_bytes=st.integers(128, 4096).map(lambda cells: cells * 8),
    gates=st.integers(1, 200),
)


@given(GEOMETRIES)
def test_regions_follow_one_another_without_overlap(g: Geometry) -> None:
    at = Layout.of(g)
    ends = [
        (lay.HEADER_BYTES // 8, at.slots_at),
        (at.slots_at + (g.slots + 1) * lay.SLOT_ROW_CELLS, at.tally_at),
        (at.tally_at + g.slots * at.tally_stride, at.counters_at),
        (at.counters_at + (g.slots + 1) * at.counters_stride, at.backends_at),
        (at.backends_at + g.backends * lay.BACKEND_ROW_CELLS, at.pools_at),
        (at.pools_at + g.models * lay.POOL_ROW_CELLS, at.gates_at),
        (at.gates_at + g.gates * lay.GATE_STRIPE_CELLS, at.sticky_at),
        (at.sticky_at + lay.STICKY_CELLS, at.marks_at),
        (at.marks_at + lay.MARK_STRIPES * lay.MARK_STRIPE_CELLS, at.total_bytes // 8),
    ]
    assert all(end <= following for end, following in ends)
    assert at.total_bytes % lay.PAGE_BYTES == 0


@given(GEOMETRIES)
def test_a_worker_never_shares_a_cache_line_pair_with_its_neighbour(g: Geometry) -> None:
    at = Layout.of(g)
    for start, stride in ((at.tally_at, at.tally_stride), (at.counters_at, at.counters_stride)):
        assert start * 8 % lay.ROW_ALIGN_BYTES == 0
        assert stride * 8 % lay.ROW_ALIGN_BYTES == 0
    assert at.tally_stride >= g.backends + 7 * g.models + 1
    assert at.counters_stride * 8 >= g.counter_bytes


def test_tally_rows_are_not_a_whole_number_of_pages_apart() -> None:
    # 256 backends and 3 x 256 models would be exactly two pages with the sum cell squeezed in.
    g = Geometry(slots=4, backends=255, models=256)
    assert Layout.of(g).tally_stride * 8 % lay.PAGE_BYTES != 0


@pytest.mark.parametrize(
    "bad",
    [
        {"slots": 0},
        {"slots": 1, "backends": 0},
        {"slots": 1, "counter_bytes": 1028},
        {"slots": 1, "gates": 0},
    ],
)
def test_a_geometry_that_cannot_be_laid_out_is_refused(bad: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"slots|backends|counter_bytes|gates"):
        Geometry(**bad)
