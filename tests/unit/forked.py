"""A forked child for tests of the shared segment: it runs, says so, and can be killed -9."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from types import TracebackType

_WATCHDOG_S = 60


class Child:
    """A fork that runs `body(say)` and exits 0, or 1 when it raised; killed at the end of the `with` block.

    `say(b"...")` sends bytes to the parent, which `hear` waits for. The child's alarm bounds its life.
    """

    def __init__(self, body: Callable[[Callable[[bytes], object]], object]) -> None:
        self._read, write = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                signal.alarm(_WATCHDOG_S)
                os.close(self._read)
                body(lambda message: os.write(write, message))
                code = 0
            finally:
                os._exit(code)
        os.close(write)
        self._status: int | None = None

    def hear(self) -> bytes:
        """What the child said next; b"" when it has ended without a word."""
        return os.read(self._read, 4096)

    def wait(self) -> int:
        """Wait for the end: the exit status, negative for a signal."""
        if self._status is None:
            self._status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self._status

    def kill(self) -> None:
        """Kill -9 and reap."""
        if self._status is None:
            os.kill(self.pid, signal.SIGKILL)
            self.wait()

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        os.close(self._read)


def die() -> None:
    """End this process as kill -9 does: nothing is flushed, nothing cleaned up."""
    os.kill(os.getpid(), signal.SIGKILL)


def linger() -> None:
    """Stay until killed."""
    while True:
        signal.pause()
