"""The runner on a real segment, with a provider that does what the test says and a worker that the test plays."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.core import Metric

from penstock.cache.layout import Geometry
from penstock.cache.pool_table import PoolPhase, PoolTable
from penstock.cache.rows import CounterRow, Tally, TallyRow
from penstock.cache.segment import Segment
from penstock.cache.slots import SlotInfo
from penstock.cache.table import DOWN, UP, BackendTable
from penstock.gateway.config import Backend, Config, Health, Model, Published, Server
from penstock.gateway.config.pool import ProcessPool, WebhookPool
from penstock.gateway.metrics import Metrics
from penstock.workers import store
from penstock.workers.backend_scrape import BackendScrape
from penstock.workers.board import Board
from penstock.workers.pools import farewell
from penstock.workers.pools.ground import Ground
from penstock.workers.pools.ownership import Alone
from penstock.workers.pools.providers.base import Order, Provider, ProviderFault, Running
from penstock.workers.pools.providers.make import Site
from penstock.workers.pools.runner import PoolsRunner
from penstock.workers.pools.words import MemberPhase, Others, StopAsked, WakeAsked
from penstock.workers.probes import Prober
from penstock.workers.scrape import POOL_DEATHS, samples

MS = 1_000_000


class Scripted(Provider):
    """What each call ends in is put in its queue by the test."""

    local = True

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world
        self.closed = False

    async def ensure_ready(self, member: int, order: Order, timeout_s: float) -> Running:
        self.world.did.append(("ready", member, order.key))
        self.world.began_ns.append(time.monotonic_ns())
        end = await self.world.ends.get()
        if isinstance(end, BaseException):
            raise end
        self.world.runs[member] = end
        return end

    async def ensure_stopped(self, member: int, order: Order, timeout_s: float) -> None:
        self.world.did.append(("stopped", member, order.key))
        fault = self.world.stop_fails.pop(0) if self.world.stop_fails else None
        if fault is not None:
            raise fault
        self.world.runs.pop(member, None)

    async def status(self) -> Mapping[int, Running]:
        if self.world.unknown is not None:
            raise self.world.unknown
        return dict(self.world.runs)

    async def close(self) -> None:
        self.closed = True


@dataclass
class World:
    """A controller's surroundings. did: what the provider was asked. runs: what runs, also for the next controller."""

    segment: Segment
    server: str
    did: list[tuple[str, int, str]] = field(default_factory=list)
    ends: asyncio.Queue[Running | BaseException] = field(default_factory=asyncio.Queue)
    runs: dict[int, Running] = field(default_factory=dict)
    stop_fails: list[ProviderFault] = field(default_factory=list)
    unknown: Exception | None = None
    began_ns: list[int] = field(default_factory=list)
    place_s: float = 0.0
    made: list[Scripted] = field(default_factory=list)
    publishes: list[str] = field(default_factory=list)
    refuses: bool = False
    heartbeat_ns: Callable[[], int] = time.monotonic_ns
    shown_at_publish: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.table = PoolTable(self.segment)
        self.backends = BackendTable(self.segment)
        self.worker = TallyRow(self.segment, 0)

    def config(self, **terms: object) -> Config:
        told = {"idle_timeout_s": 0.2, "command": ("x",), "gpus": 0, **terms}
        pool = ProcessPool(**told)  # type: ignore[arg-type]
        return Config(models={"m": Model(pool=pool)}, health=Health(path="/health"))

    def begin(self, config: Config, state: Path, shared: Any = None) -> Controller:
        return Controller(self, config, state, shared)

    def phase(self) -> PoolPhase:
        row = self.table.read(0)
        return PoolPhase(row.phase) if row is not None else PoolPhase.NONE


