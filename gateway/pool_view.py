"""What a worker sees of the servers behind one model that may sleep: the state, and the terms of waiting for them.

A request loads one cell. Whether the row behind it is this model's is looked at by the worker's tick: a column of the
segment may have been another model's, and may become one, so the cell of a row that is not known to be its own is left
aside for one that says nothing. It refuses to know what makes a pool change.
"""

from __future__ import annotations

from xxhash import xxh3_64_intdigest

from ..cache.pool_table import PoolPhase, PoolRow, PoolTable
from .config.pool import PoolTerms

#: Plain numbers: an enum's members are looked up slowly in Python 3.11.
READY, FAILED = int(PoolPhase.READY), int(PoolPhase.FAILED)
#: What a cell says whose row is not this model's.
_NOTHING = memoryview(bytes(8)).cast("Q")
_STATES = {int(phase): phase.name.lower() for phase in PoolPhase if phase is not PoolPhase.NONE}


class PoolView:
    """One model's pool. ``cell[0] == READY`` where requests may go on; ``look`` keeps that true."""

    __slots__ = (
        "_identity",
        "_index",
        "_own",
        "_row",
        "_table",
        "cell",
        "hold_silent_s",
        "keepalive_s",
        "max",
        "ready_timeout_s",
    )

    def __init__(self, table: PoolTable, index: int, model: str, terms: PoolTerms) -> None:
        #: a request may wait so long for a server (s)
        self.ready_timeout_s = terms.ready_timeout_s
        #: for so long nothing is sent to its client (s), then a stream is kept alive at this pace (s, 0: it is not)
        self.hold_silent_s = terms.hold_silent_s
        self.keepalive_s = terms.keepalive_s
        #: servers at most
        self.max = terms.max
        self._table = table
        self._index = index
        self._identity = xxh3_64_intdigest(model.encode())
        self._own = table.phase_cell(index)
        self._row = PoolRow()
        self.cell = _NOTHING
        self.look()

    def look(self) -> None:
        """See whose the row is by now; one that is half written is what it was."""
        row = self._table.read(self._index)
        if row is None:
            return
        if row.identity == self._identity:
            self._row, self.cell = row, self._own
        else:
            self._row, self.cell = PoolRow(), _NOTHING

    def row(self) -> PoolRow:
        """What the controller says now; a row of nothing where it has said nothing of this model."""
        self.look()
        return self._row

    @property
    def ready(self) -> bool:
        """Whether requests may go on to its servers."""
        return self.cell[0] == READY

    @property
    def members(self) -> int:
        """How many servers may be asked, as the controller said last."""
        return self._row.ready

    @property
    def state(self) -> str:
        """Its state in the words of ``/v1/models``; ``off`` where the controller has said nothing yet."""
        return _STATES.get(self.cell[0], "off")

    @property
    def wakes(self) -> bool:
        """Whether a request may count on it: it is ready, or would be woken."""
        return self.cell[0] != FAILED
