"""The generic cell rate algorithm: what a limit still allows is one number, the time at which nothing is owed any more.

Strategy: that time is the *theoretical arrival time* of ITU-T I.371, here ``owed_until``. What is used moves it on by
what the rate needs for it, a cost in nanoseconds; the present catches up with it. A burst is how far ahead it may be.
What was taken and not needed moves it back, and who overdraws it waits until the present has caught up: so over any
time at most ``burst + rate x time`` is used, exactly, and a debt carries over instead of being forgiven.

All times are nanoseconds of one clock. Pure; knows neither keys nor shared memory.
"""

from __future__ import annotations

MINUTE_NS = 60_000_000_000

#: The share of a minute's allowance that may come at once where nobody says otherwise: 1/200. A minute then admits
#: at most half a percent too many; the other half is for what nodes do not know of each other.
BURST_PARTS = 200
#: Nothing is owed for longer than that, some 146 years: the time stays within a cell of 64 bits.
LONGEST_NS = 1 << 62


def cost_ns(n: int, per_minute: int) -> int:
    """How long the rate takes to allow n; rounded down once for all n, not for each."""
    return n * MINUTE_NS // per_minute


def default_burst(per_minute: int) -> int:
    """How many may come at once; at least one."""
    return max(1, per_minute // BURST_PARTS)


def wait_ns(owed_until: int, now: int, cost: int, burst: int) -> int:
    """How long something of this cost has to wait; 0: not at all.

    What costs more than a whole burst waits until nothing is owed, and is then allowed: it would never fit.
    """
    ahead = owed_until - now
    wait = (ahead if ahead > 0 else 0) + (cost if cost < burst else burst) - burst
    return wait if wait > 0 else 0


def used(owed_until: int, now: int, cost: int) -> int:
    """The new ``owed_until`` when something of this cost was used; a negative cost gives back."""
    if cost < 0:
        return max(0, owed_until + cost)
    owed_until = (owed_until if owed_until > now else now) + cost
    return owed_until if owed_until < now + LONGEST_NS else now + LONGEST_NS


def room(owed_until: int, now: int, burst: int, per_minute: int) -> int:
    """How many could come at this moment."""
    ahead = owed_until - now
    left = burst - ahead if ahead > 0 else burst
    return ((left + 1) * per_minute - 1) // MINUTE_NS if left > 0 else 0