class Controller:
    """One life of a controller, as far as pools go."""

    def __init__(self, world: World, config: Config, state: Path, shared: Any = None) -> None:
        self.world = world
        self.published = store.following(config, None)
        self.board = Board(world.backends, time.monotonic_ns)
        self.board.swap(self.published)
        ground = Ground(
            self.board,
            world.table,
            Tally(world.segment),
            BackendScrape(),
            Metrics(CounterRow(world.segment, world.segment.geometry.controller)),
            lambda: self.published,
            self._place,
            {},
            state,
            time.monotonic_ns,
            lambda: [SlotInfo(1, 1, 1, world.heartbeat_ns(), True)],
        )
        self.runner = PoolsRunner(ground, "t", time.time_ns, self._make, shared)
        self.runner.swap(self.published)
        self._task = asyncio.ensure_future(self.runner.run())

    def _make(self, site: Site) -> Provider:
        self.world.made.append(Scripted(self.world))
        return self.world.made[-1]

    async def _place(self, member: str, url: str) -> bool:
        if self.world.refuses:
            return False
        await asyncio.sleep(self.world.place_s)
        host, _, port = url.removeprefix("http://").partition(":")
        self.swap(self.published.told, {member: (Server(address=host, port=int(port)),)})
        self.world.publishes.append(url)
        self.world.shown_at_publish.append(self.world.phase())
        return True

    def swap(self, config: Config, found: Mapping[str, tuple[Server, ...]] | None = None) -> None:
        self.published = store.following(config, self.published, found)
        self.board.swap(self.published)
        self.runner.swap(self.published)

    @property
    def row(self) -> int:
        """The member's column."""
        (index,) = [at for name, at in self.published.indices.items() if name.startswith("m\n")]
        return index

    async def end(self, *, final: bool = False) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])
        await self.runner.close(final=final)


