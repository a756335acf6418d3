"""One pool as the controller keeps it: its machine is told what is true, and what it says is shown and done.

Strategy: with each tick the workers' counts are read and the machine is stepped; what follows is shown to the workers
before it is done to the servers. What an earlier controller began is found out before the machine is asked anything:
until then the rows stay as they were left, so a pool that was ready goes on serving.

It refuses to know when a pool wakes or sleeps (the machine), how (the provider), and what others need (the house).
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from typing import Any

from ...cache.pool_table import PoolPhase, PoolRow
from ...gateway.config import Model
from ...gateway.config.pool import Pool
from ..target import Target
from ..whereabouts import is_there
from .adoption import Adoption
from .counts import Counts
from .ground import Ground
from .hand import Hand
from .machine import Machine, Terms
from .ownership import Ownership
from .providers.base import Provider, ProviderFault
from .servers import Server, Servers
from .showing import Showing
from .together import Together
from .watch import Watch
from .words import (
    Died,
    Effect,
    Event,
    Load,
    MemberPhase,
    Others,
    Room,
    Start,
    StartFailed,
    StopAsked,
    Tick,
    Wake,
    WakeFailed,
)

log = logging.getLogger(__name__)

SETTLED_NS = 150_000_000
"""After so long a worker whose loop has turned since knows what was shown of a member."""


class Keeper:
    """Needs a running loop. model: as configured. Ends with `close`."""

    def __init__(
        self, name: str, model: Model, identity: int, provider: Provider, ground: Ground, ownership: Ownership
    ) -> None:
        assert model.pool is not None
        self.name = name
        self.pool: Pool = model.pool
        self.provider = provider
        self._max_concurrent = model.max_concurrent
        self._ground = ground
        self._ownership = ownership
        self.machine = Machine(self._terms(), ground.now())
        self.hand = Hand(name, self.pool, provider, ground, ownership, self._told, self._targets)
        self.watch = Watch(
            ground.environ,
            lambda: ground.published().config.health,
            ground.board,
            ground.scrape,
            self._silent,
            self._gone,
        )
        self.load = Load()
        self.silent: set[int] = set()
        self.stale: set[int] = set()
        self._showing = Showing(ground, identity)
        self._counts = Counts(name, ground.metrics)
        self._servers = Servers(name, ground.published(), self.pool.max)
        self._waiting_since: float | None = None
        self._watching: tuple[list[Server], list[Server]] | None = None
        self._telling: set[asyncio.Future[None]] = set()
        #: whether it is known what runs, so that the machine may be asked
        self.ticks = False
        self._retired = False
        self._replacing: asyncio.Task[None] | None = None
        self._asked: list[Event] = []
        adoption = Adoption(self.hand, self.pool, ground, self._urls, self.stale.add)
        self._together = Together(
            name, self.hand, adoption, ownership, self.step, lambda: self.machine.members
        )
        index = self.index
        row = self._showing.read(index) if index is not None else None
        self._shown_phase = PoolPhase(row.phase) if row is not None else PoolPhase.NONE
        self._adopting = asyncio.ensure_future(adoption.run(row, self._begin))

    def _terms(self) -> Terms:
        return Terms.of(self.pool, self._max_concurrent, self.provider.ordered)

    @property
    def index(self) -> int | None:
        """The pool's column; None once the generation is without it."""
        return self._ground.published().model_indices.get(self.name)

    # ---- time

    def tick(self, now: float) -> None:
        """Look at what is true, and do what follows."""
        index = self.index
        if not self.ticks or index is None:
            return
        self._find_servers()
        self.load = self._look(index, now)
        shown = self._together.shown(self.machine.members)
        self._ownership.tell(self.name, self.load, self.machine.phase, shown, now)
        if self.stale and not self.load.busy and self.machine.phase in (PoolPhase.READY, PoolPhase.ASLEEP):
            self.stale.clear()
            log.info(
                "pool_restarts pool=%s: its servers were started as it is no longer configured", self.name
            )
            self.step(StopAsked())
        self.step(Tick(self.load, self._together.tick(now)))

    def step(self, event: Event, gpus: tuple[int, ...] = ()) -> list[Effect]:
        """One event of the machine's. gpus: of Room, the devices that were granted."""
        if self._retired:
            return []
        before = self.machine.members
        if isinstance(event, Died):
            event = self._of_whose_doing(event, before)
            level = logging.DEBUG if event.elsewhere else logging.WARNING
            log.log(level, "pool_server_died pool=%s member=%d: %s", self.name, event.member, event.reason)
        effects = self.machine.step(event, self._ground.now())
        after = self.machine.members
        self._counts.event(event, before, after, self._ground.now())
        if len(after) > 1 and before != after:  # of one alone the pool's own phase says it
            for member, (was, phase) in enumerate(zip(before, after, strict=False)):
                if was is not phase:
                    words = (self.name, member, was.name.lower(), phase.name.lower())
                    log.info("pool_member pool=%s member=%d from=%s to=%s", *words)
        self._show()
        for effect in effects:
            self.hand.do(effect, gpus if isinstance(effect, Start | Wake) else ())
        return effects

    def _of_whose_doing(self, event: Died, members: list[MemberPhase]) -> Died:
        """A server that is missed while the owner ends it, or when that is known already, did not die by itself."""
        others = self.others
        known = event.member >= len(members) or members[event.member] is MemberPhase.OFF
        ended = known or others.draining or event.member in others.leaving
        return replace(event, elsewhere=True) if ended else event

    def _told(self, event: Event) -> None:
        self.step(event)

    @property
    def others(self) -> Others:
        """What other nodes say of it."""
        return self._ownership.others(self.name)

    def ask(self, event: Event) -> None:
        """An operator's word; kept until it is known what runs."""
        if self.ticks:
            self.step(event)
        else:
            self._asked.append(event)

    def refuse(self, reason: str) -> None:
        """It can have no room, as things are: its start fails."""
        for effect in self.machine.step(Room(), self._ground.now()):
            failed = WakeFailed if isinstance(effect, Wake) else StartFailed
            self.step(failed(effect.member, reason))

    def _find_servers(self) -> None:
        published, members = self._ground.published(), len(self.machine.members)
        if self._servers.generation != published.generation or members > self._servers.members:
            self._servers = Servers(self.name, published, members)

    def _look(self, index: int, now: float) -> Load:
        tally = self._ground.tally
        waiting = tally.waiting(index)
        if not waiting:
            self._waiting_since = None
        elif self._waiting_since is None:
            self._waiting_since = now
        return Load(
            waiting,
            self._waiting_since,
            tally.queued(index),
            tally.running(index),
            tuple(map(self._inflight, range(len(self.machine.members)))),
            tally.finished(index) / 1e9,
        )

    def _inflight(self, member: int) -> int:
        """Requests at a member; one at least while a worker may not know yet that it is to be left alone."""
        tally = self._ground.tally
        count = sum(tally.inflight(server.index) for server in self._servers.of(member))
        since_ns = self._showing.since_ns(member)
        if count or not since_ns or self.machine.members[member] is not MemberPhase.DRAINING:
            return count
        seen_ns = since_ns + SETTLED_NS
        return int(any(one.alive and one.heartbeat_ns < seen_ns for one in self._ground.workers()))

    # ---- showing

    def _show(self) -> None:
        index, machine = self.index, self.machine
        if index is None or self._retired:
            return
        self._find_servers()
        members = self._together.shown(machine.members)
        row = PoolRow(
            phase=machine.phase,
            failures=machine.failures,
            not_before_ns=_ns(machine.not_before),
            since_ns=_ns(machine.since),
            ready=members.count(MemberPhase.READY),
            ready_since_ns=_ns(machine.ready_since),
            reason=machine.reason,
        )
        self._showing.show(index, self._servers, members, self.silent, row)
        if machine.phase is not self._shown_phase:
            self._say(self._shown_phase, machine.phase, row)
            self._shown_phase = machine.phase
            telling = asyncio.ensure_future(self.provider.show(machine.phase, machine.reason))
            self._telling.add(telling)
            telling.add_done_callback(self._telling.discard)
        self._watch_over()

    def _say(self, before: PoolPhase, after: PoolPhase, row: PoolRow) -> None:
        log.log(
            logging.WARNING if after is PoolPhase.FAILED else logging.INFO,
            "pool_phase pool=%s from=%s to=%s waiting=%d running=%d ready=%d%s",
            self.name,
            before.name.lower(),
            after.name.lower(),
            self.load.waiting,
            self.load.queued + self.load.running,
            row.ready,
            f": {row.reason}" if after is PoolPhase.FAILED else "",
        )

    def _watch_over(self) -> None:
        members = self.machine.members
        awake = [one for one in self._servers.all if _any(members, one, MemberPhase.READY)]
        asleep = [
            one for one in self._servers.all if one not in awake and _any(members, one, MemberPhase.ASLEEP)
        ]
        if (awake, asleep) != self._watching:
            self._watching = (awake, asleep)
            self.silent &= {one.index for one in awake}
            self.watch.look_at(awake, asleep)

    def _silent(self, server: Server, silent: bool) -> None:
        (self.silent.add if silent else self.silent.discard)(server.index)
        self._show()

    def _gone(self, server: Server, reason: str) -> None:
        """A server is gone. Where several are the same members', these are gone only with the last of them."""
        self.silent.add(server.index)
        others = {one.index for one in self._servers.all if one.members == server.members}
        for member in server.members if others <= self.silent else ():
            if self.machine.members[member] in (MemberPhase.READY, MemberPhase.DRAINING, MemberPhase.ASLEEP):
                self.hand.lost(member, reason)
        self._show()

    def _targets(self, member: int) -> list[Target]:
        return [self.watch.target(one) for one in self._servers.of(member)]

    def _begin(self) -> None:
        if not (self.ticks or self._retired):
            self.ticks = True
            for event in self._asked:
                self.step(event)
            self._asked.clear()

    # ---- another configuration, and the end

    def swap(self, model: Model, provider: Provider | None) -> None:
        """Go by this from now on. provider: where it is another, for later starts; None: the one there is."""
        assert model.pool is not None
        self.pool, self._max_concurrent = model.pool, model.max_concurrent
        self.hand.pool = model.pool
        effects = self.machine.swap(self._terms(), self._ground.now())
        if self.ticks:
            self._show()
        for effect in effects:
            self.hand.do(effect)
        if provider is not None:
            before = self._replacing
            self._replacing = asyncio.ensure_future(self._replace(provider, before))

    async def _replace(self, provider: Provider, before: asyncio.Task[None] | None) -> None:
        """Use another provider as soon as nothing is being done with this one."""
        if before is not None:
            await asyncio.wait([before])
        await asyncio.wait([self._adopting])
        await self.hand.idle()
        old = self.hand.use(self.pool, provider)
        self.provider = provider
        await old.close()
        try:
            running = await self.hand.status()
        except ProviderFault as fault:
            log.warning("pool_status_unknown pool=%s: %s", self.name, fault)
            return
        self.stale = {member for member, one in running.items() if one.stale}

    def retire(self, before: Keeper | None = None) -> None:
        """The pool is no longer configured: decide nothing any more. Its servers go on until `stop`.

        before: of the same pool, whose configuration had the servers.
        """
        self._servers = before._servers if before is not None else self._servers
        self.ticks = False
        self._adopting.cancel()
        self._retired = True
        self.watch.look_at([], [])

    async def close(self) -> None:
        """Let go of everything; servers stay as they are."""
        self.ticks = False
        tasks = [one for one in (self._adopting, self._replacing, *self._telling) if one is not None]
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await self._together.close()
        await self.hand.let_go()
        await self.watch.close()
        await self.provider.close()

    async def stop(self) -> bool:
        """End all servers; whether that was done."""
        self.ticks = False
        self._adopting.cancel()
        await asyncio.wait([self._adopting])
        await self.watch.close()
        stopped = await self.hand.stop_all()
        if stopped:
            await self.provider.show(PoolPhase.OFF, "")
        return stopped

    def inflight(self) -> int:
        """Requests at its servers, by the columns they have, or had last."""
        return sum(self._ground.tally.inflight(one.index) for one in self._servers.all)

    def report(self, now: float) -> dict[str, Any]:
        """What it is doing, for people."""
        machine, load = self.machine, self.load
        ready = machine.phase is PoolPhase.READY
        return {
            "model": self.name,
            "provider": type(self.pool).__struct_config__.tag,
            "phase": machine.phase.name.lower(),
            "phase_for_s": round(max(0.0, now - machine.since), 3),
            "ready": machine.members.count(MemberPhase.READY),
            "ready_for_s": round(max(0.0, now - machine.ready_since), 3) if ready else None,
            "min": self.pool.min,
            "max": self.pool.max,
            "waiting": load.waiting,
            "queued": load.queued,
            "running": load.running,
            "idle_for_s": round(now - machine.idle_since, 3) if machine.idle_since is not None else None,
            "failures": machine.failures,
            "reason": machine.reason,
            "retry_in_s": round(max(0.0, machine.not_before - now), 3),
            "members": [
                {
                    "phase": phase.name.lower(),
                    "url": self._shown_url(member, phase),
                    "gpus": list(self.hand.running[member].gpus) if member in self.hand.running else [],
                    "inflight": sum(self._ground.tally.inflight(s.index) for s in self._servers.of(member)),
                }
                for member, phase in enumerate(machine.members)
            ],
        }

    def _shown_url(self, member: int, phase: MemberPhase) -> str | None:
        return next(iter(self._urls(member)), None) if is_there(self._servers.placed, phase) else None

    def _urls(self, member: int) -> list[str]:
        return [one.backend.url for one in self._servers.of(member)]


def _any(members: list[MemberPhase], server: Server, phase: MemberPhase) -> bool:
    return any(i < len(members) and members[i] is phase for i in server.members)


def _ns(seconds: float) -> int:
    return max(0, round(seconds * 1e9))
