"""How the servers of one pool are started and stopped: the interface that every provider has.

A provider does as it is told, again and again if need be: a server that runs already is started by nothing, one that
is gone is stopped by nothing. It decides nothing, and keeps in memory nothing that it could not find out again: what
runs is asked of the system that runs it, so that the next controller, or the next gateway, takes it over.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from ....cache.pool_table import PoolPhase


class ProviderFault(Exception):
    """It cannot be done; the text is one line, for operators and for clients that wait, and holds no secret."""


@dataclass(frozen=True, slots=True)
class Running:
    """One member that runs. url: where it answers, None where the configuration says that. gpus: those it has.

    stale: it was started as the configuration no longer has it.
    """

    url: str | None = None
    gpus: tuple[int, ...] = ()
    stale: bool = False


@dataclass(frozen=True, slots=True)
class Order:
    """What one start or stop is done for. gpus: the devices to use, () where nobody says.

    key: the same for each repetition of one order, from whichever node (an idempotency key). fence: grows with each
    change of the owner; who serves a shared pool refuses a stop with a lower one than it has seen.
    """

    key: str
    fence: int = 0
    gpus: tuple[int, ...] = ()


class Provider(ABC):
    """The servers of one pool. `ended` may be called with (member, reason) when one that ran is seen to be gone."""

    #: whether members end in the reverse order of their numbers only, as the replicas of a StatefulSet
    ordered: bool = False

    #: whether the servers are this node's own: then the gateway ends them when it is stopped, and those that hang
    local: bool = False

    #: of a local provider's servers: whether they go on when the gateway is stopped, for its next start
    keep: bool = False

    def __init__(self) -> None:
        self.ended: Callable[[int, str], None] = lambda member, reason: None

    @abstractmethod
    async def ensure_ready(self, member: int, order: Order, timeout_s: float) -> Running:
        """Have a member run, healthy. Raises ProviderFault, also when it took too long; then nothing of it is left.

        Cancelled, it leaves the server as it is: it may be wanted by who comes next, or is stopped at once.
        """

    @abstractmethod
    async def ensure_stopped(self, member: int, order: Order, timeout_s: float) -> None:
        """Have a member gone: asked politely first, made to after `timeout_s`. Raises ProviderFault."""

    @abstractmethod
    async def status(self) -> Mapping[int, Running]:
        """The members that run now, for who takes over; not whether they are healthy. Raises ProviderFault."""

    async def owned(self, fence: int) -> None:  # noqa: B027 - most have nothing to do
        """This node owns the pool from now on: have stops with a lower fence refused. Raises ProviderFault."""

    async def show(self, phase: PoolPhase, reason: str) -> None:  # noqa: B027
        """What the pool is doing, after each change: for where its users look. Never raises."""

    def pids(self, member: int) -> Collection[int]:
        """The processes of a member, as far as it can tell; may block for some milliseconds, on any thread."""
        return ()

    @abstractmethod
    async def close(self) -> None:
        """Let go of clients and watches; servers stay as they are."""
