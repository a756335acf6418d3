"""Who waits for a pool: counted, bounded, in order, fair, told what came of it. Real tables, a clock that is moved."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from penstock.cache.gates import Gates
from penstock.cache.pool_table import PoolPhase, PoolRow, PoolTable
from penstock.cache.rows import SHARE_QUEUED, CounterRow
from penstock.gateway.breakers import Breakers
from penstock.gateway.caller import ANYONE, Caller
from penstock.gateway.errors import Fault, Kind
from penstock.gateway.fleet import Fleet, Model, build
from penstock.gateway.hold import PORTION, SHY_S, Hold, Patience
from penstock.gateway.life import Life
from penstock.gateway.metrics import Metrics
from penstock.gateway.sharing import _deadline_s
from penstock.workers.store import identity

from ..support.dataplane import published
from ..support.doors import SHARES, Node
from ..support.played import SECRET, webhook_pool
from .test_fleet import ENVIRON, Pools

A, B = Caller("a"), Caller("b")
READY_S = 300.0


class Silent(Life):
    """A life that says when it is to be kept alive."""

    kept = 0

    def keep_alive(self) -> None:
        assert self.hold_since
        assert self.hold_pool is not None
        self.kept += 1


class Waiting:
    """One request that waits; ``model`` is what it goes on with."""

    def __init__(self, house: House, caller: Caller, worker: int, **more: Any) -> None:
        self.life = Silent()
        self.patience = more.pop("patience", None) or Patience(READY_S)
        self.model: Model | None = None
        self.fault: Fault | None = None
        self._house = house
        self.task = house.loop.create_task(self._wait(caller, worker, more))
        house.settle()

    async def _wait(self, caller: Caller, worker: int, more: dict[str, Any]) -> None:
        try:
            house = self._house
            self.model = await house.holds[worker].wait(
                house.fleet.models[0], caller, self.life, self.patience, **more
            )
            house.order.append(self)
        except Fault as fault:
            self.fault = fault

    @property
    def waits(self) -> bool:
        return not self.task.done()

    def leave(self) -> None:
        self.task.cancel()
        self._house.settle()


class House(Node):
    """Two workers that hold requests for the model `m`; the test writes the pool's row."""

    def __init__(self, keys: int = SHARES, max_queue: int = 1000, backends: int = 1) -> None:
        super().__init__(keys=keys)
        self.table = PoolTable(self.segment)
        self.fleet = self.made(max_queue, backends)
        self.breakers = Breakers(Gates(self.segment), lambda: int(self.loop.now * 1e9), 1, 5.0)
        self.holds = [
            Hold(
                door, self.breakers, Metrics(CounterRow(self.segment, slot)), loop=self.loop, clock=self.clock
            )
            for slot, door in enumerate(self.doors)
        ]
        #: those that went on, in this order
        self.order: list[Waiting] = []
        self.failures = 0
        self.swap(self.fleet)
        self.say(PoolPhase.OFF)

    def clock(self) -> float:
        return self.loop.now

    def made(self, max_queue: int, backends: int, **models: Any) -> Fleet:
        urls = [{"url": f"http://{name}:1"} for name in "ab"[:backends]]
        pool = webhook_pool(ready_timeout_s=READY_S)
        models = models or {"m": {"backends": urls, "max_queue": max_queue, "pool": pool}}
        fleet = build(published(yaml.safe_dump({"models": models})), ENVIRON, Pools(), table=self.table)
        for backend in fleet.backends:
            backend.up = True
        return fleet

    def swap(self, fleet: Fleet) -> None:
        self.fleet = fleet
        for hold in self.holds:
            hold.swap(fleet.models)

    def say(self, phase: PoolPhase, *, model: str = "m", **row: Any) -> None:
        said = {"identity": identity(model), "failures": self.failures, **row}
        self.table.write(0, PoolRow(phase=phase, **said))
        self.tick()

    def fail(self, reason: str = "no room", **row: Any) -> None:
        self.failures += 1
        self.say(PoolPhase.FAILED, reason=reason, **row)

    def tick(self, seconds: float = 0.02) -> None:
        self.loop.now += seconds
        for model in self.fleet.pooled:
            assert model.pool is not None
            model.pool.look()
        for hold in self.holds:
            hold.tick(self.loop.now)
        self.settle()

    def wait(self, caller: Caller = ANYONE, worker: int = 0, **more: Any) -> Waiting:
        return Waiting(self, caller, worker, **more)

    @property
    def demand(self) -> int:
        return self.tally.waiting(0)

    def empty(self) -> None:
        """Nothing is counted, nothing kept."""
        assert self.demand == 0
        assert not any(hold.rooms or hold.waiting or hold.following for hold in self.holds)
        assert not any(self.counts().values())

    def close(self) -> None:
        for task in asyncio.all_tasks(self.loop):
            task.cancel()
        self.settle()
        del self.holds, self.breakers, self.table, self.fleet
        super().close()


