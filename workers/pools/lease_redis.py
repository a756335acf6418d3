"""Leases in Redis: one hash for each pool, one script and one round trip for all of them.

`<prefix>:{pools}:<model>` has the field `lease`, and a field `n:<node>` for each node's word, as `lease` packs them.
All have one hash tag, so that one script may touch them in a Cluster too. The channel `<prefix>:pools` carries hints.
Redis' clock serves for one thing, that fencing numbers grow although Redis was emptied and every node forgot: they
begin at its milliseconds. Nothing here expires that matters: how long a lease holds is for its readers to measure.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from redis.exceptions import NoScriptError

from ...cache.redis_client import Client, RedisSettings, client, close, eviction_policy
from ..redis_bell import FAULTS, RedisBell, cancelled, said
from .lease import MOST_NODES, LeaseStoreFault, Seen, Told, Word, lease_of, pack, word_of

log = logging.getLogger(__name__)

KEPT_MS = 30 * 86_400_000
"""A pool that nobody has spoken of for so long is forgotten."""
_POLL_S = 2.0

_SCRIPT = """
local t = redis.call('TIME')
local said = {string.format('%.0f', t[1] * 1000 + math.floor(t[2] / 1000))}
local at = 3
for i = 1, #KEYS do
  local word, new, old, drops = ARGV[at], ARGV[at + 1], ARGV[at + 2], tonumber(ARGV[at + 3])
  for j = 1, drops do redis.call('HDEL', KEYS[i], 'n:' .. ARGV[at + 3 + j]) end
  at = at + 4 + drops
  redis.call('HSET', KEYS[i], 'n:' .. ARGV[1], word)
  local swapped = 0
  if new ~= '' and (redis.call('HGET', KEYS[i], 'lease') or '') == old then
    redis.call('HSET', KEYS[i], 'lease', new)
    swapped = 1
  end
  redis.call('PEXPIRE', KEYS[i], ARGV[2])
  said[#said + 1] = swapped
  said[#said + 1] = redis.call('HGETALL', KEYS[i])
end
return said
"""
_SHA = hashlib.sha1(_SCRIPT.encode(), usedforsecurity=False).hexdigest()


class RedisLeases:
    """The leases under a prefix; connects when it is first used."""

    def __init__(self, settings: RedisSettings, prefix: str) -> None:
        self._redis: Client = client(settings)
        self._prefix = f"{prefix}:{{pools}}:"
        self._channel = f"{prefix}:pools"
        self._judged = False
        self._bell = RedisBell(self._channel, asyncio.Event(), "pools", _POLL_S)

    async def exchange(self, node: str, told: Mapping[str, Told]) -> Mapping[str, Seen]:
        words: list[bytes | str | int] = [node, KEPT_MS]
        for one in told.values():
            # the version is the text itself, as Redis has it
            new = pack(one.lease) if one.lease is not None else b""
            words += [pack(one.word), new, one.version.encode("latin-1"), len(one.drop), *one.drop]
        keys = [f"{self._prefix}{pool}" for pool in told]
        try:
            answer = await self._ask(keys, words)
            if not self._judged:
                self._judged = True
                await self._judge()
            floor = int(answer[0])
            return {
                pool: _seen(bool(answer[1 + 2 * i]), answer[2 + 2 * i], floor) for i, pool in enumerate(told)
            }
        except FAULTS as fault:
            raise LeaseStoreFault(said(fault)) from None

    async def _ask(self, keys: Sequence[str], words: Sequence[bytes | str | int]) -> list[Any]:
        answer: Any
        try:
            answer = await self._redis.evalsha(_SHA, len(keys), *keys, *words)
        except NoScriptError:
            answer = await self._redis.eval(_SCRIPT, len(keys), *keys, *words)
        if len(answer) != 1 + 2 * len(keys):
            raise ValueError("not what the script gives")
        return list(answer)

    async def _judge(self) -> None:
        """Say so when this Redis may drop leases to make room."""
        policy = await eviction_policy(self._redis)
        if policy not in (None, "noeviction"):
            log.warning(
                "pools_evictable: a full Redis forgets whose pools are; give pools.redis one whose "
                "maxmemory-policy is noeviction, not %s",
                policy,
            )

    async def ring(self) -> None:
        try:
            await self._bell.ring(self._redis)
        except FAULTS as fault:
            raise LeaseStoreFault(said(fault)) from None

    async def listen(self, look: asyncio.Event) -> None:
        while not cancelled():
            await RedisBell(self._channel, look, "pools", _POLL_S).listen(self._redis)

    async def close(self) -> None:
        await close(self._redis)


def _seen(swapped: bool, flat: Sequence[bytes], floor: int) -> Seen:
    """What a hash has; what is not ours in it is overwritten, or left alone."""
    lease, raw = None, b""
    words: dict[str, Word] = {}
    for name, value in zip(flat[::2], flat[1::2], strict=True):
        try:
            if name == b"lease":
                raw = value
                lease = lease_of(value)
            elif name.startswith(b"n:") and len(words) < MOST_NODES:
                words[name[2:].decode()] = word_of(value)
        except ValueError:
            continue
    return Seen(lease, raw.decode("latin-1"), swapped, floor, words)
