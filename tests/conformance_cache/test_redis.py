"""The suite on L2, and on the tiers together, with a real Redis."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from penstock.cache.redis_client import RedisSettings

from ..support.redis import redis_server
from .far import Both, Remote
from .machine import conforms
from .shared import ROOMY, TINY


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisSettings]:
    with redis_server() as server:
        yield RedisSettings(server.url)


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """The suite is not written in tasks, so it runs a loop itself."""
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


def test_l2_conforms_and_forgets_nothing(redis: RedisSettings, loop: asyncio.AbstractEventLoop) -> None:
    conforms(lambda: Remote(redis, loop), 40)


def test_the_tiers_conform_and_forget_nothing(redis: RedisSettings, loop: asyncio.AbstractEventLoop) -> None:
    conforms(lambda: Both(redis, loop, ROOMY, forgets=False), 30)


def test_the_tiers_with_little_room_near_forget_nothing_either(
    redis: RedisSettings, loop: asyncio.AbstractEventLoop
) -> None:
    conforms(lambda: Both(redis, loop, TINY, forgets=False), 30)
