"""The ownership of pools that several nodes share: what nodes agree on, spoken about through a store.

Strategy: once a second, and at once when there is something that others wait for, everything is told to the store and
what it has is taken, in one exchange for all pools. What is asked in between is answered from the last exchange and
the node's own clock, so that nothing waits; only `confirm` has an exchange of its own. Exchanges go one at a time.

With the store away this node proves nothing any more after a few seconds, and so stops nothing; it starts what it
needs, under keys of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from prometheus_client.core import Metric

from ...cache.pool_table import PoolPhase
from ...gateway.config import Model
from ...gateway.config.pool import KubernetesPool, WebhookPool
from .. import families
from ..redis_bell import cancelled
from .agreement import Agreement
from .lease import LeaseStore, LeaseStoreFault, Told
from .nodes import Timing
from .ownership import Verb
from .providers.base import Order
from .words import Load, MemberPhase, Others

log = logging.getLogger(__name__)


def is_shared(model: Model) -> bool:
    """Whether other nodes may have a model's pool too: whether it is outside of this machine."""
    return isinstance(model.pool, KubernetesPool | WebhookPool)


_BURST_S = 0.01
NOBODYS = Others(may_stop=False, drained=False)
"""Of a pool that was released."""


class Shared:
    """node: names this node for as long as it lives; life: this controller, and no other there ever was. clock:
    monotonic seconds. random: so many random bytes. round_s: the most that one exchange takes."""

    def __init__(
        self,
        store: LeaseStore,
        node: str,
        life: str,
        *,
        clock: Callable[[], float],
        random: Callable[[int], bytes],
        timing: Timing = Timing(),  # noqa: B008 # immutable
    ) -> None:
        self._store = store
        self._node = node
        self._life = life
        self._clock = clock
        self._random = random
        self._timing = timing
        self.round_s = timing.lease_s / 3
        self._pools: dict[str, Agreement] = {}
        self._urgent = asyncio.Event()
        self._ring = False
        self._line = asyncio.Lock()
        self._up: bool | None = None
        self._owned: dict[str, bool] = {}
        self._run_on: set[str] = set()  # said to

    def keep(self, pools: Collection[str]) -> None:
        for name, agreement in self._pools.items():
            if name not in pools:
                agreement.leave(self._clock())
        for name in pools:
            if name in self._pools:
                self._pools[name].stay()
            else:
                self._pools[name] = Agreement(name, self._life, self._era, self._timing, self._clock())
        self._urgent.set()

    def tell(
        self, pool: str, load: Load, phase: PoolPhase, members: Sequence[MemberPhase], now: float
    ) -> None:
        agreement = self._pools.get(pool)
        if agreement is not None and agreement.tell(load, phase, members, now):
            self._ring = True
            self._urgent.set()

    def others(self, pool: str) -> Others:
        agreement = self._pools.get(pool)
        return agreement.others(self._clock()) if agreement is not None else NOBODYS

    def order(self, pool: str, verb: Verb, member: int, gpus: tuple[int, ...] = ()) -> Order:
        agreement = self._pools.get(pool)
        if agreement is None:  # released: nothing is confirmed any more
            return Order(f"{pool}:{member}:{verb}:{self._life}", 0, gpus)
        return agreement.order(verb, member, gpus)

    async def confirm(self, pool: str, order: Order) -> bool:
        agreement = self._pools.get(pool)
        if agreement is None:
            return False
        try:
            async with asyncio.timeout(self.round_s), self._line:
                lease = agreement.confirming(order, self._clock())
                if lease is None:
                    return False
                await self._exchange({pool: agreement.told(self._clock(), lease=lease)})
        except (LeaseStoreFault, TimeoutError) as fault:
            self._away(fault)
            return False
        if self._pools.get(pool) is not agreement or not agreement.confirmed(order, self._clock()):
            return False
        log.info("pool_stop_agreed pool=%s fence=%d", pool, order.fence)
        return True

    async def run(self) -> None:
        listening = asyncio.ensure_future(self._store.listen(self._urgent))
        try:
            while not cancelled():  # a client of Redis may have swallowed it
                self._urgent.clear()
                await self._round()
                drains = any(agreement.drains for agreement in self._pools.values())
                pause_s = self._timing.beat_s / (4 if drains else 1)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause_s):
                        await self._urgent.wait()
                await asyncio.sleep(_BURST_S)
        finally:
            listening.cancel()
            await asyncio.wait([listening])

    async def release(self, pool: str, *, ended: bool) -> None:
        agreement = self._pools.get(pool)
        if agreement is not None:
            await self._give_up({pool: agreement}, ended=ended)
            if agreement.leaves:  # else it is wanted again
                del self._pools[pool]
                self._owned.pop(pool, None)

    async def close(self) -> None:
        try:
            await self._give_up(self._pools)
        finally:
            self._pools.clear()
            await self._store.close()

    async def _give_up(self, pools: Mapping[str, Agreement], *, ended: bool = False) -> None:
        try:
            async with asyncio.timeout(self.round_s), self._line:
                told = {
                    pool: one.told(self._clock(), lease=one.giving_up(ended=ended), left=True)
                    for pool, one in pools.items()
                }
                if told and self._up:
                    await self._store.exchange(self._node, told)
                    await self._store.ring()
        except (LeaseStoreFault, TimeoutError) as fault:
            log.warning("pools_not_given_up: others wait for the leases to end: %s", fault)

    def metrics(self) -> Iterator[Metric]:
        """For the controller's scrape."""
        owner = families.metric(families.POOL_OWNER)
        fence = families.metric(families.POOL_FENCE)
        now = self._clock()
        for pool, agreement in self._pools.items():
            owner.add_metric([pool], float(agreement.proven(now)))
            fence.add_metric([pool], agreement.fence)
        yield owner
        yield fence
        yield families.metric(families.POOLS_LEASE_STORE_UP, float(bool(self._up)))

    # ---- exchanges

    async def _round(self) -> None:
        if not self._pools:
            return
        ring, self._ring = self._ring, False
        try:
            async with asyncio.timeout(self.round_s), self._line:
                told = {pool: one.told(self._clock()) for pool, one in self._pools.items()}
                ring = await self._exchange(told) or ring
                if ring:
                    await self._store.ring()
        except (LeaseStoreFault, TimeoutError) as fault:
            self._ring = self._ring or ring
            self._away(fault)
        self._note()

    async def _exchange(self, told: Mapping[str, Told]) -> bool:
        """Whether others should look."""
        sent = self._clock()
        seen = await self._store.exchange(self._node, told)
        now = self._clock()
        if self._up is not True:
            log.info("pools_lease_up")
        self._up = True
        rings = False
        for pool, one in seen.items():
            agreement = self._pools.get(pool)
            if agreement is not None and pool in told:
                rings = agreement.heard(self._node, one, sent, now) or rings
        return rings

    def _away(self, fault: BaseException) -> None:
        if self._up is not False:
            log.warning(
                "pools_lease_away: no shared pool is stopped by this node, any may be started: %s",
                str(fault) or f"no answer within {self.round_s:g} s",
            )
        self._up = False

    def _note(self) -> None:
        now = self._clock()
        run_on = {pool for pool, one in self._pools.items() if one.leaves and not self._up}
        for pool in run_on - self._run_on:
            log.warning(
                "pool_runs_on pool=%s: it is no longer configured, and servers that run of it are left running until "
                "the store of leases answers",
                pool,
            )
        self._run_on = run_on
        for pool, agreement in self._pools.items():
            proven = agreement.proven(now)
            if proven is not self._owned.get(pool, False):
                self._owned[pool] = proven
                log.info(
                    "%s pool=%s fence=%d", "pool_owned" if proven else "pool_lost", pool, agreement.fence
                )

    def _era(self) -> str:
        return self._random(6).hex()