@pytest.fixture(autouse=True)
def secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SECRET, "secret")


@pytest.fixture
def house() -> Iterator[House]:
    made = House()
    yield made
    made.close()


@pytest.fixture
def small() -> Iterator[House]:
    """With room for four."""
    made = House(max_queue=4)
    yield made
    made.close()


@pytest.fixture
def pair() -> Iterator[House]:
    """With two servers."""
    made = House(backends=2)
    yield made
    made.close()


# ---- waiting is demand


def test_who_waits_is_demand_for_as_long_and_no_longer(house: House) -> None:
    requests = [house.wait(A, worker) for worker in (0, 1, 0)]
    assert house.demand == 3
    requests[1].leave()
    assert house.demand == 2
    house.say(PoolPhase.STARTING)
    assert house.demand == 2
    house.say(PoolPhase.READY)
    assert house.order == [requests[0], requests[2]]
    house.empty()


def test_one_that_is_cancelled_in_the_turn_that_let_it_go_on_leaves_nothing_behind(house: House) -> None:
    first, second = house.wait(), house.wait()
    house.table.write(0, PoolRow(phase=PoolPhase.READY, identity=identity("m")))
    house.holds[0].tick(house.loop.now)  # its task has not run yet
    assert house.holds[0].rooms
    first.task.cancel()
    house.settle()
    assert house.order == [second]
    house.empty()


def test_one_that_is_cancelled_before_anybody_looks_is_passed_over(house: House) -> None:
    requests = [house.wait() for _ in range(PORTION + 1)]
    for request in requests[:PORTION]:
        request.task.cancel()  # and its task has not run yet
    house.table.write(0, PoolRow(phase=PoolPhase.READY, identity=identity("m")))
    house.holds[0].tick(house.loop.now)
    house.settle()
    assert house.order == requests[-1:]
    house.empty()


def test_a_stream_is_to_be_kept_alive_and_its_wait_is_told(house: House) -> None:
    stream, whole = house.wait(streams=True), house.wait()
    began = house.loop.now
    assert (stream.life.kept, whole.life.kept) == (1, 0)
    assert stream.life.hold_since == began
    house.tick(2.0)
    house.say(PoolPhase.READY)
    waited_ns = int((house.loop.now - began) * 1e9)
    assert stream.life.hold_since == 0.0
    assert stream.life.wake_ns == stream.life.queued_ns == pytest.approx(waited_ns)


def test_where_nobody_is_left_to_wake_a_server_all_are_told_but_those_that_one_serves(pair: House) -> None:
    first, hold = pair.wait(), pair.holds[0]
    hold.orphaned = True
    pair.tick()
    second = pair.wait()
    pair.say(PoolPhase.STARTING)
    pair.say(PoolPhase.READY)
    third = pair.wait()
    pair.tick()
    for backend in pair.fleet.backends:
        backend.up = False
    fourth = pair.wait()
    pair.tick()
    told = [one.fault and one.fault.kind for one in (first, second, third, fourth)]
    assert told == [Kind.DRAINING, Kind.DRAINING, None, Kind.DRAINING]
    assert pair.order == [third]
    pair.empty()


# ---- in order


def test_they_go_on_in_order_a_portion_each_tick_and_nobody_overtakes(house: House) -> None:
    requests = [house.wait() for _ in range(PORTION + 10)]
    house.say(PoolPhase.READY)
    assert house.order == requests[:PORTION]
    assert "m" in house.holds[0].rooms  # by which dispatch knows that a newcomer comes here first
    requests.append(house.wait())
    house.tick()
    assert house.order == requests
    house.empty()


