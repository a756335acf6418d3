"""Whether the servers that a model's `backends` name are healthy, member by member.

As many backends as members: one each, in their order. Fewer, or found by name: then nobody can say which one a member
is, and any that is healthy will do.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence

from ....gateway.config import Backend
from ...target import Target, TargetKey, Unanswered

_ANSWER_S = 5.0
_MOST_BYTES = 64 << 10


class Reach:
    """configured: the model's `backends`. found: as they are now, with those that have been discovered."""

    def __init__(
        self,
        configured: Sequence[Backend],
        found: Callable[[], Sequence[Backend]],
        *,
        members: int,
        health_path: str,
        environ: Mapping[str, str],
        every_s: float = 0.25,
    ) -> None:
        self._configured = configured
        self._found = found
        plain = all(backend.discover is None for backend in configured)
        self._one_each = plain and len(configured) >= members
        self._path = health_path
        self._environ = environ
        self._every_s = every_s
        self._targets: dict[TargetKey, Target] = {}

    async def until_healthy(self, member: int) -> None:
        """Return once a server that may be the member answers with 2xx."""
        while True:
            asked = [self._configured[member]] if self._one_each else self._found()
            if any(await asyncio.gather(*map(self._healthy, asked))):
                return
            await asyncio.sleep(self._every_s)

    async def close(self) -> None:
        """Close the clients."""
        targets, self._targets = list(self._targets.values()), {}
        for target in targets:
            await target.close()

    async def _healthy(self, backend: Backend) -> bool:
        key = TargetKey(backend.url, backend.api_key_env, backend.tls, None, backend.protocol)
        if key not in self._targets:
            self._targets[key] = Target(key, backend, self._environ)
        try:
            status, _ = await self._targets[key].ask(self._path, timeout_s=_ANSWER_S, most_bytes=_MOST_BYTES)
        except Unanswered:
            return False
        return 200 <= status <= 299
