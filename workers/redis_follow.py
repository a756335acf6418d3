"""Following something in Redis that has a version: messages tell, versions decide.

Strategy: whoever knows what is there brings the round that looks at its version and reads what is new; here is when to
look: at once, at each message, whenever messages can be heard again, and every so often where none came. Nothing is
missed for good, whatever is lost. A round is bounded in time, and what goes wrong in it is told and tried again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from ..cache.redis_client import Client, RedisSettings, client, close, eviction_policy
from .redis_bell import FAULTS, RETRY_S, ROUND_S, RedisBell, cancelled

log = logging.getLogger(__name__)

HINTS_S = 2.0
_BURST_S = 0.01
T = TypeVar("T")


class RedisFollower:
    """channel: also the key's name. what: what the log calls that which changes, such as `keys`."""

    def __init__(self, settings: RedisSettings, channel: str, what: str) -> None:
        self._settings = settings
        self._channel = channel
        self._what = what
        self._wake = asyncio.Event()

    def once(self, work: Callable[[Client], Awaitable[T]]) -> T:
        """`work` on a connection of its own, without a running loop and in bounded time. Raises one of FAULTS."""

        async def whole() -> T:
            redis = client(self._settings)
            try:
                async with asyncio.timeout(ROUND_S):
                    return await work(redis)
            finally:
                await close(redis)

        return asyncio.run(whole())

    async def ring(self, redis: Client) -> None:
        """Make the others look at once; where that is not allowed they look in time."""
        await self._bell().ring(redis)

    def look(self) -> None:
        """Have whoever follows look at once."""
        self._wake.set()

    async def follow(
        self, look: Callable[[Client], Awaitable[None]], lost: Callable[[BaseException], None], poll_s: float
    ) -> None:
        """Until cancelled; `look` raises one of FAULTS where it could not, and what it could not do is `lost`."""
        redis = client(self._settings)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._looking(redis, look, lost, poll_s))
                group.create_task(self._bell().listen(redis))
        finally:
            await close(redis)

    async def _looking(
        self,
        redis: Client,
        look: Callable[[Client], Awaitable[None]],
        lost: Callable[[BaseException], None],
        poll_s: float,
    ) -> None:
        judged = False
        while True:
            self._wake.clear()
            pause_s = poll_s
            try:
                async with asyncio.timeout(ROUND_S):
                    await look(redis)
                    if not judged:
                        judged = True
                        await self._judge(redis)
            except FAULTS as fault:
                lost(fault)
                pause_s = min(poll_s, RETRY_S)
            if cancelled():
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._wake.wait()
            await asyncio.sleep(_BURST_S)

    async def _judge(self, redis: Client) -> None:
        """Say so when this Redis may drop keys to make room."""
        with contextlib.suppress(*FAULTS):
            policy = await eviction_policy(redis)
            if policy not in (None, "noeviction"):
                log.warning(
                    "%s_evictable policy=%s: a full Redis may drop all of it; set its maxmemory-policy to noeviction",
                    self._what,
                    policy,
                )

    def _bell(self) -> RedisBell:
        return RedisBell(self._channel, self._wake, self._what, HINTS_S)
