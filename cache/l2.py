"""The second tier: entries in Redis, shared by every node of the gateway.

Strategy: a question costs one bounded deadline at most, and nothing once the breaker is open. Look-ups of a loop tick
share one command, which takes a lease for each key that is absent in the same round trip; stores are queued and sent
in the background. Names in Redis: ``<prefix>:e:<32 bytes>``; in a Cluster ``<prefix>:{<tag>}:<32 bytes>``, one of
sixteen hash tags by the key's first byte, so that the keys of a tag can share a command.

A lease says which node asks upstream: it stands under the entry's own name until the entry overwrites it, its node
gives it up, or it runs out. Two workers of one node have one lease; which of them asks is for that node's flight marks
to say.

It refuses to look into an entry: whoever reads one verifies it. The parts are in `remote/`.
"""

from __future__ import annotations

import asyncio
import enum
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import cast
from urllib.parse import urlsplit

from . import redis_client
from .digest import Key
from .redis_client import RedisSettings
from .remote.counts import Counts
from .remote.holds import Holds
from .remote.lane import Lane
from .remote.outbox import Outbox, Room
from .remote.press import Press
from .remote.scripts import LOOK, STORE, Script
from .remote.state import State, Watch
from .remote.value import OVERHEAD_BYTES, is_lease, lease_of

log = logging.getLogger(__name__)

# Hash tags of a Cluster. Their slots lie in the middle of each sixteenth of all slots, so masters with a range each get
# their part of the keys. More tags would spread better over many masters, and share commands worse.
TAGS = ("u0", "3", "dj", "j", "d2", "2", "uh", "k", "ly", "1", "uv", "u", "9s", "0", "dt", "t")
COMMANDS = 4  # on their way at once, each on its own connection; in a Cluster half of it, for each tag
QUEUE_COUNT = 4096
QUEUE_BYTES = 32 << 20
CLOSING_S = 1.0  # for what is still to be stored at the end
JITTER = 0.1  # an entry lives up to so much shorter, lest those stored together go together
POLL_FIRST_S = 0.01
POLL_LAST_S = 0.1


@dataclass(frozen=True, slots=True)
class L2Settings:
    """See docs/configuration.md, ``cache.l2``. max_bytes: of an entry as packed, before compression."""

    redis: RedisSettings
    prefix: str = "penstock"
    deadline_ms: int = 10
    lease_ms: int = 2000
    compress_above: int = 1024
    max_bytes: int = (2 << 20) + 4096


class Lease(enum.Enum):
    """Who may make the entry that is not there."""

    MINE = "mine"  # this node, which holds the lease
    OTHER = "other"  # another node does: wait for it
    NONE = "none"  # nothing is known, or Redis has no room for a lease: ask upstream without one


_MINE = Lease.MINE  # looked up once: an enum's members are slow in Python 3.11


