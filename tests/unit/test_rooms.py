"""GPUs in the hands of pools: real machines and the real house, over a double of the driver, under keepers by hand.

What a keeper's provider would do is said here by hand: its servers start, use memory, and end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from penstock.gateway.config.pool import Gpu, Pools, ProcessPool
from penstock.workers import scrape
from penstock.workers.pools.machine import Machine, Terms
from penstock.workers.pools.nvml import Nvml
from penstock.workers.pools.providers.base import Running
from penstock.workers.pools.rooms import ADOPT_S, Rooms
from penstock.workers.pools.words import (
    Effect,
    Event,
    Load,
    MemberPhase,
    Others,
    Room,
    Slept,
    Started,
    StartFailed,
    Stopped,
    Tick,
)

from ..support.nvml import FakeGpu, FakeLibrary, pynvml_over

GIB = 1 << 30


class Told:
    """A keeper as far as rooms know it: a real machine, and what would be done to servers is written down."""

    def __init__(self, node: Node, name: str, pool: ProcessPool, *, local: bool = True) -> None:
        self.node, self.name, self.pool = node, name, pool
        self.machine = Machine(Terms.of(pool, 10, False), node.now)
        self.load = Load()
        self.ticks = True
        self.others = Others()
        self.hand = SimpleNamespace(running={})
        self.pids: dict[int, list[int]] = {}
        self.provider: Any = SimpleNamespace(local=local, pids=lambda member: self.pids.get(member, ()))
        self.granted: list[tuple[int, ...]] = []
        self.refused: list[str] = []
        self.effects: list[Effect] = []

    def step(self, event: Event, gpus: tuple[int, ...] = ()) -> list[Effect]:
        effects = self.machine.step(event, self.node.now)
        self.effects += effects
        if isinstance(event, Room):
            self.granted += [gpus] * len(effects)
        return effects

    def refuse(self, reason: str) -> None:
        self.refused.append(reason)
        for effect in self.machine.step(Room(), self.node.now):
            self.step(StartFailed(effect.member, reason))

    def ready(self, *gpus: int, member: int = 0) -> None:
        self.hand.running[member] = Running("http://127.0.0.1:1", gpus)
        self.step(Started(member))

    def gone(self, member: int = 0) -> None:
        del self.hand.running[member]
        self.step(Stopped(member))


class Node:
    """A node with GPUs by a double of NVML, and the rooms of its pools."""

    def __init__(self, folder: Path, *gpus: FakeGpu, configured: tuple[Gpu, ...] = ()) -> None:
        self.now = 1000.0
        self.counted: list[tuple[object, ...]] = []
        self.library = FakeLibrary(list(gpus), init=0 if gpus else 9)
        ground: Any = SimpleNamespace(
            state=folder,
            now=lambda: self.now,
            metrics=SimpleNamespace(count=lambda *what: self.counted.append(what)),
        )
        self.rooms = Rooms(ground, Nvml(lambda: pynvml_over(self.library), timeout_s=20, open_timeout_s=20))
        self.rooms.swap(Pools(gpus=configured))
        self.keepers: dict[str, Any] = {}
        self.retired: list[Any] = []

    def pool(self, name: str, *, local: bool = True, **terms: Any) -> Told:
        self.keepers[name] = Told(self, name, ProcessPool(command=("serve", name), **terms), local=local)
        return self.keepers[name]  # type: ignore[no-any-return]

    def tick(self, seconds: float = 0.02) -> None:
        self.now += seconds
        for keeper in self.keepers.values():
            if keeper.ticks:
                keeper.step(Tick(keeper.load, keeper.others))
        self.rooms.tick(self.now, self.keepers, self.retired)

    async def look(self) -> None:
        await self.rooms.look()

    async def begin(self) -> None:
        self.tick()
        await self.look()


@pytest.fixture
def node(tmp_path: Path) -> Callable[..., Node]:
    return lambda *gpus, **more: Node(tmp_path, *gpus, **more)


WAITS = Load(waiting=1, oldest_s=999.0)


async def test_nobody_is_given_a_gpu_before_they_were_looked_at(node: Callable[..., Node]):
    one = node(FakeGpu(8 * GIB))
    a, elsewhere = one.pool("a"), one.pool("b", local=False)
    a.load = elsewhere.load = WAITS
    one.tick()
    assert (a.granted, elsewhere.granted) == ([], [()]), "servers elsewhere need none of these"
    await one.look()
    one.tick()
    assert a.granted == [(0,)]


async def test_nobody_is_given_room_while_it_is_not_known_what_runs_here_but_not_for_ever(
    node: Callable[..., Node],
):
    one = node(FakeGpu(8 * GIB))
    a, unknown = one.pool("a"), one.pool("b")
    unknown.ticks = False
    a.load = WAITS
    await one.begin()
    one.tick()
    assert a.granted == []
    one.tick(ADOPT_S)
    assert a.granted == [(0,)]


async def test_a_server_that_was_found_running_has_its_gpu(node: Callable[..., Node]):
    one = node(FakeGpu(8 * GIB), FakeGpu(8 * GIB))
    a, b = one.pool("a"), one.pool("b")
    await one.begin()
    b.hand.running[0] = Running(
        "http://127.0.0.1:1", (0,)
    )  # it is asked whether it answers; its machine shows OFF
    a.load = WAITS
    one.tick()
    assert a.granted == [(1,)]


@pytest.mark.parametrize("ready", [True, False], ids=["ready", "starting"])
async def test_servers_of_a_pool_that_is_no_longer_configured_have_their_memory_until_they_are_gone(
    node: Callable[..., Node], ready: bool
):
    one = node(FakeGpu(8 * GIB))
    a, b = one.pool("a"), one.pool("b")
    b.load = WAITS
    await one.begin()
    one.tick()
    if ready:
        b.ready(0)
    one.retired.append(one.keepers.pop("b"))
    a.load = WAITS
    one.tick()
    assert a.granted == []
    one.retired.clear()
    one.tick()
    assert a.granted == [(0,)]


async def test_a_start_that_fails_between_two_ticks_gives_its_gpu_back(node: Callable[..., Node]):
    one = node(FakeGpu(8 * GIB))
    a, b = one.pool("a"), one.pool("b")
    a.load = WAITS
    await one.begin()
    one.tick()
    assert a.granted == [(0,)]
    a.step(StartFailed(0, "no"))
    a.load = Load()
    b.load = WAITS
    one.tick()
    one.tick()
    assert b.granted == [(0,)]


async def test_what_a_server_takes_is_learned_by_its_processes_and_known_after_a_restart(
    node: Callable[..., Node], tmp_path: Path
):
    one = node(FakeGpu(8 * GIB, GIB))
    a, b = one.pool("a"), one.pool("b")
    a.load = WAITS
    await one.begin()
    one.tick()
    assert one.rooms.needs() == {}
    a.ready(0)
    a.pids[0] = [41, 42]
    one.library.gpus[0].processes = {41: 2 * GIB, 42: GIB, 99: 4 * GIB}
    one.tick()
    await one.look()
    assert one.rooms.needs() == {"a": 3 * GIB}
    a.load, b.load = Load(running=1), WAITS
    one.tick()
    assert b.granted == [], "b may take all of one"

    again = node(FakeGpu(8 * GIB, GIB))
    a, b = again.pool("a"), again.pool("b", memory=4 * GIB)
    a.load = b.load = WAITS
    await again.begin()
    again.tick()
    assert (a.granted, b.granted) == ([(0,)], [(0,)])
    assert again.rooms.needs() == {"a": 3 * GIB, "b": 4 * GIB}


async def test_where_processes_are_not_told_it_is_what_is_used_beyond_what_was_before(
    node: Callable[..., Node],
):
    one = node(FakeGpu(8 * GIB, GIB, unsupported={"processes"}))
    a = one.pool("a")
    a.load = WAITS
    await one.begin()
    one.tick()
    a.ready(0)
    one.library.gpus[0].used = 6 * GIB
    one.tick()
    await one.look()
    assert one.rooms.needs() == {"a": 5 * GIB}


async def test_of_two_on_one_gpu_nothing_is_learned_by_what_is_used(node: Callable[..., Node]):
    one = node(FakeGpu(8 * GIB, 0, unsupported={"processes"}))
    a, b = one.pool("a", memory=GIB), one.pool("b", memory=GIB)
    a.load = b.load = WAITS
    await one.begin()
    one.tick()
    a.ready(0)
    b.ready(0)
    one.library.gpus[0].used = 6 * GIB
    one.tick()
    await one.look()
    assert all(kept.need is None for kept in one.rooms.footprints._entries.values())


async def test_what_one_takes_asleep_is_learned_beside_what_it_takes_awake(node: Callable[..., Node]):
    one = node(FakeGpu(8 * GIB))
    a = one.pool("a", sleep_after_s=1)
    a.load = WAITS
    await one.begin()
    one.tick()
    a.ready(0)
    a.pids[0] = [41]
    one.library.gpus[0].processes = {41: 6 * GIB}
    one.tick()
    await one.look()
    a.load = Load()
    one.tick()
    a.step(Slept(0))
    one.library.gpus[0].processes = {41: GIB // 2}
    one.tick()
    await one.look()
    (kept,) = one.rooms.footprints._entries.values()
    assert (kept.need, kept.asleep) == (6 * GIB, GIB // 2)


async def test_a_server_that_changed_while_nvml_was_asked_is_not_measured(node: Callable[..., Node]):
    one = node(FakeGpu(8 * GIB))
    a = one.pool("a")
    a.load = WAITS
    await one.begin()
    one.tick()
    a.pids[0] = [41]
    one.library.gpus[0].processes = {41: GIB}
    one.tick()
    one.library.go_on.clear()
    looking = asyncio.ensure_future(one.look())
    await asyncio.sleep(0)
    a.ready(0)
    one.tick()
    one.library.go_on.set()
    await looking
    assert one.rooms.needs() == {}, "what was said may be from while it loaded"
    await one.look()
    assert one.rooms.needs() == {"a": GIB}


async def test_how_long_it_starts_ends_and_finishes_its_turn_is_learned(node: Callable[..., Node]):
    one = node(FakeGpu(8 * GIB))
    a, b = one.pool("a"), one.pool("b")
    a.load = WAITS
    await one.begin()
    one.tick()
    one.tick(7.0)
    a.ready(0)
    one.tick()
    a.load = Load(running=1, inflight=(1,))
    one.tick()
    b.load = Load(waiting=1, oldest_s=one.now)
    one.tick()
    assert MemberPhase.DRAINING not in a.machine.members
    one.tick(80)
    assert a.machine.members == [MemberPhase.DRAINING], "its turn is over"
    one.tick(4.0)
    a.load = Load(inflight=(0,))
    one.tick()
    one.tick(0.2)
    assert a.machine.members == [MemberPhase.STOPPING]
    one.tick(3.0)
    a.gone()
    one.tick()
    assert b.granted == [(0,)]
    (kept,) = (e for key, e in one.rooms.footprints._entries.items() if key.startswith("a\n"))
    assert [round(one) for one in (*kept.start, *kept.drain, *kept.stop)] == [7, 4, 3]
    assert (scrape.POOL_EVICTIONS, "a", "turn") in one.counted
    assert (scrape.POOL_SWITCHES, "b") in one.counted


async def test_one_that_can_never_have_room_is_refused_with_the_reason(node: Callable[..., Node]):
    one = node(FakeGpu(8 * GIB))
    a = one.pool("a", memory=9 * GIB)
    a.load = WAITS
    await one.begin()
    one.tick()
    (reason,) = a.refused
    assert "it takes 9.0 GiB of 1 GPU" in reason
    assert a.machine.reason == reason
    assert a.machine.failures == 1


async def test_gpus_of_the_configuration_count_where_nvml_is_not_there(node: Callable[..., Node]):
    one = node(configured=(Gpu(memory=8 * GIB), Gpu(memory=4 * GIB)))
    a = one.pool("a", memory=4 * GIB)
    a.load = WAITS
    await one.begin()
    one.tick()
    assert a.granted == [(1,)]
    told = {
        (family.name, sample.labels["gpu"]): sample.value
        for family in one.rooms.metrics(one.now)
        for sample in family.samples
    }
    assert told["penstock_gpu_memory_bytes", "0"] == 8 * GIB
    assert told["penstock_gpu_memory_reserved_bytes", "1"] == 4 * GIB
    assert told["penstock_gpu_memory_reserved_bytes", "0"] == 0


async def test_without_any_gpu_nothing_is_limited(node: Callable[..., Node]):
    one = node()
    keepers = [one.pool(name) for name in "abc"]
    for keeper in keepers:
        keeper.load = WAITS
    await one.begin()
    one.tick()
    assert [keeper.granted for keeper in keepers] == [[()], [()], [()]]
    assert list(one.rooms.metrics(one.now)) == []


async def test_a_configuration_with_other_limits_goes_from_then_on(node: Callable[..., Node]):
    one = node(configured=(Gpu(memory=8 * GIB),))
    a, b = one.pool("a", memory=GIB), one.pool("b", memory=GIB)
    one.rooms.swap(Pools(gpus=(Gpu(memory=8 * GIB),), max_running=1))
    a.load = b.load = WAITS
    await one.begin()
    one.tick()
    assert (a.granted, b.granted) == ([(0,)], [])
    one.rooms.swap(Pools(gpus=(Gpu(memory=8 * GIB),), max_running=2))
    one.tick()
    assert b.granted == [(0,)]
