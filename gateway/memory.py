"""The cache of one worker, put together from the configuration: shared memory near, Redis far.

What may change at a reload does; the rest (sizes, where Redis is) is for a new start.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from random import Random

from ..cache.arena import Arena
from ..cache.l1 import L1
from ..cache.l2 import L2, L2Settings
from ..cache.redis_client import RedisSettings
from ..cache.segment import Segment
from ..cache.slots import alive
from ..cache.tiered import Tiers
from .config import L2 as L2Config
from .config import Cache, RedisServer
from .metrics import L2_UP, STORES, Metrics


class Memory:
    """L1, L2 and the tiers over them. ``start`` and ``close`` are for Redis."""

    def __init__(
        self,
        arena: Arena,
        segment: Segment,
        slot: int,
        generation: int,
        config: Cache,
        environ: Mapping[str, str],
        *,
        node: bytes,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], float],
    ) -> None:
        self._l1: L1 | None = None
        self._l2: L2 | None = None
        if arena.geometry.segments:
            self._l1 = L1(arena, (slot, generation), lambda s, g: alive(segment, s, g))
        if config.l2 is not None:
            self._l2 = L2(
                l2_settings(config.l2, environ, config.l1.max_entry),
                node=node,
                loop=loop,
                clock=clock,
                random=Random(),
            )
        self.tiers = Tiers(arena.epochs, self._l1, self._l2, l1_ttl_ms=0)
        self._reported: dict[tuple[str, str], int] = {}
        self.swap(config)

    def start(self) -> None:
        """Connect to Redis, in the background."""
        if self._l2 is not None:
            self._l2.start()

    def swap(self, config: Cache) -> None:
        """Take what a reload may change."""
        self.tiers.l1_ttl_ms = int(config.l1.ttl_s * 1000)
        if config.l2 is not None:
            self.tiers.l2_ttl_ms = int(config.l2.ttl_s * 1000)

    def report(self, metrics: Metrics) -> None:
        """Add what was counted since the last time."""
        if self._l2 is not None:
            metrics.gauge(L2_UP, value=self._l2.available)
        for layer, counts in (("l1", self._l1), ("l2", self._l2)):
            if counts is None:
                continue
            for name in type(counts.counts).__slots__:
                now = getattr(counts.counts, name)
                more = now - self._reported.get((layer, name), 0)
                if more:
                    self._reported[(layer, name)] = now
                    metrics.count(STORES, layer, name, n=more)

    async def close(self) -> None:
        """Seal the own segment; send what waits to be stored in Redis, for a bounded time."""
        if self._l1 is not None:
            self._l1.close()
        if self._l2 is not None:
            await self._l2.close()


def redis_settings(config: RedisServer, environ: Mapping[str, str]) -> RedisSettings:
    """Where Redis is, and how one is let in; raises KeyError when the password's variable is not set."""
    tls = config.tls
    return RedisSettings(
        url=config.url,
        topology=config.topology,
        nodes=config.nodes,
        username=config.username,
        password=environ[config.password_env] if config.password_env else None,
        ca=tls.ca if tls else None,
        cert=tls.cert if tls else None,
        key=tls.key if tls else None,
    )


def l2_settings(config: L2Config, environ: Mapping[str, str], max_entry: int) -> L2Settings:
    """The settings of L2 for answers of at most ``max_entry`` bytes."""
    return L2Settings(
        redis=redis_settings(config, environ),
        prefix=config.prefix,
        deadline_ms=config.deadline_ms,
        lease_ms=config.lease_ms,
        compress_above=config.compress_above,
        max_bytes=max_entry + 4096,
    )
