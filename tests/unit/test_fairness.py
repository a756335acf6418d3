"""Who comes next: fair shares over workers, priorities, room in a full queue, and who is refused at the door."""

from collections import Counter
from collections.abc import Iterator

import pytest

from penstock.cache.rows import SHARE_TAG
from penstock.gateway.caller import ANYONE, Caller
from penstock.gateway.errors import Fault, Kind

from ..support.doors import Bounds, Node, Request, finish

SERVICE_S = 0.04


@pytest.fixture
def node() -> Iterator[Node]:
    made = Node()
    yield made
    made.close()


class Crowd:
    """Clients that ask again as soon as they were answered, and a little later when they were refused."""

    def __init__(self, node: Node, model: Bounds) -> None:
        self.served: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.most_queued = 0
        self._node = node
        self._model = model
        self._over = False

    def add(self, caller: Caller, worker: int, clients: int, service_s: float = SERVICE_S) -> None:
        """``clients`` more clients of ``caller``, all connected to one worker."""
        for _ in range(clients):
            self._node.loop.create_task(self._client(caller, worker, service_s))

    async def _client(self, caller: Caller, worker: int, service_s: float) -> None:
        door, model = self._node.doors[worker], self._model
        while not self._over:
            if not door.try_enter(model, caller):
                try:
                    await door.wait(model, caller)
                except Fault:
                    self.refused[caller.tenant] += 1
                    await self._pause(0.5)
                    continue
            self.most_queued = max(self.most_queued, self._node.tally.queued(model.index))
            await self._pause(service_s)
            door.leave(model, caller)
            self.served[caller.tenant] += 1

    async def _pause(self, seconds: float) -> None:
        until = self._node.loop.create_future()
        self._node.loop.call_later(seconds, until.set_result, None)
        await until

    def run(self, seconds: float) -> Counter[str]:
        """What was served in that time, once the first second is over."""
        self._node.settle()
        self._node.run(1.0)
        before = self.served.copy()
        self._node.run(seconds)
        return self.served - before

    def end(self) -> None:
        """All leave; everything is at zero then."""
        self._over = True
        self._node.run(10.0)
        finish(self._node, [])


def busy(places: int, max_queue: int = 1000) -> Bounds:
    return Bounds(places=places, max_queue=max_queue)


EVEN = Caller("heavy"), Caller("light")


@pytest.mark.parametrize("places", [1, 3, 8])
def test_two_tenants_get_the_same_though_one_asks_ten_times_as_much(node: Node, places: int) -> None:
    crowd = Crowd(node, busy(places))
    heavy, light = EVEN
    crowd.add(heavy, 0, 10 * places)
    crowd.add(light, 0, places)
    served = crowd.run(8.0)
    crowd.end()
    assert served["light"] == pytest.approx(served["heavy"], rel=0.05)
    assert served.total() >= 0.99 * 8.0 / SERVICE_S * places, "no place stays empty"


@pytest.mark.parametrize("places", [1, 3, 8])
def test_it_is_so_where_the_one_asks_both_workers_and_the_other_one_of_them(node: Node, places: int) -> None:
    crowd = Crowd(node, busy(places))
    heavy, light = EVEN
    crowd.add(heavy, 0, 5 * places)
    crowd.add(heavy, 1, 5 * places)
    crowd.add(light, 1, 2 * places)
    served = crowd.run(8.0)
    crowd.end()
    assert served["light"] == pytest.approx(served["heavy"], rel=0.05)
    # a place that is left to another worker is empty until that looks
    assert served.total() >= 0.9 * 8.0 / SERVICE_S * places


def test_a_tenant_behind_another_worker_gets_its_share_though_it_frees_no_place(node: Node) -> None:
    crowd = Crowd(node, busy(2))
    heavy, light = EVEN
    crowd.add(heavy, 0, 40)
    node.settle()
    node.run(0.5)
    crowd.add(light, 1, 4)
    served = crowd.run(8.0)
    crowd.end()
    assert served["light"] == pytest.approx(served["heavy"], rel=0.05)


def test_no_request_waits_behind_later_ones_of_its_tenant_in_another_worker(node: Node) -> None:
    model = busy(2)
    requests = [Request(node, 0, model) for _ in range(2)]
    requests.append(Request(node, 1, model))
    for _ in range(30):
        requests += [Request(node, 0, model) for _ in range(2)]
        node.run(0.1)
        next(r for r in requests if r.worker == 0 and r.entered and not r.left).leave()
        node.poll()
    assert requests[2].entered
    assert sum(r.waiting for r in requests[:20]) == 0
    finish(node, requests)


@pytest.mark.parametrize("places", [1, 2, 5, 8])
def test_weights_are_kept(node: Node, places: int) -> None:
    crowd = Crowd(node, busy(places))
    three, one = Caller("three", weight=3.0), Caller("one", weight=1.0)
    for worker in range(2):
        crowd.add(three, worker, 4 * places)
    crowd.add(one, 0, 16 * places)
    served = crowd.run(12.0)
    crowd.end()
    assert served["three"] / served["one"] == pytest.approx(3.0, rel=0.05)


