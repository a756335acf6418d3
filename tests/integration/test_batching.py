"""Requests that arrive together are one request upstream, and each caller has the answer it would have had alone."""

import hashlib
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import httpx
import msgspec
import pytest

from penstock.gateway.errors import Fault, Kind

from ..support.dataplane import DataPlane, data_plane
from ..support.gateway import gateway
from ..support.procs import wait_until
from ..support.sim import Simulator, simulator
from ..support.wire import Reply, Wire, ask, request
from .test_keys import create

EMBED, COMPLETE, TOKENIZE = "/v1/embeddings", "/v1/completions", "/tokenize"
LONG_MS = 1000  # nobody waits so long: as many come as may go together
Body = dict[str, Any]


@pytest.fixture(scope="module")
def server() -> Iterator[Simulator]:
    with simulator(model="m", max_model_len=400) as one:
        yield one


@pytest.fixture(autouse=True)
def clean(server: Simulator) -> None:
    server.reset()


def config(server: Simulator, batching: Body, cache: str = "off", **model: Any) -> Body:
    return {
        "cache": {"mode": cache, "l1": {"size": "32MiB", "max_entry": "512KiB"}},
        "models": {"m": {"backends": [{"url": server.url}], "batching": batching, **model}},
    }


@contextmanager
def batching(
    server: Simulator, max_items: int, window_ms: int = LONG_MS, cache: str = "off", **more: Any
) -> Iterator[DataPlane]:
    told = {"window_ms": window_ms, "max_items": max_items, **more}
    with data_plane(config(server, told, cache)) as plane:
        if window_ms == LONG_MS:  # longer than a test may take, and than the configuration allows
            model = plane.worker.fleet.models[0]
            assert model.batching is not None
            model.batching = replace(model.batching, window_s=3600.0)
        yield plane


def encoded(body: Body) -> bytes:
    return msgspec.json.encode({"model": "m", **body})


def all_at_once(port: int, path: str, bodies: list[Body], **options: Any) -> list[Reply]:
    """Each on a connection of its own, all sent before the first is answered."""
    with ExitStack() as stack:
        wires = [stack.enter_context(Wire(port)) for _ in bodies]
        for wire, body in zip(wires, bodies, strict=True):
            wire.send(request(path, encoded(body), **options))
        replies = [wire.reply() for wire in wires]
    assert all(reply is not None and reply.complete for reply in replies)
    return [reply for reply in replies if reply is not None]


def without_id(body: bytes) -> bytes:
    return re.sub(rb'"id":"[^"]*"', b'"id":""', body, count=1)


def counts(server: Simulator) -> dict[str, int]:
    return {path: told["total"] for path, told in server.stats()["paths"].items()}


def alone(server: Simulator, path: str, bodies: list[Body]) -> list[bytes]:
    """What the server says to each without a gateway."""
    said = [ask(server.port, path, encoded(body)) for body in bodies]
    server.reset()
    return [without_id(reply.body) for reply in said]


CASES: dict[str, tuple[str, list[Body], dict[str, int]]] = {
    "texts": (
        EMBED,
        [{"input": "one"}, {"input": ["number two", "and three"]}, {"input": "vier und mehr", "user": "u"}],
        {EMBED: 1, TOKENIZE: 4},
    ),
    "texts as base64": (
        EMBED,
        [{"input": text, "encoding_format": "base64"} for text in ("a", "bcdef")],
        {EMBED: 1, TOKENIZE: 2},
    ),
    "token ids": (
        EMBED,
        [{"input": [1, 2, 3]}, {"input": [[4], [5, 6]]}, {"input": [[7, 8]]}],
        {EMBED: 1},
    ),
    "long vectors": (
        EMBED,
        [{"input": [n], "dimensions": 60_000} for n in (1, 2)],
        {EMBED: 1},
    ),
    "prompts": (
        COMPLETE,
        [
            {"prompt": "one", "temperature": 0},
            {"prompt": ["number two", "and three"], "temperature": 0},
            {"temperature": 0, "prompt": "vier", "metadata": {"a": "b"}},
        ],
        {COMPLETE: 1},
    ),
    "prompts of token ids, which are told": (
        COMPLETE,
        [{"prompt": ids, "max_tokens": 5, "return_token_ids": True} for ids in ([1, 2], [[3]])],
        {COMPLETE: 1},
    ),
}


