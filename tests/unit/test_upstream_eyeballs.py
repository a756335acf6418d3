"""Happy eyeballs, driven by attempts that do as they are told."""

import asyncio
import socket

import pytest

from penstock.gateway.upstream.dns import Address
from penstock.gateway.upstream.eyeballs import first_to_connect, interleave

SIX_A, SIX_B = (Address(socket.AF_INET6, (name, 80, 0, 0)) for name in ("6a", "6b"))
FOUR_A, FOUR_B = (Address(socket.AF_INET, (name, 80)) for name in ("4a", "4b"))


class Attempts:
    """Each address connects, fails or hangs; what was tried, ended and disposed of is kept."""

    def __init__(self, **plan: str) -> None:
        self.plan = plan
        self.tried: list[str] = []
        self.cancelled: list[str] = []
        self.disposed: list[str] = []

    async def __call__(self, address: Address) -> str:
        name = address.sockaddr[0]
        self.tried.append(name)
        plan = self.plan["_" + name]
        if plan == "fail":
            raise ConnectionRefusedError(name)
        if plan == "break":
            raise ValueError(name)
        if plan == "hang":
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.cancelled.append(name)
                raise
        return name

    async def run(self, *addresses: Address, stagger_s: float = 0.001) -> str:
        async with asyncio.timeout(20):
            return await first_to_connect(addresses, self, self.disposed.append, stagger_s)


def test_families_take_turns_starting_with_the_resolvers_first() -> None:
    assert interleave([SIX_A, SIX_B, FOUR_A, FOUR_B]) == [SIX_A, FOUR_A, SIX_B, FOUR_B]
    assert interleave([FOUR_A, SIX_A, SIX_B]) == [FOUR_A, SIX_A, SIX_B]
    assert interleave([]) == []


async def test_the_first_address_that_connects_wins() -> None:
    attempts = Attempts(_6a="connect", _4a="connect")
    assert await attempts.run(SIX_A, FOUR_A, stagger_s=20) == "6a"
    assert attempts.tried == ["6a"]


async def test_a_failure_moves_on_at_once() -> None:
    attempts = Attempts(_6a="fail", _4a="connect")
    assert await attempts.run(SIX_A, FOUR_A, stagger_s=20) == "4a"


async def test_a_silent_address_is_overtaken_and_given_up() -> None:
    attempts = Attempts(_6a="hang", _4a="connect")
    assert await attempts.run(SIX_A, FOUR_A) == "4a"
    await asyncio.sleep(0)
    assert attempts.cancelled == ["6a"]


async def test_the_last_error_is_told_when_all_fail() -> None:
    attempts = Attempts(_6a="fail", _4a="fail")
    with pytest.raises(ConnectionRefusedError, match="4a"):
        await attempts.run(SIX_A, FOUR_A)
    with pytest.raises(ConnectionRefusedError, match="6a"):
        await attempts.run(SIX_A)


async def test_an_error_that_is_none_of_the_networks_is_not_swallowed() -> None:
    attempts = Attempts(_6a="break", _4a="hang")
    with pytest.raises(ValueError, match="6a"):
        await attempts.run(SIX_A, FOUR_A, stagger_s=20)


async def test_a_cancelled_race_ends_every_attempt() -> None:
    attempts = Attempts(_6a="hang", _4a="hang")
    race = asyncio.ensure_future(attempts.run(SIX_A, FOUR_A))
    async with asyncio.timeout(20):
        while len(attempts.tried) < 2:  # noqa: ASYNC110 - a condition, not an event
            await asyncio.sleep(0.001)
    race.cancel()
    with pytest.raises(asyncio.CancelledError):
        await race
    await asyncio.sleep(0)
    assert sorted(attempts.cancelled) == ["4a", "6a"]


async def test_a_second_winner_of_the_same_moment_is_disposed_of() -> None:
    gate = asyncio.Event()
    disposed: list[str] = []
    waiting = 0

    async def attempt(address: Address) -> str:
        nonlocal waiting
        waiting += 1
        if waiting == 2:
            gate.set()
        await gate.wait()
        return address.sockaddr[0]

    async with asyncio.timeout(20):
        winner = await first_to_connect([SIX_A, FOUR_A], attempt, disposed.append, 0.001)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert sorted([winner, *disposed]) == ["4a", "6a"]
