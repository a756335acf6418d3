"""Single-writer rows: what a worker counts where all may read it, without an atomic operation.

Strategy: every row has one writer, the holder of the slot's lock, so a read-modify-write needs no lock;
readers add up a column. A *tally* says what is going on now and is zeroed when its writer is gone (by the
next holder of the slot's lock). A *counter* row says what has happened and is never zeroed: a successor finds
the names in it and goes on counting. It refuses to know what a backend, a model or a metric is: they are
numbers and names here.

Reserve first: write your own row, then sum; over the limit, take it back. With W workers that admits at most
W-1 too many and refuses nothing below the limit minus W.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from .layout import COUNTER_HEAD_CELLS, COUNTER_OVERFLOW_CELLS, KEY_COLUMNS
from .segment import Segment

MAX_NAME_BYTES = 512
MAX_WIDTH = COUNTER_OVERFLOW_CELLS
#: The counts there are of each key, and of each share (:meth:`TallyRow.add_key`).
KEY_RUNNING, KEY_TOKENS, SHARE_RUNNING, SHARE_QUEUED, SHARE_TAG = range(KEY_COLUMNS)
_USED = 0
_OVERFLOWED = 1
_OVERFLOW = 2


class TallyRow:
    """One worker's own tally, the only writer of it. Indices past the geometry raise IndexError."""

    __slots__ = (
        "_finished",
        "_held",
        "_held_total",
        "_inflight",
        "_keys",
        "_queued",
        "_running",
        "_waiting",
        "_wish_shares",
        "_wishes",
    )

    def __init__(self, segment: Segment, slot: int) -> None:
        g, layout = segment.geometry, segment.layout
        if not 0 <= slot < g.slots:
            raise IndexError(f"slot {slot} of {g.slots}")
        # One slice a region: a wrong index raises instead of counting into a neighbour's cell.
        at = layout.tally_at + slot * layout.tally_stride
        self._inflight = segment.cells[at : at + g.backends]
        at += g.backends
        self._running = segment.cells[at : at + g.models]
        at += g.models
        self._queued = segment.cells[at : at + g.models]
        at += g.models
        self._held = segment.cells[at : at + g.models]
        at += g.models
        self._held_total = segment.cells[at : at + 1]
        at += 1
        self._wishes = segment.cells[at : at + g.models]
        at += g.models
        self._wish_shares = segment.cells[at : at + g.models]
        at += g.models
        self._waiting = segment.cells[at : at + g.models]
        at += g.models
        self._finished = segment.cells[at : at + g.models]
        at += g.models
        self._keys = tuple(segment.cells[at + i * g.keys : at + (i + 1) * g.keys] for i in range(KEY_COLUMNS))

    def add(self, backend: int, n: int) -> None:
        """Count n requests more (or fewer) in flight with a backend; never below zero."""
        cells = self._inflight
        n += cells[backend]
        cells[backend] = n if n > 0 else 0

    def add_running(self, model: int, n: int) -> None:
        """Count n requests more (or fewer) admitted for a model; never below zero."""
        cells = self._running
        n += cells[model]
        cells[model] = n if n > 0 else 0

    def add_queued(self, model: int, n: int) -> None:
        """Count n requests more (or fewer) queued for a model; never below zero."""
        cells = self._queued
        n += cells[model]
        cells[model] = n if n > 0 else 0

    def add_waiting(self, model: int, n: int) -> None:
        """Count n requests more (or fewer) that wait for a model's pool to be ready; never below zero."""
        cells = self._waiting
        n += cells[model]
        cells[model] = n if n > 0 else 0

    def finished(self, model: int, now_ns: int) -> None:
        """Say that a request of a model with a pool has ended now, by the machine's monotonic clock."""
        self._finished[model] = now_ns

    def add_held(self, model: int, n_bytes: int) -> None:
        """Count bytes more (or fewer) held for a model's requests and responses; never below zero."""
        cells = self._held
        before = cells[model]
        after = before + n_bytes
        if after < 0:
            after = 0
        cells[model] = after
        total = self._held_total
        after += total[0] - before
        total[0] = after if after > 0 else 0

    def wish(self, model: int, need: int, share: int) -> None:
        """Say how much the neediest request that waits here for a place at a model needs it, and whose it is; 0: none
        waits.
        """
        self._wish_shares[model] = share
        self._wishes[model] = need

    def add_key(self, what: int, at: int, n: int) -> None:
        """Count n more (or fewer) in one of the cells that there are for keys and shares; never below zero.

        what: KEY_RUNNING or KEY_TOKENS with a key's number, SHARE_RUNNING or SHARE_QUEUED with a share's.
        """
        cells = self._keys[what]
        n += cells[at]
        cells[at] = n if n > 0 else 0

    def key_cell(self, what: int, at: int) -> memoryview:
        """The one cell that :meth:`add_key` counts in, for who cannot spare a call for each."""
        return self._keys[what][at : at + 1]

    def tag(self, at: int, value: int) -> None:
        """Say how far a share has come (SHARE_TAG); what counts is the highest of all workers' tags."""
        self._keys[SHARE_TAG][at] = value

    def inflight(self, backend: int) -> int:
        """This worker's requests in flight with a backend."""
        return self._inflight[backend]

    def running(self, model: int) -> int:
        """This worker's admitted requests of a model."""
        return self._running[model]

    def queued(self, model: int) -> int:
        """This worker's queued requests of a model."""
        return self._queued[model]

    def held(self, model: int) -> int:
        """Bytes this worker holds for a model."""
        return self._held[model]


