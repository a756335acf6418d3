"""What the configuration says to a pool's machine: plain numbers, checked when the file was read."""

from __future__ import annotations

from dataclasses import dataclass

from ...gateway.config.pool import PoolTerms


@dataclass(frozen=True, slots=True)
class Terms:
    """What one machine goes by. target: requests for each member. sleep_after_s None: its members never sleep.

    ordered: members end in the reverse order of their numbers. preload: the first start needs no request.
    """

    min: int = 0
    max: int = 1
    target: int = 1
    idle_timeout_s: float = 300.0
    sleep_after_s: float | None = None
    sleep_level: int = 1
    ordered: bool = False
    preload: bool = False

    @classmethod
    def of(cls, pool: PoolTerms, max_concurrent: int, ordered: bool) -> Terms:
        """Those of a pool of the configuration whose servers take `max_concurrent` requests each."""
        return cls(
            min=min(pool.min, pool.max),
            max=pool.max,
            target=max_concurrent if pool.target is None else pool.target,
            idle_timeout_s=pool.idle_timeout_s,
            sleep_after_s=pool.sleep_after_s,
            sleep_level=pool.sleep_level or 1,
            ordered=ordered,
            preload=pool.preload,
        )
