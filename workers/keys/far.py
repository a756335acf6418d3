"""API keys in a Redis that nodes share.

One hash, `<prefix>:keys`: a field for each key, named by its id, holds it as JSON; the field `version` is a random
token that changes with each change of the others. It is one key, so one HSET sets both together and a Cluster has it
in one place. A key that is revoked is first set to nothing, with a new version, then removed. A channel of the same
name carries hints.

A hash without a version was never written, or has been lost: then what is known stays, and so nothing that happens to
Redis lets anybody in or shuts anybody out.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

from redis.exceptions import NoPermissionError

from ...cache.redis_client import Client, RedisSettings
from ...gateway.keys import Key
from ..redis_bell import FAULTS, said
from ..redis_follow import RedisFollower
from . import text
from .source import Listener
from .text import BadKeys, NoKeys

log = logging.getLogger(__name__)

POLL_S = 0.4
_VERSION = b"version"
_MOST = 1 << 16
T = TypeVar("T")


class KeysRedis:
    """The keys under a prefix. random: so many random bytes."""

    def __init__(self, settings: RedisSettings, prefix: str, random: Callable[[int], bytes]) -> None:
        self._settings = settings
        self._name = f"{prefix}:keys"
        self._random = random
        self._follower = RedisFollower(settings, self._name, "keys")
        self._ignored: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        """For people."""
        return f"redis {self._settings.url} {self._name}"

    # ---- for commands, and before there is a loop

    def once(self) -> dict[str, Key]:
        """All keys there are. Raises BadKeys, NoKeys where there is no version."""

        async def read(redis: Client) -> dict[str, Key]:
            return (await self._read(redis))[0]

        return self._run(read)

    def add(self, id: str, key: Key, check: Callable[[dict[str, Key]], None]) -> None:
        """Add a key to those that `check` has seen and raised nothing about. Raises BadKeys."""

        async def write(redis: Client) -> None:
            fields: Any = await redis.hgetall(self._name)
            check(self._taken(fields))
            await redis.hset(self._name, mapping={id: text.pack(key), _VERSION: self._token()})
            await self._follower.ring(redis)

        self._run(write)

    def remove(self, id: str) -> bool:
        """Revoke a key; False when there is none of that id. Raises BadKeys."""

        async def write(redis: Client) -> bool:
            if not await redis.hget(self._name, id):
                return False
            await redis.hset(self._name, mapping={id: b"", _VERSION: self._token()})
            await self._follower.ring(redis)
            with contextlib.suppress(NoPermissionError):
                await redis.hdel(self._name, id)
            return True

        return self._run(write)

    def _run(self, work: Callable[[Client], Awaitable[T]]) -> T:
        try:
            return self._follower.once(work)
        except FAULTS as fault:
            raise BadKeys(self.name, said(fault)) from None

    # ---- for a controller

    async def follow(self, listener: Listener) -> None:
        """Until cancelled."""
        seen: bytes | None = None

        async def look(redis: Client) -> None:
            nonlocal seen
            try:
                version: Any = await redis.hget(self._name, _VERSION)
                if version is None or version != seen:
                    keys, seen = await self._read(redis)
                    listener.found(keys)
                else:
                    listener.unchanged()
            except BadKeys as fault:
                listener.lost(str(fault))

        def lost(fault: BaseException) -> None:
            listener.lost(f"{self.name}: {said(fault)}")

        await self._follower.follow(look, lost, POLL_S)

    async def _read(self, redis: Client) -> tuple[dict[str, Key], bytes]:
        fields: Any = await redis.hgetall(self._name)
        version = fields.get(_VERSION)
        if version is None:
            raise NoKeys(self.name)
        if len(fields) > _MOST:
            raise BadKeys(self.name, f"{len(fields)} fields; Penstock made none of that")
        return self._taken(fields), version

    def _taken(self, fields: Mapping[bytes, bytes]) -> dict[str, Key]:
        """The keys in what Redis has; one that cannot be read is none, and keeps no other from being revoked."""
        keys, ignored = {}, set()
        for raw, data in sorted(fields.items()):
            if not data or raw == _VERSION:
                continue  # revoked, or no key
            id = raw.decode("utf-8", "replace")
            try:
                keys[id] = text.unpack(id, data)
            except BadKeys as fault:
                ignored.add(id)
                if id not in self._ignored:
                    log.error("key_ignored %s", fault)
        self._ignored = frozenset(ignored)
        return keys

    def _token(self) -> str:
        return self._random(8).hex()
