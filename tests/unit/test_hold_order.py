"""Nothing is stopped under a request: a worker's real steps and the real machine's, in every order there is.

A request's path to a server is a few stores into the worker's cells and a load of the pool's state; the controller's is
to read the sums, to step its machine, and to show the state. Between any two steps of the one any number of the other's
may come. Cells are 8 bytes and have one writer, so that is all there is to it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from itertools import combinations_with_replacement
from typing import Any

import pytest

from penstock.cache.pool_table import PoolRow
from penstock.cache.rows import CounterRow
from penstock.gateway.dispatch import Dispatch
from penstock.gateway.endpoints import ENDPOINTS
from penstock.gateway.errand import Errand
from penstock.gateway.life import Life
from penstock.gateway.metrics import Metrics
from penstock.gateway.raw import RawRequest
from penstock.gateway.sticky import Sticky
from penstock.workers.pools.machine import SETTLE_S, Machine, Terms
from penstock.workers.pools.words import Load, MemberPhase, Room, Start, Started, Stop, Stopped, Tick
from penstock.workers.store import identity

from ..support.played import SECRET
from .test_hold import House

#: Of one look: what is queued, what runs, what follows from it.
STEPS = 3
#: One shows DRAINING, two more stop.
LOOKS = 3


class Ended(BaseException):
    """The server's answer, as good as any."""


class Cells:
    """A worker's row; the others' steps come before each store."""

    def __init__(self, row: Any, world: World) -> None:
        self._row, self._world = row, world

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._row, name)
        if not name.startswith(("add_", "finished")):
            return method

        def store(*what: int) -> None:
            self._world.point()
            method(*what)

        return store


class Cell:
    """The pool's state; the others' steps come before each load."""

    def __init__(self, cell: memoryview, world: World) -> None:
        self._cell, self._world = cell, world

    def __getitem__(self, at: int) -> int:
        self._world.point()
        return int(self._cell[at])


class World:
    """One node. `schedule`: how many of the controller's steps are done by each point of the worker's path."""

    def __init__(self, house: House, schedule: tuple[int, ...], running_first: bool = False) -> None:
        self.house = house
        self.schedule: tuple[int, ...] | None = None
        self.points = self.done = 0
        self.asked = self.stopped = False
        self.running_first = running_first
        self.looked: dict[str, int] = {}
        self.machine = Machine(Terms(idle_timeout_s=0.0), house.loop.now)
        self.machine.step(Started(0), house.loop.now)
        self.model = house.fleet.models[0]
        assert self.model.pool is not None
        self.show()
        house.tick()
        row: Any = Cells(house.rows[0], self)
        house.doors[0]._row = row
        pool: Any = self.model.pool
        pool.cell = pool._own = Cell(house.table.phase_cell(0), self)
        backend: Any = self.model.backends[0]
        backend.pool = self
        self.dispatch = Dispatch(
            *(row, house.tally, 0, house.doors[0], house.holds[0], house.breakers),
            *(Sticky(memoryview(bytearray(64)).cast("Q")), Metrics(CounterRow(house.segment, 0))),
            loop=house.loop,
            clock=house.clock,
        )
        self._schedule = schedule

    def request(self) -> asyncio.Task[Any]:
        raw = RawRequest("POST", "/v1/completions", "", "", "application/json", "id", b"{}")
        errand = Errand(ENDPOINTS["/v1/completions"], self.model, "POST", raw.path, raw, b"{}")
        return self.house.loop.create_task(self._send(errand))

    async def _send(self, errand: Errand) -> None:
        with contextlib.suppress(Ended):
            await self.dispatch.send(errand, Life())

    # ---- the worker's path

    def begin(self) -> None:
        """From here on the two run at once."""
        self.schedule = self._schedule

    def point(self) -> None:
        if self.schedule is not None and self.points < len(self.schedule):
            self.points += 1
            self.until(self.schedule[self.points - 1])

    async def call(self, *_: object, **__: object) -> None:
        """The server is asked: the controller does all it will while that lasts."""
        assert not self.stopped, "a request went to a server that had been stopped"
        self.asked = True
        self.until(LOOKS * STEPS)
        self.look_on(LOOKS)
        assert not self.stopped, "a server was stopped under a request"
        raise Ended

    # ---- the controller's

    def until(self, steps: int) -> None:
        while self.done < steps:
            self._step(self.done % STEPS)
            self.done += 1

    def _step(self, part: int) -> None:
        house = self.house
        if part < 2:
            what = ("running", "queued") if self.running_first else ("queued", "running")
            self.looked[what[part]] = getattr(house.tally, what[part])(0)
            return
        house.loop.now += SETTLE_S * 1.1
        load = Load(
            waiting=house.tally.waiting(0),
            finished_s=house.tally.finished(0) / 1e9,
            inflight=(0,),
            **self.looked,
        )
        for effect in self.machine.step(Tick(load), house.loop.now):
            if isinstance(effect, Stop):
                self.stopped = True
        self.show()

    def look_on(self, looks: int) -> None:
        for part in range(looks * STEPS):
            self._step(part % STEPS)

    def show(self) -> None:
        ready = self.machine.members[0] is MemberPhase.READY
        row = PoolRow(phase=self.machine.phase, identity=identity("m"), ready=int(ready))
        self.house.table.write(0, row)

    def serve(self) -> None:
        """The controller does what its machine says until the pool is ready again."""
        house, machine = self.house, self.machine
        for _ in range(20):
            effects = machine.step(
                Tick(Load(waiting=house.tally.waiting(0), queued=house.tally.queued(0), inflight=(0,))),
                house.loop.now,
            )
            if machine.wants_room:
                effects += machine.step(Room(), house.loop.now)
            if self.stopped:
                effects.append(Stop(0))
            for effect in effects:
                self.stopped = False
                machine.step(Stopped(0) if isinstance(effect, Stop) else Started(0), house.loop.now)
                assert isinstance(effect, Stop | Start)
            self.show()
            house.tick()
            if self.asked:
                return


