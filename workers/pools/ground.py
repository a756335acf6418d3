"""What every pool of a controller works with."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ...cache.pool_table import PoolTable
from ...cache.rows import Tally
from ...cache.slots import SlotInfo
from ...gateway.config import Published
from ...gateway.metrics import Metrics
from ..backend_scrape import BackendScrape
from ..board import Board

Place = Callable[[str, str], Awaitable[bool]]
"""Called with a member's name (`expand.member_name`) and its URL; returns when workers can find it in the published
configuration, False where it cannot be published."""


@dataclass(frozen=True, slots=True)
class Ground:
    """clock_ns: the machine's monotonic clock. workers: who is in the workers' slots now, as far as they are alive.

    state: this gateway's state folder, which exists.
    """

    board: Board
    table: PoolTable
    tally: Tally
    scrape: BackendScrape
    metrics: Metrics
    published: Callable[[], Published]
    place: Place
    environ: Mapping[str, str]
    state: Path
    clock_ns: Callable[[], int]
    workers: Callable[[], list[SlotInfo]]

    def now(self) -> float:
        """Seconds of the monotonic clock."""
        return self.clock_ns() / 1e9
