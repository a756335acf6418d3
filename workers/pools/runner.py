"""All pools of this gateway, in the controller: 50 times a second each is looked at, and done to what follows.

Strategy: one keeper a model with a pool. A reload makes new ones, tells those that stay, and retires those that are
gone: what is in flight at their servers finishes, then the servers end. It is told of generations that workers may see
already, and keeps nothing that the tables, the provider and the state folder do not say again to a successor.

It refuses to know what a pool does (the keeper).
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prometheus_client.core import Metric

from ...cache.pool_table import PoolPhase
from ...gateway.config import Model, Published
from ...gateway.config.pool import DockerPool, ProcessPool
from .. import families, store
from . import state
from .farewell import see_off
from .ground import Ground
from .keeper import Keeper
from .nvml import Nvml
from .ownership import Alone, Ownership
from .processes.leftover import end_unwanted
from .processes.ports import Ports
from .providers.base import Provider
from .providers.docker_strays import end_strays
from .providers.make import Site, provider_of
from .rooms import Rooms
from .shared import Shared, is_shared
from .words import MemberPhase, StopAsked, WakeAsked

log = logging.getLogger(__name__)

TICK_S = 0.02
_RUNS_ON = "pool_runs_on pool=%s: it is no longer configured, and servers that run of it are left running: %s"


class PoolsRunner:
    """Needs a running loop. make: the provider of a model's pool. shared: the ownership of pools that other nodes have
    too, None where there are none. nvml: how GPUs are asked.
    """

    def __init__(
        self,
        ground: Ground,
        token: str,
        wall_ns: Callable[[], int],
        make: Callable[[Site], Provider] = provider_of,
        shared: Shared | None = None,
        nvml: Nvml | None = None,
    ) -> None:
        self._ground = ground
        self._make = make
        self._alone = Alone(token, wall_ns)
        self._ports = Ports(random.SystemRandom().randrange)
        self._shared = shared
        self._rooms = Rooms(ground, nvml)
        self._models: dict[str, Model] = {}
        self._keepers: dict[str, Keeper] = {}
        self._retired: dict[tuple[str, str], tuple[Keeper, asyncio.Task[None]]] = {}
        self._changed = asyncio.Event()
        self._coming: asyncio.Task[None] | None = None
        self._unwanted: asyncio.Future[Any] | None = None

    async def run(self) -> None:
        """Keep the pools until cancelled."""
        async with asyncio.TaskGroup() as group:
            if self._shared is not None:
                group.create_task(self._shared.run())
            group.create_task(self._rooms.run())
            group.create_task(self._ticking())

    async def _ticking(self) -> None:
        loop = asyncio.get_running_loop()
        wanted = {name for name, model in self._models.items() if isinstance(model.pool, ProcessPool)}
        sockets = {
            name: model.pool.socket
            for name, model in self._models.items()
            if isinstance(model.pool, DockerPool)
        }
        state_folder = self._ground.state
        self._unwanted = asyncio.gather(
            end_unwanted(state_folder, wanted), end_strays(state_folder, sockets), return_exceptions=True
        )
        while True:
            if not self._keepers:
                self._changed.clear()
                await self._changed.wait()
            began = loop.time()
            now = self._ground.now()
            for keeper in list(self._keepers.values()):
                keeper.tick(now)
            self._rooms.tick(now, self._keepers, [keeper for keeper, _ in self._retired.values()])
            await asyncio.sleep(max(0.001, TICK_S - (loop.time() - began)))

    def swap(self, published: Published) -> None:
        """Keep the pools of this generation from now on."""
        wanted = {name: model for name, model in published.told.models.items() if model.pool is not None}
        for name in [*self._keepers]:
            if name not in wanted or type(wanted[name].pool) is not type(self._models[name].pool):
                self._retire(name)
        self._rooms.swap(published.told.pools)
        if wanted:
            try:
                state.make(self._ground.state)
            except OSError as fault:
                log.error("state_folder_lost folder=%s: %s", self._ground.state, fault)
        if self._shared is not None:
            shared = [name for name, model in wanted.items() if is_shared(model)]
            self._shared.keep(shared)
            for name in shared:
                self._abandon(name, type(wanted[name].pool).__name__)
        for name, model in wanted.items():
            keeper = self._keepers.get(name)
            site = self._site(name, model, published)
            if keeper is None:
                self._keep(name, site)
            elif model != self._models[name]:
                keeper.swap(model, self._make(site))
        self._models = wanted
        self._changed.set()

    async def close(self, *, final: bool) -> None:
        """Let go of the pools. final: the gateway stops, so its own servers end that are not to be kept."""
        retired = list(self._retired.values())
        for keeper, task in retired:
            task.cancel()
            if not keeper.provider.local:
                log.warning(_RUNS_ON, keeper.name, "the gateway stops before they could be ended")
        if retired:
            await asyncio.wait([task for _, task in retired])
        if self._unwanted is not None:
            self._unwanted.cancel()
        keepers = [*self._keepers.values(), *(keeper for keeper, _ in retired)]

        async def leave(keeper: Keeper) -> None:
            local = keeper.provider.local and not keeper.provider.keep
            if final and local:
                await keeper.stop()
            await keeper.close()

        for keeper, fault in zip(
            keepers, await asyncio.gather(*map(leave, keepers), return_exceptions=True), strict=True
        ):
            if isinstance(fault, BaseException):
                log.error("pool_not_closed pool=%s", keeper.name, exc_info=fault)
        self._keepers, self._retired = {}, {}
        if self._shared is not None:
            await self._shared.close()

    # ---- coming and going

    def _site(self, name: str, model: Model, published: Published) -> Site:
        ground = self._ground
        return Site(name, model, published.told, ground.environ, ground.state, self._ports, ground.published)

    def _keep(self, name: str, site: Site) -> None:
        kind = type(site.model.pool).__name__
        ownership = self._ownership(site.model)
        back = self._retired.pop((name, kind), None)
        if back is not None:
            # the same servers are wanted again: the one that was about to end them lets go first
            back[1].cancel()
            self._coming = asyncio.ensure_future(self._keep_after(self._coming, back[0], site))
            return
        identity = store.identity(name)
        self._keepers[name] = Keeper(name, site.model, identity, self._make(site), self._ground, ownership)

    async def _keep_after(self, earlier: asyncio.Task[None] | None, before: Keeper, site: Site) -> None:
        if earlier is not None:
            await asyncio.wait([earlier])
        await before.close()
        name, kind = site.name, type(site.model.pool)
        model = self._models.get(name)
        wanted = model is not None and type(model.pool) is kind
        if (wanted and name in self._keepers) or (name, kind.__name__) in self._retired:
            return
        if model is not None and wanted:
            site = self._site(name, model, self._ground.published())
        ownership, identity = self._ownership(site.model), store.identity(name)
        keeper = Keeper(name, site.model, identity, self._make(site), self._ground, ownership)
        if wanted:
            self._keepers[name] = keeper
            self._changed.set()
        else:  # it was removed again meanwhile
            keeper.retire(before)
            self._see_off(keeper, ownership)

    def _retire(self, name: str) -> None:
        keeper = self._keepers.pop(name)
        log.info("pool_retired pool=%s: what is in flight finishes, then its servers end", name)
        keeper.retire()
        self._see_off(keeper, self._ownership(self._models[name]))

    def _see_off(self, keeper: Keeper, ownership: Ownership) -> None:
        key = (keeper.name, type(keeper.pool).__name__)
        task = asyncio.ensure_future(see_off(keeper, ownership, self._ground))
        self._retired[key] = (keeper, task)

        def done(ended: asyncio.Task[None]) -> None:
            if self._retired.get(key) == (keeper, ended):
                del self._retired[key]
            if not ended.cancelled() and ended.exception() is not None:
                log.error("pool_not_closed pool=%s", keeper.name, exc_info=ended.exception())

        task.add_done_callback(done)

    def _abandon(self, name: str, kind: str) -> None:
        """Leave servers of another kind alone: of a name nodes agree on one pool, and that is the new one."""
        for (whose, of), (keeper, task) in [*self._retired.items()]:
            if whose == name and of != kind and not keeper.provider.local:
                log.warning(_RUNS_ON, name, "a pool of another provider took its place")
                task.cancel()
                del self._retired[whose, of]
                self._coming = asyncio.ensure_future(self._close_after(self._coming, keeper))

    async def _close_after(self, earlier: asyncio.Task[None] | None, keeper: Keeper) -> None:
        if earlier is not None:
            await asyncio.wait([earlier])
        await keeper.close()

    def _ownership(self, model: Model) -> Ownership:
        return self._shared if self._shared is not None and is_shared(model) else self._alone

    # ---- told and asked

    def ask(self, model: str, event: WakeAsked | StopAsked) -> None:
        """An operator wants a pool awake, or off."""
        keeper = self._keepers.get(model)
        if keeper is not None:
            keeper.ask(event)

    def report(self, model: str) -> dict[str, Any] | None:
        """What a pool is doing, JSON-like; None for a model without one."""
        keeper = self._keepers.get(model)
        return keeper.report(self._ground.now()) if keeper is not None else None

    def metrics(self) -> Iterator[Metric]:
        """What each pool is doing now."""
        phase = families.metric(families.POOL_PHASE)
        members = families.metric(families.POOL_MEMBERS)
        for name, keeper in self._keepers.items():
            machine = keeper.machine
            for one in PoolPhase:
                if one is not PoolPhase.NONE:
                    phase.add_metric([name, one.name.lower()], machine.phase is one)
            for kind in MemberPhase:
                members.add_metric([name, kind.name.lower()], machine.members.count(kind))
        if self._keepers:
            yield from (phase, members)
        yield from self._rooms.metrics(self._ground.now())
        if self._shared is not None:
            yield from self._shared.metrics()

    @property
    def rooms(self) -> Rooms:
        """Who has which GPU, and what is known of GPUs."""
        return self._rooms

    @property
    def keepers(self) -> Mapping[str, Keeper]:
        """Those of the current generation, by model."""
        return self._keepers
