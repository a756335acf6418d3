"""Names looked up again and again, and what is made of the answers: the fleet changes when the set of servers does.

Strategy: one round every `discovery.refresh_s`, all names at once. A look-up that fails changes nothing, however long:
a resolver that is down is no reason to leave servers that are up, and probes take out those that are not. A name
without records is believed only when it has had none for `HOLD_S`, as a name server that starts may say so for a
moment; a headless Service that was scaled to nothing has none for good, and then its addresses may soon be another's.

Refuses to know how a fleet is changed: that is the function it is given.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence

from ..gateway.config import Config, Server
from .expand import Found, names_in
from .lookup import Lookup, LookupFailed

log = logging.getLogger(__name__)

HOLD_S = 30.0


class Known:
    """The servers behind one name, as far as they are believed. Pure."""

    __slots__ = ("_empty_since_s", "servers")

    def __init__(self, servers: tuple[Server, ...] = ()) -> None:
        self.servers = servers
        self._empty_since_s: float | None = None

    def note(self, answer: tuple[Server, ...], now_s: float) -> tuple[Server, ...]:
        """Take in one answer; the servers there are."""
        if answer:
            self._empty_since_s = None
            self.servers = answer
        elif self._empty_since_s is None:
            self._empty_since_s = now_s
        elif now_s - self._empty_since_s >= HOLD_S:
            self.servers = ()
        return self.servers


class Discovery:
    """Looks up what `config()` names. `publish` is given all that is found whenever a round is over."""

    def __init__(
        self,
        config: Callable[[], Config],
        found: Found,
        publish: Callable[[Mapping[str, tuple[Server, ...]]], Awaitable[None]],
        clock: Callable[[], float],
        lookup: Callable[[Sequence[str]], Lookup] = Lookup,
    ) -> None:
        self._config = config
        self._publish = publish
        self._clock = clock
        self._lookup = lookup
        self._known = {name: Known(servers) for name, servers in found.items()}
        self._failing: set[str] = set()
        self._changed = asyncio.Event()

    def look_again(self) -> None:
        """The configuration is another: do not wait for the next round."""
        self._changed.set()

    async def run(self) -> None:
        """Look up for ever."""
        while True:
            self._changed.clear()
            await self.round()
            refresh_s = self._config().discovery.refresh_s if names_in(self._config()) else None
            try:
                async with asyncio.timeout(refresh_s):
                    await self._changed.wait()
            except TimeoutError:
                pass

    async def round(self) -> None:
        """Look up all names once."""
        config = self._config()
        names = names_in(config)
        if not names:
            return
        self._known = {name: self._known.get(name) or Known() for name in names}
        self._failing.intersection_update(names)
        try:
            lookup = self._lookup(config.discovery.nameservers)
        except LookupFailed as fault:
            self._failed(names, fault)
            return
        await asyncio.gather(*(self._ask(lookup, name) for name in names))
        await self._publish({name: known.servers for name, known in self._known.items()})

    async def _ask(self, lookup: Lookup, name: str) -> None:
        try:
            answer = await lookup.ask(name)
        except LookupFailed as fault:
            self._failed([name], fault)
            return
        if name in self._failing:
            self._failing.discard(name)
            log.info("lookup_works name=%s", name)
        known = self._known[name]
        before = known.servers
        after = known.note(answer, self._clock())
        if after != before:
            log.info("discovered name=%s servers=%d before=%d", name, len(after), len(before))

    def _failed(self, names: Sequence[str], fault: LookupFailed) -> None:
        for name in names:
            if name not in self._failing:
                self._failing.add(name)
                kept = len(self._known[name].servers)
                log.warning("lookup_failed name=%s kept=%d: %s", name, kept, fault)
