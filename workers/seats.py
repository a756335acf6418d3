"""The supervisor's table of processes: one seat per worker and one for the controller. Pure: time is an argument.

A seat wants one process that stays. In a rolling restart a successor stands beside it until it is ready; those that
were told to leave finish what they have. What should be done about a seat is asked (`wants_start`), never done here.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from ..gateway.config import Config
from .backoff import Backoff


class Part(enum.Enum):
    """What a process is to its seat."""

    HOLDER = "holder"
    SUCCESSOR = "successor"
    LEAVING = "leaving"


@dataclass(slots=True, eq=False)
class Child:
    """One process. pipe: the read end of what it says; kill_at_s: when to lose patience; config: at its start."""

    pid: int
    pipe: int
    part: Part
    ready: bool = False
    kill_at_s: float | None = None
    config: Config | None = None


@dataclass(slots=True, eq=False)
class Seat:
    """index: the worker's number, None for the controller."""

    index: int | None
    children: list[Child] = field(default_factory=list)
    backoff: Backoff = field(default_factory=Backoff)
    start_at_s: float = 0.0
    rolling: bool = False
    failed_successors: int = 0
    loop_said: bool = False

    @property
    def name(self) -> str:
        """As logs and `ps` show it; at most 15 bytes."""
        return "controller" if self.index is None else f"worker-{self.index}"

    def child(self, part: Part) -> Child | None:
        """The process that is `part`; of those that leave, the first."""
        return next((child for child in self.children if child.part is part), None)

    @property
    def ready(self) -> bool:
        """Whether the holder is."""
        holder = self.child(Part.HOLDER)
        return holder is not None and holder.ready

    @property
    def looping(self) -> bool:
        """Whether nobody serves here, and whoever is started dies before it is ready."""
        return self.backoff.crash_loop and not self.ready

    def wants_start(self, now_s: float) -> Part | None:
        """Which process is missing and may be started now.

        There are two slots a seat: nobody is started beside two that live.
        """
        if now_s < self.start_at_s or len(self.children) >= 2:
            return None
        if self.child(Part.HOLDER) is None:
            return Part.HOLDER
        if self.rolling and self.child(Part.SUCCESSOR) is None:
            return Part.SUCCESSOR
        return None

    def died(self, child: Child, now_s: float) -> float:
        """Forget a process that ended; seconds until its replacement may start."""
        self.children.remove(child)
        if child.part is Part.LEAVING:
            return 0.0
        if child.part is Part.SUCCESSOR:
            self.failed_successors += 1
        elif (successor := self.child(Part.SUCCESSOR)) is not None:
            successor.part = Part.HOLDER
            self.rolling = False
        delay_s = self.backoff.died(now_s, was_ready=child.ready)
        self.start_at_s = now_s + delay_s
        return delay_s

    def succeed(self) -> Child | None:
        """The successor is ready: it becomes the holder; whoever has to leave now."""
        old, new = self.child(Part.HOLDER), self.child(Part.SUCCESSOR)
        if new is None:
            return None
        new.part = Part.HOLDER
        self.rolling = False
        if old is not None:
            old.part = Part.LEAVING
        return old
