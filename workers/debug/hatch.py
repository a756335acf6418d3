"""The way into a running process for those who look: a Unix socket and a thread that waits at it.

Strategy: one question a connection, a line of JSON; the answer is lines of JSON and one that says that it is whole. The
thread serves one after another, waits in the kernel, and answers for a loop that stands still, too. Whoever leaves, or
closes its side, ends what was begun. `docs/adr/0030-profiles.md` has the reasons.

The socket is ``debug-<slot>-<generation>.sock`` in the run directory, mode 0600. Refuses to know who may ask: the
controller does.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from . import heap, tasks, tracer
from .sampler import Sampler

log = logging.getLogger(__name__)

MOST_S = 60.0
END = b'{"end":true}\n'
_PATIENCE_S = 30.0
"""For a question to come, and for an answer to be taken."""
_PASSING = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ECONNABORTED)
_PAUSE_S = 1.0
_PIECE_BYTES = 256 << 10
_BREATH_S = 0.000_1
"""After each line, for the loop's thread to go on, on the one core they share."""


class Wish(msgspec.Struct, frozen=True):
    """A question. what: `profile`, `trace`, `heap` or `tasks`; seconds: for how long, 0 for `heap` as it is; most:
    events of a trace.
    """

    what: str
    seconds: float = 0.0
    most: int = 0


class _Left(Exception):
    """Nobody waits for the answer any more."""


def path_of(folder: Path, slot: int, generation: int) -> Path:
    """Where a process can be asked."""
    return folder / f"debug-{slot}-{generation}.sock"


class Hatch:
    """Made on the main thread, by the function that runs `loop`; one a process."""

    def __init__(self, folder: Path, slot: int, generation: int, loop: asyncio.AbstractEventLoop) -> None:
        self._path = path_of(folder, slot, generation)
        self._loop = loop
        self._sampler = Sampler(sys._getframe(1))
        for left in folder.glob(f"debug-{slot}-*.sock"):  # the slot is ours: those are dead
            left.unlink(missing_ok=True)

    def open(self) -> None:
        """Wait for questions from now on; where that cannot be, a line of the log says so."""
        listener = self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            os.fchmod(listener.fileno(), 0o600)  # before bind, which makes the file with these rights
            listener.bind(os.fspath(self._path))
            listener.listen(4)
        except OSError as fault:
            listener.close()
            log.warning("debug_unheard path=%s cause=%s", self._path, fault)
            return
        # signals are for the loop's thread
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            threading.Thread(target=self._serve, name="debug", daemon=True).start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def close(self) -> None:
        """No further question will be answered."""
        self._path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError as fault:
                if fault.errno not in _PASSING:
                    return  # closed
                time.sleep(_PAUSE_S)
                continue
            with connection:
                try:
                    connection.settimeout(_PATIENCE_S)
                    self._answer(connection)
                except (_Left, OSError, msgspec.DecodeError) as why:
                    log.info("debug_left cause=%s", type(why).__name__)
                except Exception:
                    log.exception("debug_failed")

    def _answer(self, connection: socket.socket) -> None:
        with connection.makefile("rb") as lines:
            wish = msgspec.json.decode(lines.readline(4096), type=Wish)
        begun = time.monotonic()
        log.info("debug_begun what=%s seconds=%g", wish.what, wish.seconds)

        def wait() -> None:
            _wait(connection, min(wish.seconds, MOST_S))

        piece = bytearray()
        for one in self._told(wish, wait):
            piece += msgspec.json.encode(one) + b"\n"
            if len(piece) > _PIECE_BYTES:
                connection.sendall(piece)
                piece.clear()
            time.sleep(_BREATH_S)
        connection.sendall(piece + END)
        log.info("debug_ended what=%s seconds=%.1f", wish.what, time.monotonic() - begun)

    def _told(self, wish: Wish, wait: Callable[[], None]) -> Iterator[dict[str, Any]]:
        if wish.what == "profile":
            return self._sampler.run(wait)
        if wish.what == "trace":
            return tracer.run(self._loop, wait, wish.most)
        if wish.what == "heap":
            return heap.allocated(wait) if wish.seconds else heap.census()
        return tasks.told(self._loop)


def _wait(connection: socket.socket, seconds: float) -> None:
    """Until the time is over. Raises _Left when the other side closes."""
    poll = select.poll()
    poll.register(connection, select.POLLIN | select.POLLHUP)
    if poll.poll(seconds * 1000):
        raise _Left
