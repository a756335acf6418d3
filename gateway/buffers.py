"""Bytes of bodies and answers that the node holds, against ``limits.max_buffered``.

Everything is counted as it arrives, never as it is announced: what a client only promises keeps nobody out. Over the
limit a request's body is refused (429), and the backend of an answer that is being gathered is paused until there is
room again. So that answers which fill the limit among themselves do not wait for each other for ever, one of them a
worker goes on all the same; the node holds at most ``max_response`` a worker more than its limit.
"""

from __future__ import annotations

from typing import Protocol

from ..cache.rows import Tally, TallyRow
from .errors import Fault, Kind

#: Bodies from this on ask all workers what the node holds; smaller ones only once this worker holds much itself.
_ASK_NODE_BYTES = 64 << 10
#: what one read from a backend may bring
_READ_BYTES = 256 << 10


class Pausable(Protocol):
    """The part of an upstream call that is steered here. ``paused`` stays False once nothing more can come."""

    @property
    def paused(self) -> bool: ...

    def pause(self) -> None: ...

    def resume(self) -> None: ...


class Buffers:
    """What one worker holds, and what all of them hold together. ``limit_bytes`` may change at a reload."""

    def __init__(self, row: TallyRow, tally: Tally, limit_bytes: int, workers: int) -> None:
        self.limit_bytes = limit_bytes
        self._row = row
        self._tally = tally
        self._workers = workers
        self._held = 0
        self._paused: dict[Answer, None] = {}
        self._exempt: Answer | None = None

    def hold(self, size: int) -> int:
        """Count bytes of a request's body; raises :class:`Fault` 429 when the node holds too much."""
        limit = self.limit_bytes
        if (size >= _ASK_NODE_BYTES or self._held > limit // (4 * self._workers)) and (
            self._tally.held_total() + size > limit
        ):
            raise Fault(
                Kind.BUFFERS_FULL,
                "this node holds as many bytes as limits.max_buffered allows",
                retry_after_s=1.0,
            )
        self._held += size
        self._row.add_held(0, size)
        return size

    def try_hold(self, size: int) -> bool:
        """Count bytes that one could do without; False, and nothing counted, when the node holds too much."""
        if self._tally.held_total() + size > self.limit_bytes:
            return False
        self._held += size
        self._row.add_held(0, size)
        return True

    def release(self, size: int) -> None:
        """Give them back."""
        self._held -= size
        self._row.add_held(0, -size)

    def answer(self, call: Pausable) -> Answer:
        """The account of an answer that is gathered from ``call``; nothing is counted yet."""
        return Answer(self, call)

    def tick(self) -> None:
        """Let paused answers go on, the longest paused first, as far as there is room."""
        if not self._paused:
            return
        room = self.limit_bytes - self._tally.held_total()
        for answer in list(self._paused):
            room -= _READ_BYTES
            if room < 0 and self._exempt is not None:
                return
            if room < 0:
                self._exempt = answer
            del self._paused[answer]
            answer.call.resume()

    # ---- for answers

    def arrived(self, answer: Answer, size: int) -> None:
        self._held += size
        self._row.add_held(0, size)
        if answer is not self._exempt and self._tally.held_total() > self.limit_bytes:
            answer.call.pause()
            if answer.call.paused:
                self._paused[answer] = None

    def ended(self, answer: Answer) -> None:
        self._paused.pop(answer, None)
        if self._exempt is answer:
            self._exempt = None


class Answer:
    """One answer's bytes: ``arrived`` counts some and pauses its call when there are too many, ``release`` ends it."""

    __slots__ = ("_buffers", "call", "held_bytes")

    def __init__(self, buffers: Buffers, call: Pausable) -> None:
        self._buffers = buffers
        self.call = call
        self.held_bytes = 0

    def arrived(self, size: int) -> None:
        """Count bytes that are held from now on."""
        self.held_bytes += size
        self._buffers.arrived(self, size)

    def release(self) -> None:
        """Give everything back. Idempotent."""
        size, self.held_bytes = self.held_bytes, 0
        self._buffers.release(size)
        self._buffers.ended(self)
