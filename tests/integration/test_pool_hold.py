"""A data plane holds requests for a pool, and lets go on what may: the test plays the controller, by the tables."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import httpx
import pytest
import yaml
from msgspec.structs import replace

from penstock.cache.pool_table import PoolPhase
from penstock.gateway.hold import PORTION

from ..support.asking import Question, Reply
from ..support.asking import ask as asking_for
from ..support.dataplane import DataPlane, data_plane, published
from ..support.lines import Line, question
from ..support.played import SECRET, Played, webhook_pool
from ..support.procs import free_port, wait_until
from ..support.scripted import until
from ..support.sim import Simulator, simulator


@pytest.fixture(scope="module")
def sim() -> Iterator[Simulator]:
    with simulator(model=["m", "other"]) as running:
        yield running


@pytest.fixture
def stack(sim: Simulator, monkeypatch: pytest.MonkeyPatch) -> Iterator[ExitStack]:
    monkeypatch.setenv(SECRET, "secret")
    sim.reset()
    with ExitStack() as opened:
        yield opened
        sim.faults({})


def pooled(*urls: str, model: dict[str, Any] | None = None, **pool: Any) -> dict[str, Any]:
    """A model whose servers are at these addresses while its pool is ready."""
    backends = [{"url": url} for url in urls]
    return {"backends": backends, "pool": webhook_pool(max=len(urls), **pool), **(model or {})}


def plane_of(stack: ExitStack, model: dict[str, Any], **more: Any) -> tuple[DataPlane, Played]:
    """A data plane with the model `m`, and who plays its controller."""
    others = more.pop("models", {})
    plane = stack.enter_context(data_plane({"models": {"m": model, **others}, **more}))
    return plane, Played(plane)


def demand(plane: DataPlane, model: int = 0) -> int:
    """Requests that wait for the pool, as the controller sees them."""
    return plane.tally.waiting(model)


def wait_demand(plane: DataPlane, count: int, model: int = 0) -> None:
    wait_until(lambda: demand(plane, model) == count, what=f"a demand of {count}")


def lefts(plane: DataPlane) -> list[bool]:
    """Of each request whether its client has left while it goes on; to be called on the plane's loop."""
    watch = plane.worker.watch
    return [life.left for life in (*watch._young, *watch._old)]  # type: ignore[attr-defined]


class Getting:
    """A GET that is under way."""

    def __init__(self, client: httpx.Client, url: str) -> None:
        self._pool = ThreadPoolExecutor(1)
        self._sent = self._pool.submit(client.get, url, timeout=30)

    def status(self) -> int:
        self._pool.shutdown()
        return self._sent.result().status_code


def ask(stack: ExitStack, plane: DataPlane, number: object = 0, **more: Any) -> Line:
    """A question on a connection of its own; the answer is for `receive`."""
    headers = more.pop("headers", None)
    path = more.pop("path", "/v1/chat/completions")
    return stack.enter_context(Line(plane.port)).put(question(number, **more), path, headers)


# ---- waiting


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_request_waits_for_its_pool_and_is_answered(sim: Simulator, stack: ExitStack, stream: bool) -> None:
    plane, pool = plane_of(stack, pooled(sim.url))
    line = ask(stack, plane, stream=stream)
    wait_demand(plane, 1)
    assert not sim.stats()["requests"]
    pool.phase(PoolPhase.STARTING)
    assert demand(plane) == 1
    pool.phase(PoolPhase.READY)
    answer = line.receive()
    assert answer.complete
    assert answer.status == 200
    assert int(answer.header("x-penstock-wake-ms") or "-1") >= 0
    plane.wait_for(demand=0, running=0)
    again = ask(stack, plane, 1).receive()
    assert again.header("x-penstock-wake-ms") is None


def test_the_end_of_a_request_is_told_when_its_last_byte_has_gone(sim: Simulator, stack: ExitStack) -> None:
    plane, pool = plane_of(stack, pooled(sim.url))
    pool.phase(PoolPhase.READY)
    sim.faults({"kind": "hang", "stage": "stream", "after": 3})
    line = ask(stack, plane, stream=True)
    assert line.receive(chunks=1).status == 200
    assert plane.tally.finished(0) == 0
    before = time.monotonic_ns()
    line.socket.close()
    plane.wait_for(running=0)
    assert plane.tally.finished(0) >= before


