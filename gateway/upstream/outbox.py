"""The requests that one worker has to write this turn of the loop, to whichever backends.

Under load all of them are written together: a system call between two requests costs the second one warm caches and
branch predictions, which is more than the call itself. With few calls in progress a request is written at once: a turn
of the loop would only delay it. Pools share it, or what goes to four backends would be written as four small loads.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

_FEW = 4


class Sender(Protocol):
    """A connection whose request is ready."""

    def send(self) -> None: ...


class Outbox:
    """Of one loop. ``calls``: those in progress, which the pools count."""

    __slots__ = ("_loop", "_unsent", "calls")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._unsent: list[Sender] = []
        self.calls = 0

    def add(self, sender: Sender) -> None:
        """Let it send, now or at the end of the turn."""
        if self.calls < _FEW:
            sender.send()
            return
        if not self._unsent:
            self._loop.call_soon(self._send)
        self._unsent.append(sender)

    def _send(self) -> None:
        unsent, self._unsent = self._unsent, []
        for sender in unsent:
            sender.send()
