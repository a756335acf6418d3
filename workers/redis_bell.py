"""Hints by Redis pub/sub that something has changed: heard at once where they come, not needed where they do not.

A hint says nothing but "look": what a late message carried could be older than what is known. Whoever waits for one
looks by itself as well, every now and then.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any

from redis.asyncio import RedisCluster
from redis.exceptions import NoPermissionError, RedisClusterException, RedisError

from ..cache.redis_client import Client

log = logging.getLogger(__name__)

ROUND_S = 2.0
"""The most that one round with Redis takes, connecting included."""
RETRY_S = 0.5
FAULTS = (
    *(RedisError, RedisClusterException, OSError, TimeoutError, EOFError),
    # over replies that no Redis gives redis-py stumbles, and so do we: whoever answers there ends no controller
    *(ValueError, LookupError, TypeError, AttributeError),
)
_SILENT_S = 2.0


class RedisBell:
    """One channel. `wake` is set at each hint, and when hints can be heard again.

    what: what the log calls that which changes, such as `epochs`; poll_s: how often who waits looks by itself.
    """

    def __init__(self, channel: str, wake: asyncio.Event, what: str, poll_s: float) -> None:
        self._channel = channel
        self._wake = wake
        self._what = what
        self._poll_s = poll_s
        self._heard: bool | None = None

    async def ring(self, redis: Client) -> None:
        """Make the others look at once; where that is not allowed they look in time."""
        with contextlib.suppress(NoPermissionError):
            await redis.publish(self._channel, b"")

    async def listen(self, redis: Client) -> None:
        """Until the task is cancelled."""
        while not cancelled():
            try:
                await self._listen(redis)
            except NoPermissionError as fault:
                if self._heard is not False:
                    self._heard = False
                    log.warning("%s_polled: what others change is noticed late: %s", self._what, said(fault))
            except FAULTS as fault:
                log.debug("%s_unheard: %s", self._what, said(fault))
            if not cancelled():
                await asyncio.sleep(min(self._poll_s / 4, RETRY_S))

    async def _listen(self, redis: Client) -> None:
        if isinstance(redis, RedisCluster):
            async with asyncio.timeout(ROUND_S):
                await redis.initialize()  # its subscriptions look for their node without that
        pubsub: Any = redis.pubsub()
        try:
            async with asyncio.timeout(ROUND_S):
                await pubsub.subscribe(self._channel)
            asked = False
            while not cancelled():
                message = await pubsub.get_message(timeout=min(self._poll_s, _SILENT_S))
                if message is not None:
                    asked = False
                    if message["type"] in ("subscribe", "message"):
                        if self._heard is False:
                            log.info("%s_heard", self._what)
                        self._heard = True
                        self._wake.set()
                elif asked:
                    raise TimeoutError("the subscription is silent")
                else:
                    asked = True
                    await pubsub.ping()
        finally:
            with contextlib.suppress(*FAULTS):
                await pubsub.aclose()


def cancelled() -> bool:
    """Whether this task was told to end. redis-py sends under `wait_for`, which in Python 3.11 may swallow that."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def said(fault: BaseException) -> str:
    """What went wrong, as a line of the log may have it."""
    text = str(fault) or type(fault).__name__
    return "".join(c if c.isprintable() else "?" for c in text[:200])