@pytest.mark.parametrize("phase", [PoolPhase.DRAINING, PoolPhase.STOPPING, PoolPhase.ASLEEP])
def test_a_request_that_comes_while_servers_go_is_held_and_served_after(
    sim: Simulator, stack: ExitStack, phase: PoolPhase
) -> None:
    plane, pool = plane_of(stack, pooled(sim.url))
    pool.phase(PoolPhase.READY)
    assert ask(stack, plane).receive().status == 200
    sim.reset()
    pool.phase(phase)
    line = ask(stack, plane, 1)
    wait_demand(plane, 1)
    assert plane.tally.running(0) == 0
    assert not sim.stats()["requests"]
    pool.phase(PoolPhase.READY)
    assert line.receive().status == 200


def test_those_who_wait_go_on_in_the_order_in_which_they_came(sim: Simulator, stack: ExitStack) -> None:
    plane, pool = plane_of(stack, pooled(sim.url, model={"max_concurrent": 1}))
    order: list[int] = []

    async def one(client: httpx.AsyncClient, number: int) -> None:
        body = {"model": "m", "prompt": f"number {number}", "max_tokens": 1}
        assert (await client.post("/v1/completions", json=body)).status_code == 200
        order.append(number)

    async def every() -> None:
        base = f"http://127.0.0.1:{plane.port}"
        async with httpx.AsyncClient(base_url=base, timeout=60, trust_env=False) as client:
            asking = []
            for number in range(20):
                asking.append(asyncio.create_task(one(client, number)))
                await until(lambda number=number: demand(plane) > number)
            pool.phase(PoolPhase.READY)
            await asyncio.gather(*asking)

    asyncio.run(every())
    assert order == list(range(20))


def test_a_newcomer_does_not_overtake_those_that_are_still_to_go_on(stack: ExitStack) -> None:
    server = stack.enter_context(simulator(model="m", canned=True))
    plane, pool = plane_of(stack, pooled(server.url))
    lines = [ask(stack, plane, number) for number in range(PORTION + 2)]
    wait_demand(plane, len(lines))
    plane.wait_for(requests=len(lines))
    plane.ticks = False
    pool.phase(PoolPhase.READY)

    def tick() -> None:
        plane.call(lambda: plane.worker.tick(plane.worker.clock(), 0.0))

    tick()
    wait_demand(plane, 2)
    lines.append(ask(stack, plane, "new"))
    wait_demand(plane, 3)  # though the pool is ready and has places
    tick()
    plane.ticks = True
    assert {line.receive().status for line in lines} == {200}


def test_a_thousand_at_once_are_all_answered(stack: ExitStack) -> None:
    server = stack.enter_context(simulator(model="m", canned=True))
    plane, pool = plane_of(stack, pooled(server.url, model={"max_concurrent": 100}))

    async def every() -> list[Reply]:
        asking = [
            asyncio.create_task(asking_for(plane.port, Question(f"{number}", stream=bool(number % 2))))
            for number in range(1000)
        ]
        await until(lambda: demand(plane) == 1000)
        pool.phase(PoolPhase.READY)
        return await asyncio.gather(*asking)

    answers = asyncio.run(every())
    assert {answer.status for answer in answers} == {200}
    assert all(answer.body.rstrip().endswith(b"[DONE]") for answer in answers[1::2])
    assert all(json.loads(answer.body)["choices"] for answer in answers[::2])
    assert server.stats()["paths"]["/v1/chat/completions"]["total"] == 1000


# ---- when it does not come to that


@pytest.mark.parametrize(
    ("path", "kind"),
    [("/v1/chat/completions", "code"), ("/v1/messages", "type")],
    ids=["openai", "anthropic"],
)
def test_a_wake_that_fails_is_told_to_all_who_wait_and_to_who_comes_meanwhile(
    sim: Simulator, stack: ExitStack, path: str, kind: str
) -> None:
    plane, pool = plane_of(stack, pooled(sim.url))
    lines = [ask(stack, plane, number, path=path, stream=bool(number)) for number in range(2)]
    wait_demand(plane, 2)
    pool.fail("the process has ended with status 1", again_s=300.0)
    answers = [line.receive() for line in lines]
    answers.append(ask(stack, plane, 2, path=path).receive())  # it backs off
    for answer in answers:
        assert answer.status == 503
        error = answer.json()["error"]
        assert error[kind] == ("wake_failed" if kind == "code" else "overloaded_error")
        assert "the process has ended with status 1" in str(error["message"])
        assert 290 < int(answer.header("retry-after") or "") <= 300
        assert answer.header("x-should-retry") == "false"
    plane.wait_for(demand=0)
    pool.phase(PoolPhase.OFF)
    line = ask(stack, plane, 3, path=path)
    wait_demand(plane, 1)
    pool.phase(PoolPhase.READY)
    assert line.receive().status == 200


