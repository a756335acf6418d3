"""SIEVE: a queue in order of arrival and a hand that passes over what was visited.

Source: Zhang et al., "SIEVE is Simpler than LRU", NSDI 2024, algorithm 1; by bytes instead of by count.
"""

from __future__ import annotations


class _Node:
    __slots__ = ("key", "newer", "older", "size", "visited")

    def __init__(self, key: int, size: int) -> None:
        self.key = key
        self.size = size
        self.visited = False
        self.newer: _Node | None = None
        self.older: _Node | None = None


class Sieve:
    """New entries join at the head. The hand moves from tail to head, clears marks, and drops who has none."""

    __slots__ = ("_capacity", "_hand", "_head", "_nodes", "_tail", "_used")

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._nodes: dict[int, _Node] = {}
        self._head: _Node | None = None
        self._tail: _Node | None = None
        self._hand: _Node | None = None
        self._used = 0

    def request(self, key: int, size: int) -> bool:
        node = self._nodes.get(key)
        if node is not None:
            node.visited = True
            return True
        if size <= self._capacity:
            while self._used + size > self._capacity:
                self._drop_one()
            self._join(_Node(key, size))
        return False

    def _join(self, node: _Node) -> None:
        node.older = self._head
        if self._head is not None:
            self._head.newer = node
        self._head = node
        self._tail = self._tail or node
        self._nodes[node.key] = node
        self._used += node.size

    def _drop_one(self) -> None:
        node = self._hand or self._tail
        while node is not None and node.visited:
            node.visited = False
            node = node.newer or self._tail
        if node is None:
            raise RuntimeError("nothing is left to drop, and yet the cache is full")
        self._hand = node.newer
        if node.newer is not None:
            node.newer.older = node.older
        else:
            self._head = node.older
        if node.older is not None:
            node.older.newer = node.newer
        else:
            self._tail = node.newer
        del self._nodes[node.key]
        self._used -= node.size
