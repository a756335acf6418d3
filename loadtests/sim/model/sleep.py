"""vLLM's sleep mode: which memory a server has given back, and what it does meanwhile. Pure.

After `EngineCore.sleep` and `wake_up` and `Executor` of vLLM 0.32: memory is in two parts, weights and KV cache, that
are given back together and may be taken again one by one; the scheduler goes on when both are there. What makes no
sense is logged there and answered with 200, so it does nothing here. Level 2 drops the weights: until they are
reloaded the server answers, but not to the point.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

PARTS = frozenset(("weights", "kv_cache"))


@dataclass(slots=True)
class SleepMode:
    """asleep_parts: the memory given back. paused: the scheduler begins nothing. dropped: there are no weights."""

    asleep_parts: set[str] = field(default_factory=set)
    paused: bool = False
    dropped: bool = False
    sleeps: int = 0
    wakes: int = 0
    reloads: int = 0
    waking_s: float = 0.0
    """What copying and loading weights has taken by the settings, all together."""

    @property
    def asleep(self) -> bool:
        """What `/is_sleeping` says."""
        return self.paused or bool(self.asleep_parts)

    def sleep(self, level: int) -> None:
        """Go to sleep; level 0 only pauses."""
        self.paused = True
        self.sleeps += 1
        if level and "weights" not in self.asleep_parts:
            self.asleep_parts |= PARTS
            self.dropped = self.dropped or level == 2

    def copies_weights(self, tags: Iterable[str] | None) -> bool:
        """Whether waking these parts brings weights back from main memory, which takes its time."""
        return self._woken(tags) >= {"weights"} and not self.dropped

    def wake(self, tags: Iterable[str] | None) -> bool:
        """Take memory back, all of it without tags; whether the scheduler goes on."""
        self.asleep_parts -= self._woken(tags)
        if self.paused and not self.asleep_parts:
            self.paused = False
            self.wakes += 1
        return not self.paused

    def reload(self) -> bool:
        """Load the weights anew; False: they have no memory to go to."""
        if "weights" in self.asleep_parts:
            return False
        self.dropped = False
        self.reloads += 1
        return True

    def _woken(self, tags: Iterable[str] | None) -> set[str]:
        wanted = None if tags is None else {tag for tag in tags if tag != "scheduling"}
        if wanted is None:
            return set(self.asleep_parts)
        return wanted if wanted <= self.asleep_parts else set()
