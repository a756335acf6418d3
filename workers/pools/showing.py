"""What workers see of a pool: its row in the pool table, and its members' in the backend table.

Strategy: written when something in it did change. What ends readiness is shown first in the pool's phase, the cell
that every request looks at; what begins it is shown there last, when the servers' rows say already that they may be
asked. It refuses to know why anything is so.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from ...cache.pool_table import PoolPhase, PoolRow
from ...cache.table import DOWN, UNKNOWN, UP
from .ground import Ground
from .servers import Servers
from .words import MemberPhase


class Showing:
    """Of one pool. `failures` of earlier controllers are counted on."""

    def __init__(self, ground: Ground, identity: int) -> None:
        self._ground = ground
        self._identity = identity
        self._last: dict[int, PoolRow] = {}
        self._failures_before: int | None = None
        self._since_ns: dict[int, int] = {}

    def read(self, index: int) -> PoolRow | None:
        """What an earlier controller, or this one, said last; None where nobody did."""
        row = self._ground.table.read(index)
        return row if row is not None and row.identity == self._identity else None

    def show(
        self,
        index: int,
        servers: Servers,
        members: Sequence[MemberPhase],
        silent: Collection[int],
        row: PoolRow,
    ) -> None:
        """Show this. silent: columns of servers that do not answer. row: its failures are this controller's alone."""
        if self._failures_before is None:
            before = self.read(index)
            self._failures_before = before.failures if before is not None else 0
        row = PoolRow(
            row.phase,
            self._identity,
            self._failures_before + row.failures,
            row.not_before_ns,
            row.since_ns,
            row.ready,
            row.ready_since_ns,
            row.reason,
        )
        if row.phase == PoolPhase.READY:
            self._members(servers, members, silent, row.phase)
            self._pool(index, row)
        else:
            self._pool(index, row)
            self._members(servers, members, silent, row.phase)

    def since_ns(self, member: int) -> int:
        """Since when a member is shown to be something else than ready; 0 while it is."""
        return self._since_ns.get(member, 0)

    def _pool(self, index: int, row: PoolRow) -> None:
        if self._last.get(index) != row:
            self._ground.table.write(index, row)
            self._last = {index: row}

    def _members(
        self, servers: Servers, members: Sequence[MemberPhase], silent: Collection[int], phase: int
    ) -> None:
        for server in servers.all:
            phases = [members[i] for i in server.members if i < len(members)]
            ready = MemberPhase.READY in phases
            if ready:
                state = int(PoolPhase.READY)
            else:
                state = int(phases[0] if len(phases) == 1 else phase or PoolPhase.OFF)
                state = state if state != PoolPhase.READY else int(PoolPhase.OFF)
            health = (DOWN if server.index in silent else UP) if ready else UNKNOWN
            self._ground.board.place(server.index, state, health)
        now_ns = self._ground.clock_ns()
        for member, one in enumerate(members):
            if one is MemberPhase.READY:
                self._since_ns.pop(member, None)
            else:
                self._since_ns.setdefault(member, now_ns)
