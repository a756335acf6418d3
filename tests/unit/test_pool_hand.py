"""What a pool's hand says is running: what holds its place on a GPU, so never what is gone."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from penstock.gateway.config.pool import ProcessPool
from penstock.workers.pools.hand import Hand
from penstock.workers.pools.ownership import Alone
from penstock.workers.pools.providers.base import Order, Provider, ProviderFault, Running
from penstock.workers.pools.words import Event, Start, StartFailed


class Scripted(Provider):
    """Servers that start, or do not, as the test says."""

    def __init__(self, fault: Exception | None) -> None:
        super().__init__()
        self.fault = fault
        self.stopped: list[int] = []

    async def ensure_ready(self, member: int, order: Order, timeout_s: float) -> Running:
        if self.fault is not None:
            raise self.fault
        return Running("http://127.0.0.1:1", order.gpus)

    async def ensure_stopped(self, member: int, order: Order, timeout_s: float) -> None:
        self.stopped.append(member)
        if self.fault is not None:
            raise self.fault

    async def status(self) -> Mapping[int, Running]:
        return {}

    async def close(self) -> None:
        """Nothing to close."""


class Asked(Alone):
    """Other nodes agree to stops, or do not."""

    agree = True

    async def confirm(self, pool: str, order: Order) -> bool:
        return self.agree


class Ground:
    """Publishes where members answer, or cannot."""

    def __init__(self, places: bool) -> None:
        self.places = places

    async def place(self, member: str, url: str) -> bool:
        return self.places


def hand_of(fault: Exception | None, *, places: bool) -> tuple[Hand, asyncio.Queue[Event]]:
    told: asyncio.Queue[Event] = asyncio.Queue()
    ground: Any = Ground(places)
    pool = ProcessPool(command=("serve",), max=2)
    asked = Asked("t", lambda: 0)
    return Hand("m", pool, Scripted(fault), ground, asked, told.put_nowait, lambda member: []), told


@pytest.mark.parametrize("found", [False, True], ids=["started", "found"])
@pytest.mark.parametrize(
    ("fault", "places"),
    [(ProviderFault("no"), True), (ValueError("no"), True), (None, False)],
    ids=["fault", "bug", "unplaced"],
)
async def test_a_server_that_did_not_start_has_no_gpu(found: bool, fault: Exception | None, places: bool):
    hand, told = hand_of(fault, places=places)
    if found:
        hand.take_over(0, Running("http://127.0.0.1:1", (3,)), starting=True)
        assert hand.running[0].gpus == (3,)
    else:
        hand.do(Start(0), (3,))
    assert isinstance(await told.get(), StartFailed)
    assert hand.running == {}


async def test_a_server_that_was_found_and_cannot_be_published_has_no_gpu():
    hand, _ = hand_of(None, places=False)
    hand.take_over(0, Running("http://127.0.0.1:1", (3,)), starting=False)
    await hand.idle()
    assert hand.running == {}


@pytest.mark.parametrize("why", ["others", "provider", "nothing"])
async def test_all_have_ended_when_each_stop_was_agreed_on_and_done(
    why: str, monkeypatch: pytest.MonkeyPatch
):
    hand, _ = hand_of(ProviderFault("no") if why == "provider" else None, places=True)
    monkeypatch.setattr(Asked, "agree", why != "others")
    hand.running[0] = Running("http://127.0.0.1:1", (3,))
    assert await hand.stop_all() is (why == "nothing")
    assert (0 in hand.running) is (why != "nothing")


@pytest.mark.parametrize("local", [True, False])
async def test_of_servers_that_are_not_this_nodes_own_all_are_ended_also_those_that_nobody_sees(local: bool):
    hand, _ = hand_of(None, places=True)
    provider = hand.provider
    assert isinstance(provider, Scripted)
    provider.local = local
    assert await hand.stop_all()
    assert sorted(provider.stopped) == ([] if local else [0, 1])
