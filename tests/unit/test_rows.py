"""Tally and counter rows: single writers, sums over columns, names that outlive their process."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from penstock.cache.layout import COUNTER_HEAD_CELLS, Geometry
from penstock.cache.rows import (
    KEY_RUNNING,
    KEY_TOKENS,
    SHARE_QUEUED,
    SHARE_RUNNING,
    CounterRow,
    Tally,
    TallyRow,
    read_counters,
    read_overflowed,
)
from penstock.cache.segment import Segment

from .forked import Child

Say = Callable[[bytes], object]
GEOMETRY = Geometry(slots=3, backends=5, models=4, counter_bytes=4096, gates=1)
ROOM_CELLS = 4096 // 8 - COUNTER_HEAD_CELLS
in_any_state = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def segment() -> Iterator[Segment]:
    segment = Segment.create(None, GEOMETRY, owner_pid=os.getpid(), owner_start=1)
    yield segment
    segment.close()


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["add", "add_running", "add_queued", "add_held"]),
        st.integers(0, 2),
        st.integers(0, 3),
        st.integers(-5, 9),
    ),
    max_size=60,
)


@given(STEPS)
def test_a_sum_is_that_of_its_column_and_of_nothing_else(steps: list[tuple[str, int, int, int]]) -> None:
    segment = Segment.create(None, GEOMETRY, owner_pid=1, owner_start=1)
    rows, tally = [TallyRow(segment, slot) for slot in range(3)], Tally(segment)
    model: Counter[tuple[str, int, int]] = Counter()
    for kind, slot, column, n in steps:
        getattr(rows[slot], kind)(column, n)
        model[kind, slot, column] = max(0, model[kind, slot, column] + n)
    for column in range(4):
        of = {kind: [model[kind, slot, column] for slot in range(3)] for kind, *_ in steps}
        for kind, read, own in (
            ("add", tally.inflight, TallyRow.inflight),
            ("add_running", tally.running, TallyRow.running),
            ("add_queued", tally.queued, TallyRow.queued),
        ):
            assert read(column) == sum(of.get(kind, ()))
            assert [own(row, column) for row in rows] == of.get(kind, [0, 0, 0])
        assert [row.held(column) for row in rows] == of.get("add_held", [0, 0, 0])
        assert tally.others_inflight(column, 1) == tally.inflight(column) - rows[1].inflight(column)
    assert tally.held_total() == sum(n for (kind, *_), n in model.items() if kind == "add_held")
    segment.close()


def test_a_count_never_falls_below_zero(segment: Segment) -> None:
    row, tally = TallyRow(segment, 0), Tally(segment)
    row.add_held(1, 100)
    row.add_held(2, -50)
    row.add(0, -1)
    assert (row.held(2), tally.held_total(), tally.inflight(0)) == (0, 100, 0)
    row.add_held(1, -1000)
    assert tally.held_total() == 0


def test_an_index_past_the_geometry_counts_nowhere(segment: Segment) -> None:
    row, tally = TallyRow(segment, 0), Tally(segment)
    for call in (row.add, row.add_running, row.add_queued, row.add_held):
        with pytest.raises(IndexError):
            call(5, 1)
    with pytest.raises(IndexError):
        tally.inflight(5)
    with pytest.raises(IndexError):
        TallyRow(segment, 3)
    first = segment.layout.tally_at
    assert not any(segment.cells[first : first + 3 * segment.layout.tally_stride])


def test_workers_count_side_by_side_without_losing_any(segment: Segment) -> None:
    def body(slot: int) -> Callable[[Say], None]:
        def run(_: Say) -> None:
            row = TallyRow(Segment.attach(segment.fd), slot)
            for _i in range(20_000):
                row.add(2, 2)
                row.add(2, -1)

        return run

    with Child(body(0)) as first, Child(body(1)) as second:
        assert (first.wait(), second.wait()) == (0, 0)
    assert Tally(segment).inflight(2) == 40_000
    assert Tally(segment).others_inflight(2, 0) == 20_000


def test_the_same_name_always_has_the_same_cells(segment: Segment) -> None:
    row = CounterRow(segment, 0)
    requests = row.cell(b"requests")
    buckets = row.cell(b"latency", 14)
    row.cells[requests] += 3
    row.cells[buckets + 13] += 1
    assert row.cell(b"requests") == requests
    assert row.cell(b"latency", 14) == buckets
    assert list(read_counters(segment, 0)) == [(b"requests", (3,)), (b"latency", (0,) * 13 + (1,))]
    assert list(read_counters(segment, 1)) == []


def test_a_successor_finds_the_names_and_goes_on_counting(segment: Segment) -> None:
    first = CounterRow(segment, 3)
    first.cells[first.cell(b"a")] += 1
    at = first.cell(b"b", 2)
    first.cells[at + 1] += 5
    second = CounterRow(segment, 3)
    assert second.cell(b"b", 2) == at
    second.cells[at + 1] += 1
    second.cells[second.cell(b"c")] += 9
    assert list(read_counters(segment, 3)) == [(b"a", (1,)), (b"b", (0, 6)), (b"c", (9,))]


def test_what_a_killed_process_left_unpublished_is_not_seen_and_not_inherited(segment: Segment) -> None:
    row = CounterRow(segment, 0)
    row.cells[row.cell(b"kept")] += 1
    used = row.cells[segment.layout.counters_at]
    for i in range(used, used + 40):
        row.cells[segment.layout.counters_at + i] = 0xDEAD
    assert list(read_counters(segment, 0)) == [(b"kept", (1,))]
    successor = CounterRow(segment, 0)
    successor.cell(b"new", 30)
    assert list(read_counters(segment, 0)) == [(b"kept", (1,)), (b"new", (0,) * 30)]


class Watched:
    """Cells that let a test look after every store, which is where a process might be killed."""

    def __init__(self, cells: memoryview, look: Callable[[], object]) -> None:
        self._cells = cells
        self._look = look

    def __getitem__(self, index: int) -> int:
        return self._cells[index]

    def __setitem__(self, index: int, value: int) -> None:
        self._cells[index] = value
        self._look()


def test_a_name_is_published_by_the_last_store_of_its_making(segment: Segment) -> None:
    row = CounterRow(segment, 0)
    row.cell(b"old")
    ghost = segment.layout.counters_at + row.cells[segment.layout.counters_at]
    segment.cells[ghost : ghost + 6] = memoryview(
        b"".join(n.to_bytes(8, "little") for n in (5 | 1 << 16, *[7] * 5))
    ).cast("Q")
    seen: list[list[tuple[bytes, tuple[int, ...]]]] = []
    row.cells = Watched(segment.cells, lambda: seen.append(list(read_counters(segment, 0))))  # type: ignore[assignment]
    row.cell(b"new", 3)
    *before, last = seen
    assert before == [[(b"old", (0,))]] * len(before)
    assert last == [(b"old", (0,)), (b"new", (0, 0, 0))]
    assert len(before) >= 4


def test_a_process_killed_while_it_makes_names_leaves_only_whole_ones(segment: Segment) -> None:
    def body(say: Say) -> None:
        row = CounterRow(Segment.attach(segment.fd), 1)
        say(b"started")
        for i in range(1000):
            at = row.cell(b"name-%d" % i, 1 + i % 3)
            row.cells[at] = 7

    chance = random.Random(20)
    for _ in range(20):
        with Child(body) as child:
            assert child.hear() == b"started"
            for _i in range(chance.randrange(2000)):
                pass
            child.kill()
        series = list(read_counters(segment, 1))
        for i, (name, values) in enumerate(series):
            assert name == b"name-%d" % i
            assert values[0] == 7 or (values[0] == 0 and i == len(series) - 1)
            assert values[1:] == (0,) * (i % 3)
        segment.cells[segment.layout.counters_at + segment.layout.counters_stride] = 0


def test_a_reader_beside_the_writer_sees_only_whole_names(segment: Segment) -> None:
    def body(_: Say) -> None:
        row = CounterRow(Segment.attach(segment.fd), 0)
        for i in range(80):
            row.cells[row.cell(b"series-%03d" % i, 2)] = 1

    with Child(body) as child:
        while len(series := list(read_counters(segment, 0))) < 80:
            assert [name for name, _ in series] == [b"series-%03d" % i for i in range(len(series))]
        assert child.wait() == 0


def test_a_full_row_gives_shared_cells_and_counts_what_found_no_room(segment: Segment) -> None:
    row = CounterRow(segment, 0)
    fits = ROOM_CELLS // 3
    for i in range(fits):
        row.cell(b"%08d" % i)
    overflow = row.cell(b"one too many", 64)
    assert overflow == row.cell(b"another")
    assert (row.overflowed, read_overflowed(segment, 0)) == (2, 2)
    row.cells[overflow + 63] += 1
    assert len(list(read_counters(segment, 0))) == fits
    assert all(values == (0,) for _, values in read_counters(segment, 0))
    assert list(read_counters(segment, 1)) == []
    successor = CounterRow(segment, 0)
    assert successor.overflowed == 2
    assert successor.cell(b"%08d" % 0) == row.cell(b"%08d" % 0)


def test_a_row_can_be_filled_to_its_last_cell(segment: Segment) -> None:
    row = CounterRow(segment, 3)
    row.cell(b"x" * 512, 1)
    left = ROOM_CELLS - 66
    while left:
        width = min(64, left - 2)
        at = row.cell(b"%08d" % left, width)
        left -= 2 + width
    assert row.overflowed == 0
    assert at + width == segment.layout.counters_at + 3 * segment.layout.counters_stride + 512
    row.cell(b"x")
    assert row.overflowed == 1
    assert CounterRow(segment, 3).cell(b"x" * 512) == row.cell(b"x" * 512)


@pytest.mark.parametrize(("key", "width"), [(b"", 1), (b"x" * 513, 1), (b"x", 0), (b"x", 65), (b"known", 2)])
def test_an_impossible_name_or_width_is_refused(segment: Segment, key: bytes, width: int) -> None:
    row = CounterRow(segment, 0)
    row.cell(b"known")
    with pytest.raises(ValueError, match=r"cells, not|name of"):
        row.cell(key, width)


@in_any_state
@given(seed=st.integers(0, 2**32), used=st.integers(0, 2**64 - 1) | st.integers(0, 600))
def test_a_reader_and_a_successor_bear_any_bytes(segment: Segment, seed: int, used: int) -> None:
    at, cells = segment.layout.counters_at, segment.cells
    chance = random.Random(seed)
    segment.view[at * 8 : at * 8 + 4096] = chance.randbytes(4096)
    cells[at] = used
    for head in range(at + COUNTER_HEAD_CELLS, at + 512, chance.randrange(2, 9)):
        cells[head] = chance.randrange(1, 40) | chance.randrange(1, 6) << 16
    found = list(read_counters(segment, 0))
    row = CounterRow(segment, 0)
    fresh = b"fresh-%d" % seed
    before = row.overflowed if row.overflowed < 2**64 - 1 else 0
    cells[at + 1] = before
    index = row.cell(fresh)
    assert index == at + 2 if row.overflowed > before else (fresh, (0,)) in list(read_counters(segment, 0))
    assert len(found) <= 512


def test_what_is_counted_of_keys_and_shares_is_the_sum_and_of_tags_the_highest() -> None:
    geometry = Geometry(slots=2, backends=2, models=2, counter_bytes=4096, keys=5)
    segment = Segment.create(None, geometry, owner_pid=os.getpid(), owner_start=1)
    rows, tally = [TallyRow(segment, slot) for slot in range(2)], Tally(segment)
    for what in (KEY_RUNNING, KEY_TOKENS, SHARE_RUNNING, SHARE_QUEUED):
        rows[0].add_key(what, 4, what + 1)
        rows[1].add_key(what, 4, 10)
        assert tally.of_key(what, 4) == what + 11
    for slot, value in enumerate((90, 70)):
        rows[slot].tag(4, value)
        rows[slot].wish(1, value, slot + 3)
    assert tally.tag(4) == 90
    assert (tally.wishes(1), tally.wish_shares(1)) == ([90, 70], [3, 4])
    assert [tally.of_key(what, at) for what in range(5) for at in range(4)] == [0] * 20
    with pytest.raises(IndexError):
        tally.tag(5)
    with pytest.raises(IndexError):
        rows[0].tag(5, 1)
    segment.close()
