"""Who of those that wait for a place at a model comes next: priorities, and fair shares among tenants.

Strategy: of those with the best priority the tenant that has the fewest places for its weight, all workers together, in
whole places; so nobody takes the others' places by long requests. Where that is even, start-time fair queueing (Goyal,
Vin, Cheng, "Start-time Fair Queuing", SIGCOMM 1996) by the number of requests: each admission moves a tenant's *tag* on
by 1/weight, the lowest tag is next, and who begins to wait begins where the last that was let in began, so that time
without requests earns nothing. Where that is even too, who waits longest. Within a tenant and priority, in order.

All of it is one number, the *need*, which workers can compare: 0 where nobody waits, else, from the highest bit,
    11 bits  1000 less the priority
    11 bits  2047 less whole places for its weight, at most 2047
    34 bits  what is left to the highest tag there can be, in eighths of an admission
    8 bits   quarters of a second that it has waited, at most 255

A share (a cell's number) is a hash, so two tenants may have one; they are treated as one then. Tags are kept for each
priority on its own, at the highest that any worker wrote. Knows no tasks and no counts but through the
functions it is given.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from itertools import islice, takewhile

from .pace import Pace

#: One admission at weight 1, in a tag.
UNIT = 1 << 16
_TAG_SHIFT = 13
_TAG_BITS = 34
_TAG_MAX = (1 << _TAG_BITS) - 1
_ROUNDS_MAX = 2047
_PRIORITY_MAX = 1000
_WAIT_S = 0.25
_WAIT_MAX = 255
_RANK_SHIFT = 53
_LEAST_WEIGHT = 0.001
#: Tenants looked at for one place; those served longest ago come first, so each has its turn.
_LOOKED_AT = 64


class Waiter:
    """One request that waits; ``future`` tells it how that ended. ``lane`` is None once it waits no more."""

    __slots__ = ("deadline", "future", "lane", "since")

    def __init__(self, future: asyncio.Future[None], since: float, deadline: float) -> None:
        self.future = future
        self.since = since
        self.deadline = deadline
        self.lane: Lane | None = None


class Lane:
    """One tenant's waiters of one priority, in order. ``floor``: where its tag was when they began to wait."""

    __slots__ = ("account", "floor", "priority", "share", "tenant", "waiters", "weight")

    def __init__(self, tenant: str, priority: int, weight: float, share: int, account: int) -> None:
        self.tenant = tenant
        self.priority = priority
        self.weight = max(weight, _LEAST_WEIGHT)
        self.share = share
        self.account = account
        self.floor = 0
        self.waiters: OrderedDict[Waiter, None] = OrderedDict()


class _Rank:
    """The lanes of one priority."""

    __slots__ = ("lanes", "waiting", "weight")

    def __init__(self) -> None:
        self.lanes: OrderedDict[str, Lane] = OrderedDict()
        self.waiting = 0
        self.weight = 0.0


