"""Finding out what an earlier controller, or an earlier gateway, has running of a pool, before anything is decided.

Strategy: the provider says what runs, each server is asked once whether it answers and whether it sleeps, and those
that answer are known to the machine before its first tick: until then the rows stay as they were left, so a pool that
was ready goes on serving. One that does not answer yet is waited for as if it had just been started.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from ...cache.pool_table import PoolPhase, PoolRow
from ...gateway.config import Backend
from ...gateway.config.pool import Pool
from ..target import Target, TargetKey
from .ground import Ground
from .hand import Hand
from .providers.base import ProviderFault, Running
from .ready import client_for, is_ready
from .sleeper import Sleeper

log = logging.getLogger(__name__)

ANSWER_S = 2.0
"""For one that was found running; one that does not answer is taken to be starting still."""
AGAIN_S = 2.0


class Adoption:
    """Of one pool. urls: where a member is asked that does not say so itself. stale: told of those that were started
    otherwise than is configured now.
    """

    def __init__(
        self,
        hand: Hand,
        pool: Pool,
        ground: Ground,
        urls: Callable[[int], list[str]],
        stale: Callable[[int], None],
    ) -> None:
        self._hand = hand
        self._pool = pool
        self._ground = ground
        self._urls = urls
        self._stale = stale

    async def run(self, row: PoolRow | None, begin: Callable[[], None]) -> None:
        """Take over what runs, then `begin`. row: what was shown last.

        Where the provider cannot be asked, nothing is known; then a pool that serves nothing begins at once, so that
        the next wake finds out and says why it fails.
        """
        said = False
        while True:
            try:
                running = await self._hand.status()
                break
            except ProviderFault as fault:
                if not said:
                    log.warning("pool_status_unknown pool=%s: %s", self._hand.name, fault)
                    said = True
                if row is None or row.phase != PoolPhase.READY:
                    begin()
                await asyncio.sleep(AGAIN_S)
        found = await asyncio.gather(*(self.state(member, one) for member, one in sorted(running.items())))
        settled = set()
        for (member, one), state in zip(sorted(running.items()), found, strict=True):
            log.info("pool_adopts pool=%s member=%d state=%s url=%s", self._hand.name, member, state, one.url)
            if one.stale:
                self._stale(member)
            if member >= self._pool.max:
                self._hand.end(member)
                continue
            self._hand.take_over(member, one, starting=state == "starting", asleep=state == "asleep")
            if state != "starting":
                settled.add(member)
        await self._hand.settled(settled)
        if not running:
            await self._wait_out(row)
        begin()

    async def _wait_out(self, row: PoolRow | None) -> None:
        """A wake that failed under an earlier controller is not tried again earlier than was said."""
        if row is not None and row.phase == PoolPhase.FAILED:
            left_s = (row.not_before_ns - self._ground.clock_ns()) / 1e9
            await asyncio.sleep(min(max(left_s, 0.0), 60.0))

    async def state(self, member: int, running: Running) -> str:
        """What a member that runs is doing: ready, asleep, or starting."""
        health, environ = self._ground.published().config.health, self._ground.environ
        key = environ.get(self._pool.api_key_env or "")
        urls = [running.url] if running.url else self._urls(member)
        if not urls:
            return "starting"  # it has no place yet
        for url in urls:
            async with client_for(url) as client:
                if not await is_ready(client, url, path=health.path, api_key=key, timeout_s=ANSWER_S):
                    return "starting"
        if self._pool.sleep_after_s is None:
            return "ready"
        backend = Backend(url=urls[0], api_key_env=self._pool.api_key_env)
        target = Target(TargetKey(urls[0], backend.api_key_env, None, None), backend, environ)
        try:
            return "asleep" if await Sleeper(target).is_sleeping() else "ready"
        except ProviderFault:
            return "starting"
        finally:
            await target.close()
