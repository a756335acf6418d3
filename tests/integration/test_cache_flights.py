"""Identical questions at once are one upstream call, over two real workers, whoever leaves, fails or is killed.

The simulator holds what it is asked until its fault is switched off, so nothing here depends on how long things take.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import OpenAI

from ..support.gateway import Gateway, gateway
from ..support.lines import Answer, Line, ask, calls, holder, line_to, question
from ..support.procs import free_port, is_running, wait_until
from ..support.sim import Simulator, simulator
from ..support.staged import Staged, chunk, head, staged, whole
from ..support.wire import request

HELD = {"kind": "hang", "stage": "headers"}
HELD_AMID = {"kind": "hang", "stage": "stream", "after": 3}


@pytest.fixture(scope="module")
def sim() -> Iterator[Simulator]:
    with simulator() as running:
        yield running


@pytest.fixture(scope="module")
def backend() -> Iterator[Staged]:
    """Of the model `staged`."""
    with staged() as running:
        yield running


@pytest.fixture(scope="module")
def node(sim: Simulator, backend: Staged) -> Iterator[Gateway]:
    config = {
        "workers": {"count": 2},
        "cache": {"mode": "all", "l1": {"size": "32MiB"}},
        "health": {"fall": 100},
        "models": {
            "m": {"backends": [{"url": sim.url}]},
            "dead": {"backends": [{"url": f"http://127.0.0.1:{free_port()}"}]},
            "staged": {"backends": [{"url": backend.url}]},
        },
    }
    with gateway(config) as running:
        yield running


@pytest.fixture
def stack(sim: Simulator) -> Iterator[ExitStack]:
    sim.reset()
    with ExitStack() as opened:
        yield opened
    sim.faults({})
    wait_until(lambda: sim.stats()["in_flight"] == 0, what="the simulator has nothing to do")


def workers(node: Gateway) -> list[int]:
    """Both, once they are there."""
    return wait_until(lambda: len(node.worker_pids()) == 2 and node.worker_pids(), what="two workers") or []


def lines(node: Gateway, stack: ExitStack, pid: int, count: int) -> list[Line]:
    """Connections to one worker."""
    pids = node.worker_pids()
    return [stack.enter_context(line_to(node.port, pid, pids)) for _ in range(count)]


def outcomes(answers: list[Answer]) -> dict[str | None, int]:
    counted: dict[str | None, int] = {}
    for answer in answers:
        counted[answer.cache] = counted.get(answer.cache, 0) + 1
    return counted


def all_joined(node: Gateway, count: int) -> None:
    """Wait until so many requests were read by their workers, and each loop has gone round a few times since.

    Who has read a request joins or leads at once, so those not yet answered are all in a flight by then.
    """
    port = f":{node.port:04X}"

    def look() -> bool:
        rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        mine = [row for row in rows if row[1].endswith(port) and row[3] == "01"]
        return len(mine) >= count and all(row[4].endswith(":00000000") for row in mine)

    wait_until(look, what=f"{count} requests are read")
    pids = node.worker_pids()
    for pid in pids:
        with line_to(node.port, pid, pids) as line:
            for _ in range(5):
                reply = line.send(request("/health", method="GET")).reply()
                assert reply is not None


# ---- one call for all


@pytest.mark.parametrize("stream", [False, True])
def test_two_hundred_identical_questions_through_two_workers_are_one_call(
    node: Gateway, sim: Simulator, stack: ExitStack, stream: bool
) -> None:
    sim.faults(HELD)
    pids = workers(node)
    asked = question("two hundred", stream=stream)
    each = [stack.enter_context(Line(node.port)) for _ in range(200)]
    for line in each:
        line.put(asked)
    all_joined(node, 200)
    wait_until(lambda: calls(sim) == 1, what="the one call")
    sim.faults({})
    answers = [line.receive() for line in each]
    assert {(answer.status, answer.complete) for answer in answers} == {(200, True)}
    assert len({answer.body for answer in answers}) == 1
    assert outcomes(answers) == {"MISS": 1, "COALESCED": 199}
    assert {line.served_by(pids) for line in each[:40]} == set(pids), "both workers had some"
    assert calls(sim) == 1
    again = ask(node.port, asked)
    assert (again.cache, again.body) == ("HIT-L1", answers[0].body)
    for answer in answers:
        assert bool(answer.header("x-penstock-backend")) is (answer.cache == "MISS")


def test_each_of_those_who_share_an_answer_keeps_its_own_request_id(
    node: Gateway, sim: Simulator, stack: ExitStack
) -> None:
    sim.faults(HELD)
    each = [line for pid in workers(node) for line in lines(node, stack, pid, 3)]
    for i, line in enumerate(each):
        line.put(question("ids", stream=i % 2 == 9), headers={"x-request-id": f"id-{i}"})
    all_joined(node, 6)
    sim.faults({})
    answers = [line.receive() for line in each]
    assert [answer.header("x-request-id") for answer in answers] == [f"id-{i}" for i in range(6)]
    assert outcomes(answers) == {"MISS": 1, "COALESCED": 5}


def test_who_joins_a_stream_late_gets_what_was_sent_so_far_then_the_rest(
    node: Gateway, sim: Simulator, stack: ExitStack
) -> None:
    first, second = workers(node)
    asked = question("late", stream=True, max_tokens=12)
    sim.faults(HELD_AMID)
    (leader,), (near,), (far,) = (lines(node, stack, pid, 1) for pid in (first, first, second))
    leader.put(asked).receive(chunks=1)
    wait_until(lambda: _events(leader) == 3, what="three events")
    had = leader.receive(chunks=0).body
    for late in (near, far):
        late.put(asked)
        wait_until(lambda late=late: _events(late) == 3, what="what was sent so far")
        assert late.receive(chunks=0).body == had
    sim.faults({})
    answers = [line.receive() for line in (leader, near, far)]
    assert [answer.cache for answer in answers] == ["MISS", "COALESCED", "COALESCED"]
    assert len({answer.body for answer in answers}) == 1
    assert len(answers[0].body) > len(had)
    assert calls(sim) == 1
    assert ask(node.port, asked).body == answers[0].body


def _events(line: Line) -> int:
    """Events that have come by now; reads once more where there are fewer than three."""
    body = line.receive(chunks=0).body
    if body.count(b"\n\n") < 3:
        body = line.receive(chunks=len(line.receive(chunks=0).chunks) + 1).body
    return body.count(b"\n\n")


# ---- who leaves


@pytest.mark.parametrize("stream", [False, True])
def test_the_leaders_client_may_leave_and_the_others_are_answered(
    node: Gateway, sim: Simulator, stack: ExitStack, stream: bool
) -> None:
    first, second = workers(node)
    asked = question("the leader leaves", stream=stream)
    sim.faults(HELD_AMID if stream else HELD)
    (leader,), near, far = (lines(node, stack, pid, n) for pid, n in ((first, 1), (first, 2), (second, 2)))
    leader.put(asked)
    wait_until(lambda: calls(sim) == 1, what="the call")
    for line in (*near, *far):
        line.put(asked)
    all_joined(node, 5)
    if stream:
        for line in (leader, *near, *far):
            line.receive(chunks=1)
    gone = node.metric("penstock_requests_total", status="499")
    leader.reset()
    if stream:  # nobody counts as gone whose task still carries the others
        assert node.metric("penstock_requests_total", status="499") == gone
    sim.faults({})
    answers = [line.receive() for line in (*near, *far)]
    assert outcomes(answers) == {"COALESCED": 4}
    assert len({answer.body for answer in answers}) == 1
    assert {answer.complete for answer in answers} == {True}
    assert calls(sim) == 1
    assert ask(node.port, asked).cache == "HIT-L1"
    wait_until(lambda: node.metric("penstock_requests_total", status="499") == gone + 1)


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("before", ["the head", "the end"])
def test_a_stream_whose_leader_has_left_is_kept_and_its_tokens_are_counted(
    node: Gateway, backend: Staged, stack: ExitStack, before: str, at_once: bool
) -> None:
    usage = b'{"choices":[],"usage":{"prompt_tokens":11,"total_tokens":16,"completion_tokens":5}}'
    events = [b'{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}', usage, b"[DONE]"]
    pieces = [head(), *(chunk(b"data: %b\n\n" % event) for event in events), chunk(b"")]
    begun = 0 if before == "the head" else 2
    backend.hold(*pieces[:begun], *([b"".join(pieces[begun:])] if at_once else pieces[begun:]))
    asked = question(f"the leader leaves before {before}, {at_once}", model="staged", stream=True)
    (first, _), tokens = workers(node), node.metric("penstock_tokens_total", model="staged")
    leader, follower = lines(node, stack, first, 2)
    leader.put(asked)
    wait_until(lambda: backend.received == 1, what="the call")
    follower.put(asked)
    all_joined(node, 2)
    if begun:
        backend.go(begun)
        for line in (leader, follower):
            line.receive(chunks=1)
    leader.reset()
    all_joined(node, 1)  # and the loop has gone round: it has heard of that
    backend.go()
    assert follower.receive().body == b"".join(b"data: %b\n\n" % event for event in events)
    assert ask(node.port, asked).cache == "HIT-L1"
    assert backend.received == 1
    wait_until(lambda: node.metric("penstock_tokens_total", model="staged") == tokens + 16, what="its tokens")


@pytest.mark.parametrize("stage", [HELD, HELD_AMID], ids=["before the head", "amid the events"])
def test_when_all_have_left_the_call_is_closed(
    node: Gateway, sim: Simulator, stack: ExitStack, stage: dict[str, Any]
) -> None:
    asked = question(f"all leave {stage['stage']}", stream=True)
    sim.faults(stage)
    each = [line for pid in workers(node) for line in lines(node, stack, pid, 3)]
    for line in each:
        line.put(asked)
    all_joined(node, 6)
    wait_until(lambda: calls(sim) == 1, what="the call")
    if stage is HELD_AMID:
        for line in each:
            line.receive(chunks=1)
    for line in each[:-1]:
        line.socket.close()
    assert sim.stats()["in_flight"] == 1, "one still waits"
    each[-1].socket.close()
    wait_until(lambda: sim.stats()["aborted"] == 1, what="the call is closed")
    sim.faults({})
    assert ask(node.port, asked).cache == "MISS"
    assert calls(sim) == 2


# ---- what fails


FAILED: dict[str, tuple[bytes, int]] = {
    "500": (whole(b'{"error":{"message":"a","code":500}}', status=b"500 Internal Server Error"), 500),
    "429": (
        whole(b'{"error":{"message":"b"}}', status=b"429 Too Many Requests", more=b"Retry-After: 7\r\n"),
        429,
    ),
    "400": (whole(b'{"error":{"message":"c"}}', status=b"400 Bad Request"), 400),
    "no HTTP": (b"what?\r\n\r\n", 502),
    "a stream's head, then nonsense": (head() + b"xyz\r\n", 502),
}


@pytest.mark.parametrize("fault", FAILED)
def test_what_the_backend_says_of_a_failure_goes_to_all_who_wait(
    node: Gateway, backend: Staged, stack: ExitStack, fault: str
) -> None:
    said, status = FAILED[fault]
    backend.hold(said)
    asked = question(f"fails {fault}", model="staged", stream=True)
    each = [line for pid in workers(node) for line in lines(node, stack, pid, 4)]
    for line in each:
        line.put(asked)
    all_joined(node, 8)
    wait_until(lambda: backend.received == 1, what="the call")
    backend.go()
    answers = [line.receive() for line in each]
    assert len({answer.body for answer in answers}) == 1
    assert {answer.header("retry-after") for answer in answers} == {"7" if fault == "429" else None}
    if "stream" in fault:
        assert {(answer.status, answer.complete) for answer in answers} <= {(200, True), (502, True)}
        assert b'"status":502' in answers[0].body or answers[0].status == 502
    else:
        assert {answer.status for answer in answers} == {status}
    assert backend.received == 1
    backend.hold(whole(b'{"choices":[]}'))
    backend.go()
    again = ask(node.port, asked)
    assert (again.status, again.cache) == (200, "MISS")


@pytest.mark.parametrize("stream", [False, True])
def test_a_backend_that_refuses_is_told_to_all_who_wait(
    node: Gateway, stack: ExitStack, stream: bool
) -> None:
    each = [line for pid in workers(node) for line in lines(node, stack, pid, 5)]
    for line in each:
        line.put(question("dead", model="dead", stream=stream))
    answers = [line.receive() for line in each]
    assert len({answer.status for answer in answers}) == 1
    assert answers[0].status in (502, 503)
    assert len({answer.body for answer in answers}) == 1


# ---- who is killed


@pytest.mark.parametrize("stream", [False, True])
def test_a_leader_killed_before_its_first_byte_is_one_more_call_and_all_others_are_answered(
    node: Gateway, sim: Simulator, stack: ExitStack, stream: bool
) -> None:
    first, second = workers(node)
    asked = question("killed before", stream=stream)
    sim.faults(HELD)
    (leader,), near, far = (lines(node, stack, pid, n) for pid, n in ((first, 1), (first, 4), (second, 20)))
    leader.put(asked)
    wait_until(lambda: calls(sim) == 1, what="the call")
    for line in (*near, *far):
        line.put(asked)
    all_joined(node, 25)
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: calls(sim) == 2, what="one more call")
    sim.faults({})
    answers = [line.receive() for line in far]
    assert {(answer.status, answer.complete) for answer in answers} == {(200, True)}
    assert outcomes(answers) == {"MISS": 1, "COALESCED": 19}
    assert len({answer.body for answer in answers}) == 1
    assert calls(sim) == 2
    for line in (leader, *near):
        assert not line.receive().complete
    again = ask(node.port, asked)
    assert (again.cache, again.body) == ("HIT-L1", answers[0].body)
    assert not is_running(first)
    workers(node)


def test_a_leader_killed_amid_a_stream_is_an_error_to_those_with_bytes_and_one_call_for_the_rest(
    node: Gateway, sim: Simulator, stack: ExitStack
) -> None:
    first, second = workers(node)
    asked = question("killed amid", stream=True, max_tokens=12)
    sim.faults(HELD_AMID)
    (leader,), far, rest = (lines(node, stack, pid, n) for pid, n in ((first, 1), (second, 4), (second, 6)))
    leader.put(asked).receive(chunks=1)
    for line in far:
        line.put(asked).receive(chunks=1)
    client = OpenAI(base_url=f"{node.url}/v1", api_key="x", max_retries=0)
    streams: list[Any] = []

    def on_second() -> bool:
        """An SDK's stream that the second worker carries."""
        stream = client.chat.completions.create(**asked)
        next(iter(stream))
        streams.append(stream)
        address = stream.response.extensions["network_stream"].get_extra_info("client_addr")
        return holder(node.port, address[1], [first, second]) == second

    wait_until(on_second, what="a stream through the other worker")
    assert calls(sim) == 1
    os.kill(first, signal.SIGKILL)
    answers = [line.receive() for line in far]
    for answer in answers:
        assert (answer.status, answer.complete, answer.cache) == (200, True, "COALESCED")
        assert b'"code":"flight_lost"' in answer.body
        assert b"[DONE]" not in answer.body
    with pytest.raises(openai.APIError, match="lost"):
        list(streams[-1])
    for line in rest:
        line.put(asked)
    wait_until(lambda: calls(sim) == 2, what="one call for the rest")
    all_joined(node, 6)
    sim.faults({})
    after = [line.receive() for line in rest]
    assert outcomes(after) == {"MISS": 1, "COALESCED": 5}
    assert {answer.complete for answer in after} == {True}
    assert after[0].body.endswith(b"data: [DONE]\n\n")
    assert calls(sim) == 2
    for stream in streams:
        stream.close()
    client.close()
    workers(node)