def test_tenants_go_on_by_turns_whoever_came_first(house: House) -> None:
    many = [house.wait(A) for _ in range(PORTION)]
    house.tick(1.0)
    few = [house.wait(B) for _ in range(20)]
    house.say(PoolPhase.READY)
    assert [request for request in house.order if request in many] == many[: PORTION - 20]
    assert [request for request in house.order if request in few] == few
    assert house.order[:4] == [many[0], few[0], many[1], few[1]]


def test_a_thousand_of_several_tenants_go_on_each_tenants_in_order(house: House) -> None:
    draw = random.Random(5)
    tenants = [Caller(name) for name in "abc"]
    came: dict[Caller, list[Waiting]] = {tenant: [] for tenant in tenants}
    for _ in range(1000):
        tenant = draw.choice(tenants)
        came[tenant].append(house.wait(tenant))
    assert house.demand == 1000
    house.say(PoolPhase.READY)
    for _ in range(1000 // PORTION):
        house.tick()
    assert len(house.order) == 1000
    for requests in came.values():
        assert [request for request in house.order if request in requests] == requests
    house.empty()


def test_a_tenant_with_twice_the_weight_goes_on_twice_as_often(house: House) -> None:
    heavy = Caller("heavy", weight=2.0)
    for _ in range(PORTION):
        house.wait(heavy)
        house.wait(B)
    before = house.order
    house.say(PoolPhase.READY)
    heavies = sum(request.task.done() and request in before for request in house.order)
    assert heavies == PORTION
    assert house.tally.of_key(SHARE_QUEUED, house.doors[0].lane(0, heavy).share) == PORTION - 85


def test_a_better_priority_goes_first(house: House) -> None:
    late = house.wait(Caller("a", priority=5))
    first = house.wait(Caller("b", priority=-5))
    house.say(PoolPhase.READY)
    assert house.order == [first, late]


def test_who_was_let_in_before_goes_on_before_those_that_come_now(house: House) -> None:
    newcomer, again = house.wait(), house.wait(seated=True)
    house.say(PoolPhase.READY)
    assert house.order == [again, newcomer]


# ---- bounded


def test_a_full_hold_refuses_and_counts_what_is_queued_as_well(small: House) -> None:
    small.rows[1].add_queued(0, 1)
    requests = [small.wait(), small.wait(worker=1), small.wait()]
    refused = small.wait()
    assert refused.fault is not None
    assert (refused.fault.kind, refused.fault.status) == (Kind.QUEUE_FULL, 429)
    assert refused.fault.headers == (("x-queue-depth", "4"),)
    assert small.wait(seated=True).waits  # it had its place before
    assert all(request.waits for request in requests)
    small.rows[1].add_queued(0, -1)


def test_who_waits_here_fills_the_queue_for_admission(small: House) -> None:
    for _ in range(4):
        small.wait()
    model, door = small.fleet.models[0], small.doors[1]
    small.rows[0].add_running(0, model.places)
    assert not door.try_enter(model)
    with pytest.raises(Fault, match="full"):
        door.wait(model).send(None)
    seated = small.loop.create_task(door.wait(model, ANYONE, True))
    small.settle()
    assert not seated.done()
    seated.cancel()
    small.rows[0].add_running(0, -model.places)
    small.settle()


def test_in_a_full_hold_the_tenant_that_has_most_gives_way(small: House) -> None:
    greedy = [small.wait(A) for _ in range(4)]
    modest = small.wait(B)
    assert modest.waits
    fault = greedy[-1].fault
    assert fault is not None
    assert fault.kind is Kind.QUEUE_FULL
    assert small.wait(A).fault is not None  # of the one that has most
    assert small.wait(B).waits
    third = small.wait(B)  # now both have two
    assert third.fault is not None
    small.say(PoolPhase.READY)
    assert len(small.order) == 4
    small.empty()


# ---- told what came of it


def test_a_wake_that_fails_is_told_to_all_that_were_there(house: House) -> None:
    requests = [house.wait(A), house.wait(B, 1)]
    again_ns = int((house.loop.now + 7.0) * 1e9)
    house.fail("status 1", not_before_ns=again_ns)
    for request in requests:
        fault = request.fault
        assert fault is not None
        assert (fault.kind, fault.status) == (Kind.WAKE_FAILED, 503)
        assert "status 1" in fault.message
        assert fault.retry_after_s == pytest.approx(7.0, abs=0.1)
    late = house.wait()
    assert late.fault is not None
    assert late.fault.kind is Kind.WAKE_FAILED
    house.empty()
    house.say(PoolPhase.OFF)
    assert house.wait().waits


def test_who_comes_when_the_next_wake_is_due_waits_for_it_whatever_the_controller_says_still(
    house: House,
) -> None:
    house.fail(not_before_ns=int((house.loop.now + 7.0) * 1e9))
    early = house.wait()
    assert early.fault is not None
    house.tick(7.0)
    on_time = house.wait()
    house.tick()
    assert on_time.waits
    house.say(PoolPhase.STARTING)
    assert on_time.waits
    house.fail(not_before_ns=int((house.loop.now + 7.0) * 1e9))
    assert on_time.fault is not None


def test_a_failure_that_nobody_saw_is_told_by_its_count(house: House) -> None:
    before = house.wait()
    house.failures = 1
    house.say(PoolPhase.STARTING)
    after = house.wait()
    assert before.fault is not None
    house.tick()
    assert after.waits


def test_a_controller_that_counts_anew_has_failed_nothing(house: House) -> None:
    house.failures = 5
    house.say(PoolPhase.STARTING)
    request = house.wait()
    house.failures = 0
    house.say(PoolPhase.STARTING)
    assert request.waits
    house.failures = 1
    house.say(PoolPhase.STARTING)
    assert request.fault is not None


def test_who_waits_too_long_is_told_so_over_all_its_waits(house: House) -> None:
    patience = Patience(10.0)
    first = house.wait(patience=patience)
    house.tick(6.0)
    house.say(PoolPhase.READY)
    assert first.model is not None
    house.say(PoolPhase.STARTING)
    again = house.wait(patience=patience, seated=True)
    house.tick(3.5)
    assert again.waits
    house.tick(0.6)
    assert again.fault is not None
    assert (again.fault.kind, again.fault.status) == (Kind.WAKE_TIMEOUT, 504)
    assert house.wait(patience=patience).fault is not None
    house.empty()


def test_another_models_row_says_nothing(house: House) -> None:
    request = house.wait()
    house.say(PoolPhase.READY, model="another")
    house.say(PoolPhase.FAILED, model="another")
    assert request.waits
    model = house.fleet.models[0]
    assert model.pool is not None
    assert (model.pool.ready, model.pool.state) == (False, "off")
    house.say(PoolPhase.READY)
    assert house.order == [request]
    house.say(PoolPhase.READY, model="another")  # the column is another's from now on
    assert not model.pool.ready


def test_a_failed_wake_is_one_line_of_the_log_a_second(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for _ in range(20):
        house.wait()
    house.fail("status 1")
    assert caplog.messages == ["wake_failed model=m cause=status 1 more=0"]


# ---- which servers may be asked


def test_ready_is_not_enough_while_no_server_may_be_asked(house: House) -> None:
    (backend,) = house.fleet.backends
    backend.up = False
    request = house.wait()
    house.say(PoolPhase.READY)
    assert request.waits  # its row has not been read yet
    backend.up = True
    house.tick()
    assert house.order == [request]


def test_a_server_of_a_pool_is_not_asked_before_its_row_says_so(house: House) -> None:
    backends = [{"url": "http://a:1"}]
    models = {"pooled": {"backends": backends, "pool": webhook_pool()}, "always": {"backends": backends}}
    made = build(published(yaml.safe_dump({"models": models})), ENVIRON, Pools(), table=house.table)
    up = {model.name: model.backends[0].up for model in made.models}
    assert up == {"pooled": False, "always": True}


def test_another_nodes_answer_is_waited_for_as_long_as_a_wake_may_take(house: House) -> None:
    waking, always = (
        house.fleet.models[0],
        house.made(5, 1, m={"backends": [{"url": "http://a:1"}]}).models[0],
    )
    assert _deadline_s(waking) == _deadline_s(always) + READY_S


def test_of_an_open_breaker_only_the_probe_goes_on(house: House) -> None:
    (backend,) = house.fleet.backends
    house.breakers.failed(backend, 0, "test")
    assert backend.shut
    first, second = house.wait(), house.wait()
    house.say(PoolPhase.READY)
    assert house.order == []
    house.tick(5.0)
    assert house.order == [first]
    assert second.waits


def test_who_could_not_reach_a_server_leaves_it_alone_for_a_while(house: House) -> None:
    (backend,) = house.fleet.backends
    house.say(PoolPhase.READY)
    request = house.wait(failed=backend, seated=True)
    behind = house.wait()
    house.tick(SHY_S - 0.03)
    assert request.waits
    assert behind.waits
    house.tick(0.04)
    assert house.order == [request, behind]


def test_a_server_that_was_seen_down_and_up_again_is_asked_at_once(house: House) -> None:
    (backend,) = house.fleet.backends
    house.say(PoolPhase.READY)
    request = house.wait(failed=backend, seated=True)
    backend.up = False
    house.tick()
    assert request.waits
    backend.up = True
    house.tick()
    assert house.order == [request]


def test_another_server_is_asked_at_once(pair: House) -> None:
    pair.say(PoolPhase.READY)
    request = pair.wait(failed=pair.fleet.backends[0], seated=True)
    pair.tick()
    assert pair.order == [request]


def test_places_are_those_of_the_servers_that_may_be_asked(pair: House) -> None:
    model = pair.made(10, 2, m={
        "max_concurrent": 7,
        "backends": [{"url": "http://a:1"}, {"url": "http://b:1", "max_concurrent": 3}],
        "pool": webhook_pool(max=2),
    }).models[0]  # fmt: skip
    first, second = model.backends
    seen = []
    for first.up, second.up in [(True, True), (True, False), (False, True), (False, False)]:
        model.count_places()
        seen.append(model.places)
    assert seen == [10, 7, 3, 14]


def test_several_servers_behind_one_address_have_the_places_of_all(pair: House) -> None:
    backends = [{"url": "http://a:1"}]
    m = {"max_concurrent": 7, "backends": backends, "pool": webhook_pool(max=3)}
    pair.say(PoolPhase.READY, ready=2)
    model = pair.made(10, 1, m=m).models[0]
    model.count_places()
    assert model.places == 14


# ---- the configuration changes


def test_who_waits_goes_on_with_the_model_of_by_then(house: House) -> None:
    request = house.wait()
    new = house.made(5, 2)
    house.swap(new)
    house.say(PoolPhase.READY)
    assert request.model is new.models[0]
    house.empty()


def test_a_model_that_is_gone_or_has_no_pool_any_more(house: House) -> None:
    request = house.wait()
    house.swap(house.made(5, 1, m={"backends": [{"url": "http://a:1"}]}))
    house.tick()
    assert request.model is house.fleet.models[0]
    house.swap(house.made(5, 1))
    request = house.wait()
    house.swap(house.made(5, 1, other={"backends": [{"url": "http://a:1"}]}))
    house.tick()
    assert request.fault is not None
    assert request.fault.kind is Kind.NO_BACKEND
    house.empty()


# ---- followers


def test_followers_wait_while_the_pool_is_not_ready(house: House) -> None:
    model, hold = house.fleet.models[0], house.holds[0]
    stream, whole = Silent(), Silent()
    hold.follow(model, stream, True)
    hold.follow(model, whole, False)
    began = house.loop.now
    assert stream.hold_since == whole.hold_since == began
    assert (stream.kept, whole.kept) == (1, 0)
    house.tick(1.0)
    house.say(PoolPhase.READY)
    assert stream.hold_since == whole.hold_since == 0.0
    assert stream.wake_ns == pytest.approx(int((house.loop.now - began) * 1e9))
    house.tick(1.0)
    assert stream.wake_ns == whole.wake_ns  # the answer is merely slow
    house.say(PoolPhase.STARTING)  # the server was lost under their leader
    assert stream.hold_since == house.loop.now
    assert stream.kept == 2
    assert house.demand == 0  # that is their leader's
    for life in (stream, whole):
        hold.unfollow(model, life)
    assert stream.hold_since == 0.0
    house.empty()


def test_a_follower_of_a_ready_pool_does_not_wait_for_it(house: House) -> None:
    house.say(PoolPhase.READY)
    life = Silent()
    house.holds[0].follow(house.fleet.models[0], life, True)
    house.holds[0].unfollow(house.fleet.models[0], life)
    assert (life.kept, life.wake_ns) == (0, 0)


def test_a_turn_of_the_loop_is_all_that_a_newcomer_waits_for_others(house: House) -> None:
    """A room is there while those let go on have not run yet, and no longer."""
    house.wait()
    house.say(PoolPhase.READY)
    assert house.holds[0].rooms == {}
    assert asyncio.all_tasks(house.loop) == set()
