"""The controller's side of the backend table: one row for each backend of the current generation.

Strategy: what probes, pools, scrapes and operators say of a backend comes together here, each changing its own fields,
and a row is written only when something in it did change. A row outlives this process: the next controller, and the
next generation that keeps the backend, take over the verdict, the drain and the time at which it came up.

Refuses to know how anything is found out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from ..cache.pool_table import PoolPhase
from ..cache.table import DOWN, UNKNOWN, UP, BackendState, BackendTable
from ..gateway.config import Published
from . import store

HEALTH = ("unknown", "up", "down")
"""What the numbers of a verdict are called."""


@dataclass(frozen=True, slots=True)
class Load:
    """What a server reports of itself: requests that wait and run in it, and the use of its KV cache, 0 to 1000."""

    waiting: int = 0
    running: int = 0
    kv_permille: int = 0


class Board:
    """The only writer of `table`. clock_ns: the machine's monotonic clock, which workers read too."""

    def __init__(self, table: BackendTable, clock_ns: Callable[[], int]) -> None:
        self._table = table
        self._clock_ns = clock_ns
        self._rows: dict[int, BackendState] = {}

    def swap(self, published: Published) -> None:
        """Have a row for each backend of this generation, and for no other; new ones begin their slow start now."""
        now_ns = self._clock_ns()
        rows: dict[int, BackendState] = {}
        for model, settings in published.config.models.items():
            pooled = settings.pool is not None
            for backend in settings.backends:
                name = store.backend_key(model, backend.url)
                index, who = published.indices[name], store.identity(name)
                row = self._rows.get(index) or self._table.read(index)
                if row is None or row.identity != who:
                    row = BackendState(health=UNKNOWN, identity=who, since_ns=now_ns)
                # nobody asks a server of a pool before the pool says so
                if pooled is not bool(row.pool_state):
                    row = replace(row, pool_state=PoolPhase.OFF if pooled else 0, health=UNKNOWN)
                rows[index] = replace(row, weight_milli=round(backend.weight * 1000))
        self._rows = rows
        for index, row in rows.items():
            if self._table.read(index) != row:
                self._table.write(index, row)

    def row(self, index: int) -> BackendState:
        """What is said of the backend in this row; nothing, when the generation has none there."""
        return self._rows.get(index, BackendState())

    def health_of(self, index: int) -> int:
        """The last verdict on the backend in this row."""
        return self.row(index).health

    def judge(self, indices: Iterable[int], health: int) -> None:
        """Show this verdict in these rows; a backend that was down and is up begins its slow start now."""
        now_ns = self._clock_ns()
        for index in indices:
            row = self._rows[index]
            if health == row.health:
                continue
            if health == UP and row.health == DOWN:
                row = replace(row, since_ns=now_ns)
            self._put(index, replace(row, health=health))

    def place(self, index: int, pool_state: int, health: int) -> bool:
        """Show what a member of a pool does, and whether it answers; one that becomes ready begins its slow start now.

        Whether that is anything new. Nothing is shown in a row that this generation does not have.
        """
        row = self._rows.get(index)
        if row is None or (row.pool_state == pool_state and row.health == health):
            return False
        if pool_state == PoolPhase.READY != row.pool_state:
            row = replace(row, since_ns=self._clock_ns())
        self._put(index, replace(row, pool_state=pool_state, health=health))
        return True

    def report(self, indices: Iterable[int], load: Load) -> None:
        """Show what a server says of itself, as of now."""
        now_ns = self._clock_ns()
        for index in indices:
            self._put(
                index,
                replace(
                    self._rows[index],
                    waiting=load.waiting,
                    running=load.running,
                    kv_permille=load.kv_permille,
                    updated_ns=now_ns,
                ),
            )

    def drain(self, index: int, drained: bool) -> None:
        """Let the backend have no request from now on, or let it have them again, beginning slowly."""
        row = self._rows[index]
        if bool(row.drained) is drained:
            return
        since_ns = row.since_ns if drained else self._clock_ns()
        self._put(index, replace(row, drained=int(drained), since_ns=since_ns))

    def _put(self, index: int, row: BackendState) -> None:
        self._rows[index] = row
        self._table.write(index, row)