def test_the_smallest_weight_that_can_be_configured_is_served_last_and_is_served(node: Node) -> None:
    model = busy(1)
    inside = Request(node, 0, model)
    least = Caller("least", weight=5e-324)
    waiting = [Request(node, 0, model, caller) for caller in (least, least, *EVEN)]
    for _ in range(5):
        inside.leave()
        node.settle()
        inside = next((r for r in waiting if r.entered and not r.left), inside)
    assert all(r.left for r in waiting)
    finish(node, waiting)


def test_long_requests_earn_a_tenant_no_more_places(node: Node) -> None:
    crowd = Crowd(node, busy(8))
    crowd.add(Caller("long"), 0, 20, service_s=0.4)
    crowd.add(Caller("short"), 0, 20, service_s=0.04)
    served = crowd.run(12.0)
    crowd.end()
    assert served["short"] == pytest.approx(10 * served["long"], rel=0.1)


def test_who_did_not_ask_for_long_has_earned_nothing_by_it(node: Node) -> None:
    model = busy(1)
    heavy, light = EVEN
    inside = Request(node, 0, model, heavy)
    waiting = [Request(node, 0, model, heavy) for _ in range(40)]
    for n in range(20):
        inside.leave()
        node.settle()
        inside = waiting[n]
    late = [Request(node, 0, model, light) for _ in range(20)]
    order = []
    for _ in range(10):
        inside.leave()
        node.settle()
        inside = next(r for r in (*waiting, *late) if r.entered and not r.left)
        order.append(inside.caller.tenant)
    assert Counter(order) == {"heavy": 5, "light": 5}
    finish(node, [*waiting, *late])


def test_a_tag_is_what_the_worker_wrote_that_took_it_farthest(node: Node) -> None:
    node.rows[0].tag(3, 700)
    node.rows[1].tag(3, 500)
    assert node.tally.tag(3) == 700
    assert node.tally.of_key(SHARE_TAG, 4) == 0
    node.rows[0].tag(3, 0)
    assert node.tally.tag(3) == 500


def test_requests_of_a_tenant_wait_in_the_order_of_their_priority(node: Node) -> None:
    model = busy(1)
    inside = Request(node, 0, model)
    kinds = [Caller("t", priority=p) for p in (5, 0, -3, 0, 5)]
    waiting = [Request(node, 0, model, caller) for caller in kinds]
    order = []
    for _ in waiting:
        inside.leave()
        node.settle()
        inside = next(r for r in waiting if r.entered and not r.left)
        order.append(waiting.index(inside))
    assert order == [2, 1, 3, 0, 4]
    finish(node, waiting)


def test_a_better_priority_behind_another_worker_comes_first(node: Node) -> None:
    model = busy(1)
    inside = Request(node, 0, model)
    worse = Request(node, 0, model, Caller("a", priority=1))
    better = Request(node, 1, model, Caller("b", priority=0))
    inside.leave()
    node.poll()
    assert (worse.entered, better.entered) == (False, True)
    finish(node, [worse, better])


def test_who_comes_to_a_last_free_place_does_not_overtake_who_waits_elsewhere(node: Node) -> None:
    model = busy(1)
    inside = Request(node, 0, model)
    waiting = Request(node, 1, model)
    node.run(1.0)
    inside.leave()
    newcomer = Request(node, 0, model)
    assert not newcomer.entered
    node.poll()
    assert (waiting.entered, newcomer.entered) == (True, False)
    finish(node, [waiting, newcomer])


def test_a_place_that_a_needier_worker_does_not_take_is_taken(node: Node) -> None:
    model = busy(1)
    inside = Request(node, 0, model)
    waiting = Request(node, 0, model)
    node.rows[1].wish(0, 1 << 63, 1)  # stopped, or dead and not swept yet
    inside.leave()
    node.settle()
    assert waiting.waiting
    node.poll()
    assert waiting.entered
    node.rows[1].wish(0, 0, 0)
    finish(node, [waiting])


@pytest.mark.parametrize("workers", [(0, 0), (0, 1)], ids=["one worker", "another worker"])
def test_a_full_queue_makes_room_for_who_has_less_of_it(node: Node, workers: tuple[int, int]) -> None:
    model = busy(1, max_queue=10)
    heavy, light = EVEN
    inside = Request(node, workers[0], model, heavy)
    many = [Request(node, workers[0], model, heavy) for _ in range(10)]
    assert all(r.waiting for r in many), "alone it may have all of the queue"
    few = []
    for _ in range(6):
        few.append(Request(node, workers[1], model, light))
        node.poll()
    assert [r.waiting for r in few] == [True] * 5 + [False]
    assert few[5].fault is not None
    assert few[5].fault.kind is Kind.QUEUE_FULL
    assert [r.waiting for r in many] == [True] * 5 + [False] * 5, "the newest went"
    assert {r.fault.kind for r in many if r.fault} == {Kind.QUEUE_FULL}
    assert node.tally.queued(0) == 10
    again = Request(node, workers[0], model, heavy)
    assert again.fault is not None, "who has a share already is refused at once"
    finish(node, [inside, *many, *few, again])


