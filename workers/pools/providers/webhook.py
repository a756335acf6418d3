"""`provider: webhook`: a user's URL is told to start and to stop servers, whatever they are.

Strategy: each start and stop is one signed POST (`hook`), repeated with its key until it is accepted, refused or too
late. Whether servers run is then seen at the model's backends, and that is also all that is known after a restart.
Members end from the highest, so that `replicas` says enough: for a start how many there are to be at least, for a
stop at most. Refuses to know what the receiver does with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager

from ....gateway.config import Backend, Model, WebhookPool
from ...target import Target, TargetKey, Unanswered
from .base import Order, Provider, ProviderFault, Running
from .hook import Hook

_ANSWER_S = 5.0
_MOST_BYTES = 64 << 10
_EVERY_S = 0.25

Found = Callable[[], Sequence[Backend]]


class WebhookProvider(Provider):
    """The servers behind one URL.

    name, model: the model that they serve, as configured; its pool is a WebhookPool. found: its backends now, with
    those that have been discovered. health_path: answered with 2xx by a server that is ready. now_s: the wall
    clock, which is signed. every_s: between two looks at a server.
    """

    ordered = True

    def __init__(
        self,
        name: str,
        model: Model,
        found: Found,
        *,
        health_path: str,
        environ: Mapping[str, str],
        now_s: Callable[[], float],
        every_s: float = _EVERY_S,
    ) -> None:
        super().__init__()
        assert isinstance(model.pool, WebhookPool)
        self._name = name
        self._pool = model.pool
        self._configured = model.backends
        discovers = any(backend.discover is not None for backend in model.backends)
        #: whether each member has a backend of its own
        self._apart = not discovers and len(model.backends) >= model.pool.max
        self._found = found
        self._path = health_path
        self._environ = environ
        self._every_s = every_s
        self._hook = Hook(model.pool.url, environ.get(model.pool.secret_env, ""), model.pool.timeout_s, now_s)

    async def ensure_ready(self, member: int, order: Order, timeout_s: float) -> Running:
        until = asyncio.get_running_loop().time() + timeout_s
        await self._tell("start", member, member + 1, order, timeout_s)
        try:
            async with asyncio.timeout_at(until):
                await self._until(member, answering=True)
        except TimeoutError:
            raise ProviderFault(
                f"webhook accepted, but no server was healthy after {timeout_s:g} s"
            ) from None
        return Running()

    async def ensure_stopped(self, member: int, order: Order, timeout_s: float) -> None:
        until = asyncio.get_running_loop().time() + timeout_s
        await self._tell("stop", member, member, order, timeout_s)
        if not self._alone:
            return
        try:
            async with asyncio.timeout_at(until):
                await self._until(member, answering=False)
        except TimeoutError:
            raise ProviderFault(
                f"webhook accepted the stop, but the server still answers after {timeout_s:g} s"
            ) from None

    async def status(self) -> Mapping[int, Running]:
        async with self._targets() as targets:
            seen = await asyncio.gather(
                *(
                    self._answers(targets, member)
                    for member in range(self._pool.max)
                    if member == 0 or self._alone
                )
            )
        return {member: Running() for member, answers in enumerate(seen) if answers}

    async def close(self) -> None:
        await self._hook.close()

    async def _tell(self, action: str, member: int, replicas: int, order: Order, timeout_s: float) -> None:
        fields: dict[str, object] = {
            "pool": self._name,
            "model": self._name,
            "action": action,
            "replicas": replicas,
            "member": member,
            "fence": order.fence,
            "key": order.key,
        }
        await self._hook.post(fields, order.key, timeout_s)

    @property
    def _alone(self) -> bool:
        """Whether the servers that answer for a member answer for no other one."""
        return self._apart or self._pool.max == 1

    def _servers(self, member: int) -> Sequence[Backend]:
        """Those of which one is to answer for the member: its own, or all where they cannot be told apart."""
        return (self._configured[member],) if self._apart else self._found()

    async def _until(self, member: int, *, answering: bool) -> None:
        async with self._targets() as targets:
            while True:
                if await self._answers(targets, member) is answering:
                    return
                await asyncio.sleep(self._every_s)

    async def _answers(self, targets: dict[TargetKey, Target], member: int) -> bool:
        asked = []
        for backend in self._servers(member):
            key = TargetKey(backend.url, backend.api_key_env, backend.tls, None, backend.protocol)
            if key not in targets:
                targets[key] = Target(key, backend, self._environ)
            asked.append(self._healthy(targets[key]))
        return any(await asyncio.gather(*asked))

    async def _healthy(self, target: Target) -> bool:
        try:
            status, _ = await target.ask(self._path, timeout_s=_ANSWER_S, most_bytes=_MOST_BYTES)
        except Unanswered:
            return False
        return 200 <= status <= 299

    @asynccontextmanager
    async def _targets(self) -> AsyncIterator[dict[TargetKey, Target]]:
        targets: dict[TargetKey, Target] = {}
        try:
            yield targets
        finally:
            for target in targets.values():
                await target.close()
