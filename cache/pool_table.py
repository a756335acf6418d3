"""The pool table: what the controller says of the servers behind a model, for every worker to read.

Strategy: as the backend table: one writer, rows with a checksum. The state is one cell, and who only wants to know
whether a request may go on reads that cell alone; it is stored before the rest of the row is, so a state that ends
readiness is seen no later than its reasons. It refuses to know what makes a pool change its state.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass

import xxhash

from .layout import POOL_ROW_CELLS
from .segment import Segment

REASON_BYTES = 184
_PAYLOAD = struct.Struct(f"@8Q{REASON_BYTES}s")
_ROW = struct.Struct(f"@9Q{REASON_BYTES}s")
_checksum = xxhash.xxh3_64_intdigest


class PoolPhase(enum.IntEnum):
    """What a pool is doing; NONE is a row that was never written."""

    NONE = 0
    OFF = 1
    STARTING = 2
    READY = 3
    DRAINING = 4
    ASLEEP = 5
    STOPPING = 6
    FAILED = 7


@dataclass(frozen=True, slots=True)
class PoolRow:
    """One pool as the controller last said. Times are the machine's monotonic clock, in nanoseconds.

    identity: 64-bit hash of the model's name. failures: wakes that failed, ever; who waits sees by it that one has.
    not_before_ns: when the next wake may be tried. ready: members that may be asked. reason: why the last wake failed.
    """

    phase: int = PoolPhase.NONE
    identity: int = 0
    failures: int = 0
    not_before_ns: int = 0
    since_ns: int = 0
    ready: int = 0
    ready_since_ns: int = 0
    reason: str = ""


class PoolTable:
    """The rows of the pool table; `write` is the controller's alone. A wrong index raises IndexError."""

    __slots__ = ("_at", "_cells", "_rows", "_view")

    def __init__(self, segment: Segment) -> None:
        self._cells = segment.cells
        self._view = segment.view
        self._at = segment.layout.pools_at
        self._rows = segment.geometry.models

    def write(self, index: int, row: PoolRow) -> None:
        """Replace a row; a reason that is too long is cut. Raises struct.error for what is no unsigned integer."""
        at = self._row(index)
        reason = row.reason.encode()[:REASON_BYTES].decode(errors="ignore").encode()
        payload = _PAYLOAD.pack(
            row.phase,
            row.identity,
            row.failures,
            row.not_before_ns,
            row.since_ns,
            row.ready,
            row.ready_since_ns,
            len(reason),
            reason,
        )
        cells = self._cells
        words = memoryview(payload).cast("Q")
        for i, value in enumerate(words, at + 1):
            cells[i] = value
        cells[at] = _checksum(payload, index)

    def read(self, index: int) -> PoolRow | None:
        """The row, or None when it was never written or is half written: keep the last good copy then."""
        at = self._row(index) * 8
        raw = bytes(self._view[at : at + _ROW.size])
        checksum, phase, identity, failures, not_before_ns, since_ns, ready, ready_ns, size, reason = (
            _ROW.unpack(raw)
        )
        if checksum != _checksum(raw[8:], index):
            return None
        text = reason[:size].decode(errors="replace")
        return PoolRow(phase, identity, failures, not_before_ns, since_ns, ready, ready_ns, text)

    def phase_cell(self, index: int) -> memoryview:
        """The one cell with the pool's phase, for who must not be late and cannot spare a call."""
        at = self._row(index) + 1
        return self._cells[at : at + 1]

    def _row(self, index: int) -> int:
        if not 0 <= index < self._rows:
            raise IndexError(f"pool {index} of {self._rows}")
        return self._at + index * POOL_ROW_CELLS
