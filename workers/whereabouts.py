"""Whether a backend's URL says where it is. Pure."""

from __future__ import annotations

from ..cache.pool_table import PoolPhase

_NOWHERE = (PoolPhase.OFF, PoolPhase.STARTING)


def is_there(placed: bool, state: int) -> bool:
    """False for a server of a pool that does not run: where it will answer is known when it does, and until then its
    URL is that of the time before. placed: by the pool's provider; what the configuration names is always there.
    state: of :class:`PoolPhase`, 0 for a server of no pool.
    """
    return not placed or state not in _NOWHERE
