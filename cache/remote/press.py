"""Wraps and unwraps values without holding up the loop: large ones in a thread, for zstd lets go of the GIL."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

from .value import Values

LARGE_BYTES = 128 << 10  # about 0.3 ms to compress


class Press:
    """One thread, started with the first large value."""

    __slots__ = ("_here", "_loop", "_pool", "_there")

    def __init__(self, loop: asyncio.AbstractEventLoop, compress_above: int, max_bytes: int) -> None:
        self._loop = loop
        self._here = Values(compress_above, max_bytes)
        self._there = Values(compress_above, max_bytes)
        self._pool = ThreadPoolExecutor(1, "penstock-l2")

    async def wrap(self, packed: bytes) -> bytes:
        """See Values.wrap."""
        if len(packed) < LARGE_BYTES:
            return self._here.wrap(packed)
        return await self._loop.run_in_executor(self._pool, self._there.wrap, packed)

    async def unwrap(self, value: bytes) -> bytes | None:
        """See Values.unwrap."""
        if len(value) < LARGE_BYTES:
            return self._here.unwrap(value)
        return await self._loop.run_in_executor(self._pool, self._there.unwrap, value)

    def close(self) -> None:
        """End the thread."""
        self._pool.shutdown(wait=False, cancel_futures=True)