def test_a_wake_that_failed_between_two_looks_is_told_all_the_same(sim: Simulator, stack: ExitStack) -> None:
    plane, pool = plane_of(stack, pooled(sim.url))
    line = ask(stack, plane)
    wait_demand(plane, 1)
    plane.ticks = False
    pool.fail("no room")
    pool.phase(PoolPhase.OFF)
    plane.ticks = True
    assert line.receive().code == "wake_failed"
    line = ask(stack, plane, 1)  # who comes after that has seen none fail
    wait_demand(plane, 1)
    pool.phase(PoolPhase.READY)
    assert line.receive().status == 200


def test_who_waits_longer_than_ready_timeout_s_gets_504(sim: Simulator, stack: ExitStack) -> None:
    plane, pool = plane_of(stack, pooled(sim.url, ready_timeout_s=0.2))
    answer = ask(stack, plane).receive()
    assert (answer.status, answer.code) == (504, "wake_timeout")
    assert int(answer.header("x-penstock-wake-ms") or "") >= 200
    assert "ready_timeout_s (0.2 s)" in str(answer.json()["error"]["message"])
    plane.wait_for(demand=0)
    pool.phase(PoolPhase.READY)
    assert ask(stack, plane, 1).receive().status == 200


def test_the_clock_of_the_queue_starts_when_the_pool_is_ready(sim: Simulator, stack: ExitStack) -> None:
    plane, pool = plane_of(stack, pooled(sim.url, model={"max_concurrent": 1, "queue_timeout_s": 0.3}))
    lines = [ask(stack, plane, number, max_tokens=1) for number in range(2)]
    wait_demand(plane, 2)
    began = plane.worker.clock()
    wait_until(lambda: plane.worker.clock() - began > 0.5, what="longer than queue_timeout_s")
    pool.phase(PoolPhase.READY)
    assert [line.receive().status for line in lines] == [200, 200]


def test_who_is_queued_when_servers_go_waits_for_them_instead(sim: Simulator, stack: ExitStack) -> None:
    plane, pool = plane_of(stack, pooled(sim.url, model={"max_concurrent": 1, "queue_timeout_s": 0.3}))
    pool.phase(PoolPhase.READY)
    sim.faults({"kind": "hang", "stage": "stream", "after": 3})
    first = ask(stack, plane, stream=True)
    first.receive(chunks=1)
    lines = [ask(stack, plane, number) for number in (1, 2)]
    plane.wait_for(queued=2)
    pool.phase(PoolPhase.DRAINING)  # another pool's turn: it finishes what it has, however long that takes
    plane.wait_for(demand=2, queued=0, running=1)
    began = plane.worker.clock()
    wait_until(lambda: plane.worker.clock() - began > 0.5, what="longer than queue_timeout_s")
    assert demand(plane) == 2
    sim.faults({})
    assert first.receive().complete
    plane.wait_for(running=0)
    pool.phase(PoolPhase.READY)
    assert [line.receive().status for line in lines] == [200, 200]


def test_who_was_let_go_on_and_is_queued_may_have_to_wait_again(sim: Simulator, stack: ExitStack) -> None:
    plane, pool = plane_of(stack, pooled(sim.url, model={"max_concurrent": 1}))
    sim.faults({"kind": "hang", "stage": "stream", "after": 3})
    lines = [ask(stack, plane, number, stream=True) for number in range(2)]
    wait_demand(plane, 2)
    pool.phase(PoolPhase.READY)
    plane.wait_for(demand=0, running=1, queued=1)
    pool.phase(PoolPhase.DRAINING)
    plane.wait_for(demand=1, running=1, queued=0)
    sim.faults({})
    plane.wait_for(running=0)
    pool.phase(PoolPhase.READY)
    assert all(line.receive().complete for line in lines)


def test_a_full_hold_refuses_with_its_depth(sim: Simulator, stack: ExitStack) -> None:
    plane, pool = plane_of(stack, pooled(sim.url, model={"max_queue": 2}))
    lines = [ask(stack, plane, number) for number in range(2)]
    wait_demand(plane, 2)
    refused = ask(stack, plane, 2).receive()
    assert (refused.status, refused.code) == (429, "queue_full")
    assert refused.header("x-queue-depth") == "2"
    assert refused.header("retry-after")
    pool.phase(PoolPhase.READY)
    assert [line.receive().status for line in lines] == [200, 200]


