"""vLLM's sleep levels, a tier in front of any provider: a server is put to sleep, woken, asked whether it sleeps.

These are routes of vLLM's development mode (`VLLM_SERVER_DEV_MODE=1`, and `--enable-sleep-mode` for a sleep to free
anything), asked at the server's own address and never offered through the gateway's. Source: vLLM 0.32's
`entrypoints/serve/dev/{sleep,rpc}/api_router.py`, and `EngineCore.sleep` and `wake_up` in `v1/engine/core.py`.

Strategy: a status of 200 is not believed, because vLLM answers 200 also where it only logs that it did nothing;
`/is_sleeping` is asked after each. From level 2 the weights' memory comes first, then the weights, the KV cache last:
until that last step the server says that it sleeps and runs nothing, so whoever takes over half-way begins again, and
no request is ever answered without weights. `mode=wait` has what still runs come to its end instead of being aborted;
versions that do not know it ignore it. Refuses to know when any of this is right (the machine), and where (providers).
"""

from __future__ import annotations

import asyncio

import msgspec

from ..target import Target, Unanswered
from .providers.base import ProviderFault
from .quote import one_line, said

_MOST_BYTES = 64 << 10
_RELOAD = b'{"method":"reload_weights"}'


class Sleeper:
    """One server. Every method raises ProviderFault, with the reason in one line, also after `timeout_s`."""

    __slots__ = ("_server",)

    def __init__(self, server: Target) -> None:
        self._server = server

    async def sleep(self, level: int, timeout_s: float) -> None:
        """Have it sleep at level 1 or 2; returns when it has given its memory back."""
        until = _now() + timeout_s
        await self._do(f"/sleep?level={level}&mode=wait", until)
        if not await self._sleeps(until):
            raise ProviderFault("the server was told to sleep, and does not")

    async def wake(self, level: int, timeout_s: float) -> None:
        """Have it answer again that sleeps at `level`, with its weights loaded where the level dropped them."""
        until = _now() + timeout_s
        if level == 2:
            await self._do("/wake_up?tags=weights", until)
            await self._do("/collective_rpc", until, _RELOAD)
            await self._do("/wake_up?tags=kv_cache", until)
        else:
            await self._do("/wake_up", until)
        if await self._sleeps(until):
            raise ProviderFault("the server was woken, and sleeps on")

    async def is_sleeping(self, timeout_s: float = 5.0) -> bool:
        """Whether it sleeps, at any level; one without these routes does not."""
        return await self._sleeps(_now() + timeout_s, unknown=True)

    async def _sleeps(self, until: float, *, unknown: bool = False) -> bool:
        status, body = await self._ask("/is_sleeping", until)
        if status == 404 and unknown:
            return False
        _check("/is_sleeping", status, body)
        try:
            answer = msgspec.json.decode(body)["is_sleeping"]
        except (msgspec.DecodeError, RecursionError, KeyError, TypeError):
            answer = None
        if not isinstance(answer, bool):
            raise ProviderFault("/is_sleeping did not say whether the server does")
        return answer

    async def _do(self, path: str, until: float, body: bytes = b"") -> None:
        status, answer = await self._ask(path, until, body)
        _check(path.partition("?")[0], status, answer)

    async def _ask(self, path: str, until: float, body: bytes | None = None) -> tuple[int, bytes]:
        short = path.partition("?")[0]
        left = until - _now()
        try:
            return await self._server.ask(path, timeout_s=max(left, 0.0), most_bytes=_MOST_BYTES, body=body)
        except Unanswered as fault:
            if _now() >= until:
                raise ProviderFault(f"{short} did not answer in time") from None
            raise ProviderFault(f"{short}: {one_line(str(fault))}") from None


def _check(path: str, status: int, body: bytes) -> None:
    if status == 404:
        raise ProviderFault(f"the server has no {path}: vLLM needs VLLM_SERVER_DEV_MODE=1")
    if not 200 <= status <= 299:
        raise ProviderFault(f"{path} answered {status}{said(body)}")


def _now() -> float:
    return asyncio.get_running_loop().time()