@pytest.fixture(autouse=True)
def secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SECRET, "secret")


def orders(points: int) -> Iterator[tuple[int, ...]]:
    """Every order of that many steps of a worker and all of the controller's."""
    return combinations_with_replacement(range(LOOKS * STEPS + 1), points)


@pytest.fixture
def house(secret: None) -> Iterator[House]:
    made = House(keys=0)
    yield made
    made.close()


def test_a_request_that_comes_to_a_pool_that_is_about_to_stop(house: House) -> None:
    outcomes = set()
    for order in orders(4):
        world = World(house, order)
        world.begin()
        task = world.request()
        house.settle()
        outcomes.add((world.asked, task.done()))
        world.until(LOOKS * STEPS)
        if not task.done():
            assert house.demand == 1
            world.serve()
        assert task.done()
        assert task.exception() is None
        assert world.asked
        house.empty()
    assert outcomes == {(True, True), (False, False)}  # some went on, some were held


@pytest.mark.parametrize("running_first", [False, True], ids=["queued, running", "running, queued"])
def test_a_request_that_gets_the_place_of_the_last_that_ran(house: House, running_first: bool) -> None:
    for order in orders(5):
        world = World(house, order, running_first)
        model, door = world.model, house.doors[0]
        model.places = 1
        assert door.try_enter(model)
        task = world.request()
        house.settle()
        assert house.tally.queued(0) == 1
        world.begin()
        world.dispatch.finished(model)
        door.leave(model)
        house.settle()
        world.until(LOOKS * STEPS)
        if not task.done():
            assert house.demand == 1
            world.serve()
        assert task.done()
        assert task.exception() is None
        assert world.asked
        house.empty()


def test_the_other_order_would_be_wrong(house: House) -> None:
    """The proof can fail: a worker that loads first and counts itself then is stopped under its request."""
    caught = 0
    for order in orders(2):
        world = World(house, order)
        world.begin()
        pool = world.model.pool
        assert pool is not None
        if pool.ready:
            house.doors[0].try_enter(world.model)
            with pytest.raises((Ended, AssertionError)) as how:
                asyncio.run(world.call())
            caught += how.type is AssertionError
            house.doors[0].leave(world.model)
    assert caught
