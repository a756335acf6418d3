"""Seeing off a pool that is no longer configured: its servers end when nothing is in flight with them, or are others'.

Strategy: one task a pool, which looks and tries until it is through. With a shared pool it says on each look what this
node does, as a tick did before; what other nodes are to it, and which of those that leave ends the servers, is agreed
on as every stop is. It refuses to know who they are, and what a server is.
"""

from __future__ import annotations

import asyncio
import logging

from ...cache.pool_table import PoolPhase
from ..redis_bell import cancelled
from .ground import Ground
from .keeper import SETTLED_NS, Keeper
from .ownership import Ownership
from .words import Load, MemberPhase

log = logging.getLogger(__name__)

LOOK_S = 0.05
AGAIN_S = 1.0
MOST_AGAIN_S = 60.0


async def see_off(keeper: Keeper, ownership: Ownership, ground: Ground) -> None:
    """Return when this node is through with the pool of a keeper that is retired; the keeper is closed then."""
    name, members = keeper.name, keeper.machine.members
    shown_ns = ground.clock_ns() + SETTLED_NS
    quiet, again_s = False, AGAIN_S

    def tell(phase: MemberPhase) -> None:
        load = Load() if quiet else Load(running=1)
        ownership.tell(name, load, PoolPhase.DRAINING, [phase] * len(members), ground.now())

    while True:
        if cancelled():
            raise asyncio.CancelledError
        # once no worker can think that it may ask them it stays so, whoever has their columns afterwards
        alive = [one for one in ground.workers() if one.alive]
        quiet = quiet or not (keeper.inflight() or any(one.heartbeat_ns < shown_ns for one in alive))
        tell(MemberPhase.DRAINING)
        others = ownership.others(name)
        if quiet and (others.over or (others.may_stop and others.drained)):
            if others.over:
                break
            tell(MemberPhase.STOPPING)
            if await keeper.stop():
                break
            tell(MemberPhase.DRAINING)
            await asyncio.sleep(again_s)
            again_s = min(2 * again_s, MOST_AGAIN_S)
        await asyncio.sleep(LOOK_S)
    await ownership.release(name, ended=not others.over)
    if others.over:
        log.info("pool_left pool=%s", name)
    else:
        log.info("pool_ended pool=%s", name)
    await keeper.close()