def test_a_client_that_leaves_takes_its_demand_along(sim: Simulator, stack: ExitStack) -> None:
    plane, pool = plane_of(stack, pooled(sim.url))
    lines = [ask(stack, plane, number) for number in range(2)]
    wait_demand(plane, 2)
    lines[0].socket.close()
    wait_demand(plane, 1)
    lines[1].socket.close()
    plane.wait_for(demand=0, holding=0, requests=0)
    pool.phase(PoolPhase.READY)
    assert sim.stats()["paths"].get("/v1/chat/completions") is None


def test_a_drain_tells_those_who_wait(sim: Simulator, stack: ExitStack) -> None:
    plane, _ = plane_of(stack, pooled(sim.url))
    line = ask(stack, plane)
    wait_demand(plane, 1)
    plane.call(plane.worker.cut)
    answer = line.receive()
    assert (answer.status, answer.code) == (503, "draining")
    plane.wait_for(demand=0, holding=0)


# ---- servers that go away under it


def test_a_ready_pool_whose_server_is_gone_holds_until_it_is_back(sim: Simulator, stack: ExitStack) -> None:
    port = free_port()
    plane, pool = plane_of(stack, pooled(f"http://127.0.0.1:{port}"))
    pool.phase(PoolPhase.READY)  # as it still stands in the table when a server has just been killed
    lines = [ask(stack, plane, number) for number in range(5)]
    wait_demand(plane, 5)
    pool.phase(PoolPhase.STARTING)
    server = stack.enter_context(simulator(model="m", port=port))
    pool.phase(PoolPhase.READY)
    answers = [line.receive() for line in lines]
    assert [answer.status for answer in answers] == [200] * 5
    assert server.stats()["paths"]["/v1/chat/completions"]["total"] == 5
    assert plane.worker.dispatch.budget.tokens == 10.0  # a wait is no retry


def test_a_server_that_refuses_is_asked_again_after_a_while(sim: Simulator, stack: ExitStack) -> None:
    port = free_port()
    plane, pool = plane_of(stack, pooled(f"http://127.0.0.1:{port}"))
    pool.phase(PoolPhase.READY)
    line = ask(stack, plane)
    wait_demand(plane, 1)
    stack.enter_context(simulator(model="m", port=port))  # nobody says that it was down
    assert line.receive().status == 200


def test_the_deadline_of_the_whole_call_begins_behind_the_wait(sim: Simulator, stack: ExitStack) -> None:
    port = free_port()
    model = {"timeouts": {"total_s": 1.0}}
    plane, pool = plane_of(stack, pooled(f"http://127.0.0.1:{port}", model=model))
    pool.phase(PoolPhase.READY)
    (backend,) = plane.worker.fleet.backends
    wait_until(lambda: backend.up, what="that is known")
    line = ask(stack, plane)  # it begins, and is refused
    wait_demand(plane, 1)
    pool.phase(PoolPhase.STARTING)
    began = plane.worker.clock()
    wait_until(lambda: plane.worker.clock() - began > 1.1, what="longer than total_s")
    stack.enter_context(simulator(model="m", port=port))
    pool.phase(PoolPhase.READY)
    assert line.receive().status == 200


def test_an_open_breaker_is_waited_for_not_told(sim: Simulator, stack: ExitStack) -> None:
    port = free_port()
    breaker = {"failures": 1, "open_s": 0.2}
    plane, pool = plane_of(stack, pooled(f"http://127.0.0.1:{port}"), breaker=breaker)
    pool.phase(PoolPhase.READY)
    lines = [ask(stack, plane, number) for number in range(3)]
    wait_demand(plane, 3)
    stack.enter_context(simulator(model="m", port=port))
    assert [line.receive().status for line in lines] == [200] * 3


def test_a_member_that_is_not_ready_is_not_asked(sim: Simulator, stack: ExitStack) -> None:
    plane, pool = plane_of(stack, pooled(f"http://127.0.0.1:{free_port()}", sim.url))
    pool.members(PoolPhase.DRAINING, PoolPhase.READY)
    pool.pool(PoolPhase.READY, ready=1)
    answers = [ask(stack, plane, number).receive() for number in range(6)]
    assert {(a.status, a.header("x-penstock-attempts")) for a in answers} == {(200, "1")}
    assert plane.call(lambda: plane.worker.fleet.models[0].places) == 100