class Tally:
    """Sums over all workers' tally rows. Each cell is read whole; the sum is of one moment only roughly.

    A column is a strided slice cut once: `sum` over it is the cheapest of the ways tried (0.1 µs for 8 slots,
    0.8 µs for 128, where `struct` with a skipping format takes half as long again and a loop ten times).
    Indices past the geometry raise IndexError.
    """

    __slots__ = (
        "_columns",
        "_finished",
        "_held_total",
        "_inflight",
        "_key_cells",
        "_keys_at",
        "_queued",
        "_running",
        "_waiting",
        "_wish_shares",
        "_wishes",
        "inflight_columns",
        "slots",
    )

    def __init__(self, segment: Segment) -> None:
        g, layout = segment.geometry, segment.layout
        #: how many rows there are to sum
        self.slots = g.slots
        stride = layout.tally_stride
        end = layout.tally_at + g.slots * stride

        def columns(first: int, count: int) -> tuple[memoryview, ...]:
            at = layout.tally_at + first
            return tuple(segment.cells[i:end:stride] for i in range(at, at + count))

        self._inflight = columns(0, g.backends)
        #: of each backend what `inflight` sums, for who cannot spare a call for each
        self.inflight_columns = self._inflight
        self._running = columns(g.backends, g.models)
        self._queued = columns(g.backends + g.models, g.models)
        self._held_total = columns(g.backends + 3 * g.models, 1)[0]
        self._wishes = columns(g.backends + 3 * g.models + 1, g.models)
        self._wish_shares = columns(g.backends + 4 * g.models + 1, g.models)
        self._waiting = columns(g.backends + 5 * g.models + 1, g.models)
        self._finished = columns(g.backends + 6 * g.models + 1, g.models)
        # thousands, of which few are looked at: cut when they are
        self._key_cells = segment.cells[layout.tally_at : end]
        self._keys_at = (g.backends + 7 * g.models + 1, g.keys, stride)
        self._columns: dict[tuple[int, int], memoryview] = {}

    def inflight(self, backend: int) -> int:
        """Requests in flight with a backend, all workers together."""
        return sum(self._inflight[backend])

    def others_inflight(self, backend: int, own_slot: int) -> int:
        """Requests in flight with a backend from all slots but this one."""
        column = self._inflight[backend]
        return sum(column) - column[own_slot]

    def running(self, model: int) -> int:
        """Admitted requests of a model, all workers together."""
        return sum(self._running[model])

    def queued(self, model: int) -> int:
        """Queued requests of a model, all workers together."""
        return sum(self._queued[model])

    def waiting(self, model: int) -> int:
        """Requests that wait for a model's pool to be ready, all workers together."""
        return sum(self._waiting[model])

    def finished(self, model: int) -> int:
        """When a request of a model with a pool ended last, monotonic nanoseconds; 0: none that is known of."""
        return max(self._finished[model])

    def wishes(self, model: int) -> list[int]:
        """How much each slot's neediest waiting request needs a place at a model; 0 where none waits."""
        return self._wishes[model].tolist()

    def wish_shares(self, model: int) -> list[int]:
        """Whose each slot's neediest waiting request is."""
        return self._wish_shares[model].tolist()

    def of_key(self, what: int, at: int) -> int:
        """One of the counts of keys and shares (:meth:`TallyRow.add_key`), all workers together."""
        column = self._columns.get((what, at))
        return sum(self._column(what, at) if column is None else column)

    def key_column(self, what: int, at: int) -> memoryview:
        """What :meth:`of_key` sums, for who cannot spare a call for each."""
        column = self._columns.get((what, at))
        return self._column(what, at) if column is None else column

    def tag(self, at: int) -> int:
        """How far a share has come, by the worker that took it farthest."""
        column = self._columns.get((SHARE_TAG, at))
        return max(self._column(SHARE_TAG, at) if column is None else column)

    def _column(self, what: int, at: int) -> memoryview:
        first, count, stride = self._keys_at
        if not 0 <= at < count:
            raise IndexError(f"key {at} of {count}")
        column = self._columns[(what, at)] = self._key_cells[first + what * count + at :: stride]
        return column

    def held_total(self) -> int:
        """Bytes held on the node, all workers and models together."""
        return sum(self._held_total)


