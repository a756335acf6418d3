"""An answer that is whole in memory, given to a relay as if it came from a backend.

The server host takes whatever it is given, at once, and keeps it until its client has read it. A long answer is
therefore handed over piece by piece, at the pace of its client, and stays where it is counted meanwhile.
"""

from __future__ import annotations

from typing import Protocol

_PIECE_BYTES = 64 << 10


class Sink(Protocol):
    """The part of a relay that is fed from here."""

    def on_data(self, data: bytes) -> None: ...

    def on_end(self) -> None: ...


class Gathered:
    """A body with the face of an upstream call. It pushes within ``attach`` and ``resume`` until it is paused."""

    __slots__ = ("_at", "_body", "_paused", "_sink")

    def __init__(self, body: bytes | bytearray) -> None:
        self._body: bytes | bytearray = body
        self._at = 0
        self._paused = False
        self._sink: Sink | None = None

    def attach(self, sink: Sink) -> None:
        """Begin to give the body to ``sink``."""
        self._sink = sink
        self._push()

    def pause(self) -> None:
        """Give no more until resumed."""
        self._paused = True

    def resume(self) -> None:
        """Go on."""
        self._paused = False
        self._push()

    def abort(self) -> None:
        """Nobody wants the rest: let go of it and of the sink, which refers back to this. Idempotent."""
        self._sink = None
        self._body = b""

    def _push(self) -> None:
        while self._sink is not None and not self._paused:
            sink, at = self._sink, self._at
            if at >= len(self._body):
                self._sink = None
                sink.on_end()
                return
            self._at = at + _PIECE_BYTES
            sink.on_data(bytes(memoryview(self._body)[at : self._at]))
