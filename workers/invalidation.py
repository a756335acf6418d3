"""What flushing means on this node and on all: the arena's epochs, kept alike with those in Redis.

Redis has one hash, `<prefix>:epochs`: a field for every cell that was ever flushed (its nonce in decimal), and the
field `version`, a random token that changes with each change of the others. It is one key, so one HSET sets nonce and
version together, a Cluster has it in one place, and an eviction takes all or nothing. A channel of the same name
carries hints.

Strategy: here at once, there in order. A flush sets the cell with a new nonce, then goes to Redis, and is kept and
tried again until it is there. One task alone talks to Redis about nonces: it tells what is new, then reads the
version, and on a change all fields. It does so every `poll_s` and whenever it is woken: by a flush, by a hint, by a
connection that was made anew. A hint says nothing but "look": what a late message carried could be older than what is
known.

A nonce that was replaced never comes back. A Redis that offers one has lost writes (a failover to a replica that
lagged), and gets a fresh one; one that lacks names (it was emptied or replaced) gets this node's. A controller that
has just begun cannot know which of two nonces is the older one, and draws another. The cell `all` is never zero where
there is a Redis, so that answers kept in it from before its epochs were lost are not taken for fresh.

Whether this node is in step is said in the arena (`Epochs.synced`): without that the workers leave Redis alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import Callable, Mapping
from typing import Any

from ..cache.epoch import Epochs
from ..cache.redis_client import Client, RedisSettings, Topology, client, close, eviction_policy
from .redis_bell import FAULTS, RETRY_S, ROUND_S, RedisBell, cancelled, said

log = logging.getLogger(__name__)

POLL_S = 2.0
TOLD_S = 1.0
"""The most that a flush waits for Redis."""
_BURST_S = 0.01
"""Hints that come together are one look."""
_MAX_FIELDS = 1 << 14
_MAX_FORMER = 1 << 14

_ALL = "all"
_VERSION = b"version"
_NAME = re.compile(rb"all|[mtk]:(?:0|[1-9][0-9]{0,3})")
_NONCE = re.compile(rb"[1-9][0-9]{0,19}")


class Invalidation:
    """The controller's part in flushing; `run` keeps step with the other nodes, without Redis it has nothing to do.

    settings: None where there is no L2. clock: seconds, monotonic. random: so many random bytes.
    """

    def __init__(
        self,
        epochs: Epochs,
        settings: RedisSettings | None,
        prefix: str,
        *,
        clock: Callable[[], float],
        random: Callable[[int], bytes],
        poll_s: float = POLL_S,
    ) -> None:
        self._epochs = epochs
        self._settings = settings
        self._name = f"{prefix}:epochs"
        self._clock = clock
        self._random = random
        self._poll_s = poll_s
        self._wake = asyncio.Event()
        self._pending: dict[str, int] = {}
        self._waiting: set[asyncio.Future[None]] = set()
        self._former: dict[tuple[str, int], None] = {}
        self._seen: bytes | None = None
        self._fresh = True
        self._read_at = clock()
        self._in_step: bool | None = None
        self._judged = False
        self._bell = RedisBell(self._name, self._wake, "epochs", poll_s)

    @property
    def topology(self) -> Topology | None:
        """What there is to tell other nodes by; None without Redis."""
        return self._settings.topology if self._settings is not None else None

    @property
    def untold(self) -> int:
        """Flushed names that Redis does not have yet."""
        return len(self._pending)

    async def flush(self, name: str) -> bool:
        """Make everything under an epoch's name stale: here before the first await, elsewhere by way of Redis.

        Whether Redis has it; if not within TOLD_S it will be told later. False without Redis.
        """
        self._renew(name)
        if self._settings is None:
            return False
        told = asyncio.get_running_loop().create_future()
        self._waiting.add(told)
        try:
            async with asyncio.timeout(TOLD_S):
                await told
        except TimeoutError:
            return False
        finally:
            self._waiting.discard(told)
        return True

    async def run(self) -> None:
        """Until it is cancelled."""
        if self._settings is None:
            self._epochs.mark_synced(False)
            await asyncio.Event().wait()
            return
        redis = client(self._settings)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._keeping_step(redis))
                group.create_task(self._bell.listen(redis))
        finally:
            await close(redis)

    # ---- the one task that talks about nonces

    async def _keeping_step(self, redis: Client) -> None:
        while True:
            self._wake.clear()
            try:
                async with asyncio.timeout(ROUND_S):
                    await self._tell(redis)
                    await self._look(redis)
            except FAULTS as fault:
                self._failed(fault)
                pause_s = min(self._poll_s / 4, RETRY_S)
            else:
                self._succeeded()
                pause_s = self._poll_s
                if self._in_step and not self._judged:
                    self._judged = True
                    await _judge(redis)
            if cancelled():
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._wake.wait()
            await asyncio.sleep(_BURST_S)

    async def _tell(self, redis: Client) -> None:
        """Send what was flushed here."""
        if not self._pending:
            return
        told, waiting = dict(self._pending), set(self._waiting)
        await redis.hset(
            self._name,
            mapping={**{name: str(nonce) for name, nonce in told.items()}, _VERSION: self._token()},
        )
        for name, nonce in told.items():
            if self._pending[name] == nonce:
                del self._pending[name]
        for one in waiting:
            if not one.done():
                one.set_result(None)
        await self._bell.ring(redis)

    async def _look(self, redis: Client) -> None:
        """Take over what others flushed, if anything."""
        version: Any = await redis.hget(self._name, _VERSION)
        if version is not None and version == self._seen:
            return
        fields: Any = await redis.hgetall(self._name)
        if len(fields) > _MAX_FIELDS:
            raise ValueError(f"{self._name} has {len(fields)} fields; Penstock made none of that")
        missing = self._take(fields)
        if missing:
            # another node may be quicker, and have flushed meanwhile: what is there stays
            pipeline = redis.pipeline(transaction=False)
            for name, nonce in missing.items():
                pipeline.hsetnx(self._name, name, str(nonce))
            pipeline.hset(self._name, _VERSION, self._token())
            await pipeline.execute()
            await self._bell.ring(redis)
        self._seen = None if missing or self._pending else version
        if self._seen is None:
            self._wake.set()

    def _take(self, fields: Mapping[bytes, bytes]) -> dict[str, int]:
        """Set the cells from what Redis has; the names and nonces it lacks."""
        own, offered = self._epochs.names_set(), {}
        for raw, text in fields.items():
            if _NAME.fullmatch(raw) and _NONCE.fullmatch(text) and int(text) < 1 << 64:
                with contextlib.suppress(ValueError):  # a stripe that there is not
                    self._epochs.get(raw.decode())
                    offered[raw.decode()] = int(text)
        for name, nonce in offered.items():
            if name in self._pending or own.get(name) == nonce:
                continue
            if (name, nonce) in self._former or (self._fresh and name in own):
                self._renew(name)
            else:
                self._set(name, nonce)
        if _ALL not in own and _ALL not in offered:
            own[_ALL] = self._nonce()
            self._set(_ALL, own[_ALL])
        self._fresh = False
        return {name: nonce for name, nonce in own.items() if name not in offered}

    def _renew(self, name: str) -> None:
        nonce = self._nonce()
        self._set(name, nonce)
        if self._settings is not None:
            self._pending[name] = nonce
            self._wake.set()

    def _set(self, name: str, nonce: int) -> None:
        old = self._epochs.get(name)
        self._epochs.set(name, nonce)
        if old and self._settings is not None:
            self._former[name, old] = None
            if len(self._former) > _MAX_FORMER:
                del self._former[next(iter(self._former))]

    def _nonce(self) -> int:
        return int.from_bytes(self._random(8), "little") or 1

    def _token(self) -> str:
        return self._random(8).hex()

    def _succeeded(self) -> None:
        self._read_at = self._clock()
        if self._seen is None or self._in_step:
            return  # Redis changed while it was read, and is read again at once; or nothing is new
        self._in_step = True
        self._epochs.mark_synced(True)
        log.info("epochs_synced names=%d", len(self._epochs.names_set()))

    def _failed(self, fault: BaseException) -> None:
        # what was read a poll and a half ago may miss a flush by more than was promised
        if self._in_step is not False and self._clock() - self._read_at >= 1.5 * self._poll_s:
            self._in_step = False
            self._epochs.mark_synced(False)
            log.warning("epochs_lost: Redis is not used meanwhile: %s", said(fault))


async def _judge(redis: Client) -> None:
    """Say so when this Redis refuses entries, once it is full, instead of dropping old ones."""
    with contextlib.suppress(*FAULTS):
        async with asyncio.timeout(ROUND_S):
            if await eviction_policy(redis) == "noeviction":
                log.warning(
                    "l2_noeviction: when the cache's Redis is full it stores nothing more; "
                    "set its maxmemory-policy to allkeys-lru"
                )
