"""A pool whose controller is the test: it writes the tables that workers read."""

import time
from typing import Any

from penstock.cache.pool_table import PoolPhase, PoolRow, PoolTable
from penstock.cache.table import DOWN, UP, BackendTable
from penstock.workers.board import Board
from penstock.workers.store import identity

from .dataplane import DataPlane

SECRET = "PENSTOCK_TEST_POOL_SECRET"
"""Environment variable that a pool of `webhook_pool` needs; any text will do."""


def webhook_pool(**terms: Any) -> dict[str, Any]:
    """A pool whose servers a test has running already, so that its model's `backends` say where they are."""
    return {"provider": "webhook", "url": "http://127.0.0.1:1/", "secret_env": SECRET, **terms}


class Played:
    """The controller's part for one model of a data plane; it begins with its servers off."""

    def __init__(self, plane: DataPlane, model: str = "m") -> None:
        self._board = Board(BackendTable(plane.segment), time.monotonic_ns)
        self._board.swap(plane.published)
        self._table = PoolTable(plane.segment)
        self._index = plane.published.model_indices[model]
        backends = plane.published.config.models[model].backends
        self._rows = [plane.published.indices[f"{model}\n{backend.url}"] for backend in backends]
        self._identity = identity(model)
        self._failures = 0
        #: members that are ready where it is not all or none
        self._ready = 0
        self._show(PoolPhase.OFF)

    def phase(self, phase: PoolPhase) -> None:
        """Show what the pool does; while it is ready its servers may be asked."""
        if phase is PoolPhase.READY:
            self._place(phase)
            self._show(phase)
        else:
            self._show(phase)
            self._place(phase)

    def pool(self, phase: PoolPhase, *, ready: int) -> None:
        """Show what the pool as a whole does, with so many servers that may be asked; theirs stay as they are."""
        self._ready = ready
        self._show(phase)

    def members(self, *phases: PoolPhase) -> None:
        """Show what each of its servers does, in the order of the backends; the pool's own state stays."""
        answers = (PoolPhase.READY, PoolPhase.DRAINING)
        for row, phase in zip(self._rows, phases, strict=True):
            self._board.place(row, phase, UP if phase in answers else DOWN)

    def fail(self, reason: str, again_s: float = 0.0) -> None:
        """A wake has failed; the next one may begin in `again_s`."""
        self._failures += 1
        self._place(PoolPhase.OFF)
        self._show(PoolPhase.FAILED, reason, time.monotonic_ns() + int(again_s * 1e9))

    def _place(self, phase: PoolPhase) -> None:
        for row in self._rows:
            self._board.place(row, phase, UP if phase is PoolPhase.READY else DOWN)

    def _show(self, phase: PoolPhase, reason: str = "", not_before_ns: int = 0) -> None:
        ready = (self._ready or len(self._rows)) if phase is PoolPhase.READY else 0
        self._table.write(
            self._index,
            PoolRow(
                phase, self._identity, self._failures, not_before_ns, time.monotonic_ns(), ready, 0, reason
            ),
        )
