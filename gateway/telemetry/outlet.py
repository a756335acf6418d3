"""From a loop that may not wait to a thread that may: a bounded line between them.

Strategy: the loop appends to a deque and wakes nobody; the thread comes by every ``every_s`` and takes what is there.
What finds the line full is left out and counted. Each counter has one writer. Knows nothing of what is handed over.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")


class Outlet(Generic[T]):
    """One line and its thread, which begins with it.

    ``deliver`` is called in the thread with at most ``batch`` items, every ``every_s``, and gives back how many of
    what they count for were lost; it raises nothing that is meant. ``most``: what the sizes of all that
    wait may add up to.
    """

    def __init__(
        self, name: str, deliver: Callable[[list[T]], int], *, most: int, every_s: float, batch: int
    ) -> None:
        self._name = name
        self._deliver = deliver
        self._most = most
        self._every_s = every_s
        self._batch = batch
        self._line: deque[tuple[T, int, int]] = deque()
        self._entered = 0
        self._left = 0
        self._refused = 0
        self._undelivered = 0
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def lost(self) -> int:
        """What was left out or could not be delivered, since the beginning."""
        return self._refused + self._undelivered

    def offer(self, item: T, size: int, count: int) -> None:
        """Hand over an item that stands for ``count``; for the loop alone."""
        if self._entered + size - self._left > self._most:
            self._refused += count
            return
        self._entered += size
        self._line.append((item, size, count))

    def close(self) -> None:
        """Take nothing more; the thread delivers what waits, then ends. Does not wait for that."""
        self._closed.set()

    def join(self, timeout_s: float) -> None:
        """Wait for the end of the thread, for a bounded time; not for a loop."""
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while not self._closed.wait(self._every_s):
            self._pass_on()
        while self._line:
            self._pass_on()

    def _pass_on(self) -> None:
        line = self._line
        taken = [line.popleft() for _ in range(min(self._batch, len(line)))]
        if not taken:
            return
        try:
            self._undelivered += self._deliver([item for item, _, _ in taken])
        except Exception:
            log.exception("outlet_failed name=%s", self._name)
            self._undelivered += sum(count for _, _, count in taken)
        finally:
            self._left += sum(size for _, size, _ in taken)
