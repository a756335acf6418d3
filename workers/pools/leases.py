"""Which store has the leases of shared pools, as the configuration says."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ...gateway.config.pool import Pools
from ...gateway.memory import redis_settings
from .lease import LeaseStore
from .lease_kubernetes import KubernetesLeases
from .lease_redis import RedisLeases
from .nodes import Timing
from .providers.kube_access import KubeAccess
from .providers.kube_api import KubeApi
from .shared import Shared

IN_KUBERNETES = Timing(lease_s=15.0)
"""As other holders of leases there have it: an API server takes longer to come back than a Redis."""


def shared_of(
    pools: Pools,
    environ: Mapping[str, str],
    node: str,
    *,
    clock: Callable[[], float],
    random: Callable[[int], bytes],
    wall_s: Callable[[], float],
) -> Shared | None:
    """The ownership of pools that nodes share; None where this node is the only one. Needs a running loop."""
    store: LeaseStore
    timing = Timing()
    match pools.lease:
        case "redis":
            assert pools.redis is not None  # the check of the configuration has seen to it
            store = RedisLeases(redis_settings(pools.redis, environ), pools.redis.prefix)
        case "kubernetes":
            access = KubeAccess.of(pools.kubernetes, environ)
            api = KubeApi(access, clock=clock, patience_s=1.0, retry_s=0.1)
            store, timing = KubernetesLeases(api, access.namespace, wall_s), IN_KUBERNETES
        case _:
            return None
    return Shared(store, node, f"{node}.{random(6).hex()}", clock=clock, random=random, timing=timing)
