"""An answer that is whole in memory, given to a relay as if it came from a backend.

The server host takes whatever it is given, at once, and keeps it until its client has read it. A long answer is
therefore handed over piece by piece, at the pace of its client, and stays where it is counted meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

_PIECE_BYTES = 64 << 10


class Sink(Protocol):
    """The part of a relay that is fed from here."""

    def on_data(self, data: bytes) -> None: ...

    def on_end(self) -> None: ...


def sliced(body: bytes | bytearray) -> Iterator[bytes]:
    """A body in pieces of 64 KiB."""
    for at in range(0, len(body), _PIECE_BYTES):
        yield bytes(memoryview(body)[at : at + _PIECE_BYTES])


class Gathered:
    """Pieces with the face of an upstream call. It pushes within ``attach`` and ``resume`` until it is paused."""

    __slots__ = ("_paused", "_pieces", "_sink")

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)
        self._paused = False
        self._sink: Sink | None = None

    def attach(self, sink: Sink) -> None:
        """Begin to give the pieces to ``sink``."""
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
        self._pieces = iter(())

    def _push(self) -> None:
        while self._sink is not None and not self._paused:
            sink = self._sink
            piece = next(self._pieces, None)
            if piece is None:
                self._sink = None
                sink.on_end()
                return
            sink.on_data(piece)
