"""What nodes write down about a pool they share, and the store that keeps it. Plain values and one interface.

For each pool the store has one record, the lease, which is only ever replaced by who has read what it replaces; and of
each node one word. No clock is in them: who looks measures by its own how long something has not changed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Protocol

import msgspec
from msgspec import Meta

MOST_BYTES = 16 << 10
"""A lease or a word that is longer is none of ours."""
MOST_NODES = 512

_Number = Annotated[int, Meta(ge=0, lt=1 << 53)]
_Name = Annotated[str, Meta(max_length=128)]
_Members = Annotated[tuple[Annotated[int, Meta(ge=0, lt=64)], ...], Meta(max_length=64)]
_Counts = Annotated[tuple[_Number, ...], Meta(max_length=64)]


class Lease(msgspec.Struct, frozen=True, omit_defaults=True):
    """Who may stop a pool's servers.

    owner: the life of a controller, "" for nobody. free: it was given up, and need not be waited for. fence: grows with
    each change of the owner. beat: grows with each renewal. lease_ms: so long does it hold without one. drain: number
    of the last drain; members: those that drain now; whole: all that run do, so every request is held back. stops: how
    often each member was stopped or put to sleep; asleep: those that sleep; used: those whose start since the last stop
    has ended, well or not. era: random, made with the record. ended: its servers were ended by the last that was
    configured with it, and nobody has taken it since.
    """

    era: _Name = ""
    owner: _Name = ""
    free: bool = False
    fence: _Number = 0
    beat: _Number = 0
    lease_ms: Annotated[int, Meta(ge=0, le=600_000)] = 0
    drain: _Number = 0
    members: _Members = ()
    whole: bool = False
    stops: _Counts = ()
    asleep: _Members = ()
    used: _Members = ()
    ended: bool = False

    def stops_of(self, member: int) -> int:
        """How often it was stopped."""
        return self.stops[member] if member < len(self.stops) else 0


class Word(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a node says of a pool.

    life: of its controller; beat: grows with each word. busy: it has requests for it, or had since its last word;
    works: how often it has begun or ended work. load: requests that wait and run. running: members it has ready.
    drained: fence and number of the drain for which it holds its requests back and has none in flight. fence: the
    highest it has heard of. left: it has stopped, or is no longer configured with the pool, with nothing in flight.
    leaves: it is no longer configured with it.
    """

    life: _Name = ""
    beat: _Number = 0
    busy: bool = False
    works: _Number = 0
    load: _Number = 0
    running: _Members = ()
    drained: tuple[_Number, _Number] = (0, 0)
    fence: _Number = 0
    left: bool = False
    leaves: bool = False


_leases = msgspec.json.Decoder(Lease)
_words = msgspec.json.Decoder(Word)
pack = msgspec.json.Encoder().encode


def lease_of(data: bytes) -> Lease:
    """A lease as `pack` made it. Raises ValueError."""
    return _leases.decode(_bounded(data))


def word_of(data: bytes) -> Word:
    """A word as `pack` made it. Raises ValueError."""
    return _words.decode(_bounded(data))


def _bounded(data: bytes) -> bytes:
    if len(data) > MOST_BYTES:
        raise ValueError("longer than anything written here")
    return data


@dataclass(frozen=True, slots=True)
class Told:
    """What a node has to say of one pool. lease: what its lease is to become, None to leave it, if it still is as
    `Seen.version` said. takes: it has another owner than before. drop: nodes whose words may go."""

    word: Word
    lease: Lease | None = None
    version: str = ""
    takes: bool = False
    drop: Collection[str] = ()


@dataclass(frozen=True, slots=True)
class Seen:
    """What the store has of one pool after it was told. lease: None where there is none. version: of that lease, ""
    without one. swapped: the lease that was told is there. floor: a new fence is to be above it. words: by node."""

    lease: Lease | None = None
    version: str = ""
    swapped: bool = False
    floor: int = 0
    words: Mapping[str, Word] = field(default_factory=dict)


class LeaseStore(Protocol):
    """Where leases and words are kept. Raises LeaseStoreFault where it cannot be asked."""

    async def exchange(self, node: str, told: Mapping[str, Told]) -> Mapping[str, Seen]:
        """Write what is told of pools, the words first, then read what is there: nothing older than that."""

    async def ring(self) -> None:
        """Have other nodes look at once, where they can be reached that fast."""

    async def listen(self, look: asyncio.Event) -> None:
        """Until cancelled: set the event `look` when another node rings."""

    async def close(self) -> None:
        """Let go of connections."""


class LeaseStoreFault(Exception):
    """It does not answer, or not as it should; one line."""