async def until(predicate: Callable[[], object]) -> None:
    """Wait; the test's watchdog bounds it."""
    while not predicate():  # noqa: ASYNC110 - what the runner stores can only be looked at
        await asyncio.sleep(0.005)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """Its server answers each GET with 200."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    segment = Segment.create(None, Geometry(slots=2, backends=8, models=8), owner_pid=1, owner_start=1)
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    made = World(segment, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    yield made
    server.close()
    segment.close()


async def test_demand_starts_one_server_and_ready_is_shown_when_workers_can_find_it(
    world: World, tmp_path: Path
) -> None:
    controller = world.begin(world.config(), tmp_path)
    await until(lambda: world.phase() is PoolPhase.OFF)
    world.worker.add_waiting(0, 3)
    await until(lambda: world.phase() is PoolPhase.STARTING)
    await until(lambda: [what for what, *_ in world.did] == ["ready"])  # it is shown first
    world.ends.put_nowait(Running(world.server))
    await until(lambda: world.phase() is PoolPhase.READY)
    assert world.publishes == [world.server]
    assert world.shown_at_publish == [PoolPhase.STARTING]
    state = world.backends.read(controller.row)
    assert state is not None
    assert (state.pool_state, state.health) == (PoolPhase.READY, UP)
    await controller.end()


async def test_nothing_is_stopped_while_anything_is_in_flight_and_then_it_is(
    world: World, tmp_path: Path
) -> None:
    controller = world.begin(world.config(), tmp_path)
    world.worker.add_waiting(0, 1)
    world.ends.put_nowait(Running(world.server))
    await until(lambda: world.phase() is PoolPhase.READY)
    world.worker.add_running(0, 1)
    world.worker.add(controller.row, 1)
    world.worker.add_waiting(0, -1)
    controller.runner.ask("m", StopAsked())
    await until(lambda: world.phase() is PoolPhase.DRAINING)
    state = world.backends.read(controller.row)
    assert state is not None
    assert state.pool_state == PoolPhase.DRAINING
    await asyncio.sleep(0.05)
    world.worker.add_running(0, -1)  # the answer has gone; the connection's count goes last
    for _ in range(8):
        await asyncio.sleep(0.03)
    assert world.phase() is PoolPhase.DRAINING
    world.worker.add(controller.row, -1)
    await until(lambda: world.phase() is PoolPhase.OFF)
    assert [what for what, *_ in world.did] == ["ready", "stopped"]
    await controller.end()


async def test_nothing_is_stopped_before_every_worker_has_had_time_to_see_it_drain(
    world: World, tmp_path: Path
) -> None:
    frozen_ns = time.monotonic_ns()
    world.heartbeat_ns = lambda: frozen_ns  # a worker whose loop stands still
    controller = world.begin(world.config(), tmp_path)
    world.worker.add_waiting(0, 1)
    world.ends.put_nowait(Running(world.server))
    await until(lambda: world.phase() is PoolPhase.READY)
    world.worker.add_waiting(0, -1)
    controller.runner.ask("m", StopAsked())
    await until(lambda: world.phase() is PoolPhase.DRAINING)
    for _ in range(12):
        await asyncio.sleep(0.03)
    assert world.phase() is PoolPhase.DRAINING
    world.heartbeat_ns = time.monotonic_ns
    await until(lambda: world.phase() is PoolPhase.OFF)
    await controller.end()


async def test_a_start_that_fails_is_shown_with_its_reason_and_counted_on_by_the_next_controller(
    world: World, tmp_path: Path
) -> None:
    not_before_ns = 0
    for life in (1, 2):
        controller = world.begin(world.config(), tmp_path)
        world.worker.add_waiting(0, 1)
        world.ends.put_nowait(ProviderFault("no GPU of that name"))
        await until(lambda life=life: (row := world.table.read(0)) is not None and row.failures == life)
        row = world.table.read(0)
        assert row is not None
        assert (row.phase, row.reason, row.identity) == (
            PoolPhase.FAILED,
            "no GPU of that name",
            store.identity("m"),
        )
        assert row.not_before_ns > time.monotonic_ns()
        assert len(world.did) == life
        assert world.began_ns[-1] >= not_before_ns  # the next one keeps to what the one before has said
        not_before_ns = row.not_before_ns
        await controller.end()
        world.worker.add_waiting(0, -1)


async def test_a_provider_that_breaks_is_a_start_that_failed(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    controller = world.begin(world.config(), tmp_path)
    world.worker.add_waiting(0, 1)
    world.ends.put_nowait(ZeroDivisionError())
    await until(lambda: world.phase() is PoolPhase.FAILED)
    assert "ZeroDivisionError" in caplog.text
    assert [what for what, *_ in world.did] == ["ready", "stopped"]  # whatever it left is cleared away
    await controller.end()


async def test_a_server_that_cannot_be_published_is_stopped_again(world: World, tmp_path: Path) -> None:
    controller = world.begin(world.config(), tmp_path)
    world.refuses = True
    world.worker.add_waiting(0, 1)
    world.ends.put_nowait(Running(world.server))
    await until(lambda: world.phase() is PoolPhase.FAILED)
    assert world.runs == {}
    await controller.end()


async def test_a_death_is_shown_at_once_and_with_demand_it_starts_again(world: World, tmp_path: Path) -> None:
    controller = world.begin(world.config(), tmp_path)
    world.worker.add_waiting(0, 1)
    world.ends.put_nowait(Running(world.server))
    await until(lambda: world.phase() is PoolPhase.READY)
    world.made[-1].ended(0, "it fell over")
    assert world.phase() is PoolPhase.OFF
    state = world.backends.read(controller.row)
    assert state is not None
    assert state.pool_state == PoolPhase.OFF
    await until(lambda: world.phase() is PoolPhase.STARTING)
    keys = [key for what, _, key in world.did if what == "ready"]
    assert len(set(keys)) == 2  # another order
    await controller.end()


async def test_a_stop_that_fails_is_tried_again_and_the_member_is_not_called_off(
    world: World, tmp_path: Path
) -> None:
    controller = world.begin(world.config(), tmp_path)
    world.worker.add_waiting(0, 1)
    world.ends.put_nowait(Running(world.server))
    await until(lambda: world.phase() is PoolPhase.READY)
    world.stop_fails.append(ProviderFault("it will not"))
    world.worker.add_waiting(0, -1)
    await until(lambda: [what for what, *_ in world.did].count("stopped") == 1)
    assert world.phase() is PoolPhase.STOPPING
    await until(lambda: world.phase() is PoolPhase.OFF)
    assert [what for what, *_ in world.did].count("stopped") == 2
    await controller.end()


async def test_the_next_controller_takes_over_and_the_pool_never_stops_being_ready(
    world: World, tmp_path: Path
) -> None:
    first = world.begin(world.config(idle_timeout_s=100), tmp_path)
    world.worker.add_waiting(0, 1)
    world.ends.put_nowait(Running(world.server))
    await until(lambda: world.phase() is PoolPhase.READY)
    await first.end()
    assert (world.phase(), list(world.runs)) == (PoolPhase.READY, [0])
    world.place_s = 0.08
    second = world.begin(world.config(idle_timeout_s=100), tmp_path)
    seen = set()
    while second.runner.report("m") is None or second.runner.report("m")["phase"] != "ready":  # type: ignore[index]
        seen.add(world.phase())
        await asyncio.sleep(0)
    assert seen <= {PoolPhase.READY}
    assert [what for what, *_ in world.did] == ["ready"]
    await second.end()


async def test_where_nobody_knows_what_runs_a_pool_that_was_ready_is_left_alone(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = world.begin(world.config(idle_timeout_s=100), tmp_path)
    world.worker.add_waiting(0, 1)
    world.ends.put_nowait(Running(world.server))
    await until(lambda: world.phase() is PoolPhase.READY)
    await first.end()
    world.unknown = ProviderFault("nobody knows")
    second = world.begin(world.config(idle_timeout_s=100), tmp_path)
    await until(lambda: "pool_status_unknown pool=m: nobody knows" in caplog.text)
    assert world.phase() is PoolPhase.READY
    await second.end()


async def test_a_pool_goes_on_where_asking_what_runs_goes_wrong_as_nobody_thought_of(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    world.unknown = AttributeError("'list' object has no attribute 'get'")
    controller = world.begin(world.config(idle_timeout_s=100), tmp_path)
    world.worker.add_waiting(0, 1)
    world.ends.put_nowait(Running(world.server))
    await until(lambda: world.phase() is PoolPhase.READY)
    assert "pool_status_unknown pool=m: the provider failed: AttributeError" in caplog.text
    await controller.end(final=True)
    assert world.runs == {}


async def test_the_end_of_the_gateway_ends_the_servers_and_another_end_does_not(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    controller = world.begin(world.config(idle_timeout_s=100), tmp_path)
    world.worker.add_waiting(0, 1)
    world.ends.put_nowait(Running(world.server))
    await until(lambda: world.phase() is PoolPhase.READY)
    await controller.end(final=True)
    assert world.runs == {}
    assert all(one.closed for one in world.made)
    assert "pool_ended" not in caplog.text  # its pools are still configured


async def test_a_reload_has_new_terms_at_once_and_another_provider_for_later_starts(
    world: World, tmp_path: Path
) -> None:
    controller = world.begin(world.config(idle_timeout_s=100), tmp_path)
    world.worker.add_waiting(0, 1)
    world.ends.put_nowait(Running(world.server))
    await until(lambda: world.phase() is PoolPhase.READY)
    world.worker.add_waiting(0, -1)
    controller.swap(world.config(idle_timeout_s=0.05))
    await until(lambda: world.phase() is PoolPhase.OFF)
    assert len(world.made) == 2
    assert world.made[0].closed
    await controller.end()


async def test_what_was_started_as_it_is_no_longer_configured_ends_when_nothing_is_in_flight(
    world: World, tmp_path: Path
) -> None:
    world.runs[0] = Running(world.server, stale=True)
    world.worker.add_running(0, 1)
    controller = world.begin(world.config(idle_timeout_s=100), tmp_path)
    await until(lambda: world.phase() is PoolPhase.READY)
    for _ in range(4):
        await asyncio.sleep(0.03)
    assert world.phase() is PoolPhase.READY
    world.worker.add_running(0, -1)
    await until(lambda: world.phase() is PoolPhase.OFF)
    assert world.runs == {}
    await controller.end()


async def test_a_pool_that_is_removed_finishes_what_is_in_flight_then_ends_and_says_so_once(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    controller = world.begin(world.config(idle_timeout_s=100), tmp_path)
    world.worker.add_waiting(0, 1)
    world.ends.put_nowait(Running(world.server))
    await until(lambda: world.phase() is PoolPhase.READY)
    row = controller.row
    world.worker.add(row, 1)
    caplog.set_level(logging.INFO)
    controller.swap(Config(models={}))
    for _ in range(8):
        await asyncio.sleep(0.03)
    assert list(world.runs) == [0]
    assert "pool_ended" not in caplog.text
    world.worker.add(row, -1)
    await until(lambda: not world.runs)
    assert controller.runner.report("m") is None
    await until(lambda: "pool_ended pool=m" in caplog.text)
    await controller.end(final=True)
    assert caplog.text.count("pool_ended") == 1


async def test_a_pool_that_comes_back_while_it_is_seen_off_keeps_its_server(
    world: World, tmp_path: Path
) -> None:
    config = world.config(idle_timeout_s=100)
    controller = world.begin(config, tmp_path)
    world.worker.add_waiting(0, 1)
    world.ends.put_nowait(Running(world.server))
    await until(lambda: world.phase() is PoolPhase.READY)
    world.worker.add(controller.row, 1)
    controller.swap(Config(models={}))
    controller.swap(config)
    await until(lambda: (report := controller.runner.report("m")) is not None and report["phase"] == "ready")
    world.worker.add(controller.row, -1)
    for _ in range(10):
        await asyncio.sleep(0.03)
    assert [what for what, *_ in world.did] == ["ready"]
    await controller.end()


@pytest.mark.parametrize("stays", [True, False], ids=["it stays", "it goes"])
async def test_a_pool_that_comes_and_goes_at_once_is_kept_or_seen_off_by_one_keeper(
    world: World, tmp_path: Path, stays: bool
) -> None:
    config = world.config(idle_timeout_s=100)
    controller = world.begin(config, tmp_path)
    world.worker.add_waiting(0, 1)
    world.ends.put_nowait(Running(world.server))
    await until(lambda: world.phase() is PoolPhase.READY)
    world.worker.add_waiting(0, -1)
    row = controller.row
    world.worker.add(row, 1)
    removed = Config(models={})
    for one in (removed, config, removed, *([config] if stays else [])):
        controller.swap(one)
    for _ in range(10):
        await asyncio.sleep(0.03)
    assert list(world.runs) == [0], "something is in flight"
    world.worker.add(row, -1)
    if stays:
        await until(lambda: (controller.runner.report("m") or {}).get("phase") == "ready")
    else:
        await until(lambda: not world.runs)
    await controller.end()
    assert bool(world.runs) is stays
    assert all(one.closed for one in world.made)


async def test_a_server_of_a_removed_pool_that_does_not_end_is_told_again(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(farewell, "AGAIN_S", 0.02)
    controller = world.begin(world.config(idle_timeout_s=100), tmp_path)
    world.worker.add_waiting(0, 1)
    world.ends.put_nowait(Running(world.server))
    await until(lambda: world.phase() is PoolPhase.READY)
    world.stop_fails += [ProviderFault("not now"), ProviderFault("not now")]
    controller.swap(Config(models={}))
    await until(lambda: not world.runs)
    assert [what for what, *_ in world.did] == ["ready", "stopped", "stopped", "stopped"]
    await controller.end()


async def test_members_that_the_configuration_has_no_place_for_are_ended(
    world: World, tmp_path: Path
) -> None:
    world.runs = {0: Running(world.server), 3: Running("http://127.0.0.1:9")}
    controller = world.begin(world.config(idle_timeout_s=100, max=2), tmp_path)
    await until(lambda: world.phase() is PoolPhase.READY)
    await until(lambda: list(world.runs) == [0])
    await controller.end()


async def test_an_operators_word_waits_until_it_is_known_what_runs(world: World, tmp_path: Path) -> None:
    controller = world.begin(world.config(), tmp_path)
    controller.runner.ask("m", WakeAsked())
    await until(lambda: world.phase() is PoolPhase.STARTING)
    await controller.end()


async def test_a_server_that_is_silent_is_shown_down_and_up_again(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from penstock.workers.pools import watch

    monkeypatch.setattr(watch, "ANSWER_S", 0.1)
    monkeypatch.setattr(watch, "EVERY_S", 0.02)
    gate = asyncio.Event()
    gate.set()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            await gate.wait()
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        controller = world.begin(world.config(idle_timeout_s=100), tmp_path)
        world.worker.add_waiting(0, 1)
        world.ends.put_nowait(Running(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"))
        await until(lambda: world.phase() is PoolPhase.READY)

        def health() -> int | None:
            state = world.backends.read(controller.row)
            return state.health if state is not None else None

        gate.clear()
        await until(lambda: health() == DOWN)
        assert world.phase() is PoolPhase.READY  # it may be busy; nothing is stopped
        gate.set()
        await until(lambda: health() == UP)
        await controller.end()


async def test_a_server_that_refuses_connections_is_ended_and_started_again(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from penstock.workers.pools import watch

    monkeypatch.setattr(watch, "EVERY_S", 0.02)
    controller = world.begin(world.config(idle_timeout_s=100), tmp_path)
    world.worker.add_waiting(0, 1)
    world.ends.put_nowait(Running("http://127.0.0.1:9"))  # nobody listens there
    await until(lambda: [what for what, *_ in world.did] == ["ready", "stopped", "ready"])
    assert "pool_server_died pool=m member=0: it refuses connections" in caplog.text
    await controller.end()


class Elsewhere(Alone):
    """Another node owns every pool, and `said` is what it does."""

    said = Others(may_stop=False)

    def others(self, pool: str) -> Others:
        return self.said

    def metrics(self) -> tuple[Metric, ...]:
        return ()


@pytest.mark.parametrize(
    ("said", "died"),
    [
        (Others(may_stop=False), True),
        (Others(may_stop=False, draining=True), False),
        (Others(may_stop=False, leaving=frozenset({0})), False),
        (Others(may_stop=False, stops=(1,)), False),
    ],
    ids=["by itself", "drained", "leaving", "stopped"],
)
async def test_what_the_owner_of_a_shared_pool_ends_did_not_die(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture, said: Others, died: bool
) -> None:
    others = Elsewhere("t", time.time_ns)
    others.said = Others(may_stop=False, stops=(0,))
    pool = WebhookPool(url="http://x", secret_env="S", gpus=0)
    model = Model(backends=(Backend(url=world.server),), pool=pool)
    controller = world.begin(Config(models={"m": model}), tmp_path, others)
    world.worker.add_waiting(0, 1)
    world.ends.put_nowait(Running(world.server))
    await until(lambda: world.phase() is PoolPhase.READY)
    world.worker.add_waiting(0, -1)
    others.said, keeper = said, controller.runner.keepers["m"]
    if not said.stops:
        keeper.hand.lost(0, "its Pod is gone")
    await until(lambda: keeper.machine.members == [MemberPhase.OFF])
    assert ("pool_server_died" in caplog.text) is died
    deaths = [cells for *_, family, _, cells in samples(world.segment) if family is POOL_DEATHS]
    assert deaths == ([(1,)] if died else [])
    await controller.end()


async def test_probes_leave_the_servers_of_pools_alone(world: World, tmp_path: Path) -> None:
    asked: list[str] = []
    webhook = WebhookPool(url="http://x", secret_env="S")
    config = Config(
        models={
            "off": Model(backends=(Backend(url="http://127.0.0.1:9"),), pool=webhook),
            "on": Model(backends=(Backend(url="http://127.0.0.1:8"),)),
        }
    )
    published: Published = store.first(config)
    board = Board(world.backends, time.monotonic_ns)
    prober = Prober(board, BackendScrape(), {}, lambda name, good: asked.append(name))
    await prober.swap(published)
    task = asyncio.ensure_future(prober.run())
    await until(lambda: asked)
    assert set(asked) == {"127.0.0.1:8"}
    off, on = (
        world.backends.read(published.indices[store.backend_key(name, url)])
        for name, url in (("off", "http://127.0.0.1:9"), ("on", "http://127.0.0.1:8"))
    )
    assert off is not None
    assert on is not None
    assert (off.pool_state, on.pool_state) == (PoolPhase.OFF, 0)  # nobody asks it before the pool says so
    task.cancel()
    await prober.close()


async def test_the_log_tells_the_story_in_one_line_each(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    controller = world.begin(world.config(), tmp_path)
    await until(lambda: world.phase() is PoolPhase.OFF)
    world.worker.add_waiting(0, 2)
    world.ends.put_nowait(Running(world.server))
    await until(lambda: world.phase() is PoolPhase.READY)
    world.worker.add_waiting(0, -2)
    await until(lambda: world.phase() is PoolPhase.OFF)
    await controller.end()
    lines = [one.getMessage() for one in caplog.records if one.getMessage().startswith("pool_phase")]
    assert lines == [
        "pool_phase pool=m from=none to=off waiting=0 running=0 ready=0",
        "pool_phase pool=m from=off to=starting waiting=2 running=0 ready=0",
        "pool_phase pool=m from=starting to=ready waiting=2 running=0 ready=1",
        "pool_phase pool=m from=ready to=draining waiting=0 running=0 ready=0",
        "pool_phase pool=m from=draining to=stopping waiting=0 running=0 ready=0",
        "pool_phase pool=m from=stopping to=off waiting=0 running=0 ready=0",
    ]


async def test_of_several_servers_the_log_tells_each_ones_way(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    controller = world.begin(world.config(max=2), tmp_path)
    await until(lambda: world.phase() is PoolPhase.OFF)
    world.worker.add_waiting(0, 1)
    world.ends.put_nowait(Running(world.server))
    await until(lambda: world.phase() is PoolPhase.READY)
    world.worker.add_waiting(0, -1)
    await until(lambda: world.phase() is PoolPhase.OFF)
    await controller.end()
    lines = [one.getMessage() for one in caplog.records if one.getMessage().startswith("pool_member")]
    assert lines == [
        "pool_member pool=m member=0 from=off to=starting",
        "pool_member pool=m member=0 from=starting to=ready",
        "pool_member pool=m member=0 from=ready to=draining",
        "pool_member pool=m member=0 from=draining to=stopping",
        "pool_member pool=m member=0 from=stopping to=off",
    ]