class L2:
    """One process's way to Redis. Not for use from several threads.

    node: 16 random bytes that name this gateway. clock: monotonic seconds. Look-ups and stores never raise for
    anything that Redis does.
    """

    def __init__(
        self,
        settings: L2Settings,
        *,
        node: bytes,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], float],
        random: Random,
    ) -> None:
        if set(settings.prefix) & set("{}*?[]\\ ") or not settings.prefix.isprintable():
            raise ValueError("the prefix of Redis names may not have braces, wildcards or blanks")
        redis = settings.redis
        clustered = redis.topology == "cluster"
        # A Cluster client must see for itself that a node is silent, or it does not look for the new master. The
        # others are cheaper without; a command's end is sure either way.
        timeout_s = redis_client.SOCKET_TIMEOUT_S
        self._client = redis_client.client(redis, timeout_s=timeout_s if clustered else None)
        self._patience_s = timeout_s * 3 if clustered else timeout_s
        self.settings = settings
        self.counts = Counts()
        self._lease = lease_of(node)
        self._loop = loop
        self._clock = clock
        self._random = random
        self._closed = False
        self._watch = Watch(log, _shown(redis), redis.password)
        self._press = Press(loop, settings.compress_above, settings.max_bytes)
        self._room = Room(QUEUE_COUNT, QUEUE_BYTES)
        self._holds = Holds(self._prolong, settings.lease_ms / 3000, loop=loop, clock=clock)
        #: prolong our lease of a key from now until `put` or `give_up`: for whoever really asks upstream
        self.hold = self._holds.add
        self._prefixes = [f"{settings.prefix}:{{{tag}}}:".encode() for tag in TAGS]
        if not clustered:
            self._prefixes = [f"{settings.prefix}:e:".encode()]
        self._mask = len(self._prefixes) - 1
        self._lanes = [self._lane(prefix + b"probe") for prefix in self._prefixes]
        self._outboxes = [self._outbox(lane) for lane in self._lanes]

    @property
    def available(self) -> bool:
        """Whether any of Redis is asked at present."""
        return self._watch.parts_down < len(self._lanes)

    @property
    def state(self) -> State:
        """What was logged last."""
        return self._watch.state

    async def get(self, key: Key) -> bytes | Lease:
        """The entry as packed and not verified, or who may make it. A lease that is MINE must end in `put` or
        `give_up`, else others wait until it runs out.
        """
        asked = self.ask(key)
        if asked is None:
            return Lease.NONE
        value = await asked
        return self.leased(value) or await self.unwrap(value)

    def ask(self, key: Key) -> asyncio.Future[bytes | None] | None:
        """The first part of `get`, without a coroutine of its own: `leased` and `unwrap` say what the value means.
        None when Redis is not to be asked.
        """
        part = key[0] & self._mask
        lane = self._lanes[part]
        if lane.breaker.open or self._closed:
            self.counts.skipped += 1
            return None
        return lane.look(self._prefixes[part] + key)

    def leased(self, value: bytes | None) -> Lease | None:
        """Who may make the entry, where the value is none; else None."""
        if value == self._lease:
            self.counts.misses += 1
            return _MINE
        if value is None:
            return Lease.NONE
        if value and not is_lease(value):
            return None
        self.counts.misses += 1
        return Lease.OTHER if value else Lease.NONE

    async def unwrap(self, value: bytes | None) -> bytes | Lease:
        """The entry in a value that is no lease."""
        packed = await self._press.unwrap(value) if value else None
        if packed is None:
            self.counts.misses += 1
            self.counts.foreign += 1
            return Lease.NONE
        self.counts.hits += 1
        return packed

    async def wait(self, key: Key, until_s: float) -> bytes | Lease:
        """Another node has the lease: wait for what it makes, at most until ``until_s`` of the clock.

        The entry; MINE when that node gave up or died, and the lease is ours now; NONE when Redis cannot say any
        more; OTHER when the time is over.
        """
        pause_s = POLL_FIRST_S
        while True:
            left_s = until_s - self._clock()
            if left_s <= 0:
                return Lease.OTHER
            # Apart from each other: many wait for one entry.
            await asyncio.sleep(min(left_s, pause_s * (0.75 + self._random.random() / 2)))
            pause_s = min(POLL_LAST_S, pause_s * 1.5)
            found = await self.get(key)
            if found is not Lease.OTHER:
                return found

    def put(self, key: Key, packed: bytes, ttl_ms: int) -> bool:
        """Store an entry in the background, in place of a lease. False when it was dropped; then our lease, if there
        is one, is freed instead.
        """
        self._holds.drop(key)
        if ttl_ms > 0 and len(packed) <= self.settings.max_bytes and not self._closed:
            part = key[0] & self._mask
            ms = max(1, int(ttl_ms * (1 - JITTER * self._random.random())))
            if self._outboxes[part].put(self._prefixes[part] + key, packed, ms):
                return True
        self.counts.dropped += 1
        self._about_lease(key, 0)
        return False

    def give_up(self, key: Key) -> None:
        """Free our lease, in the background: there will be no entry."""
        self._holds.drop(key)
        self._about_lease(key, 0)

    def start(self) -> None:
        """Connect, in the background: the first look-up need not, and a Redis that is not there is known at once."""
        for lane in self._lanes:
            lane.start()

    async def close(self) -> None:
        """Send what is queued, for a second at most, and close every connection. No look-up finds anything then."""
        self._closed = True
        self._holds.close()
        await asyncio.gather(*(outbox.close(CLOSING_S) for outbox in self._outboxes))
        await asyncio.gather(*(lane.close() for lane in self._lanes))
        self._press.close()
        await redis_client.close(self._client)

    def _prolong(self, key: bytes) -> None:
        self._about_lease(key, self.settings.lease_ms)

    def _about_lease(self, key: bytes, ms: int) -> None:
        if not self._closed:
            part = key[0] & self._mask
            self._outboxes[part].about_lease(self._prefixes[part] + key, ms)

    def _lane(self, probe: bytes) -> Lane:
        return Lane(
            self._ask,
            probe,
            flying=COMMANDS if self._mask == 0 else COMMANDS // 2,
            deadline_s=self.settings.deadline_ms / 1000,
            loop=self._loop,
            clock=self._clock,
            counts=self.counts,
            watch=self._watch,
        )

    def _outbox(self, lane: Lane) -> Outbox:
        return Outbox(
            self._store,
            lane,
            room=self._room,
            press=self._press,
            loop=self._loop,
            clock=self._clock,
            counts=self.counts,
            watch=self._watch,
        )

    async def _ask(self, names: Sequence[bytes], lease: bool) -> Sequence[bytes | None]:
        longest = self.settings.max_bytes + OVERHEAD_BYTES
        answer = await self._run(LOOK, names, self._lease, self.settings.lease_ms if lease else 0, longest)
        return cast("list[bytes | None]", answer)

    async def _store(self, names: Sequence[bytes], words: Sequence[bytes | int]) -> int:
        return cast("int", await self._run(STORE, names, self._lease, *words))

    async def _run(self, script: Script, names: Sequence[bytes], *words: bytes | int) -> object:
        async with asyncio.timeout(self._patience_s):  # the connection is dropped when it ends so
            return await script.run(self._client, names, *words)


def _shown(redis: RedisSettings) -> str:
    """Where it is, for the log: a url that cannot have held credentials."""
    at = urlsplit(redis.url)
    return f"{redis.topology}:{at.hostname or at.path}{f':{at.port}' if at.port else ''}"
