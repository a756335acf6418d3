"""A worker that is the only one needs no marks; when another comes, what is in flight is marked."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from penstock.cache.digest import Key
from penstock.cache.layout import Geometry
from penstock.cache.marks import Claim, Marks
from penstock.cache.segment import Segment, process_start
from penstock.cache.slots import claim
from penstock.gateway.flights import Flights

KEY, OTHER = Key(b"a" * 32), Key(b"b" * 32)


class Node:
    """A segment with two slots; `flights` is the first worker's, `newcomer` says that there is a second one."""

    def __init__(self, folder: Path) -> None:
        self.start = process_start(os.getpid()) or 0
        self.mine = Segment.create(None, Geometry(slots=2), owner_pid=os.getpid(), owner_start=self.start)
        self.theirs = Segment.attach(self.mine.fd)
        slot = claim(self.mine, 0, os.getpid(), self.start)
        self.flights = Flights(
            self.mine,
            slot.index,
            slot.generation,
            folder=folder,
            loop=asyncio.get_running_loop(),
            clock_ns=time.monotonic_ns,
            limit_bytes=1 << 20,
            gather_bytes=1 << 20,
            try_hold=lambda _: True,
            release=lambda _: None,
        )

    def newcomer(self) -> Marks:
        slot = claim(self.theirs, 1, os.getpid(), self.start)
        return Marks(self.theirs, slot.index, slot.generation)

    def stranger(self) -> Marks:
        """Marks as somebody sees them who has not said that he is there."""
        return Marks(self.theirs, 1, 1)


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    made = Node(tmp_path)
    yield made
    await made.flights.stop()
    made.theirs.close()
    made.mine.close()


def far() -> tuple[int, int]:
    return time.monotonic_ns(), time.monotonic_ns() + 10**12


async def test_a_lone_worker_leads_without_a_mark(node: Node) -> None:
    assert node.flights.claim(KEY, 60) is Claim.LED
    node.flights.open(KEY)
    assert node.stranger().claim(KEY, *far()) is Claim.LED


async def test_what_is_in_flight_is_marked_when_another_worker_comes(node: Node) -> None:
    assert node.flights.claim(KEY, 60) is Claim.LED
    flight = node.flights.open(KEY)
    other = node.newcomer()
    node.flights.tick(0.0)
    found = other.claim(KEY, *far())
    assert isinstance(found, tuple)
    assert found[0] == 0
    node.flights.close(flight)
    assert other.claim(KEY, *far()) is Claim.LED


async def test_two_workers_mark_what_they_lead(node: Node) -> None:
    other = node.newcomer()
    node.flights.tick(0.0)
    assert node.flights.claim(KEY, 60) is Claim.LED
    assert isinstance(other.claim(KEY, *far()), tuple)
    assert other.claim(OTHER, *far()) is Claim.LED
    assert node.flights.claim(OTHER, 60) == (1, 1)