class Line:
    """Those who wait in this worker for a place at one model.

    ``running`` and ``tag`` say of a share what all workers together have written.
    """

    __slots__ = ("_began_at", "_ranks", "_running", "_tag", "pace", "waiting")

    def __init__(self, running: Callable[[int], int], tag: Callable[[int], int]) -> None:
        self._running = running
        self._tag = tag
        self._ranks: dict[int, _Rank] = {}
        #: the highest tag at which a request was let in, by priority
        self._began_at: dict[int, int] = {}
        self.pace = Pace()
        self.waiting = 0

    # ---- coming and going

    def join(self, waiter: Waiter, lane: Lane, wishes: Iterable[int]) -> None:
        """Wait behind the others of the same tenant and priority; ``lane`` is used where there are none."""
        rank = self._ranks.get(lane.priority)
        if rank is None:
            if not self._ranks:
                self.pace.begin(waiter.since)
            rank = self._ranks[lane.priority] = _Rank()
        known = rank.lanes.get(lane.tenant)
        if known is None:
            lane.floor = self._lowest(lane.priority, rank, wishes)
            known = rank.lanes[lane.tenant] = lane
            rank.weight += lane.weight
        waiter.lane = known
        known.waiters[waiter] = None
        rank.waiting += 1
        self.waiting += 1

    def remove(self, waiter: Waiter) -> Lane:
        """It waits no more, for whatever reason."""
        lane = waiter.lane
        assert lane is not None
        waiter.lane = None
        del lane.waiters[waiter]
        rank = self._ranks[lane.priority]
        rank.waiting -= 1
        self.waiting -= 1
        if not lane.waiters:
            del rank.lanes[lane.tenant]
            rank.weight -= lane.weight
            if not rank.lanes:
                del self._ranks[lane.priority]
        return lane

    def admit(self, lane: Lane, now: float) -> tuple[Waiter, int]:
        """Take the first out of ``lane``: its waiter, and the tag that the lane's account has from now on."""
        began = self._at(lane)
        self._began_at[lane.priority] = max(began, self._began_at.get(lane.priority, 0))
        self._ranks[lane.priority].lanes.move_to_end(lane.tenant)
        waiter = next(iter(lane.waiters))
        self.remove(waiter)
        self.pace.admitted(now)
        return waiter, began + int(UNIT / lane.weight)

    # ---- who comes next

    def neediest(self, now: float) -> tuple[Lane, int]:
        """The lane whose first waiter needs the next place most, and how much. Somebody must wait."""
        rank = self._ranks[min(self._ranks)]
        best, most = None, 0
        for lane in islice(rank.lanes.values(), _LOOKED_AT):
            need = self._need(lane, now)
            if need > most:
                best, most = lane, need
        assert best is not None
        return best, most

    def _need(self, lane: Lane, now: float) -> int:
        rounds = min(int(self._running(lane.share) / lane.weight), _ROUNDS_MAX)
        tag = min(self._at(lane) >> _TAG_SHIFT, _TAG_MAX)
        waited = min(int((now - next(iter(lane.waiters)).since) / _WAIT_S), _WAIT_MAX)
        need = (urgency_of(lane.priority) << 11 | _ROUNDS_MAX - rounds) << _TAG_BITS | _TAG_MAX - tag
        return need << 8 | max(waited, 0) or 1

    def _at(self, lane: Lane) -> int:
        return max(lane.floor, self._tag(lane.account))

    def _lowest(self, priority: int, rank: _Rank, wishes: Iterable[int]) -> int:
        """Where the last of a priority began that was let in, as far as it shows: here, and by who waits anywhere."""
        urgency = urgency_of(priority)
        tags = [self._at(lane) for lane in islice(rank.lanes.values(), _LOOKED_AT)]
        tags += [
            (_TAG_MAX - (w >> 8 & _TAG_MAX)) << _TAG_SHIFT for w in wishes if w >> _RANK_SHIFT == urgency
        ]
        return max(self._began_at.get(priority, 0), min(tags, default=0) - UNIT)

    # ---- how long it takes

    def expected_s(self, lane: Lane, now: float, valid_s: float) -> float:
        """How long a request of such a lane would wait that comes now; 0 where that is not known."""
        ahead, rank = self._before(lane.priority)
        if rank is not None:
            known = rank.lanes.get(lane.tenant)
            weight, own = (rank.weight, len(known.waiters)) if known else (rank.weight + lane.weight, 0)
            ahead += min(rank.waiting, (own + 1) * weight / lane.weight - 1)
        return self.pace.expected_s(ahead, now, valid_s)

    def doomed(self, now: float, valid_s: float) -> list[Waiter]:
        """Those that will not have a place by their deadline, by the pace there is."""
        found = []
        for priority, rank in self._ranks.items():
            before, _ = self._before(priority)
            for lane in rank.lanes.values():
                turn = rank.weight / lane.weight
                stay = 0
                for waiter in lane.waiters:
                    ahead = before + min(rank.waiting - 1, (stay + 1) * turn - 1)
                    if now + self.pace.expected_s(ahead, now, valid_s) > waiter.deadline:
                        found.append(waiter)
                    else:
                        stay += 1
        return found

    def _before(self, priority: int) -> tuple[float, _Rank | None]:
        better = sum(rank.waiting for other, rank in self._ranks.items() if other < priority)
        return better, self._ranks.get(priority)

    def late(self, now: float) -> list[Waiter]:
        """Those whose deadline has passed."""
        return [w for lane in self.lanes() for w in takewhile(lambda w: w.deadline <= now, lane.waiters)]

    # ---- who has too much

    def longest(self) -> Lane | None:
        """Of the worst priority that waits here, the lane with the most waiters for its weight."""
        if not self._ranks:
            return None
        lanes = self._ranks[max(self._ranks)].lanes.values()
        return max(lanes, key=lambda lane: len(lane.waiters) / lane.weight)

    def of_tenant(self, tenant: str) -> int:
        """How many of a tenant wait here."""
        ranks = self._ranks.values()
        return sum(len(rank.lanes[tenant].waiters) for rank in ranks if tenant in rank.lanes)

    def lanes(self) -> Iterator[Lane]:
        """All of them."""
        for rank in self._ranks.values():
            yield from rank.lanes.values()


def needier(need: int, share: int, needs: list[int], shares: list[int]) -> bool:
    """Whether anybody needs a place more than who needs it so much.

    Of one share the same is true in every worker, though who has just given back one of its places knows it first:
    there the priority counts, and the time that they have waited.
    """
    own = (need >> _RANK_SHIFT, need & _WAIT_MAX)
    for other, whose in zip(needs, shares, strict=True):
        if other and ((other >> _RANK_SHIFT, other & _WAIT_MAX) > own if whose == share else other > need):
            return True
    return False


def urgency(need: int) -> int:
    """What a need says of the priority: higher is more urgent."""
    return need >> _RANK_SHIFT


def urgency_of(priority: int) -> int:
    """A priority as :func:`urgency` gives it."""
    return _PRIORITY_MAX - max(-_PRIORITY_MAX, min(priority, _PRIORITY_MAX))