@pytest.mark.parametrize("cache", ["off", "all"])
@pytest.mark.parametrize("case", CASES)
def test_callers_get_what_they_would_have_got_alone(server, case, cache):
    path, bodies, asked = CASES[case]
    expected = alone(server, path, bodies)
    items = sum(
        len(value) if isinstance(value, list) and not isinstance(value[0], int) else 1
        for value in (body.get("input", body.get("prompt")) for body in bodies)
    )
    with batching(server, items, cache=cache) as plane:
        replies = all_at_once(plane.port, path, bodies)
    assert [reply.status for reply in replies] == [200] * len(bodies)
    assert [without_id(reply.body) for reply in replies] == expected
    assert len({reply.json()["id"] for reply in replies}) == len(bodies)
    assert counts(server) == asked


def test_what_differs_in_a_parameter_is_asked_apart(server):
    bodies: list[Body] = [{"prompt": "a", "max_tokens": 3 + n % 2} for n in range(4)]
    bodies = [{**body, "prompt": f"p{n}"} for n, body in enumerate(bodies)]
    expected = alone(server, COMPLETE, bodies)
    with batching(server, 2) as plane:
        replies = all_at_once(plane.port, COMPLETE, bodies)
    assert [without_id(reply.body) for reply in replies] == expected
    assert counts(server) == {COMPLETE: 2}


def test_what_comes_after_the_window_goes_by_itself_and_unchanged(server):
    body = b'{ "input" : "alone\\u0021", "model":"m", "user" : "u" }'
    with batching(server, 8, window_ms=1) as plane:
        replies = [ask(plane.port, EMBED, body) for _ in range(2)]
    assert {reply.status for reply in replies} == {200}
    assert counts(server) == {EMBED: 2}
    sent = [one["body_sha256"] for one in server.stats()["recent"] if one["target"] == EMBED]
    assert sent == [hashlib.sha256(body).hexdigest()] * 2


def test_streams_and_requests_with_many_inputs_do_not_wait_for_others(server):
    with batching(server, 4) as plane:
        many = ask(plane.port, EMBED, encoded({"input": ["a"] * 5}))
        stream = ask(plane.port, COMPLETE, encoded({"prompt": "a", "stream": True, "max_tokens": 3}))
    assert (many.status, stream.status) == (200, 200)
    assert counts(server) == {EMBED: 1, COMPLETE: 1}


def test_the_next_batch_takes_whom_the_full_one_has_no_room_for(server):
    bodies: list[Body] = [{"input": [[n]] * items} for n, items in ((1, 3), (2, 3), (3, 2))]
    expected = alone(server, EMBED, bodies)
    with batching(server, 5) as plane, ExitStack() as stack:
        wires = [stack.enter_context(Wire(plane.port)) for _ in bodies]
        wires[0].send(request(EMBED, encoded(bodies[0])))
        plane.wait_for(requests=1)
        wires[1].send(request(EMBED, encoded(bodies[1])))
        first = wires[0].reply()
        wires[2].send(request(EMBED, encoded(bodies[2])))
        replies = [first, wires[1].reply(), wires[2].reply()]
    assert [without_id(reply.body) for reply in replies if reply is not None] == expected
    assert counts(server) == {EMBED: 2}


def test_answers_are_kept_for_each_question(server):
    bodies: list[Body] = [{"input": f"number {n}"} for n in range(3)]
    with batching(server, 3, cache="deterministic") as plane:
        first = all_at_once(plane.port, EMBED, bodies)
        again = [ask(plane.port, EMBED, encoded(body)) for body in reversed(bodies)]
    assert [reply.header("x-penstock-cache") for reply in first] == ["MISS"] * 3
    assert [reply.header("x-penstock-cache") for reply in again] == ["HIT-L1"] * 3
    assert [reply.body for reply in again] == [reply.body for reply in reversed(first)]
    assert counts(server) == {EMBED: 1, TOKENIZE: 3}


def test_who_asks_the_same_meanwhile_shares_one_part(server):
    bodies: list[Body] = [{"input": "same"}, {"input": "same"}, {"input": "other"}]
    with batching(server, 2, cache="deterministic") as plane:
        replies = all_at_once(plane.port, EMBED, bodies)
    assert replies[0].body == replies[1].body != replies[2].body
    assert counts(server) == {EMBED: 1, TOKENIZE: 2}


# ---- errors


def test_one_bad_input_is_told_to_its_caller_alone(server):
    bodies: list[Body] = [{"prompt": "good"}, {"prompt": "bad " * 300}, {"prompt": "fine"}]
    expected = alone(server, COMPLETE, bodies)
    with batching(server, 3) as plane:
        replies = all_at_once(plane.port, COMPLETE, bodies)
    assert [reply.status for reply in replies] == [200, 400, 200]
    assert [without_id(reply.body) for reply in replies] == expected
    assert counts(server) == {COMPLETE: 4}


