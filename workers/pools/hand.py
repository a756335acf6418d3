"""A pool's hand: does to its servers what the machine says, and says what came of it.

Strategy: one task a member. Each ends in the one event that its effect ends in, whatever happens; a stop first ends
the task it overtakes. What ends or puts to sleep a server is confirmed with the pool's owner the moment before.
It refuses to know why anything is to be done.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Mapping
from typing import Any

from ...gateway.config.pool import Pool
from ..expand import member_name
from ..target import Target
from .ground import Ground
from .ownership import Ownership
from .providers.base import Order, Provider, ProviderFault, Running
from .ready import until_ready
from .sleeper import Sleeper
from .words import (
    Died,
    Effect,
    Event,
    Sleep,
    SleepFailed,
    Slept,
    Start,
    Started,
    StartFailed,
    Stop,
    StopFailed,
    Stopped,
    WakeFailed,
    Woke,
)

log = logging.getLogger(__name__)

KILL_S = 1.0
"""What a server that does not answer is given to end by itself."""
_UNPLACED = "where it answers could not be published; the controller's log says why"


class Hand:
    """tell: takes the events. targets: the servers that a member is asked at, () while that is unknown."""

    def __init__(
        self,
        name: str,
        pool: Pool,
        provider: Provider,
        ground: Ground,
        ownership: Ownership,
        tell: Callable[[Event], None],
        targets: Callable[[int], list[Target]],
    ) -> None:
        self.name = name
        self.pool = pool
        self.provider = provider
        self._ground = ground
        self._ownership = ownership
        self._tell = tell
        self._targets = targets
        self._tasks: dict[int, asyncio.Task[None]] = {}
        #: members that run, or did when last heard of
        self.running: dict[int, Running] = {}
        provider.ended = self._ended

    async def status(self) -> Mapping[int, Running]:
        """What runs, as the provider says. Raises ProviderFault, whatever goes wrong there."""
        try:
            return await self.provider.status()
        except ProviderFault:
            raise
        except Exception as fault:  # an answer of somebody else's that nobody thought of
            log.exception("pool_status_failed pool=%s", self.name)
            raise ProviderFault(f"the provider failed: {type(fault).__name__}") from None

    async def idle(self) -> None:
        """Until nothing is being done."""
        while self._tasks:
            await asyncio.wait(list(self._tasks.values()))

    def use(self, pool: Pool, provider: Provider) -> Provider:
        """Go on with another provider, when nothing is being done; the one before, to be closed."""
        old, self.provider, self.pool = self.provider, provider, pool
        old.ended = lambda member, reason: None
        provider.ended = self._ended
        return old

    def do(self, effect: Effect, gpus: tuple[int, ...] = ()) -> None:
        """Begin with it. gpus: of a start, the devices it was granted."""
        member = effect.member
        before = self._tasks.get(member)
        doing: Coroutine[Any, Any, None]
        if isinstance(effect, Start):
            doing = self._start(member, gpus)
        elif isinstance(effect, Stop):
            doing = self._stop(member)
        elif isinstance(effect, Sleep):
            doing = self._sleep(member, effect.level)
        else:
            doing = self._wake(member, effect.level, gpus)
        self._begin(member, doing, before)

    def take_over(self, member: int, running: Running, *, starting: bool, asleep: bool = False) -> None:
        """Say that this member was found running. starting: it did not answer yet, so it is waited for."""
        self.running[member] = running
        if starting:
            self._begin(member, self._start(member, running.gpus), self._tasks.get(member))
        else:
            self._begin(member, self._found(member, running, asleep), self._tasks.get(member))

    async def settled(self, members: Collection[int]) -> None:
        """Until nothing is being done to these."""
        while tasks := [task for member, task in self._tasks.items() if member in members]:
            await asyncio.wait(tasks)

    def end(self, member: int) -> None:
        """Stop one that the machine does not know, and say nothing of it."""
        self._begin(member, self._end(member), self._tasks.get(member))

    def lost(self, member: int, reason: str) -> None:
        """A member that was ready or asleep answers no more: end what is left of it, and say that it died."""
        if member not in self._tasks:
            self._begin(member, self._bury(member, reason), None)

    def _begin(
        self, member: int, doing: Coroutine[Any, Any, None], before: asyncio.Task[None] | None
    ) -> None:
        task = asyncio.ensure_future(self._after(before, doing))
        self._tasks[member] = task

        def done(ended: asyncio.Task[None]) -> None:
            if self._tasks.get(member) is ended:
                del self._tasks[member]
            if not ended.cancelled() and ended.exception() is not None:
                log.error("pool_task_failed pool=%s member=%d", self.name, member, exc_info=ended.exception())

        task.add_done_callback(done)

    async def _after(self, before: asyncio.Task[None] | None, doing: Coroutine[Any, Any, None]) -> None:
        try:
            if before is not None:
                before.cancel()
                await asyncio.wait([before])
        except asyncio.CancelledError:
            doing.close()
            raise
        await doing

    # ---- effects

    async def _start(self, member: int, gpus: tuple[int, ...]) -> None:
        order = self._ownership.order(self.name, "start", member, gpus)
        try:
            running = await self.provider.ensure_ready(member, order, self.pool.ready_timeout_s)
        except ProviderFault as fault:
            self._say(member, StartFailed(member, str(fault)))
            return
        except Exception as fault:  # a waiter must not wait for it for ever
            log.exception("pool_start_failed pool=%s member=%d", self.name, member)
            await self._clear_away(member, order)
            self._say(member, StartFailed(member, f"the provider failed: {type(fault).__name__}"))
            return
        self.running[member] = running
        if not await self._placed(member, running):
            await self._clear_away(member, order)
            self._say(member, StartFailed(member, _UNPLACED))
            return
        self._say(member, Started(member))

    async def _found(self, member: int, running: Running, asleep: bool) -> None:
        if not await self._placed(member, running):
            await self._clear_away(member, self._ownership.order(self.name, "stop", member))
            self.running.pop(member, None)
            return
        self._say(member, Slept(member) if asleep else Started(member))

    async def _stop(self, member: int) -> None:
        order = self._ownership.order(self.name, "stop", member)
        try:
            if not await self._ownership.confirm(self.name, order):
                raise ProviderFault("another node owns the pool")
            await self.provider.ensure_stopped(member, order, self.pool.stop_timeout_s)
        except ProviderFault as fault:
            log.warning("pool_stop_failed pool=%s member=%d: %s", self.name, member, fault)
            self._say(member, StopFailed(member, str(fault)))
        except Exception as fault:
            log.exception("pool_stop_failed pool=%s member=%d", self.name, member)
            self._say(member, StopFailed(member, f"the provider failed: {type(fault).__name__}"))
        else:
            self.running.pop(member, None)
            self._say(member, Stopped(member))

    async def _end(self, member: int) -> None:
        order = self._ownership.order(self.name, "stop", member)
        try:
            if await self._ownership.confirm(self.name, order):
                await self.provider.ensure_stopped(member, order, self.pool.stop_timeout_s)
        except ProviderFault as fault:
            log.warning("pool_stop_failed pool=%s member=%d: %s", self.name, member, fault)

    async def _sleep(self, member: int, level: int) -> None:
        order = self._ownership.order(self.name, "sleep", member)
        try:
            if not await self._ownership.confirm(self.name, order):
                raise ProviderFault("another node owns the pool")
            async for target in self._each(member):
                await Sleeper(target).sleep(level, self.pool.stop_timeout_s)
        except ProviderFault as fault:
            log.warning("pool_sleep_failed pool=%s member=%d: %s", self.name, member, fault)
            self._say(member, SleepFailed(member, str(fault)))
        except Exception as fault:
            log.exception("pool_sleep_failed pool=%s member=%d", self.name, member)
            self._say(member, SleepFailed(member, type(fault).__name__))
        else:
            self._say(member, Slept(member))

    async def _wake(self, member: int, level: int, gpus: tuple[int, ...]) -> None:
        timeout_s = self.pool.ready_timeout_s
        health = self._ground.published().config.health.path
        key = self._ground.environ.get(self.pool.api_key_env or "")
        try:
            async with asyncio.timeout(timeout_s):
                async for target in self._each(member):
                    await Sleeper(target).wake(level, timeout_s)
                    await until_ready(target.key.url, path=health, api_key=key)
        except TimeoutError:
            self._say(member, WakeFailed(member, f"it did not wake up within {timeout_s:g} s"))
        except ProviderFault as fault:
            log.warning("pool_wake_failed pool=%s member=%d: %s", self.name, member, fault)
            self._say(member, WakeFailed(member, str(fault)))
        except Exception as fault:
            log.exception("pool_wake_failed pool=%s member=%d", self.name, member)
            self._say(member, WakeFailed(member, type(fault).__name__))
        else:
            self._say(member, Woke(member))

    async def _bury(self, member: int, reason: str) -> None:
        if self.provider.local:
            await self._clear_away(member, self._ownership.order(self.name, "stop", member))
        self.running.pop(member, None)
        self._say(member, Died(member, reason))

    async def _clear_away(self, member: int, order: Order) -> None:
        if not await self._ownership.confirm(self.name, order):
            return  # other nodes may be using it
        try:
            await self.provider.ensure_stopped(member, order, KILL_S)
        except Exception as fault:
            log.warning("pool_member_not_ended pool=%s member=%d: %s", self.name, member, fault)

    async def _each(self, member: int) -> AsyncIterator[Target]:
        for target in self._targets(member):
            try:
                yield target
            finally:
                await target.close()

    async def _placed(self, member: int, running: Running) -> bool:
        if running.url is None:
            return True
        return await self._ground.place(member_name(self.name, member), running.url)

    def _say(self, member: int, event: Event) -> None:
        # the machine may answer with the next effect at once, which this task must not be in the way of
        self._tasks.pop(member, None)
        if isinstance(event, StartFailed):  # nothing of it is left, also where it had been found running
            self.running.pop(member, None)
        self._tell(event)

    def _ended(self, member: int, reason: str) -> None:
        """The provider saw one end that ran. While something is done to it, that says so itself."""
        if member in self._tasks:
            return
        self.running.pop(member, None)
        self._tell(Died(member, reason))

    # ---- ends

    async def stop_all(self) -> bool:
        """End every server, whatever else is going on: the gateway stops, or the pool is no longer configured.

        Whether all of them have ended.
        """
        found = {*self._tasks, *self.running}
        if not self.provider.local:  # others may have begun to start one, that nobody sees yet
            found |= {*range(self.pool.max)}
        await self.let_go()
        with contextlib.suppress(ProviderFault):
            found |= {*await self.status()}

        async def end(member: int) -> None:
            order = self._ownership.order(self.name, "stop", member)
            if not await self._ownership.confirm(self.name, order):
                raise ProviderFault("other nodes have not agreed to it")
            await self.provider.ensure_stopped(member, order, self.pool.stop_timeout_s)
            self.running.pop(member, None)

        faults = await asyncio.gather(*map(end, found), return_exceptions=True)
        for member, fault in zip(found, faults, strict=True):
            if isinstance(fault, BaseException):
                log.error("pool_stop_failed pool=%s member=%d: %s", self.name, member, fault)
        return not any(faults)

    async def let_go(self) -> None:
        """Do no more; servers stay as they are, those that start go on starting."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