def test_room_is_shared_by_weight(node: Node) -> None:
    model = busy(1, max_queue=12)
    three, one = Caller("three", weight=3.0), Caller("one")
    requests = [Request(node, 0, model, one) for _ in range(13)]
    requests += [Request(node, 0, model, three) for _ in range(20)]
    waiting = Counter(r.caller.tenant for r in requests if r.waiting)
    assert waiting == {"three": 9, "one": 3}
    finish(node, requests)


def test_a_worse_priority_makes_room_for_a_better_one(node: Node) -> None:
    model = busy(1, max_queue=4)
    requests = [Request(node, 0, model)]
    requests += [Request(node, 0, model, Caller("t", priority=p)) for p in (1, 0, 2, 2)]
    better = Request(node, 0, model, Caller("t", priority=0))
    worse = Request(node, 0, model, Caller("u", priority=3))
    assert [r.waiting for r in requests] == [False, True, True, True, False]
    assert (better.waiting, worse.waiting) == (True, False)
    finish(node, [*requests, better, worse])


# ---- what can no longer be in time


def paced(node: Node, model: Bounds, interval_s: float, caller: Caller = ANYONE) -> list[Request]:
    """One inside and some that wait, after places were handed on at this pace."""
    requests = [Request(node, 0, model, caller) for _ in range(40)]
    for n in range(30):
        node.jump(interval_s)
        requests[n].leave()
        node.settle()
    assert [r.entered for r in requests] == [True] * 31 + [False] * 9
    return requests


def test_who_would_wait_too_long_is_refused_at_the_door(node: Node) -> None:
    model = Bounds(places=1, max_queue=1000, queue_timeout_s=60.0)
    requests = paced(node, model, 1.0)
    requests += [Request(node, 0, model) for _ in range(60)]
    assert Counter(r.waiting for r in requests[40:]) == {True: 52, False: 8}, "9 wait already: 61 in all"
    fault = requests[-1].fault
    assert fault is not None
    assert (fault.kind, fault.status) == (Kind.QUEUE_FULL, 429)
    assert "longer than queue_timeout_s (60 s)" in fault.message
    assert fault.headers == (("x-queue-depth", "61"),)
    assert fault.retry_after_s == pytest.approx(1.0, rel=0.1)
    finish(node, requests)


def test_by_its_fair_turn_a_tenant_waits_less_behind_the_crowd_of_another(node: Node) -> None:
    model = Bounds(places=1, max_queue=1000, queue_timeout_s=60.0)
    heavy, light = EVEN
    requests = paced(node, model, 1.0, heavy)
    requests += [Request(node, 0, model, heavy) for _ in range(60)]
    assert requests[-1].fault is not None
    mine = [Request(node, 0, model, light) for _ in range(40)]
    assert Counter(r.waiting for r in mine) == {True: 30, False: 10}
    finish(node, [*requests, *mine])


def test_the_pace_of_long_ago_refuses_nobody(node: Node) -> None:
    model = Bounds(places=1, max_queue=1000, queue_timeout_s=20.0)
    requests = paced(node, model, 0.6)
    for request in requests:
        if request.waiting:
            request.leave()
    node.settle()
    more = [Request(node, 0, model) for _ in range(60)]
    assert Counter(r.waiting for r in more) == {True: 34, False: 26}
    for request in more:
        request.leave()
    node.settle()
    node.jump(21.0)
    more = [Request(node, 0, model) for _ in range(60)]
    assert all(r.waiting for r in more)
    finish(node, [*requests, *more])


def test_a_full_queue_drops_first_what_cannot_be_in_time_any_more(node: Node) -> None:
    model = Bounds(places=1, max_queue=50, queue_timeout_s=30.0)
    requests = paced(node, model, 0.5)
    late = [Request(node, 0, model) for _ in range(41)]
    assert all(r.waiting for r in late)
    for n in range(30, 38):  # it has become slow
        node.jump(3.5)
        requests[n].leave()
        node.settle()
    filler = [Request(node, 0, model) for _ in range(9)]
    ended = [*late, *filler]
    faults = [r.fault for r in ended if r.fault]
    dropped = [f for f in faults if f.kind is Kind.QUEUE_TIMEOUT]
    assert dropped
    assert all("any more" in f.message and f.status == 504 for f in dropped)
    first = next(n for n, r in enumerate(filler) if r.fault is None)
    assert first == 0, "the newcomer has the room"
    finish(node, [*requests, *late, *filler])
