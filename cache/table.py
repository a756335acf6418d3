"""The backend table: what the controller knows about each backend, for every worker to read.

Strategy: one writer, rows with a checksum over all their bytes. A row is several cells, so a reader may catch
it half written; the checksum tells, and the reader keeps its last good copy. It refuses to know what health
means and which backend has which row.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import xxhash

from .layout import BACKEND_ROW_CELLS
from .segment import Segment

_PAYLOAD = struct.Struct("@10Q40x")
_ROW = struct.Struct("@11Q40x")  # the checksum before it
_checksum = xxhash.xxh3_64_intdigest

UNKNOWN = 0
UP = 1
DOWN = 2


@dataclass(frozen=True, slots=True)
class BackendState:
    """One backend as the controller last saw it. All fields are integers from 0 to 2**64 - 1.

    health: 0 unknown, 1 up, 2 down. weight_milli: weight x 1000. waiting, running: requests, as the server
    reports them. kv_permille: use of its KV cache. pool_state: number of the pool's state. updated_ns: when,
    by the controller's clock. identity: 64-bit hash of model and URL, so that a reader with another
    configuration generation does not take another backend's row for its own. drained: 1 when an operator took it out.
    since_ns: when it came up last, by the controller's clock.
    """

    health: int = UNKNOWN
    weight_milli: int = 1000
    waiting: int = 0
    running: int = 0
    kv_permille: int = 0
    pool_state: int = 0
    updated_ns: int = 0
    identity: int = 0
    drained: int = 0
    since_ns: int = 0


class BackendTable:
    """The rows of the backend table; `write` is the controller's alone. A wrong index raises IndexError."""

    __slots__ = ("_at", "_cells", "_rows", "_view")

    def __init__(self, segment: Segment) -> None:
        self._cells = segment.cells
        self._view = segment.view
        self._at = segment.layout.backends_at
        self._rows = segment.geometry.backends

    def write(self, index: int, state: BackendState) -> None:
        """Replace a row; readers see the old one, no valid one for an instant, then the new one.

        Raises struct.error for a value that is no unsigned 64-bit integer; then the row is as it was.
        """
        at = self._row(index)
        payload = _PAYLOAD.pack(
            state.health,
            state.weight_milli,
            state.waiting,
            state.running,
            state.kv_permille,
            state.pool_state,
            state.updated_ns,
            state.identity,
            state.drained,
            state.since_ns,
        )
        cells = self._cells
        for i, value in enumerate(memoryview(payload).cast("Q"), at + 1):
            cells[i] = value
        cells[at] = _checksum(payload, index)

    def read(self, index: int) -> BackendState | None:
        """The row, or None when it was never written or is half written: keep the last good copy then."""
        at = self._row(index) * 8
        raw = bytes(self._view[at : at + _ROW.size])
        # The row's number is the seed: a row in the wrong place is no row.
        checksum, *fields = _ROW.unpack(raw)
        return BackendState(*fields) if checksum == _checksum(raw[8:], index) else None

    def stamp(self, index: int) -> int:
        """The row's checksum, one load: while it is the same, so is the row, and nothing need be read."""
        return self._cells[self._row(index)]

    def _row(self, index: int) -> int:
        if not 0 <= index < self._rows:
            raise IndexError(f"backend {index} of {self._rows}")
        return self._at + index * BACKEND_ROW_CELLS
