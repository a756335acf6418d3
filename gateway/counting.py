"""Asks one server how many tokens texts are, by its ``/tokenize`` (vLLM's; not OpenAI's)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from .batch_text import Unsplit
from .fleet import Backend
from .portion import Portion
from .upstream.call import CallTimeouts
from .upstream.fault import BodyTooLarge, UpstreamFault

#: Calls at one time for one batch.
_ASKERS = 8
#: The answer lists the tokens as well.
_TOKENS_BYTES = 16 << 20


class Counting:
    """Asks one server how many tokens texts are."""

    __slots__ = ("_backend", "_clock", "_model", "_timeouts")

    def __init__(
        self, backend: Backend, model: str, timeouts: CallTimeouts, clock: Callable[[], float]
    ) -> None:
        self._backend = backend
        self._model = model
        self._timeouts = timeouts
        self._clock = clock

    async def of(self, portions: Sequence[Portion], request_id: str) -> list[list[int]]:
        """The tokens of each input of each portion; raises :class:`Unsplit` where the server does not say."""
        special = portions[0].shared.get("add_special_tokens")
        more: dict[str, Any] = {} if special is None else {"add_special_tokens": special}
        known: dict[bytes, int] = {}
        each = dict.fromkeys(item for portion in portions for item in portion.items)
        texts = iter(each)

        async def ask() -> None:
            for text in texts:
                asked = {"model": self._model, "prompt": msgspec.Raw(text), **more}
                known[text] = await self._count(msgspec.json.encode(asked), request_id)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(_ASKERS, len(each))):
                    group.create_task(ask())
        except ExceptionGroup as errors:
            _, other = errors.split((Unsplit, UpstreamFault, BodyTooLarge, msgspec.MsgspecError))
            if other is not None:
                raise other from None
            raise Unsplit(f"tokens cannot be counted: {errors.exceptions[0]}") from None
        return [[known[item] for item in portion.items] for portion in portions]

    async def _count(self, body: bytes, request_id: str) -> int:
        head = (
            f"{self._backend.head('POST', '/tokenize')}content-type: application/json\r\n"
            f"x-request-id: {request_id}\r\ncontent-length: {len(body)}\r\n\r\n"
        ).encode("ascii")
        fresh = False
        while True:
            try:
                call = await self._backend.pool.call(
                    head, body, self._timeouts, total_started=self._clock(), fresh=fresh
                )
                break
            except UpstreamFault as fault:
                if fresh or not fault.stale:
                    raise
                fresh = True
        try:
            answer = await call.read_all(_TOKENS_BYTES)
        finally:
            call.abort()
        if call.status != 200:
            raise Unsplit(f"{call.status} from /tokenize")
        return _decode_counted(answer).count


class _Counted(msgspec.Struct):
    count: int


_decode_counted = msgspec.json.Decoder(_Counted).decode
