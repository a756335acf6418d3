"""Whose a pool is: who may stop its servers, what other nodes say of it, and with which words it is ordered about.

The runner tells an Ownership each tick what its node knows, gives what that answers to the machine, and asks it right
before each effect that ends or puts to sleep a server. Starting is anybody's, at any time.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Literal, Protocol

from ...cache.pool_table import PoolPhase
from .providers.base import Order
from .words import ALONE, Load, MemberPhase, Others

Verb = Literal["start", "wake", "sleep", "stop"]


class Ownership(Protocol):
    """What the runner asks, whoever answers. Times are seconds of the monotonic clock; pools go by their model's name.
    None of it waits, but `confirm` and `close`.
    """

    def keep(self, pools: Collection[str]) -> None:
        """This node is configured with these from now on; it leaves the others, until they are released. Called at the
        start and at each reload.
        """

    def tell(
        self, pool: str, load: Load, phase: PoolPhase, members: Sequence[MemberPhase], now: float
    ) -> None:
        """What this node does for a pool, each tick, as it is shown to the workers."""

    def others(self, pool: str) -> Others:
        """For the next tick of its machine. `draining`, `leaving` and `stops`: see `follow.Follower`."""

    def order(self, pool: str, verb: Verb, member: int, gpus: tuple[int, ...] = ()) -> Order:
        """The key and the fence of an effect: one order is made once, and given to each repetition of the call."""

    async def confirm(self, pool: str, order: Order) -> bool:
        """Right before an effect that ends or puts to sleep a member: whether it may be done, proven this moment.
        False: leave it, and tell the machine that it failed.
        """

    async def release(self, pool: str, *, ended: bool) -> None:
        """This node is through with a pool that it leaves. ended: it has ended the servers."""

    async def run(self) -> None:
        """Speak with the other nodes until cancelled."""

    async def close(self) -> None:
        """Give up what is owned, so that another node need not wait for it."""


class Alone:
    """The ownership of pools that are this node's own: nobody else has a word.

    token: different in each life of the controller, so that a receiver does not take an order for an earlier one's.
    clock_ns: of the machine's wall clock; the fence, which then grows from life to life.
    """

    def __init__(self, token: str, clock_ns: Callable[[], int]) -> None:
        self._token = token
        self._fence = clock_ns() // 1_000_000
        self._orders = 0

    def keep(self, pools: Collection[str]) -> None:
        """Nothing to remember."""

    def tell(
        self, pool: str, load: Load, phase: PoolPhase, members: Sequence[MemberPhase], now: float
    ) -> None:
        """Nobody listens."""

    def others(self, pool: str) -> Others:
        """There are none."""
        return ALONE

    def order(self, pool: str, verb: Verb, member: int, gpus: tuple[int, ...] = ()) -> Order:
        """A key that no other order has."""
        self._orders += 1
        return Order(f"{pool}:{member}:{verb}:{self._token}:{self._orders}", self._fence, gpus)

    async def confirm(self, pool: str, order: Order) -> bool:
        """Always."""
        return True

    async def release(self, pool: str, *, ended: bool) -> None:
        """Nobody waits for it."""

    async def run(self) -> None:
        """Nothing to do."""

    async def close(self) -> None:
        """Nothing to give up."""