@pytest.mark.parametrize(("status", "sent"), [(429, 1), (500, 5)])
def test_a_failure_is_tried_again_for_each_but_not_where_the_server_has_too_much(server, status, sent):
    server.faults({"faults": [{"kind": "status", "status": status, "count": 1}]})
    bodies: list[Body] = [{"input": [n]} for n in range(4)]
    with batching(server, 4) as plane:
        replies = all_at_once(plane.port, EMBED, bodies)
    assert {reply.status for reply in replies} == ({429} if status == 429 else {200})
    assert counts(server) == {EMBED: sent}


def test_failures_are_tried_again_within_the_budget_of_retries(server):
    server.faults({"faults": [{"kind": "status", "status": 500}]})
    with batching(server, 12) as plane:
        plane.call(lambda: setattr(plane.worker.dispatch.budget, "tokens", 3.0))
        replies = all_at_once(plane.port, EMBED, [{"input": [n]} for n in range(12)])
    assert {reply.status for reply in replies} == {500}
    assert counts(server) == {EMBED: 1 + 3}


def test_an_answer_that_breaks_off_is_a_fault_for_all(server):
    server.faults({"faults": [{"kind": "reset_after_headers", "count": 1}]})
    with batching(server, 3) as plane:
        replies = all_at_once(plane.port, EMBED, [{"input": [n]} for n in range(3)])
    assert [(reply.status, reply.code) for reply in replies] == [(502, "upstream_broken")] * 3
    assert counts(server) == {EMBED: 1}


def test_a_server_that_cannot_count_tokens_is_asked_for_each_and_batched_no_more(server):
    bodies: list[Body] = [{"input": "one"}, {"input": "number two"}]
    expected = alone(server, EMBED, bodies)
    server.faults({"faults": [{"kind": "status", "status": 404, "path": TOKENIZE}]})
    with batching(server, 2) as plane:
        for _ in range(2):
            replies = all_at_once(plane.port, EMBED, bodies)
            assert [without_id(reply.body) for reply in replies] == expected
        assert counts(server)[EMBED] == 1 + 2 + 2
        # ids are counted here, but the kind goes alone for a while; completions are another kind
        all_at_once(plane.port, COMPLETE, [{"prompt": "a"}, {"prompt": "b"}])
        assert counts(server)[COMPLETE] == 1


def test_shared_usage_adds_up_and_asks_the_server_nothing_more(server):
    bodies: list[Body] = [{"input": "a" * length} for length in (1, 7, 30)]
    with batching(server, 3, usage="shared") as plane:
        replies = all_at_once(plane.port, EMBED, bodies)
        said = all_at_once(plane.port, COMPLETE, [{"prompt": "a" * n} for n in (1, 7, 30)])
    together = ask(server.port, EMBED, encoded({"input": [body["input"] for body in bodies]})).json()
    told = [reply.json()["usage"] for reply in replies]
    assert sum(int(str(usage["total_tokens"])) for usage in told) == together["usage"]["total_tokens"]
    assert all(int(str(reply.json()["usage"]["completion_tokens"])) > 0 for reply in said)
    assert counts(server) == {EMBED: 2, COMPLETE: 1}


# ---- who leaves


def test_who_leaves_within_the_window_is_not_asked_for(server):
    with batching(server, 3) as plane, Wire(plane.port) as staying:
        leaving = Wire(plane.port).send(request(EMBED, encoded({"input": [1, 1]})))
        plane.wait_for(requests=1)
        leaving.socket.close()
        plane.wait_for(requests=0)
        staying.send(request(EMBED, encoded({"input": [2, 2]})))
        plane.wait_for(requests=1)
        others = all_at_once(plane.port, EMBED, [{"input": [3]}, {"input": [4]}])
        reply = staying.reply()
    assert reply is not None
    assert [one.json()["usage"]["prompt_tokens"] for one in (reply, *others)] == [2, 1, 1]
    assert counts(server) == {EMBED: 1}


def test_nothing_is_sent_when_all_have_left(server):
    with batching(server, 3) as plane:
        wires = [Wire(plane.port).send(request(EMBED, encoded({"input": [n]}))) for n in range(2)]
        plane.wait_for(requests=2)
        for wire in wires:
            wire.socket.close()
        plane.wait_settled()
        assert counts(server) == {}
        assert plane.statuses() == {"499": 2}


