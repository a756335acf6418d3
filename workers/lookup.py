"""Asking DNS for the servers behind a name. What is done with the answer is the caller's to know.

The system's search list is used as the system uses it; its name servers unless others are given. Nothing is kept
between two look-ups, the system's settings neither: they may change.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import islice

import dns.asyncresolver
import dns.exception
import dns.nameserver
import dns.resolver

from ..gateway.config import MAX_BACKENDS, Server
from ..gateway.config.addresses import nameserver

TIMEOUT_S = 5.0
_MOST = 2 * MAX_BACKENDS
"""Servers of one name: more than there is room for, so that it is seen that there are, and no more than can be paid for
when many records have many addresses each.
"""


class LookupFailed(Exception):
    """Nobody could be asked, or the answer is none; the text says why. What was known before may still be true."""


class Lookup:
    """Asks these name servers, `address` or `address:port` each; none: the system's."""

    __slots__ = ("_resolver",)

    def __init__(self, nameservers: Sequence[str] = (), timeout_s: float = TIMEOUT_S) -> None:
        try:
            resolver = dns.asyncresolver.Resolver()
        except dns.resolver.NoResolverConfiguration as fault:
            if not nameservers:
                raise LookupFailed(str(fault)) from None
            resolver = dns.asyncresolver.Resolver(configure=False)
        if nameservers:
            resolver.nameservers = [dns.nameserver.Do53Nameserver(*nameserver(text)) for text in nameservers]
        resolver.use_search_by_default = True
        resolver.lifetime = timeout_s
        resolver.timeout = min(resolver.timeout, timeout_s)
        self._resolver = resolver

    async def ask(self, name: str) -> tuple[Server, ...]:
        """The servers behind `dns <name>` or `srv <name>`, in a fixed order; empty when the name has none, or is none.

        Raises LookupFailed.
        """
        kind, _, host = name.partition(" ")
        try:
            found = await (self._services(host) if kind == "srv" else self._hosts(host))
        except (dns.exception.DNSException, OSError, EOFError, ValueError) as fault:
            raise LookupFailed(str(fault) or type(fault).__name__) from None
        ordered = sorted(found, key=lambda one: (one.priority, one.address, one.port or 0))
        return tuple(dict.fromkeys(ordered))

    async def _hosts(self, host: str) -> list[Server]:
        return [Server(address=address) for address in await self._addresses(host)]

    async def _addresses(self, host: str) -> list[str]:
        try:
            answers = await self._resolver.resolve_name(host)
        except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer):
            return []
        return list(dict.fromkeys(answers.addresses()))[:_MOST]

    async def _services(self, host: str) -> list[Server]:
        try:
            answer = await self._resolver.resolve(host, "SRV")
        except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer):
            return []
        # a target that is the root says that there is no such service (RFC 2782)
        records = [one for one in answer if len(one.target) > 1 and one.port][:_MOST]
        records.sort(key=lambda one: one.priority)
        targets = list(dict.fromkeys(one.target.to_text() for one in records))
        addresses = dict(zip(targets, await asyncio.gather(*map(self._addresses, targets)), strict=True))
        servers = (
            Server(address=address, port=one.port, weight=one.weight, priority=one.priority)
            for one in records
            for address in addresses[one.target.to_text()]
        )
        return list(islice(servers, _MOST))
