"""A terminal for a command: a pseudo-terminal of its own, and what would be seen on its screen."""

import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import pyte


class Terminal:
    """raw: all that was written to it; screen: its lines, as they would be seen; before: its settings at first."""

    process: subprocess.Popen[bytes]

    def __init__(self, ours: int, theirs: int, columns: int, rows: int) -> None:
        self.raw = b""
        self._ours = ours
        self._theirs = theirs
        self.before = self.settings()
        self._screen = pyte.Screen(columns, rows)
        self._stream = pyte.ByteStream(self._screen)

    @property
    def screen(self) -> list[str]:
        return [line.rstrip() for line in self._screen.display]

    def wait(self, *words: str, timeout_s: float = 30.0) -> list[str]:
        """The screen, once a line of it has each of `words`."""
        end = time.monotonic() + timeout_s
        while not all(any(one in line for line in self.screen) for one in words):
            assert time.monotonic() < end, "\n".join(self.screen)
            self._read(0.5)
        return self.screen

    def press(self, keys: bytes) -> None:
        os.write(self._ours, keys)

    def end(self, timeout_s: float = 20.0) -> int:
        """The exit status, once the command has ended by itself and all that it wrote is read."""
        end = time.monotonic() + timeout_s
        while self.process.poll() is None:
            assert time.monotonic() < end, "it goes on"
            self._read(0.05)
        while self._read(0.0):
            pass
        return self.process.returncode

    def settings(self) -> list[object]:
        """Its line discipline."""
        return list(termios.tcgetattr(self._theirs))

    def _read(self, timeout_s: float) -> bool:
        if not select.select([self._ours], [], [], timeout_s)[0]:
            return False
        data = os.read(self._ours, 65_536)
        self.raw += data
        self._stream.feed(data)
        return True


@contextmanager
def terminal(
    argv: Sequence[str], *, columns: int = 80, rows: int = 24, env: Mapping[str, str] | None = None
) -> Iterator[Terminal]:
    """`argv` in a terminal that it controls; it is ended with the block."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    seen = Terminal(ours, theirs, columns, rows)
    seen.process = process = subprocess.Popen(
        ["setsid", "-c", *argv],  # so that the terminal is its own, and Ctrl-C reaches it
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm-256color", **(env or {})},
    )
    try:
        yield seen
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        os.close(theirs)
        os.close(ours)
