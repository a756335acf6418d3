"""The other nodes that share a pool, as this one hears of them through the store. Pure.

A node is heard of when its word has changed. When that was is measured by this node's clock alone, so nobody's clock
is believed, and words that a dead node left behind grow old like those of one that has just died.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from .lease import Word


@dataclass(frozen=True, slots=True)
class Timing:
    """beat_s: between two words of a node; one older than three is stale. lease_s: a lease that has not changed for
    so long may be taken. silent_s: a node that was not heard of for so long is none."""

    beat_s: float = 1.0
    lease_s: float = 6.0
    silent_s: float = 30.0

    @property
    def fresh_s(self) -> float:
        """How old a word may be and count."""
        return 3 * self.beat_s

    @property
    def proven_s(self) -> float:
        """How long after a renewal was sent its owner relies on it."""
        return self.lease_s * 5 / 6


class _Node:
    __slots__ = ("heard", "word", "worked")

    def __init__(self, word: Word, now: float) -> None:
        self.word = word
        self.heard = now
        self.worked = now  # for all one knows


class Nodes:
    """Those of one pool. There may be some that this node has had no time to hear of: until it has listened for
    `silent_s` without a gap it is `unsure`."""

    def __init__(self, timing: Timing) -> None:
        self._timing = timing
        self._nodes: dict[str, _Node] = {}
        self._since: float | None = None
        self._heard = 0.0

    def hear(self, words: Mapping[str, Word], now: float) -> None:
        """What the store has now; the node's own word is not among it."""
        if self._since is None or now - self._heard > self._timing.lease_s:
            self._since = now
        self._heard = now
        for name, word in words.items():
            node = self._nodes.get(name)
            if word.left:
                self._nodes.pop(name, None)
            elif node is None:
                self._nodes[name] = _Node(word, now)
            elif (node.word.life, node.word.beat) != (word.life, word.beat):
                if word.busy or (node.word.life, node.word.works) != (word.life, word.works):
                    node.worked = now
                node.word, node.heard = word, now
        for name in [n for n, node in self._nodes.items() if self._gone(node, now) and n not in words]:
            del self._nodes[name]

    def unsure(self, now: float) -> bool:
        """Whether there may be nodes that have not been heard of yet."""
        return self._since is None or now - self._since < self._timing.silent_s

    def any(self, now: float) -> bool:
        """Whether there are others that live, as far as one knows."""
        return any(True for _ in self._live(now))

    def stay(self, now: float) -> bool:
        """Whether there are others that live and are configured with it, as far as one knows."""
        return any(not n.word.leaves for n in self._live(now))

    def go_on(self, now: float) -> bool:
        """Whether one of those has said so lately."""
        return any(not n.word.leaves and self._fresh(n, now) for n in self._live(now))

    def busy(self, now: float) -> bool:
        """Whether one has work, or had a moment ago, or may have because it is silent."""
        beat_s = self._timing.beat_s
        return self.unsure(now) or any(
            not self._fresh(n, now) or n.word.busy or now - n.worked < beat_s for n in self._live(now)
        )

    def drained(self, number: tuple[int, int], now: float) -> bool:
        """Whether all that live have said lately that they are through with this drain."""
        return not self.unsure(now) and all(
            self._fresh(n, now) and n.word.drained == number for n in self._live(now)
        )

    def load(self, now: float) -> int:
        """Requests that wait and run with them."""
        return sum(n.word.load for n in self._live(now) if self._fresh(n, now))

    def running(self, now: float) -> frozenset[int]:
        """Members that they have ready."""
        return frozenset(i for n in self._live(now) if self._fresh(n, now) for i in n.word.running)

    def long_gone(self, now: float) -> list[str]:
        """Those whose words may be thrown away."""
        return [n for n, node in self._nodes.items() if now - node.heard >= 10 * self._timing.silent_s]

    def _live(self, now: float) -> Iterator[_Node]:
        return (node for node in self._nodes.values() if not self._gone(node, now))

    def _gone(self, node: _Node, now: float) -> bool:
        return now - node.heard >= self._timing.silent_s

    def _fresh(self, node: _Node, now: float) -> bool:
        return now - node.heard < self._timing.fresh_s
