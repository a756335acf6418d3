"""Names to addresses, remembered for a while.

``getaddrinfo`` runs in the loop's threads and says nothing about lifetimes, so an answer is kept for a
configured time. Callers that want the same name at once share one look-up; one of them giving up does not end
it for the others. When a name cannot be resolved any more, the last good answer is used for a little longer:
a resolver that is down is no reason to stop talking to a backend that is up.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Callable
from dataclasses import dataclass

#: how long an outdated answer serves while the resolver fails, before it is asked again
_STALE_S = 5.0
#: an answer younger than this is not dropped because connecting failed: the resolver would say the same
_FORGET_AFTER_S = 5.0


@dataclass(frozen=True, slots=True)
class Address:
    """One address to connect to: socket family and the tuple that ``connect`` takes."""

    family: int
    sockaddr: tuple[str, int] | tuple[str, int, int, int]


@dataclass(slots=True)
class _Entry:
    addresses: tuple[Address, ...]
    asked: float
    expires: float


class Resolver:
    """A worker's name cache. ``ttl_s`` is how long an answer is good."""

    def __init__(self, *, loop: asyncio.AbstractEventLoop, clock: Callable[[], float], ttl_s: float) -> None:
        self._loop = loop
        self._clock = clock
        self.ttl_s = ttl_s
        self._entries: dict[tuple[str, int], _Entry] = {}
        self._asking: dict[tuple[str, int], asyncio.Task[tuple[Address, ...]]] = {}

    async def resolve(self, host: str, port: int) -> tuple[Address, ...]:
        """All addresses of ``host``, in the resolver's order; at least one. Raises OSError
        (socket.gaierror).
        """
        literal = _literal(host, port)
        if literal is not None:
            return (literal,)
        key = (host, port)
        entry = self._entries.get(key)
        if entry is not None and self._clock() < entry.expires:
            return entry.addresses
        asking = self._asking.get(key)
        if asking is None:
            asking = self._asking[key] = self._loop.create_task(self._ask(key))
            asking.add_done_callback(lambda task: self._asked(key, task))
        return await asyncio.shield(asking)

    def forget(self, host: str, port: int) -> None:
        """Connecting to every address failed: ask again next time, unless the answer is quite new."""
        entry = self._entries.get((host, port))
        if entry is not None and self._clock() - entry.asked >= _FORGET_AFTER_S:
            entry.expires = 0.0

    def close(self) -> None:
        """End look-ups in progress."""
        for task in list(self._asking.values()):
            task.cancel()

    async def _ask(self, key: tuple[str, int]) -> tuple[Address, ...]:
        host, port = key
        now = self._clock()
        try:
            found = await self._loop.getaddrinfo(
                host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP
            )
            addresses = tuple(
                dict.fromkeys(
                    Address(family, sockaddr)  # type: ignore[arg-type]
                    for family, _, _, _, sockaddr in found
                    if family in (socket.AF_INET, socket.AF_INET6)
                )
            )
            if not addresses:
                raise socket.gaierror(socket.EAI_NONAME, "no address")
        except OSError:
            entry = self._entries.get(key)
            if entry is None:
                raise
            entry.expires = self._clock() + _STALE_S
            return entry.addresses
        self._entries[key] = _Entry(addresses, now, self._clock() + self.ttl_s)
        return addresses

    def _asked(self, key: tuple[str, int], task: asyncio.Task[tuple[Address, ...]]) -> None:
        self._asking.pop(key, None)
        if not task.cancelled():
            task.exception()  # retrieved, also when every caller has left


def _literal(host: str, port: int) -> Address | None:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    if address.version == 4:
        return Address(socket.AF_INET, (host, port))
    return Address(socket.AF_INET6, (host, port, 0, 0))
