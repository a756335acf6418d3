"""The document that nodes share, in a Redis: versions of it, and which one counts.

One hash, `<prefix>:config`, so that a Cluster has it in one place and one script changes it whole. The field `head` is
the version that counts, `<number>-<random>`; the field `doc:<number>` holds a version as JSON. The last 32 stay. The
random part tells two versions of one number apart, which a failover can leave behind: nodes follow what is there, not
what has the greater number. A channel of the same name carries hints.

A change names the version it was made from, and is refused where another one counts by then: of two who write at once
one is told. A hash without a head was never written, or has been lost: what nodes know stays.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

import msgspec

from ...cache.redis_client import Client, RedisSettings
from ...gateway.config import Layer, Store
from ...gateway.config.source import MAX_FILE_BYTES
from ...gateway.memory import redis_settings
from ..redis_bell import FAULTS, said
from ..redis_follow import RedisFollower
from .source import BadDocument, Listener

KEPT = 32
"""Versions that can be looked at and gone back to."""
MOST_NUMBER = 10**15 - 1
"""Of a version; the one after it is 1 again."""
_MOST_BYTES = 8 * MAX_FILE_BYTES
_HEAD = re.compile(r"([1-9][0-9]{0,14})-[0-9a-f]{8}")
_CHANGE = """\
local head = redis.call('HGET', KEYS[1], 'head') or ''
if head == ARGV[2] then return '' end
if head ~= ARGV[1] then return head end
redis.call('HSET', KEYS[1], 'head', ARGV[2], ARGV[3], ARGV[4])
redis.call('HDEL', KEYS[1], ARGV[5])
return ''
"""
T = TypeVar("T")


class Document(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One version. at: seconds since 1970. by: who put it there. note: why, in that person's words."""

    number: int
    text: str
    at: float
    by: str = ""
    note: str = ""


class Raced(Exception):
    """Another version counts than the change was made from."""

    def __init__(self, document: Document | None) -> None:
        super().__init__("another version")
        self.document = document