# ---- the configuration changes while they wait


def test_who_waits_goes_on_with_the_configuration_of_by_then(sim: Simulator, stack: ExitStack) -> None:
    plane, pool = plane_of(stack, pooled(f"http://127.0.0.1:{free_port()}"))
    line = ask(stack, plane)
    wait_demand(plane, 1)
    swap(plane, {"m": pooled(sim.url)})
    pool = Played(plane)
    assert demand(plane) == 1
    pool.phase(PoolPhase.READY)
    assert line.receive().status == 200


def test_a_model_that_has_no_pool_any_more_is_asked(sim: Simulator, stack: ExitStack) -> None:
    plane, _ = plane_of(stack, pooled(sim.url))
    line = ask(stack, plane)
    wait_demand(plane, 1)
    swap(plane, {"m": {"backends": [{"url": sim.url}]}})
    plane.call(lambda: [setattr(backend, "up", True) for backend in plane.worker.fleet.backends])
    assert line.receive().status == 200


def test_a_model_that_is_gone_is_told(sim: Simulator, stack: ExitStack) -> None:
    plane, _ = plane_of(stack, pooled(sim.url))
    line = ask(stack, plane)
    wait_demand(plane, 1)
    swap(plane, {"other": {"backends": [{"url": sim.url}]}})
    answer = line.receive()
    assert (answer.status, answer.code) == (503, "no_healthy_backend")
    assert "not configured any more" in str(answer.json()["error"]["message"])
    wait_demand(plane, 0)


def swap(plane: DataPlane, models: dict[str, Any]) -> None:
    """Another configuration, as a reload would bring it."""
    old = plane.published.config
    made = published(yaml.safe_dump({"models": models}))
    known = len(plane.published.indices)
    plane.published = replace(
        made,
        config=replace(old, models=made.config.models),
        indices={name: known + number for number, name in enumerate(made.indices)},
        model_indices={name: ["m", "other"].index(name) for name in made.model_indices},
        generation=2,
    )
    plane.call(lambda: plane.worker.swap(plane.published))


# ---- others that wait with it


def test_followers_wait_as_long_and_survive_their_leader(sim: Simulator, stack: ExitStack) -> None:
    plane, pool = plane_of(stack, pooled(sim.url), cache={"mode": "all"})
    leader = ask(stack, plane)
    wait_demand(plane, 1)
    follower = ask(stack, plane)
    plane.wait_for(requests=2, following=1)
    leader.socket.close()
    wait_until(lambda: any(plane.call(lambda: lefts(plane))), what="its leaving is seen")
    assert demand(plane) == 1
    pool.phase(PoolPhase.READY)
    answer = follower.receive()
    assert (answer.status, answer.cache) == (200, "COALESCED")
    assert int(answer.header("x-penstock-wake-ms") or "-1") >= 0
    again = ask(stack, plane).receive()
    assert (again.cache, again.header("x-penstock-wake-ms")) == ("HIT-L1", None)
    assert sim.stats()["paths"]["/v1/chat/completions"]["total"] == 1


def test_followers_are_told_what_their_leader_is(sim: Simulator, stack: ExitStack) -> None:
    plane, pool = plane_of(stack, pooled(sim.url), cache={"mode": "all"})
    lines = [ask(stack, plane, stream=True) for _ in range(3)]
    plane.wait_for(requests=3, demand=1, following=2)
    pool.fail("no room")
    assert {line.receive().code for line in lines} == {"wake_failed"}


def test_a_hit_touches_nothing(sim: Simulator, stack: ExitStack) -> None:
    plane, pool = plane_of(stack, pooled(sim.url), cache={"mode": "all"})
    pool.phase(PoolPhase.READY)
    assert ask(stack, plane).receive().cache == "MISS"
    finished = plane.tally.finished(0)
    pool.phase(PoolPhase.OFF)
    assert ask(stack, plane).receive().cache == "HIT-L1"
    assert (demand(plane), plane.tally.finished(0)) == (0, finished)


