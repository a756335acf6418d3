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

    async def ensure_ready(self, member: int, order: Order, timeout_s: float) -> Running:
        if self.fault is not None:
            raise self.fault
        return Running("http://127.0.0.1:1", order.gpus)

    async def ensure_stopped(self, member: int, order: Order, timeout_s: float) -> None:
        """It is."""

    async def status(self) -> Mapping[int, Running]:
        return {}

    async def close(self) -> None:
        """Nothing to close."""


class Ground:
    """Publishes where members answer, or cannot."""

    def __init__(self, places: bool) -> None:
        self.places = places

    async def place(self, member: str, url: str) -> bool:
        return self.places


def hand_of(fault: Exception | None, *, places: bool) -> tuple[Hand, asyncio.Queue[Event]]:
    told: asyncio.Queue[Event] = asyncio.Queue()
    ground: Any = Ground(places)
    pool = ProcessPool(command=("serve",))
    alone = Alone("t", lambda: 0)
    return Hand("m", pool, Scripted(fault), ground, alone, told.put_nowait, lambda member: []), told


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
