"""Which store has the leases of shared pools, as the configuration says."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ...gateway.config.pool import Pools
from ...gateway.memory import redis_settings
from .lease import LeaseStore
from .lease_redis import RedisLeases
from .shared import Shared


def shared_of(
    pools: Pools,
    environ: Mapping[str, str],
    node: str,
    *,
    clock: Callable[[], float],
    random: Callable[[int], bytes],
) -> Shared | None:
    """The ownership of pools that nodes share; None where this node is the only one. Needs a running loop."""
    store: LeaseStore
    match pools.lease:
        case "redis":
            assert pools.redis is not None  # the check of the configuration has seen to it
            store = RedisLeases(redis_settings(pools.redis, environ), pools.redis.prefix)
        case _:
            return None
    return Shared(store, node, f"{node}.{random(6).hex()}", clock=clock, random=random)