class CounterRow:
    """One process's counters: named runs of cells that live in the segment and outlive the process.

    Format in `layout`. `cells` are the segment's; callers do `cells[i] += n` (counters) or `cells[i] = n`
    (gauges) with an index they asked for once.
    """

    __slots__ = ("_at", "_end", "_known", "_used", "_view", "cells")

    def __init__(self, segment: Segment, row: int) -> None:
        self.cells = segment.cells
        self._view = segment.view
        self._at, self._end = _bounds(segment, row)
        self._known: dict[bytes, tuple[int, int]] = {}
        self._used = COUNTER_HEAD_CELLS
        # Names of a predecessor. Where they stop making sense, new ones overwrite.
        for name, at, width, end in _entries(segment, row):
            self._known[name] = (at, width)
            self._used = end - self._at

    def cell(self, key: bytes, width: int = 1) -> int:
        """Index into `cells` of `width` consecutive cells named `key`, made (zero) when there are none.

        The same key always has the same index. When the row is full, the index of the row's shared overflow
        cells, whose values mean nothing; `overflowed` counts that. Raises ValueError for an empty key or one
        over 512 bytes, a width outside 1-64, and another width than the key has.
        """
        known = self._known.get(key)
        if known is not None:
            if known[1] != width:
                raise ValueError(f"{key!r} has {known[1]} cells, not {width}")
            return known[0]
        if not 0 < len(key) <= MAX_NAME_BYTES:
            raise ValueError(f"a name of {len(key)} bytes, not between 1 and {MAX_NAME_BYTES}")
        if not 0 < width <= MAX_WIDTH:
            raise ValueError(f"{width} cells, not between 1 and {MAX_WIDTH}")
        cells = self.cells
        name_cells = -(-len(key) // 8)
        head = self._at + self._used
        at = head + 1 + name_cells
        if at + width > self._end:
            cells[self._at + _OVERFLOWED] += 1
            return self._at + _OVERFLOW
        cells[head] = len(key) | width << 16
        self._view[(head + 1) * 8 : at * 8] = key.ljust(name_cells * 8, b"\0")
        for i in range(at, at + width):  # a predecessor may have died after writing here
            cells[i] = 0
        self._used += 1 + name_cells + width
        cells[self._at + _USED] = self._used
        self._known[bytes(key)] = (at, width)
        return at

    @property
    def overflowed(self) -> int:
        """How often a name found no room in this row, this process's predecessors included."""
        return self.cells[self._at + _OVERFLOWED]


def read_counters(segment: Segment, row: int) -> Iterator[tuple[bytes, tuple[int, ...]]]:
    """Every published name of a row with its values, in order of creation.

    Believes nothing beyond `used` and stops where the bytes make no sense; a name may be anything its writer
    chose.
    """
    view = segment.view
    for name, at, width, _ in _entries(segment, row):
        yield name, struct.unpack_from(f"@{width}Q", view, at * 8)


def read_overflowed(segment: Segment, row: int) -> int:
    """How often a name found no room in a row."""
    return segment.cells[_bounds(segment, row)[0] + _OVERFLOWED]


def _bounds(segment: Segment, row: int) -> tuple[int, int]:
    """First cell of a counter row and the one after its last."""
    if not 0 <= row <= segment.geometry.slots:
        raise IndexError(f"counter row {row} of {segment.geometry.slots + 1}")
    at = segment.layout.counters_at + row * segment.layout.counters_stride
    return at, at + segment.geometry.counter_bytes // 8


def _entries(segment: Segment, row: int) -> Iterator[tuple[bytes, int, int, int]]:
    """(name, index of the first value, number of values, index after the entry) of what is published."""
    cells, view = segment.cells, segment.view
    start, end = _bounds(segment, row)
    end = min(end, start + cells[start + _USED])
    head = start + COUNTER_HEAD_CELLS
    while head < end:
        size = cells[head] & 0xFFFF
        width = cells[head] >> 16
        at = head + 1 + -(-size // 8)
        if not 0 < size <= MAX_NAME_BYTES or not 0 < width <= MAX_WIDTH or at + width > end:
            return
        name_at = (head + 1) * 8
        yield bytes(view[name_at : name_at + size]), at, width, at + width
        head = at + width
