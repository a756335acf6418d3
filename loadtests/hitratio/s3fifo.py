"""S3-FIFO: a small queue that lets one-hit wonders go early, a main queue, and a ghost of what went.

Source: Yang et al., "FIFO Queues are All You Need for Cache Eviction", SOSP 2023, algorithm 1; by bytes instead of by
count: the small queue has a tenth of the bytes, the ghost remembers as many bytes' worth of keys as the main queue.
"""

from __future__ import annotations

_MOST = 3  # the counter has two bits


class S3Fifo:
    """Three queues in order of arrival, each a dict; a counter of uses for what is kept."""

    __slots__ = (
        "_capacity",
        "_ghost",
        "_ghost_used",
        "_main",
        "_main_used",
        "_small",
        "_small_used",
        "_uses",
    )

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._small: dict[int, int] = {}
        self._main: dict[int, int] = {}
        self._ghost: dict[int, int] = {}
        self._uses: dict[int, int] = {}
        self._small_used = self._main_used = self._ghost_used = 0

    def request(self, key: int, size: int) -> bool:
        uses = self._uses
        seen = uses.get(key)
        if seen is not None:
            if seen < _MOST:
                uses[key] = seen + 1
            return True
        if size > self._capacity:
            return False
        while self._small_used + self._main_used + size > self._capacity:
            if self._small and (self._small_used >= self._capacity // 10 or not self._main):
                self._drop_from_small()
            else:
                self._drop_from_main()
        ghost = self._ghost.pop(key, None)
        if ghost is not None:
            self._ghost_used -= ghost
            self._main[key] = size
            self._main_used += size
        else:
            self._small[key] = size
            self._small_used += size
        uses[key] = 0
        return False

    def _drop_from_small(self) -> None:
        """Move the tail up while it was used more than once; the first that was not becomes a ghost."""
        small, uses = self._small, self._uses
        while small:
            key = next(iter(small))
            size = small.pop(key)
            self._small_used -= size
            if uses[key] > 1:
                uses[key] = 0
                self._main[key] = size
                self._main_used += size
                continue
            del uses[key]
            self._remember(key, size)
            return

    def _drop_from_main(self) -> None:
        """Give the tail another round for each use it has left; the first that has none goes."""
        main, uses = self._main, self._uses
        while main:
            key = next(iter(main))
            size = main.pop(key)
            if uses[key] > 0:
                uses[key] -= 1
                main[key] = size
                continue
            del uses[key]
            self._main_used -= size
            return

    def _remember(self, key: int, size: int) -> None:
        ghost = self._ghost
        ghost[key] = size
        self._ghost_used += size
        while self._ghost_used > self._capacity - self._capacity // 10:
            self._ghost_used -= ghost.pop(next(iter(ghost)))
