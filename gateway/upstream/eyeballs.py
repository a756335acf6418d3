"""Happy eyeballs (RFC 8305): try a backend's addresses a little apart, keep the first that connects.

Knows nothing of sockets: how one address is tried, and how a result nobody wants is disposed of, are passed
in.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from .dns import Address

Connected = TypeVar("Connected")

STAGGER_S = 0.25


def interleave(addresses: Sequence[Address]) -> list[Address]:
    """The addresses with their families taking turns, starting with the first one's (RFC 8305 section 4)."""
    families: dict[int, list[Address]] = {}
    for address in addresses:
        families.setdefault(address.family, []).append(address)
    queues = list(families.values())
    longest = max((len(queue) for queue in queues), default=0)
    return [queue[turn] for turn in range(longest) for queue in queues if turn < len(queue)]


async def first_to_connect(
    addresses: Sequence[Address],
    attempt: Callable[[Address], Awaitable[Connected]],
    dispose: Callable[[Connected], None],
    stagger_s: float = STAGGER_S,
) -> Connected:
    """The result of the first attempt that succeeds.

    The next address is tried when the one before has failed, or has not answered for ``stagger_s``. Losers
    are cancelled, and a loser that had won in the same moment is disposed of. Raises the last attempt's
    OSError when all have failed. A single address costs no task.
    """
    if len(addresses) == 1:
        return await attempt(addresses[0])
    waiting = interleave(addresses)
    running: set[asyncio.Task[Connected]] = set()
    error: OSError = OSError("no address to connect to")
    winner: asyncio.Task[Connected] | None = None
    try:
        while waiting or running:
            if waiting:
                running.add(asyncio.ensure_future(_as_coroutine(attempt, waiting.pop(0))))
            done, running = await asyncio.wait(
                running, timeout=stagger_s if waiting else None, return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                failure = task.exception()
                if failure is None:
                    if winner is None:
                        winner = task
                    else:
                        dispose(task.result())
                elif isinstance(failure, OSError):
                    error = failure
                else:
                    raise failure
            if winner is not None:
                return winner.result()
        raise error
    finally:
        for task in running:
            task.cancel()
            task.add_done_callback(lambda late: _dispose_late(late, dispose))


async def _as_coroutine(attempt: Callable[[Address], Awaitable[Connected]], address: Address) -> Connected:
    return await attempt(address)


def _dispose_late(task: asyncio.Task[Connected], dispose: Callable[[Connected], None]) -> None:
    if not task.cancelled() and task.exception() is None:
        dispose(task.result())