class ConfigRedis:
    """The document under a prefix. random: so many random bytes. poll_s: how often its version is looked at."""

    name = "store"

    def __init__(
        self, settings: RedisSettings, prefix: str, random: Callable[[int], bytes], poll_s: float = 60.0
    ) -> None:
        self._key = f"{prefix}:config"
        self._where = f"redis {settings.url} {self._key}"
        self._random = random
        self._poll_s = poll_s
        self._follower = RedisFollower(settings, self._key, "config")

    @classmethod
    def of(cls, store: Store, environ: Mapping[str, str], random: Callable[[int], bytes]) -> ConfigRedis:
        """The one that a configuration names; raises KeyError when the password's variable is not set."""
        return cls(redis_settings(store, environ), store.prefix, random, store.refresh_s)

    def layer(self, document: Document) -> Layer:
        """A version as a part of a configuration."""
        return Layer(
            name=f"{self._where} version {document.number}", text=document.text, version=str(document.number)
        )

    # ---- for commands, and before there is a loop

    def once(self) -> Document | None:
        """The version that counts; None where there is none. Raises BadDocument."""

        async def read(redis: Client) -> Document | None:
            return (await self._read(redis))[1]

        return self._run(read)

    def base(self) -> tuple[bytes, int, Document | None]:
        """What a change is made from: the head as it is, the greatest number so far, and the version that counts.

        That is None where there is none, and where what is there cannot be read: then a change puts it right. Raises
        BadDocument where Redis cannot be asked.
        """

        async def read(redis: Client) -> tuple[bytes, int, Document | None]:
            raw: Any = await redis.hget(self._key, "head")
            try:
                head, there = await self._read(redis)
            except BadDocument:
                names: Any = await redis.hgetall(self._key)
                numbers = [int(n[4:]) for n in names if re.fullmatch(rb"doc:[1-9][0-9]{0,14}", n)]
                return raw or b"", max(numbers, default=0), None
            return head.encode(), there.number if there is not None else 0, there

        return self._run(read)

    def version(self, number: int) -> Document | None:
        """One that was kept. Raises BadDocument."""

        async def read(redis: Client) -> Document | None:
            data: Any = await redis.hget(self._key, f"doc:{number}")
            return self._taken(number, data) if data is not None else None

        return self._run(read)

    def history(self) -> list[Document]:
        """Those that were kept, the newest first; what cannot be read is left out. Raises BadDocument."""

        async def read(redis: Client) -> list[Document]:
            fields: Any = await redis.hgetall(self._key)
            found = []
            for raw, data in fields.items():
                number = raw.removeprefix(b"doc:")
                if number != raw and number.isdigit() and len(number) < 16:
                    try:
                        found.append(self._taken(int(number), data))
                    except BadDocument:
                        continue
            return sorted(found, key=lambda one: -one.number)

        return self._run(read)

    def put(self, base: bytes, document: Document) -> bytes:
        """Make `document` the version that counts, where `base` does still; its head. Raises Raced, BadDocument."""
        head = f"{document.number}-{self._random(4).hex()}"

        async def write(redis: Client) -> bool:
            args = (base, head, f"doc:{document.number}", msgspec.json.encode(document))
            there: Any = await redis.eval(_CHANGE, 1, self._key, *args, f"doc:{document.number - KEPT}")
            if not there:
                await self._follower.ring(redis)
            return not there

        if not self._run(write):
            raise Raced(self.base()[2])
        return head.encode()

    def _run(self, work: Callable[[Client], Awaitable[T]]) -> T:
        try:
            return self._follower.once(work)
        except FAULTS as fault:
            raise BadDocument(self._where, said(fault)) from None

    # ---- for a controller

    def look(self) -> None:
        """Have whoever follows look at once."""
        self._follower.look()

    async def follow(self, listener: Listener) -> None:
        """Until cancelled."""
        seen: str | None = None

        async def look(redis: Client) -> None:
            nonlocal seen
            raw: Any = await redis.hget(self._key, "head")
            head = raw.decode("utf-8", "replace") if raw is not None else ""
            try:
                if head != seen:
                    head, document = await self._read(redis)
                    listener.found(self.layer(document) if document is not None else None)
                elif head:
                    listener.unchanged()
                else:
                    listener.found(None)
            except BadDocument as fault:
                listener.refused(str(fault))
            seen = head

        await self._follower.follow(
            look, lambda fault: listener.lost(f"{self._where}: {said(fault)}"), self._poll_s
        )

    async def _read(self, redis: Client) -> tuple[str, Document | None]:
        while True:
            raw: Any = await redis.hget(self._key, "head")
            if raw is None:
                return "", None
            head = raw.decode("utf-8", "replace")
            match = _HEAD.fullmatch(head)
            if match is None:
                raise BadDocument(
                    self._where, "`head` is no version; `penstock config push` made none of that"
                )
            long: Any = await redis.hstrlen(self._key, f"doc:{match[1]}")
            if long > _MOST_BYTES:  # a controller has no room for anything that somebody may put there
                raise BadDocument(self._where, f"version {match[1]} is too large")
            data: Any = await redis.hget(self._key, f"doc:{match[1]}")
            if await redis.hget(self._key, "head") != raw:
                continue  # changed in between; the round's deadline bounds this
            if data is None:
                raise BadDocument(self._where, f"version {match[1]} counts and is not there")
            return head, self._taken(int(match[1]), data)

    def _taken(self, number: int, data: bytes) -> Document:
        if len(data) > _MOST_BYTES:
            raise BadDocument(self._where, f"version {number} is too large")
        try:
            document = msgspec.json.decode(data, type=Document)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise BadDocument(
                self._where, f"version {number} is no document of `penstock config push`"
            ) from None
        if document.number != number:
            raise BadDocument(self._where, f"version {number} says that it is {document.number}")
        return document