def test_the_call_ends_with_the_last_who_leaves_and_with_none_before(server):
    server.faults({"faults": [{"kind": "hang"}]})
    with batching(server, 3) as plane:
        wires = [Wire(plane.port).send(request(EMBED, encoded({"input": [n]}))) for n in range(3)]
        wait_until(lambda: server.stats()["in_flight"] == 1, 10, "the request is there")
        for left, wire in enumerate(wires[:2], 1):
            wire.socket.close()
            plane.wait_for(requests=3 - left, inflight=1, running=1, calls=1)
        assert server.stats()["aborted"] == 0
        wires[2].socket.close()
        plane.wait_settled()
        wait_until(lambda: server.stats()["aborted"] == 1, 10, "the call is cancelled")


def test_the_counting_of_texts_ends_with_their_last_caller(server):
    server.faults({"faults": [{"kind": "hang"}]})
    with batching(server, 2) as plane:
        wires = [Wire(plane.port).send(request(EMBED, encoded({"input": text}))) for text in "ab"]
        wait_until(lambda: server.stats()["in_flight"] == 3, 10, "the texts are embedded and counted")
        for wire in wires:
            wire.socket.close()
        plane.wait_settled()
        wait_until(lambda: server.stats()["aborted"] == 3, 10, "all calls are cancelled")


def test_those_who_stay_are_answered(server):
    server.faults({"faults": [{"kind": "hang"}]})
    with batching(server, 2) as plane, Wire(plane.port) as staying:
        leaving = Wire(plane.port).send(request(EMBED, encoded({"input": [1]})))
        staying.send(request(EMBED, encoded({"input": [2]})))
        wait_until(lambda: server.stats()["in_flight"] == 1, 10, "the request is there")
        leaving.socket.close()
        plane.wait_for(requests=1)
        server.faults({})
        reply = staying.reply()
        assert reply is not None
        assert reply.status == 200
        assert plane.statuses() == {"200": 1, "499": 1}
    assert counts(server) == {EMBED: 1}


def test_a_drain_ends_those_that_wait_for_others(server):
    with batching(server, 3) as plane:
        wires = [Wire(plane.port).send(request(EMBED, encoded({"input": [n]}))) for n in range(2)]
        plane.wait_for(requests=2)
        plane.call(lambda: plane.worker.watch.abort_all(Fault(Kind.DRAINING, "the end")))
        replies = [wire.reply() for wire in wires]
        assert [reply.status for reply in replies if reply is not None] == [503, 503]
        for wire in wires:
            wire.socket.close()
    assert counts(server) == {}


# ---- whose it is


def test_a_batch_has_one_place_and_is_counted(server):
    server.faults({"faults": [{"kind": "hang"}]})
    with batching(server, 3) as plane:
        wires = [Wire(plane.port).send(request(EMBED, encoded({"input": [n]}))) for n in range(3)]
        wait_until(lambda: server.stats()["in_flight"] == 1, 10, "the request is there")
        plane.wait_for(requests=3, inflight=1, running=1, calls=1, queued=0)
        server.faults({})
        assert all(wire.reply() for wire in wires)
        for wire in wires:
            wire.socket.close()


def test_tenants_share_a_request_and_nothing_else(server, tmp_path):
    plain = config(server, {"window_ms": LONG_MS, "max_items": 2}, cache="deterministic")
    with gateway({**plain, "keys": {"file": str(tmp_path / "keys.yaml")}}) as gate:
        secrets = [create(gate.file, tenant=tenant)[1] for tenant in ("a", "b")]

        def limits(secret: str) -> httpx.Response:
            return httpx.get(
                f"{gate.url}/v1/models", headers={"authorization": f"Bearer {secret}"}, trust_env=False
            )

        wait_until(lambda: all(limits(secret).status_code == 200 for secret in secrets), 20, "keys known")
        inputs = ("one", "a much longer text than that")
        with ExitStack() as stack:
            wires = [stack.enter_context(Wire(gate.port)) for _ in secrets]
            for wire, secret, text in zip(wires, secrets, inputs, strict=True):
                headers = {"authorization": f"Bearer {secret}"}
                wire.send(request(EMBED, encoded({"input": text}), headers=headers))
            replies = [wire.reply() for wire in wires]
        expected = [without_id(ask(server.port, EMBED, encoded({"input": text})).body) for text in inputs]
        assert [without_id(reply.body) for reply in replies if reply is not None] == expected
        assert counts(server)[EMBED] == 1 + 2
        # what one was told is kept for that one alone
        headers = {"authorization": f"Bearer {secrets[1]}"}
        with Wire(gate.port) as wire:
            again = wire.send(request(EMBED, encoded({"input": inputs[0]}), headers=headers)).reply()
        assert again is not None
        assert again.header("x-penstock-cache") == "MISS"
