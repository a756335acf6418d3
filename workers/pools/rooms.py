"""This node's GPUs in the hands of its pools: the house is told how things are, and what it decides is done.

Strategy: with each tick every pool is looked at, and only where one wants room is anything decided. Which devices a
member has is kept from its grant until it is gone; of one that was found running its provider says so. Beside that, and
never in its way, NVML is looked at now and then: what servers were seen to take, and how long they took to start and to
end, is learned for next time.

It refuses to know why a pool wants room (its machine), and who should have it (the house).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Iterator, Mapping

from prometheus_client.core import Metric

from ...gateway.config.pool import Pool, Pools
from .. import families, scrape
from .footprints import Footprints, key_of
from .ground import Ground
from .house import House
from .inventory import Inventory
from .keeper import Keeper
from .lodger import Lodger
from .nvml import Nvml
from .viewing import view_of
from .views import Decision, Evict, Grant, MemberView, View
from .words import Evict as Leave
from .words import MemberPhase, Room

log = logging.getLogger(__name__)

LOOK_S = 2.0
"""Time between two looks at what GPUs use; without NVML it is looked for again so much less often:"""
SELDOM = 30
ADOPT_S = 30.0
"""For so long nobody is given room while it is not known what a pool of this node has running."""
FILE = "footprints.json"


class Rooms:
    """Needs a running loop. keepers: those of the pools there are; retired: of those that are ending."""

    def __init__(self, ground: Ground, nvml: Nvml | None = None) -> None:
        self._ground = ground
        self.inventory = Inventory((), nvml or Nvml())
        self.footprints = Footprints(ground.state / FILE)
        self._house = House()
        self._lodgers: dict[str, Lodger] = {}
        self._left: list[Lodger] = []  # of pools that are ending
        self._keepers: Mapping[str, Keeper] = {}
        self._keys: dict[str, tuple[Pool, str]] = {}
        self._unknown_since: float | None = None
        self._looked = False
        self._needed = asyncio.Event()

    def swap(self, pools: Pools) -> None:
        """Go by this configuration."""
        self.inventory.swap(pools.gpus)
        self._house.max_running = pools.max_running
        self._house.max_wait_s = pools.max_wait_s

    async def run(self) -> None:
        """Look at the GPUs, as long as pools of this node take any."""
        while True:
            if not self._takers():
                self._needed.clear()
                await self._needed.wait()
            known = await self.look()
            await asyncio.sleep(LOOK_S if known else LOOK_S * SELDOM)

    async def look(self) -> bool:
        """Look at the GPUs once, and learn what servers take of them; whether NVML is there."""
        before = [(lodger, lodger.phases[:]) for lodger in self._lodgers.values()]
        known = await self.inventory.look(self._ours)
        self._looked = True
        if known:
            for lodger, phases in before:
                await lodger.measure(phases, self.inventory, self.footprints, self._alone, self._ground.now())
        return known

    def tick(self, now: float, keepers: Mapping[str, Keeper], retired: Collection[Keeper]) -> None:
        """Notice what has changed, and give room to who wants it and may have it."""
        self._keepers = keepers
        for name, keeper in keepers.items():
            lodger = self._lodgers.get(name)
            if lodger is None or lodger.keeper is not keeper:
                self._left += [lodger] if lodger is not None else []
                lodger = self._lodgers[name] = Lodger(keeper)
            lodger.notice(now, self._key(keeper), self.footprints)
        self._left += [self._lodgers.pop(name) for name in [*self._lodgers] if name not in keepers]
        self._left = [lodger for lodger in self._left if lodger.keeper in retired]
        if self._takers():
            self._needed.set()
        if any(keeper.machine.wants_room for keeper in keepers.values()):
            self._house.devices = self.inventory.devices
            for decision in self._house.decide(now, self._views(now)):
                self._do(decision, now)

    def _do(self, decision: Decision, now: float) -> None:
        keeper = self._keepers[decision.pool]
        metrics = self._ground.metrics
        if isinstance(decision, Grant):
            effects = keeper.step(Room(), decision.gpus)
            for effect in effects:
                self._lodgers[decision.pool].granted(effect.member, decision.gpus, self._key(keeper), now)
            if effects and decision.switch:
                metrics.count(scrape.POOL_SWITCHES, decision.pool)
        elif isinstance(decision, Evict):
            before = keeper.machine.phase
            work = keeper.load.waiting + keeper.load.queued + keeper.load.running
            keeper.step(Leave(decision.turn))
            if keeper.machine.phase is not before:
                cause = "turn" if decision.turn else "idle"
                log.info(
                    "pool_makes_room pool=%s for=%s cause=%s requests=%d",
                    decision.pool,
                    decision.room_for,
                    cause,
                    work,
                )
                metrics.count(scrape.POOL_EVICTIONS, decision.pool, cause)
                if decision.turn:
                    self._lodgers[decision.pool].turn_over_at = now
        else:
            log.warning("pool_has_no_room pool=%s: %s", decision.pool, decision.reason)
            keeper.refuse(decision.reason)

    # ---- how things are

    def _takers(self) -> bool:
        return any(keeper.provider.local and keeper.pool.gpus for keeper in self._keepers.values())

    def _views(self, now: float) -> dict[str, View]:
        """All pools, and what is left of those that are no longer configured."""
        views = {}
        unknown = not self._looked and self._takers()
        for name, keeper in self._keepers.items():
            if not keeper.ticks:
                unknown = unknown or keeper.provider.local
                continue
            views[name] = view_of(
                keeper.machine,
                keeper.load,
                keeper.pool,
                self.footprints.of(self._key(keeper)),
                self._lodgers[name].gpus(),
                now,
                busy_elsewhere=keeper.others.busy,
                local=keeper.provider.local,
            )
        for number, lodger in enumerate(self._left):
            keeper = lodger.keeper
            members = tuple(MemberView(MemberPhase.DRAINING, gpus) for gpus in lodger.gpus().values())
            need = keeper.pool.memory or self.footprints.of(self._key(keeper)).need
            views[f"{keeper.name}\n{number}"] = View(
                members, gpus=keeper.pool.gpus, need_bytes=need, local=keeper.provider.local
            )
        if not unknown:
            self._unknown_since = None
            return views
        if self._unknown_since is None:
            self._unknown_since = now
        if now - self._unknown_since >= ADOPT_S:
            return views
        # a place that is not known to be free is nobody's; servers elsewhere take none
        return {name: view.without_wishes() if view.local else view for name, view in views.items()}

    def _key(self, keeper: Keeper) -> str:
        known = self._keys.get(keeper.name)
        if known is None or known[0] is not keeper.pool:
            known = self._keys[keeper.name] = (keeper.pool, key_of(keeper.name, keeper.pool))
        return known[1]

    def _ours(self) -> set[int]:
        """The devices with servers of ours on them."""
        everybody = [*self._lodgers.values(), *self._left]
        return {index for lodger in everybody for gpus in lodger.gpus().values() for index in gpus}

    def _alone(self, lodger: Lodger, member: int, index: int) -> bool:
        """Whether no other server of ours is on this device."""
        return not any(
            index in gpus
            for other in [*self._lodgers.values(), *self._left]
            for number, gpus in other.gpus().items()
            if other is not lodger or number != member
        )

    # ---- told

    def needs(self) -> dict[str, int]:
        """By model: bytes that a server takes of each of its GPUs, as far as is known."""
        found = {}
        for name, keeper in self._keepers.items():
            need = keeper.pool.memory or self.footprints.of(self._key(keeper)).need
            if need is not None and keeper.pool.gpus and keeper.provider.local:
                found[name] = need
        return found

    def metrics(self, now: float) -> Iterator[Metric]:
        """What there is of each GPU, and how much of it pools have."""
        devices = self._house.devices = self.inventory.devices
        if not devices or not self._keepers:
            return
        total = families.metric(families.GPU_MEMORY_BYTES)
        reserved = families.metric(families.GPU_MEMORY_RESERVED_BYTES)
        foreign = families.metric(families.GPU_MEMORY_FOREIGN_BYTES)
        taken = self._house.reserved(self._views(now))
        for device in devices:
            total.add_metric([str(device.index)], device.total_bytes)
            reserved.add_metric([str(device.index)], taken[device.index])
            foreign.add_metric([str(device.index)], device.foreign_bytes)
        yield from (total, reserved, foreign)