def test_a_batch_is_held_as_one(sim: Simulator, stack: ExitStack) -> None:
    batching = {"window_ms": 200, "max_items": 2}
    plane, pool = plane_of(stack, pooled(sim.url, model={"batching": batching}))
    lines = [
        stack.enter_context(Line(plane.port)).put({"model": "m", "input": f"text {n}"}, "/v1/embeddings")
        for n in range(2)
    ]
    wait_demand(plane, 1)
    pool.phase(PoolPhase.READY)
    answers = [line.receive() for line in lines]
    assert [answer.status for answer in answers] == [200, 200]
    assert all(answer.json()["usage"]["prompt_tokens"] for answer in answers)
    assert all(answer.header("x-penstock-wake-ms") for answer in answers)
    assert sim.stats()["paths"]["/v1/embeddings"]["total"] == 1


@pytest.mark.parametrize("outcome", ["failed", "timeout"])
def test_fallbacks_are_asked_when_the_wake_came_to_nothing(
    sim: Simulator, stack: ExitStack, outcome: str
) -> None:
    timeout_s = 0.2 if outcome == "timeout" else 300.0
    model = pooled(sim.url, ready_timeout_s=timeout_s, model={"fallbacks": ["other"]})
    others = {"other": {"backends": [{"url": sim.url}]}}
    plane, pool = plane_of(stack, model, models=others)
    line = ask(stack, plane)
    wait_demand(plane, 1)  # it is woken all the same
    if outcome == "failed":
        pool.fail("no room")
    answer = line.receive()
    assert (answer.status, answer.header("x-penstock-fallback")) == (200, "other")
    plane.wait_for(demand=0)


# ---- stored responses


def test_a_stored_response_wakes_the_server_that_holds_it(sim: Simulator, stack: ExitStack) -> None:
    plane, pool = plane_of(stack, pooled(sim.url))
    pool.phase(PoolPhase.READY)
    body = {"model": "m", "input": "hello", "store": True, "max_output_tokens": 4}
    made = stack.enter_context(Line(plane.port)).ask(body, "/v1/responses")
    name = made.json()["id"]
    pool.phase(PoolPhase.ASLEEP)
    base = f"http://127.0.0.1:{plane.port}/v1/responses"
    assert httpx.get(f"{base}/resp_unknown", trust_env=False).status_code == 404
    assert demand(plane) == 0
    following = stack.enter_context(Line(plane.port))
    following.put({**body, "previous_response_id": name}, "/v1/responses")
    wait_demand(plane, 1)
    pool.phase(PoolPhase.READY)
    assert following.receive().status == 200
    pool.phase(PoolPhase.ASLEEP)
    with httpx.Client(trust_env=False) as client:
        sent = Getting(client, f"{base}/{name}")
        wait_demand(plane, 1)
        pool.phase(PoolPhase.READY)
        assert sent.status() == 200


def test_a_conversation_stays_at_its_server_over_a_wake_and_a_reload(
    sim: Simulator, stack: ExitStack
) -> None:
    other = stack.enter_context(simulator(model="m"))
    model = pooled(sim.url, other.url, model={"policy": "weighted_round_robin"})
    plane, pool = plane_of(stack, model)
    pool.phase(PoolPhase.READY)
    body = {"model": "m", "input": "hello", "store": True, "max_output_tokens": 4}
    made = stack.enter_context(Line(plane.port)).ask(body, "/v1/responses")
    pool.phase(PoolPhase.ASLEEP)
    lines = [stack.enter_context(Line(plane.port)) for _ in range(4)]
    for line in lines:
        line.put({**body, "previous_response_id": made.json()["id"]}, "/v1/responses")
    wait_demand(plane, 4)
    swap(plane, {"m": model})
    Played(plane).phase(PoolPhase.READY)
    answers = [line.receive() for line in lines]
    at = made.header("x-penstock-backend")
    assert [(a.status, a.header("x-penstock-backend")) for a in answers] == [(200, at)] * 4


# ---- what is said of it


@pytest.mark.parametrize("phase", [phase for phase in PoolPhase if phase], ids=lambda phase: phase.name)
def test_models_and_ready_say_what_the_pool_does(sim: Simulator, stack: ExitStack, phase: PoolPhase) -> None:
    plane, pool = plane_of(stack, pooled(sim.url))
    pool.phase(phase)
    with httpx.Client(base_url=f"http://127.0.0.1:{plane.port}", trust_env=False) as client:
        wait_until(lambda: client.get("/v1/models/m").json()["state"] == phase.name.lower(), what="the state")
        assert client.get("/ready").status_code == (503 if phase is PoolPhase.FAILED else 200)
    assert demand(plane) == 0  # looking wakes nothing
