"""This node's GPUs: those of the configuration, else those that NVML finds, else none.

Strategy: totals are what the configuration says, or else NVML; what is used is NVML's alone, looked at now and then,
off the loop. What programs take that are no servers of ours is known while none of ours is on a GPU: it is what is used
then, and stays that until none is there again. Without NVML it is nothing. No GPU known: no limits.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from typing import Any

from ...gateway.config.pool import Gpu
from .nvml import GpuMemory, Nvml, Unavailable
from .views import Device

log = logging.getLogger(__name__)


class Inventory:
    """configured: `pools.gpus`; empty where the node's are to be found. Needs a running loop."""

    def __init__(self, configured: Sequence[Gpu], nvml: Nvml) -> None:
        self._nvml = nvml
        self._configured = tuple(configured)
        self._seen: dict[int, GpuMemory] = {}
        self._foreign: dict[int, int] = {}
        self._told: str | None = None

    def swap(self, configured: Sequence[Gpu]) -> None:
        """Go by another configuration."""
        self._configured = tuple(configured)

    @property
    def devices(self) -> tuple[Device, ...]:
        """The GPUs, in the order of their numbers, which are those of the PCI bus."""
        if self._configured:
            totals = {index: gpu.memory for index, gpu in enumerate(self._configured)}
        else:
            totals = {index: one.total_bytes for index, one in self._seen.items()}
        return tuple(
            Device(index, total, min(total, self._foreign.get(index, 0)))
            for index, total in sorted(totals.items())
        )

    @property
    def total_bytes(self) -> int:
        """Memory of all of them."""
        return sum(device.total_bytes for device in self.devices)

    def seen(self, index: int) -> GpuMemory | None:
        """What NVML said of one at the last look; None where it says nothing."""
        return self._seen.get(index)

    def foreign(self, index: int) -> int | None:
        """Bytes that other programs took of one when no server of ours was there; None when it never was seen so."""
        return self._foreign.get(index)

    async def look(self, ours: Callable[[], Collection[int]] = tuple) -> bool:
        """Look at what is used now; whether NVML says. ours: says on which GPUs there are servers of ours."""
        before = set(ours())
        try:
            found = await self._nvml.memory()
        except Unavailable as fault:
            self._tell(f"{fault}", len(self._configured))
            return False  # what it said last goes on counting: a driver that hangs gives back no memory
        self._tell("", len(self._configured) or len(found))
        self._seen = {one.index: one for one in found}
        there = before.union(ours())  # one that came meanwhile may be in the figures already
        for one in found:
            if one.index not in there:
                self._foreign[one.index] = one.used_bytes
        return True

    async def stats(self) -> list[dict[str, Any]]:
        """Every GPU's figures for `GET /proxy/stats`; none where NVML is not there."""
        try:
            return await self._nvml.stats()
        except Unavailable as fault:
            log.debug("gpu_stats_unavailable %s", fault)
            return []

    def _tell(self, fault: str, count: int) -> None:
        """Say once how it is, and again when that changes."""
        if fault == self._told:
            return
        self._told = fault
        if not fault:
            log.info("gpus_found count=%d", count)
        elif self._configured:
            log.info("gpus_configured count=%d: what they use is not known (%s)", count, fault)
        else:
            log.info("gpus_unknown: memory limits no pool (%s)", fault)