def test_a_follower_killed_is_no_matter_to_anybody_else(
    node: Gateway, sim: Simulator, stack: ExitStack
) -> None:
    first, second = workers(node)
    asked = question("a follower killed", stream=True)
    sim.faults(HELD_AMID)
    (leader,), near, far = (lines(node, stack, pid, n) for pid, n in ((first, 1), (first, 3), (second, 3)))
    leader.put(asked).receive(chunks=1)
    for line in (*near, *far):
        line.put(asked).receive(chunks=1)
    os.kill(second, signal.SIGKILL)
    workers(node)
    sim.faults({})
    answers = [line.receive() for line in (leader, *near)]
    assert {answer.complete for answer in answers} == {True}
    assert len({answer.body for answer in answers}) == 1
    assert calls(sim) == 1
    for line in far:
        assert not line.receive().complete


def test_a_leader_that_is_replaced_gives_its_followers_the_rest_before_it_ends(
    node: Gateway, sim: Simulator, stack: ExitStack
) -> None:
    first, second = workers(node)
    sim.faults(HELD_AMID)
    (leader,), far = (lines(node, stack, pid, n) for pid, n in ((first, 1), (second, 3)))
    asked = question("replaced", stream=True)
    leader.put(asked).receive(chunks=1)
    for line in far:
        line.put(asked).receive(chunks=1)
    left = node.log().count("worker_leaving")
    node.proc.send(signal.SIGUSR2)
    wait_until(lambda: node.log().count("worker_leaving") > left, what="a worker that leaves")
    late = stack.enter_context(Line(node.port)).put(asked)
    late.receive(chunks=1)
    assert calls(sim) == 1
    sim.faults({})
    answers = [line.receive() for line in (leader, *far, late)]
    assert {(answer.status, answer.complete) for answer in answers} == {(200, True)}
    assert len({answer.body for answer in answers}) == 1
    assert calls(sim) == 1
    wait_until(lambda: not {first, second} & set(node.worker_pids()), what="two successors")
    assert ask(node.port, asked).cache == "HIT-L1"
    workers(node)
