"""Who may go upstream now, who waits, who is refused: per model, over all workers of the node.

Reserve first: a worker counts itself in, then sums; over the limit it takes that back and queues. With W workers
that admits at most W-1 over the limit and never refuses below the limit minus W.

Each worker queues its own arrivals and says in shared memory how much its neediest needs a place (:mod:`.fairness`). A
free place goes to the neediest of all: a worker that is not it leaves the place alone for :data:`POLL_S`, in which time
every worker where somebody waits looks for it, and takes it when it is still free then. Whoever comes to a last free
place does not overtake those that wait elsewhere.

What can no longer be served in time is refused first: at the door when the wait would be too long, out of a full queue
when it will be. A full queue then makes room for a tenant that has less of it for its weight than another: the newest
of the longest lane goes, of the worst priority first. Where the longest lanes are another worker's, the newcomer is
let in and the other worker makes the room when it looks next; :data:`_SPARE` bounds by how many the queue may be too
long meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from time import perf_counter_ns

import xxhash

from ..cache.rows import SHARE_QUEUED, SHARE_RUNNING
from .bounds import Bounds, OwnRow, Queued, Sums
from .caller import ANYONE, Caller
from .door import Dismissed, Door
from .errors import Fault, Kind
from .fairness import Lane, Line, Waiter, needier, urgency, urgency_of
from .seldom import Seldom

log = logging.getLogger(__name__)

#: How often a worker looks for a place, and at what others wait for, while somebody waits in it.
POLL_S = 0.002
_DOOMED_EVERY_S = 0.02
_SPARE = 64
_MOST_SHARES = 1 << 16


class Admission:
    """One worker's doors: ``try_enter`` for the fast path, ``queue`` for the others, ``leave`` on every way out.

    ``keys``: how many shares there are cells for; 0 where there is one tenant only.
    """

    __slots__ = (
        "_clock",
        "_doors",
        "_keys",
        "_loop",
        "_row",
        "_seldom",
        "_shares",
        "_sums",
        "_timer",
        "_waited_for",
    )

    def __init__(
        self,
        row: OwnRow,
        sums: Sums,
        *,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], float],
        keys: int = 0,
    ) -> None:
        self._row = row
        self._sums = sums
        self._loop = loop
        self._clock = clock
        self._keys = keys
        self._doors: dict[int, Door] = {}
        #: the doors where somebody waits
        self._waited_for: dict[int, Door] = {}
        self._shares: dict[tuple[object, ...], int] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._seldom = Seldom()

    # ---- for requests

    def try_enter(self, model: Bounds, caller: Caller = ANYONE) -> bool:
        """Take a place if one is free and nobody that needs it more waits for it."""
        index = model.index
        if self._waited_for and index in self._waited_for:
            return False
        self._row.add_running(index, 1)
        running = self._sums.running(index)
        # a wish is seen only by who takes the last place: before that there is one for both
        if running >= model.places and (running > model.places or any(self._sums.wishes(index))):
            self._row.add_running(index, -1)
            return False
        if self._keys:
            share = self._shares.get((index, caller.tenant))
            if share is None:
                share = self._share(index, caller.tenant)
            self._row.add_key(SHARE_RUNNING, share, 1)
        return True

    async def queue(self, model: Bounds, life: Queued, caller: Caller = ANYONE, seated: bool = False) -> None:
        """As :meth:`wait`; says so in the log when it was in vain, and to ``life`` how long it took."""
        started = perf_counter_ns()
        try:
            await self.wait(model, caller, seated)
        except Fault as fault:
            more = self._seldom.due((model.name, fault.kind), self._clock())
            if more is not None:
                log.info("%s model=%s more=%d", fault.kind.value, model.name, more)
            raise
        finally:
            life.queued_ns += perf_counter_ns() - started

    async def wait(self, model: Bounds, caller: Caller = ANYONE, seated: bool = False) -> None:
        """Queue until a place is taken; raises :class:`Fault` 429 when there is no room or no time, 504 when time ran
        out; :class:`Dismissed` when there is nothing to wait for. ``seated``: it has waited for the model's servers to
        wake, so it is not turned away at the door.
        """
        waiter = self._join(model, caller, seated)
        try:
            await waiter.future
        except BaseException:
            if waiter.lane is not None:
                self._remove(self._doors[model.index], waiter)
            elif waiter.future.done() and not waiter.future.cancelled() and waiter.future.exception() is None:
                # the place was handed over in the very turn that cancelled the wait
                self.leave(model, caller)
            raise

    def leave(self, model: Bounds, caller: Caller = ANYONE) -> None:
        """Give a place back and hand it to the next waiter."""
        index = model.index
        self._row.add_running(index, -1)
        if self._keys:
            share = self._shares.get((index, caller.tenant))
            if share is None:
                share = self._share(index, caller.tenant)
            self._row.add_key(SHARE_RUNNING, share, -1)
        if self._waited_for and index in self._waited_for:
            self._advance(self._waited_for[index])

    def swap(self, models: Iterable[Bounds]) -> None:
        """Other bounds for those that wait already; what a new configuration does not name keeps its own."""
        for model in models:
            door = self._doors.get(model.index)
            if door is not None:
                door.model = model

    @property
    def waiting(self) -> int:
        """Requests of this worker that wait now."""
        return sum(door.line.waiting for door in self._waited_for.values())

    # ---- the queue

    def _join(self, model: Bounds, caller: Caller, seated: bool) -> Waiter:
        index = model.index
        door = self._doors.get(index)
        if door is None:
            door = self._doors[index] = Door(model, Line(self._running_of, self._tag_of))
        door.model = model
        now = self._clock()
        lane = self.lane(index, caller)
        within_s = model.queue_timeout_s
        expected_s = 0.0 if seated else door.line.expected_s(lane, now, within_s)
        full = not seated and self.depth(index) >= model.max_queue
        if (full or expected_s > within_s) and self._drop_doomed(door, now):
            expected_s = door.line.expected_s(lane, now, within_s)
            full = self.depth(index) >= model.max_queue
        if expected_s > within_s:
            message = f"the wait at '{model.name}' would be longer than queue_timeout_s ({within_s:g} s)"
            raise self._refusal(model, message, expected_s - within_s)
        if full and not self._make_room(door, lane):
            raise self.full(model, expected_s)
        self._count_queued(index, lane.share, 1)
        if not full and not seated and self.depth(index) > model.max_queue:
            self._count_queued(index, lane.share, -1)
            raise self.full(model, expected_s)
        waiter = Waiter(self._loop.create_future(), now, now + within_s)
        door.line.join(waiter, lane, self._sums.wishes(index) if self._keys else ())
        self._waited_for[index] = door
        if self._timer is None:
            self._timer = self._loop.call_later(POLL_S, self._poll)
        self._advance(door)
        return waiter

    def lane(self, index: int, caller: Caller) -> Lane:
        """A lane for requests of a caller to the model with that index; nobody is in it."""
        if not self._keys:
            return Lane("", caller.priority, 1.0, 0, 0)
        share = self._share(index, caller.tenant)
        account = self._share(index, caller.tenant, caller.priority)
        return Lane(caller.tenant, caller.priority, caller.weight, share, account)

    def _advance(self, door: Door) -> None:
        """Hand on what places are free; leave them to who needs them more, but not for ever."""
        index, line, sums = door.model.index, door.line, self._sums
        now = self._clock()
        unwanted = door.spared_at is not None and now - door.spared_at >= POLL_S
        while line.waiting:
            lane, need = line.neediest(now)
            first = next(iter(lane.waiters))
            if first.future.done():  # cancelled, and its task has not run yet
                self._remove(door, first)
                continue
            self._wish(door, need, lane.share)
            if sums.running(index) >= door.model.places:
                door.spared_at = None
                return
            if not unwanted and needier(need, lane.share, sums.wishes(index), sums.wish_shares(index)):
                if door.spared_at is None:
                    door.spared_at = now
                return
            self._row.add_running(index, 1)
            if sums.running(index) > door.model.places:
                self._row.add_running(index, -1)
                return
            waiter, tag = line.admit(lane, now)
            self._count_queued(index, lane.share, -1)
            if self._keys:
                self._row.add_key(SHARE_RUNNING, lane.share, 1)
                self._row.tag(lane.account, tag)
            waiter.future.set_result(None)
        self._empty(door)

    def _remove(self, door: Door, waiter: Waiter) -> Lane:
        """It waits no more, and has no place."""
        lane = door.line.remove(waiter)
        self._count_queued(door.model.index, lane.share, -1)
        if not door.line.waiting:
            self._empty(door)
        return lane

    def _empty(self, door: Door) -> None:
        self._wish(door, 0, 0)
        door.spared_at = None
        self._waited_for.pop(door.model.index, None)

    def _wish(self, door: Door, need: int, share: int) -> None:
        if need != door.wished or share != door.wished_share:
            door.wished, door.wished_share = need, share
            self._row.wish(door.model.index, need, share)

    def _poll(self) -> None:
        """Find places that other workers freed, and make the room that other workers let somebody in for."""
        self._timer = None
        for door in list(self._waited_for.values()):
            self._advance(door)
            if self._keys:
                while self.depth(door.model.index) > door.model.max_queue and self._crowded(door):
                    pass
        if self._waited_for:
            self._timer = self._loop.call_later(POLL_S, self._poll)

    def tick(self, now: float) -> None:
        """End the waits that took too long."""
        for door in list(self._waited_for.values()):
            for waiter in door.line.late(now):
                self._time_out(door, waiter, "no place at '%s' within queue_timeout_s (%g s)")

    def dismiss(self, index: int) -> None:
        """Nobody waits for a place at that model any more: its servers go, and are waited for elsewhere."""
        door = self._waited_for.get(index)
        while door is not None and door.line.waiting:
            waiter = next(iter(next(door.line.lanes()).waiters))
            self._remove(door, waiter)
            if not waiter.future.done():
                waiter.future.set_exception(Dismissed())

    # ---- a full queue

    def _drop_doomed(self, door: Door, now: float) -> bool:
        """End the waits that will be in vain; whether there were any."""
        if now - door.doomed_at < _DOOMED_EVERY_S:
            return False
        door.doomed_at = now
        doomed = door.line.doomed(now, door.model.queue_timeout_s)
        for waiter in doomed:
            self._time_out(door, waiter, "no place at '%s' can be had within queue_timeout_s (%g s) any more")
        return bool(doomed)

    def _make_room(self, door: Door, newcomer: Lane) -> bool:
        """Whether one more may wait in a queue that is full."""
        victim = self.gives_way(door.line, newcomer)
        if victim is not None:
            self._push_out(door, victim)
            return True
        index = door.model.index
        if not self._keys or self.depth(index) >= door.model.max_queue + _SPARE:
            return False
        wishes = self._sums.wishes(index)
        if door.wished:
            wishes.remove(door.wished)
        return (
            any(wishes)
            and urgency_of(newcomer.priority) >= urgency(max(wishes))
            and self._elsewhere(door, newcomer) > self._length(door.line, newcomer, 1)
        )

    def gives_way(self, line: Line, newcomer: Lane) -> Lane | None:
        """Whose newest goes from a line that is full, so that the newcomer may wait; None: nobody's."""
        victim = line.longest()
        if victim is None or victim.priority < newcomer.priority:
            return None
        longer = self._length(line, victim) > self._length(line, newcomer, 1)
        return victim if longer or victim.priority > newcomer.priority else None

    def _crowded(self, door: Door) -> bool:
        """Push out one that is too many, if it is here that most are too many."""
        victim = door.line.longest()
        if victim is None or self._length(door.line, victim) < self._elsewhere(door, victim):
            return False
        self._push_out(door, victim)
        return True

    def _length(self, line: Line, lane: Lane, more: int = 0) -> float:
        """How many wait of the lane's tenant, all workers together, for its weight."""
        count = self._sums.of_key(SHARE_QUEUED, lane.share) if self._keys else line.waiting
        return (count + more) / lane.weight

    def _elsewhere(self, door: Door, lane: Lane) -> int:
        """How many of other tenants wait in other workers."""
        own = self._sums.of_key(SHARE_QUEUED, lane.share) - door.line.of_tenant(lane.tenant)
        return self.depth(door.model.index) - door.line.waiting - own

    # ---- refusals

    def _push_out(self, door: Door, victim: Lane) -> None:
        waiter = next(reversed(victim.waiters))
        expected_s = door.line.expected_s(victim, self._clock(), door.model.queue_timeout_s)
        fault = self.full(door.model, expected_s)
        self._remove(door, waiter)
        if not waiter.future.done():
            waiter.future.set_exception(fault)

    def _time_out(self, door: Door, waiter: Waiter, message: str) -> None:
        lane = self._remove(door, waiter)
        if not waiter.future.done():
            model = door.model
            expected_s = door.line.expected_s(lane, self._clock(), model.queue_timeout_s)
            waiter.future.set_exception(
                Fault(
                    Kind.QUEUE_TIMEOUT,
                    message % (model.name, model.queue_timeout_s),
                    retry_after_s=max(1.0, expected_s),
                )
            )

    def full(self, model: Bounds, expected_s: float) -> Fault:
        """What somebody is told who finds no room."""
        depth = self.depth(model.index)
        return self._refusal(model, f"the queue of '{model.name}' is full ({depth} waiting)", expected_s)

    def _refusal(self, model: Bounds, message: str, again_s: float) -> Fault:
        """429; ``again_s`` is when it may go better, as far as that is known."""
        return Fault(
            Kind.QUEUE_FULL,
            message,
            retry_after_s=max(1.0, again_s),
            headers=(("x-queue-depth", str(self.depth(model.index))),),
        )

    # ---- shares

    def depth(self, index: int) -> int:
        """How many wait for the model with that index, all workers together: for a place, or for its servers."""
        return self._sums.queued(index) + self._sums.waiting(index)

    def count_waiting(self, index: int, caller: Caller, n: int) -> None:
        """Count n more (or fewer) of a caller's that wait for the model's servers."""
        self._row.add_waiting(index, n)
        if self._keys:
            self._row.add_key(SHARE_QUEUED, self._share(index, caller.tenant), n)

    def _count_queued(self, index: int, share: int, n: int) -> None:
        self._row.add_queued(index, n)
        if self._keys:
            self._row.add_key(SHARE_QUEUED, share, n)

    def _share(self, *of: object) -> int:
        share = self._shares.get(of)
        if share is None:
            share = xxhash.xxh3_64_intdigest("\n".join(map(str, of)).encode()) % self._keys
            if len(self._shares) >= _MOST_SHARES:
                self._shares.clear()
            self._shares[of] = share
        return share

    def _running_of(self, share: int) -> int:
        return self._sums.of_key(SHARE_RUNNING, share) if self._keys else 0

    def _tag_of(self, account: int) -> int:
        return self._sums.tag(account) if self._keys else 0
