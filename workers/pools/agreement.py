"""What nodes agree on about one shared pool: who owns it, what is drained, who has work. Pure: no I/O, no clock.

Strategy. The lease is replaced by comparison, so of two that want it one gets it. Nobody's clock is believed but one's
own: an owner counts from before it sent its last renewal, the others from when they last saw the lease change, so the
owner has given up before anybody may take over, whatever clocks say. The store may lose what it was told: what a node
has heard it remembers, so fences and counts grow on, and a lease that is missing is waited for as one that is held.

A stop has two phases. The owner announces which members drain; every node that sees it holds its requests for them
back and says so once it has none in flight; with the words of all nodes there, the owner writes the stop into the
lease (`confirming`), and only then does it. A node that joins writes its word before it reads the lease: either the
owner sees the node or the node sees the drain. It holds on until the lease no longer has the drain.

A node that is no longer configured with the pool leaves: it says so, and `left` once it has nothing in flight. While
another one stays it wants no lease, and some time later is through with it. Where none stays, one of those that leave
has the lease, and ends the servers when all have left, by the same two phases.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from msgspec.structs import replace

from ...cache.pool_table import PoolPhase
from .lease import Lease, Seen, Told, Word
from .nodes import Nodes, Timing
from .ownership import Verb
from .providers.base import Order
from .settling import Settling
from .words import Load, MemberPhase, Others

READY, OFF = MemberPhase.READY, MemberPhase.OFF
_LEAVING = (MemberPhase.DRAINING, MemberPhase.STOPPING)


class Agreement:
    """One pool, as this node sees it. life: of this controller, of no other; era: of a lease that it has to make."""

    def __init__(self, pool: str, life: str, era: Callable[[], str], timing: Timing, now: float) -> None:
        self.pool = pool
        self._life = life
        self._era = era
        self._timing = timing
        self._born = self._now = now
        self._lease: Lease | None = None
        self._version = ""
        self._floor = 0
        self._fence = 0  # the highest there was
        self._stops: list[int] = []  # of the lease, the highest there were
        self._mine: dict[int, int] = {}  # of them, this node's own
        self._heard: float | None = None  # the last exchange
        self._changed = now  # when the lease last did
        self._sent: Lease | None = None
        self._proven = self._renewed = -1.0
        self._nodes = Nodes(timing)
        self._beat = self._works = 0
        self._busy = self._was_busy = True  # until told otherwise
        self._load = Load()
        self._phase = PoolPhase.NONE
        self._members: tuple[MemberPhase, ...] = ()
        self._settling: tuple[tuple[int, int], Settling] | None = None
        self._drained = self._holding = (0, 0)
        self._used: set[tuple[str, int, int]] = set()
        self._serial = 0
        self._orders: dict[int, tuple[str, Verb, int, int]] = {}  # by member: key, verb, fence, drain
        self._ended: dict[int, str] = {}  # by member: key of the stop that the lease has
        self._leaves: float | None = None  # since when
        self._over = False  # another one that leaves has ended the servers

    # ---- what this node does

    def leave(self, now: float) -> None:
        """This node is no longer configured with it."""
        if self._leaves is None:
            self._leaves, self._over = now, False
            self._busy = self._was_busy = True

    def stay(self) -> None:
        """It is, again."""
        if self._leaves is not None:
            self._leaves = None
            self._busy = self._was_busy = True
            self._load, self._phase, self._members = Load(), PoolPhase.NONE, ()

    @property
    def leaves(self) -> bool:
        """Whether this node is no longer configured with it."""
        return self._leaves is not None

    def tell(self, load: Load, phase: PoolPhase, members: Sequence[MemberPhase], now: float) -> bool:
        """A tick of the pool here; whether others should hear of it at once."""
        self._now = now
        before = (self._was_busy, self._drained, self._wanted_drain(), self._running())
        if load.finished_s > self._load.finished_s or load.busy is not self._was_busy:
            self._works += 1
        self._busy = self._busy or load.busy
        self._was_busy = load.busy
        for member, was in enumerate(self._members):
            if was is MemberPhase.STARTING and (member >= len(members) or members[member] is OFF):
                self._used.add(self._epoch(member))
        self._load, self._phase, self._members = load, phase, tuple(members)
        self._used |= {self._epoch(member) for member in self._running()}
        self._look_drained(now)
        after = (self._was_busy, self._drained, self._wanted_drain(), self._running())
        waited_for = self.leaves or self._anyone_drains()
        return (before[0] is not after[0] and waited_for) or before[1:] != after[1:]

    def _running(self) -> tuple[int, ...]:
        """Members that serve here; in a drain of the pool they may be stopped already."""
        if self._phase is not PoolPhase.READY:
            return ()
        return tuple(i for i, phase in enumerate(self._members) if phase is READY)

    def _anyone_drains(self) -> bool:
        return self._lease is not None and bool(self._lease.members)

    def _look_drained(self, now: float) -> None:
        """Whether this node is through with what the owner, another one, drains."""
        lease = self._lease
        if lease is None or not lease.members or lease.owner == self._life:
            self._settling, self._drained = None, (0, 0)
            return
        number = (lease.fence, lease.drain)
        if lease.whole:
            held = self._phase is not PoolPhase.READY
        else:
            held = not any(self._phase_of(member) is READY for member in lease.members)
        if not held or self._holding != number:
            self._settling, self._drained = None, (0, 0)
            return
        if self._settling is None or self._settling[0] != number:
            self._settling, self._drained = (number, Settling(now)), (0, 0)
        if self._drained != number and self._settling[1].look(not self._inflight(lease), now):
            self._drained = number

    def _inflight(self, lease: Lease) -> int:
        load = self._load
        if lease.whole or any(member >= len(load.inflight) for member in lease.members):
            return load.queued + load.running + sum(load.inflight)
        return sum(load.inflight[member] for member in lease.members)

    def _phase_of(self, member: int) -> MemberPhase:
        return self._members[member] if member < len(self._members) else OFF

    # ---- the store

    def told(self, now: float, *, lease: Lease | None = None, left: bool = False) -> Told:
        """What to tell the store; with `lease` that instead of what is wanted by itself. left: this node leaves."""
        self._now = now
        self._beat += 1
        load = self._load
        word = Word(
            life=self._life,
            beat=self._beat,
            busy=self._busy,
            works=self._works,
            load=load.waiting + load.queued + load.running,
            running=self._running(),
            drained=self._drained,
            fence=self._fence,
            left=(left or self.leaves) and not self._was_busy,
            leaves=self.leaves,
        )
        self._sent = lease if lease is not None else self._wanted(now)
        takes = self._sent is not None and bool(self._sent.owner) and self._sent.fence != self._fence_held()
        gone = self._nodes.long_gone(now) if self.owner else ()
        return Told(word, self._sent, self._version, takes, gone)

    def _fence_held(self) -> int:
        return self._lease.fence if self._lease is not None else 0

    def heard(self, node: str, seen: Seen, sent: float, now: float) -> bool:
        """What the store answered to what was told; `sent` is from before that. Whether a node should be rung."""
        self._now = now
        timing, before = self._timing, self._lease
        gap = self._heard is None or now - self._heard >= timing.fresh_s
        self._heard = now
        self._busy = self._was_busy
        lease = seen.lease
        if seen.version != self._version or before is None or gap:
            self._changed = now  # in a gap it may have been changed, and changed back
        self._lease, self._version, self._floor = lease, seen.version, seen.floor
        if lease is not None:
            self._fence = max(self._fence, lease.fence)
            self._stops += [0] * (len(lease.stops) - len(self._stops))
            self._stops = [max(n, lease.stops_of(i)) for i, n in enumerate(self._stops)]
            self._used |= {self._epoch(member) for member in lease.used}
            self._over = self._over or (
                lease.ended and lease.fence >= self._fence and before is not None and not before.ended
            )
        if lease is None or lease.owner != self._life:
            self._proven = -1.0
        elif seen.swapped:
            self._proven, self._renewed = sent + timing.proven_s, now
        self._hear_words({name: word for name, word in seen.words.items() if name != node}, now)
        self._look_drained(now)
        self._used = {used for used in self._used if used == self._epoch(used[1])}
        return seen.swapped and lease is not None and _said(lease) != _said(before)

    def _hear_words(self, words: Mapping[str, Word], now: float) -> None:
        self._nodes.hear(words, now)
        for word in words.values():
            self._fence = max(self._fence, word.fence)
            self._used |= {self._epoch(member) for member in word.running}

    @property
    def owner(self) -> bool:
        """Whether the lease was this node's when it last looked; not whether it can prove it."""
        return self._lease is not None and self._lease.owner == self._life

    @property
    def drains(self) -> bool:
        """Whether somebody drains something, so that there is news to come."""
        return self._anyone_drains()

    @property
    def fence(self) -> int:
        """The highest fencing number there was."""
        return self._fence

    def _wanted(self, now: float) -> Lease | None:
        """What the lease should become; None: it may stay."""
        lease = self._lease
        if self._heard is None:
            return None
        if self.leaves and (self._over or self._nodes.stay(now)):
            return self.giving_up()
        if lease is None:
            return Lease(era=self._era(), fence=self._fence, stops=tuple(self._stops))
        if lease.owner != self._life or not self.proven(now):
            # its own too, once it could not renew it in time: it may be an old copy, from before somebody else's
            held_s = max(self._timing.lease_s, lease.lease_ms / 1000)
            if now - self._heard >= self._timing.fresh_s:
                return None
            if now - self._changed < held_s and not (lease.free and lease.fence >= self._fence):
                return None
            return self._taken(lease)
        if lease.fence < self._fence:
            return self._taken(lease)  # the store has forgotten somebody that came after this node
        renewed = self._renewal(lease)
        if _said(renewed) == _said(lease) and now - self._renewed < self._timing.lease_s / 4:
            return None
        return renewed

    def _taken(self, lease: Lease) -> Lease:
        return replace(
            lease,
            owner=self._life,
            free=False,
            fence=max(self._fence + 1, self._floor),
            beat=lease.beat + 1,
            lease_ms=round(self._timing.lease_s * 1000),
            drain=lease.drain + 1,
            members=(),
            whole=False,
            stops=tuple(self._stops),
            ended=False,
        )

    def _renewal(self, lease: Lease) -> Lease:
        whole, members = self._wanted_drain()
        more = bool(set(members) - set(lease.members)) or (whole and not lease.whole)
        up = {i for i, phase in enumerate(self._members) if phase in (READY, MemberPhase.STARTING, OFF)}
        return replace(
            lease,
            beat=lease.beat + 1,
            lease_ms=round(self._timing.lease_s * 1000),
            drain=lease.drain + more,
            members=members,
            whole=whole,
            stops=tuple(self._stops),
            asleep=tuple(member for member in lease.asleep if member not in up),
            used=tuple(sorted({u[1] for u in self._used if u == self._epoch(u[1])})),
        )

    def _wanted_drain(self) -> tuple[bool, tuple[int, ...]]:
        """What this node drains, if the pool is its own: whether all of it, and which members."""
        if not self.owner:
            return False, ()
        leaving = tuple(i for i, phase in enumerate(self._members) if phase in _LEAVING)
        whole = self._phase is PoolPhase.DRAINING or (bool(leaving) and READY not in self._members)
        if whole:
            leaving = tuple(i for i, phase in enumerate(self._members) if phase is not OFF)
        return whole and bool(leaving), leaving

    # ---- what others say

    def others(self, now: float) -> Others:
        """For the machine."""
        self._now = now
        timing, lease = self._timing, self._lease
        if self._heard is None:  # for a moment: the owner may be about to stop it
            return Others(False, True, False, draining=now - self._born < 2 * timing.beat_s)
        foreign = lease is not None and bool(lease.members) and not self.owner
        foreign = foreign and now - self._heard < timing.lease_s
        # between two ticks it may have served, unless its machine was told to hold
        self._holding = (lease.fence, lease.drain) if foreign and lease is not None else (0, 0)
        self._look_drained(now)
        return Others(
            may_stop=self.proven(now),
            busy=self._nodes.busy(now),
            drained=self._all_drained(now),
            draining=foreign and lease is not None and lease.whole,
            leaving=frozenset(lease.members if foreign and lease is not None and not lease.whole else ()),
            load=self._nodes.load(now),
            running=self._nodes.running(now),
            asleep=frozenset(lease.asleep if lease is not None else ()),
            stops=tuple(max(0, n - self._mine.get(i, 0)) for i, n in enumerate(self._stops)),
            over=self._is_over(now),
        )

    def _is_over(self, now: float) -> bool:
        """Who stays is believed only after a while: it may not have been told yet, and be killed before it is."""
        if self._leaves is None:
            return False
        return self._over or (now - self._leaves >= self._timing.silent_s and self._nodes.go_on(now))

    def proven(self, now: float) -> bool:
        """Whether this node owns the pool and can prove it: nobody can have taken it over yet."""
        return self.owner and now < self._proven

    def _all_drained(self, now: float) -> bool:
        lease = self._lease
        whole, members = self._wanted_drain()
        if lease is None or not members:
            return not self._nodes.unsure(now) and not self._nodes.any(now)
        announced = set(members) <= set(lease.members) and (lease.whole or not whole)
        if self.leaves and self._nodes.any(now):
            return False  # one stays, or has something in flight
        return announced and self._nodes.drained((lease.fence, lease.drain), now)

    # ---- orders

    def order(self, verb: Verb, member: int, gpus: tuple[int, ...]) -> Order:
        """The words of an effect."""
        lease = self._lease
        epoch = self._epoch(member)
        key = ":".join(map(str, (self.pool, member, verb, *epoch[::2])))
        if verb in ("start", "wake"):
            away = self._heard is None or self._now - self._heard >= self._timing.fresh_s
            if away or not epoch[0] or epoch in self._used:  # others do not, or must not, say the same
                self._serial += 1
                key = f"{key}:{self._life}:{self._serial}"
            return Order(key, self._fence, gpus)
        fence, drain = (lease.fence, lease.drain) if lease is not None and self.owner else (0, 0)
        made = self._orders.get(member)
        if made is None or made[1:] != (verb, fence, drain):
            made = self._orders[member] = (f"{key}:{fence}:{drain}", verb, fence, drain)
        return Order(made[0], fence, gpus)

    def confirming(self, order: Order, now: float) -> Lease | None:
        """The lease with the stop in it, to be told to the store now; None: it must not be done."""
        lease = self._lease
        found = next((i for i, made in self._orders.items() if made[0] == order.key), None)
        if found is None or lease is None or not self.proven(now) or order.fence != lease.fence:
            return None
        if self._fence > lease.fence or found not in lease.members or not self._all_drained(now):
            return None
        lease = self._renewal(lease)
        if found not in lease.members:
            return None
        if self._ended.get(found) == order.key:
            return lease
        stops = self._stops + [0] * (found + 1 - len(self._stops))
        stops[found] += 1
        asleep = set(lease.asleep) - {found} | ({found} if self._orders[found][1] == "sleep" else set())
        used = tuple(member for member in lease.used if member != found)
        return replace(lease, stops=tuple(stops), asleep=tuple(sorted(asleep)), used=used)

    def confirmed(self, order: Order, now: float) -> bool:
        """Whether it is proven, after the store was told and heard."""
        found = next((i for i, made in self._orders.items() if made[0] == order.key), None)
        if found is None or self._lease is None or self._lease != self._sent or not self.proven(now):
            return False
        if self._ended.get(found) != order.key:
            self._ended[found] = order.key
            self._mine[found] = self._mine.get(found, 0) + 1
        return self._fence == order.fence

    def giving_up(self, *, ended: bool = False) -> Lease | None:
        """The lease as it is left to others, None where it is not this node's. ended: so are the servers."""
        lease = self._lease
        if lease is None or not self.owner or (self._members_end() and not ended):
            return None
        return replace(lease, owner="", free=True, beat=lease.beat + 1, members=(), whole=False, ended=ended)

    def _members_end(self) -> bool:
        return MemberPhase.STOPPING in self._members

    def _epoch(self, member: int) -> tuple[str, int, int]:
        lease = self._lease
        stops = self._stops[member] if member < len(self._stops) else 0
        return (lease.era if lease is not None else "", member, stops)


def _said(lease: Lease | None) -> Lease | None:
    """A lease but for its renewals."""
    return replace(lease, beat=0, lease_ms=0) if lease is not None else None
