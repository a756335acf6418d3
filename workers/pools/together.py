"""A shared pool's keeper among other nodes: has it follow what they do. One look at the provider at a time.

What is found running is taken over by the keeper's hand once it answers, as after a restart.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from .adoption import Adoption
from .follow import Follower
from .hand import Hand
from .ownership import Ownership
from .providers.base import ProviderFault
from .words import ALONE, Event, MemberPhase, Others, Started

log = logging.getLogger(__name__)

LOOK_S = 0.5
_SERVES = MemberPhase.READY


class Together:
    """Of one pool. step: takes the events; members: of its machine."""

    def __init__(
        self,
        pool: str,
        hand: Hand,
        adoption: Adoption,
        ownership: Ownership,
        step: Callable[[Event], object],
        members: Callable[[], Sequence[MemberPhase]],
    ) -> None:
        self._pool = pool
        self._hand = hand
        self._adoption = adoption
        self._ownership = ownership
        self._step = step
        self._members = members
        self._follower = Follower()
        self._leaving: frozenset[int] = frozenset()
        self._look_at = 0.0
        self._looking: asyncio.Task[None] | None = None
        self._owning: asyncio.Task[None] | None = None
        self._owned = False

    def tick(self, now: float) -> Others:
        """Before the machine's tick: what others say, with what they did told already."""
        others = self._ownership.others(self._pool)
        if others is ALONE:
            return others
        if others.may_stop and not self._owned and (self._owning is None or self._owning.done()):
            self._owning = asyncio.ensure_future(self._own())
        self._owned = others.may_stop
        self._leaving = others.leaving
        for event in self._follower.events(others, self._members()):
            self._step(event)
        if self._follower.look and now >= self._look_at and (self._looking is None or self._looking.done()):
            self._look_at = now + LOOK_S
            self._looking = asyncio.ensure_future(self._look())
        return others

    def shown(self, members: Sequence[MemberPhase]) -> list[MemberPhase]:
        """The members as workers are to see them: those that the owner is about to end get no more requests."""
        return [
            MemberPhase.DRAINING if phase is _SERVES and i in self._leaving else phase
            for i, phase in enumerate(members)
        ]

    async def close(self) -> None:
        """Look no more."""
        for task in (self._looking, self._owning):
            if task is not None:
                task.cancel()
                await asyncio.wait([task])

    async def _own(self) -> None:
        """Have stops of earlier owners refused."""
        while True:
            try:
                await self._hand.provider.owned(self._ownership.order(self._pool, "stop", 0).fence)
            except ProviderFault as fault:
                log.warning("pool_fence_not_told pool=%s: %s", self._pool, fault)
                await asyncio.sleep(LOOK_S)
            else:
                return

    async def _look(self) -> None:
        """Which members run that this node has off."""
        try:
            running = await self._hand.status()
        except ProviderFault as fault:
            log.warning("pool_status_unknown pool=%s: %s", self._pool, fault)
            return
        off = [i for i, phase in enumerate(self._members()) if phase in (MemberPhase.OFF, MemberPhase.ASLEEP)]
        states = {i: await self._adoption.state(i, running[i]) for i in off if i in running}
        answering = [i for i, state in states.items() if state == "ready"]
        others = self._ownership.others(self._pool)
        for event in self._follower.found(answering, others, self._members()):
            if isinstance(event, Started):
                log.info("pool_joins pool=%s member=%d", self._pool, event.member)
                self._hand.take_over(event.member, running[event.member], starting=False)
            else:
                self._step(event)
